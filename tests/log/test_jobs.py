"""What workers are to do, on disk: one worker a job, one job a key, each done or dead, and what is kept for it."""

import sqlite3
from itertools import count
from unittest.mock import Mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from log.test_letters import steps_of

from broker.log import jobbook, jobs
from broker.log.engines.rows import EVENTS
from broker.log.jobbook import KEPT_SECONDS
from broker.log.jobs import JOBS, Intake, Terms, Worker
from broker.log.owed import PAGE, Of
from broker.protocol.messages import Entry, PreparedEvent
from broker.protocol.selection import EVERYTHING, Selection, TypeFilter

ACCOUNT = "acct"
DAY = 86_400.0


class Shop:
    """A file of jobs, and a queue in it."""

    def __init__(self, connection=None, order="thread", **terms):
        self.connection = connection or sqlite3.connect(":memory:", isolation_level=None)
        for room in (EVENTS, JOBS):
            for step in room.steps:
                for statement in step:
                    self.connection.execute(statement)
        self.position = 0
        self.ids = count(1)
        self.queue = self.connection.execute(
            "INSERT INTO queues (account, queue_id, record) VALUES (?, 'q', x'')", (ACCOUNT,)
        ).lastrowid
        self.intake = Intake(self.queue, EVERYTHING, None, order)
        self.terms = Terms(self.queue, **{"max_attempts": 3, "stops": False, **terms})

    def publish(self, thread=None, inbox="in_1", kind="message.received", payload=None, now=0.0):
        entry = self.stored(thread, inbox, kind, payload, now)
        jobs.add(self.connection, [self.intake], [entry], now)
        return entry.event_id

    def stored(self, thread=None, inbox="in_1", kind="message.received", payload=None, now=0.0):
        self.position += 1
        event_id = f"e{self.position}"
        payload = payload or (b'{"message":{"thread_id":"%b"}}' % thread.encode() if thread else b"{}")
        event = PreparedEvent(kind, inbox or None, event_id, "2026-01-01T00:00:00.000Z", payload, None)
        self.connection.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
            (self.position, ACCOUNT, inbox, kind, event_id, event.created_at, now, payload),
        )
        return Entry(self.position, 0.0, kind, inbox, event_id, b"", now, event)

    def lease(self, most=1, now=0.0, seconds=10.0, client_id="w"):
        """What one worker is given: lease ids by event."""
        worker = Worker(1, client_id, most, seconds)
        granted = jobs.grant(self.connection, self.terms, [worker], now, lambda *_: f"l{next(self.ids)}")
        return {lease.event.event_id: lease.lease_id for lease in granted.leases.get(1, [])}

    def ack(self, *lease_ids, now=0.0):
        return jobs.ack(self.connection, {self.queue}, lease_ids, now)

    def nack(self, *lease_ids, due_at=0.0, now=0.0, **fields):
        return jobs.nack(self.connection, {self.queue: self.terms}, lease_ids, lambda _: due_at, now, **fields)

    def states(self):
        return dict(self.connection.execute("SELECT event_id, state FROM jobs ORDER BY position"))

    def trim(self):
        self.connection.execute("DELETE FROM events")


def test_jobs_of_a_list_are_added_in_few_statements():
    shop = Shop(order="none")
    entries = [shop.stored() for _ in range(500)]
    counted = Mock(wraps=shop.connection)
    assert jobs.add(counted, [shop.intake], entries, 0.0) == [shop.queue]
    assert [call[0] for call in counted.method_calls] == ["execute"] * 2
    assert list(shop.states()) == [entry.event_id for entry in entries]


