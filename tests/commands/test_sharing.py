"""A command that is sent to two nodes is done once, whichever comes first, and whatever becomes of a node."""

from contextlib import asynccontextmanager

import pytest
import trio
from clients import until
from valkeys import KINDS, server
from wires import wires

from broker import CommandError, RequestError, open_broker
from broker.commands.sharing import SharedAnswers

ACCOUNT = "acct_test"


@pytest.fixture(scope="module", params=KINDS)
def path(request):
    with server(request.param) as running:
        yield running.path


class Node:
    """A broker whose `work` ends when it may, and which counts how often it is done."""

    def __init__(self, broker, wire):
        self.broker, self.wire = broker, wire
        self.done = []
        self.may_end = trio.Event()
        self.raises = None
        broker.commands.shared = SharedAnswers(wire, 300)

        @broker.command("work")
        async def work(params: dict, context) -> dict:
            self.done.append(context)
            await self.may_end.wait()
            if self.raises is not None:
                raise self.raises
            return {"by": wire.node}

    async def call(self, request_id="r1", once=None, inbox_id=None, **params):
        return await self.broker.call(ACCOUNT, "work", params, request_id=request_id, once=once, inbox_id=inbox_id)


@asynccontextmanager
async def two_nodes(path):
    async with wires(path, 2) as (first, second), open_broker() as one, open_broker() as other:
        await first.forget()
        for wire in (first, second):
            await wire.live()
        nodes = Node(one, first), Node(other, second)
        async with trio.open_nursery() as nursery:
            for node in nodes:
                await nursery.start(node.broker.commands.shared.run)
            yield nodes
            nursery.cancel_scope.cancel()


async def test_a_command_that_comes_again_at_another_node_gets_the_first_ones_answer(path):
    async with two_nodes(path) as (one, other):
        one.may_end.set()
        answer = await one.call(number=1)
        assert await other.call(number=1) == answer == {"by": one.wire.node}
        assert (len(one.done), len(other.done)) == (1, 0)


async def test_while_it_is_under_way_it_is_waited_for(path):
    async with two_nodes(path) as (one, other), trio.open_nursery() as nursery:
        answers = []

        async def call(node):
            answers.append(await node.call())

        nursery.start_soon(call, one)
        await until(lambda: one.done)
        nursery.start_soon(call, other)
        with trio.move_on_after(0.1):
            await trio.sleep_forever()
        assert answers == []
        one.may_end.set()
        await until(lambda: len(answers) == 2)
        assert answers[0] == answers[1]
        assert other.done == []


async def test_two_nodes_that_get_it_in_the_same_moment_do_it_once(path):
    async with two_nodes(path) as nodes:
        for node in nodes:
            node.may_end.set()
        for number in range(100):
            async with trio.open_nursery() as nursery:
                for node in nodes if number % 2 else reversed(nodes):
                    nursery.start_soon(node.call, f"r{number}")
        assert sum(len(node.done) for node in nodes) == 100


async def test_other_content_under_the_same_id_is_refused(path):
    async with two_nodes(path) as (one, other):
        one.may_end.set()
        await one.call(number=1)
        with pytest.raises(RequestError) as refused:
            await other.call(number=2)
        assert refused.value.code == "request_id_reused"
        assert other.done == []


async def test_a_refusal_of_the_handler_is_an_answer_too(path):
    async with two_nodes(path) as (one, other):
        one.may_end.set()
        one.raises = CommandError("no_such_mail", "It is not there")
        for node in (one, other):
            with pytest.raises(RequestError) as refused:
                await node.call()
            assert (refused.value.code, refused.value.message) == ("no_such_mail", "It is not there")
        assert other.done == []


async def test_what_failed_is_done_again(path):
    async with two_nodes(path) as (one, other):
        one.may_end.set()
        other.may_end.set()
        one.raises = RequestError("unavailable", "The API is away")
        with pytest.raises(RequestError, match="The API is away"):
            await one.call()
        assert await other.call() == {"by": other.wire.node}


async def test_a_node_that_is_gone_leaves_its_commands_to_who_asks_again_under_the_same_message_id(path):
    async with two_nodes(path) as (one, other), trio.open_nursery() as nursery:
        other.may_end.set()
        nursery.start_soon(one.call)
        await until(lambda: one.done)
        await one.wire.die()
        assert await other.call() == {"by": other.wire.node}
        assert one.done[0].message_id == other.done[0].message_id
        one.may_end.set()


async def test_once_is_done_once_whoever_sends_it_and_told_as_a_duplicate(path):
    async with two_nodes(path) as (one, other):
        one.may_end.set()
        first = await one.call("r1", once="evt_1", inbox_id="in_1", words="these")
        assert await other.call("r2", once="evt_1", inbox_id="in_1", words="others") == first
        assert other.done == []
        kept = await one.wire.ask(b"PTTL", one.wire.key("C", ACCOUNT))
        assert 86_000_000 < kept <= 86_400_000


async def test_without_the_server_only_what_cannot_come_again_is_done(path, monkeypatch):
    monkeypatch.setattr("broker.commands.sharing.PATIENCE_SECONDS", 0.3)
    async with two_nodes(path) as (one, _):
        one.may_end.set()
        one.wire.cut = True
        assert await one.call(request_id=None) == {"by": one.wire.node}
        with pytest.raises(RequestError) as refused:
            await one.call()
        assert refused.value.code == "unavailable"
        assert len(one.done) == 1


async def test_an_answer_that_the_server_could_not_be_told_is_told_later(path, monkeypatch):
    monkeypatch.setattr("broker.commands.sharing.AGAIN_SECONDS", 0.01)
    async with two_nodes(path) as (one, other), trio.open_nursery() as nursery:
        nursery.start_soon(one.call)
        await until(lambda: one.done)
        one.wire.cut = True
        one.may_end.set()
        await until(lambda: one.broker.commands.statistics().under_way == 0)
        one.wire.cut = False
        assert await other.call() == {"by": one.wire.node}


async def test_the_oldest_answers_make_room(path, monkeypatch):
    monkeypatch.setattr("broker.commands.sharing.MAX_ANSWERS", 10)
    async with two_nodes(path) as (one, other):
        one.may_end.set()
        other.may_end.set()
        for number in range(25):
            await one.call(f"r{number}")
        assert await one.wire.ask(b"LLEN", one.wire.key("o", ACCOUNT)) == 10
        assert await one.wire.ask(b"HLEN", one.wire.key("c", ACCOUNT)) == 11  # and what they take
        assert await other.call("r20") == {"by": one.wire.node}
        assert await other.call("r3") == {"by": other.wire.node}
