"""A broker at work in a thread of its own, for tests that are not async: real sockets, and a clock that can jump."""

import queue
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import outcome
import trio
from trio.testing import MockClock

SECONDS = 70


class Theatre:
    """One task of a loop does what it is given, in order. Its clock runs as ours does, and jumps when told."""

    def __init__(self) -> None:
        self.clock = MockClock(rate=1.0)
        self.stack = AsyncExitStack()
        """What is entered here is left when the curtain falls."""
        self._given: trio.MemorySendChannel[Any]
        self._began: queue.Queue[trio.lowlevel.TrioToken] = queue.Queue()
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._token = self._began.get(timeout=SECONDS)

    def _run(self) -> None:
        try:
            trio.run(self._work, clock=self.clock)
        except BaseException as error:
            self._ended = error

    async def _work(self) -> None:
        self._given, given = trio.open_memory_channel[Any](1)
        self._began.put(trio.lowlevel.current_trio_token())
        async with self.stack:
            async for do, answers in given:
                answers.put(await outcome.acapture(do))

    def do(self, act: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Do it in the loop, and return what it returns."""
        return self.set(_in_time, act, *args)

    def set(self, act: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Do what enters or leaves the `stack`: no scope may be around that."""
        answers: queue.Queue[outcome.Outcome[Any]] = queue.Queue()
        trio.from_thread.run_sync(self._given.send_nowait, (partial(act, *args), answers), trio_token=self._token)
        try:
            return answers.get(timeout=SECONDS).unwrap()
        except queue.Empty:
            raise self._ended or AssertionError("the loop does not answer") from None

    def end(self) -> None:
        """Let the curtain fall."""
        trio.from_thread.run_sync(self._given.close, trio_token=self._token)
        self._thread.join(SECONDS)
        if self._ended is not None:
            raise self._ended


async def _in_time(act: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    with trio.fail_after(SECONDS - 10):
        return await act(*args)
