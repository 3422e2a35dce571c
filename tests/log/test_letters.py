"""What is owed to webhook endpoints, on disk: who may have it, in which order, and what became of it."""

import random
import sqlite3
from functools import partial
from itertools import chain
from unittest.mock import Mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.errors import RequestError
from broker.log import letterbook, letters, letters_acked
from broker.log.database import open_database
from broker.log.engines.rows import EVENTS
from broker.log.letters import ASIDE_SECONDS, KEPT_SECONDS, LETTERS, Route, Tried
from broker.log.owed import PAGE, STRIDE, Of
from broker.protocol.messages import Entry, PreparedEvent
from broker.protocol.selection import EVERYTHING, Selection, TypeFilter

ACCOUNT = "acct"
TAKEN = Tried(200, None, 5)
HOUR = 3600.0


class Desk:
    """A file of letters, and one endpoint with a number of 1, 2, …"""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.position = 0

    def endpoint(self, name="wh", **fields) -> Route:
        fields = {"selection": EVERYTHING, "types": None, "delay_seconds": 0.0, "in_order": False} | fields
        number = self.connection.execute(
            "INSERT INTO webhooks (account, webhook_id, record) VALUES (?, ?, x'')", (ACCOUNT, name)
        ).lastrowid
        return Route(number, name, **fields)

    def entries(self, inbox="in_1", kind="message.received", event_id=None, now=0.0, payload=b"{}"):
        """One event, stored, as a log takes it."""
        self.position += 1
        event_id = event_id or f"evt_{self.position}"
        event = PreparedEvent(kind, inbox or None, event_id, "2026-01-01T00:00:00.000Z", payload, None)
        self.connection.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
            (self.position, ACCOUNT, inbox, kind, event_id, event.created_at, now, payload),
        )
        return [Entry(self.position, 0.0, kind, inbox, event_id, b"", now, event)]

    def publish(self, *routes, now=0.0, **fields):
        return letters.add(self.connection, routes, self.entries(now=now, **fields), now)

    def trim(self, through=None):
        self.connection.execute("DELETE FROM events WHERE position <= ?", (through or self.position,))

    def claim(self, route, now=0.0, most=8):
        return [letter.position for letter in letters.claim(self.connection, route.webhook, now, most).letters]

    def take(self, route, position, now=0.0):
        return letters.settle(self.connection, route.webhook, position, TAKEN, now)

    def fail(self, route, position, due_at, now=0.0):
        return letters.settle(self.connection, route.webhook, position, Tried(500, "status", 5, due_at), now)

    def ack(self, route, through, now=0.0, covers=lambda *_: True, after=0):
        return letters_acked.acknowledge_range(self.connection, [route.webhook], "cli", covers, after, through, now)

    def states(self, route):
        seen, _ = letterbook.look_up(self.connection, route.webhook, limit=1000)
        return {each.position: each.state for each in reversed(seen)}

    def next_due(self, route):
        return letters.next_due(self.connection, route.webhook)


@pytest.fixture
def desk(tmp_path):
    database = open_database(str(tmp_path / "log.db"), "normal", [EVENTS, LETTERS])
    yield Desk(database.connection)
    database.close(clean=True)


# --- who gets what


def test_letters_of_a_list_are_added_in_few_statements_and_so_that_each_endpoint_has_its_own(desk):
    routes = [desk.endpoint(f"wh_{n}", selection=Selection(frozenset({f"in_{n % 2}"}))) for n in range(16)]
    entries = [entry for n in range(50) for entry in desk.entries(f"in_{n % 2}")]
    counted = Mock(wraps=desk.connection)
    letters.add(counted, routes, entries, 0.0)
    assert [call[0] for call in counted.method_calls] == ["execute"] * 2
    for number, route in enumerate(routes):
        assert list(desk.states(route)) == [entry.position for entry in entries if entry.inbox == f"in_{number % 2}"]


def steps_of(connection, work):
    """How many steps SQLite takes for something, by tens."""
    steps = 0

    def count():
        nonlocal steps
        steps += 1

    connection.set_progress_handler(count, 10)
    work()
    connection.set_progress_handler(None, 0)
    return steps


