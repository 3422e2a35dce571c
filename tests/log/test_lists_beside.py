"""Long lists on disk with letters and jobs: others' commits come between their parts, and nobody has any before."""

from functools import partial
from random import Random

import pytest
import trio
import trio.testing
from log.test_lists import KilledError, Lists, fill, free, leave, names_of
from log.test_sqlite import NOTES
from logs import StorageInStep, at_once, prepared

from broker.config import Config
from broker.disk import Disk
from broker.errors import RequestError
from broker.log import jobbook, jobs, letterbook, letters, letters_acked
from broker.log.database import open_database
from broker.log.engines.answers import ANSWERS
from broker.log.engines.lists import PART
from broker.log.engines.rows import EVENTS
from broker.log.jobs import JOBS, Intake, Terms, Worker
from broker.log.letters import LETTERS, Route
from broker.log.owed import Of
from broker.protocol.selection import EVERYTHING

ROOMS = (EVENTS, ANSWERS, NOTES, LETTERS, JOBS)
EACH = 4
"""Rows of an event here: itself, two letters, a job."""
LIST = 5 * PART // EACH
"""Events of five parts."""
LATER = 2e10
"""When all is due."""


class Owing(Lists):
    """A log whose account `a` has two endpoints, one of them in order, and a queue. ``woken`` hears of what is due."""

    rooms = ROOMS

    def __init__(self, path):
        super().__init__(path)
        if not self.rows("SELECT * FROM queues"):
            for webhook_id in ("wh_1", "wh_2"):
                self.rows(f"INSERT INTO webhooks (account, webhook_id, record) VALUES ('a', '{webhook_id}', x'')")
            self.rows("INSERT INTO queues (account, queue_id, record) VALUES ('a', 'q', x'')")
        routes = [
            Route(number, f"wh_{number}", EVERYTHING, None, delay_seconds=0.0, in_order=number == 2)
            for number in (1, 2)
        ]
        self.outbox.route("a", routes, {})
        self.backlog.take_in("a", [Intake(1, EVERYTHING, None, "inbox")])

    def make_engine(self, *_):
        disk, self.woken = Disk(Config(), self.storage), []
        self.outbox, self.backlog = disk.outbox, disk.backlog
        self.outbox.woken = lambda webhook, due_at: self.woken.append(("webhook", webhook))
        self.backlog.woken = lambda queue: self.woken.append(("queue", queue))
        return disk.engine(self.buffers, self.hub)

    def owed(self):
        """How many letters and jobs there are, whoever may have them."""
        return self.rows("SELECT (SELECT count(*) FROM letters), (SELECT count(*) FROM jobs)")[0]

    def seen(self):
        """What workers, endpoints, and those who look have of it now; nothing of that stays."""
        connection = self.database.connection
        connection.execute("SAVEPOINT look")
        worker = Worker(1, "w", 8, 60.0)
        found = (
            [len(letters.claim(connection, number, LATER, 8).letters) for number in (1, 2)],
            letters.next_due(connection, 1) is not None,
            len(jobs.grant(connection, Terms(1, 3, False), [worker], LATER, lambda *_: "lse_1").leases.get(1, [])),
            jobs.next_due(connection, 1) is not None,
            len(letterbook.look_up(connection, 1)[0] + letterbook.look_up(connection, 1, event_id="e0")[0]),
            len(jobbook.look_up(connection, 1)[0] + jobbook.look_up(connection, 1, event_id="e0")[0]),
            letters_acked.acknowledge_ids(connection, [1, 2], "cli", ["e0", "e1"], EVERYTHING, LATER).acked,
        )
        connection.execute("ROLLBACK TO look")
        connection.execute("RELEASE look")
        return found


