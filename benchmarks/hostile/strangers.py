"""What somebody without any key may do: open connections, send heads, name credentials that are none."""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import islice, product
from string import ascii_lowercase

import trio

from ..peers.wire import upgrade
from .client import answer_of, connected, cut, head_of, read_to_end, send, talk
from .row import BODY_BYTES, Row
from .target import Target

CONNECTIONS = 20
HEADS = 8
"""Pipelined on each connection."""


def names(count: int) -> list[str]:
    """Return so many different names, the shortest there are of three letters."""
    return ["".join(letters) for letters in islice(product(ascii_lowercase, repeat=3), count)]


def _many_headers(path: str, extra: Sequence[str], target: Target) -> bytes:
    """Return a head of 2,900 header lines of three bytes."""
    lines = [f"GET {path} HTTP/1.1", "Host: x", *extra, *(["a:1"] * 2_900)]
    return "\r\n".join([*lines, "", ""]).encode()


def _query(separator: str, target: Target) -> bytes:
    return head_of(target, "POST", "/v1/events?" + separator.join(names(3_900)), None).replace(b"close", b"keep-alive")


def _no_query_name(target: Target) -> bytes:
    return head_of(target, "POST", "/v1/events?" + "&" * 15_000, None).replace(b"close", b"keep-alive")


def _small(target: Target) -> bytes:
    return b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 50


def _protocols(target: Target) -> bytes:
    return upgrade(target.host, target.port, "/v1/stream", ["Sec-WebSocket-Protocol: " + ",".join(names(3_900))])


def _credential(secret: str, target: Target) -> bytes:
    return head_of(target, "POST", "/v1/commands", secret + "x" * 15_000).replace(b"close", b"keep-alive")


async def pipelined(make: Callable[[Target], bytes], target: Target) -> None:
    """Send the same head again and again on 20 connections, without waiting for an answer."""
    data, last = make(target), head_of(target, "GET", "/healthz", None)

    async def one() -> None:
        answer_of(await talk(target, data * HEADS + last))

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(one)


async def dripped(target: Target) -> None:
    """Send heads byte by byte on 20 connections."""
    head = head_of(target, "GET", "/healthz?" + "x" * 300, None)

    async def one() -> None:
        async with connected(target) as stream:
            for start in range(len(head)):
                if not await send(stream, head[start : start + 1]):
                    break
            answer_of(await read_to_end(stream)).require(200)

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(one)


async def cut_heads(target: Target, connections: int = 1_000) -> None:
    """Open connections, begin a head on each, and cut them all at once."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(connected(target)) for _ in range(connections)]
        for stream in streams:
            await send(stream, b"GET /healthz HTTP/1.1\r\n")
        cut(streams)


async def wrong_keys(target: Target, count: int = 500) -> None:
    """Ask to open streams with keys that nobody knows."""
    for number in range(0, count, 50):
        async with trio.open_nursery() as nursery:
            for each in range(number, number + 50):
                nursery.start_soon(_refused, target, f"dm_live_nobody_{each:020}")


async def _refused(target: Target, key: str) -> None:
    head = upgrade(target.host, target.port, "/v1/stream", [f"Authorization: Bearer {key}", "Connection: close"])
    answer_of(await talk(target, head))


async def bodies_for_nobody(target: Target) -> None:
    """Send 8 MiB to a path where there is nothing, on 20 connections."""
    head = head_of(target, "POST", "/nothing", None, [f"Content-Length: {BODY_BYTES}"])

    async def one() -> None:
        answer_of(await talk(target, head + b" " * BODY_BYTES)).require(404)

    async with trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(one)


def _pipelining(name: str, does: str, make: Callable[[Target], bytes]) -> Row:
    return Row(name, f"no key: 20 connections pipeline {does}", partial(pipelined, make))


_UPGRADE = ("Upgrade: websocket", "Connection: upgrade")

ROWS = [
    _pipelining("header-lines", "heads of 2,900 header lines", partial(_many_headers, "/healthz", ())),
    _pipelining("upgrade-lines", "upgrades of 2,900 header lines", partial(_many_headers, "/v1/stream", _UPGRADE)),
    _pipelining("query-names", "queries of 3,900 names", partial(_query, "&")),
    _pipelining("query-values", "queries of one name with 15,000 bytes", partial(_query, "+")),
    _pipelining("query-separators", "queries of 15,000 separators", _no_query_name),
    _pipelining("small-heads", "400 small requests each", _small),
    _pipelining("subprotocols", "heads with 3,900 subprotocols", _protocols),
    _pipelining("long-keys", "keys of 15,000 bytes", partial(_credential, "")),
    _pipelining("long-tokens", "tokens of 15,000 bytes", partial(_credential, "wst_")),
    Row("dripped-heads", "no key: 20 connections send heads byte by byte", dripped),
    Row("bodies-for-nobody", "no key: 20 connections send 8 MiB to nowhere", bodies_for_nobody, BODY_BYTES),
    Row("wrong-keys", "no key: 500 openings with keys that nobody knows", wrong_keys),
    Row("cut-heads", "no key: 1,000 connections begin a head, and are cut at once", cut_heads),
]