def test_what_is_claimed_found_by_its_id_and_sent_again_costs_the_same_however_many_letters_there_are(desk):
    route = desk.endpoint(in_order=True)
    costs = []
    for count in (20, 2_000):
        for _ in range(count):
            desk.publish(route)
        desk.connection.execute(
            "UPDATE letters SET state = 'acked', line = 0, ended_at = 5.0 WHERE position % 2 AND position > 5"
        )
        works = (
            lambda: letterbook.send_again(desk.connection, Of(route.webhook, ["evt_1", "evt_2"]), 1.0, in_order=True),
            lambda: letterbook.send_dead_again(desk.connection, route.webhook, 0.0, 0, 1.0, in_order=True),
            lambda: letterbook.look_up(desk.connection, route.webhook, event_id="evt_1"),
            lambda: letterbook.shed_dead(desk.connection),
            lambda: letters.next_due(desk.connection, route.webhook),
            lambda: letters.claim(desk.connection, route.webhook, -1.0, 8),
            lambda: letters_acked.hold_ids(desk.connection, [route.webhook], ["evt_5"], EVERYTHING, 0.0),
        )
        costs.append([steps_of(desk.connection, work) for work in works])
    assert all(many <= few + 5 for few, many in zip(*costs, strict=True)), costs


def test_an_event_is_for_the_endpoints_that_want_it(desk):
    everything = desk.endpoint("all")
    inbox = desk.endpoint("inbox", selection=Selection(frozenset({"in_1"})))
    kind = desk.endpoint("kind", types=TypeFilter(["message.*"]))
    routes = (everything, inbox, kind)
    assert desk.publish(*routes) == {everything.webhook: 0, inbox.webhook: 0, kind.webhook: 0}
    assert desk.publish(*routes, inbox="in_2").keys() == {everything.webhook, kind.webhook}
    assert desk.publish(*routes, inbox="", kind="account.upgraded").keys() == {everything.webhook}


def test_an_endpoint_is_not_told_of_its_own_failure_but_the_others_are(desk):
    one, other = desk.endpoint("wh_1"), desk.endpoint("wh_2")
    payload = b'{"webhook_id":"wh_1","url":"https://a"}'
    due = desk.publish(one, other, inbox="", kind="webhook.failing", payload=payload)
    assert due.keys() == {other.webhook}


def test_a_letter_brings_its_event(desk):
    route = desk.endpoint()
    desk.publish(route, payload=b'{"a":1}')
    [letter] = letters.claim(desk.connection, route.webhook, 0.0, 8).letters
    assert (letter.account_id, letter.attempts, letter.event.inbox_id) == (ACCOUNT, 1, "in_1")
    assert (letter.event.type, letter.event.event_id, letter.event.payload) == ("message.received", "evt_1", b'{"a":1}')


def test_a_letter_whose_event_has_left_the_log_still_names_its_trace(desk):
    route = desk.endpoint()
    desk.publish(route)
    desk.connection.execute("UPDATE events SET traceparent = 'the trace'")
    desk.trim()
    [letter] = letters.claim(desk.connection, route.webhook, 0.0, 8).letters
    assert letter.event.traceparent == "the trace"


# --- when


def test_a_letter_is_claimed_when_it_is_due_and_by_one_only(desk):
    route = desk.endpoint(delay_seconds=30.0)
    assert desk.publish(route, now=100.0) == {route.webhook: 130.0}
    assert desk.claim(route, 129.9) == []
    assert desk.next_due(route) == 130.0
    assert desk.claim(route, 130.0) == [1]
    assert desk.claim(route, 130.0) == []
    assert desk.next_due(route) is None


def test_what_is_due_first_is_claimed_first_and_no_more_than_asked_for(desk):
    route = desk.endpoint()
    for now in (3.0, 1.0, 2.0):
        desk.publish(route, now=now)
    assert desk.claim(route, 5.0, most=2) == [2, 3]
    assert desk.next_due(route) == 3.0


def test_what_failed_waits_for_its_next_attempt_and_without_one_is_dead(desk):
    route = desk.endpoint()
    desk.publish(route)
    for due_at in (5.0, 35.0):
        assert desk.claim(route, 100.0) == [1]
        assert desk.fail(route, 1, due_at) == "waiting"
        assert desk.next_due(route) == due_at
    assert desk.claim(route, 100.0) == [1]
    assert desk.fail(route, 1, None) == "dead"
    [seen], _ = letterbook.look_up(desk.connection, route.webhook)
    assert (seen.state, seen.attempts, seen.status, seen.error, seen.duration_ms) == ("dead", 3, 500, "status", 5)


