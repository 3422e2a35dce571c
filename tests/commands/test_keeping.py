"""What is remembered of commands outlives the process, where there is a log on disk: sent again, not done again."""

import threading
from contextlib import asynccontextmanager

import pytest
import trio
from commanding import ACCOUNT, ALICE, configured
from logs import StorageInStep, at_once
from trio.testing import wait_all_tasks_blocked

from broker import CommandError, RequestError, StorageConfig, open_broker
from broker.commands.keeping import KeptAnswers
from broker.commands.remembered import Outcome, Remembered
from broker.log.database import open_database
from broker.log.engines.answers import ANSWERS
from broker.testing import connect


class Handlers:
    """What did commands, and what they came to."""

    def __init__(self):
        self.contexts = []
        self.outcome = {"sent": True}

    async def __call__(self, params, context):
        self.contexts.append(context)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def handlers():
    return Handlers()


@pytest.fixture
def run(tmp_path, handlers):
    """One run of a broker on the same file."""

    @asynccontextmanager
    async def run():
        config = configured(storage=StorageConfig(path=str(tmp_path / "broker.db")))
        async with open_broker(config) as broker:
            broker.command("send_email")(handlers)
            with trio.fail_after(60):
                yield broker

    return run


def events_of(broker):
    return broker.statistics().published


async def test_a_publish_that_is_sent_again_after_a_restart_gets_the_first_ones_answer(run):
    event = {"type": "x.y", "inbox_id": "in_1", "event_id": "e1", "payload": {}}
    async with run() as broker, connect(broker, ALICE) as client:
        first = await client.ask("publish", {"events": [event, {**event, "event_id": "e2"}]}, request_id="r1")
    async with run() as broker, connect(broker, ALICE) as client:
        again = await client.ask("publish", {"events": [event, {**event, "event_id": "e2"}]}, request_id="r1")
        assert again == first
        assert not any("duplicate" in published for published in again["events"])
        assert events_of(broker) == 0
        with pytest.raises(RequestError) as refused:
            await client.ask("publish", {"events": [event]}, request_id="r1")
        assert refused.value.code == "request_id_reused"


async def test_a_command_that_is_given_again_after_a_restart_is_not_done_again(run, handlers):
    async with run() as broker:
        first = await broker.call(ACCOUNT, "send_email", {"to": "a"}, request_id="r1")
    handlers.outcome = {"sent": "twice"}
    async with run() as broker:
        assert await broker.call(ACCOUNT, "send_email", {"to": "a"}, request_id="r1") == first == {"sent": True}
        assert await broker.call("acct_bob", "send_email", {"to": "a"}, request_id="r1") == {"sent": "twice"}
    assert [context.account_id for context in handlers.contexts] == [ACCOUNT, "acct_bob"]


async def test_a_refusal_of_the_handler_is_kept_and_one_that_may_pass_is_not(run, handlers):
    for number, error in enumerate((CommandError("no_such_mail", "gone"), RequestError("unavailable", "later"))):
        handlers.outcome = error
        for _ in range(2):
            async with run() as broker:
                with pytest.raises(RequestError, match=error.message):
                    await broker.call(ACCOUNT, "send_email", request_id=f"r{number}")
    assert [context.request_id for context in handlers.contexts] == ["r0", "r1", "r1"]
    assert len({context.message_id for context in handlers.contexts[1:]}) == 1, "asked again as the same"


async def test_one_effect_is_one_after_a_restart_too(run, handlers):
    for number in range(2):
        async with run() as broker:
            params = {"to": f"in other words {number}"}
            assert (await broker.call(ACCOUNT, "send_email", params, inbox_id="in_1", once="evt_1"))["sent"]
    assert len(handlers.contexts) == 1


async def test_a_handlers_answer_is_told_after_its_commit(run, handlers):
    opened = threading.Event()
    told = []
    async with run() as broker:

        async def call():
            told.append(await broker.call(ACCOUNT, "send_email", request_id="r1"))

        async with trio.open_nursery() as nursery:
            broker._disk.storage.begin_write(lambda _: opened.wait(60), lambda _: None)
            nursery.start_soon(call)
            await wait_all_tasks_blocked(0.01)
            assert (len(handlers.contexts), told) == (1, [])
            opened.set()
        assert told == [{"sent": True}]


async def test_where_the_answer_cannot_be_kept_it_is_told_all_the_same(run, handlers):
    def limit(connection):
        connection.execute("PRAGMA max_page_count = 1").fetchone()

    handlers.outcome = {"long": "x" * 200_000}
    async with run() as broker:
        await broker._disk.storage.write(limit)
        for _ in range(2):
            assert await broker.call(ACCOUNT, "send_email", request_id="r1") == handlers.outcome
    assert len(handlers.contexts) == 1


def test_what_is_forgotten_is_kept_no_longer(tmp_path):
    database = open_database(str(tmp_path / "broker.db"), "normal", (ANSWERS,))
    storage = StorageInStep(database, 0)
    kept = KeptAnswers(storage, lambda: 0.0, lambda: 0.0)
    remembered = Remembered(10, max_answers=2, owner=("a", ""), forgotten=kept.forget)
    for number in range(4):
        run, _ = remembered.begin(("key", "", f"r{number}"), b"", float(number))
        at_once(kept.keep(run, Outcome(b"{}")))
        remembered.finish(run, Outcome(b"{}"), float(number))
    numbers = "SELECT three FROM answers ORDER BY number"
    assert database.connection.execute(numbers).fetchall() == [("r2",), ("r3",)]
    remembered.forget(12.5, most=10)
    assert database.connection.execute(numbers).fetchall() == [("r3",)]
    storage.close()
