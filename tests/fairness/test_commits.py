"""Nobody waits long at a log on disk: whatever a client asks for, it is done there in steps that are bounded."""

from functools import partial

import pytest
from fairness.commits import Waits
from log.test_lists import is_full
from logs import at_once, prepared

from broker.config import Config, ReplayConfig
from broker.disk import ROOMS, Disk
from broker.fanout.hub import Hub
from broker.log import jobbook, jobs, letterbook, letters, letters_acked
from broker.log.database import open_database
from broker.log.engines.rows import EVENTS
from broker.log.jobs import JOBS, Intake
from broker.log.letters import LETTERS, Route
from broker.log.owed import STRIDE, Of
from broker.log.retention import ReplayBuffers
from broker.protocol.messages import Entry, PreparedEvent
from broker.protocol.selection import EVERYTHING

MANY = 12 * STRIDE
"""Events that one endpoint and one queue have got."""
LONGEST = 200_000
"""Steps of SQLite that somebody may wait for: some ten milliseconds. What this is to find takes ten times as many."""


def in_pages(work):
    """Return what does work in pages until there are no more, each from where the last one ended."""

    def do(storage):
        after = 0
        while after is not None:
            _, after = at_once(storage.write(partial(work, after=after)))

    return do


def named(work):
    """Return what does work for a thousand events, page by page."""

    def do(storage):
        of = Of(1, [f"e{n}" for n in range(1_000)])
        while of is not None:
            _, of = at_once(storage.write(partial(work, of=of)))

    return do


def acknowledge(storage):
    """Let a client acknowledge what was acknowledged before."""
    cover = {"covers": lambda *_: True, "after": 0, "through": MANY // 2}
    work = partial(letters_acked.acknowledge_range, webhooks=[1], client_id="cli", now=1.0, **cover)
    at_once(storage.write(work))


def hurry(storage):
    """Look for letters that wait where there are none."""
    at_once(storage.write(partial(letterbook.hurry, webhook=1, after=0, now=1.0)))


WORKS = {
    "dead letters are sent again": in_pages(
        partial(letterbook.send_dead_again, webhook=1, since=0.0, now=1.0, in_order=True)
    ),
    "dead jobs are done again": in_pages(partial(jobbook.do_dead_again, queue=1, since=0.0, now=1.0)),
    "letters that are named are sent again": named(partial(letterbook.send_again, now=1.0, in_order=True)),
    "jobs that are named are done again": named(partial(jobbook.do_again, now=1.0)),
    "what is acknowledged is looked for": acknowledge,
    "letters that wait are looked for": hurry,
}


def stored(number):
    event = PreparedEvent("m.r", f"in_{number % 50}", f"e{number % 2}", "2026-01-01T00:00:00.000Z", b"{}", None)
    return Entry(number, 0.0, "m.r", f"in_{number % 50}", event.event_id, b"", 0.0, event)


@pytest.fixture
def storage(tmp_path):
    database = open_database(str(tmp_path / "broker.db"), "normal", (EVENTS, LETTERS, JOBS))
    connection = database.connection
    connection.execute("INSERT INTO webhooks (account, webhook_id, record) VALUES ('a', 'wh', x'')")
    connection.execute("INSERT INTO queues (account, queue_id, record) VALUES ('a', 'q', x'')")
    entries = [stored(number) for number in range(1, MANY + 1)]
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO events VALUES (?, 'a', ?, 'm.r', ?, '', 0.0, x'7b7d', NULL)",
        [(entry.position, entry.inbox, entry.event_id) for entry in entries],
    )
    letters.add(connection, [Route(1, "wh", EVERYTHING, None, 0.0, in_order=False)], entries, 0.0)
    jobs.add(connection, [Intake(1, EVERYTHING, None, "none")], entries, 0.0)
    for table in ("letters", "jobs"):
        connection.execute(f"UPDATE {table} SET state = 'acked', ended_at = 1.0")
        connection.execute(f"UPDATE {table} SET state = 'dead' WHERE position > {MANY // 2}")
    connection.execute("COMMIT")
    storage = Waits(database, 0)
    yield storage
    storage.close()


@pytest.mark.parametrize("name", WORKS)
def test_a_neighbour_waits_for_a_step_of_bounded_work_while(name, storage):
    steps = storage.of(lambda: WORKS[name](storage))
    assert 0 < steps < LONGEST


async def test_a_neighbour_waits_for_a_step_of_bounded_work_while_a_long_list_is_written_and_taken_back(tmp_path):
    storage = Waits(open_database(str(tmp_path / "broker.db"), "normal", ROOMS), 0)
    connection = storage._database.connection
    disk, buffers = Disk(Config(), storage), ReplayBuffers(ReplayConfig(), storage.epoch)
    for number in range(1, 5):
        connection.execute("INSERT INTO webhooks (account, webhook_id, record) VALUES ('a', ?, x'')", (f"{number}",))
        connection.execute("INSERT INTO queues (account, queue_id, record) VALUES ('a', ?, x'')", (f"{number}",))
    disk.outbox.route("a", [Route(number, "", EVERYTHING, None, 0.0, in_order=True) for number in range(1, 5)], {})
    disk.backlog.take_in("a", [Intake(number, EVERYTHING, None, "inbox") for number in range(1, 5)])
    engine, told = disk.engine(buffers, Hub(buffers)), []
    at_once(engine.recover())
    events = [prepared(f"e{number}", f"in_{number % 200}") for number in range(4_000)]
    engine._lists.finish = is_full
    steps = storage.of(lambda: engine.begin({"a": events}, told.append))
    assert told[0].code == "unavailable"
    assert 0 < steps < LONGEST
    assert connection.execute("SELECT count(*) FROM letters").fetchone() == (0,)
    storage.close()
