"""Who is given which event of a queue, when, and what becomes of leases: with a clock that jumps, and no disk."""

from functools import partial

import pytest
import trio
from desks import ACCOUNT, KEY, START, Desk, SlowStorage
from trio.testing import wait_all_tasks_blocked

from broker.errors import RequestError
from broker.log import jobs
from broker.queues import giving
from broker.queues.asked import AckLeases, HoldLeases, NackParams
from broker.queues.queue import time_of


def ids(leases):
    return [lease.lease_id for lease in leases]


class Worker:
    """One that waits: what it has when it has heard, and when that was."""

    def __init__(self, nursery, desk, **fields):
        self.leases = self.error = self.heard_at = None
        self.scope = trio.CancelScope()
        nursery.start_soon(self._wait, partial(desk.lease, **fields))

    async def _wait(self, lease):
        with self.scope:
            try:
                self.leases = await lease()
            except RequestError as error:
                self.error = error
            self.heard_at = trio.current_time()

    @property
    def events(self):
        return None if self.leases is None else [lease.attempt for lease in self.leases]


@pytest.fixture
async def at_rest(nursery):
    """Start somebody, and wait until nobody has anything to do."""

    async def start(desk, **fields):
        worker = Worker(nursery, desk, **fields)
        await wait_all_tasks_blocked()
        return worker

    return start


# --- what is given


async def test_a_lease_lasts_as_long_as_is_asked_for_or_else_as_the_queue_says(autojump_clock):
    async with Desk(lease_seconds=30).open() as desk:
        desk.publish("a")
        desk.publish("b")
        [asked] = await desk.lease(seconds=5)
        [other] = await desk.lease()
        now = START + trio.current_time()
        assert [asked.expires_at, other.expires_at] == [time_of(now + 5), time_of(now + 30)]
        assert b'"cursor":"c1-1"' in bytes(asked.event)


async def test_who_waits_is_served_in_the_order_of_coming_and_who_got_nothing_waits_on(autojump_clock, at_rest):
    async with Desk().open() as desk:
        first, second = [await at_rest(desk, wait_seconds=50) for _ in range(2)]
        desk.publish("a")
        await wait_all_tasks_blocked()
        assert (first.events, second.events, desk.giving.waiters()) == ([1], None, 1)
        desk.publish("b")
        await wait_all_tasks_blocked()
        assert (second.events, second.heard_at, desk.giving.waiters()) == ([1], pytest.approx(first.heard_at), 0)


async def test_where_nobody_waits_nothing_is_asked_of_the_disk(autojump_clock):
    async with Desk().open() as desk:
        await wait_all_tasks_blocked()
        before = desk.storage.writes
        desk.publish()
        await wait_all_tasks_blocked()
        desk.giving.woken(1)
        desk.giving.woken(99)
        assert desk.storage.writes == before


async def test_who_waits_for_nothing_hears_all_the_same_what_is_being_written_for_it(autojump_clock, at_rest):
    storage = SlowStorage()
    async with Desk(storage).open() as desk:
        desk.publish("a")
        desk.publish("b")
        first, second = [await at_rest(desk) for _ in range(2)]
        assert (first.events, second.events) == (None, None)
        for _ in range(2):
            storage.answer()
            await wait_all_tasks_blocked()
        assert (first.events, second.events) == ([1], [1])


async def test_who_waits_and_gets_nothing_hears_so_when_its_time_is_over(autojump_clock):
    async with Desk().open() as desk:
        assert await desk.lease(wait_seconds=5) == []
        assert trio.current_time() == 5


async def test_what_is_being_written_for_who_waits_when_its_time_is_over_is_its_own(autojump_clock, at_rest):
    storage = SlowStorage()
    async with Desk(storage).open() as desk:
        worker = await at_rest(desk, wait_seconds=5)
        storage.answer()
        await wait_all_tasks_blocked()
        desk.publish()
        await trio.sleep(6)
        assert (worker.leases, desk.giving.waiters()) == (None, 1)
        storage.answer()
        await wait_all_tasks_blocked()
        assert (worker.events, desk.giving.waiters()) == ([1], 0)


