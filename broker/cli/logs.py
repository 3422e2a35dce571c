"""The log of `serve`: a line of JSON, or one for people, for all that is said by `logging`, written by a thread.

No key, token or secret is in a line, whoever said it: what looks like one is cut off behind its prefix. Of an exception
there are its type and where it was raised; not what it says, which may be a client's words. Whoever embeds the broker
sets up `logging` by himself.
"""

import logging
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..config import LogsConfig
from ..logline import LogLine
from ..observe.log_writer import LogWriter, WritingHandler
from ..protocol.messages import format_time

if TYPE_CHECKING:
    from structlog.typing import Processor

_CREDENTIAL: Final = re.compile(r"(dm_live|dm_operator|wst|whsec)_[A-Za-z0-9+/=_.:~%-]+")
MOST_TRACEBACKS: Final = 10
"""In a minute, of what is logged at one place."""
_MOST_FRAMES: Final = 30
"""Of a traceback: its innermost ones."""
_MOST_EXCEPTIONS: Final = 10
"""Of a group, and of those that led to it."""


@contextmanager
def open_log(config: LogsConfig, worker: int | None = None) -> Iterator[LogWriter]:
    """Let `logging` write to standard error, as a configuration has it, until the block ends.

    Where one of several workers writes, each line has its number.

    What others than the broker say is written from warnings on: what httpx says below that has the URL of each callout.
    """
    descriptor = _standard_error()
    terminal = os.isatty(descriptor)
    as_json = config.format == "json" or (config.format == "auto" and not terminal)
    formatter = LineFormatter(_json() if as_json else _console(terminal and not os.environ.get("NO_COLOR")), worker)
    writer = LogWriter(descriptor, formatter.dropped)
    handler = WritingHandler(writer)
    handler.setFormatter(formatter)
    root, ours = logging.getLogger(), logging.getLogger("broker")
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    ours.setLevel(config.level.upper())
    logging.captureWarnings(True)
    try:
        yield writer
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        writer.close()


def without_credentials(text: str) -> str:
    """Return a text in which what looks like a credential is cut off behind its prefix."""
    return _CREDENTIAL.sub(r"\1_…", text)


def _standard_error() -> int:
    """Return its descriptor. Where it was closed, another file has its number by now: then the log goes nowhere."""
    try:
        return sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return os.open(os.devnull, os.O_WRONLY)


class LineFormatter(logging.Formatter):
    """Makes one line of a record, by one of structlog's renderers; a traceback on a console is some more."""

    def __init__(self, render: "Processor", worker: int | None = None) -> None:
        super().__init__()
        self._render = render
        self._whose = {} if worker is None else {"worker": worker}
        self._minute = 0
        self._told: Counter[tuple[str, int]] = Counter()
        """In this minute, how often it was told where an exception was raised, by where that is logged."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line = record.msg if isinstance(record.msg, LogLine) else None
        fields: dict[str, Any] = {
            "timestamp": format_time(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "event": _printable(record.getMessage() if line is None else line.what),
            "logger": record.name,
            **self._whose,
        }
        if line is not None:
            fields |= {
                name: _printable(value) if isinstance(value, str) else value for name, value in line.fields.items()
            }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields["exception"] = told_where(error) if self._may_tell_where(record) else type(error).__name__
        return without_credentials(str(self._render(None, record.levelname, fields)))

    def _may_tell_where(self, record: logging.LogRecord) -> bool:
        """Whether a traceback is due: what a client can have fail again and again is not told in full each time."""
        minute, place = int(record.created // 60), (record.name, record.lineno)
        if minute != self._minute:
            self._minute = minute
            self._told.clear()
        self._told[place] += 1
        return self._told[place] <= MOST_TRACEBACKS

    def dropped(self, lines: int) -> bytes:
        """Return the line that says that so many were dropped."""
        said = LogLine("log lines were dropped: standard error takes none", lines=lines)
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, said, None, None)
        return self.format(record).encode() + b"\n"


def _json() -> "Processor":
    from structlog.processors import JSONRenderer

    return JSONRenderer(serializer=lambda fields, **_: msgspec.json.encode(fields).decode())


def _console(colors: bool) -> "Processor":
    from structlog.dev import ConsoleRenderer

    render = ConsoleRenderer(colors=colors, pad_event_to=20, sort_keys=False)
    return lambda logger, name, fields: render(logger, name, {k: v for k, v in fields.items() if k != "logger"})


def _printable(text: str) -> str:
    """Return a text on one line: a client's own words must not look like another one."""
    return text if text.isprintable() else ascii(text)[1:-1]


def told_where(error: BaseException) -> str:
    """Return what an exception and those that led to it are, and where they were raised: none of their own words."""
    told: list[str] = []
    waiting = [error]
    while waiting and len(told) < _MOST_EXCEPTIONS:
        error = waiting.pop(0)
        frames = traceback.extract_tb(error.__traceback__)[-_MOST_FRAMES:]
        told.append(f"{type(error).__name__}{_number_of(error)}\n{''.join(traceback.format_list(frames))}")
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is not None:
            waiting.append(cause)
    return "after ".join(told).rstrip()


def _number_of(error: BaseException) -> str:
    """Return what the operating system says of an error of its own: these words are nobody else's."""
    return f": {os.strerror(error.errno)}" if isinstance(error, OSError) and error.errno is not None else ""