def test_what_is_given_found_by_its_id_and_done_again_costs_the_same_however_many_jobs_there_are():
    shop = Shop(order="inbox")
    costs = []
    for more in (20, 2_000):
        for _ in range(more):
            shop.publish()
        shop.connection.execute(
            "UPDATE jobs SET state = 'acked', line = 0, ended_at = 5.0 WHERE position % 2 AND position > 5"
        )
        works = (
            lambda: jobbook.do_again(shop.connection, Of(shop.queue, ["e1", "e2"]), 1.0),
            lambda: jobbook.do_dead_again(shop.connection, shop.queue, 0.0, 0, 1.0),
            lambda: jobbook.look_up(shop.connection, shop.queue, event_id="e1"),
            lambda: jobbook.shed_dead(shop.connection),
            lambda: jobs.next_due(shop.connection, shop.queue),
            lambda: shop.lease(8, now=-1.0),
        )
        costs.append([steps_of(shop.connection, work) for work in works])
    assert all(many <= few + 5 for few, many in zip(*costs, strict=True)), costs


def test_events_of_one_thread_are_given_one_after_the_other_and_those_of_others_beside_them():
    shop = Shop()
    for thread in ("a", "a", "b", "a"):
        shop.publish(thread)
    first = shop.lease(10)
    assert set(first) == {"e1", "e3"}
    shop.ack(first["e1"])
    assert set(shop.lease(10)) == {"e2"}


def test_events_of_one_thread_that_come_at_once_are_given_one_after_the_other():
    shop = Shop()
    jobs.add(shop.connection, [shop.intake], [shop.stored(thread) for thread in ("a", "b", "a")], 0.0)
    first = shop.lease(10)
    assert set(first) == {"e1", "e2"}
    shop.ack(first["e1"])
    assert set(shop.lease(10)) == {"e3"}


def test_who_is_in_no_thread_stands_in_the_line_of_the_inbox_and_without_order_nobody_stands():
    shop = Shop()
    shop.publish(inbox="in_1"), shop.publish(inbox="in_1"), shop.publish(inbox="in_2")
    assert set(shop.lease(10)) == {"e1", "e3"}
    inboxes = Shop(order="inbox")
    inboxes.publish("a"), inboxes.publish("b")
    assert set(inboxes.lease(10)) == {"e1"}
    free = Shop(order="none")
    free.publish("a"), free.publish("a")
    assert set(free.lease(10)) == {"e1", "e2"}


@pytest.mark.parametrize("payload", [b'{"message":7}', b'{"message":{"thread_id":7}}', b'{"message":null}'])
def test_a_payload_that_is_no_mail_stands_in_the_line_of_its_inbox(payload):
    shop = Shop()
    shop.publish(payload=payload), shop.publish()
    assert set(shop.lease(10)) == {"e1"}


def test_a_retry_that_is_waited_for_keeps_its_thread_shut():
    shop = Shop()
    shop.publish("a"), shop.publish("a")
    shop.nack(shop.lease()["e1"], due_at=50.0)
    assert shop.lease(10, now=49.0) == {}
    assert set(shop.lease(10, now=50.0)) == {"e1"}


def test_after_its_last_attempt_an_event_is_dead_and_its_thread_goes_on():
    shop = Shop()
    shop.publish("a"), shop.publish("a")
    shop.nack(shop.lease()["e1"])
    assert set(shop.lease(seconds=5.0)) == {"e1"}
    last = shop.lease(now=5.0)
    assert shop.nack(last["e1"], now=6.0, reason="no").dead == {shop.queue: ["e1"]}
    assert set(shop.lease(10, now=6.0)) == {"e2"}
    assert jobbook.look_up(shop.connection, shop.queue, state="dead")[0][0].reason == "no"


def test_where_a_dead_event_stops_its_thread_that_goes_on_when_it_was_done_again():
    shop = Shop(stops=True)
    shop.publish("a"), shop.publish("a"), shop.publish("b")
    shop.nack(shop.lease()["e1"], dead=True)
    assert set(shop.lease(10)) == {"e3"}
    assert jobbook.do_again(shop.connection, Of(shop.queue, ["e1"]), 1.0) == (1, None)
    again = shop.lease(10, now=1.0)
    assert set(again) == {"e1"}
    shop.ack(again["e1"], now=2.0)
    assert set(shop.lease(10, now=2.0)) == {"e2"}