async def test_what_comes_while_others_are_served_is_given_after_that(autojump_clock, at_rest):
    storage = SlowStorage()
    async with Desk(storage).open() as desk:
        worker = await at_rest(desk, wait_seconds=50)
        desk.publish()
        await wait_all_tasks_blocked()
        for _ in range(2):
            storage.answer()
            await wait_all_tasks_blocked()
        assert (worker.events, worker.heard_at) == ([1], 0)


async def test_a_full_disk_is_told_at_once_to_who_waits(autojump_clock):
    async with Desk().open() as desk:
        desk.storage.refuses = True
        with pytest.raises(RequestError, match="The disk is full"):
            await desk.lease(wait_seconds=10)
        assert (trio.current_time(), desk.giving.waiters()) == (0, 0)


async def test_who_leaves_in_the_step_in_which_it_is_given_something_leaves_it_to_the_next(autojump_clock, at_rest):
    storage = SlowStorage()
    async with Desk(storage).open() as desk:
        desk.publish()
        leaving = await at_rest(desk, wait_seconds=30)
        leaving.scope.cancel()
        storage.answer()
        await wait_all_tasks_blocked()
        assert leaving.leases is None
        storage.answer()
        staying = await at_rest(desk, wait_seconds=30)
        storage.answer()
        await wait_all_tasks_blocked()
        assert staying.events == [1], "what nobody got was no attempt"
        assert desk.giving.statistics()["freed"] == 1


