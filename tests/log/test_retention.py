"""retention.py: one set of limits over all accounts. (The state machine of test_replay.py drives it, too.)"""

import pytest
from logs import EPOCH, entry_of, prepared, wall_at

from broker.config import ReplayConfig
from broker.log import retention
from broker.log.costs import INBOX_OVERHEAD_BYTES, NAME_OVERHEAD_BYTES
from broker.log.replay import ReplayBuffer
from broker.log.retention import ReplayBuffers
from broker.protocol.selection import EVERYTHING

COST_OF_INBOX = INBOX_OVERHEAD_BYTES + 2 * NAME_OVERHEAD_BYTES + len("i1") + len("x")
"""With its name, and that of the one type of its events."""


class Windows:
    """Buffers that hold some events; ids and times are made."""

    def __init__(self, **limits) -> None:
        self.buffers = ReplayBuffers(ReplayConfig(**limits), EPOCH)
        self.now = 0.0
        self.ids = 0

    def store(self, account_id: str, number: int = 1, *, delivered: bool = True, trim: bool = True) -> ReplayBuffer:
        buffer = self.buffers.open(account_id)
        for _ in range(number):
            self.ids += 1
            self.now += 1.0
            entry = entry_of(prepared(f"e{self.ids:04}"), buffer.head + 1, self.now)
            self.buffers.append(buffer, [entry])
        if delivered:
            self.deliver(buffer)
            self.cost = entry.cost
        if trim:
            self.buffers.trim(buffer, self.now)
        return buffer

    def deliver(self, buffer: ReplayBuffer, number: int = 1_000) -> None:
        """Do what the fan-out does, with so many events."""
        batch = buffer.batch(max_events=number, max_bytes=1_000_000)
        buffer.delivered = batch[-1].position if batch else buffer.delivered

    def times(self, account_id: str) -> list[int]:
        """When the events that an account's window holds were stored."""
        buffer = self.buffers.open(account_id)
        entries, _ = buffer.read(EVERYTHING, 0, buffer.head, max_events=1_000, max_bytes=1_000_000)
        return [int(entry.stored_at) for entry in entries]

    def forget(self, buffer: ReplayBuffer, now: float, *, in_use: bool) -> None:
        """Do what is done for all accounts now and then."""
        while self.buffers.forget(now):
            pass
        if buffer.idle and not in_use:
            self.buffers.close(buffer)


def cost_of_one() -> int:
    windows = Windows()
    windows.store("a")
    return windows.cost


def test_an_accounts_oldest_events_go_when_it_has_too_many():
    windows = Windows(max_events_per_account=3)
    windows.store("other", 3)
    buffer = windows.store("a", 10)
    assert (len(buffer), buffer.first().position) == (3, 8)
    assert len(windows.buffers.open("other")) == 3


def test_an_accounts_oldest_events_go_when_they_take_too_much():
    windows = Windows(max_bytes_per_account=4 * cost_of_one() + COST_OF_INBOX)
    assert len(windows.store("a", 9)) == 4


def test_the_oldest_events_of_all_accounts_go_first_when_all_together_take_too_much():
    windows = Windows(max_bytes_total=4 * cost_of_one() + 2 * COST_OF_INBOX)
    for account_id in ("a", "b", "a", "b", "b", "b"):
        windows.store(account_id)
    assert windows.buffers.open("a").first().position == 2
    assert windows.buffers.open("b").first().position == 2
    assert windows.buffers.statistics().events == 4


@pytest.mark.parametrize(
    "limits", [{"max_events_per_account": 2}, {"max_bytes_per_account": 1}, {"max_bytes_total": 1}]
)
def test_what_the_fan_out_has_not_delivered_is_never_dropped(limits):
    windows = Windows(**limits)
    buffer = windows.store("a", 5, delivered=False)
    assert len(buffer) == 5
    windows.buffers.expire(1e9, most=100)
    assert len(buffer) == 5
    windows.deliver(buffer, 4)
    windows.buffers.trim(buffer, windows.now)
    assert buffer.dropped_through == (3 if "max_events_per_account" in limits else 4)


def test_age_alone_drops_what_is_older_than_the_window_in_bounded_steps():
    windows = Windows(seconds=10)
    for account_id in ("a", "b", "a", "b"):
        windows.store(account_id, 2)  # stored at 1 to 8
    assert windows.buffers.expire(15.5, most=3) is True
    assert windows.buffers.statistics().events == 5
    assert windows.buffers.expire(15.5, most=3) is False
    assert windows.buffers.statistics().events == 3


def test_at_expiry_nothing_goes_that_is_younger_whatever_an_accounts_own_limit_took_before():
    windows = Windows(seconds=10, max_events_per_account=2)
    windows.store("small", 6)  # stored at 1 to 6; 5 and 6 are left
    windows.store("other", 2)  # stored at 7 and 8
    windows.store("small", 1)  # stored at 9: 6 and 9 are left
    for now, left in ((15.5, ([6, 9], [7, 8])), (16.5, ([9], [7, 8])), (17.5, ([9], [8])), (19.5, ([], []))):
        assert windows.buffers.expire(now, most=100) is False
        assert (windows.times("small"), windows.times("other")) == left