def test_an_attempt_that_was_not_made_does_not_count(desk):
    route = desk.endpoint()
    desk.publish(route)
    assert desk.claim(route) == [1]
    letters.give_back(desk.connection, route.webhook, 1, 7.0)
    [letter] = letters.claim(desk.connection, route.webhook, 7.0, 8).letters
    assert letter.attempts == 1


def test_what_was_being_sent_when_the_process_ended_waits_again(desk):
    route = desk.endpoint()
    for _ in range(PAGE + 3):
        desk.publish(route)
    assert len(desk.claim(route, most=1000)) == PAGE + 3
    desk.ack(route, 1)
    while letterbook.recover(desk.connection, 9.0):
        pass
    states = desk.states(route)
    assert states.pop(1) == "acked"
    assert set(states.values()) == {"waiting"}
    assert desk.next_due(route) == 9.0


# --- in line


def test_in_order_one_of_an_inbox_is_sent_at_a_time(desk):
    route = desk.endpoint(in_order=True)
    for inbox in ("a", "a", "b", "a", "b"):
        desk.publish(route, inbox=inbox)
    assert desk.claim(route) == [1, 3]
    assert desk.claim(route) == []
    desk.take(route, 3)
    assert desk.claim(route) == [5]
    desk.take(route, 1)
    assert desk.claim(route) == [2]


def test_in_order_a_head_that_failed_keeps_the_others_waiting(desk):
    route = desk.endpoint(in_order=True)
    desk.publish(route)
    desk.publish(route)
    desk.claim(route)
    desk.fail(route, 1, 5.0)
    assert desk.claim(route, 4.0) == []
    assert desk.next_due(route) == 5.0
    assert desk.claim(route, 5.0) == [1]


def test_in_order_a_head_that_has_failed_for_an_hour_steps_aside(desk):
    route = desk.endpoint(in_order=True)
    for _ in range(3):
        desk.publish(route)
    desk.claim(route)
    desk.fail(route, 1, 10.0, now=0.0)
    desk.claim(route, 10.0)
    desk.fail(route, 1, ASIDE_SECONDS, now=ASIDE_SECONDS - 1)
    assert desk.claim(route, ASIDE_SECONDS - 0.5) == []
    desk.claim(route, ASIDE_SECONDS)
    desk.fail(route, 1, 2 * HOUR, now=ASIDE_SECONDS)
    assert desk.claim(route, ASIDE_SECONDS) == [2]
    assert desk.claim(route, 2 * HOUR) == [1]
    desk.take(route, 1)
    assert desk.claim(route, 2 * HOUR) == []
    desk.take(route, 2)
    assert desk.claim(route, 2 * HOUR) == [3]


@pytest.mark.parametrize("how", ["taken", "dead", "acked while it waits", "acked while it is sent", "expired"])
def test_in_order_however_a_head_ends_the_next_one_moves_up(desk, how):
    route = desk.endpoint(in_order=True)
    desk.publish(route)
    desk.publish(route)
    if how == "acked while it waits":
        desk.ack(route, 1)
    elif how == "expired":
        assert letterbook.expire(desk.connection, 0.5, 1.0) == (2, False)
        desk.publish(route)
        assert desk.claim(route) == [3]
        return
    else:
        desk.claim(route)
        if how == "taken":
            desk.take(route, 1)
        elif how == "dead":
            desk.fail(route, 1, None)
        else:
            desk.ack(route, 1)
            desk.fail(route, 1, 5.0)
    assert desk.claim(route) == [2]


def test_an_endpoint_may_change_its_mind_about_order(desk):
    route = desk.endpoint(in_order=True)
    for _ in range(PAGE + 2):
        desk.publish(route)
    after = 0
    while after is not None:
        after = letterbook.put_in_line(desk.connection, route.webhook, after, in_order=False)
    assert len(desk.claim(route, most=5)) == 5
    after = 0
    while after is not None:
        after = letterbook.put_in_line(desk.connection, route.webhook, after, in_order=True)
    assert desk.claim(route) == [6]


