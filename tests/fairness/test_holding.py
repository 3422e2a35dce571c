"""What is kept for clients is bounded, and let go in slices: what needs a clock, or tens of thousands at once."""

import trio
from clients import ACCOUNT, configured, event, said
from fairness.steps import counted_steps

from broker import open_broker
from broker.access.keys import Key
from broker.access.lookup import MAX_KEPT
from broker.commands.remembered import Outcome

LONGEST_STEP = 0.025
ACCOUNTS, ANSWERS = 20, 10_000
GROUPS = 10_000
KEYS = 30_000


async def test_remembered_answers_are_forgotten_in_slices(autojump_clock):
    async with open_broker(configured()) as opened:
        for account in range(ACCOUNTS):
            remembered = opened.commands.account(Key("key", f"acct_{account}", frozenset())).remembered
            for number in range(ANSWERS):
                run, _ = remembered.begin(("key", "", f"r{number}"), b"", trio.current_time())
                remembered.finish(run, Outcome(b"{}"), trio.current_time())
        assert sum(account.answers for account in opened.commands.remembered()) == ACCOUNTS * ANSWERS
        with counted_steps() as steps:
            await trio.sleep(400)
        assert not any(account.answers for account in opened.commands.remembered())
    assert steps.longest < LONGEST_STEP, steps.longest_of


async def test_an_account_event_reaches_any_number_of_groups_in_slices():
    heard = 0

    async def listen(inbox, *, task_status):
        nonlocal heard
        async with opened.subscribe(ACCOUNT, [inbox]) as subscriber:
            task_status.started()
            await anext(subscriber)
            heard += 1

    async with open_broker(configured()) as opened:
        with counted_steps() as steps:
            async with trio.open_nursery() as nursery:
                for number in range(GROUPS):
                    await nursery.start(listen, f"in_{number}")
                await trio.testing.wait_all_tasks_blocked()
                await opened.publish(ACCOUNT, event(1, inbox=None))
    assert heard == GROUPS
    assert steps.longest < LONGEST_STEP, steps.longest_of


async def test_a_key_from_outside_that_left_is_not_watched_for_long(autojump_clock):
    async def knows(digest, remote):
        return said(ttl_seconds=3_600)

    async with open_broker(configured(), access=knows) as opened:
        for number in range(KEYS):
            key = await opened.keyring.authenticate(f"dm_live_{number:032}", None)
            with opened.keyring.watch(key, None, lambda _: None):
                pass
        keyring = opened.statistics().keyring
        assert keyring.watched <= MAX_KEPT
        assert opened.schedule.statistics().waiting <= MAX_KEPT
