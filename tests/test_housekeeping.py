"""What is done by the clock for all accounts: what is too old goes, and what is idle is forgotten."""

import json
from contextlib import suppress

import pytest
import trio
from clients import ALICE, configured, event, key_of
from logs import WaitingEngine
from steps import counting
from trio.testing import wait_all_tasks_blocked as blocked

from broker import (
    CommandContext,
    RateConfig,
    RatesConfig,
    ReplayConfig,
    RequestError,
    TierRatesConfig,
    open_broker,
)
from broker.commands.dispatch import Commands
from broker.commands.remembered import Outcome
from broker.config import Config
from broker.expiry import _FORGET_SLICE, FORGET_SECONDS, MAX_EXPIRY_SECONDS, expire_and_forget
from broker.fanout.hub import Hub
from broker.log import dropped
from broker.log.retention import ReplayBuffers
from broker.protocol.decoding import decode_command


@pytest.mark.parametrize(("seconds", "late"), [(300, MAX_EXPIRY_SECONDS), (2, 0.5)])
async def test_events_leave_the_window_soon_after_their_time(autojump_clock, seconds, late):
    async with open_broker(configured(replay=ReplayConfig(seconds=seconds))) as opened:
        await opened.publish("acct", event(1))
        await trio.sleep(seconds)
        assert opened.statistics().replay.events == 1
        await trio.sleep(2 * late + 0.001)
        assert opened.statistics().replay.events == 0


async def test_many_events_that_are_old_together_are_dropped_in_slices(autojump_clock):
    async with open_broker(configured(replay=ReplayConfig(seconds=10))) as opened:
        for _ in range(10):
            await opened.publish("acct", [event(n) for n in range(500)])
        await trio.sleep(9)
        held = set()
        with trio.fail_after(10):
            while opened.statistics().replay.events:
                held.add(opened.statistics().replay.events)
                await trio.sleep_until(11) if trio.current_time() < 11 else await trio.lowlevel.checkpoint()
        assert len(held) > 5
        assert opened.statistics().replay.dropped == 5_000


async def test_accounts_of_which_nothing_is_left_are_forgotten(autojump_clock, nursery):
    buffers = ReplayBuffers(ReplayConfig(seconds=10), b"x" * 16)
    hub = Hub(buffers)
    nursery.start_soon(expire_and_forget, hub, buffers, Commands(Config()), 10)
    for number in range(200):
        hub.account(f"acct_{number}")
    used = hub.account("acct_7")
    used.uses += 1
    await trio.sleep(FORGET_SECONDS - 2)
    assert hub.statistics().accounts == 200
    await trio.sleep(4)
    assert hub.statistics().accounts == 1
    assert hub.account("acct_7") is used
    used.uses -= 1
    await trio.sleep(FORGET_SECONDS + 2)
    assert hub.statistics().accounts == 0


async def test_answers_that_are_old_together_are_forgotten_in_slices(autojump_clock):
    async with open_broker(configured(replay=ReplayConfig(seconds=10))) as opened:
        for number in range(5):
            remembered = opened.commands._accounts.open(f"acct_{number}").remembered
            for command in range(2_000):
                run, _ = remembered.begin(("key", "", f"r{command}"), b"", trio.current_time())
                remembered.finish(run, Outcome(b"{}"), trio.current_time())
        with counting("broker.commands.remembered.Remembered._forget") as forgotten:
            await trio.sleep(10 + FORGET_SECONDS + 2)
        assert forgotten.total == 10_000
        assert forgotten.most <= _FORGET_SLICE
        assert len(opened.commands._accounts) == 0


async def test_idle_accounts_are_forgotten_in_slices(autojump_clock):
    async with open_broker(configured()) as opened:
        for number in range(2_000):
            opened._hub.account(f"acct_{number}")
        with counting("broker.fanout.hub.Account.idle") as looked_at:
            await trio.sleep(FORGET_SECONDS + 2)
        assert looked_at.total >= 2_000
        assert looked_at.most <= _FORGET_SLICE
        assert opened.statistics().hub.accounts == 0


async def test_positions_of_dropped_events_are_forgotten_a_bucket_a_step(autojump_clock, monkeypatch):
    monkeypatch.setattr(dropped, "_BUCKET_BYTES", 1_000)
    async with open_broker(configured(replay=ReplayConfig(seconds=10, max_events_per_account=1))) as opened:
        await opened.publish("acct", [event(n) for n in range(1_000)])
        with counting("broker.log.dropped.DroppedBuckets._forget_oldest") as forgotten:
            await trio.sleep(3_600 + 600 + FORGET_SECONDS + 12)
        assert forgotten.total > 30
        assert forgotten.most == 1
        assert opened.statistics().replay.accounts == 0


async def test_an_account_is_not_forgotten_while_something_is_stored_or_delivered_in_it(autojump_clock, monkeypatch):
    monkeypatch.setattr("broker.broker.make_engine", WaitingEngine)
    async with open_broker() as opened, trio.open_nursery() as nursery:
        nursery.start_soon(opened.publish, "acct", event())
        await blocked()
        account = opened._hub.account("acct")
        await trio.sleep(2 * FORGET_SECONDS + 2)
        assert opened._hub.account("acct") is account, "the engine has what was begun in it"
        opened._engine.commit()
    hub = Hub(ReplayBuffers(ReplayConfig(), b"x" * 16))
    account = hub.account("acct")
    hub.wake(account)
    hub.forget(0.0, most=10)
    assert hub.account("acct") is account, "it waits for its turn"


OWED = RateConfig(per_second=0.01, burst=5)


@pytest.mark.parametrize("owed", ["events_per_account", "commands_per_account"])
async def test_who_owes_its_rate_is_not_forgotten_so_that_leaving_gains_nothing(autojump_clock, owed):
    rates = RatesConfig(enterprise=TierRatesConfig(**{owed: OWED}))
    async with open_broker(configured(rates=rates)) as opened:
        opened.command("work")(_work)
        key = key_of(opened, ALICE)

        async def may() -> bool:
            with suppress(RequestError):
                if owed == "events_per_account":
                    await opened.intake.publish_raw(key, json.dumps(event()).encode())
                else:
                    outcome = await opened.do_command(key, decode_command('{"action":"work"}'))
                    return outcome.error is None
                return True
            return False

        assert [await may() for _ in range(6)] == [True] * 5 + [False]
        await trio.sleep(2 * FORGET_SECONDS + 2)
        assert not await may()
        await trio.sleep(100)
        assert [await may() for _ in range(2)] == [True, False], "what came in meanwhile is one"
        await trio.sleep(600 + FORGET_SECONDS)
        assert len(opened.commands._accounts) == 0, "who owes nothing is not kept"


async def _work(params: dict, context: CommandContext) -> None:
    """Do nothing."""
