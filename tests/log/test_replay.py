"""replay.py (with retention.py and dropped.py below it): the window against a model of plain lists."""

import gc
import tracemalloc
from dataclasses import dataclass, field

import logs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from logs import EPOCH, append, entry_of, make_buffer, prepared

from broker.config import ReplayConfig
from broker.log import costs, replay
from broker.log.replay import Mark, ReplayBuffer
from broker.log.retention import ReplayBuffers
from broker.protocol.events import ProvedJson, prepare_event
from broker.protocol.framing import payload_of
from broker.protocol.messages import Entry, decode_event
from broker.protocol.selection import ACCOUNT_EVENTS, EVERYTHING, Selection

ACCOUNTS = ("acct_a", "acct_b", "acct_c")
INBOXES = ("i1", "i2", "i3", "i4", "i5", ACCOUNT_EVENTS)
TYPES = ("x", "a.b", "n" * 90)
LIMITS = ReplayConfig(seconds=300, max_events_per_account=12, max_bytes_per_account=9_000, max_bytes_total=14_000)
FOREVER = 10_000

accounts = st.sampled_from(ACCOUNTS)
inbox_sets = st.frozensets(st.sampled_from([*INBOXES, "i_unknown"]))
selections = st.one_of(
    st.just(EVERYTHING),
    inbox_sets.map(lambda inboxes: Selection(None, inboxes)),
    inbox_sets.map(Selection),
    st.sampled_from(INBOXES).map(lambda inbox: Selection(frozenset({inbox}))),
)


def filled(number: int, inboxes: int = 3) -> ReplayBuffer:
    buffer = make_buffer()
    for position in range(1, number + 1):
        append(buffer, prepared(f"e{position}", f"i{position % inboxes}"), position, float(position))
    return buffer


def positions(entries: list[Entry]) -> list[int]:
    return [entry.position for entry in entries]


# --- the state machine -------------------------------------------------------


@dataclass
class Stored:
    entry: Entry
    dropped_at: float | None = None


@dataclass
class Log:
    """One account: everything ever stored, in order."""

    account_id: str
    all: list[Stored] = field(default_factory=list)
    head: int = 0
    delivered: int = 0
    forgotten_at: float = float("-inf")
    """When forgetting was last asked for."""

    def window(self) -> list[Entry]:
        return [stored.entry for stored in self.all if stored.dropped_at is None]

    def bytes(self) -> int:
        """What the window costs: what waits for the fan-out counts as soon as it is taken, or read.

        Events of an inbox that follow each other share the string of their type, all of an inbox that of its name.
        """
        counted = [entry for entry in self.window() if entry.frame]
        types: dict[str, list[str]] = {}
        for entry in counted:
            of_inbox = types.setdefault(entry.inbox, [])
            if of_inbox[-1:] != [entry.type]:
                of_inbox.append(entry.type)
        names = [*types, *(kind for of_inbox in types.values() for kind in of_inbox)]
        cost_of_names = sum(costs.NAME_OVERHEAD_BYTES + len(name) for name in names)
        return sum(entry.cost for entry in counted) + costs.INBOX_OVERHEAD_BYTES * len(types) + cost_of_names

    def first_droppable(self) -> Stored | None:
        for stored in self.all:
            if stored.dropped_at is None:
                return stored if stored.entry.position <= self.delivered else None
        return None

    def may_be_forgotten(self) -> list[Entry]:
        limit = self.forgotten_at - 3600
        return [s.entry for s in self.all if s.dropped_at is not None and s.dropped_at < limit]


