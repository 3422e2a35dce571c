"""Frames as lines for people. Pure. What strangers wrote into a mail can do nothing to a terminal."""

import json
from typing import Any, Final

_SHOWN: Final = ("from", "subject", "recipient", "reason", "feedback_type", "tier")
"""What tells most of the plan's payloads (PROTOCOL section 3)."""
_LONGEST: Final = 100
_OWN: Final = {
    "connection.ready": "{connection_id} of {account_id}, inboxes: {inbox_ids}",
    "connection.updated": "inboxes: {inbox_ids}",
    "replay.gap": "events that left the window before they could be sent: {count}",
    "server.draining": "the broker ends; to come back after {reconnect_after_ms} ms",
}


def line_of(frame: dict[str, Any]) -> str:
    """Return a frame in one line: when, what, where, and what it is about."""
    time = str(frame.get("created_at", ""))[11:23]
    kind = str(frame.get("type", ""))
    where = str(frame.get("inbox_id", "(account)")) if "event_id" in frame else ""
    return plain(f"{time:12} {kind:18} {where:14} {_detail(kind, frame)}".rstrip())


def _detail(kind: str, frame: dict[str, Any]) -> str:
    if kind in _OWN:
        known = {name: ", ".join(value) if isinstance(value, list) else value for name, value in frame.items()}
        return _OWN[kind].format_map(known) + _replayed(frame.get("replay"))
    return about(frame["payload"]) if "payload" in frame else ""


def _replayed(replay: dict[str, Any] | None) -> str:
    if replay is None:
        return ""
    return f", to be replayed: {replay['count']}" + ("" if replay["recovered"] else ", after a gap")


def about(payload: dict[str, Any]) -> str:
    """Return what a payload is about, shortened; safe for a terminal."""
    message = payload.get("message")
    inner = message if isinstance(message, dict) else payload
    told = ", ".join(f"{name}: {inner[name]}" for name in _SHOWN if name in inner)
    text = plain(told or json.dumps(payload, ensure_ascii=False, default=str))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def plain(text: str) -> str:
    """Return text without what a terminal would obey: each such character becomes U+FFFD."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