def test_very_many_dead_events_are_done_again_page_by_page_whatever_others_died_before():
    shop = Shop(order="inbox")
    for _ in range(2 * PAGE + 10):
        shop.publish()
    for position in range(1, shop.position + 1):
        jobs.end_job(shop.connection, shop.queue, position, "dead", 5.0 if position <= PAGE else 20.0, None)
    after, done = 0, []
    while after is not None:
        count, after = jobbook.do_dead_again(shop.connection, shop.queue, 10.0, after, 100.0)
        done.append(count)
    assert done == [0, PAGE, 10]
    assert set(shop.lease(now=100.0)) == {f"e{PAGE + 1}"}


def test_events_that_are_done_again_by_their_ids_are_looked_for_in_pages():
    shop = Shop(order="none")
    for _ in range(PAGE + 1):
        shop.publish()
    for position in range(1, shop.position + 1):
        jobs.end_job(shop.connection, shop.queue, position, "acked", 5.0, None)
    done, rest = jobbook.do_again(shop.connection, Of(shop.queue, list(shop.states())), 9.0)
    assert (done, rest) == (PAGE, Of(shop.queue, [f"e{PAGE}", f"e{PAGE + 1}"], PAGE))
    assert jobbook.do_again(shop.connection, rest, 9.0) == (1, None)


def test_threads_that_stopped_go_on_when_the_queue_is_to_continue():
    shop = Shop(stops=True)
    shop.publish("a"), shop.publish("a")
    shop.nack(shop.lease()["e1"], dead=True)
    assert jobbook.open_keys(shop.connection, shop.queue, 0) is None
    assert set(shop.lease(10)) == {"e2"}
    assert shop.states()["e1"] == "dead"


def test_a_lease_whose_time_is_over_is_lost_though_nobody_else_was_given_the_event():
    shop = Shop()
    shop.publish()
    lease = shop.lease(seconds=10.0)["e1"]
    assert shop.ack(lease, now=10.0).lost == [lease]
    assert shop.nack(lease, now=10.0).lost == [lease]
    assert jobs.hold(shop.connection, {shop.queue}, [lease], 90.0, 10.0).lost == [lease]
    assert jobs.free(shop.connection, [lease], 10.0).lost == [lease]
    assert shop.states() == {"e1": "leased"}


def test_a_lease_that_was_held_lasts_from_then_on():
    shop = Shop()
    shop.publish()
    lease = shop.lease(seconds=10.0)["e1"]
    assert jobs.hold(shop.connection, {shop.queue}, [lease], 29.0, 9.0).done == [lease]
    assert shop.lease(now=28.0) == {}
    assert shop.ack(lease, now=28.0).done == [lease]


def test_a_lease_that_is_given_back_unused_does_not_count():
    shop = Shop(max_attempts=2)
    shop.publish()
    for _ in range(3):
        assert jobs.free(shop.connection, shop.lease().values(), 1.0).done
    shop.nack(*shop.lease().values())
    assert shop.states() == {"e1": "waiting"}, "it was the first of two attempts"
    shop.nack(*shop.lease().values())
    assert shop.states() == {"e1": "dead"}


def test_leases_of_other_queues_are_lost_to_who_does_not_reach_them():
    shop = Shop()
    shop.publish()
    lease = shop.lease()["e1"]
    assert jobs.ack(shop.connection, {shop.queue + 1}, [lease, "lse_nothing"], 1.0).lost == [lease, "lse_nothing"]
    assert shop.states() == {"e1": "leased"}


def test_the_next_of_a_thread_goes_to_who_did_the_last_if_that_one_waits():
    shop = Shop()
    for thread in ("a", "a"):
        shop.publish(thread)
    shop.ack(shop.lease(client_id="second")["e1"])
    workers = [Worker(1, "first", 1, 10.0), Worker(2, "second", 1, 10.0)]
    granted = jobs.grant(shop.connection, shop.terms, workers, 0.0, lambda *_: "l9")
    assert set(granted.leases) == {2}


