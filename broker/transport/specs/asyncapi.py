"""The stream as AsyncAPI 3.0 describes it (PROTOCOL sections 2 to 5): a channel, what is said on it, and by whom.

Pure. The application that it describes is the broker: what it receives are commands, what it sends all else.
"""

from typing import Any, Final

import msgspec
from msgspec import Struct

from ...errors import CloseCode
from ...protocol.messages import (
    Acked,
    AckParams,
    CursorUpdate,
    Draining,
    Event,
    Gap,
    Held,
    HoldParams,
    Limits,
    Ready,
    Replay,
    SubscribeParams,
    SubscriptionResult,
    UnsubscribeParams,
    Updated,
)
from ...protocol.names import Identifier
from ...queues.asked import AckedLeases, AckLeases, HeldLeases, HoldLeases, LeaseParams, NackedLeases, NackParams
from ...waiting.asked import WaitParams
from .parameters import OPENING_QUERY, security_schemes
from .schemas import (
    ANYTHING,
    CLOSE_MEANINGS,
    DUPLICATE,
    Envelope,
    Error,
    ErrorFrame,
    HandlerParams,
    Json,
    LeaseAnswer,
    PingResult,
    PublishParams,
    PublishResult,
    WaitResult,
    object_of,
    ref,
    schema_of,
    schemas_of,
)

DESCRIPTION: Final = """\
One WebSocket an agent: events as they happen, what was missed meanwhile by cursor, commands the other way.

This describes the broker, so what it *receives* is what a client says. Every frame is UTF-8 JSON in one text message. \
Ignore fields that you do not know. The HTTP side is in `/openapi.json`."""

Frame = type[Struct]


class Action(Struct, frozen=True):
    """A command that clients may give: what it is for, its parameters, and what its answer brings.

    ``result`` None: whatever its handler says. ``name`` None: every action that is not the broker's own.
    """

    name: str | None
    summary: str
    params: Frame | None
    result: Frame | None
    example: Json
    leases: tuple[Frame, Frame] | None = None
    """The same of leases, where it is for these, too."""


FRAMES: Final[dict[Frame, Struct | Json]] = {
    Ready: Ready(
        "conn_4f1c",
        "acct_demo",
        ["*"],
        "c1-9",
        30,
        300,
        Limits(1_048_576, 262_144, 10_000, 100, 10_000),
        Replay(True, 0),
    ),
    Event: {
        "type": "message.bounced",
        "event_id": "evt_2",
        "inbox_id": "inbox_abc123",
        "created_at": "2026-11-23T10:00:00.123Z",
        "cursor": "c1-10",
        "payload": {"message_id": "msg_2", "recipient": "nobody@example.com", "reason": "mailbox does not exist"},
    },
    Gap: Gap("c1-9", "c1-40", 12),
    CursorUpdate: CursorUpdate("c1-41"),
    Updated: Updated(["inbox_abc123"]),
    Draining: Draining(1_250),
    ErrorFrame: ErrorFrame(Error("invalid_json", "The JSON ends too early - at `$`")),
}
"""What the broker says by itself, each with an example."""

ACTIONS: Final = (
    Action(
        "subscribe",
        "Adds inboxes, replays what they missed, replaces the filter",
        SubscribeParams,
        SubscriptionResult,
        {"inbox_ids": ["inbox_abc123"], "since": "5m"},
    ),
    Action("unsubscribe", "Removes inboxes", UnsubscribeParams, SubscriptionResult, {"inbox_ids": ["inbox_abc123"]}),
    Action(
        "publish",
        "Publishes events, all or none",
        PublishParams,
        PublishResult,
        {"events": {"type": "note.added", "payload": {"text": "Hello"}, "inbox_id": "inbox_abc123"}},
    ),
    Action(
        "ack",
        "Acknowledges what this client was sent up to a cursor, or events by id (needs a `client_id`); or leases",
        AckParams,
        Acked,
        {"cursor": "c1-10"},
        (AckLeases, AckedLeases),
    ),
    Action(
        "hold",
        "Says that events are being worked on: their webhook waits (needs a `client_id`); or lets leases last",
        HoldParams,
        Held,
        {"event_ids": ["evt_2"], "seconds": 60},
        (HoldLeases, HeldLeases),
    ),
    Action(
        "lease",
        "Takes events of a queue, waiting for them if that is asked; nobody else has them until then",
        LeaseParams,
        LeaseAnswer,
        {"queue_id": "support", "max": 1, "wait_seconds": 30},
    ),
    Action(
        "nack",
        "Gives leases back, later to be given again, or dead",
        NackParams,
        NackedLeases,
        {"lease_ids": ["lse_1_1_0f"], "reason": "the mail server is away"},
    ),
    Action(
        "wait_for",
        "Waits for the first event that is like this, from a cursor on; `event` is null when the time is over",
        WaitParams,
        WaitResult,
        {"inbox_ids": ["inbox_abc123"], "where": {"from": "@example.com"}, "timeout_seconds": 60, "extract": ["code"]},
    ),
    Action("ping", "Asks for a sign of life, where WebSocket pings cannot be sent", None, PingResult, {}),
    Action(
        None,
        "Any other action, such as `send_email`: the deployment does it",
        HandlerParams,
        None,
        {"inbox_id": "inbox_abc123", "to": ["ada@example.com"], "subject": "Hello", "body": "Thank you."},
    ),
)
"""What clients say. To be said of every action of the broker's own."""

