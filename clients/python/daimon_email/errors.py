"""What the client raises."""


class DaimonError(Exception):
    """The root of all that the client raises."""


class ConnectionEndedError(DaimonError):
    """The connection is gone, and is not opened again.

    ``code`` is the close code, or the refusal's own (`unauthorized`); ``status`` the HTTP status of a refusal.
    """

    def __init__(self, message: str, *, code: int | str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status


def closed(more: str = "") -> ConnectionEndedError:
    """Return what a client says that is closed."""
    return ConnectionEndedError(f"the client is closed{more}", code=1000)


class CommandError(DaimonError):
    """The broker, or who does the command, refused it."""

    def __init__(self, code: str, message: str, retry_after_ms: int | None = None, *, duplicate: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms
        """When it may be tried again."""
        self.duplicate = duplicate
        """Whether it is what another command with the same `once` was refused with."""


class TimedOutError(DaimonError, TimeoutError):
    """A command had no answer in time. It may have been done."""


class OverflowingError(DaimonError):
    """Too much waits for the connection to open."""
