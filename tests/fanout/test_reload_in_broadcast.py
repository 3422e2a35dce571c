"""A reload at any moment of a broadcast: who is live, who is not, and who ends in that very tick."""

from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    WebSocket,
    alices,
    config_of,
    configured_key,
    connected,
    event,
    numbers,
    reset,
    serving,
)

from broker import Config
from broker.fanout import hub, subscriptions

CLIENTS = 60
OTHER = "dm_live_other"


def reaching(*inbox_ids: str) -> Config:
    """Alice's key reaches these inboxes only; left out: all of her account, as another key does always."""
    keys = configured_key(ALICE, inbox_ids=inbox_ids or None), configured_key(OTHER)
    return config_of(alices(*keys, tier="enterprise"))


async def up_to(client: WebSocket, number: int) -> list[int]:
    """The numbers of the events that come, up to this one."""
    found = []
    while number not in found[-1:]:
        found += numbers([await client.next()])
    return found


@pytest.fixture
def many_turns(monkeypatch):
    """Let a broadcast be as many steps as it has listeners, four at a time."""
    monkeypatch.setattr(hub, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(subscriptions, "STEPS_PER_PAUSE", 4)


@asynccontextmanager
async def in_mid_broadcast(before: Config, number: int):
    """Yield a server and its clients when ``number`` of them have been written the event 1."""
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving(before))
        clients = [await stack.enter_async_context(connected(served.address)) for _ in range(CLIENTS)]
        await served.broker.publish(ACCOUNT, event(1))
        while served.broker.statistics().hub.delivered < number:
            await trio.lowlevel.checkpoint()
        assert served.broker.statistics().hub.delivered < CLIENTS
        yield served, clients


@pytest.mark.parametrize("number", [4, 28, 52])
@pytest.mark.parametrize("after", [(), ("in_1", "in_2", "in_3"), ("in_1",)], ids=["whole", "wider", "narrower"])
async def test_a_key_that_changes_in_mid_broadcast_costs_nobody_an_event(many_turns, no_errors, number, after):
    async with in_mid_broadcast(reaching("in_1", "in_2"), number) as (served, clients):
        served.broker.reload(reaching(*after))
        await served.broker.publish(ACCOUNT, [event(2, inbox=None), event(3, inbox="in_2"), event(4)])
        expected = {(): [1, 2, 3, 4], ("in_1",): [1, 4]}.get(after, [1, 3, 4])
        for client in clients:
            assert await up_to(client, 4) == expected
        for client in clients:
            await client.ping()
        assert served.broker.statistics().hub.live == CLIENTS


async def test_clients_that_end_in_the_tick_in_which_their_key_changes_take_nothing_from_the_others(no_errors):
    """Whatever the tick is: the key changes in each of them."""
    whole, narrow = reaching(), reaching("in_1")
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving(whole))
        staying, *leaving = [
            await stack.enter_async_context(connected(served.address, "inbox_ids=in_1", key=key))
            for key in (OTHER, *[ALICE] * 16)
        ]
        for client in leaving:
            reset(client.stream)
        while len(served.server.connections) > 1:
            for config in (narrow, whole):
                served.broker.reload(config)
                await trio.lowlevel.checkpoint()
        await served.broker.publish(ACCOUNT, [event(1), event(2, inbox=None)])
        assert await up_to(staying, 2) == [1, 2]
        assert served.broker.statistics().hub.live == 1