async def test_what_is_due_and_cannot_be_given_is_tried_again_after_a_while(autojump_clock, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_LEASED", 1)
    async with Desk().open() as desk:
        desk.publish("a")
        desk.publish("b")
        await desk.lease()
        before = desk.storage.writes
        assert await desk.lease(wait_seconds=10) == []
        assert 2 <= desk.storage.writes - before <= 20


async def test_no_more_workers_wait_at_a_queue_than_may_and_none_too_few(autojump_clock, at_rest, monkeypatch):
    monkeypatch.setattr(giving, "MAX_WAITERS", 2)
    async with Desk().open() as desk:
        waiting = [await at_rest(desk, wait_seconds=50) for _ in range(3)]
        assert [worker.error and worker.error.code for worker in waiting] == [None, None, "rate_limited"]


# --- a queue that ends, and a broker that drains


async def test_who_waits_at_a_queue_that_is_removed_hears_of_it_at_once(autojump_clock, at_rest):
    async with Desk().open() as desk:
        worker = await at_rest(desk, wait_seconds=50)
        await desk.queues.follow(())
        await wait_all_tasks_blocked()
        assert worker.error.code == "not_found"


async def test_what_was_on_its_way_from_a_queue_that_was_removed_meanwhile_is_nobodys(autojump_clock, at_rest):
    storage = SlowStorage()
    async with Desk(storage).open() as desk:
        desk.publish()
        [live] = desk.queues.of(KEY)
        worker = await at_rest(desk, wait_seconds=50)
        await desk.queues.follow(())
        storage.answer()
        await wait_all_tasks_blocked()
        assert (worker.leases, worker.error.code) == (None, "not_found")
        assert (live.leases, live.waiters, desk.giving.waiters()) == ({}, [], 0)


async def test_a_broker_that_drains_lets_nobody_wait_and_gives_what_there_is(autojump_clock, at_rest):
    async with Desk().open() as desk:
        worker = await at_rest(desk, wait_seconds=50)
        began = trio.current_time()
        desk.draining.set()
        await wait_all_tasks_blocked()
        assert (worker.leases, worker.heard_at) == ([], began)
        assert await desk.lease(wait_seconds=50) == []
        desk.publish()
        assert len(await desk.lease(wait_seconds=50)) == 1
        assert trio.current_time() == began


async def test_who_is_being_served_when_the_broker_begins_to_drain_hears_that_there_was_nothing(
    autojump_clock, at_rest
):
    storage = SlowStorage()
    async with Desk(storage).open() as desk:
        worker = await at_rest(desk, wait_seconds=50)
        desk.draining.set()
        await wait_all_tasks_blocked()
        storage.answer()
        await wait_all_tasks_blocked()
        assert (worker.leases, worker.heard_at) == ([], 0)


async def test_what_is_on_its_way_when_the_broker_begins_to_drain_is_given(autojump_clock, at_rest):
    storage = SlowStorage()
    async with Desk(storage).open() as desk:
        desk.publish()
        worker = await at_rest(desk, wait_seconds=50)
        desk.draining.set()
        await wait_all_tasks_blocked()
        assert worker.leases is None
        storage.answer()
        await wait_all_tasks_blocked()
        assert worker.events == [1]


async def test_who_waits_while_its_queue_is_paused_hears_nothing_in_its_time_and_else_goes_on(autojump_clock, at_rest):
    async with Desk().open() as desk:
        [live] = desk.queues.of(KEY)
        short, long = [await at_rest(desk, wait_seconds=seconds) for seconds in (5, 50)]
        active = live.queue
        live.queue = type(active)(ACCOUNT, "q", status="paused")
        desk.publish()
        await trio.sleep(10)
        assert (short.leases, short.heard_at, long.leases) == ([], 5, None)
        live.queue = active
        desk.giving.woken(live.number)
        await wait_all_tasks_blocked()
        assert long.events == [1]


# --- which leases are current


async def test_a_lease_is_current_for_its_account_until_it_is_done(autojump_clock):
    async with Desk().open() as desk:
        desk.publish()
        leases = await desk.lease()
        is_current = partial(desk.giving.is_current, ACCOUNT)
        assert is_current(ids(leases)[0])
        assert not desk.giving.is_current("acct_other", ids(leases)[0])
        await desk.work(AckLeases(ids(leases)))
        assert not is_current(ids(leases)[0])
        assert desk.queues.of(KEY)[0].leases == {}


async def test_a_lease_is_not_current_from_the_moment_on_in_which_its_time_is_over_though_the_disk_is_full(
    autojump_clock,
):
    async with Desk().open() as desk:
        desk.publish()
        [lease_id] = ids(await desk.lease(seconds=10))
        desk.storage.refuses = True
        await trio.sleep_until(9)
        assert desk.giving.is_current(ACCOUNT, lease_id)
        await trio.sleep_until(10)
        assert not desk.giving.is_current(ACCOUNT, lease_id)


@pytest.mark.parametrize("lease_id", ["", "lse_", "l", "lse_1", "lse_x_1_a", "lse_²_1_a", "lse_٣_1_a", "lse_99_1_a"])
async def test_what_is_no_lease_is_none_that_is_current(autojump_clock, lease_id):
    async with Desk().open() as desk:
        assert not desk.giving.is_current(ACCOUNT, lease_id)
        acked = await desk.work(AckLeases([lease_id]))
        assert (acked.acked, acked.lost) == (0, [lease_id])


async def test_leases_that_were_given_before_a_restart_are_current_and_over_in_their_time(autojump_clock):
    async with Desk(max_attempts=1).open() as before:
        leases = []
        for seconds in (50, 30):
            before.publish(str(seconds))
            leases += await before.lease(seconds=seconds)
    async with Desk(before.storage, max_attempts=1).open() as after:
        assert all(after.giving.is_current(ACCOUNT, lease_id) for lease_id in ids(leases))
        for seconds, event_id in ((31, "e2"), (51, "e1")):
            await trio.sleep_until(seconds)
            assert after.told[-1:] == [("queue.dead", {"queue_id": "q", "event_ids": [event_id], "count": 1})]


async def test_each_lease_is_over_in_its_own_time_though_nobody_asks(autojump_clock):
    async with Desk(max_attempts=1).open() as desk:
        for seconds in (30, 10, 20):
            desk.publish(str(seconds))
            await desk.lease(seconds=seconds)
        for seconds in (10, 20, 30):
            await trio.sleep(10.1)
            assert len(desk.told) == desk.giving.statistics()["expired"] == seconds // 10
        assert desk.queues.of(KEY)[0].leases == {}


async def test_leases_that_are_over_soon_after_each_other_share_a_look(autojump_clock):
    async with Desk(max_attempts=1).open() as desk:
        for number in range(40):
            desk.publish(str(number))
            await desk.lease(seconds=10 + number / 100)
        before = desk.storage.writes
        await trio.sleep(11)
        assert desk.giving.statistics()["expired"] == 40
        assert desk.storage.writes - before <= 5


async def test_a_lease_that_cannot_be_over_on_disk_is_when_the_disk_takes_it(autojump_clock):
    async with Desk(max_attempts=1).open() as desk:
        desk.publish()
        await desk.lease(seconds=10)
        desk.storage.refuses = True
        await trio.sleep(15)
        assert desk.told == []
        desk.storage.refuses = False
        await trio.sleep(giving.RETRY_SECONDS + 0.1)
        assert [kind for kind, _ in desk.told] == ["queue.dead"]


async def test_who_waits_for_the_next_of_a_thread_gets_it_when_the_one_before_is_done(autojump_clock, at_rest):
    async with Desk().open() as desk:
        desk.publish("t")
        desk.publish("t")
        [first] = await desk.lease()
        worker = await at_rest(desk, wait_seconds=50)
        assert worker.leases is None
        await desk.work(AckLeases([first.lease_id]))
        await wait_all_tasks_blocked()
        assert worker.events == [1]


async def test_of_many_leases_that_are_over_at_once_all_are_a_few_at_a_time(autojump_clock, monkeypatch):
    async with Desk(max_attempts=1).open() as desk:
        for number in range(3):
            desk.publish(str(number))
        await desk.lease(max=3, seconds=30)
        monkeypatch.setattr(jobs, "GRANTS", 2)
        [live] = desk.queues.of(KEY)
        await trio.sleep(29)
        desk.giving.end(live)  # so that nothing but the look that is tested finds them
        desk.giving.begin(live)
        await trio.sleep(2)
        await desk.giving.expire(live)
        assert desk.giving.statistics()["expired"] == 3


# --- what becomes of them


async def test_leases_are_acknowledged_once_and_those_that_are_lost_are_named(autojump_clock):
    async with Desk().open() as desk:
        desk.publish("a")
        desk.publish("b")
        one, other = ids(await desk.lease(max=2))
        acked = await desk.work(AckLeases([one, "lse_1_1_no", one]))
        assert (acked.acked, acked.lost) == (1, ["lse_1_1_no"])
        again = await desk.work(AckLeases([one, other]))
        assert (again.acked, again.lost) == (1, [one])
        counted = desk.giving.statistics()
        assert (counted["granted"], counted["acked"], counted["lost"]) == (2, 2, 2)


async def test_a_lease_that_is_held_is_current_and_over_when_that_was_said(autojump_clock):
    async with Desk(lease_seconds=10, max_attempts=1).open() as desk:
        desk.publish()
        [lease_id] = ids(await desk.lease())
        await trio.sleep(5)
        held = await desk.work(HoldLeases([lease_id, "lse_1_1_no", lease_id], 15))
        assert (held.held, held.lost, held.expires_at) == (1, ["lse_1_1_no"], time_of(START + trio.current_time() + 15))
        await trio.sleep(14)
        assert desk.giving.is_current(ACCOUNT, lease_id)
        assert desk.told == []
        await trio.sleep(1.1)
        assert not desk.giving.is_current(ACCOUNT, lease_id)
        assert [kind for kind, _ in desk.told] == ["queue.dead"]
        assert desk.giving.statistics()["lost"] == 1


async def test_a_lease_that_is_held_for_less_is_over_sooner(autojump_clock):
    async with Desk(max_attempts=1).open() as desk:
        desk.publish()
        [lease_id] = ids(await desk.lease(seconds=50))
        await desk.work(HoldLeases([lease_id], 5))
        await trio.sleep(5.1)
        assert [kind for kind, _ in desk.told] == ["queue.dead"]


async def test_who_waits_is_given_at_once_what_another_held_for_less(autojump_clock, at_rest):
    async with Desk().open() as desk:
        desk.publish()
        [lease_id] = ids(await desk.lease(seconds=50))
        worker = await at_rest(desk, wait_seconds=60)
        await desk.work(HoldLeases([lease_id], 5))
        await trio.sleep(6)
        assert (worker.events, worker.heard_at) == ([2], 5)


@pytest.mark.parametrize(("chance", "first", "second"), [(0.0, 4, 24), (0.5, 5, 30), (1.0, 6, 36)])
async def test_what_is_given_back_comes_again_after_delays_that_grow_and_are_spread(
    autojump_clock, chance, first, second
):
    async with Desk(chance=chance).open() as desk:
        desk.publish()
        leases = await desk.lease()
        for delay in (first, second):
            began = trio.current_time()
            nacked = await desk.work(NackParams(ids(leases)))
            assert (nacked.nacked, nacked.lost) == (1, [])
            leases = await desk.lease(wait_seconds=60)
            assert trio.current_time() - began == pytest.approx(delay)


async def test_after_the_last_of_the_delays_each_is_as_long_as_that(autojump_clock):
    async with Desk(max_attempts=100, max_age_seconds=604_800).open() as desk:
        desk.publish()
        most = len(giving.DELAYS_SECONDS)
        for attempt in range(1, most + 3):
            [lease] = await desk.lease(wait_seconds=60)
            assert lease.attempt == attempt
            await desk.work(NackParams([lease.lease_id], retry_after_ms=0 if attempt < most else None))
            if attempt >= most:
                await trio.sleep(giving.DELAYS_SECONDS[-1] - 30)
                assert await desk.lease() == []


async def test_what_is_given_back_comes_when_the_worker_says(autojump_clock):
    async with Desk().open() as desk:
        desk.publish()
        began = trio.current_time()
        await desk.work(NackParams(ids(await desk.lease()), retry_after_ms=1_500))
        [again] = await desk.lease(wait_seconds=60)
        assert (again.attempt, trio.current_time() - began) == (2, pytest.approx(1.5))
        await desk.work(NackParams([again.lease_id], retry_after_ms=0))
        assert [lease.attempt for lease in await desk.lease()] == [3]
        assert desk.giving.statistics()["nacked"] == 2


async def test_of_many_events_that_are_dead_some_are_named_and_all_counted(autojump_clock, monkeypatch):
    monkeypatch.setattr(giving, "MAX_TOLD", 2)
    async with Desk().open() as desk:
        for number in range(3):
            desk.publish(str(number))
        leases = await desk.lease(max=3)
        assert desk.told == []
        await desk.work(NackParams(ids(leases), dead=True))
        assert desk.told == [("queue.dead", {"queue_id": "q", "event_ids": ["e1", "e2"], "count": 3})]


async def test_any_number_of_leases_is_given_back_unused_in_pages(autojump_clock, monkeypatch):
    monkeypatch.setattr(giving, "PAGE", 2)
    async with Desk().open() as desk:
        for number in range(5):
            desk.publish(str(number))
        leases = ids(await desk.lease(max=5))
        before = desk.storage.writes
        desk.giving.free(leases)
        assert desk.storage.writes - before == 3
        assert not any(desk.giving.is_current(ACCOUNT, lease_id) for lease_id in leases)
        assert [lease.attempt for lease in await desk.lease(max=9)] == [1] * 5
        counted = desk.giving.statistics()
        assert (counted["freed"], counted["lost"]) == (5, 0)


async def test_what_cannot_be_given_back_on_a_full_disk_is_over_in_its_time(autojump_clock):
    async with Desk(lease_seconds=10).open() as desk:
        desk.publish()
        leases = ids(await desk.lease())
        desk.storage.refuses = True
        desk.giving.free(leases)
        desk.storage.refuses = False
        assert not desk.giving.is_current(ACCOUNT, leases[0])
        assert await desk.lease() == []
        [again] = await desk.lease(wait_seconds=20)
        assert again.attempt == 2
