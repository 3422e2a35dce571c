"""The watch: what comes is looked at for all who wait, whoever comes or leaves in the middle of a look."""

from itertools import pairwise
from math import inf
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked as blocked

from broker.config import ReplayConfig
from broker.fanout.hub import Hub
from broker.log.retention import ReplayBuffers
from broker.protocol.framing import text_frame
from broker.protocol.messages import Entry
from broker.protocol.selection import EVERYTHING, Selection, TypeFilter
from broker.turns import Turns
from broker.waiting import watch as module
from broker.waiting.conditions import Where
from broker.waiting.filed import Waiter
from broker.waiting.watch import Mails, Watch

KINDS = 4


class Gate(Turns):
    """Turns that a test gives one by one."""

    def __init__(self):
        super().__init__()
        self.lot = trio.lowlevel.ParkingLot()

    async def take(self, who):
        await self.lot.park()


class House:
    """An account whose events say of which kind they are, and a watch that goes on when it is told to."""

    def __init__(self, most_events=10_000):
        self.hub = Hub(ReplayBuffers(ReplayConfig(max_events_per_account=most_events), b"sixteen bytes..."))
        self.account = self.hub.account("acct")
        self.gate = Gate()
        self.watch = Watch(self.account, self.gate, Turns(), Mails())
        self.kinds = []

    def publish(self, kinds):
        """Store events, and let the fan-out pass them."""
        self.store(kinds)
        self.hub.take_turns(inf)

    def store(self, kinds):
        """Store events, which the fan-out has yet to pass."""
        first = len(self.kinds) + 1
        self.kinds += kinds
        entries = []
        for position, kind in enumerate(kinds, start=first):
            frame = text_frame(b'{"payload":{"subject":"kind %d","thread_id":"t%d"}}' % (kind, kind))
            entries.append(Entry(position, 0.0, "x", "in_1", f"e{position}", frame))
        self.hub.store("acct", entries)

    async def step(self):
        """Let the watch do a slice. Returns whether there was one to do."""
        await blocked()
        wanted = len(self.gate.lot) > 0
        self.gate.lot.unpark()
        await blocked()
        return wanted


class Waits:
    """One who waits in that house from a position on, and what it should find."""

    def __init__(self, house, kind, after, where):
        self.house, self.kind, self.begin = house, kind, after
        self.waiter = Waiter(Selection(frozenset({"in_1"})), TypeFilter(["x"]), where, after, self._wake)
        self.woken = False
        self._following = house.watch.following(self.waiter)
        self._following.__enter__()

    def _wake(self):
        self.woken = True

    def leave(self):
        """Leave, and hold that nothing was passed over, and that what was found is the first that fits."""
        self._following.__exit__(None, None, None)
        looked_at = self.house.kinds[self.begin : self.waiter.after]
        fitting = [self.begin + n for n, kind in enumerate(looked_at, start=1) if self.kind in (None, kind)]
        if self.waiter.entry is None:
            assert fitting == []
        else:
            assert self.woken
            assert fitting == [self.waiter.entry.position] == [self.waiter.after]


def some_wait(random, house):
    kind = random.choice([None, *range(KINDS)])
    where = None
    if kind is not None:
        where = random.choice([Where(subject=f"kind {kind}"), Where(thread_id=f"t{kind}"), Where(contains=f"D {kind}")])
    after = random.choice([house.watch.position, len(house.kinds)])
    return Waits(house, kind, after, where)


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_comes_or_leaves_in_the_middle_of_a_look_is_told_the_first_event_that_fits(seed, monkeypatch):
    monkeypatch.setattr(module, "SLICE", 1)
    random, house, waits = Random(seed), House(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.watch.run)
        for _ in range(300):
            match random.randrange(4):
                case 0:
                    house.publish([random.randrange(KINDS) for _ in range(random.choice([1, 1, 5]))])
                case 1:
                    waits.append(some_wait(random, house))
                case 2 if waits:
                    waits.pop(random.randrange(len(waits))).leave()
                case _:
                    await house.step()
        while await house.step():
            pass
        assert house.watch.settled == house.watch.position == len(house.kinds)
        for one in waits:
            one.leave()
            assert one.waiter.after == house.watch.settled or one.waiter.entry is not None
        house.watch.close()


