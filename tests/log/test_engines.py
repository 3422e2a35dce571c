"""What every engine promises (engines/__init__.py), in one suite; and what an engine that must wait promises beside."""

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import ClassVar

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from logs import (
    EPOCH,
    ArchivingEngine,
    TailingEngine,
    WaitingEngine,
    memory_engine,
    prepared,
    settle,
    sqlite_engine,
    valkey_engine,
    wall_at,
)
from valkeys import Server, server

from broker.config import ReplayConfig
from broker.errors import RequestError
from broker.fanout.hub import Hub
from broker.fanout.subscriber import Subscriber
from broker.log.engines import Answer, Engine, Stored
from broker.log.past import Past
from broker.log.retention import ReplayBuffers
from broker.protocol.messages import Entry, PreparedEvent
from broker.protocol.selection import EVERYTHING

ENGINES: dict[str, Callable[..., Engine]] = {
    "memory": memory_engine,
    "waiting": WaitingEngine,
    "archiving": ArchivingEngine,
    "sqlite": sqlite_engine,
    "tailing": TailingEngine,
    "valkey": valkey_engine,
    "redis": valkey_engine,
}
SERVED = {"valkey", "redis"}
"""Those whose logs are on a server."""
ELSEWHERE = {"tailing", *SERVED}
"""Those whose logs are not in this process."""
by_the_tests_clock = pytest.mark.parametrize("kind", [kind for kind in ENGINES if kind not in SERVED])
every_engine = pytest.mark.parametrize("kind", ENGINES)


@pytest.fixture(scope="module", autouse=True)
def servers():
    """The servers that are needed, for all tests of the module."""
    with ExitStack() as stack:
        SERVERS.stack = stack
        yield
        SERVERS.running.clear()


class SERVERS:
    stack: ExitStack
    running: ClassVar[dict[str, Server]] = {}

    @classmethod
    def of(cls, kind: str) -> Server:
        if kind not in cls.running:
            cls.running[kind] = cls.stack.enter_context(server(kind))
        return cls.running[kind]


class House:
    """A hub and an engine that fills it, with notes of what the engine did in which order."""

    def __init__(self, kind: str, replay: ReplayConfig | None = None) -> None:
        buffers = ReplayBuffers(replay or ReplayConfig(), EPOCH)
        self.hub = Hub(buffers)
        self.notes: list[object] = []
        self.told = trio.Event()
        self.prepend, self.remember = self.hub.prepend, self.hub.remember
        self.skip, self.restart, self.passed = self.hub.skip, self.hub.restart, self.hub.passed
        self.kind = kind
        self.engine = ENGINES[kind](buffers, self, *([SERVERS.of(kind).url] if kind in SERVED else []))
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
            self.told.set()

        self.engine.begin(by_account, done)
        return outcomes

    async def publish(self, *events: PreparedEvent, account_id: str = "a") -> list[Stored]:
        [outcome] = await self.settled(self.begin(**{account_id: list(events)}))
        return list(outcome[account_id])

    async def settled(self, *begun: list[dict[str, list[Stored]]]) -> list[dict[str, list[Stored]]]:
        """The outcomes of what was begun, when it is stored, and in the logs here."""
        settle(self.engine)
        with trio.fail_after(60):
            while self.kind in SERVED and not all(begun):
                await self.told.wait()
                self.told = trio.Event()
        outcomes = [outcome for [outcome] in begun]
        if self.kind in SERVED:
            for account_id, stored in [one for outcome in outcomes for one in outcome.items()]:
                await self.engine.reach(account_id, max((item.position for item in stored), default=0))
        return outcomes

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


@asynccontextmanager
async def opened(kind: str, replay: ReplayConfig | None = None) -> AsyncIterator[House]:
    """A house whose engine runs, where it must, with accounts "a" and "b" attached."""
    if kind not in SERVED:
        yield House(kind, replay)
        return
    SERVERS.of(kind).command("FLUSHALL")
    house = House(kind, replay)
    async with trio.open_nursery() as nursery:
        await nursery.start(house.engine.run)
        async with house.engine.attach("a"), house.engine.attach("b"):
            yield house
        nursery.cancel_scope.cancel()


# --- order and step ----------------------------------------------------------


@every_engine
async def test_events_have_the_order_in_which_they_were_begun(kind):
    async with opened(kind) as house:
        outcomes = [house.begin(a=[prepared(f"e{2 * n}"), prepared(f"e{2 * n + 1}")]) for n in range(5)]
        outcomes = [[outcome] for outcome in await house.settled(*outcomes)]
        positions = [stored.position for [outcome] in outcomes for stored in outcome["a"]]
        assert positions == sorted(set(positions))
        assert [stored.event_id for [outcome] in outcomes for stored in outcome["a"]] == [f"e{n}" for n in range(10)]
        assert [event_id for _, event_id in house.log()] == [f"e{n}" for n in range(10)]


