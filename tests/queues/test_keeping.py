"""What becomes of queues in the long run, without a disk or a thread: a clock that jumps sees nothing but them wait."""

from functools import partial

import pytest
import trio
from desks import ACCOUNT, KEY, Desk, SlowStorage
from trio.testing import wait_all_tasks_blocked

from broker.errors import RequestError
from broker.queues.asked import AckLeases
from broker.queues.giving import DELAYS_SECONDS

HOUR = 3_600.0


async def test_an_account_is_told_once_that_a_queue_stalls_and_again_when_it_does_again(autojump_clock):
    async with Desk().open() as desk:
        desk.publish()
        await trio.sleep(HOUR - 120)
        assert desk.told == []
        await trio.sleep(HOUR)
        assert desk.told == [("queue.stalled", {"queue_id": "q", "waiting_since": "2027-01-15T08:00:00.000Z"})]
        [lease] = await desk.lease()
        await desk.work(AckLeases([lease.lease_id]))
        await trio.sleep(120)
        desk.publish()
        await trio.sleep(HOUR + 120)
        assert [kind for kind, _ in desk.told] == ["queue.stalled"] * 2


async def test_what_nobody_did_in_its_time_is_dead_and_the_account_hears_of_it(autojump_clock):
    async with Desk(max_age_seconds=600).open() as desk:
        desk.publish()
        desk.publish()
        await trio.sleep(700)
        assert {each.state for each in await desk.deliveries()} == {"dead"}
        assert desk.told == [("queue.dead", {"queue_id": "q", "event_ids": ["e1", "e2"], "count": 2})]


async def test_a_lease_is_over_in_its_time_though_no_worker_asks(autojump_clock):
    async with Desk(max_attempts=1).open() as desk:
        desk.publish()
        await desk.lease()
        await trio.sleep(130)
        assert [kind for kind, _ in desk.told] == ["queue.dead"]
        assert desk.giving.statistics() == {
            "granted": 1, "acked": 0, "nacked": 0, "freed": 0, "expired": 1, "lost": 0,
        }  # fmt: skip


async def test_a_worker_that_waits_is_given_a_retry_in_the_moment_in_which_it_is_due(autojump_clock):
    async with Desk(lease_seconds=30).open() as desk:
        desk.publish()
        await desk.lease()
        began = trio.current_time()
        [again] = await desk.lease(wait_seconds=60)
        assert (again.attempt, trio.current_time() - began) == (2, pytest.approx(30))


async def test_what_was_on_its_way_to_a_worker_that_has_left_is_the_next_ones_at_once(autojump_clock):
    storage = SlowStorage()
    async with Desk(storage).open() as desk:
        desk.publish()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(desk.lease, wait_seconds=30))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        storage.answer()
        async with trio.open_nursery() as nursery:
            leased = []

            async def lease():
                leased.extend(await desk.lease())

            nursery.start_soon(lease)
            await wait_all_tasks_blocked()
            storage.answer()
        assert [lease.attempt for lease in leased] == [1], "what nobody got was no attempt"


async def test_all_of_a_log_that_is_too_large_goes_the_dead_first(autojump_clock):
    desk = Desk(max_bytes=0, max_age_seconds=600)
    async with desk.open():
        desk.publish()
        await trio.sleep(30)
        assert [each.state for each in await desk.deliveries()] == ["waiting"]
        await trio.sleep(120)
        assert await desk.deliveries() == []


async def test_a_full_disk_is_told_to_who_waits_and_the_queue_goes_on_after_it(autojump_clock):
    async with Desk().open() as desk:
        desk.publish()
        desk.storage.refuses = True
        with pytest.raises(RequestError, match="The disk is full"):
            await desk.lease(wait_seconds=10)
        desk.storage.refuses = False
        assert len(await desk.lease(wait_seconds=10)) == 1


async def test_who_waits_at_a_paused_queue_hears_nothing_in_its_time(autojump_clock):
    async with Desk().open() as desk:
        desk.publish()
        live = desk.queues.of(KEY)[0]
        live.queue = type(live.queue)(ACCOUNT, "q", status="paused")
        began = trio.current_time()
        assert await desk.lease(wait_seconds=5) == []
        assert trio.current_time() - began == pytest.approx(5)


def test_delays_between_attempts_only_grow():
    assert list(DELAYS_SECONDS) == sorted(DELAYS_SECONDS)
