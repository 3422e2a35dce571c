"""What a client with a key may do by waiting for events, and by what it writes for those who wait."""

import json
from contextlib import AsyncExitStack

import trio

from .client import opened, post
from .row import ACCOUNT_BODIES_BYTES, MESSAGE_BYTES, WINDOW_BYTES, Row
from .subscribing import EVENTS, event, long_inboxes, publish, require_room_for_some
from .target import ANY, LISTENER, Target

WAITS = 16
"""Of one connection."""
MAIL_BYTES = 65_536
MAILS_AT_ONCE = 20
HARDEST_MAIL = "A1B2C3D4 code <style 123 http://a.b/ @"
"""Made of what codes, links and tags begin with."""


async def many_waits(target: Target, connections: int = 60) -> None:
    """Wait 16 times on each of many connections, each for an inbox of its own; then publish for all, and for none."""
    async with AsyncExitStack() as stack:
        for number in range(connections):
            websocket = await stack.enter_async_context(opened(target, LISTENER, "?inbox_ids=none"))
            for place in range(WAITS):
                await websocket.say(
                    request_id=f"w{place}", action="wait_for", inbox_ids=[f"in_{number}_{place}"], event_types=["a.*"]
                )
            await websocket.say(request_id="there", action="ping")
            await websocket.answer("there")  # an event that came before its wait would not end that
        await publish(target, [event(None, number=number) for number in range(100)])
        await publish(target, [event(f"in_{n}_{place}") for n in range(connections) for place in range(WAITS)])
        await websocket.answer(f"w{WAITS - 1}")


async def waits_for_names(target: Target, connections: int = 10) -> None:
    """Wait 16 times on each of many connections, each time for 2,000 inboxes with the longest names."""
    async with AsyncExitStack() as stack:
        refused = []
        for number in range(connections):
            websocket = await stack.enter_async_context(opened(target, LISTENER, "?inbox_ids=none"))
            for place in range(WAITS):
                inboxes = long_inboxes(f"{number}_{place}")
                await websocket.say(request_id=f"w{place}", action="wait_for", inbox_ids=inboxes)
                await websocket.say(request_id="there", action="ping")
                first = await websocket.text()
                refused.append(first is not None and first["request_id"] != "there")
                if refused[-1]:
                    await websocket.answer("there")
        require_room_for_some(refused, ACCOUNT_BODIES_BYTES // (2_000 * 250))


async def waits_for_nothing(target: Target, rounds: int = 2) -> None:
    """Look through 10,000 events for a text that none of them has, again and again, in 16 waits at once."""
    await publish(target, [event("in_1", message={"subject": f"n {n}", "body": "x" * 200}) for n in range(EVENTS)])
    asked = {"event_types": ["a.*"], "since": "5m", "where": {"contains": "nothing"}, "timeout_seconds": 0}
    async with opened(target, LISTENER, "?inbox_ids=none") as websocket:
        for number in range(rounds):
            for place in range(WAITS):
                await websocket.say(request_id=f"w{number}_{place}", action="wait_for", **asked)
            for _ in range(WAITS):
                await websocket.text()


async def hard_mails(target: Target, mails: int = 200) -> None:
    """Read codes and links out of mails of 64 KiB that are made to be slow, by requests, many at once."""
    body = HARDEST_MAIL * (MAIL_BYTES // len(HARDEST_MAIL))
    for n in range(0, mails, MAILS_AT_ONCE):
        message = {"from": "@" * 200, "subject": HARDEST_MAIL * 20, "body": body}
        await publish(target, [event(f"in_{n + i}", "message.received", message=message) for i in range(MAILS_AT_ONCE)])

    async def read(number: int) -> None:
        asked = {"action": "wait_for", "inbox_ids": [f"in_{number}"], "since": "5m", "extract": ["code", "link"]}
        (await post(target, "/v1/commands", ANY, json.dumps(asked).encode())).require(200)

    async with trio.open_nursery() as nursery:
        for number in range(mails):
            nursery.start_soon(read, number)


async def hard_senders(target: Target, mails: int = 60) -> None:
    """Wait for a sender and a recipient in mails of 64 KiB whose addresses are made to be slow, 16 at once."""
    pieces = ('"\\', ",", "<a@", "a@b.", '"x"<a@b.c>!,', "\u3000")
    where = {"from": "@example.com"}, {"to": "@example.com"}, {"to": "a@"}
    for n in range(mails):
        piece = pieces[n % len(pieces)]
        text = piece * (60_000 // len(piece.encode()))
        message = {"from": text} if n % 2 else {"to": text if n % 4 else ['"x@y" <a@example.com>!'] * 999}
        await publish(target, [event("in_1", message=message)])
    async with opened(target, LISTENER, "?inbox_ids=none") as websocket:
        for place in range(WAITS):
            asked = {"event_types": ["a.*"], "since": "5m", "where": where[place % 3], "timeout_seconds": 0}
            await websocket.say(request_id=f"w{place}", action="wait_for", **asked)
        for _ in range(WAITS):
            await websocket.text()


ROWS = [
    Row("waits", "subscribe key: 960 waits on 60 connections, and events for all", many_waits),
    Row(
        "waits-for-names",
        "subscribe key: 160 waits on 10 connections, each for 2,000 inboxes with names of 250 characters",
        waits_for_names,
        MESSAGE_BYTES // 2,
        may_hold_bytes=ACCOUNT_BODIES_BYTES,
    ),
    Row(
        "waits-for-nothing",
        "subscribe key: 32 looks through 10,000 events, 16 at once",
        waits_for_nothing,
        may_hold_bytes=WINDOW_BYTES,
    ),
    Row(
        "hard-mails",
        "any key: codes and links of 200 mails of 64 KiB",
        hard_mails,
        MAILS_AT_ONCE * MAIL_BYTES,  # they are published by so many in one body
        may_hold_bytes=WINDOW_BYTES,
    ),
    Row(
        "hard-senders",
        "any key: senders and recipients of 60 mails of 64 KiB, 16 at once",
        hard_senders,
        may_hold_bytes=WINDOW_BYTES,
    ),
]
