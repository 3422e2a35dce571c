"""A queue at work: who waits for its jobs, and which leases are current. `queue` has what is kept of it."""

from collections.abc import Callable, Mapping
from typing import Any

import trio

from ..errors import RequestError
from ..log.jobs import Lease, Worker
from ..schedule import Alarm
from .queue import Queue

Announce = Callable[[str, str, Mapping[str, Any]], None]
"""Publishes an event of the broker's own to an account: its type, its payload."""


class Waiter:
    """A worker that waits for jobs. `answered` is set when it is to look what it got."""

    __slots__ = ("answered", "being_served", "error", "is_gone", "leases", "until", "waiting", "was_served", "worker")

    def __init__(self, worker: Worker, until: float) -> None:
        self.worker = worker
        self.until = until
        """When it waits no longer (trio's clock)."""
        self.answered = trio.Event()
        self.leases: list[Lease] = []
        self.waiting = 0
        """Jobs that wait still, when it was served."""
        self.error: RequestError | None = None
        self.being_served = False
        self.was_served = False
        """Whether it was its turn once, whatever there was."""
        self.is_gone = False
        """Whether nobody hears the answer any more."""


class Live:
    """One queue. ``number`` is its row's."""

    __slots__ = (
        "alarm",
        "granting",
        "is_new",
        "leases",
        "number",
        "over",
        "queue",
        "said_stalled",
        "waiters",
        "waits_since",
    )

    def __init__(self, number: int, queue: Queue, leases: dict[str, float]) -> None:
        self.number = number
        self.queue = queue
        self.leases = leases
        """Those that are current, and until when (seconds since 1970)."""
        self.waiters: list[Waiter] = []
        """In the order of their turns."""
        self.granting = False
        """Whether jobs are being given."""
        self.is_new = False
        """Whether there may be more to give than what is being given was chosen of."""
        self.said_stalled = False
        """Whether the account was told that it stalls."""
        self.waits_since: float | None = None
        """Since when its oldest job waits, when that was looked at last (seconds since 1970)."""
        self.alarm = Alarm()
        """When it is looked at again."""
        self.over = Alarm()
        """When the first of its leases may be over."""

    def close(self) -> None:
        """Wait for nothing, and let nobody wait."""
        self.alarm.clear()
        self.over.clear()
        self.leases.clear()
        for waiter in self.waiters:
            waiter.error = RequestError("not_found", "The queue is gone")
            waiter.answered.set()
