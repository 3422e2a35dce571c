"""Commands that wait for their answers, over any number of connections."""

import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

import anyio

from .errors import CommandError, DaimonError, OverflowingError

MAX_WAITING: Final = 1_000
MAX_WAITING_BYTES: Final = 8_388_608


class Pending:
    """One command, until it has its answer."""

    __slots__ = ("answered", "error", "result", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.answered = anyio.Event()
        self.result: Any = None
        self.error: DaimonError | None = None


class Commands:
    """All commands of a client that have no answer yet, in the order in which they were given."""

    def __init__(self) -> None:
        self._pending: dict[str, Pending] = {}
        self._bytes = 0
        self._ended: DaimonError | None = None

    def give(self, action: str, fields: Mapping[str, Any], request_id: str | None = None) -> tuple[str, Pending]:
        """Note a command; return its request_id and what is to be sent.

        Raises `OverflowingError`, or why it ended; ValueError and TypeError if the fields are no JSON.
        """
        if self._ended is not None:
            raise self._ended
        if len(self._pending) >= MAX_WAITING or self._bytes > MAX_WAITING_BYTES:
            raise OverflowingError(f"{len(self._pending)} commands wait for their answers")
        if request_id in self._pending:
            raise ValueError(f"request_id: {request_id!r} waits for its answer already")
        request_id = request_id or f"req_{secrets.token_hex(12)}"
        command = {"action": action, "request_id": request_id, **fields}
        pending = Pending(json.dumps(command, separators=(",", ":"), allow_nan=False))
        self._pending[request_id] = pending
        self._bytes += len(pending.text)
        return request_id, pending

    def drop(self, request_id: str) -> None:
        """Wait for a command's answer no longer, and do not send it again."""
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            self._bytes -= len(pending.text)

    def unanswered(self) -> Iterable[tuple[str, str]]:
        """Return what is to be sent to a new connection: ids and texts, in order."""
        return [(request_id, pending.text) for request_id, pending in self._pending.items()]

    def answer(self, frame: Mapping[str, Any]) -> bool:
        """Hear an answer; return whether a command waited for it."""
        request_id = str(frame.get("request_id"))
        pending = self._pending.get(request_id)
        if pending is None:
            return False
        self.drop(request_id)
        error = frame.get("error")
        if error is None:
            pending.result = frame.get("result")
        else:
            pending.error = CommandError(
                str(error.get("code")),
                str(error.get("message")),
                error.get("retry_after_ms"),
                duplicate=bool(frame.get("duplicate")),
            )
        pending.answered.set()
        return True

    @property
    def waiting(self) -> bool:
        """Whether a command has no answer yet."""
        return bool(self._pending)

    def refuse(self, request_id: str, error: DaimonError) -> None:
        """Let a command fail: it is not sent again."""
        pending = self._pending.get(request_id)
        if pending is not None:
            self.drop(request_id)
            pending.error = error
            pending.answered.set()

    def refuse_longest(self, error: DaimonError) -> None:
        """Let the longest fail, if there is one."""
        if self._pending:
            self.refuse(max(self._pending, key=lambda request_id: len(self._pending[request_id].text)), error)

    def begin(self) -> None:
        """Take commands, also after an end."""
        self._ended = None

    def end(self, error: DaimonError) -> None:
        """Let all that waits fail, and all that is given from now on."""
        self._ended = error
        for request_id in list(self._pending):
            self.refuse(request_id, error)


def too_large() -> CommandError:
    """Return what a command is refused with that the broker would not read."""
    return CommandError("too_large", "The broker takes no message of this size")
