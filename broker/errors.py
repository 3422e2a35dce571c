"""What can go wrong, and what the other side is told.

    BrokerError
    ├─ ConfigError       the configuration does not load; the message names the setting
    ├─ StorageError      the log on disk cannot be used; the message names the file
    ├─ RequestError      one request or command is refused; the connection lives on
    ├─ CommandError      a handler refuses a command
    ├─ BadFrameError     a client's frame is no command
    ├─ BadCommandError   a client's frame is a command with a broken envelope
    └─ BrokerClosedError the broker is draining or gone

Each error code of PROTOCOL section 4 has its HTTP status here, each close code of section 5 its
answer to "shall the client come back?".
"""

from enum import IntEnum
from typing import Any, Final, TypeVar

ErrorT = TypeVar("ErrorT", bound=BaseException)
BUSY_RETRY_MS: Final = 1_000
"""When who was refused because something is busy, or away for the moment, may come again."""

NEED_A_LOG_ON_DISK: Final = (
    "need a log on disk (storage.path), and this broker has none: of nodes that share an engine, ask the one that has"
)
"""What is said of webhooks and queues where there are none."""

HTTP_STATUS = {
    "bad_request": 400,
    "invalid_json": 400,
    "invalid_params": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "unknown_action": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout_reading": 408,
    "request_id_reused": 409,
    "conflict": 409,
    "lease_lost": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "upgrade_required": 426,
    "rate_limited": 429,
    "connection_limit": 429,
    "head_too_large": 431,
    "internal": 500,
    "unavailable": 503,
    "draining": 503,
    "timeout": 504,
    "version_not_supported": 505,
}
"""HTTP status of each error code (PROTOCOL sections 2 and 4; 405, 408, 431, 505 from RFC 9110 and 6585)."""


class CloseCode(IntEnum):
    """WebSocket close codes (PROTOCOL section 5)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NOT_UTF8 = 1007
    TOO_MANY_BAD_FRAMES = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    RESTART = 1012
    REVOKED = 4401
    HEARTBEAT_MISSED = 4408
    REPLACED = 4409

    @property
    def come_back(self) -> bool:
        """Whether a client closed with this code should reconnect."""
        return self not in _STAY_AWAY


_STAY_AWAY = frozenset(
    {
        CloseCode.PROTOCOL_ERROR,
        CloseCode.NOT_UTF8,
        CloseCode.TOO_MANY_BAD_FRAMES,
        CloseCode.REVOKED,
        CloseCode.REPLACED,
    }
)


class BrokerError(Exception):
    """The root of all errors that the broker raises on purpose."""


class ConfigError(BrokerError):
    """The configuration does not load. The message names the setting."""


class StorageError(BrokerError):
    """The log on disk cannot be used: not ours, not whole, or somebody else's now. The message names the file."""


class BrokerClosedError(BrokerError):
    """The broker is draining or has ended; nothing was stored."""


class RequestError(BrokerError):
    """One request or command is refused.

    ``code`` is a key of `HTTP_STATUS`, ``message`` a sentence for the client that names the field
    at fault, ``retry_after_ms`` when it may come back, ``headers`` what the HTTP answer needs beside it.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after_ms: int | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.headers = headers

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code; 400 for a code of a handler's own."""
        return HTTP_STATUS.get(self.code, 400)

    def with_headers(self, headers: tuple[tuple[str, str], ...]) -> "RequestError":
        """Return the same refusal, whose HTTP answer has these headers too."""
        return RequestError(
            self.code, self.message, retry_after_ms=self.retry_after_ms, headers=(*self.headers, *headers)
        )

    def again(self) -> "RequestError":
        """Return the same refusal, to be raised by who keeps this one: raised, it would hold what it is kept in."""
        return self.with_headers(())

    def as_json(self) -> dict[str, Any]:
        """The ``error`` object of an answer (PROTOCOL section 4)."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.retry_after_ms is not None:
            body["retry_after_ms"] = self.retry_after_ms
        return body

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


def request_id_reused() -> RequestError:
    """Return what is told to who gives a `request_id` again with other content (PROTOCOL section 4)."""
    return RequestError("request_id_reused", "The same request_id came before with other content")


def nothing_to_change() -> RequestError:
    """Return the refusal of a change that names none of the fields: answered with 200, it would be taken for done."""
    return RequestError("invalid_params", "There is no field in it that can be changed - at `$`")


def as_closed(error: RequestError) -> RequestError | BrokerClosedError:
    """Return a refusal as the library raises it: where a client is told that the broker drains, it is closed."""
    return BrokerClosedError(error.message) if error.code == "draining" else error


def first_of(error: BaseException) -> BaseException:
    """Return the first exception in a group, however deep; what is no group, as it is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def part_from_frames(error: ErrorT) -> ErrorT:
    """Part an error, and all that it came from, from the frames that they were raised in; return it.

    These hold what was dealt with, and a frame that knows what its error is kept in is freed by the garbage collector
    alone. It is for who keeps an error, or is done with it.
    """
    parted: set[int] = set()
    left: list[BaseException] = [error]
    while left:
        each = left.pop()
        if id(each) in parted:
            continue
        parted.add(id(each))
        each.__traceback__ = None
        left += [behind for behind in (each.__cause__, each.__context__) if behind is not None]
        if isinstance(each, BaseExceptionGroup):
            left += each.exceptions
    return error


class CommandError(BrokerError):
    """Raised by a command's handler to refuse it; the client gets ``code`` and ``message`` as they are."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class BadFrameError(BrokerError):
    """The frame is no command (PROTOCOL section 4). ``error`` is what to answer."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(error)
        self.error = error


class BadCommandError(BrokerError):
    """The frame is a command, but its envelope is broken. ``error`` is what to answer."""

    def __init__(self, action: str, request_id: str | None, error: RequestError) -> None:
        super().__init__(error)
        self.action = action
        self.request_id = request_id
        self.error = error