def test_what_one_account_has_too_much_of_costs_no_other_account_anything():
    cost = cost_of_one()
    most = 10 * cost + 40 + COST_OF_INBOX
    windows = Windows(max_bytes_per_account=most, max_bytes_total=2 * most + 3 * cost)
    windows.store("quiet", 10)
    greedy = windows.store("greedy", 500, delivered=False)
    assert (len(windows.buffers.open("quiet")), len(greedy)) == (10, 500)
    while greedy.delivered < greedy.head:
        windows.deliver(greedy, 7)
        windows.buffers.trim(greedy, windows.now)
        assert len(windows.buffers.open("quiet")) == 10
        assert windows.buffers.statistics().bytes <= 2 * most
    assert len(greedy) == 10


@pytest.mark.parametrize("limit", ["max_events_per_account", "max_bytes_per_account", "max_bytes_total"])
def test_what_is_too_much_goes_in_bounded_steps(limit, monkeypatch):
    monkeypatch.setattr(retention, "TRIM_EVENTS", 4)
    windows = Windows(**{limit: 1})
    buffer = windows.store("a", 10, trim=False)
    assert [windows.buffers.trim(buffer, windows.now) for _ in range(2)] == [True, True]
    assert len(buffer) == 2
    assert not windows.buffers.trim(buffer, windows.now)
    assert len(buffer) <= 1


def test_an_account_of_which_nothing_is_left_shrinks_to_its_last_position():
    windows = Windows(seconds=10)
    buffer = windows.store("a", 3)
    cursor = buffer.cursor_at(3)
    windows.buffers.expire(100.0, most=100)
    windows.forget(buffer, 100.0, in_use=False)
    assert windows.buffers.open("a") is buffer, "dropped positions are known for an hour"
    windows.forget(buffer, 100.0 + 3_601, in_use=True)
    assert windows.buffers.open("a") is buffer
    windows.forget(buffer, 100.0 + 3_601, in_use=False)
    assert windows.buffers.statistics().accounts == 0
    again = windows.buffers.open("a")
    assert again is not buffer
    assert again.position_of(cursor) == again.head == again.delivered == 3
    assert again.missed(EVERYTHING, 3, 3) == 0
    assert again.missed(EVERYTHING, 2, 3) is None
    assert again.position_before(3.5) == 3
    assert again.position_before(3.0) is None


def test_the_last_positions_of_accounts_are_bounded_and_never_used_again(monkeypatch):
    monkeypatch.setattr(retention, "MAX_MARKS", 2)
    windows = Windows(seconds=10)
    cursors = {}
    for number, account_id in enumerate(("a", "b", "c", "d"), start=1):
        buffer = windows.store(account_id, number)
        cursors[account_id] = buffer.cursor_at(number)
        windows.buffers.expire(1_000.0, most=100)
        windows.forget(buffer, 10_000.0, in_use=False)
    assert len(windows.buffers._marks) == 2
    assert windows.buffers.open("c").head == 3
    for account_id in ("a", "b", "new"):
        assert windows.buffers.open(account_id).head == 2, "of those whose mark is gone, none is reused"
    assert windows.buffers.open("a").position_of(cursors["a"]) == 1
    assert windows.buffers.open("a").missed(EVERYTHING, 1, 2) is None


@pytest.mark.parametrize("order", [("early", "late", "last"), ("late", "early", "last")])
def test_positions_and_times_of_accounts_that_are_forgotten_are_never_used_again_nor_said_wrongly(monkeypatch, order):
    monkeypatch.setattr(retention, "MAX_MARKS", 1)
    windows = Windows(seconds=10)
    for account_id, number in (("late", 5), ("early", 1), ("last", 1)):
        windows.store(account_id, number)  # stored up to 5, at 6, at 7
    for account_id in order:
        buffer = windows.buffers.open(account_id)
        windows.buffers.expire(1_000.0, most=100)
        windows.forget(buffer, 10_000.0, in_use=False)
    kept = windows.buffers.open("last")
    assert (kept.position_before(7.5), kept.position_before(7.0)) == (1, None)
    for account_id in ("late", "early", "new"):
        buffer = windows.buffers.open(account_id)
        assert buffer.head == 5, "no position of any of them is used again"
        for by_wall, at in ((False, 0.0), (True, wall_at(0).timestamp())):
            assert buffer.position_before(at + 6.5, by_wall=by_wall) == 5
            assert buffer.position_before(at + 6.0, by_wall=by_wall) is None, "one of them was stored then"


def test_what_has_no_mark_has_dropped_nothing_at_any_time():
    windows = Windows()
    assert windows.buffers.open("new").position_before(-1e9) == 0
    assert windows.buffers.open("new").position_before(-1e9, by_wall=True) == 0


def test_statistics_count_what_is_held_and_what_was_dropped():
    windows = Windows(max_events_per_account=2)
    windows.store("a", 3)
    windows.store("b", 1)
    statistics = windows.buffers.statistics()
    assert (statistics.accounts, statistics.events, statistics.dropped) == (2, 3, 1)
    assert statistics.bytes == 3 * windows.cost + 2 * COST_OF_INBOX