def test_workers_are_served_in_turn_as_far_as_they_asked():
    shop = Shop(order="none")
    for _ in range(5):
        shop.publish()
    workers = [Worker(1, "", 2, 10.0), Worker(2, "", 100, 10.0)]
    granted = jobs.grant(shop.connection, shop.terms, workers, 0.0, lambda *_: f"l{next(shop.ids)}")
    assert {ticket: len(leases) for ticket, leases in granted.leases.items()} == {1: 2, 2: 3}
    assert (granted.waiting, granted.next_due) == (0, 10.0)


def test_large_events_are_given_a_few_at_a_time():
    shop = Shop(order="none")
    for _ in range(5):
        shop.publish(payload=b'{"x":"%b"}' % (b"y" * 250_000))
    assert len(shop.lease(100)) == 3


def test_what_a_job_needs_stays_when_its_event_leaves_the_log_and_goes_with_it():
    shop = Shop()
    shop.publish("a"), shop.publish("b")
    shop.ack(shop.lease()["e1"])
    shop.trim()
    assert shop.states() == {"e2": "waiting"}
    lease = shop.lease()["e2"]
    jobbook.forget_contents(shop.connection, 0)
    shop.ack(lease, now=1.0)
    jobbook.forget_contents(shop.connection, 0)
    assert shop.connection.execute("SELECT count(*) FROM job_contents").fetchone() == (0,)


def test_what_nobody_did_in_its_time_is_dead_and_forgotten_in_the_end():
    shop = Shop()
    shop.publish("a"), shop.publish("a")
    assert jobbook.give_up(shop.connection, shop.terms, 1.0, 2.0) == (["e1", "e2"], False)
    assert shop.states() == {"e1": "dead", "e2": "dead"}
    assert not jobbook.forget(shop.connection, 3.0 + KEPT_SECONDS)
    assert shop.states() == {}


def test_a_queue_gets_what_it_asks_for_and_nothing_that_tells_of_queues():
    shop = Shop()
    shop.intake = Intake(shop.queue, Selection(frozenset({"in_1", ""})), TypeFilter(["message.*", "queue.*"]), "none")
    shop.publish(inbox="in_2"), shop.publish(kind="x.y"), shop.publish(), shop.publish(kind="queue.dead", inbox="")
    assert shop.states() == {"e3": "waiting"}


def test_leases_last_a_while_longer_at_least_after_a_start():
    shop = Shop()
    shop.publish()
    lease = shop.lease(seconds=5.0)["e1"]
    assert not jobbook.prolong(shop.connection, 110.0)
    assert jobbook.leased(shop.connection, shop.queue) == {lease: 110.0}
    assert shop.ack(lease, now=109.0).done == [lease]


def test_a_queue_that_is_removed_leaves_nothing():
    shop = Shop()
    shop.publish(), shop.publish()
    while jobbook.remove(shop.connection, shop.queue):
        pass
    for table in ("queues", "jobs", "job_counts"):
        assert shop.connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


# --- all of it, against a dict


