"""What every archive promises (log/archive.py), in one suite against a list of what was stored; and `Past`."""

from dataclasses import dataclass
from functools import partial
from math import inf

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from logs import EPOCH, ArchivingEngine, at_once, begin, prepared, sqlite_engine, wall_at

from broker.config import ReplayConfig
from broker.errors import RequestError
from broker.fanout.hub import Hub
from broker.log import past as past_module
from broker.log.archive import Kept, Older, Reach
from broker.log.engines import pages
from broker.log.engines.rows import trim_events, trim_known
from broker.log.past import QUESTIONS_AT_ONCE, Past
from broker.log.retention import ReplayBuffers
from broker.protocol.framing import payload_of
from broker.protocol.messages import Entry, decode_event
from broker.protocol.names import Duration
from broker.protocol.selection import ACCOUNT_EVENTS, EVERYTHING, NOTHING, Selection


def let_go_of_rows(engine, account_id: str, through: int) -> None:
    at_once(engine.archive._storage.write(partial(trim_events, stored_before=inf, keep_from=through + 1, most=10_000)))


ARCHIVES = {
    "list": (ArchivingEngine, lambda engine, account_id, through: engine.archive.let_go(account_id, through)),
    "sqlite": (sqlite_engine, let_go_of_rows),
}
"""An engine with an archive, and how to let that let go what is in it up to a position."""
every_archive = pytest.mark.parametrize("kind", ARCHIVES)

INBOXES = ("i1", "i2", "i3", ACCOUNT_EVENTS)
ONLY_I1 = Selection(frozenset({"i1"}))
inbox_sets = st.frozensets(st.sampled_from([*INBOXES, "i_unknown"]))
selections = st.one_of(
    st.just(EVERYTHING), inbox_sets.map(lambda inboxes: Selection(None, inboxes)), inbox_sets.map(Selection)
)
logs_of_some = st.lists(st.sampled_from(INBOXES), min_size=1, max_size=20)
numbers = st.integers(0, 20)


@dataclass
class Stored:
    position: int
    inbox: str
    wall: float


class House:
    """A log that keeps two events in memory, and an archive of all, which has let go the first ``gone``."""

    def __init__(self, kind: str) -> None:
        self.buffers = ReplayBuffers(ReplayConfig(max_events_per_account=2), EPOCH)
        self.hub = Hub(self.buffers)
        make, self._let_go = ARCHIVES[kind]
        self.engine = make(self.buffers, self.hub)
        self.archive = self.engine.archive
        self.buffers.archived(self.archive.keep_seconds)
        self.past = Past(self.archive, lambda: wall_at(trio.current_time()).timestamp())
        self.stored: list[Stored] = []
        self.gone = 0

    @property
    def buffer(self):
        return self.hub.account("a").buffer

    def publish(self, inboxes, payload: bytes = b"{}") -> None:
        for inbox in inboxes:
            wall = wall_at(trio.current_time()).timestamp()
            [stored] = begin(self.engine, "a", [prepared(f"e{len(self.stored)}", inbox, payload)])
            self.stored.append(Stored(stored.position, inbox, wall))
            self.hub.take_turns(float("inf"))

    def let_go(self, number: int) -> None:
        """Let the archive let go its first events, but none that memory holds."""
        self.gone = max(0, min(number, len(self.stored) - 2))
        if self.gone:
            self._let_go(self.engine, "a", self.after(self.gone))

    def after(self, number: int) -> int:
        """The position after so many events."""
        return self.stored[min(number, len(self.stored)) - 1].position if number else 0

    def positions(self, selection: Selection, after: int, through: int) -> list[int]:
        return [s.position for s in self.stored if after < s.position <= through and s.inbox in selection]

    async def pages(self, older: Older, most: int = 1_000, size: int = 10**9) -> list[list[Entry]]:
        """All there is, in pages."""
        pages, after = [], older.after
        while after < older.through:
            asked = Older(older.selection, after, older.through)
            page = await self.archive.read("a", asked, max_events=most, max_bytes=size)
            assert after < page.reached <= older.through
            pages.append(page.entries)
            after = page.reached
        return pages


