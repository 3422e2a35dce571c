"""What a client may do with queues of its account: lease and give back without end, wait in crowds."""

import json
from typing import Any

import trio

from .client import Answer, answer_of, head_of, post, talk
from .row import DISK_CACHE_BYTES, WINDOW_BYTES, Row
from .target import ANY, Target

QUEUES = 16
SETTINGS = '[storage]\npath = "{folder}/broker.db"\n'
MAIL = {"type": "a.b", "inbox_id": "in_1", "payload": {"message": {"thread_id": "t" * 100_000}}}


async def asked(target: Target, method: str, path: str, body: Any) -> Answer:
    """Ask for something about queues."""
    content = json.dumps(body).encode()
    head = head_of(target, method, f"/v1/queues{path}", ANY, [f"Content-Length: {len(content)}"])
    return answer_of(await talk(target, head + content)).require(200)


async def commanded(target: Target, command: dict[str, Any]) -> dict[str, Any]:
    """Give a command about leases, and return its result."""
    answer = await post(target, "/v1/commands", ANY, json.dumps(command).encode())
    result: dict[str, Any] = json.loads(answer.require(200).body)["result"]
    return result


async def given_back(target: Target, rounds: int = 5) -> None:
    """Have 16 queues of a thousand events, and lease and give back a hundred of each again and again."""
    for number in range(QUEUES):
        await asked(target, "POST", "", {"queue_id": f"q{number}", "order": "none", "max_attempts": 100})
    event = {"type": "a.b", "inbox_id": "in_1", "payload": {}}
    (await post(target, "/v1/events", ANY, json.dumps([event] * 1_000).encode())).require(200)
    for _ in range(rounds):
        for number in range(QUEUES):
            leased = await commanded(target, {"action": "lease", "queue_id": f"q{number}", "max": 100})
            ids = [lease["lease_id"] for lease in leased["leases"]]
            await commanded(target, {"action": "nack", "lease_ids": ids, "retry_after_ms": 0})
    for number in range(QUEUES):
        await asked(target, "DELETE", f"/q{number}", {})


async def long_threads(target: Target, events: int = 40) -> None:
    """Publish large events of one thread with a long name, and take them one after the other."""
    await asked(target, "POST", "", {"queue_id": "q"})
    for _ in range(events // 4):
        (await post(target, "/v1/events", ANY, json.dumps([MAIL] * 4).encode())).require(200)
    for _ in range(events):
        leased = await commanded(target, {"action": "lease", "queue_id": "q", "max": 100})
        await commanded(target, {"action": "ack", "lease_ids": [lease["lease_id"] for lease in leased["leases"]]})


async def crowd(target: Target, workers: int = 300) -> None:
    """Wait at one queue with a crowd, for events that come one by one."""
    await asked(target, "POST", "", {"queue_id": "q", "order": "none"})
    event = {"type": "a.b", "inbox_id": "in_1", "payload": {}}
    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(commanded, target, {"action": "lease", "queue_id": "q", "wait_seconds": 2})
        for _ in range(20):
            (await post(target, "/v1/events", ANY, json.dumps(event).encode())).require(200)
            await trio.sleep(0.05)


ROWS = [
    Row("queue-nacks", "leases of 16 queues, a hundred at a time, given back at once", given_back, settings=SETTINGS),
    Row(
        "queue-threads",
        "large events of one thread with a long name",
        long_threads,
        message_bytes=500_000,
        may_hold_bytes=WINDOW_BYTES + DISK_CACHE_BYTES,
        settings=SETTINGS,
    ),
    Row("queue-crowd", "300 workers that wait at one queue", crowd, settings=SETTINGS),
]
