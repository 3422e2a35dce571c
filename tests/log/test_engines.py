"""What every engine promises (engines/__init__.py), in one suite; and what an engine that must wait promises beside."""

from collections.abc import Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from logs import (
    EPOCH,
    ArchivingEngine,
    TailingEngine,
    WaitingEngine,
    begin,
    memory_engine,
    prepared,
    settle,
    sqlite_engine,
    wall_at,
)

from broker.config import ReplayConfig
from broker.errors import RequestError
from broker.fanout.hub import Hub
from broker.fanout.subscriber import Subscriber
from broker.log.engines import Answer, Engine, Log, Stored
from broker.log.past import Past
from broker.log.retention import ReplayBuffers
from broker.protocol.messages import Entry, PreparedEvent
from broker.protocol.selection import EVERYTHING

ENGINES: dict[str, Callable[[ReplayBuffers, Log], Engine]] = {
    "memory": memory_engine,
    "waiting": WaitingEngine,
    "archiving": ArchivingEngine,
    "sqlite": sqlite_engine,
    "tailing": TailingEngine,
}
ELSEWHERE = {"tailing"}
"""Those whose logs are not in this process."""
every_engine = pytest.mark.parametrize("kind", ENGINES)


class House:
    """A hub and an engine that fills it, with notes of what the engine did in which order."""

    def __init__(self, kind: str, replay: ReplayConfig | None = None) -> None:
        buffers = ReplayBuffers(replay or ReplayConfig(), EPOCH)
        self.hub = Hub(buffers)
        self.notes: list[object] = []
        self.prepend, self.remember = self.hub.prepend, self.hub.remember
        self.skip, self.restart = self.hub.skip, self.hub.restart
        self.engine = ENGINES[kind](buffers, self)
        if isinstance(self.engine, TailingEngine):
            self.engine.attach_now("a")
            self.engine.attach_now("b")

    def store(self, account_id: str, entries: list[Entry]) -> None:
        """The log that the engine fills."""
        self.notes += [(account_id, entry.event_id) for entry in entries]
        self.hub.store(account_id, entries)

    def begin(self, **by_account: list[PreparedEvent]) -> list[dict[str, list[Stored]]]:
        """Begin, and return the list that the outcome comes into."""
        outcomes: list[dict[str, list[Stored]]] = []

        def done(outcome) -> None:
            outcomes.append(outcome)
            self.notes.append("done")

        self.engine.begin(by_account, done)
        return outcomes

    def publish(self, *events: PreparedEvent, account_id: str = "a") -> list[Stored]:
        return begin(self.engine, account_id, events)

    def log(self, account_id: str = "a") -> list[tuple[str, str]]:
        """Inbox and id of all that an account's log holds."""
        buffer = self.hub.account(account_id).buffer
        entries, _ = buffer.read(EVERYTHING, 0, buffer.head, max_events=10_000, max_bytes=10**9)
        return [(entry.inbox, entry.event_id) for entry in entries]

    async def subscriber(self, since: str, account_id: str = "a") -> Subscriber:
        past = Past(self.engine.archive, lambda: wall_at(trio.current_time()).timestamp(), self.engine.reach)
        subscriber = Subscriber(self.hub.account(account_id), EVERYTHING, None, past)
        await subscriber.start(since)
        return subscriber


# --- order and step ----------------------------------------------------------


@every_engine
async def test_events_have_the_order_in_which_they_were_begun(kind):
    house = House(kind)
    outcomes = [house.begin(a=[prepared(f"e{2 * n}"), prepared(f"e{2 * n + 1}")]) for n in range(5)]
    settle(house.engine)
    positions = [stored.position for [outcome] in outcomes for stored in outcome["a"]]
    assert positions == sorted(set(positions))
    assert [stored.event_id for [outcome] in outcomes for stored in outcome["a"]] == [f"e{n}" for n in range(10)]
    assert [event_id for _, event_id in house.log()] == [f"e{n}" for n in range(10)]


@every_engine
async def test_each_begin_is_done_once_in_the_order_of_the_log_after_it_was_stored(kind):
    house = House(kind)
    for n in range(3):
        house.begin(a=[prepared(f"a{n}")], b=[prepared(f"b{n}")])
    settle(house.engine)
    assert house.notes == [note for n in range(3) for note in (("a", f"a{n}"), ("b", f"b{n}"), "done")]


@every_engine
async def test_the_outcome_has_the_accounts_and_the_order_of_what_was_begun(kind):
    house = House(kind)
    outcomes = house.begin(b=[prepared("1"), prepared("2")], a=[prepared("3")])
    settle(house.engine)
    [outcome] = outcomes
    assert {name: [stored.event_id for stored in of] for name, of in outcome.items()} == {"b": ["1", "2"], "a": ["3"]}


@every_engine
async def test_nothing_is_done_at_once_too(kind):
    house = House(kind)
    outcomes = house.begin()
    settle(house.engine)
    assert outcomes == [{}]
    outcomes = house.begin(a=[])
    settle(house.engine)
    assert outcomes == [{"a": []}]
    assert house.hub.statistics().queued_accounts == 0


# --- an id is unique in its inbox --------------------------------------------


