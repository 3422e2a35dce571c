"""The message that is published, and where in it stands when it was due.

The mark is found by its bytes, in whatever a peer wraps around the message: it holds no character that JSON escapes.
"""

import json
import re
from collections.abc import Iterable

from .peers.adapter import DUE

MARK = b"due:"
"""Stands once in every message; `DUE`'s 19 digits follow."""
DIGITS = len(DUE)
SMALLEST_BYTES = 180

_MARKED = re.compile(re.escape(MARK) + rb"(\d{%d})" % DIGITS)


def message_of(size: int) -> bytes:
    """Return a message as a mail platform's, ``size`` bytes of compact JSON, at least `SMALLEST_BYTES`."""
    message = {
        "message_id": "msg_0001",
        "inbox_id": "inbox_0001",
        "from": "ann@example.com",
        "to": ["bob@example.com"],
        "subject": (MARK + DUE).decode(),
        "body": "",
        "labels": ["inbox"],
    }
    payload = {"message": message}
    missing = size - len(json.dumps(payload, separators=(",", ":")))
    message["body"] = "x" * max(0, missing)
    return json.dumps(payload, separators=(",", ":")).encode()


def patched(template: bytes, due: int) -> bytes:
    """Return a template of bytes to send with the nanosecond ``due`` in each place that is left for it."""
    return template.replace(DUE, b"%019d" % due)


def dues_in(data: bytes) -> Iterable[int]:
    """Return the nanoseconds at which the events in ``data`` were due, in order."""
    return map(int, _MARKED.findall(data))
