"""What can be done through the operator's own API: by clients who make it slow, and by one that answers badly."""

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from .bodies import filled
from .client import UnexpectedError, answer_of, head_of, opened, post, talk
from .row import MEBIBYTE, Row
from .target import ANY, FREE, HOST, OPERATOR, STRANGER, Target

ANSWER_BYTES = MEBIBYTE
"""The greatest answer of an API that is read."""
ELSEWHERE = "127.0.0.2"
"""The address of a client that is not the hostile one."""

Answering = Callable[[str, dict[str, Any]], Awaitable[bytes]]
"""Is told the path and the question, and returns the whole HTTP answer."""


def http(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """Return an HTTP answer."""
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def known(account_id: str = "acct_outside", inbox_ids: list[str] | None = None) -> bytes:
    """Return the answer that says that a key is one."""
    answer = {"account_id": account_id, "tier": "enterprise", "key_id": "key_out", "ttl_seconds": 60}
    return http(json.dumps(answer | {"scopes": ["subscribe", "publish"], "inbox_ids": inbox_ids}).encode())


@asynccontextmanager
async def api(target: Target, answer: Answering) -> AsyncIterator[None]:
    """Be the operator's API meanwhile."""

    async def serve(stream: trio.SocketStream) -> None:
        received = bytearray()
        async with stream:
            while data := await stream.receive_some(65_536):
                received += data
                while (asked := _question(received)) is not None:
                    await stream.send_all(await answer(*asked))

    async def serve_one(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_tcp, serve_one, target.api_port, host=HOST, backlog=2_000))
        yield
        nursery.cancel_scope.cancel()


def _question(received: bytearray) -> tuple[str, dict[str, Any]] | None:
    """Take a whole question off what was received; return its path and its JSON."""
    head, found, rest = bytes(received).partition(b"\r\n\r\n")
    size = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    if not found or len(rest) < size:
        return None
    del received[: len(head) + 4 + size]
    return head.split(b" ")[1].decode(), json.loads(rest[:size])


async def slow_commands(target: Target, count: int = 250) -> None:
    """Give 250 commands that take long by one account; another account's command is answered meanwhile."""

    async def answer(path: str, question: dict[str, Any]) -> bytes:
        if question["action"] == "slow":
            await trio.sleep_forever()
        return http(b'{"result":{}}')

    async with api(target, answer), trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(_slow, target)
        await trio.sleep(1)
        with trio.move_on_after(5) as waiting:
            (await post(target, "/v1/commands", ANY, b'{"action":"quick"}')).require(200)
        if waiting.cancelled_caught:
            raise UnexpectedError("a command waits for those of another account")
        nursery.cancel_scope.cancel()


async def _slow(target: Target) -> None:
    await post(target, "/v1/commands", FREE, b'{"action":"slow"}')


async def unknown_keys(target: Target, count: int = 1_000) -> None:
    """Name 1,000 keys that nobody knows while the API is slow; a client from elsewhere with a new key is let in."""
    digest = hashlib.sha256(STRANGER.encode()).hexdigest()

    async def answer(path: str, question: dict[str, Any]) -> bytes:
        if question["key_sha256"] != digest:
            await trio.sleep_forever()
        return known()

    async with api(target, answer), trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(_asked, target, f"dm_live_{number:032}")
        await trio.sleep(1)
        with trio.move_on_after(5) as waiting:
            async with opened(target, STRANGER, source=ELSEWHERE):
                pass
        if waiting.cancelled_caught:
            raise UnexpectedError("a new key waits for those that nobody knows")
        nursery.cancel_scope.cancel()


async def no_keys(target: Target, count: int = 1_000) -> None:
    """Name 1,000 things that have not the form of a key: nobody is asked for them."""
    asked = 0

    async def answer(path: str, question: dict[str, Any]) -> bytes:
        nonlocal asked
        asked += 1
        return http(b"", "401 Unauthorized")

    async with api(target, answer), trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(_asked, target, f"{number} is no key")
    if asked:
        raise UnexpectedError(f"the API was asked for {asked} things that are no keys")


async def _asked(target: Target, key: str) -> None:
    await talk(target, head_of(target, "POST", "/v1/websocket/token", key))


