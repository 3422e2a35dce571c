"""An endpoint at work: how it is doing, and what is under way to it. `endpoint` has what is kept of it."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Final

import trio
from msgspec import Struct

from ..access.keys import Key
from ..access.rates import TokenBucket
from ..log.letters import Route
from ..schedule import Alarm
from .breaker import Breaker
from .endpoint import Endpoint

Announce = Callable[[str, str, Mapping[str, Any]], None]
"""Publishes an event of the broker's own to an account: its type, its payload."""

DOINGS: Final = ("active", "failing", "paused", "disabled")
"""How endpoints do: by their status; of the active ones those that fail are told apart."""
TESTS_PER_SECOND: Final = 0.2
TESTS_AT_ONCE: Final = 3


class Health(Struct, frozen=True):
    """Since when an endpoint fails (seconds since 1970; None: it does not), and whether its account was told."""

    failing_since: float | None = None
    said: bool = False


class Live:
    """One endpoint. ``number`` is its row's."""

    __slots__ = (
        "alarm",
        "breaker",
        "endpoint",
        "health",
        "key",
        "next_due",
        "number",
        "route",
        "serving",
        "tests",
        "under_way",
        "watching",
    )

    def __init__(self, number: int, endpoint: Endpoint, health: Health) -> None:
        self.number = number
        self.endpoint = endpoint
        self.health = health
        self.key: Key | None = None
        """What its key reaches now; None: that is not known, or it is gone: nothing is posted."""
        self.route: Route = endpoint.route(number, endpoint.key)
        self.watching = ExitStack()
        """Of its key."""
        self.breaker = Breaker()
        self.next_due: float | None = 0.0
        """When the first of its letters may be due (seconds since 1970), never too late; None: none waits."""
        self.under_way = 0
        self.serving = False
        """Whether letters are being claimed."""
        self.alarm = Alarm()
        """When it is looked at again."""
        self.tests = TokenBucket.full(TESTS_PER_SECOND, TESTS_AT_ONCE, trio.current_time())

    @property
    def may_post(self) -> bool:
        """Whether letters are posted."""
        return self.endpoint.status == "active" and self.key is not None

    @property
    def doing(self) -> str:
        """How it does: one of `DOINGS`."""
        is_failing = self.endpoint.status == "active" and self.health.failing_since is not None
        return "failing" if is_failing else self.endpoint.status

    @property
    def name(self) -> str:
        """What its connections are kept by."""
        return f"{self.endpoint.account_id}/{self.number}"

    def due(self, due_at: float | None) -> None:
        """Hear when a letter may be due."""
        if due_at is not None and (self.next_due is None or due_at < self.next_due):
            self.next_due = due_at

    def close(self) -> None:
        """Watch no key any more, and wait for nothing."""
        self.watching.close()
        self.alarm.clear()