def positions(entries: list[Entry]) -> list[int]:
    return [entry.position for entry in entries]


# --- every archive -----------------------------------------------------------


@every_archive
@given(log=logs_of_some, selection=selections, places=st.tuples(numbers, numbers), gone=numbers, most=st.integers(1, 4))
async def test_an_archive_has_a_selections_events_whole_in_order_and_knows_how_many(
    kind, log, selection, places, gone, most
):
    house = House(kind)
    house.publish(log)
    house.let_go(gone)
    after, through = map(house.after, sorted(places))
    gone_through = min(house.after(house.gone), through)
    pages = await house.pages(Older(selection, after, through), most)
    expected = house.positions(selection, max(after, gone_through), through)
    assert [position for page in pages for position in positions(page)] == expected
    assert all(len(page) <= most for page in pages)
    missed = len(house.positions(selection, after, gone_through))
    kept = await house.archive.count("a", selection, after, through)
    assert kept == Kept(len(expected), gone_through, missed)
    whole = await house.archive.count("a", selection, None, through)
    assert whole == Kept(len(house.positions(selection, gone_through, through)), gone_through, None)


@every_archive
async def test_a_page_says_what_is_gone_before_it(kind):
    house = House(kind)
    house.publish(["i1", "i2", "i1", "i1", "i2", "i1"])
    house.let_go(3)
    page = await house.archive.read("a", Older(ONLY_I1, 0, house.after(6)), max_events=9, max_bytes=9_999)
    assert positions(page.entries) == [house.after(4), house.after(6)]
    assert (page.gone_through, page.missed, page.reached) == (house.after(3), 2, house.after(6))
    page = await house.archive.read("a", Older(ONLY_I1, 0, house.after(2)), max_events=9, max_bytes=9_999)
    assert (page.entries, page.gone_through, page.missed) == ([], house.after(2), 1), "no further than was asked"


@every_archive
async def test_a_page_is_bounded_in_bytes_but_for_its_first_event(kind):
    house = House(kind)
    house.publish(["i1"] * 6, b'{"a":"%b"}' % (b"." * 992))
    everything = Older(EVERYTHING, 0, house.after(6))
    assert [len(page) for page in await house.pages(everything, size=2_500)] == [2, 2, 2]
    assert [len(page) for page in await house.pages(everything, size=1)] == [1] * 6


@every_archive
async def test_of_nothing_and_of_an_account_that_never_was_there_is_nothing(kind):
    house = House(kind)
    house.publish(["i1", "i1", "i1"])
    assert await house.pages(Older(NOTHING, 0, house.after(3))) == [[]]
    assert await house.archive.count("a", NOTHING, 0, house.after(3)) == Kept(0)
    page = await house.archive.read("other", Older(EVERYTHING, 0, 9), max_events=9, max_bytes=9_999)
    assert (page.entries, page.reached, page.gone_through) == ([], 9, 0)
    assert await house.archive.count("other", EVERYTHING, 0, 9) == Kept(0)
    assert await house.archive.position_before("other", wall_at(0).timestamp()) == 0


@every_archive
async def test_what_is_read_is_what_was_stored(kind):
    house = House(kind)
    event = prepared("evt_1", "ada@example.com", '{"a":"ä","b":[1e400]}'.encode(), event_type="message.received")
    begin(house.engine, "a", [event])
    house.publish(["i1", "", "i1", "i1"])
    page = await house.archive.read("a", Older(EVERYTHING, 0, house.after(2)), max_events=9, max_bytes=9_999)
    house.buffer.frame(page.entries)
    first, _, own = [payload_of(entry.frame) for entry in page.entries]
    assert first.endswith('"payload":{"a":"ä","b":[1e400]}}'.encode())
    assert decode_event(own).inbox_id is None
    assert page.entries[0].type == "message.received"
    assert page.entries[0].frame.find(house.buffer.cursor_at(page.entries[0].position).encode()) > 0