# --- acknowledgements


def test_an_acknowledgement_before_the_post_wins_and_after_it_is_told_so(desk):
    route = desk.endpoint()
    for _ in range(4):
        desk.publish(route)
    assert desk.claim(route, most=2) == [1, 2]
    desk.take(route, 1)
    told = desk.ack(route, 3)
    assert (told.acked, told.claimed, told.reached) == (1, ["evt_1", "evt_2"], 3)
    assert desk.claim(route) == [4]
    assert desk.fail(route, 2, 5.0) == "acked"
    assert desk.states(route) == {1: "delivered", 2: "acked", 3: "acked", 4: "sending"}
    again = desk.ack(route, 3)
    assert (again.acked, again.claimed) == (0, [])


def test_an_acknowledgement_is_for_what_it_covers(desk):
    route = desk.endpoint()
    for inbox in ("a", "b", "a"):
        desk.publish(route, inbox=inbox)
    told = desk.ack(route, 3, covers=lambda position, inbox, kind: inbox == "a" and position > 1)
    assert told.acked == 1
    assert desk.claim(route) == [1, 2]


def test_a_long_acknowledgement_is_done_in_pages(desk):
    route = desk.endpoint()
    for _ in range(2 * PAGE + 1):
        desk.publish(route)
    after, pages, acked = 0, 0, 0
    while after < desk.position:
        told = desk.ack(route, desk.position, after=after)
        after, pages, acked = told.reached, pages + 1, acked + told.acked
    assert (pages, acked) == (3, 2 * PAGE + 1)


def test_events_are_acknowledged_by_their_ids_in_the_inboxes_that_are_in_reach(desk):
    route = desk.endpoint()
    desk.publish(route, inbox="a", event_id="evt_x")
    desk.publish(route, inbox="b", event_id="evt_x")
    told = letters_acked.acknowledge_ids(
        desk.connection, [route.webhook], "cli", ["evt_x", "evt_y"], Selection(frozenset("b")), 1.0
    )
    assert (told.acked, told.claimed) == (1, [])
    assert desk.claim(route) == [1]
    [seen, _], _ = letterbook.look_up(desk.connection, route.webhook)
    assert seen.acked_by == "cli"


def test_what_a_client_holds_waits_and_what_is_begun_does_not(desk):
    route = desk.endpoint(delay_seconds=30.0)
    desk.publish(route)
    desk.publish(route, now=-30.0)
    assert desk.claim(route) == [2]
    told = letters_acked.hold_ids(desk.connection, [route.webhook], ["evt_1", "evt_2"], EVERYTHING, 600.0)
    assert (told.acked, told.claimed) == (1, ["evt_2"])
    letters_acked.hold_ids(desk.connection, [route.webhook], ["evt_1"], EVERYTHING, 60.0)
    assert desk.next_due(route) == 600.0


def test_an_id_that_too_many_inboxes_have_is_for_one_that_is_named(desk, monkeypatch):
    monkeypatch.setattr(letters_acked, "MAX_OF_IDS", 3)
    route = desk.endpoint(delay_seconds=30.0)
    for number in range(4):
        desk.publish(route, inbox=f"in_{number}", event_id="evt")
    ask = partial(letters_acked.acknowledge_ids, desk.connection, [route.webhook], "cli", ["evt"], now=0.0)
    with pytest.raises(RequestError, match="`inbox_id`"):
        ask(reach=EVERYTHING)
    assert ask(reach=Selection(frozenset({"in_2"}))).acked == 1
    assert desk.states(route) == {1: "waiting", 2: "waiting", 3: "acked", 4: "waiting"}


# --- in the long run


