"""What is done by the clock for all accounts: what is too old goes, and what is idle is forgotten."""

import pytest
import trio
from clients import configured, event

from broker import ReplayConfig, open_broker
from broker.broker import FORGET_SECONDS, MAX_EXPIRY_SECONDS, expire_and_forget
from broker.commands.dispatch import Commands
from broker.config import Config
from broker.fanout.hub import Hub
from broker.log.retention import ReplayBuffers


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