class Windows(RuleBasedStateMachine):
    """The windows of some accounts, and lists that remember everything."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers = ReplayBuffers(LIMITS, EPOCH)
        self.logs = {name: Log(name) for name in ACCOUNTS}
        self.now = 1_000.0
        self.ids = 0
        self.dropped = 0

    def _buffer(self, account_id: str) -> ReplayBuffer:
        return self.buffers.open(account_id)

    # --- what changes it

    @rule(
        account_id=accounts,
        inboxes=st.lists(st.sampled_from(INBOXES), min_size=1, max_size=8),
        kind=st.sampled_from(TYPES),
        step=st.integers(1, 3),
    )
    def append(self, account_id, inboxes, kind, step):
        log, buffer = self.logs[account_id], self._buffer(account_id)
        self.now += 0.25  # so that events of two accounts are never of the same age
        for inbox in inboxes:
            self.ids += 1
            log.head += step
            event = prepared(f"e{self.ids}", inbox, b'{"a":"%b"}' % (b"x" * (self.ids * 37 % 700)), kind)
            entry = entry_of(event, log.head, self.now)
            self.buffers.append(buffer, [entry])
            log.all.append(Stored(entry))

    @rule(account_id=accounts, number=st.integers(0, 10))
    def fan_out_goes_on(self, account_id, number):
        log, buffer = self.logs[account_id], self._buffer(account_id)
        waiting = [entry for entry in log.window() if entry.position > log.delivered]
        batch = buffer.batch(max_events=number or 1, max_bytes=FOREVER)
        assert batch == waiting[: len(batch)]
        assert bool(batch) is bool(waiting)
        assert len(batch) <= (number or 1)
        if number and batch:
            log.delivered = buffer.delivered = batch[-1].position

    @rule(account_id=accounts)
    def trim(self, account_id):
        self.buffers.trim(self._buffer(account_id), self.now)
        log = self.logs[account_id]
        while len(log.window()) > LIMITS.max_events_per_account or log.bytes() > LIMITS.max_bytes_per_account:
            if not self._model_drop(log.first_droppable()):
                break
        while sum(each.bytes() for each in self.logs.values()) > LIMITS.max_bytes_total:
            if not self._model_drop(self._oldest()):
                break

    @rule(most=st.integers(1, 6))
    def expire(self, most):
        more = self.buffers.expire(self.now, most=most)
        for _ in range(most):
            oldest = self._oldest_entry()
            if oldest is None or oldest.stored_at >= self.now - LIMITS.seconds:
                break
            if not self._model_drop(self._oldest()):
                break
        oldest = self._oldest_entry()
        if not more and oldest is not None and self._oldest() is not None:
            assert oldest.stored_at >= self.now - LIMITS.seconds

    def _oldest_entry(self) -> Entry | None:
        firsts = [log.window()[0] for log in self.logs.values() if log.window()]
        return min(firsts, key=lambda entry: entry.stored_at, default=None)

    def _oldest(self) -> Stored | None:
        """The oldest event of all accounts, if it may be dropped."""
        oldest = self._oldest_entry()
        droppable = [log.first_droppable() for log in self.logs.values()]
        return next((stored for stored in droppable if stored is not None and stored.entry is oldest), None)

    def _model_drop(self, stored: Stored | None) -> bool:
        if stored is None:
            return False
        stored.dropped_at = self.now
        self.dropped += 1
        return True

    @rule(seconds=st.sampled_from([0.5, 100, 299, 301, 700, 3_601, 8_000]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(account_id=accounts, seconds=st.sampled_from([3_000, 3_601, 5_000]))
    def everything_ages(self, account_id, seconds):
        for log in self.logs.values():
            buffer = self._buffer(log.account_id)
            buffer.batch(max_events=FOREVER, max_bytes=10 * FOREVER)
            buffer.delivered = log.delivered = log.head
        self.now += LIMITS.seconds
        self.expire(100)
        self.it_is_what_the_lists_say()
        self.now += 1
        self.expire(100)
        self.now += seconds
        self.forget(account_id, False)

    @rule(account_id=accounts, in_use=st.booleans())
    def forget(self, account_id, in_use):
        for log in self.logs.values():
            log.forgotten_at = self.now
        while self.buffers.forget(self.now):
            pass
        buffer = self._buffer(account_id)
        if buffer.idle and not in_use:
            self.buffers.close(buffer)

    # --- what may be asked

    @rule(
        account_id=accounts,
        selection=selections,
        bounds=st.tuples(st.integers(-1, 60), st.integers(0, 60)),
        max_events=st.integers(1, 6),
        max_bytes=st.integers(1, 2_000),
    )
    def read(self, account_id, selection, bounds, max_events, max_bytes):
        log, buffer = self.logs[account_id], self._buffer(account_id)
        after, through = max(0, log.head - bounds[0]), max(0, log.head - bounds[1])
        wanted = [e for e in log.window() if after < e.position <= through and e.inbox in selection]
        assert buffer.count(selection, after, through) == len(wanted)
        found, at = [], after
        while at < through:
            entries, reached = buffer.read(selection, at, through, max_events=max_events, max_bytes=max_bytes)
            assert at < reached <= through
            assert len(entries) <= max_events
            assert len(entries) == 1 or sum(len(entry.frame) for entry in entries) <= max_bytes
            found += entries
            assert positions(found) == [e.position for e in wanted if e.position <= reached]
            at = reached
        assert found == wanted

    @rule(account_id=accounts, selection=selections, bounds=st.tuples(st.integers(0, 60), st.integers(0, 60)))
    def missed(self, account_id, selection, bounds):
        log, buffer = self.logs[account_id], self._buffer(account_id)
        after, through = max(0, log.head - bounds[0]), max(0, log.head - bounds[1])
        gone = [s.entry for s in log.all if s.dropped_at is not None and after < s.entry.position <= through]
        missed = buffer.missed(selection, after, through)
        if missed is None:
            assert any(entry.position > after for entry in log.may_be_forgotten()), "known for an hour"
        else:
            assert missed == sum(entry.inbox in selection for entry in gone)

    @rule(account_id=accounts, seconds=st.one_of(st.integers(0, 20).map(lambda n: n / 8), st.integers(0, 9_000)))
    def position_before(self, account_id, seconds):
        log, moment = self.logs[account_id], self.now - seconds
        before = [stored.entry.position for stored in log.all if stored.entry.stored_at < moment]
        position = self._buffer(account_id).position_before(moment)
        if position is None:
            assert any(entry.stored_at >= moment for entry in log.may_be_forgotten())
        else:
            assert position == (before[-1] if before else 0)

    @rule(account_id=accounts, position=st.integers(0, 200))
    def position_of(self, account_id, position):
        log, buffer = self.logs[account_id], self._buffer(account_id)
        cursor = buffer.cursor_at(position)
        assert buffer.position_of(cursor) == (position if position <= log.head else None)
        assert make_buffer(account_id, b"another epoch...").position_of(cursor) is None
        assert all(self._buffer(other).position_of(cursor) is None for other in ACCOUNTS if other != account_id)

    @rule(account_id=accounts, number=st.integers(1, 200))
    def find(self, account_id, number):
        held = {(entry.inbox, entry.event_id): entry for entry in self.logs[account_id].window()}
        for inbox in INBOXES:
            assert self._buffer(account_id).find(inbox, f"e{number}") is held.get((inbox, f"e{number}"))

    # --- what always holds

    @invariant()
    def it_is_what_the_lists_say(self):
        windows = [log.window() for log in self.logs.values()]
        statistics = self.buffers.statistics()
        assert statistics.events == sum(map(len, windows))
        assert statistics.bytes == sum(log.bytes() for log in self.logs.values())
        assert statistics.dropped == self.dropped
        for log, window in zip(self.logs.values(), windows, strict=True):
            buffer = self._buffer(log.account_id)
            assert len(buffer) == len(window)
            assert buffer.bytes == log.bytes()
            assert buffer.head == log.head, "a forgotten account goes on where it was"
            gone = [s.entry.position for s in log.all if s.dropped_at is not None]
            assert buffer.dropped_through == (gone[-1] if gone else 0)
            assert all(entry.frame for entry in window if entry.position <= log.delivered)
            assert not gone or gone[-1] <= log.delivered, "what was not delivered was dropped"
            buffer.delivered = log.delivered  # one that was forgotten and came back starts at its head


def test_the_window_is_what_plain_lists_say_whatever_is_done(monkeypatch):
    monkeypatch.setattr(replay, "_WALK_STEPS", 4)
    monkeypatch.setattr(replay, "_WALK_FACTOR", 1)
    run_state_machine_as_test(Windows, settings=settings(max_examples=100, stateful_step_count=50))


# --- reading costs what it returns -------------------------------------------


class CountingEntry(Entry):
    """An entry that counts how often its position is looked at."""

    looked_at = 0

    def __getattribute__(self, name: str):
        if name == "position":
            CountingEntry.looked_at += 1
        return super().__getattribute__(name)


def looks(buffer: ReplayBuffer, selection: Selection, after: int, *, max_events: int = 256) -> tuple[int, list[Entry]]:
    """Read once; return how many positions were looked at, and the events."""
    CountingEntry.looked_at = 0
    entries, _ = buffer.read(selection, after, buffer.head, max_events=max_events, max_bytes=1_000_000)
    return CountingEntry.looked_at, entries


@pytest.fixture(scope="module")
def large_window():
    """100,000 events in 1000 inboxes, and one more inbox with ten."""
    patch = pytest.MonkeyPatch()
    patch.setattr(logs, "Entry", CountingEntry)
    buffer = make_buffer()
    for position in range(1, 100_001):
        inbox = "quiet" if position % 10_000 == 0 else f"inbox_{position % 1000}"
        append(buffer, prepared(f"e{position}", inbox), position, 0.0)
    patch.undo()
    buffer.count(EVERYTHING, 0, buffer.head)
    return buffer


def test_reading_one_inbox_of_a_large_window_looks_at_that_inbox_alone(large_window):
    looked_at, entries = looks(large_window, Selection(frozenset({"quiet"})), 0)
    assert len(entries) == 10
    assert looked_at < 200  # four bisections, and the ten


def test_an_inbox_without_events_costs_nothing_but_the_search_for_it(large_window):
    looked_at, entries = looks(large_window, Selection(frozenset({"nothing"})), 0)
    assert entries == []
    assert looked_at < 100


@pytest.mark.parametrize("inboxes", [2, 50, 127, 128, 900, 5_000])
def test_one_read_is_a_bounded_step_however_many_inboxes_are_selected(large_window, inboxes):
    selection = Selection(frozenset(f"inbox_{number}" for number in range(500, 500 + inboxes)))
    looked_at, entries = looks(large_window, selection, 0)
    assert entries
    assert looked_at < 10_000


def test_a_walk_that_finds_nothing_stops_after_a_bounded_number_of_steps_and_says_how_far_it_came(large_window):
    nothing = Selection(None, frozenset(f"inbox_{number}" for number in range(1000)) | {"quiet"})
    entries, reached = large_window.read(nothing, 0, large_window.head, max_events=10, max_bytes=1_000)
    assert entries == []
    assert reached == replay._WALK_STEPS


LONG = "x" * 100


@pytest.mark.parametrize(
    ("inbox", "kind"),
    [
        ("inbox_1", "message.received"),
        ("inbox_{}", "message.received"),
        ("inbox_1", LONG + ".n{}"),
        (LONG + "{}", "message.received"),
    ],
    ids=["one inbox", "many inboxes", "long types", "long inboxes"],
)
def test_what_events_are_counted_as_is_what_they_take_in_memory(inbox, kind):
    number = 10_000
    buffers = ReplayBuffers(ReplayConfig(), EPOCH)
    buffer = buffers.open("acct_a")
    payload = b'{"message":{"body":"%b"}}' % (b"x" * 180)
    gc.collect()
    tracemalloc.start()
    try:
        for position in range(1, number + 1):
            names = kind.format(position).encode(), inbox.format(position).encode()
            raw = b'{"type":"%b","inbox_id":"%b","payload":%b}' % (*names, payload)
            new_id = f"evt_{position:032x}".__str__
            event = prepare_event(ProvedJson(raw), "$", now="2026-11-23T10:00:00.123Z", new_id=new_id)
            buffers.append(buffer, [entry_of(event, position, 1_000.0 + position)])
            buffer.delivered = buffer.batch(max_events=1, max_bytes=1)[-1].position
        del event, raw, new_id, names
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert buffer.bytes == pytest.approx(taken, rel=0.1)


def test_events_that_are_put_before_others_count_as_if_they_had_come_in_their_order():
    names = [("i1", "a"), ("i1", "b"), ("i2", "b"), ("i1", "b"), ("i2", "b"), ("i2", "c"), ("i1", "b"), ("i3", LONG)]
    for split in range(1, len(names)):
        events = [prepared(f"e{at}", inbox, event_type=kind) for at, (inbox, kind) in enumerate(names)]
        in_order, elsewhere = make_buffer(), make_buffer(start=Mark(len(names), 0.0, 0.0))
        for position, event in enumerate(events, start=1):
            append(in_order, event, position, 1.0)
        for start, end in ((split, len(names)), (0, split)):
            elsewhere.prepend([entry_of(events[at], at + 1, 1.0) for at in range(start, end)], Mark(start))
        in_order.take_in()
        assert elsewhere.bytes == in_order.bytes
        while len(elsewhere):
            elsewhere.drop_first(2.0)
        assert elsewhere.bytes == 0


# --- single promises ---------------------------------------------------------


def test_an_event_is_framed_once_with_its_cursor_inside():
    buffer = make_buffer()
    buffer.extend([entry_of(prepared("e1"), 7, 0.0)])
    (entry,) = buffer.batch(max_events=9, max_bytes=FOREVER)
    assert buffer.batch(max_events=9, max_bytes=FOREVER)[0].frame is entry.frame
    assert decode_event(payload_of(entry.frame)).cursor == buffer.cursor_at(7)


def test_events_of_one_inbox_and_type_share_their_names():
    """Each event comes with strings of its own: a fifth of what a window of small events takes."""
    buffer = make_buffer()
    for position, name in enumerate(["message.received"] * 3 + ["other"], start=1):
        kind, inbox = bytearray(name.encode()).decode(), bytearray(b"in_1").decode()
        buffer.extend([entry_of(prepared(f"e{position}", inbox, event_type=kind), position, 0.0)])
    entries = buffer.batch(max_events=9, max_bytes=FOREVER)
    assert len({id(entry.inbox) for entry in entries}) == 1
    assert len({id(entry.type) for entry in entries}) == 2
    assert [entry.type for entry in entries] == ["message.received"] * 3 + ["other"]


def test_a_cursor_is_of_the_protocols_alphabet_and_length():
    cursor = make_buffer().cursor_at(2**62)
    assert cursor[0] == "c"
    assert len(cursor) <= 64
    assert all(character.isalnum() or character in "._-" for character in cursor)


@given(text=st.one_of(st.text(), st.text("0123456789", min_size=1, max_size=6_000), st.text("٣²١", min_size=1)))
def test_whatever_is_taken_for_a_cursor_is_its_position_or_unknown(text):
    buffer = filled(9)
    prefix = buffer.cursor_at(1)[:-1]
    assert buffer.position_of(text) is None
    known = buffer.position_of(prefix + text)
    assert known is None or known == int(text) <= 9


def test_a_cursor_is_bound_to_its_account_and_its_run():
    cursor = filled(3).cursor_at(2)
    assert make_buffer("acct_b").position_of(cursor) is None
    assert make_buffer(epoch=b"another epoch...").position_of(cursor) is None


def test_an_id_is_known_as_long_as_the_window_holds_it():
    buffer = filled(2)
    assert buffer.find("i1", "e1").position == 1
    buffer.drop_first(10.0)
    assert buffer.find("i1", "e1") is None


def test_an_inbox_without_events_takes_no_memory():
    buffer = filled(100, inboxes=100)
    for _ in range(99):
        buffer.drop_first(0.0)
    assert buffer.count(EVERYTHING, 0, buffer.head) == 1
    assert len(buffer._by_inbox) == 1


@pytest.mark.parametrize("inboxes", [1, 3, 20])
@pytest.mark.parametrize("dropped", [0, 4])
def test_what_is_counted_between_two_positions_is_what_is_read_there(inboxes, dropped):
    """Inbox by inbox, event by event, or at a glance where all lies between them: it is the same."""
    buffer = filled(24, inboxes)
    buffer.delivered = 24
    for _ in range(dropped):
        buffer.drop_first(25.0)
    names = frozenset(f"i{number}" for number in range(inboxes))
    some = frozenset(list(names)[::2])
    for selection in (EVERYTHING, Selection(names), Selection(some), Selection(None, some), Selection(None, names)):
        for after in range(dropped, 25):
            for through in range(after, 26):
                entries, _ = buffer.read(selection, after, through, max_events=100, max_bytes=1_000_000)
                assert buffer.count(selection, after, through) == len(entries), (selection, after, through)


def test_a_gap_is_counted_for_the_asked_inboxes_alone():
    buffer = filled(9)  # i1, i2, i0, i1, ...
    for _ in range(6):
        buffer.drop_first(0.0)
    assert buffer.missed(EVERYTHING, 0, 9) == 6
    assert buffer.missed(Selection(frozenset({"i1"})), 0, 9) == 2
    assert buffer.missed(Selection(frozenset({"i1"})), 1, 9) == 1
    assert buffer.missed(Selection(None, frozenset({"i1", "i2"})), 0, 3) == 1


def test_a_gap_over_what_is_forgotten_has_no_count_but_nothing_can_be_missed_of_nothing():
    buffer = filled(3)
    buffer.drop_first(0.0)
    buffer._shared.dropped.forget(3_601.0)
    assert buffer.missed(EVERYTHING, 0, 9) is None
    assert buffer.missed(EVERYTHING, 1, 9) == 0
    assert buffer.missed(Selection(frozenset()), 0, 9) == 0
    assert buffer.missed(EVERYTHING, 0, 0) == 0
