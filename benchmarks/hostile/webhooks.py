"""What a client may do with endpoints of its account: make great ones, let them hang, have much sent again."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from .client import Answer, answer_of, head_of, post, talk
from .row import WINDOW_BYTES, Row
from .target import ANY, HOST, Target

ENDPOINTS = 16
INBOXES = [f"in_{number}".ljust(254, "x") for number in range(1_000)]
"""As many and as long as an endpoint may name."""
SETTINGS = '[storage]\npath = "{folder}/broker.db"\n[webhooks]\nallow_http = true\nallow_networks = ["127.0.0.0/8"]\n'
FAR = "https://hooks.example.invalid/"


async def asked(target: Target, method: str, path: str, body: Any = None) -> Answer:
    """Ask for something about webhooks."""
    content = b"" if body is None else json.dumps(body).encode()
    head = head_of(target, method, f"/v1/webhooks{path}", ANY, [f"Content-Length: {len(content)}"])
    return answer_of(await talk(target, head + content)).require(200)


async def great_endpoints(target: Target, rounds: int = 10) -> None:
    """Make 16 endpoints that name all they may, list them, change them again and again, and remove them."""
    for number in range(ENDPOINTS):
        await asked(target, "POST", "", {"url": FAR, "webhook_id": f"wh_{number}", "inbox_ids": INBOXES})
    for _ in range(rounds):
        await asked(target, "GET", "")
        for number in range(ENDPOINTS):
            await asked(target, "PATCH", f"/wh_{number}", {"inbox_ids": INBOXES[::-1], "order": "inbox"})
    for number in range(ENDPOINTS):
        await asked(target, "DELETE", f"/wh_{number}")


async def rubbish_endpoint(target: Target) -> None:
    """Name a million inboxes."""
    body = b'{"url":"%b","inbox_ids":["a"%b]}' % (FAR.encode(), b',"a"' * 200_000)
    (await post(target, "/v1/webhooks", ANY, body)).require(400, 413)


@asynccontextmanager
async def hanging() -> AsyncIterator[str]:
    """An endpoint that takes every connection, and says nothing."""

    async def hang(stream: trio.SocketStream) -> None:
        while await stream.receive_some(65_536):
            pass

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, hang, 0, host=HOST))
        yield f"http://{HOST}:{listener.socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel()


async def endpoints_hang(target: Target, events: int = 2_000) -> None:
    """Let all endpoints hang while thousands of events are owed to each."""
    async with hanging() as url:
        for number in range(ENDPOINTS):
            await asked(target, "POST", "", {"url": url, "webhook_id": f"wh_{number}", "order": "inbox"})
        event = {"type": "a.b", "inbox_id": "in_1", "payload": {}}
        for _ in range(4):
            (await post(target, "/v1/events", ANY, json.dumps([event] * (events // 4)).encode())).require(200)
        await trio.sleep(1.0)
        for number in range(ENDPOINTS):
            await asked(target, "DELETE", f"/wh_{number}")


async def sent_again(target: Target, rounds: int = 10) -> None:
    """Have a thousand events that are named sent again, and look for those that are dead."""
    await asked(target, "POST", "", {"url": FAR, "webhook_id": "wh", "order": "inbox"})
    event = {"type": "a.b", "inbox_id": "in_1", "payload": {}}
    answer = await post(target, "/v1/events", ANY, json.dumps([event] * 1_000).encode())
    ids = [each["event_id"] for each in json.loads(answer.require(200).body)["result"]["events"]]
    for _ in range(rounds):
        await asked(target, "POST", "/wh/resend", {"event_ids": ids})
        await asked(target, "GET", "/wh/deliveries?limit=1000")
        await asked(target, "GET", "/wh/deliveries?limit=1000&state=dead")


ROWS = [
    Row(
        "webhook-inboxes",
        "key with `webhooks`: 16 endpoints that name 1,000 inboxes each, listed and changed again and again",
        great_endpoints,
        message_bytes=300_000,
        may_hold_bytes=WINDOW_BYTES,
        settings=SETTINGS,
    ),
    Row("webhook-rubbish", "key with `webhooks`: an endpoint that names 200,000", rubbish_endpoint, settings=SETTINGS),
    Row(
        "webhook-hangs",
        "key with `webhooks`: 2,000 events are owed to 16 endpoints that hang",
        endpoints_hang,
        settings=SETTINGS,
    ),
    Row("webhook-resend", "key with `webhooks`: 1,000 events are sent again, ten times", sent_again, settings=SETTINGS),
]