async def answers(body: bytes, statuses: tuple[int, ...], target: Target, headers: str = "", at_once: int = 10) -> None:
    """Answer commands with these bytes."""

    async def answer(path: str, question: dict[str, Any]) -> bytes:
        return http(body, headers=headers)

    async def one() -> None:
        (await post(target, "/v1/commands", ANY, b'{"action":"act"}')).require(*statuses)

    async with api(target, answer), trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(one)


async def raw_answers(answered: bytes, target: Target, at_once: int = 5) -> None:
    """Answer commands with bytes that are no proper answer."""

    async def answer(path: str, question: dict[str, Any]) -> bytes:
        return answered

    async with api(target, answer), trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(post, target, "/v1/commands", ANY, b'{"action":"act"}')


async def great_reach(target: Target, inboxes: int = 80_000) -> None:
    """Say of a key that it reaches as many inboxes as fit into an answer."""
    said = known(inbox_ids=[f"in_{number:05}" for number in range(inboxes)])

    async def answer(path: str, question: dict[str, Any]) -> bytes:
        return said

    async with api(target, answer):
        for number in range(5):
            await _open_and_ask(target, f"dm_live_{number:032}")


async def _open_and_ask(target: Target, key: str) -> None:
    head = head_of(target, "POST", "/v1/websocket/token", key, ["Content-Length: 2"])
    answer_of(await talk(target, head + b"{}"))


async def many_accounts(target: Target, accounts: int = 10_000) -> None:
    """Publish one list to 10,000 accounts."""
    events = [{"type": "a.b", "payload": {}, "account_id": f"acct_{number}"} for number in range(accounts)]
    (await post(target, "/v1/events", OPERATOR, json.dumps(events).encode())).require(200, 400, 413)


_NUMBERS = filled(b'{"result":{"n":[1', b",1", b"]}}", ANSWER_BYTES)
_LISTS = filled(b'{"result":{"n":[[]', b",[]", b"]}}", ANSWER_BYTES)
_DEEP = b"[" * ANSWER_BYTES
_LINES = filled(b'{"result":{"n":[1', b"\n,1", b"]}}", ANSWER_BYTES)
_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 100_000 + b"0\r\n\r\n"
_HEADERS = b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000 + b"Content-Length: 0\r\n\r\n"
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000 + http(b'{"result":{}}')
_COOKIES = b"HTTP/1.1 200 OK\r\n" + b"".join(b"Set-Cookie: c%05d=1\r\n" % number for number in range(4_000))
_COOKIES += b'Content-Length: 13\r\n\r\n{"result":{}}'
_ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * (16 * MEBIBYTE)


def _answering(name: str, does: str, attack: Callable[[Target], Awaitable[None]]) -> Row:
    return Row(name, f"the operator's API: answers {does}", attack, asks=True)


ROWS = [
    Row("slow-commands", "any key of a free account: 250 commands that take long", slow_commands, asks=True),
    Row("unknown-keys", "no key: 1,000 keys that nobody knows, while the API is slow", unknown_keys, asks=True),
    Row("no-keys", "no key: 1,000 things that are no keys by their form", no_keys, asks=True),
    _answering("answers-of-numbers", "of 1 MiB of numbers", partial(answers, _NUMBERS, (200, 503))),
    _answering("answers-of-lists", "of 1 MiB of `[]`", partial(answers, _LISTS, (200, 503))),
    _answering("answers-of-lines", "of 1 MiB of lines", partial(answers, _LINES, (200, 503))),
    _answering("deep-answers", "of 1 MiB of `[[[[`", partial(answers, _DEEP, (503,))),
    _answering("chunked-answers", "of 100,000 chunks of one byte", partial(raw_answers, _CHUNKS)),
    _answering("answers-of-headers", "of 100,000 header lines", partial(raw_answers, _HEADERS)),
    _answering("interim-answers", "of 100,000 times `100 Continue`", partial(raw_answers, _INTERIM)),
    _answering("answers-of-cookies", "of 4,000 cookies", partial(raw_answers, _COOKIES)),
    _answering("endless-answers", "without end", partial(raw_answers, _ENDLESS)),
    _answering("great-reach", "that say of a key that it reaches 80,000 inboxes", great_reach),
    Row("many-accounts", "operator key: a list for 10,000 accounts", many_accounts, asks=True),
]