@every_engine
async def test_each_begin_is_done_once_in_the_order_of_the_log_after_it_was_stored(kind):
    async with opened(kind) as house:
        begun = [house.begin(a=[prepared(f"a{n}")], b=[prepared(f"b{n}")]) for n in range(3)]
        await house.settled(*begun)
        if kind in SERVED:  # it is stored on the server by then; here it is when it arrives
            assert house.notes.count("done") == 3
            assert [note for note in house.notes if note[0] == "a"] == [("a", f"a{n}") for n in range(3)]
            return
        assert house.notes == [note for n in range(3) for note in (("a", f"a{n}"), ("b", f"b{n}"), "done")]


@every_engine
async def test_the_outcome_has_the_accounts_and_the_order_of_what_was_begun(kind):
    async with opened(kind) as house:
        [outcome] = await house.settled(house.begin(b=[prepared("1"), prepared("2")], a=[prepared("3")]))
        assert {name: [stored.event_id for stored in of] for name, of in outcome.items()} == {
            "b": ["1", "2"],
            "a": ["3"],
        }


@every_engine
async def test_nothing_is_done_at_once_too(kind):
    async with opened(kind) as house:
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
    async with opened(kind) as house:
        (first,) = await house.publish(prepared("e", "i1", b'{"n":1}'))
        again, other = await house.publish(prepared("e", "i1", b'{"n":2}'), prepared("f", "i1"))
        assert (again.duplicate, again.position, again.cursor) == (True, first.position, first.cursor)
        assert not other.duplicate
        assert house.log() == [("i1", "e"), ("i1", "f")]
        assert house.hub.account("a").buffer.find("i1", "e").frame.endswith(b'"payload":{"n":1}}')


@every_engine
async def test_the_same_id_twice_in_one_list_is_stored_once(kind):
    async with opened(kind) as house:
        stored = await house.publish(prepared("e"), prepared("f"), prepared("e"))
        assert [item.duplicate for item in stored] == [False, False, True]
        assert stored[2].position == stored[0].position
        assert house.log() == [("i1", "e"), ("i1", "f")]


@every_engine
async def test_the_same_id_in_another_inbox_in_none_or_in_another_account_is_another_event(kind):
    async with opened(kind) as house:
        assert [s.duplicate for s in await house.publish(*[prepared("e", i) for i in ("i1", "i2", "")])] == [False] * 3
        assert [s.duplicate for s in await house.publish(*[prepared("e", i) for i in ("", "i1", "i2")])] == [True] * 3
        assert [s.duplicate for s in await house.publish(prepared("e", "i1"), account_id="b")] == [False]
        assert house.log() == [("i1", "e"), ("i2", "e"), ("", "e")]


@every_engine
@given(
    lists=st.lists(
        st.lists(st.tuples(st.sampled_from(["i1", "i2", ""]), st.sampled_from("efgh")), max_size=6), max_size=6
    ),
    window=st.integers(1, 6),
)
async def test_an_id_is_free_again_exactly_when_the_window_has_dropped_it_but_not_on_disk(kind, lists, window):
    async with opened(kind, ReplayConfig(max_events_per_account=window)) as house:
        held: list[tuple[str, str]] = []
        stored_ever: set[tuple[str, str]] = set()
        for batch in lists:
            fresh = 0
            for (inbox, event_id), stored in zip(
                batch, await house.publish(*[prepared(e, i) for i, e in batch]), strict=True
            ):
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


@by_the_tests_clock
async def test_an_event_has_both_times_of_its_storing(kind, mock_clock):
    async with opened(kind) as house:
        house.begin(a=[prepared("e")])
        mock_clock.jump(5 if kind == "waiting" else 0)
        settle(house.engine)
        entry = house.hub.account("a").buffer.find("i1", "e")
        assert (entry.stored_at, entry.wall) == (trio.current_time(), wall_at(trio.current_time()).timestamp())


@every_engine
async def test_what_is_stored_wakes_the_fan_out_which_delivers_it(kind, nursery, monkeypatch):
    monkeypatch.setattr("broker.log.engines.valkey.tail.LOOK_SECONDS", 600)
    async with opened(kind) as house:
        nursery.start_soon(house.hub.deliver)
        with trio.fail_after(60):
            buffer = house.hub.account("a").buffer
            subscriber = await house.subscriber(buffer.cursor_at(buffer.head))
            await house.publish(prepared("e"))
            assert (await anext(subscriber)).event_id == "e"


@every_engine
async def test_a_cursor_that_was_told_is_the_events_own_and_resumes_after_it(kind, nursery, monkeypatch):
    monkeypatch.setattr("broker.log.engines.valkey.tail.LOOK_SECONDS", 600)
    async with opened(kind) as house:
        first, second = await house.publish(prepared("e"), prepared("f"))
        assert first.cursor != second.cursor
        nursery.start_soon(house.hub.deliver)
        with trio.fail_after(60):
            got = await anext(await house.subscriber(first.cursor))
        assert (got.event_id, got.cursor) == ("f", second.cursor)


@every_engine
async def test_an_engine_runs_until_it_is_cancelled_and_is_there_from_the_start(kind):
    async with opened(kind) as house, trio.open_nursery() as nursery:
        if kind not in SERVED:  # of those the block has started it
            await nursery.start(house.engine.run)
        assert not house.engine.away
        async with house.engine.attach("a"):
            await house.engine.reach("a", "5m")
            await house.publish(prepared("e"))
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