class Work(RuleBasedStateMachine):
    """Workers that lease, ack, nack, hold, leave and let their time pass, against what a dict says."""

    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.shop = Shop()
        self.now = 0.0
        self.model = {}
        """By event: thread, state, attempts, due_at, lease, until."""
        self.heads = {}
        """By thread: the event that is given, until it has ended."""

    def _expire(self):
        for job in self.model.values():
            if job["state"] == "leased" and job["until"] <= self.now:
                self._fail(job, self.now)

    def _fail(self, job, due_at):
        job |= {"state": "dead" if job["attempts"] >= 3 else "waiting", "due": due_at, "lease": None}

    def _current(self, lease):
        found = [job for job in self.model.values() if job["lease"] == lease and job["until"] > self.now]
        return found[0] if found else None

    @rule(thread=st.sampled_from(["a", "b", ""]))
    def publish(self, thread):
        event_id = self.shop.publish(thread or None, now=self.now)
        self.model[event_id] = {
            "thread": thread, "state": "waiting", "attempts": 0, "due": self.now, "lease": None, "until": 0.0,
        }  # fmt: skip

    @rule(target=leases, most=st.integers(1, 3), seconds=st.sampled_from([5.0, 20.0]))
    def lease(self, most, seconds):
        given = self.shop.lease(most, self.now, seconds)
        self._expire()
        self.let_move_up()
        due = [
            e for e in self.heads.values() if self.model[e]["state"] == "waiting" and self.model[e]["due"] <= self.now
        ]
        assert set(given) <= set(due)
        assert len(given) == min(most, len(due))
        for event_id, lease in given.items():
            job = self.model[event_id]
            job |= {"state": "leased", "attempts": job["attempts"] + 1, "lease": lease, "until": self.now + seconds}
        return multiple(*given.values())

    @rule(lease=leases)
    def ack(self, lease):
        job = self._current(lease)
        settled = self.shop.ack(lease, now=self.now)
        assert (settled.done, settled.lost) == (([lease], []) if job else ([], [lease]))
        if job:
            job |= {"state": "acked", "lease": None}

    @rule(lease=leases, delay=st.sampled_from([0.0, 7.0]), dead=st.booleans())
    def nack(self, lease, delay, dead):
        job = self._current(lease)
        settled = self.shop.nack(lease, due_at=self.now + delay, now=self.now, dead=dead)
        assert (settled.done, settled.lost) == (([lease], []) if job else ([], [lease]))
        if job and dead:
            job |= {"state": "dead", "lease": None}
        elif job:
            self._fail(job, self.now + delay)

    @rule(lease=leases)
    def hold(self, lease):
        job = self._current(lease)
        settled = jobs.hold(self.shop.connection, {self.shop.queue}, [lease], self.now + 9.0, self.now)
        assert settled.lost == ([] if job else [lease])
        if job:
            job["until"] = self.now + 9.0

    @rule(lease=consumes(leases))
    def leave(self, lease):
        job = self._current(lease)
        settled = jobs.free(self.shop.connection, [lease], self.now)
        assert settled.lost == ([] if job else [lease])
        if job:
            job |= {"state": "waiting", "attempts": job["attempts"] - 1, "lease": None}

    @rule(seconds=st.sampled_from([1.0, 5.0, 8.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def restart(self):
        jobbook.prolong(self.shop.connection, self.now + 10.0)
        for job in self.model.values():
            if job["state"] == "leased":
                job["until"] = max(job["until"], self.now + 10.0)

    @rule()
    def trim(self):
        self.shop.trim()
        jobbook.forget_contents(self.shop.connection, 0)

    @rule()
    def send_dead_again(self):
        jobbook.do_dead_again(self.shop.connection, self.shop.queue, 0.0, 0, self.now)
        for job in self.model.values():
            if job["state"] == "dead":
                job |= {"state": "waiting", "attempts": 0, "due": self.now}

    def let_move_up(self):
        still = {"waiting", "leased"}
        self.heads = {t: e for t, e in self.heads.items() if e in self.model and self.model[e]["state"] in still}
        for event_id, job in self.model.items():
            if job["state"] in still:
                self.heads.setdefault(job["thread"], event_id)

    @invariant()
    def every_event_is_where_the_dict_has_it(self):
        self.let_move_up()
        states = self.shop.states()
        expected = {event_id: job["state"] for event_id, job in self.model.items()}
        gone = expected.keys() - states.keys()  # with their events
        assert {expected[event_id] for event_id in gone} <= {"acked"}
        assert states == {event_id: state for event_id, state in expected.items() if event_id not in gone}

    @invariant()
    def nobody_shares_an_event_or_a_thread(self):
        at_work = self.shop.connection.execute(
            "SELECT key, lease_id FROM jobs WHERE state = 'leased' AND until > ?", (self.now,)
        ).fetchall()
        assert len({key for key, _ in at_work}) == len(at_work) == len({lease for _, lease in at_work})

    def teardown(self):
        for _ in range(4 * len(self.model) + 4):
            self.now += 30.0
            for lease in self.shop.lease(3, self.now).values():
                self.shop.ack(lease, now=self.now)
        assert set(self.shop.states().values()) <= {"acked", "dead"}


TestWork = Work.TestCase
TestWork.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
