"""The accounts of the benchmark: one that broadcasts, and its neighbour. Each has one key, one inbox and one event."""

import json
from typing import Any

NAMES = ("bench", "neighbour")


def key_of(name: str) -> str:
    """Return the key that reaches the account of this name."""
    return f"dm_live_{name}_0123456789abcdef"


def path_of(name: str) -> str:
    """Return what a subscriber to the one inbox of this account asks for."""
    return f"/v1/stream?inbox_ids=inbox_{name}"


def event_for(name: str, payload_bytes: int) -> dict[str, Any]:
    """Return an event whose payload is so many bytes of compact JSON; the smallest message has some 150."""
    message = {
        "message_id": "msg_0001",
        "inbox_id": f"inbox_{name}",
        "from": "ann@example.com",
        "to": ["bob@example.com"],
        "subject": "Hi",
        "body": "",
        "labels": ["inbox"],
    }
    payload = {"message": message}
    missing = payload_bytes - len(json.dumps(payload, separators=(",", ":")))
    message["body"] = "x" * max(0, missing)
    return {"type": "message.received", "inbox_id": f"inbox_{name}", "payload": payload}
