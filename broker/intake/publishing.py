"""The `publish` commands of one connection: each done at once where that is possible, else in their order."""

from typing import Final, Protocol

import trio

from ..access.keys import Key
from ..commands.dispatch import Commands, Lane, Reply, refused
from ..commands.remembered import Outcome, Run
from ..commands.requests import PublishRequest
from ..errors import RequestError
from ..protocol.messages import Published, encode

MAX_WAITING_PUBLISHES: Final = 64
"""Publish commands of one connection that wait for the fan-out; the next one is refused."""
_RETRY_PUBLISH_MS: Final = 1_000


class Publisher(Protocol):
    """Takes the events of a client's `publish`; raises `RequestError`."""

    def publish_raw_nowait(self, key: Key, raw: bytes, path: str, lane: Lane) -> list[Published] | None:
        """Publish at once, or return None if that must wait."""
        ...

    async def publish_raw(self, key: Key, raw: bytes, path: str, lane: Lane) -> list[Published]:
        """Publish, waiting for the fan-out if it is behind."""
        ...


class Publishing:
    """What one connection publishes. Whoever gets True from `submit` lets `do_waiting` run."""

    def __init__(self, publisher: Publisher, commands: Commands, lane: Lane) -> None:
        self._publisher = publisher
        self._commands = commands
        self._lane = lane
        self._waiting: list[tuple[PublishRequest, Run]] = []
        self._scope: trio.CancelScope | None = None
        self._stopped = False

    def submit(self, publish: PublishRequest, reply: Reply) -> bool:
        """Publish, or let it wait; ``reply`` gets the outcome. Returns whether it is the first that waits."""
        try:
            run = self._commands.begin(self._lane, publish.request, reply)
        except RequestError as error:
            reply(refused(error))
            return False
        if run is None:
            return False
        try:
            outcome = self._publish_nowait(publish)
        except Exception:
            self._commands.finish(self._lane, run, refused(RequestError("internal", "The publish failed")))
            raise
        if outcome is not None:
            self._commands.finish(self._lane, run, outcome)
            return False
        self._waiting.append((publish, run))
        return len(self._waiting) == 1

    def _publish_nowait(self, publish: PublishRequest) -> Outcome | None:
        """Publish, or refuse to; None if it must wait, for the fan-out or for those that wait already."""
        if len(self._waiting) >= MAX_WAITING_PUBLISHES:
            message = f"{MAX_WAITING_PUBLISHES} publish commands are under way"
            return refused(RequestError("rate_limited", message, retry_after_ms=_RETRY_PUBLISH_MS))
        if self._waiting:
            return None
        try:
            published = self._publisher.publish_raw_nowait(publish.request.key, publish.raw, publish.path, self._lane)
        except RequestError as error:
            return refused(error)
        return None if published is None else _outcome_of(published)

    async def do_waiting(self) -> None:
        """Publish what waits, one after the other, until there is nothing left or it is stopped."""
        with trio.CancelScope() as self._scope:
            while self._waiting and not self._stopped:
                publish, run = self._waiting[0]
                try:
                    published = await self._publisher.publish_raw(
                        publish.request.key, publish.raw, publish.path, self._lane
                    )
                    outcome = _outcome_of(published)
                except RequestError as error:
                    outcome = refused(error)
                self._waiting.pop(0)
                self._commands.finish(self._lane, run, outcome)

    def stop(self) -> None:
        """Publish nothing more of what waits."""
        self._stopped = True
        if self._scope is not None:
            self._scope.cancel()

    def give_up(self) -> None:
        """Refuse what waits: the client left."""
        while self._waiting:
            _, run = self._waiting.pop(0)
            self._commands.finish(self._lane, run, refused(RequestError("unavailable", "The client left")))


def _outcome_of(published: list[Published]) -> Outcome:
    return Outcome(encode({"events": published}))
