"""Events whose log is elsewhere: taken in once whatever comes again, kept for as long as somebody waits for them."""

import sqlite3
from collections import Counter
from itertools import chain, count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.log import jobs, kept, letters
from broker.log.engines.rows import EVENTS
from broker.log.jobs import JOBS, Intake, Terms, Worker
from broker.log.kept import Taken
from broker.log.letters import LETTERS, Route, Tried
from broker.protocol.messages import Entry, PreparedEvent
from broker.protocol.selection import Selection

ACCOUNT, OTHER = "acct", "other"
TAKEN_BY_IT = Tried(200, None, 5)
NUMBERS = count()
TIMES = "2026-01-01T00:00:00.000Z"


class Desk:
    """A file with one endpoint and one queue an account; what it is given are events of one inbox or of another."""

    def __init__(self):
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for room in (EVENTS, LETTERS, JOBS):
            for statement in chain.from_iterable(room.steps):
                self.connection.execute(statement)
        self.routes, self.intakes = {}, {}
        wanted = Selection(None, frozenset({"unwanted"}))
        for account_id in (ACCOUNT, OTHER):
            values = (account_id,)
            webhook = self.one("INSERT INTO webhooks (account, webhook_id, record) VALUES (?, 'wh', x'')", values)
            queue = self.one("INSERT INTO queues (account, queue_id, record) VALUES (?, 'q', x'')", values)
            self.routes[account_id] = Route(webhook, "wh", wanted, None, 0.0, in_order=False)
            self.intakes[account_id] = Intake(queue, wanted, None, "none")

    def one(self, statement, values):
        return self.connection.execute(statement, values).lastrowid

    def rows(self, statement, *values):
        return self.connection.execute(statement, values).fetchall()

    def take_in(self, account_id, cursor, events, now=0.0):
        """Take in events of (position, id, inbox); return how many were new."""
        entries = [entry(*event) for event in events]
        add = (
            lambda connection, account, fresh: letters.add(connection, [self.routes[account]], fresh, now),
            lambda connection, account, fresh: jobs.add(connection, [self.intakes[account]], fresh, now),
        )
        taken = Taken(account_id, cursor, entries)
        return kept.take_in(self.connection, taken, self.routes[account_id].wants, add, now)

    def claim(self, account_id, now=0.0):
        """Post what is due; return its ids and payloads."""
        route = self.routes[account_id]
        claimed = letters.claim(self.connection, route.webhook, now, 100).letters
        for letter in claimed:
            letters.settle(self.connection, route.webhook, letter.position, TAKEN_BY_IT, now)
        return [(letter.account_id, letter.event.event_id, letter.event.payload) for letter in claimed]

    def work(self, account_id, now=0.0):
        """Do what is due; return its ids."""
        queue = self.intakes[account_id].queue
        terms, worker = Terms(queue, 5, stops=False), Worker(1, "w", 100, 60.0)
        granted = jobs.grant(self.connection, terms, [worker], now, lambda queue, _: f"lse_{queue}_{next(NUMBERS)}")
        leases = granted.leases.get(1, [])
        jobs.ack(self.connection, [queue], [lease.lease_id for lease in leases], now)
        return [lease.event.event_id for lease in leases]

    def forget(self, before):
        after = 0
        while after is not None:
            after = kept.forget(self.connection, before, after)


def entry(position, event_id, inbox="in_1"):
    event = PreparedEvent("message.received", inbox or None, event_id, TIMES, b'{"n":"%b"}' % event_id.encode(), None)
    return Entry(position, 0.0, event.type, inbox, event_id, b"", 0.0, event)


def test_what_comes_again_is_not_taken_in_again():
    desk = Desk()
    assert desk.take_in(ACCOUNT, "c.2", [(1, "e1"), (2, "e2")]) == 2
    assert desk.take_in(ACCOUNT, "c.3", [(2, "e2"), (3, "e3")]) == 1
    assert desk.take_in(ACCOUNT, "d.11", [(10, "e1"), (11, "e4")]) == 1  # another history of the log
    assert sorted(each[1] for each in desk.claim(ACCOUNT)) == ["e1", "e2", "e3", "e4"]
    assert kept.read_cursors(desk.connection) == {ACCOUNT: "d.11"}