def test_what_an_open_or_dead_letter_needs_stays_when_its_event_leaves_the_log(desk):
    route = desk.endpoint()
    for _ in range(5):
        desk.publish(route)
    desk.claim(route, most=4)
    desk.take(route, 1)
    desk.ack(route, 2)
    desk.fail(route, 2, 5.0)
    desk.fail(route, 3, None)
    desk.trim()
    assert desk.states(route) == {3: "dead", 4: "sending", 5: "waiting"}
    assert desk.claim(route) == [5]
    assert letterbook.send_again(desk.connection, Of(route.webhook, ["evt_3"]), 9.0, in_order=False) == (1, None)
    [letter] = letters.claim(desk.connection, route.webhook, 9.0, 8).letters
    assert (letter.position, letter.attempts, letter.born_at, letter.event.payload) == (3, 1, 9.0, b"{}")
    for position in (3, 4, 5):
        desk.take(route, position)
    assert letterbook.forget_contents(desk.connection, 0) is None
    assert desk.connection.execute("SELECT count(*) FROM contents").fetchone() == (0,)
    assert letterbook.send_again(desk.connection, Of(route.webhook, ["evt_3"]), 9.0, in_order=False) == (0, None)


def test_dead_letters_are_sent_again_on_demand_those_that_died_since_a_time(desk):
    route = desk.endpoint(in_order=True)
    for inbox in "aab":
        desk.publish(route, inbox=inbox)
    for _ in range(2):
        for position in desk.claim(route):
            desk.fail(route, position, None, now=float(position * 10))
    assert set(desk.states(route).values()) == {"dead"}
    sent = letterbook.send_dead_again(desk.connection, route.webhook, 15.0, 0, 100.0, in_order=True)
    assert sent == (2, None)
    assert letterbook.send_dead_again(desk.connection, route.webhook, 0.0, 0, 100.0, in_order=True) == (1, None)
    assert desk.claim(route, 100.0) == [2, 3]
    desk.take(route, 2)
    assert desk.claim(route, 100.0) == [1]


def test_very_many_dead_letters_are_sent_again_page_by_page_in_their_order_whatever_others_died_before(desk):
    route = desk.endpoint(in_order=True)
    for _ in range(2 * PAGE + 10):
        desk.publish(route)
    for position in range(1, desk.position + 1):
        letters.end(desk.connection, route.webhook, position, "dead", 5.0 if position <= PAGE else 20.0)
    after, sent = 0, []
    while after is not None:
        count, after = letterbook.send_dead_again(desk.connection, route.webhook, 10.0, after, 100.0, in_order=True)
        sent.append(count)
    assert sent == [0, PAGE, 10]
    assert desk.claim(route, 100.0) == [PAGE + 1]


def test_an_event_whose_id_very_many_inboxes_have_is_sent_again_in_pages_and_looked_up_so(desk):
    route = desk.endpoint()
    for name, inboxes in (("evt_a", 2), ("evt_x", 2 * PAGE), ("evt_z", 1)):
        for number in range(inboxes):
            desk.publish(route, inbox=f"in_{number}", event_id=name)
    for position in range(1, desk.position + 1):
        letters.end(desk.connection, route.webhook, position, "delivered", 5.0)
    of, sent = Of(route.webhook, ["evt_a", "evt_none", "evt_x", "evt_z"]), []
    while of is not None:
        count, of = letterbook.send_again(desk.connection, of, 9.0, in_order=False)
        sent.append(count)
    assert sent == [PAGE - 1, PAGE, 4]
    assert set(desk.states(route).values()) == {"waiting"}
    before, found = None, []
    while before is not None or not found:
        seen, before = letterbook.look_up(
            desk.connection, route.webhook, event_id="evt_x", before=before, limit=PAGE + 1
        )
        found.append(len(seen))
    assert found == [PAGE + 1, PAGE - 1]


def test_a_page_of_ids_that_nobody_has_is_a_page_too(desk):
    route = desk.endpoint()
    desk.publish(route, event_id="evt_last")
    letters.end(desk.connection, route.webhook, 1, "delivered", 5.0)
    of = Of(route.webhook, [*(f"evt_{n}" for n in range(PAGE)), "evt_last"])
    sent, rest = letterbook.send_again(desk.connection, of, 9.0, in_order=False)
    assert (sent, rest) == (0, Of(route.webhook, ["evt_last"]))
    assert letterbook.send_again(desk.connection, rest, 9.0, in_order=False) == (1, None)


