"""What a client acknowledged at one node is known at each, and is as new as the server has it."""

from contextlib import asynccontextmanager

import pytest
import trio
from clients import until
from valkeys import KINDS, server
from wires import wires

from broker.errors import RequestError
from broker.fanout.acknowledged import Acknowledged
from broker.fanout.shared import SharedPositions

ACCOUNT = "acct_test"


@pytest.fixture(scope="module", params=KINDS)
def path(request):
    with server(request.param) as running:
        yield running.path


class Node:
    def __init__(self, wire):
        self.wire = wire
        self.acknowledged = Acknowledged()
        self.positions = SharedPositions(self.acknowledged, wire)

    def client(self, client_id="agent", account_id=ACCOUNT):
        return self.acknowledged.client(account_id, "key", client_id)

    async def recorded(self, client):
        told = []
        self.positions.when_recorded(client, told.append)
        await until(lambda: told)
        return told[0]

    async def looked_up(self, client_id="agent"):
        client = self.client(client_id)
        await self.positions.look_up(client)
        return client


@asynccontextmanager
async def two_nodes(path):
    async with wires(path, 2) as made, trio.open_nursery() as nursery:
        await made[0].forget()
        nodes = [Node(wire) for wire in made]
        for node in nodes:
            await nursery.start(node.positions.run)
        yield nodes
        nursery.cancel_scope.cancel()


async def test_a_client_is_at_each_node_where_it_acknowledged_last(path):
    async with two_nodes(path) as (one, other):
        there = one.client()
        there.advance(10**15 + 7)
        assert await one.recorded(there) is None
        here = await other.looked_up()
        assert here.position == 10**15 + 7
        here.take_back(10**15 + 3)
        assert await other.recorded(here) is None
        assert (await one.looked_up()).position == 10**15 + 3


async def test_one_that_nobody_knows_is_not_known(path):
    async with two_nodes(path) as (one, _):
        client = await one.looked_up()
        assert (client.position, client.may_be_forgotten) == (None, False)
        assert await one.recorded(client) is None


async def test_what_is_looked_up_is_not_written_again(path):
    async with two_nodes(path) as (one, other):
        there = one.client()
        there.advance(5)
        await one.recorded(there)
        here = await other.looked_up()
        there.advance(9)
        await one.recorded(there)
        assert await other.recorded(here) is None
        assert (await other.looked_up()).position == 9


async def test_many_moves_are_written_each_the_last_one_of_its_client(path, monkeypatch):
    monkeypatch.setattr("broker.fanout.shared.MOVED_AT_ONCE", 8)
    async with two_nodes(path) as (one, other):
        clients = [one.client(f"agent_{number}") for number in range(50)]
        for position in (1, 2, 3):
            for client in clients:
                client.advance(position)
        for client in clients:
            assert await one.recorded(client) is None
        for number in range(50):
            assert (await other.looked_up(f"agent_{number}")).position == 3


async def test_while_the_server_is_away_whoever_asks_is_told_and_it_is_written_later(path, monkeypatch):
    monkeypatch.setattr("broker.fanout.shared.AGAIN_SECONDS", 0.01)
    async with two_nodes(path) as (one, other):
        one.wire.cut = True
        client = one.client()
        client.advance(5)
        error = await one.recorded(client)
        assert error.code == "unavailable"
        with pytest.raises(RequestError):
            await one.positions.until_recorded_or_forgotten(client)
        one.wire.cut = False
        await until(lambda: not one.positions._moved_to and not one.positions._under_way)
        assert (await other.looked_up()).position == 5


async def test_of_too_many_some_are_forgotten_and_who_is_not_known_may_be_one_of_them(path, monkeypatch):
    monkeypatch.setattr("broker.fanout.shared.MAX_CLIENTS_OF_ACCOUNT", 10)
    async with two_nodes(path) as (one, other):
        for number in range(30):
            client = one.client(f"agent_{number}")
            client.advance(5)
            await one.recorded(client)
        assert await one.wire.ask(b"HLEN", one.wire.key("a", ACCOUNT)) <= 11
        assert (await other.looked_up("stranger")).may_be_forgotten
