"""A sender in a thread with a loop of its own: what crosses over, and how it ends."""

import threading
from contextlib import asynccontextmanager

import pytest
import trio
from receivers import receiving

from broker import ConfigError
from broker.config import WebhooksConfig
from broker.errors import first_of
from broker.webhooks.apart import open_apart
from broker.webhooks.sender import Outcome, Post, open_sender
from broker.webhooks.signing import secret_of

POST = Post("wh", "acct", "http://hooks.test/", (secret_of(bytes(32)),), "evt_1", b"{}")
TAKEN = Outcome(200, None, 0.1)


class Posts:
    """Stands for a sender; ``events`` are of the test's own loop, by way of its token."""

    def __init__(self):
        self.threads = []
        self.here = trio.lowlevel.current_trio_token()
        self.begun, self.cancelled, self.closed = trio.Event(), trio.Event(), trio.Event()
        self.hangs = False

    async def post(self, post):
        self.threads.append(threading.get_ident())
        if self.hangs:
            self.here.run_sync_soon(self.begun.set)
            try:
                await trio.sleep_forever()
            finally:
                self.here.run_sync_soon(self.cancelled.set)
        return TAKEN

    @asynccontextmanager
    async def opened(self):
        try:
            yield self
        finally:
            self.here.run_sync_soon(self.closed.set)


async def test_posts_are_made_in_another_thread_and_their_outcomes_come_back():
    posts = Posts()
    async with open_apart(posts.opened) as apart:
        assert await apart.post(POST) == TAKEN
        assert await apart.post(POST) == TAKEN
    assert len(set(posts.threads)) == 1
    assert posts.threads[0] != threading.get_ident()
    await posts.closed.wait()


async def test_a_post_that_is_cancelled_here_is_cancelled_there():
    posts = Posts()
    posts.hangs = True
    async with open_apart(posts.opened) as apart:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(apart.post, POST)
            await posts.begun.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            await posts.cancelled.wait()
        posts.hangs = False
        assert await apart.post(POST) == TAKEN


async def test_whoever_cancels_the_block_ends_the_thread_and_all_that_is_under_way():
    posts = Posts()
    posts.hangs = True
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def run():
                async with open_apart(posts.opened) as apart:
                    await apart.post(POST)

            nursery.start_soon(run)
            await posts.begun.wait()
            nursery.cancel_scope.cancel()
        await posts.cancelled.wait()
        await posts.closed.wait()


async def test_what_cannot_be_opened_there_is_raised_here(tmp_path):
    config = WebhooksConfig(ca_file=str(tmp_path / "none.pem"))
    with pytest.raises(BaseExceptionGroup) as raised:
        async with open_apart(lambda: open_sender(config)):
            pass
    assert isinstance(first_of(raised.value), ConfigError)


async def test_a_fault_of_the_sender_ends_the_block():
    posts = Posts()

    async def fail(post):
        raise ZeroDivisionError

    posts.post = fail
    with pytest.raises(BaseExceptionGroup) as raised:
        async with open_apart(posts.opened) as apart:
            await apart.post(POST)
    assert isinstance(first_of(raised.value), ZeroDivisionError)


async def test_a_real_sender_posts_from_there():
    async with receiving() as receiver:
        config = WebhooksConfig(allow_networks=("127.0.0.0/8",), allow_http=True)
        async with open_apart(lambda: open_sender(config)) as apart:
            post = Post("wh", "acct", receiver.url, POST.secrets, "evt_1", b"{}")
            assert (await apart.post(post)).status == 200
        receiver.requests[0].verify(POST.secrets[0])