def test_what_waits_and_what_a_client_acknowledges_is_found_in_steps_behind_very_many_that_have_ended(desk):
    route = desk.endpoint(in_order=True)
    letters.add(desk.connection, [route], [entry for _ in range(STRIDE + 2) for entry in desk.entries()], 0.0)
    desk.connection.execute("UPDATE letters SET state = 'delivered', acked_at = 0, line = 0")
    desk.publish(route)
    webhook, last = route.webhook, desk.position
    assert letterbook.put_in_line(desk.connection, webhook, 0, in_order=False) == STRIDE
    assert letterbook.put_in_line(desk.connection, webhook, STRIDE, in_order=False) is None
    assert letterbook.hurry(desk.connection, webhook, 0, 1.0) == STRIDE
    told = desk.ack(route, last)
    assert (told.acked, told.reached) == (0, STRIDE)
    told = desk.ack(route, last, after=STRIDE)
    assert (told.acked, told.reached) == (1, last)


def test_letters_that_nobody_took_in_their_time_are_dead_and_later_forgotten(desk):
    route = desk.endpoint()
    desk.publish(route, now=10.0)
    desk.publish(route, now=20.0)
    assert letterbook.oldest_waiting(desk.connection) == 10.0
    assert letterbook.expire(desk.connection, 15.0, 30.0) == (1, False)
    assert desk.states(route) == {1: "dead", 2: "waiting"}
    assert not letterbook.forget(desk.connection, 30.0 + KEPT_SECONDS)
    assert desk.states(route) == {1: "dead", 2: "waiting"}
    letterbook.forget(desk.connection, 31.0 + KEPT_SECONDS)
    assert desk.states(route) == {2: "waiting"}


def test_for_want_of_room_dead_letters_go_the_oldest_first(desk):
    route = desk.endpoint()
    for _ in range(PAGE + 2):
        desk.publish(route)
    for position in reversed(desk.claim(route, most=1000)):
        if position > 1:
            desk.fail(route, position, None, now=float(1000 - position))
    assert letterbook.shed_dead(desk.connection) == PAGE
    assert desk.states(route) == {1: "sending", 2: "dead"}
    assert letterbook.shed_dead(desk.connection) == 1
    assert letterbook.shed_dead(desk.connection) == 0


@pytest.mark.parametrize("in_order", [False, True])
def test_for_want_of_room_the_endpoint_that_is_owed_most_loses_what_was_due_first(desk, in_order):
    small, great = desk.endpoint("small"), desk.endpoint("great", in_order=in_order)
    desk.publish(small)
    for _ in range(PAGE + 3):
        desk.publish(great, now=float(desk.position))
    assert letterbook.shed_waiting(desk.connection) == PAGE
    assert len(desk.states(small)) == 1
    assert list(desk.states(great)) == [PAGE + 2, PAGE + 3, PAGE + 4]
    assert desk.claim(great, 1e9, most=1) == [PAGE + 2]
    assert letterbook.shed_waiting(desk.connection) == (0 if in_order else 2)


def test_letters_are_looked_up_page_by_page_the_newest_first(desk, monkeypatch):
    route = desk.endpoint()
    for number in range(10):
        desk.publish(route, event_id=f"evt_{number}")
    assert desk.claim(route, most=3) == [1, 2, 3]
    desk.fail(route, 2, None)

    def pages(**which):
        before, found = None, []
        while True:
            seen, before = letterbook.look_up(desk.connection, route.webhook, before=before, **which)
            found.append([each.position for each in seen])
            if before is None:
                return found

    assert pages(limit=4) == [[10, 9, 8, 7], [6, 5, 4, 3], [2, 1]]
    assert pages(limit=1, state="dead")[0] == [2]
    monkeypatch.setattr(letterbook, "WALK", 4)
    assert pages(state="dead") == [[], [], [2]]
    assert pages(event_id="evt_4") == [[5]]
    assert pages(event_id="evt_4", state="dead") == [[]]


def test_letters_are_counted_by_state(desk):
    one, other = desk.endpoint("one"), desk.endpoint("other")
    for _ in range(3):
        desk.publish(one, other)
    desk.claim(one, most=2)
    desk.take(one, 1)
    assert letterbook.counts(desk.connection, one.webhook) == {
        "waiting": 1, "sending": 1, "delivered": 1
    }  # fmt: skip
    assert letterbook.counts(desk.connection)["waiting"] == 4


