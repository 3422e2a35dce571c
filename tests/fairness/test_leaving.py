"""What is asked of others leaves nothing for the garbage collector, whatever they answer.

What it leaves it looks at in one long step; and what of it is frozen before it is garbage stays for a long time.
"""

import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
from apis import SECRET
from commanding import ALICE, Caller, configured
from garbage import garbage
from trio.testing import wait_all_tasks_blocked as blocked

from broker import CommandsConfig, RequestError, open_broker
from broker.access.lookup import Lookup, asks_api
from broker.callout import open_callout
from broker.config import WebhooksConfig
from broker.webhooks.connecting import Resolver
from broker.webhooks.sender import Post, open_sender

TIMES = 3
TIMEOUT_SECONDS = 0.2
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n"
RESULT = b'{"result":{}}'
KEY = b'{"account_id":"acct","tier":"free","key_id":"key","ttl_seconds":60,"scopes":[],"inbox_ids":null}'
ANSWERS = {
    "nobody listens": None,
    "a result": HEAD % (len(RESULT), b"") + RESULT,
    "a key": HEAD % (len(KEY), b"") + KEY,
    "the last result of a connection": HEAD % (len(RESULT), b"Connection: close\r\n") + RESULT,
    "no JSON": HEAD % (4, b"") + b"what",
    "too much": HEAD % (2_000_000, b"") + b" " * 2_000_000,
    "no HTTP": b"what is asked?\r\n\r\n",
    "half of a head": b"HTTP/1.1 200",
    "nothing": b"",
}
each_answer = pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[str]:
    """The URL of somebody who says this to each request; None: of nobody."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            while b"\r\n\r\n" in await stream.receive_some(65_536):
                if not answer:
                    await trio.sleep_forever()
                try:
                    await stream.send_all(answer)
                except trio.BrokenResourceError:
                    break
                if not answer.endswith((b"}", b"what")):
                    break

    if answer is None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{taken.getsockname()[1]}/"
        return
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel()


async def left_by(ask) -> Counter[type]:
    """What some questions, each with a number of its own, leave for the garbage collector."""
    await ask(0)
    await blocked()
    with garbage() as left:
        for number in range(1, 1 + TIMES):
            await ask(number)
        await blocked()
    return left


@each_answer
async def test_a_command_that_the_operators_api_was_asked_for_leaves_nothing(answer):
    async with answering(answer) as url:
        commands = CommandsConfig(url=url, secret=SECRET, timeout_seconds=TIMEOUT_SECONDS)
        async with open_broker(configured(commands=commands)) as opened:

            async def ask(number: int) -> None:
                sent = Caller(opened, ALICE).send("work", f"r{number}")
                while not sent.outcomes:
                    await blocked(0.001)

            assert await left_by(ask) == Counter()


@each_answer
async def test_a_key_that_the_operators_api_was_asked_for_leaves_nothing(answer):
    async with (
        answering(answer) as url,
        open_callout(url, SECRET, TIMEOUT_SECONDS) as callout,
        trio.open_nursery() as nursery,
    ):
        lookup = Lookup(asks_api(callout), TIMEOUT_SECONDS)
        await nursery.start(lookup.run)

        async def ask(number: int) -> None:
            with suppress(RequestError):
                await lookup.find(f"digest {number}", None)

        assert await left_by(ask) == Counter()
        nursery.cancel_scope.cancel()


@each_answer
async def test_a_post_to_an_endpoint_leaves_nothing(answer, monkeypatch):
    monkeypatch.setattr("broker.webhooks.sender.ATTEMPT_SECONDS", TIMEOUT_SECONDS)
    config = WebhooksConfig(allow_http=True, allow_networks=("127.0.0.0/8",))
    async with answering(answer) as url, open_sender(config) as sender:

        async def ask(number: int) -> None:
            await sender.post(Post("endpoint", "acct", url, (SECRET,), f"e{number}", b"{}"))

        assert await left_by(ask) == Counter()


async def test_nor_does_one_to_an_endpoint_that_answers_at_its_second_address_alone():
    def look_up(name: str, port: int, **_: object) -> list[tuple]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.2", "127.0.0.1")]

    config = WebhooksConfig(allow_http=True, allow_networks=("127.0.0.0/8",))
    async with (
        answering(ANSWERS["the last result of a connection"]) as url,
        open_sender(config, Resolver(look_up)) as sender,
    ):
        named = url.replace("127.0.0.1", "hooks.example.test")

        async def ask(number: int) -> None:
            posted = await sender.post(Post("endpoint", "acct", named, (SECRET,), f"e{number}", b"{}"))
            assert posted.status == 200

        assert await left_by(ask) == Counter()
