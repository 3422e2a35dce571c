"""Slots that nodes share: how many there are, who takes one over, whose are free when a node is gone."""

from contextlib import asynccontextmanager

import pytest
import trio
from clients import until
from valkeys import KINDS, server
from wires import wires

from broker import CloseCode
from broker.access.admission import GHOST_SECONDS, admit, examine
from broker.access.claims import RELEASE, Claim, NodeSlots
from broker.access.keys import Key
from broker.access.opening import Opening
from broker.budget import of_names
from broker.errors import RequestError
from broker.protocol.selection import EVERYTHING

RACES = 1_000
TAKEOVERS = 100
ACCOUNT = "acct_test"
NAMES = of_names(1_000_000)


@pytest.fixture(scope="module", params=KINDS)
def path(request):
    with server(request.param) as running:
        yield running.path


class Client:
    """A connection, as far as slots see it."""

    def __init__(self, slot):
        self.slot = slot
        slot.holder = self
        self.ended = None
        self.asked = False
        self.lives = True
        self.heard = trio.current_time()

    def last_heard(self):
        return self.heard

    def ask_for_life(self):
        self.asked = True

    def lived_since(self, moment):
        return self.lives

    def end(self, code, why):
        if self.ended is None:
            self.ended = code
            self.slot.release()


class Node:
    def __init__(self, wire):
        self.wire = wire
        self.slots = NodeSlots(wire, examine)

    async def open(self, tier="developer", client_id=None, account_id=ACCOUNT, watch=False, key_id="key"):
        key = Key(key_id, account_id, frozenset({"subscribe"}), tier=tier)
        opening = Opening(EVERYTHING, None, None, client_id, watch)
        _, _, slot, _ = await admit(self.slots, NAMES, lambda: (key, opening))
        return Client(slot)

    async def refuses(self, **opening):
        with pytest.raises(RequestError) as refused:
            await self.open(**opening)
        return refused.value.code


@asynccontextmanager
async def nodes(path, number=2):
    """Nodes at a server that holds nothing yet."""
    async with wires(path, number) as made, trio.open_nursery() as nursery:
        await made[0].forget()
        for wire in made:
            await wire.live()
        found = [Node(wire) for wire in made]
        for node in found:
            await nursery.start(node.slots.run)
        yield found
        nursery.cancel_scope.cancel()


async def held(node, account_id=ACCOUNT, looks=False):
    """How many slots of an account are taken at the server."""
    return await node.wire.ask(b"HLEN", node.wire.key("w" if looks else "k", account_id))


async def until_held(node, number, **which):
    with trio.fail_after(60):
        while await held(node, **which) != number:  # noqa: ASYNC110 - the server wakes nobody
            await trio.sleep(0.002)


# --- how many ----------------------------------------------------------------


async def test_two_nodes_that_race_for_the_last_slot_never_have_one_too_many(path):
    async with nodes(path) as both:
        made = []

        async def race(node, account_id):
            claim = Claim(node.slots, account_id, 1, None)
            if await node.slots.claim(claim) is None:
                made.append(account_id)

        for start in range(0, RACES, 50):
            async with trio.open_nursery() as nursery:
                for number in range(start, start + 50):
                    for node in both if number % 2 else reversed(both):
                        nursery.start_soon(race, node, f"acct_{number}")
        assert len(made) == len(set(made)) == RACES
        assert {await held(both[0], account_id) for account_id in made} == {1}


async def test_a_tier_counts_the_connections_of_all_nodes_and_a_release_makes_room_at_each(path):
    async with nodes(path) as (one, other):
        clients = [await (one, other)[number % 2].open() for number in range(10)]
        assert await one.refuses() == "connection_limit"
        assert await other.refuses(client_id="agent") == "connection_limit"
        clients[0].slot.release()
        clients[0].slot.release()
        await until_held(one, 9)
        await other.open()
        assert await held(one) == 10


async def test_who_is_cancelled_while_the_server_is_asked_leaves_no_slot_taken(path):
    async with nodes(path) as (one, _):
        for _ in range(20):
            with trio.move_on_after(0.0005):
                client = await one.open(tier="free")
                client.slot.release()
        await until_held(one, 0)