@every_archive
async def test_a_moment_is_the_position_of_the_last_event_before_it(kind, mock_clock):
    house = House(kind)
    for _ in range(5):
        house.publish(["i1", "i2"])
        mock_clock.jump(10)
    before = house.archive.position_before
    for number, wall in ((0, 0), (2, 1), (2, 10), (4, 10.5), (8, 40), (10, 41), (10, 4_000)):
        assert await before("a", wall_at(wall).timestamp()) == house.after(number), wall
    house.let_go(4)
    assert await before("a", wall_at(20).timestamp()) == house.after(4), "when the newest that is gone was stored"
    assert await before("a", wall_at(25).timestamp()) == house.after(6)


async def test_a_moment_after_all_that_a_log_on_disk_has_forgotten_is_known(mock_clock):
    house = House("sqlite")
    for _ in range(6):
        house.publish(["i1"])
        mock_clock.jump(10)
    house.let_go(4)
    at_once(house.archive._storage.write(partial(trim_known, stored_before=wall_at(15).timestamp(), most=10_000)))
    before = house.archive.position_before
    assert await before("a", wall_at(25).timestamp()) == house.after(3), "it is known when that was stored"
    assert await before("a", wall_at(20.5).timestamp()) == house.after(3)
    assert await before("a", wall_at(20).timestamp()) is None, "when the first that is known was stored"
    assert await before("a", wall_at(5).timestamp()) is None
    at_once(house.archive._storage.write(partial(trim_known, stored_before=inf, most=10_000)))
    assert await before("a", wall_at(40).timestamp()) is None
    assert await before("a", wall_at(40.5).timestamp()) == house.after(5)


async def test_of_a_quiet_account_whose_events_are_all_forgotten_a_later_moment_is_known(mock_clock):
    house = House("sqlite")
    house.publish(["i1"] * 3)
    mock_clock.jump(100)
    house.publish(["i1"])
    let_go_of_rows(house.engine, "a", house.after(4))
    at_once(house.archive._storage.write(partial(trim_known, stored_before=inf, most=10_000)))
    assert await house.archive.position_before("a", wall_at(100.5).timestamp()) == house.after(4)
    for moment in (100, 50, 0):
        assert await house.archive.position_before("a", wall_at(moment).timestamp()) is None


@every_archive
async def test_a_page_of_some_inboxes_has_no_more_events_than_it_may_and_the_next_has_the_rest(kind):
    house = House(kind)
    house.publish(["i1", "i2", "i3"] * 6)
    selection, after, through = Selection(frozenset({"i1", "i2"})), 0, house.after(18)
    found, sizes = [], []
    while after < through:
        page = await house.archive.read("a", Older(selection, after, through), max_events=5, max_bytes=10**9)
        found += [entry.position for entry in page.entries]
        sizes.append(len(page.entries))
        after = page.reached
    assert found == house.positions(selection, 0, through)
    assert sizes == [5, 5, 2]


async def test_any_number_of_inboxes_is_counted(monkeypatch):
    monkeypatch.setattr(pages, "_INBOXES_AT_ONCE", 2)
    house = House("sqlite")
    house.publish(["i1", "i2", "i3", "i1", "i4", "i5"])
    some, rest = Selection(frozenset({"i1", "i2", "i3", "i4"})), Selection(None, frozenset({"i1", "i2", "i5"}))
    for selection, count in ((some, 5), (rest, 2), (EVERYTHING, 6)):
        assert (await house.archive.count("a", selection, 0, house.after(6))).count == count


# --- who asks ----------------------------------------------------------------


async def test_a_page_comes_framed_for_its_account():
    house = House("list")
    house.publish(["i1", "i2", "i1"])
    page = await house.past.read(house.buffer, Older(ONLY_I1, 0, 1))
    [entry] = page.entries
    assert decode_event(payload_of(entry.frame)).cursor == house.buffer.cursor_at(1)
    assert entry.event is None


