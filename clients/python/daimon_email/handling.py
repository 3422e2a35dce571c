"""Handlers, and the queue before them: in order, so many at once, bounded in bytes."""

import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, Literal

import anyio
from anyio.abc import TaskGroup

from .events import Event

logger = logging.getLogger("daimon_email")

MAX_QUEUE_BYTES: Final = 8_388_608
MAX_READ_ON_BYTES: Final = 67_108_864
"""Read even so while a command waits for its answer."""
_LOOK_AHEAD: Final = 1_000
"""Events that are looked through for one that may be handled now."""

Handler = Callable[..., Any]
Order = Literal["thread", "inbox"] | None


class Handling:
    """What a handler that is at work gives its commands: the event, its lease, and how often it has given each."""

    def __init__(self, event: Event, lease_id: str | None = None) -> None:
        self.event = event
        self.lease_id = lease_id
        self._given: dict[tuple[str, str], int] = {}

    def once(self, action: str, inbox_id: str) -> str:
        """Return the name by which the next command of this action in this inbox is done once."""
        number = self._given[action, inbox_id] = self._given.get((action, inbox_id), 0) + 1
        return self.event.event_id if number == 1 else f"{self.event.event_id}:{number}"


handling: ContextVar[Handling | None] = ContextVar("handling", default=None)
"""Set while a handler of an event runs."""
inside: ContextVar[bool] = ContextVar("inside", default=False)
"""Whether this runs in a handler of whatever."""


def takes_two(handler: Handler) -> bool:
    """Whether a handler takes the whole event beside its subject."""
    try:
        parameters = inspect.signature(handler).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters) >= 2 or any(
        p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters
    )


class Handlers:
    """Handlers by the name of what they are for."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[Handler]] = {}

    def add(self, name: str, handler: Handler) -> None:
        """Let ``handler`` be called for a type of events, or for what happens to the connection."""
        self._by_name.setdefault(name, []).append(handler)

    def of(self, name: str) -> list[Handler]:
        """Return the handlers of a name; `message.*` and `*` are for what begins so."""
        found = list(self._by_name.get(name, ()))
        for pattern, handlers in self._by_name.items():
            if pattern.endswith("*") and name.startswith(pattern[:-1]) and pattern != name:
                found += handlers
        return found

    async def tell(self, name: str, *arguments: Any) -> None:
        """Call the handlers of something that is no event. One that fails is reported."""
        inside.set(True)
        for handler in list(self._by_name.get(name, ())):
            try:
                await _call(handler, *arguments)
            except Exception as error:
                await self.report(f"a handler of {name}", error, tell=name != "error")

    async def report(self, what: str, error: Exception, *, tell: bool = True) -> None:
        """Say that something failed: to the handlers of `error`, else to the log."""
        if tell and self._by_name.get("error"):
            await self.tell("error", error)
        else:
            logger.error("%s failed", what, exc_info=error)

    async def handle(self, event: Event) -> bool:
        """Call all handlers of an event; return whether none of them failed."""
        well = True
        inside.set(True)
        token = handling.set(Handling(event))
        try:
            for handler in self.of(event.type):
                try:
                    await _call(handler, *((event.subject, event) if takes_two(handler) else (event.subject,)))
                except Exception as error:
                    well = False
                    await self.report(f"a handler of {event.type}", error)
        finally:
            handling.reset(token)
        return well


async def _call(handler: Handler, *arguments: Any) -> None:
    answer = handler(*arguments)
    if isinstance(answer, Awaitable):
        await answer


class Queue:
    """Events that wait for their handlers. `run` hands them on; whoever reads the socket waits for `room`.

    ``held`` says whether something else is to be told first. ``must_read`` says whether the socket is to be read even
    if the queue is full: a handler may wait for what is behind the events there.
    """

    def __init__(
        self,
        handle: Callable[[Event], Awaitable[None]],
        concurrency: int,
        order: Order,
        *,
        held: Callable[[], bool] = lambda: False,
        must_read: Callable[[], bool] = lambda: False,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency: {concurrency} is less than 1")
        self._handle = handle
        self._concurrency = concurrency
        self._order = order
        self._held = held
        self._must_read = must_read
        self._events: deque[Event] = deque()
        self._busy: set[str | None] = set()
        self._running = 0
        self._bytes = 0
        self._changed = anyio.Event()
        self._stopped = False
        self.paused = False

    def begin(self) -> None:
        """Begin with nothing."""
        self._events.clear()
        self._busy.clear()
        self._running = self._bytes = 0
        self._changed = anyio.Event()
        self._stopped = False

    def stop(self) -> None:
        """Hand nothing on any more; what waits is left."""
        self._stopped = True

    def put(self, event: Event) -> None:
        """Let an event wait for its turn."""
        self._events.append(event)
        self._bytes += event.size
        self.wake()

    def pause(self) -> None:
        """Hand nothing on from now on."""
        self.paused = True

    def resume(self) -> None:
        """Hand on again."""
        self.paused = False
        self.wake()

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be read."""
        return self._bytes > (MAX_READ_ON_BYTES if self._must_read() else MAX_QUEUE_BYTES)

    async def room(self) -> None:
        """Wait until there is room for more."""
        while self.is_full:
            await self._changed.wait()

    async def idle(self) -> None:
        """Wait until no handler is at work."""
        while self._running:
            await self._changed.wait()

    def wake(self) -> None:
        """Look again what is to be done."""
        self._changed.set()
        self._changed = anyio.Event()

    async def run(self, tasks: TaskGroup) -> None:
        """Hand events to their handlers, for ever."""
        while True:
            event = self._next()
            if event is None:
                await self._changed.wait()
                continue
            self._running += 1
            key = self._key(event)
            if key is not None:
                self._busy.add(key)
            tasks.start_soon(self._do, event, key)

    def _next(self) -> Event | None:
        if self.paused or self._stopped or self._held() or self._running >= self._concurrency:
            return None
        for place, event in enumerate(self._events):
            if place == _LOOK_AHEAD:
                break
            if self._key(event) not in self._busy:
                del self._events[place]
                return event
        return None

    def _key(self, event: Event) -> str | None:
        if self._order is None or self._concurrency == 1:
            return None
        return event.thread if self._order == "thread" else event.inbox_id

    async def _do(self, event: Event, key: str | None) -> None:
        try:
            await self._handle(event)
        finally:
            self._running -= 1
            self._bytes -= event.size
            self._busy.discard(key)
            self.wake()