async def test_a_key_that_is_gone_when_the_server_has_answered_gets_no_slot(path):
    async with nodes(path) as (one, _):
        key, judged = Key("key", ACCOUNT, frozenset({"subscribe"}), tier="developer"), []

        def judge():
            if judged:
                raise RequestError("unauthorized", "The key is gone")
            judged.append(1)
            return key, Opening(EVERYTHING, None, None)

        with pytest.raises(RequestError, match="The key is gone"):
            await admit(one.slots, NAMES, judge)
        await until_held(one, 0)
        assert one.slots.statistics().connections == 0


async def test_a_tier_without_a_limit_asks_nobody_unless_there_is_a_name(path):
    async with nodes(path) as (one, _):
        one.wire.cut = True
        await one.open(tier="enterprise")
        assert await one.refuses(tier="enterprise", client_id="agent") == "unavailable"
        assert await one.refuses(tier="free") == "unavailable"


# --- names -------------------------------------------------------------------


async def test_a_client_that_comes_at_another_node_is_replaced_where_it_was(path):
    async with nodes(path) as (one, other):
        first = await one.open(tier="free", client_id="agent")
        second = await other.open(tier="free", client_id="agent")
        await until(lambda: first.ended is not None)
        assert first.ended == CloseCode.REPLACED
        third = await other.open(tier="free", client_id="agent")
        await until(lambda: second.ended is not None)
        assert (second.ended, third.ended) == (CloseCode.REPLACED, None)
        assert await held(one) == 1
        third.slot.release()
        await until_held(one, 0)


async def all_told(node):
    """Wait until a node has been told all that it was to be told up to now."""
    told = trio.Event()
    node.wire.follow(lambda message: message == b"last" and told.set(), lambda: None)
    await node.wire.tell(node.wire.node, b"last")
    await told.wait()


@pytest.mark.parametrize("number", range(2, 7))
async def test_of_any_who_come_at_once_with_one_name_the_one_that_the_server_has_stays_and_no_other(number, path):
    async with nodes(path) as both:
        opened = {}

        async def come(node, name):
            client = await node.open(tier="enterprise", client_id=name)
            opened.setdefault(name, []).append((node, client))

        for start in range(0, TAKEOVERS, 10):
            async with trio.open_nursery() as nursery:
                for name in range(start, start + 10):
                    for index in range(number):
                        nursery.start_soon(come, both[(name + index % 3) % 2], f"agent-{name}")
        for node in both:
            await all_told(node)
        await trio.testing.wait_all_tasks_blocked()
        for clients in opened.values():
            assert len(clients) == number
            [(node, last)] = [found for found in clients if found[1].ended is None]
            ended = [client.ended for _, client in clients if client is not last]
            assert set(ended) == {CloseCode.REPLACED}
            at_server = await node.wire.ask(b"HGET", node.wire.key("k", ACCOUNT), last.slot.claim.field)
            assert at_server == f"{node.wire.node} {last.slot.claim.token}".encode()
        assert await held(both[0]) == len(opened) == TAKEOVERS


async def test_one_that_is_taken_over_before_its_answer_comes_is_opened_and_ended_as_replaced(path):
    async with nodes(path) as (one, other):
        first = Claim(one.slots, ACCOUNT, None, ("key", "agent"))
        await one.slots.claim(first)
        second = await other.open(tier="enterprise", client_id="agent")
        await all_told(one)
        slot, _ = one.slots.take(ACCOUNT, None)
        one.slots.admit(first, slot)
        replaced = Client(slot)
        await until(lambda: replaced.ended is not None)
        assert (replaced.ended, second.ended) == (CloseCode.REPLACED, None)


async def test_a_client_that_comes_at_its_own_node_replaces_its_old_connection_at_once(path):
    async with nodes(path) as (one, _):
        first = await one.open(client_id="agent")
        second = await one.open(client_id="agent")
        assert (first.ended, second.ended) == (CloseCode.REPLACED, None)
        await all_told(one)
        assert second.ended is None
        assert await held(one) == one.slots.statistics().connections == 1


