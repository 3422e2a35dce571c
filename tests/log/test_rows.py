"""Events as rows, by themselves: stored once, found by time, read in order, let go."""

from contextlib import closing

import pytest
from logs import prepared
from msgspec.structs import replace

from broker.log.database import open_database
from broker.log.engines.rows import (
    EVENTS,
    AccountRow,
    Ids,
    Publish,
    first_since,
    last_position,
    read_accounts,
    read_at,
    read_events,
    trim_events,
    trim_known,
    write_events,
    write_heads,
)


class Table:
    """A log of rows: what is published to it is stored second after second."""

    def __init__(self, connection):
        self.connection = connection
        self.ids = Ids(connection)
        self.position = 1
        self.now = 100.0

    def commit(self, *publishes):
        """Store some publishes as one commit, each a dict of an account's events."""
        prefixed = [Publish(by_account, dict.fromkeys(by_account, "c.")) for by_account in publishes]
        written, heads, self.position = write_events(
            self.connection, self.ids, prefixed, self.position, self.now - 90, self.now
        )
        write_heads(self.connection, heads, self.now)
        self.now += 1
        return written

    def add(self, account_id, *names, inbox="i"):
        [written] = self.commit({account_id: [prepared(name, inbox) for name in names]})
        return [stored.position for stored in written.stored[account_id]]

    def rows(self, query):
        return self.connection.execute(query).fetchall()


@pytest.fixture
def table(tmp_path):
    with closing(open_database(str(tmp_path / "broker.db"), "normal", (EVENTS,)).connection) as connection:
        yield Table(connection)


# --- stored


def test_what_is_new_is_given_to_the_log_and_what_is_known_is_not(table):
    one, other = table.commit(
        {"a": [prepared("e1"), prepared("e2")], "b": [prepared("e1")]}, {"a": [prepared("e2"), prepared("e3")]}
    )
    assert [(each.event_id, each.position, each.duplicate) for each in other.stored["a"]] == [
        ("e2", 2, True),
        ("e3", 4, False),
    ]
    assert [entry.position for entry in one.fresh["a"]] == [1, 2]
    assert [entry.position for entry in one.fresh["b"]] == [3]
    assert [entry.event_id for entry in other.fresh["a"]] == ["e3"]
    assert {(entry.stored_at, entry.wall) for entry in one.fresh["a"]} == {(10.0, 100.0)}
    assert table.position == 5
    [again] = table.commit({"a": [prepared("e1")]})
    assert ([each.position for each in again.stored["a"]], again.fresh, table.position) == ([1], {}, 5)


def test_an_id_is_one_of_its_account_and_of_its_inbox(table):
    assert table.add("a", "e1") + table.add("a", "e1", inbox="") + table.add("b", "e1") == [1, 2, 3]
    assert table.add("a", "e1", inbox="") == [2]


def test_the_newest_position_of_each_account_is_kept_with_when_that_was_stored(table):
    assert last_position(table.connection) == (0, 0.0)
    table.add("a", "e1")
    table.add("b", "e1")
    table.add("a", "e2", "e3")
    assert table.rows("SELECT account, head, head_at FROM accounts") == [("a", 4, 102.0), ("b", 2, 101.0)]
    assert last_position(table.connection) == (4, 102.0)


# --- read


def test_the_first_event_since_a_moment_is_found_whatever_lies_between(table):
    assert first_since(table.connection, 0.0) == 0
    places = [100, 101, 200, 5_000, 5_001, 9_999]
    for place in places:
        table.position = place
        table.add("a", f"e{place}")
    for number in range(len(places)):
        for moment in (99.5, 100.0):
            first = first_since(table.connection, moment + number)
            assert [place for place in places if place >= first] == places[number:]
    assert first_since(table.connection, 105.5) == 10_000
    assert first_since(table.connection, 100.0, "known") == 0


def test_accounts_are_read_page_by_page_with_the_newest_of_their_positions_before_one(table):
    for name in ("b", "a", "c", "a", "b"):
        table.add(name, f"e{table.position}")
    assert read_accounts(table.connection, "", 4, 2) == [AccountRow("a", 4, 103.0, 2), AccountRow("b", 5, 104.0, 1)]
    assert read_accounts(table.connection, "b", 4, 2) == [AccountRow("c", 3, 102.0, 3)]
    assert read_accounts(table.connection, "c", 4, 2) == []
    assert read_accounts(table.connection, "b", 1, 2) == [AccountRow("c", 3, 102.0, 0)]


def test_of_an_account_whose_events_have_left_the_last_of_those_is_known(table):
    table.add("a", "e1", "e2")
    table.add("b", "e3")
    trim_events(table.connection, 101.0, 9, 9)
    assert read_accounts(table.connection, "", 1, 9) == [AccountRow("a", 2, 100.0, 2), AccountRow("b", 3, 101.0, 0)]


def test_events_are_read_page_by_page_in_their_order_as_they_were(table):
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    events = [replace(prepared("e1"), traceparent=trace), prepared("e2", ""), prepared("e3")]
    table.commit({"a": events[:2]}, {"b": events[2:]})
    page = read_events(table.connection, 0, 2)
    assert [(account_id, entry.position, entry.wall) for account_id, entry in page] == [
        ("a", 1, 100.0),
        ("a", 2, 100.0),
    ]
    assert [entry.event for _, entry in page + read_events(table.connection, 2, 9)] == events
    assert read_events(table.connection, 3, 9) == []


def test_events_are_read_at_any_number_of_places(table):
    places = table.add("a", *[f"e{number}" for number in range(600)])
    assert [entry.position for entry in read_at(table.connection, places[1::2])] == places[1::2]


# --- let go


def test_the_oldest_events_go_a_few_at_a_time_and_their_places_and_ids_stay(table):
    for number in range(3):
        table.add("a", f"a{number}")
        table.add("b", f"b{number}", inbox="j")
    assert trim_events(table.connection, 105.0, 9, 3) == 3
    assert table.rows("SELECT account, inbox, event_id, position, stored_at FROM known ORDER BY position") == [
        ("a", "i", "a0", 1, 100.0),
        ("b", "j", "b0", 2, 101.0),
        ("a", "i", "a1", 3, 102.0),
    ]
    assert table.rows("SELECT position FROM events ORDER BY position") == [(4,), (5,), (6,)]
    assert table.rows("SELECT account, dropped_through FROM accounts") == [("a", 3), ("b", 2)]
    assert trim_events(table.connection, 105.0, 9, 9) == 2
    assert trim_events(table.connection, 105.0, 9, 9) == 0
    assert table.rows("SELECT event_id FROM events") == [("b2",)]


def test_no_event_from_a_position_on_goes_however_old_it_is(table):
    table.add("a", "e1", "e2", "e3")
    assert trim_events(table.connection, 1_000.0, 3, 9) == 2
    assert table.rows("SELECT position FROM events") == [(3,)]


def test_what_is_known_of_what_has_left_goes_when_it_is_old_and_each_account_knows_up_to_where(table):
    for number in range(3):
        table.add("a", f"a{number}")
        table.add("b", f"b{number}")
    trim_events(table.connection, 1_000.0, 9, 9)
    assert trim_known(table.connection, 104.0, 3) == 3
    assert table.rows("SELECT account, known_after FROM accounts") == [("a", 3), ("b", 2)]
    assert trim_known(table.connection, 104.0, 3) == 1
    assert trim_known(table.connection, 104.0, 3) == 0
    assert table.rows("SELECT position FROM known ORDER BY position") == [(5,), (6,)]