def test_of_an_endpoint_that_is_removed_nothing_is_left(desk):
    one, other = desk.endpoint("one"), desk.endpoint("other")
    for _ in range(PAGE + 1):
        desk.publish(one, other)
    assert letterbook.remove(desk.connection, one.webhook)
    assert not letterbook.remove(desk.connection, one.webhook)
    assert not desk.states(one)
    assert len(desk.states(other)) == PAGE + 1
    assert desk.connection.execute("SELECT webhook_id FROM webhooks").fetchall() == [("other",)]


# --- whatever happens


class LettersMachine(RuleBasedStateMachine):
    """Publishes, claims, failures, acknowledgements, restarts and trims in any order."""

    def __init__(self):
        super().__init__()
        connection = sqlite3.connect(":memory:", isolation_level=None)
        for room in (EVENTS, LETTERS):
            for statement in chain.from_iterable(room.steps):
                connection.execute(statement)
        self.desk = Desk(connection)
        self.routes = [self.desk.endpoint("none"), self.desk.endpoint("inbox", in_order=True)]
        self.now = 0.0
        self.sending = {}
        self.posted = {}
        self.told_acked = set()
        self.unacked_end = set()

    @rule(inbox=st.sampled_from("ab"))
    def publish(self, inbox):
        self.desk.publish(*self.routes, inbox=inbox, now=self.now)

    @rule(which=st.sampled_from([0, 1]), most=st.integers(1, 4))
    def claim(self, which, most):
        route = self.routes[which]
        for letter in letters.claim(self.desk.connection, route.webhook, self.now, most).letters:
            key = (route.webhook, letter.position)
            assert key not in self.sending
            assert key not in self.told_acked
            if which == 1:
                inboxes = [inbox for (number, _), inbox in self.sending.items() if number == route.webhook]
                assert letter.event.inbox_id not in inboxes
            self.sending[key] = letter.event.inbox_id
            self.posted[key] = self.posted.get(key, 0) + 1

    @precondition(lambda self: self.sending)
    @rule(data=st.data(), outcome=st.sampled_from(["taken", "later", "never"]))
    def settle(self, data, outcome):
        key = data.draw(st.sampled_from(sorted(self.sending)))
        del self.sending[key]
        route = self.routes[key[0] - 1]
        if outcome == "taken":
            self.desk.take(route, key[1], self.now)
        else:
            self.desk.fail(route, key[1], self.now + 5 if outcome == "later" else None, self.now)

    @rule(which=st.sampled_from([0, 1]), data=st.data())
    def acknowledge(self, which, data):
        route = self.routes[which]
        before = self.desk.states(route)
        through = data.draw(st.integers(0, self.desk.position))
        self.desk.ack(route, through, self.now)
        for position, state in before.items():
            if position <= through and state == "waiting":
                self.told_acked.add((route.webhook, position))

    @rule()
    def restart(self):
        self.sending.clear()
        while letterbook.recover(self.desk.connection, self.now):
            pass

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def later(self, seconds):
        self.now += seconds

    @rule()
    def trim(self):
        self.desk.trim()

    @invariant()
    def counts_are_right_and_no_line_is_stuck(self):
        rows = self.desk.connection.execute("SELECT state, count(*) FROM letters GROUP BY state").fetchall()
        counted = {state: n for state, n in letterbook.counts(self.desk.connection).items() if n}
        assert counted == dict(rows)
        stuck = self.desk.connection.execute(
            "SELECT count(*) FROM letters b WHERE line = 2 AND state IN ('waiting', 'sending') AND NOT EXISTS"
            " (SELECT 1 FROM letters h WHERE h.webhook = b.webhook AND h.inbox = b.inbox AND h.line = 1"
            " AND h.state IN ('waiting', 'sending'))"
        ).fetchone()
        assert stuck == (0,)

    def teardown(self):
        self.desk.connection.close()


LettersMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLetters = LettersMachine.TestCase


def test_an_acknowledgement_and_a_claim_never_both_win(desk):
    route = desk.endpoint()
    chance = random.Random(7)
    for _ in range(300):
        desk.publish(route)
    claimed, acked = set(), 0
    while desk.next_due(route) is not None:
        if chance.random() < 0.5:
            claimed |= set(desk.claim(route, most=1))
        else:
            position = chance.randint(1, 300)
            won = desk.ack(route, position, after=position - 1).acked
            assert not (won and position in claimed)
            acked += won
    assert acked + len(claimed) == 300
