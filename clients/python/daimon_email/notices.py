"""What happens to the connection, told to the program in order, beside the events: it never holds the reader up."""

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import anyio

from .handling import Handlers, logger

MAX_NOTICES: Final = 1_000


class Notices:
    """What `connected`, `disconnected`, `gap` and `error` handlers are still to be told. `run` tells them, in order.

    No event is handed on before a notice that came earlier, unless a handler of one is at work already.
    """

    def __init__(self, handlers: Handlers, changed: Callable[[], None]) -> None:
        self._handlers = handlers
        self._waiting: deque[Callable[[], Awaitable[None]]] = deque()
        self._at_work = False
        self._changed = changed
        self._wakened = anyio.Event()

    def begin(self) -> None:
        """Begin with nothing."""
        self._waiting.clear()
        self._at_work = False
        self._wakened = anyio.Event()

    def tell(self, name: str, *arguments: Any) -> None:
        """Let the handlers of a name be called."""
        self._put(partial(self._handlers.tell, name, *arguments))

    def report(self, what: str, error: Exception) -> None:
        """Say that something failed."""
        self._put(partial(self._handlers.report, what, error))

    def _put(self, notice: Callable[[], Awaitable[None]]) -> None:
        if len(self._waiting) >= MAX_NOTICES:
            logger.error("a handler of connected, disconnected, gap or error does not return; what comes is not told")
            return
        self._waiting.append(notice)
        self._wake()

    @property
    def unheard(self) -> bool:
        """Whether something is to be told before the next event."""
        return bool(self._waiting) and not self._at_work

    async def told(self) -> None:
        """Wait until everything is told."""
        while self._waiting or self._at_work:
            await self._wakened.wait()

    async def run(self) -> None:
        """Tell, for ever."""
        while True:
            while self._waiting:
                notice = self._waiting.popleft()
                self._at_work = True
                self._wake()
                try:
                    await notice()
                finally:
                    self._at_work = False
            self._wake()
            await self._wakened.wait()

    def _wake(self) -> None:
        self._wakened.set()
        self._wakened = anyio.Event()
        self._changed()