_CHANNEL: Final = {"$ref": "#/channels/stream"}


def asyncapi(version: str) -> bytes:
    """Return the document as JSON; ``version`` is the broker's."""
    document = {
        "asyncapi": "3.0.0",
        "info": {"title": "daimon-broker: the stream", "version": version, "description": DESCRIPTION},
        "defaultContentType": "application/json",
        "servers": {"plain": _server("ws"), "tls": _server("wss")},
        "channels": {"stream": _channel()},
        "operations": _operations(),
        "components": {
            "schemas": _schemas(),
            "messages": _messages(),
            "securitySchemes": security_schemes("httpApiKey"),
        },
    }
    return msgspec.json.encode(document)


def _server(protocol: str) -> Json:
    return {
        "host": "{host}",
        "protocol": protocol,
        "variables": {"host": {"default": "localhost:8765", "description": "Host and port."}},
        "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in security_schemes("httpApiKey")],
    }


def _channel() -> Json:
    query = {name: {**parameter.schema, "description": parameter.words} for name, parameter in OPENING_QUERY.items()}
    return {
        "address": "/v1/stream",
        "title": "The stream",
        "description": "The first frame is `connection.ready`. The subprotocol `daimon.v1` may be offered.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _messages()},
        "bindings": {
            "ws": {"method": "GET", "query": object_of(query, *query), "bindingVersion": "0.1.0"},
        },
        "x-close-codes": {
            str(int(code)): {"name": code.name, "description": CLOSE_MEANINGS[code], "come-back": code.come_back}
            for code in CloseCode
        },
    }


# --- messages and operations -------------------------------------------------


def _messages() -> dict[str, Json]:
    said = {frame.__name__: _message(ref(frame), example) for frame, example in FRAMES.items()}
    for action in ACTIONS:
        asked, answered = _names(action)
        example = {"action": action.name or "send_email", "request_id": "r1", **action.example}
        said[asked] = _message({"$ref": f"#/components/schemas/{asked}"}, example, action.summary)
        said[answered] = _message({"$ref": f"#/components/schemas/{answered}"})
    return said


def _message(payload: Json, example: Struct | Json | None = None, summary: str | None = None) -> Json:
    name = payload["$ref"].rpartition("/")[2]
    message: Json = {"name": name, "title": name, "payload": payload}
    if summary is not None:
        message["summary"] = summary
    if example is not None:
        message["examples"] = [{"payload": msgspec.to_builtins(example)}]
    return message


def _names(action: Action) -> tuple[str, str]:
    """Return what the messages of a command and of its answer are called."""
    word = (action.name or "handler").title().replace("_", "")
    return f"{word}Command", f"{word}Response"


def _operations() -> Json:
    operations: Json = {
        f"say{frame.__name__}": {"action": "send", "channel": _CHANNEL, "messages": [_on_channel(frame.__name__)]}
        for frame in FRAMES
    }
    for action in ACTIONS:
        asked, answered = _names(action)
        operations[action.name or "command"] = {
            "action": "receive",
            "channel": _CHANNEL,
            "summary": action.summary,
            "messages": [_on_channel(asked)],
            "reply": {"channel": _CHANNEL, "messages": [_on_channel(answered)]},
        }
    return operations


def _on_channel(message: str) -> Json:
    return {"$ref": f"#/channels/stream/messages/{message}"}


def _schemas() -> dict[str, Json]:
    structs = {struct for action in ACTIONS for struct in (action.params, action.result) if struct is not None}
    structs |= {struct for action in ACTIONS for struct in action.leases or ()}
    schemas = schemas_of(*FRAMES, Envelope, Error, *sorted(structs, key=lambda struct: struct.__name__))
    for action in ACTIONS:
        asked, answered = _names(action)
        schemas[asked] = _command(action)
        schemas[answered] = _response(action)
    return schemas


def _command(action: Action) -> Json:
    """Return the schema of a command: its parameters beside the envelope's fields, or in `params`."""
    parts: list[Any] = [ref(Envelope), object_of({"action": _action(action)})]
    if action.params is not None:
        forms = [ref(action.params), object_of({"params": ref(action.params)})]
        if action.leases is not None:
            forms += [ref(action.leases[0]), object_of({"params": ref(action.leases[0])})]
        parts.append({"anyOf": forms})
    return {"description": f"{action.summary}.", "allOf": parts}


def _response(action: Action) -> Json:
    result = ANYTHING if action.result is None else ref(action.result)
    if action.leases is not None:
        result = {"anyOf": [result, ref(action.leases[1])]}
    fields = {
        "type": {"const": "response"},
        "request_id": schema_of(Identifier),
        "action": _action(action),
        "result": result,
        "error": ref(Error),
    }
    if action.name is None:
        fields["duplicate"] = DUPLICATE
    answer = object_of(fields, "result", "error", "duplicate")
    return {**answer, "oneOf": [{"required": ["result"]}, {"required": ["error"]}]}


def _action(action: Action) -> Json:
    if action.name is not None:
        return {"const": action.name}
    return {"allOf": [schema_of(Identifier), {"not": {"enum": [a.name for a in ACTIONS if a.name is not None]}}]}