async def test_the_same_name_with_another_key_is_another_client(path):
    async with nodes(path) as (one, other):
        first = await one.open(client_id="agent", key_id="key_1")
        second = await other.open(client_id="agent", key_id="key_2")
        assert await held(one) == 2
        assert (first.ended, second.ended) == (None, None)


async def test_a_look_is_one_for_all_nodes_and_takes_nobodys_slot(path):
    async with nodes(path) as (one, other):
        client = await one.open(tier="free")
        first = await one.open(tier="free", watch=True)
        second = await other.open(tier="free", watch=True)
        await until(lambda: first.ended is not None)
        assert (first.ended, second.ended, client.ended) == (CloseCode.REPLACED, None, None)
        assert (await held(one), await held(one, looks=True)) == (1, 1)


async def test_who_was_replaced_gives_back_nothing_of_who_came(path):
    async with nodes(path) as (one, other):
        first = await one.open(tier="free", client_id="agent")
        await other.open(tier="free", client_id="agent")
        await one.wire.ask(b"PING")
        await one.wire.call(RELEASE, [one.wire.key("k", ACCOUNT)], ("key agent", f"{one.wire.node} {'0' * 16}"))
        assert await held(other) == 1
        await until(lambda: first.ended is not None)
        await one.slots.settled()
        assert await held(other) == 1
        assert not one.slots._claims


async def test_slots_of_an_account_are_forgotten_a_day_after_the_last_came(path):
    async with nodes(path) as (one, _):
        await one.open()
        assert 86_000_000 < await one.wire.ask(b"PTTL", one.wire.key("k", ACCOUNT)) <= 86_400_000


# --- ghosts ------------------------------------------------------------------


@pytest.mark.parametrize("at", ["the same node", "another node"])
async def test_a_ghost_loses_its_slot_to_who_comes_wherever_it_is(at, path, monkeypatch):
    monkeypatch.setattr("broker.access.admission.GHOST_SECONDS", 0.1)
    async with nodes(path) as (one, other):
        ghost = await (one if at == "the same node" else other).open(tier="free")
        ghost.lives = False
        await one.open(tier="free")
        assert (ghost.asked, ghost.ended) == (True, CloseCode.HEARTBEAT_MISSED)
        assert GHOST_SECONDS == 5.0


@pytest.mark.parametrize("at", ["the same node", "another node"])
async def test_one_that_lives_keeps_its_slot_and_who_comes_is_refused_at_once(at, path, monkeypatch):
    monkeypatch.setattr("broker.access.admission.GHOST_SECONDS", 600)
    async with nodes(path) as (one, other):
        client = await (one if at == "the same node" else other).open(tier="free")
        with trio.fail_after(60):
            assert await one.refuses(tier="free") == "connection_limit"
        assert (client.asked, client.ended) == (True, None)
        assert one.slots._suspects == {}, "nothing is kept of a question that is over"


@pytest.mark.parametrize(("first", "second"), [(7, 4), (6, 3), (8, 2)])
async def test_the_quietest_of_all_nodes_is_asked_and_nobody_else(first, second, path):
    async with nodes(path) as (one, other):
        clients = [await (one, other)[number % 2].open() for number in range(10)]
        quietest = clients[first]
        quietest.heard -= 30
        clients[second].heard -= 20
        assert await one.refuses() == "connection_limit"
        assert [client for client in clients if client.asked] == [quietest]


# --- nodes and servers that go -------------------------------------------------


async def test_the_slots_of_a_node_that_is_gone_are_free(path):
    async with nodes(path) as (one, other):
        for _ in range(10):
            await one.open()
        await one.wire.die()
        await other.open()
        assert await held(other) == 1


async def test_the_lease_of_a_node_ends_within_six_seconds(path):
    async with nodes(path) as (one, _):
        assert 0 < await one.wire.ask(b"PTTL", one.wire.leases + one.wire.node) <= 6_000


