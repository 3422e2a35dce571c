"""What a client with a key may do by reaching further back than memory does, where there is a log on disk."""

import json

import trio

from .client import answer_of, command, head_of, opened, talk
from .row import Row
from .subscribing import EVENTS, MOST_INBOXES, event, publish, say_all
from .target import LISTENER, Target

SETTINGS = '[replay]\nmax_events_per_account = 100\n[storage]\npath = "{folder}/broker.db"\n'
INBOXES = 100


async def _fill(target: Target) -> None:
    """Publish more than memory holds, by far, unless that is there."""
    head = head_of(target, "GET", "/v1/events?inbox_ids=*&since=1h&limit=1", LISTENER)
    page = answer_of(await talk(target, head)).require(200)
    if json.loads(page.body)["result"]["replay"]["count"]:
        return
    await publish(target, [event(f"in_{number % INBOXES}", number=number) for number in range(EVENTS)])


async def old_events(target: Target, connections: int = 8) -> None:
    """Read all that there is from disk, on many connections, each with another selection."""
    await _fill(target)

    async def read(number: int) -> None:
        inboxes = ",".join(f"in_{inbox}" for inbox in range(INBOXES) if inbox % connections != number)
        async with opened(target, LISTENER, f"?since=1h&inbox_ids={inboxes}") as websocket:
            while (said := await websocket.text()) is not None:
                if said.get("payload", {}).get("number", 0) >= EVENTS - 2:
                    return

    async with trio.open_nursery() as nursery:
        for number in range(connections):
            nursery.start_soon(read, number)


async def old_starts(target: Target, times: int = 200) -> None:
    """Begin to read from disk again and again, and look for 9,999 inboxes of which nothing is there."""
    await _fill(target)
    none = [f"none_{number}" for number in range(MOST_INBOXES)]
    some = [f"in_{number}" for number in range(INBOXES)]
    turn = [command(action="subscribe", inbox_ids=some, since="1h"), command(action="unsubscribe", inbox_ids=some)]
    async with opened(target, LISTENER) as websocket:
        await say_all(websocket, turn * times)
        await websocket.ask("none", action="subscribe", inbox_ids=none, since="1h")


ROWS = [
    Row(
        "older-events",
        "subscribe key: 8 connections read 10,000 events each from disk",
        old_events,
        settings=SETTINGS,
    ),
    Row(
        "older-starts",
        "subscribe key: 200 subscribes that reach back to disk, and one of 9,999 inboxes",
        old_starts,
        settings=SETTINGS,
    ),
]
