"""A sender in a thread with a loop of its own: connections to endpoints do not make subscribers wait.

What crosses over are posts and their outcomes, each by a call that cannot fail: what is raised in such a call ends
the whole loop.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Protocol

import trio

from .sender import Outcome, Post


class Posts(Protocol):
    """What posts: a sender in this loop, or one that is apart."""

    async def post(self, post: Post) -> Outcome:
        """Post once, and return what came of it."""
        ...


class _Call:
    """A post that has crossed over, and its outcome when it is back."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self.scope = trio.CancelScope()
        """Of the other loop."""
        self.outcome: Outcome | None = None
        self.is_back = trio.Event()


class SenderApart:
    """Posts in another thread. Made by `open_sender_apart`."""

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[Posts]]) -> None:
        self._opened = opened
        self._here = trio.lowlevel.current_trio_token()
        self._there: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._posts: Posts | None = None

    async def post(self, post: Post) -> Outcome:
        """Post once, and return what came of it. If this is cancelled, so is the post."""
        assert self._there is not None
        call = _Call(post)
        self._there.run_sync_soon(self._begin, call)
        try:
            await call.is_back.wait()
        except trio.Cancelled:
            with suppress(trio.RunFinishedError):
                self._there.run_sync_soon(call.scope.cancel)
            raise
        assert call.outcome is not None
        return call.outcome

    def _begin(self, call: _Call) -> None:
        assert self._nursery is not None
        if not self._nursery.cancel_scope.cancel_called:
            self._nursery.start_soon(self._do, call)

    async def _do(self, call: _Call) -> None:
        assert self._posts is not None
        with call.scope:
            call.outcome = await self._posts.post(call.post)
            with suppress(trio.RunFinishedError):
                self._here.run_sync_soon(call.is_back.set)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the other loop in its thread until `stop` is called, or this is cancelled."""
        ready = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_thread, ready)
            try:
                await ready.wait()
                task_status.started()
                await trio.sleep_forever()
            finally:
                self.stop()

    async def _run_thread(self, ready: trio.Event) -> None:
        # A thread cannot be cancelled; `stop` ends its loop.
        await trio.to_thread.run_sync(trio.run, self._main, ready, limiter=trio.CapacityLimiter(1))

    async def _main(self, ready: trio.Event) -> None:
        async with self._opened() as posts, trio.open_nursery() as nursery:
            self._posts, self._nursery = posts, nursery
            self._there = trio.lowlevel.current_trio_token()
            with suppress(trio.RunFinishedError):
                self._here.run_sync_soon(ready.set)
            await trio.sleep_forever()

    def stop(self) -> None:
        """End the other loop, and all that is under way in it."""
        if self._there is not None and self._nursery is not None:
            with suppress(trio.RunFinishedError):
                self._there.run_sync_soon(self._nursery.cancel_scope.cancel)


@asynccontextmanager
async def open_apart(opened: Callable[[], AbstractAsyncContextManager[Posts]]) -> AsyncIterator[Posts]:
    """Keep what ``opened`` opens in a thread of its own for as long as the block lasts.

    What it raises there is raised here.
    """
    apart = SenderApart(opened)
    async with trio.open_nursery() as nursery:
        await nursery.start(apart.run)
        try:
            yield apart
        finally:
            nursery.cancel_scope.cancel()