NOTHING = ([0, 0], False, 0, False, 0, 0, 0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "broker.db"


async def test_others_have_their_commits_between_the_parts_and_nobody_has_a_letter_or_job_before_the_end(path):
    house, seen = Owing(path), []

    def other():
        told = house.begin([f"b{len(seen)}"], "b")
        seen.append((house.owed(), house.seen(), told))

    house.storage.between = [other, other, other]
    [stored] = house.begin(names_of(LIST))
    events = PART // EACH
    assert [owed for owed, _, _ in seen] == [(2 * events * part, events * part) for part in (1, 2, 3)]
    assert [found for _, found, _ in seen[1:]] == [NOTHING] * 2  # at the first one nothing was committed yet
    assert [len(told) for _, _, told in seen] == [1, 1, 1]
    assert len(stored["a"]) == LIST
    assert house.owed() == (2 * LIST, LIST)
    claimed, is_due, leased, may_lease, letters_seen, jobs_seen, _ = house.seen()
    assert (claimed, is_due, leased, may_lease, letters_seen, jobs_seen) == ([8, 1], True, 1, True, 101, 101)
    house.close()


async def test_whoever_is_owed_is_woken_once_at_the_end(path):
    house = Owing(path)
    seen = []

    def other():
        house.begin(["b"], "b")
        seen.append((dict(house.outbox._due), dict(house.backlog._due)))

    house.storage.between = [other, other]
    house.begin(names_of(LIST))
    await trio.testing.wait_all_tasks_blocked()
    assert house.woken == [("webhook", 1), ("webhook", 2), ("queue", 1)]
    assert all(due and queues for due, queues in seen)
    house.close()


def check_nothing_is_left(house, before):
    """Of a list there is nothing any more beside what was there before it."""
    assert house.unfinished == []
    counts = [
        [row for row in house.rows(f"SELECT * FROM {table}") if row[2]] for table in ("letter_counts", "job_counts")
    ]
    assert (house.owed(), *counts) == before
    assert house.rows("SELECT * FROM contents") == house.rows("SELECT * FROM job_contents") == []


def owed_and_counted(house):
    return house.owed(), house.rows("SELECT * FROM letter_counts"), house.rows("SELECT * FROM job_counts")


@pytest.mark.parametrize("parts", [None, 0, 1, 2, 4, 6, 7])
async def test_of_a_list_in_which_the_process_ended_or_while_it_was_taken_back_no_letter_or_job_is_left(path, parts):
    house = Owing(path)
    house.begin(["first"])
    before = owed_and_counted(house)
    seen = []

    def end():
        raise KilledError

    def other():
        house.begin([f"b{len(seen)}"], "b")
        seen.append(house.seen()[0])

    house.storage.between = [lambda: house.begin(["b"], "b"), *[other] * 7]
    if parts is not None:
        house.storage.between += [lambda: fill(house), *[other] * parts]
    house.storage.between.append(end)
    with pytest.raises(KilledError):
        house.begin(names_of(20 * PART))
    assert seen == [[1, 1]] * (7 + (parts or 0))
    house.close(clean=False)
    house = Owing(path)
    check_nothing_is_left(house, before)
    house.close()


@pytest.mark.parametrize("is_left", [False, True])
async def test_of_a_list_that_the_disk_did_not_take_no_letter_or_job_is_left(path, monkeypatch, is_left):
    house = Owing(path)
    house.begin(["first"])
    before = owed_and_counted(house)
    if is_left:
        leave(house, monkeypatch)
        assert house.owed() > before[0]
        assert house.seen()[0] == [1, 1]
        at_once(Disk(Config(), house.storage).take_back())
    else:
        house.storage.between = [partial(house.begin, ["b1"], "b"), lambda: fill(house)]
        house.begin(names_of(20 * PART))
    check_nothing_is_left(house, before)
    house.close()


async def test_what_was_sent_again_behind_a_list_that_is_taken_back_moves_up(path):
    house = Owing(path)
    house.begin(["first"])
    connection = house.database.connection
    [first] = letters.claim(connection, 2, LATER, 8).letters
    letters.settle(connection, 2, first.position, letters.Tried(200, None, 1), LATER)
    seen = []

    def again():
        house.begin(["b1"], "b")
        assert letterbook.send_again(connection, Of(2, ["first"]), 0.0, in_order=True) == (1, None)

    def look():
        house.begin([f"c{len(seen)}"], "b")
        seen.append(house.seen()[0])

    house.storage.between = [lambda: house.begin(["b0"], "b"), again, look, lambda: fill(house), look, look]
    house.begin(names_of(20 * PART))
    assert seen == [[1, 0], [1, 0], [1, 1]]
    assert house.seen()[0] == [1, 1]
    await trio.testing.wait_all_tasks_blocked()
    assert ("webhook", 2) in house.woken[3:]
    house.close()


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_happens_between_each_event_that_was_told_is_owed_and_no_other(seed, path):
    random, told, number = Random(seed), [], 0
    house = Owing(path)

    def publish(account_id, size):
        nonlocal number
        names = [f"e{number + n}" for n in range(size)]
        number += size

        def done(outcome):
            if account_id == "a" and not isinstance(outcome, RequestError):
                told.extend(names)

        house.engine.begin({account_id: [prepared(name) for name in names]}, done)

    def end():
        raise KilledError

    for _ in range(15):
        house.storage.between = [partial(publish, "c", random.choice([1, 5])) for _ in range(random.randrange(5))]
        event = random.randrange(6)
        if event == 0:
            house.storage.between.append(end)
        elif event == 1:
            house.storage.between.append(partial(fill, house))
            house.storage.between += [partial(publish, "c", 1) for _ in range(random.randrange(5))]
            house.storage.between += random.choice([[], [end]])
        is_killed = event == 0
        try:
            publish("a", random.choice([1, 3, LIST, 2 * LIST]))
        except KilledError:
            is_killed = True
        house.storage.between = []
        free(house)
        if is_killed or event == 2:
            house.close(clean=not is_killed)
            house = Owing(path)
        house.hub.take_turns(float("inf"))
        for table, owner in (("letters", "webhook = 1"), ("letters", "webhook = 2"), ("jobs", "queue = 1")):
            owed = house.rows(f"SELECT event_id FROM {table} WHERE {owner} ORDER BY position")
            assert [name for (name,) in owed] == told
    house.close()


async def test_where_the_log_is_elsewhere_by_now_what_a_list_has_left_is_taken_back_too(path):
    house = Owing(path)

    def end():
        raise KilledError

    house.storage.between = [partial(house.begin, ["b1"], "b"), end]
    with pytest.raises(KilledError):
        house.begin(names_of(LIST))
    house.close(clean=False)
    storage = StorageInStep(open_database(str(path), "normal", ROOMS), 0)
    at_once(Disk(Config(), storage).take_back())
    connection = storage._database.connection
    [left] = connection.execute(
        "SELECT (SELECT count(*) FROM letters), (SELECT count(*) FROM jobs), (SELECT count(*) FROM unfinished)"
    ).fetchall()
    assert left == (0, 0, 0)
    storage.close()
