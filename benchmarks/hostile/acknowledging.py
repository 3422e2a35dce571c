"""What a client with a key may do by acknowledging."""

import trio

from .client import command, opened
from .row import Row
from .subscribing import EVENTS, MOST_INBOXES, event, publish, say_all
from .target import ANY, LISTENER, Target
from .webhooks import ENDPOINTS, FAR, SETTINGS, asked

MOST_IDS = 1_000
"""In one command."""


async def many_ids(target: Target, times: int = 60) -> None:
    """Acknowledge and hold 1,000 ids again and again, on a connection that has 9,999 inboxes."""
    await publish(target, [event("in_1") | {"event_id": f"e{number}"} for number in range(MOST_IDS)])
    inboxes = [f"in_{number}" for number in range(MOST_INBOXES)]
    ids = [f"e{number}" for number in range(MOST_IDS)]
    turn = [command(action="ack", event_ids=ids), command(action="hold", event_ids=ids, seconds=3600)]
    async with opened(target, LISTENER, "?client_id=agent") as websocket:
        await websocket.ask("all", action="subscribe", inbox_ids=inboxes)
        await say_all(websocket, turn * times)


async def one_id_everywhere(target: Target, times: int = 60) -> None:
    """Acknowledge an id that 10,000 inboxes have, again and again."""
    await publish(target, [event(f"in_{number}") | {"event_id": "e"} for number in range(EVENTS)])
    async with opened(target, LISTENER, "?client_id=agent") as websocket:
        await say_all(websocket, [command(action="ack", event_ids=["e"])] * times)


async def long_acks(target: Target, connections: int = 20) -> None:
    """Acknowledge 10,000 events under a filter that lets none pass, and without one, on many connections at once."""
    published = await publish(target, [event("in_1") for _ in range(EVENTS)])

    async def acknowledge(number: int) -> None:
        query = f"?client_id=agent{number}&inbox_ids=*&since=5m"
        async with opened(target, LISTENER, query + ("&event_types=n.*" if number % 2 else "")) as websocket:
            cursor = published[-1]["cursor"]
            while (await websocket.ask("read", action="ack", cursor=cursor)).get("error"):
                pass  # not all of it was sent yet

    async with trio.open_nursery() as nursery:
        for number in range(connections):
            nursery.start_soon(acknowledge, number)


async def subscribed_one_by_one(target: Target, inboxes: int = 500) -> None:
    """Subscribe to inboxes one by one and acknowledge after each, on a connection that has thousands."""
    [told] = await publish(target, [event("in_1")])
    held = [f"in_{number}" for number in range(MOST_INBOXES - inboxes)]
    turns = [
        frame
        for number in range(inboxes)
        for frame in (
            command(action="subscribe", inbox_ids=[f"more_{number}"]),
            command(action="ack", cursor=told["cursor"]),
        )
    ]
    async with opened(target, LISTENER, "?client_id=agent&since=5m") as websocket:
        await websocket.ask("all", action="subscribe", inbox_ids=held)
        await say_all(websocket, turns)


async def new_names(target: Target, connections: int = 300) -> None:
    """Come under a new `client_id` each time, and have it recorded."""
    for number in range(connections):
        async with opened(target, LISTENER, f"?client_id={number:0>128}&since=acked"):
            pass


async def webhooks_wait(target: Target, times: int = 8) -> None:
    """Acknowledge and hold 1,000 ids again and again, of events that 16 endpoints wait with for this client."""
    for number in range(ENDPOINTS):
        fallback = {"mode": "fallback", "client_ids": ["agent"], "fallback_seconds": 3600}
        await asked(target, "POST", "", {"url": FAR, "webhook_id": f"wh_{number}", **fallback})
    for begin in range(0, 2 * MOST_IDS, 50):
        await publish(target, [event("in_1") | {"event_id": f"e{begin + number}"} for number in range(50)])
    ids = [f"e{number}" for number in range(MOST_IDS)]
    turn = [command(action="hold", event_ids=ids, seconds=3600), command(action="ack", event_ids=ids)]
    async with opened(target, ANY, "?client_id=agent&inbox_ids=*&since=5m") as websocket:
        await say_all(websocket, turn * times)
        answer = await websocket.ask("last", action="ack", event_ids=[f"e{2 * MOST_IDS - 1}"])
        while "error" in answer:  # those before are not all answered yet
            answer = await websocket.ask("last", action="ack", event_ids=[f"e{2 * MOST_IDS - 1}"])


ROWS = [
    Row("ack-ids", "subscribe key: `ack` and `hold` of 1,000 ids, 60 times, under 9,999 inboxes", many_ids, 65_536),
    Row("ack-one-id", "subscribe key: `ack` of an id that 10,000 inboxes have, 60 times", one_id_everywhere),
    Row("ack-long", "subscribe key: 20 connections acknowledge 10,000 events each, filtered or not", long_acks),
    Row("ack-one-by-one", "subscribe key: 500 inboxes, one by one, and `ack` after each", subscribed_one_by_one),
    Row(
        "ack-webhooks",
        "key with `webhooks`: `ack` and `hold` of 1,000 ids, 8 times, with 16 endpoints that wait for them",
        webhooks_wait,
        settings=SETTINGS,
    ),
    Row("ack-new-names", "subscribe key: 300 openings with a new `client_id` and `since=acked`", new_names),
]