async def test_what_the_server_has_forgotten_is_claimed_again_and_counts(path):
    async with nodes(path) as (one, other):
        first, named = await one.open(), await one.open(client_id="agent")
        await one.wire.forget()
        await one.wire.live()
        one.wire.renewed()
        await until_held(other, 2)
        await other.open(client_id="agent")
        await until(lambda: named.ended is not None)
        assert (named.ended, first.ended) == (CloseCode.REPLACED, None)


async def test_any_number_of_slots_is_claimed_again_though_the_server_goes_away_meanwhile(path, monkeypatch):
    monkeypatch.setattr("broker.access.claims.RECLAIMED_AT_ONCE", 2)
    monkeypatch.setattr("broker.access.claims.AGAIN_SECONDS", 0.01)
    async with nodes(path) as (one, other):
        clients = [await one.open() for _ in range(5)]
        await one.wire.forget()
        await one.wire.live()
        one.wire.cut = True
        one.wire.renewed()
        await trio.testing.wait_all_tasks_blocked()
        one.wire.cut = False
        await until_held(other, 5)
        assert [client.ended for client in clients] == [None] * 5


async def test_who_comes_back_to_a_place_that_a_node_had_which_is_gone_has_it_again(path):
    async with nodes(path) as (one, other):
        named = await one.open(client_id="agent")
        await one.wire.ask(b"HSET", one.wire.key("k", ACCOUNT), named.slot.claim.field, b"gone 0123456789abcdef")
        one.wire.renewed()
        mine = f"{one.wire.node} {named.slot.claim.token}".encode()
        with trio.fail_after(60):
            while await one.wire.ask(b"HGET", one.wire.key("k", ACCOUNT), named.slot.claim.field) != mine:  # noqa: ASYNC110
                await trio.sleep(0.002)
        assert (named.ended, await held(other)) == (None, 1)


async def test_who_comes_back_to_find_others_in_its_place_loses_it(path):
    async with nodes(path) as (one, other):
        named = await one.open(client_id="agent")
        unnamed = await one.open(tier="free", account_id="acct_free")
        await one.wire.die()
        one.wire.cut = True
        await other.wire.ask(b"DEL", other.wire.key("k", ACCOUNT))
        await other.open(client_id="agent")
        await other.open(tier="free", account_id="acct_free")
        one.wire.cut = False
        await one.wire.live()
        one.wire.renewed()
        await until(lambda: named.ended is not None and unnamed.ended is not None)
        assert (named.ended, unnamed.ended) == (CloseCode.REPLACED, CloseCode.HEARTBEAT_MISSED)
        assert (await held(other), await held(other, "acct_free")) == (1, 1)


async def test_what_was_released_while_the_server_was_away_is_given_back_when_it_is_there(path, monkeypatch):
    monkeypatch.setattr("broker.access.claims.AGAIN_SECONDS", 0.01)
    async with nodes(path) as (one, other):
        client = await one.open(tier="free")
        one.wire.cut = True
        client.slot.release()
        await trio.testing.wait_all_tasks_blocked()
        one.wire.cut = False
        await until_held(other, 0)
        await other.open(tier="free")


async def test_a_node_that_ends_can_wait_until_all_that_it_had_is_given_back(path, monkeypatch):
    monkeypatch.setattr("broker.access.claims.AGAIN_SECONDS", 0.01)
    async with nodes(path) as (one, other):
        clients = [await one.open() for _ in range(10)]
        one.wire.cut = True
        for client in clients:
            client.slot.release()
        with trio.move_on_after(0.05) as waiting:
            await one.slots.settled()
        assert waiting.cancelled_caught
        one.wire.cut = False
        with trio.fail_after(60):
            await one.slots.settled()
        assert await held(other) == 0


@pytest.mark.parametrize(
    "message", [b"", b"x", b"{}", b"[]", b'["replaced"]', b'["replaced",1]', b'["quiet",1]', b'["of tomorrow",1]']
)
async def test_a_message_that_is_not_understood_harms_nobody(message, path):
    async with nodes(path) as (one, other):
        await other.wire.tell(one.wire.node, message)
        await one.open(client_id="agent")
        await other.open(client_id="agent")
