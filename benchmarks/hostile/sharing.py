"""What a client may do where nodes share a server: each of these is asked for, taken or stored there."""

import json
from functools import partial

import trio

from .acknowledging import MOST_IDS, new_names
from .client import command, opened, post
from .crowds import filtered_event_streams
from .row import WINDOW_BYTES, Row
from .subscribing import EVENTS, event, publish, say_all
from .target import ANY, LISTENER, OPERATOR, VALKEY, Target

SHARED = f'[engine]\nurl = "{VALKEY}"\n'
ACCOUNTS = 1_000
"""The most that one list may be for."""
MANY_ACCOUNTS = SHARED + "".join(f'[[accounts]]\nid = "many_{number}"\n' for number in range(ACCOUNTS))
AT_ONCE = 30


async def openings(target: Target, times: int = 20, names: int = AT_ONCE) -> None:
    """Open streams side by side, again and again, under so many names."""

    async def come(number: int) -> None:
        for turn in range(times):
            name = f"agent_{number % names}" if names < AT_ONCE else f"agent_{number}_{turn}"
            async with opened(target, LISTENER, f"?client_id={name}&inbox_ids=*"):
                pass

    async with trio.open_nursery() as nursery:
        for number in range(AT_ONCE):
            nursery.start_soon(come, number)


async def to_many_accounts(target: Target, times: int = 3) -> None:
    """Publish lists for as many accounts as one may be for."""
    made = [event("in_1") | {"account_id": f"many_{number % ACCOUNTS}"} for number in range(EVENTS)]
    body = json.dumps(made).encode()
    for _ in range(times):
        (await post(target, "/v1/events", OPERATOR, body)).require(200)


async def publishes_by_id(target: Target, publishes: int = 60, connections: int = 20) -> None:
    """Publish single events, each with a `request_id` and an inbox of its own, on many connections at once."""
    frames = [
        command(action="publish", request_id=f"r{number}", events=event(f"in_{number}")) for number in range(publishes)
    ]

    async def publish_all(number: int) -> None:
        async with opened(target, ANY, f"?client_id=agent{number}&inbox_ids=none") as websocket:
            await say_all(websocket, frames)

    async with trio.open_nursery() as nursery:
        for number in range(connections):
            nursery.start_soon(publish_all, number)


async def acks(target: Target, connections: int = 20) -> None:
    """Acknowledge each of 1,000 events by itself, on many connections at once."""
    published = await publish(target, [event("in_1") for _ in range(MOST_IDS)])
    frames = [command(action="ack", cursor=told["cursor"]) for told in published]

    async def acknowledge(number: int) -> None:
        async with opened(target, LISTENER, f"?client_id=agent{number}&inbox_ids=*&since=acked") as websocket:
            await say_all(websocket, frames)

    async with trio.open_nursery() as nursery:
        for number in range(connections):
            nursery.start_soon(acknowledge, number)


ROWS = [
    Row("shared-openings", "subscribe key: 600 openings, 30 at once, each under a new `client_id`", openings,
        settings=SHARED),
    Row("shared-takeovers", "subscribe key: 600 openings, 30 at once, all under one `client_id`",
        partial(openings, names=1), settings=SHARED),
    Row("shared-accounts", "operator key: 10,000 events for 1,000 accounts in one list, 3 times", to_many_accounts,
        may_hold_bytes=WINDOW_BYTES, settings=MANY_ACCOUNTS),
    Row("shared-publishes", "publish key: 60 publishes with a `request_id` on 20 streams at once", publishes_by_id,
        settings=SHARED),
    Row("shared-acks", "subscribe key: 1,000 acknowledgements on 20 streams at once", acks, settings=SHARED),
    Row("shared-names", "subscribe key: 300 openings with a new `client_id` and `since=acked`", new_names,
        settings=SHARED),
    Row("shared-replays", "subscribe key: 100 event streams over 10,000 events that are read back and filtered",
        filtered_event_streams, settings=SHARED),
]  # fmt: skip