async def test_what_the_window_dropped_before_it_was_looked_at_is_for_each_to_find():
    house = House(most_events=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.watch.run)
        early, late = Waits(house, 1, 0, Where(subject="kind 1")), Waits(house, 1, 0, Where(subject="kind 2"))
        house.publish([0] * 5)
        late.waiter.after = 4
        while await house.step():
            pass
        assert (early.woken, early.waiter.entry, early.waiter.after) == (True, None, 0)
        assert (late.woken, late.waiter.entry, late.waiter.after) == (True, None, 4)
        assert house.watch.position == 5
        house.watch.close()


async def test_at_the_end_whoever_waits_is_woken_and_has_nothing():
    house = House()
    one = Waits(house, None, 0, None)
    house.watch.end()
    assert (one.woken, one.waiter.entry, house.watch.ended) == (True, None, True)


async def test_however_many_an_event_is_for_they_are_told_in_short_steps(monkeypatch):
    monkeypatch.setattr(module, "SLICE", 4 * module.FOUND_WORK)
    house = House()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.watch.run)
        waits = [Waits(house, None, 0, None) for _ in range(100)]
        house.publish([0])
        told = [0]
        while await house.step():
            told.append(sum(one.woken for one in waits))
        assert told[-1] == 100
        assert max(after - before for before, after in pairwise(told)) <= 4
        house.watch.close()


async def test_before_each_slice_the_fan_out_goes_first(monkeypatch):
    monkeypatch.setattr(module, "SLICE", 1)
    house = House()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.watch.run)
        house.publish([0] * 5)
        assert await house.step()
        house.store([1])
        assert await house.step()
        looked_at = house.watch.position
        assert not await house.step()
        assert house.watch.position == looked_at < 5
        house.hub.take_turns(inf)
        while await house.step():
            pass
        assert house.watch.settled == 6
        house.watch.close()


async def test_who_waits_for_events_of_a_type_is_not_told_of_others():
    house = House()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.watch.run)
        waiter = Waiter(Selection(frozenset({"in_1"})), TypeFilter(["y"]), None, 0, lambda: None)
        with house.watch.following(waiter):
            house.publish([0])
            while await house.step():
                pass
        assert (waiter.entry, waiter.after) == (None, 1)
        house.watch.close()


async def test_who_leaves_while_others_are_told_is_not_told(monkeypatch):
    monkeypatch.setattr(module, "SLICE", module.FOUND_WORK)
    house = House()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.watch.run)
        first, second = [Waits(house, None, 0, None) for _ in range(2)]
        house.publish([0])
        while not first.woken:
            assert await house.step()
        second.leave()
        while await house.step():
            pass
        assert (second.woken, second.waiter.entry, second.waiter.after) == (False, None, 0)
        house.watch.close()


async def test_nothing_is_kept_of_those_who_left():
    house = House()
    waits = [Waits(house, kind, 0, None if kind is None else Where(subject="x")) for kind in (None, 0)]
    for one in waits:
        one.leave()
    assert (house.watch._filed, house.watch._followers) == ({}, {})


async def test_a_mail_is_read_once_for_all_who_look_at_it_one_after_the_other():
    house = House()
    house.publish([0, 1])
    first, second = house.account.buffer.read(EVERYTHING, 0, 2, max_events=2, max_bytes=10**6)[0]
    mails = Mails()
    assert mails.of(first) is mails.of(first)
    assert mails.of(second).thread_id == "t1"
    assert mails.of(first).thread_id == "t0"