@every_engine
async def test_an_id_that_its_inbox_holds_is_not_stored_again_and_the_first_stays(kind):
    house = House(kind)
    (first,) = house.publish(prepared("e", "i1", b'{"n":1}'))
    again, other = house.publish(prepared("e", "i1", b'{"n":2}'), prepared("f", "i1"))
    assert (again.duplicate, again.position, again.cursor) == (True, first.position, first.cursor)
    assert not other.duplicate
    assert house.log() == [("i1", "e"), ("i1", "f")]
    assert house.hub.account("a").buffer.find("i1", "e").frame.endswith(b'"payload":{"n":1}}')


@every_engine
async def test_the_same_id_twice_in_one_list_is_stored_once(kind):
    house = House(kind)
    stored = house.publish(prepared("e"), prepared("f"), prepared("e"))
    assert [item.duplicate for item in stored] == [False, False, True]
    assert stored[2].position == stored[0].position
    assert house.log() == [("i1", "e"), ("i1", "f")]


@every_engine
async def test_the_same_id_in_another_inbox_in_none_or_in_another_account_is_another_event(kind):
    house = House(kind)
    assert [s.duplicate for s in house.publish(*[prepared("e", inbox) for inbox in ("i1", "i2", "")])] == [False] * 3
    assert [s.duplicate for s in house.publish(*[prepared("e", inbox) for inbox in ("", "i1", "i2")])] == [True] * 3
    assert [s.duplicate for s in house.publish(prepared("e", "i1"), account_id="b")] == [False]
    assert house.log() == [("i1", "e"), ("i2", "e"), ("", "e")]


@every_engine
@given(
    lists=st.lists(
        st.lists(st.tuples(st.sampled_from(["i1", "i2", ""]), st.sampled_from("efgh")), max_size=6), max_size=6
    ),
    window=st.integers(1, 6),
)
async def test_an_id_is_free_again_exactly_when_the_window_has_dropped_it_but_not_on_disk(kind, lists, window):
    house = House(kind, ReplayConfig(max_events_per_account=window))
    held: list[tuple[str, str]] = []
    stored_ever: set[tuple[str, str]] = set()
    for batch in lists:
        fresh = 0
        for (inbox, event_id), stored in zip(batch, house.publish(*[prepared(e, i) for i, e in batch]), strict=True):
            assert stored.duplicate == ((inbox, event_id) in (stored_ever if kind == "sqlite" else held))
            if not stored.duplicate:
                held.append((inbox, event_id))
                stored_ever.add((inbox, event_id))
                fresh += 1
        house.hub.take_turns(float("inf"))
        if fresh:  # elsewhere, one publish that is larger than the window stays until the next
            held = held[-max(window, fresh if kind in ELSEWHERE else 0) :]
        assert house.log() == held[-window:]


# --- what is stored ----------------------------------------------------------


@every_engine
async def test_an_event_has_both_times_of_its_storing(kind, mock_clock):
    house = House(kind)
    house.begin(a=[prepared("e")])
    mock_clock.jump(5 if kind == "waiting" else 0)
    settle(house.engine)
    entry = house.hub.account("a").buffer.find("i1", "e")
    assert (entry.stored_at, entry.wall) == (trio.current_time(), wall_at(trio.current_time()).timestamp())


@every_engine
async def test_what_is_stored_wakes_the_fan_out_which_delivers_it(kind, nursery):
    house = House(kind)
    nursery.start_soon(house.hub.deliver)
    nursery.start_soon(house.engine.run)
    with trio.fail_after(5):
        buffer = house.hub.account("a").buffer
        subscriber = await house.subscriber(buffer.cursor_at(buffer.head))
        house.publish(prepared("e"))
        assert (await anext(subscriber)).event_id == "e"


@every_engine
async def test_a_cursor_that_was_told_is_the_events_own_and_resumes_after_it(kind, nursery):
    house = House(kind)
    first, second = house.publish(prepared("e"), prepared("f"))
    assert first.cursor != second.cursor
    nursery.start_soon(house.hub.deliver)
    with trio.fail_after(5):
        got = await anext(await house.subscriber(first.cursor))
    assert (got.event_id, got.cursor) == ("f", second.cursor)


@every_engine
async def test_an_engine_runs_until_it_is_cancelled_and_is_there_from_the_start(kind):
    house = House(kind)
    assert not house.engine.away
    async with trio.open_nursery() as nursery:
        await nursery.start(house.engine.run)
        async with house.engine.attach("a"):
            await house.engine.reach("a", "5m")
            house.publish(prepared("e"))
        assert house.log() == [("i1", "e")]
        nursery.cancel_scope.cancel()


# --- what an engine that must wait promises beside ---------------------------


async def test_an_answer_is_remembered_exactly_if_its_events_are_stored():
    house = House("waiting")
    mine, refused = Answer(("key", "", "r1"), b"1"), Answer(("key", "", "r2"), b"2")
    for answer in (mine, refused):
        house.engine.begin({"a": [prepared(answer.identity[2])]}, house.notes.append, answer)
    assert house.engine.answers == {}
    house.engine.commit()
    house.engine.refuse(RequestError("unavailable", "no room"))
    assert house.engine.answers == {mine.identity: mine.digest}
    assert house.log() == [("i1", "r1")]
