"""What a client may do with the body of a request."""

import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import trio

from .client import UnexpectedError, answer_of, connected, head_of, post, read_to_end, send, talk
from .row import ACCOUNT_BODIES_BYTES, BODY_BYTES, DROPPED_BYTES, MEBIBYTE, WINDOW_BYTES, Row
from .target import ANY, LISTENER, OPERATOR, Target

EVENTS, COMMANDS, TOKEN = "/v1/events", "/v1/commands", "/v1/websocket/token"
LAST_CHUNK = b"0\r\n\r\n"
EXTENDED_CHUNK = b"1;" + b"x" * 10_000 + b"\r\n \r\n"
NDJSON = "application/x-ndjson"
REFUSED = (400, 413)
REFUSED_SECONDS = 20.0
EVENT = b'{"type":"a.b","inbox_id":"in_1","payload":{}}'
DUPLICATE = b'{"type":"a.b","event_id":"one","payload":{}}'
SMALL = b'{"type":"a","payload":{}}'
"""An event in as few bytes as there may be."""


async def posted(
    path: str, key: str, make: Callable[[], bytes], statuses: tuple[int, ...], target: Target, **more: str
) -> None:
    """POST one body, which is answered with one of these statuses."""
    (await post(target, path, key, make(), **more)).require(*statuses)