@pytest.mark.parametrize("moment", [Duration(25), wall_at(15), None])
async def test_a_start_by_time_is_told_its_position_and_what_is_kept_after_it(mock_clock, moment):
    house = House("list")
    for _ in range(4):
        house.publish(["i1", "i2"])
        mock_clock.jump(10)
    reach = Reach(ONLY_I1, None, moment, house.buffer.dropped_through, "5m")
    reached = await house.past.reach(house.buffer, reach)
    if moment is None:
        assert (reached.position, reached.kept) == (None, Kept(3, 0, None)), "nobody knows that cursor"
    else:
        assert (reached.position, reached.kept) == (house.after(4), Kept(1, 0, 0))
    assert reached.reach is reach


async def test_who_asks_what_is_being_asked_shares_the_answer(nursery):
    house = House("list")
    house.publish(["i1"] * 5)
    house.archive.answering = trio.Event()
    pages = []

    async def read(through: int) -> None:
        pages.append(await house.past.read(house.buffer, Older(ONLY_I1, 0, through)))

    for _ in range(3):
        nursery.start_soon(read, 3)
    nursery.start_soon(read, 2)
    await trio.testing.wait_all_tasks_blocked()
    house.archive.answering.set()
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(len(page.entries) for page in pages) == [2, 3, 3, 3]
    assert len(house.archive.asked) == 2
    assert (house.past.statistics().questions, house.past.statistics().shared) == (2, 2)
    assert house.past.statistics().events == 5
    assert house.past.statistics().asking == 0


async def test_where_who_asked_first_leaves_another_asks(nursery):
    house = House("list")
    house.publish(["i1"] * 5)
    house.archive.answering = trio.Event()
    counts = []

    async def reach(scope: trio.CancelScope) -> None:
        with scope:
            counts.append((await house.past.reach(house.buffer, Reach(ONLY_I1, 1, None, 3, "c1"))).kept.count)

    first, second = trio.CancelScope(), trio.CancelScope()
    nursery.start_soon(reach, first)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(reach, second)
    await trio.testing.wait_all_tasks_blocked()
    first.cancel()
    house.archive.answering.set()
    await trio.testing.wait_all_tasks_blocked()
    assert counts == [2]


async def test_an_archive_that_cannot_be_read_is_told_to_all_who_wait_and_asked_again_by_who_comes_later(nursery):
    house = House("list")
    house.publish(["i1"] * 5)
    house.archive.answering = trio.Event()
    told = []

    async def read() -> None:
        try:
            told.append(len((await house.past.read(house.buffer, Older(ONLY_I1, 0, 3))).entries))
        except RequestError as error:
            told.append(error.code)

    house.archive.error = RequestError("unavailable", "no disk")
    nursery.start_soon(read)
    nursery.start_soon(read)
    await trio.testing.wait_all_tasks_blocked()
    house.archive.answering.set()
    await trio.testing.wait_all_tasks_blocked()
    assert told == ["unavailable", "unavailable"]
    assert len(house.archive.asked) == 1
    house.archive.error = None
    await read()
    assert told[2:] == [3]


async def test_an_archive_that_does_not_answer_is_not_waited_for_without_end(autojump_clock):
    house = House("list")
    house.publish(["i1"] * 5)
    house.archive.answering = trio.Event()
    with pytest.raises(RequestError, match="does not answer"):
        await house.past.read(house.buffer, Older(ONLY_I1, 0, 3))
    assert trio.current_time() == past_module.ANSWER_SECONDS


async def test_an_account_that_asks_for_much_leaves_room_for_others(nursery):
    house = House("list")
    house.publish(["i1"] * 50)
    house.archive.answering = trio.Event()
    for after in range(40):
        nursery.start_soon(house.past.read, house.buffer, Older(ONLY_I1, after, 45))
    await trio.testing.wait_all_tasks_blocked()
    assert len(house.archive.asked) < QUESTIONS_AT_ONCE
    nursery.start_soon(house.past.read, house.hub.account("b").buffer, Older(ONLY_I1, 0, 1))
    await trio.testing.wait_all_tasks_blocked()
    assert house.archive.asked[-1][0] == "b"
    assert house.past.statistics().asking == 41