def test_the_same_id_in_another_inbox_or_account_is_another_event_and_so_is_the_same_position():
    desk = Desk()
    assert desk.take_in(ACCOUNT, "c.2", [(1, "e", "in_1"), (2, "e", "in_2")]) == 2
    assert desk.take_in(OTHER, "c.2", [(1, "theirs"), (2, "e", "in_1")]) == 2
    assert [(account, name) for account, name, _ in desk.claim(ACCOUNT)] == [(ACCOUNT, "e")] * 2
    assert [(account, name) for account, name, _ in desk.claim(OTHER)] == [(OTHER, "theirs"), (OTHER, "e")]


def test_what_nobody_wants_is_not_kept_and_the_cursor_goes_on_over_it():
    desk = Desk()
    assert desk.take_in(ACCOUNT, "c.2", [(1, "e1", "unwanted"), (2, "e2", "unwanted")]) == 0
    assert desk.rows("SELECT * FROM kept") == []
    assert kept.read_cursors(desk.connection) == {ACCOUNT: "c.2"}
    kept.forget_cursor(desk.connection, ACCOUNT)
    assert kept.read_cursors(desk.connection) == {}


def test_what_somebody_waits_for_is_kept_however_old_it_is():
    desk = Desk()
    desk.take_in(ACCOUNT, "c.1", [(1, "e1")])
    desk.forget(1e9)
    desk.claim(ACCOUNT)
    desk.forget(1e9)  # its worker has not come yet
    assert desk.work(ACCOUNT) == ["e1"]
    desk.forget(0.0)
    assert desk.rows("SELECT state FROM letters") == [("delivered",)]
    desk.forget(1.0)
    for table in ("kept", "letters", "jobs"):
        assert desk.rows(f"SELECT * FROM {table}") == []


class KeptMachine(RuleBasedStateMachine):
    """Pages of two accounts that overlap, come again in another history, are posted, done and forgotten."""

    def __init__(self):
        super().__init__()
        self.desk = Desk()
        self.logs = {ACCOUNT: [], OTHER: []}
        self.position = 0
        self.through = {ACCOUNT: 0, OTHER: 0}
        self.taken = {ACCOUNT: set(), OTHER: set()}
        self.posted = {ACCOUNT: [], OTHER: []}
        self.done = {ACCOUNT: [], OTHER: []}
        self.now = 0.0

    @rule(account=st.sampled_from((ACCOUNT, OTHER)), number=st.integers(0, 9), inbox=st.sampled_from(("a", "b")))
    def publish(self, account, number, inbox):
        """One event, of an id that may be known: then it is of another history, where that is new."""
        self.position += 1
        self.logs[account].append((self.position, f"e{number}", inbox))

    @rule(account=st.sampled_from((ACCOUNT, OTHER)), again=st.integers(0, 3), size=st.integers(0, 5))
    def take_in(self, account, again, size):
        """A page, from where the last one ended or before."""
        log, start = self.logs[account], max(0, self.through[account] - again)
        page = log[start : start + size]
        self.desk.take_in(account, f"c.{page[-1][0] if page else 0}", page, self.now)
        self.through[account] = max(self.through[account], start + len(page))
        self.taken[account] |= {(event_id, inbox) for _, event_id, inbox in page}

    @rule(account=st.sampled_from((ACCOUNT, OTHER)))
    def post(self, account):
        found = self.desk.claim(account, self.now)
        assert all(whose == account for whose, _, _ in found)
        self.posted[account] += [event_id for _, event_id, _ in found]

    @rule(account=st.sampled_from((ACCOUNT, OTHER)))
    def work(self, account):
        self.done[account] += self.desk.work(account, self.now)

    @rule(seconds=st.integers(0, 100))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def forget_what_is_not_old_enough(self):
        self.desk.forget(-1.0)

    @invariant()
    def each_event_is_owed_once_and_is_posted_and_done_at_most_once(self):
        for account, taken in self.taken.items():
            names = Counter(event_id for event_id, _ in taken)
            owed = {
                f"SELECT event_id, state FROM letters WHERE webhook = {self.desk.routes[account].webhook}": self.posted,
                f"SELECT event_id, state FROM jobs WHERE queue = {self.desk.intakes[account].queue}": self.done,
            }
            for statement, through in owed.items():
                rows = self.desk.rows(statement)
                assert Counter(event_id for event_id, _ in rows) == names
                assert all(state != "dead" for _, state in rows)
                assert not Counter(through[account]) - names


TestKept = KeptMachine.TestCase
TestKept.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