def filled(before: bytes, unit: bytes, after: bytes = b"", size: int = BODY_BYTES) -> bytes:
    """Return a body of at most so many bytes, a unit again and again."""
    return before + unit * ((size - len(before) - len(after)) // len(unit)) + after


def listed(count: int, event: bytes = EVENT) -> bytes:
    """Return a list of so many events."""
    return b"[" + b",".join([event] * count) + b"]"


def _ones() -> bytes:
    return filled(b"[1", b",1", b"]")


def _breaks() -> bytes:
    return b"\n" * BODY_BYTES


def _ndjson_rubbish() -> bytes:
    return b"1\n" * (BODY_BYTES // 2)


def _empty_lists() -> bytes:
    """32 events, each with a payload of 80,000 empty lists."""
    return listed(32, b'{"type":"a.b","payload":{"a":[[]' + b",[]" * 80_000 + b"]}}")


def _numbers() -> bytes:
    """32 events, each with a payload of 120,000 numbers."""
    return listed(32, b'{"type":"a.b","payload":{"a":[1' + b",1" * 120_000 + b"]}}")


def _names() -> bytes:
    """32 events, each with a payload of 25,000 names."""
    inner = b",".join(b'"%05d":1' % number for number in range(25_000))
    return listed(32, b'{"type":"a.b","payload":{' + inner + b"}}")


def _line_breaks() -> bytes:
    """32 events, each with a payload of 120,000 line breaks between numbers, which a frame must not have."""
    return listed(32, b'{"type":"a.b","payload":{"a":[1' + b"\n,1" * 80_000 + b"]}}")


def _deep() -> bytes:
    return b"[" * BODY_BYTES


def _deep_payloads() -> bytes:
    return listed(10_000, b'{"type":"a.b","payload":{"a":' + b"[" * 127 + b"]" * 127 + b"}}")


def _last_is_bad() -> bytes:
    return listed(9_999)[:-1] + b",1]"


def _other_fields() -> bytes:
    """One event with 700,000 fields that nobody asked for."""
    return b'{"type":"a.b"' + b"".join(b',"%06d":1' % number for number in range(700_000)) + b"}"


def _not_utf8() -> bytes:
    return filled(b'"', b"x", b'\xff"')


def _inboxes() -> bytes:
    return filled(b'{"inbox_ids":["a"', b',"a"', b"]}")


def _scopes() -> bytes:
    return filled(b'{"scopes":["subscribe"', b',"subscribe"', b"]}")


def _params(action: str, request_id: bool = False) -> bytes:
    start = json.dumps({"action": action} | ({"request_id": "r"} if request_id else {})).encode()[:-1]
    return filled(start + b',"params":{"n":[1', b",1", b"]}}")


def _many_params(action: str) -> bytes:
    start = json.dumps({"action": action}).encode()[:-1] + b',"params":{"x":1'
    return start + b"".join(b',"%06d":1' % number for number in range(700_000)) + b"}}"


def _each_other(field: str, count: int = 10_000) -> bytes:
    """Events of the greatest list, each with another name in a field: types, inboxes."""
    events = [{"type": "a.b", "payload": {}} | {field: f"{'x' * 100}.n{number}"} for number in range(count)]
    return json.dumps(events).encode()


async def chunked(body: bytes, target: Target) -> None:
    """POST a body that is chunked so."""
    head = head_of(target, "POST", EVENTS, ANY, ["Transfer-Encoding: chunked"])
    answer_of(await talk(target, head + body)).require(*REFUSED, 431)


async def answers_unread(target: Target, sockets: int = 10) -> None:
    """Publish lists of 10,000 events on many sockets, and read no answer."""
    body = listed(10_000)
    head = head_of(target, "POST", EVENTS, ANY, [f"Content-Length: {len(body)}"])
    async with AsyncExitStack() as stack:
        for _ in range(sockets):
            stream = await stack.enter_async_context(connected(target))
            await send(stream, head + body)
        await trio.sleep(0.5)


async def bodies_under_way(key: str, path: str, target: Target, sockets: int = 60) -> None:
    """Send all but the last byte of a body on many sockets; go when those that have no room are refused."""
    size = 2 * MEBIBYTE
    head = head_of(target, "POST", path, key, [f"Content-Length: {size}"])
    refused, too_many = 0, sockets - ACCOUNT_BODIES_BYTES // size
    all_refused = trio.Event()

    async def one() -> None:
        nonlocal refused
        async with connected(target) as stream:
            await send(stream, head + b" " * (size - 1))
            await read_to_end(stream)  # a reset may have overtaken the answer
            refused += 1
            if refused == too_many:
                all_refused.set()

    async with trio.open_nursery() as nursery:
        for _ in range(sockets):
            nursery.start_soon(one)
        with trio.move_on_after(REFUSED_SECONDS):
            await all_refused.wait()
        nursery.cancel_scope.cancel()
    if refused < too_many:
        raise UnexpectedError(f"only {refused} of {sockets} bodies under way were refused")


def _refused(make: Callable[[], bytes], path: str, key: str, statuses: tuple[int, ...] = REFUSED) -> dict[str, Any]:
    """Return what a row has of a body that is refused."""
    return {"attack": partial(posted, path, key, make, statuses), "body": make}


def _of_events() -> Iterator[Row]:
    for name, does, make in (
        ("list-of-ones", "8 MiB of `[1,1,1,…]`", _ones),
        ("list-of-lists", "8 MiB of `[[[[`", _deep),
        ("list-50000", "a list of 50,000 small events", partial(listed, 50_000)),
        ("list-100000", "a list of 100,000 small events", partial(listed, 100_000)),
        ("list-250000", "a list of 250,000 small events", partial(listed, 250_000, SMALL)),
        ("last-is-bad", "a list of 10,000 events, the last of which is bad", _last_is_bad),
        ("fields", "an event with 700,000 fields of no meaning", _other_fields),
        ("not-utf8", "8 MiB of which the last byte is no UTF-8", _not_utf8),
    ):
        yield Row(name, f"publish key: {does}", **_refused(make, EVENTS, ANY))
    for name, does, make in (
        ("list-10000", "a list of 10,000 small events, the most there may be", partial(listed, 10_000)),
        ("payloads-of-lists", "32 events with payloads of 80,000 `[]`", _empty_lists),
        ("payloads-of-numbers", "32 events with payloads of 120,000 numbers", _numbers),
        ("payloads-of-names", "32 events with payloads of 25,000 names", _names),
        ("payloads-of-lines", "32 events with payloads of 80,000 lines", _line_breaks),
        ("payloads-deep", "10,000 events with payloads of 128 levels", _deep_payloads),
        ("duplicates", "10,000 events with one `event_id`", partial(listed, 10_000, DUPLICATE)),
        ("types", "10,000 events, each of another type", partial(_each_other, "type")),
        ("inboxes", "10,000 events, each for another inbox", partial(_each_other, "inbox_id")),
    ):
        taken = partial(posted, EVENTS, ANY, make, (200, *REFUSED))
        yield Row(name, f"publish key: {does}", taken, body=make, may_hold_bytes=WINDOW_BYTES + DROPPED_BYTES)
    for name, does, make in (
        ("ndjson-breaks", "8 MiB of line breaks as NDJSON", _breaks),
        ("ndjson-ones", "8 MiB of lines of `1` as NDJSON", _ndjson_rubbish),
    ):
        attack = partial(posted, EVENTS, ANY, make, (200, *REFUSED), content_type=NDJSON)
        yield Row(name, f"publish key: {does}", attack, body=make)
    yield Row("operator-ones", "operator key: 8 MiB of `[1,1,1,…]`", **_refused(_ones, EVENTS, OPERATOR))
    yield Row("unscoped-events", "subscribe-only key: 8 MiB of events", **_refused(_ones, EVENTS, LISTENER, (403,)))


def _of_commands_and_tokens() -> Iterator[Row]:
    for name, does, make in (
        ("token-inboxes", "a token body with 2,000,000 `inbox_ids`", _inboxes),
        ("token-scopes", "a token body with 700,000 `scopes`", _scopes),
    ):
        yield Row(name, f"subscribe-only key: {does}", **_refused(make, TOKEN, LISTENER))
    for name, does, make in (
        ("unhandled-command", "a command that nobody handles with 8 MiB of parameters", partial(_params, "act")),
        ("repeated-command", "the same with a `request_id`", partial(_params, "act", request_id=True)),
        ("command-names", "a command that nobody handles with 700,000 names", partial(_many_params, "act")),
        ("command-of-the-stream", "`subscribe` by HTTP with 8 MiB of parameters", partial(_params, "subscribe")),
    ):
        yield Row(name, f"command key: {does}", **_refused(make, COMMANDS, ANY, (404, *REFUSED)))
    does, make = "subscribe-only key: a command with 8 MiB of parameters", partial(_params, "act")
    yield Row("unscoped-command", does, **_refused(make, COMMANDS, LISTENER, (403, *REFUSED)))


def _of_many_pieces() -> Iterator[Row]:
    for name, does, body in (
        ("one-byte-chunks", "20,000 chunks of one byte", b"1\r\n \r\n" * 20_000 + LAST_CHUNK),
        ("chunk-extensions", "200 chunks, each with 10,000 bytes beside it", EXTENDED_CHUNK * 200 + LAST_CHUNK),
        ("trailers", "200,000 trailers", LAST_CHUNK[:-2] + b"a:1\r\n" * 200_000 + b"\r\n"),
    ):
        yield Row(name, f"publish key: a body of {does}", partial(chunked, body), len(body))
    for name, key, path in (
        ("bodies-of-tokens", LISTENER, TOKEN),
        ("bodies-of-events", ANY, EVENTS),
        ("bodies-of-commands", ANY, COMMANDS),
    ):
        does = f"any key: 60 sockets send all but the last byte of 2 MiB to {path}"
        yield Row(name, does, partial(bodies_under_way, key, path), may_hold_bytes=2 * ACCOUNT_BODIES_BYTES)
    does, every_body = (
        "publish key: 10 sockets publish 10,000 events each, and read no answer",
        10 * len(listed(10_000)),
    )
    yield Row("answers-unread", does, answers_unread, every_body, may_hold_bytes=WINDOW_BYTES + DROPPED_BYTES)


ROWS = [*_of_events(), *_of_commands_and_tokens(), *_of_many_pieces()]
