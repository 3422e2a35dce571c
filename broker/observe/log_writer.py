"""Lines for a descriptor that may take none: written by a thread of its own, so that nobody waits for who reads them.

What waits is bounded in bytes. Beyond that lines are dropped, and counted; when there is room again, a line says so.
"""

import logging
import os
import select
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

MAX_WAITING_BYTES: Final = 1_048_576
"""Some three thousand lines."""
CLOSE_SECONDS: Final = 1.0
"""How long the end waits for what was not written yet."""
_WRITE_BYTES: Final = 65_536
"""About so much is written at once."""


class LogWriter:
    """Writes lines to ``descriptor``; ``say_dropped`` makes the line about so many that were dropped."""

    def __init__(
        self, descriptor: int, say_dropped: Callable[[int], bytes], max_waiting_bytes: int = MAX_WAITING_BYTES
    ) -> None:
        self._descriptor = descriptor
        self._say_dropped = say_dropped
        self._max_waiting_bytes = max_waiting_bytes
        self._lines = SimpleQueue[bytes | None]()
        self._putting = threading.Lock()
        self._put_bytes = 0
        """Counted by who puts."""
        self._taken_bytes = 0
        """Of these, counted by the thread."""
        self._refused = 0
        self._failed = 0
        self._told = 0
        """Dropped lines that were spoken of."""
        # A daemon: a descriptor that takes nothing for ever must not keep the process.
        self._thread = threading.Thread(target=self._write_all, name="log writer", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were dropped: there was no room for them, or the descriptor failed."""
        return self._refused + self._failed

    def put(self, line: bytes) -> None:
        """Have a line written, with its end; or drop it. Never waits for the descriptor."""
        with self._putting:
            if self._put_bytes - self._taken_bytes + len(line) > self._max_waiting_bytes:
                self._refused += 1
            else:
                self._put_bytes += len(line)
                self._lines.put(line)

    def drop(self) -> None:
        """Count a line that cannot be made."""
        with self._putting:
            self._refused += 1

    def close(self) -> None:
        """Write what waits, for a second at most, and nothing after that."""
        self._lines.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _write_all(self) -> None:
        open_ = True
        while open_:
            lines, open_ = self._take()
            data = b"".join(lines)
            if not self._write(data):
                self._failed += len(lines)
            self._taken_bytes += len(data)
            dropped = self.dropped
            if dropped > self._told and self._write(self._say_dropped(dropped - self._told)):
                self._told = dropped

    def _take(self) -> tuple[list[bytes], bool]:
        """Return the lines that wait, one at least, up to about one write; and whether there will be more."""
        lines, size = list[bytes](), 0
        line = self._lines.get()
        while line is not None:
            lines.append(line)
            size += len(line)
            if size >= _WRITE_BYTES or self._lines.empty():
                return lines, True
            line = self._lines.get()
        return lines, False

    def _write(self, data: bytes) -> bool:
        """Write all of it; return whether that was possible."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # somebody who shares it has made it so
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True


class WritingHandler(logging.Handler):
    """A handler whose lines are written by a `LogWriter`."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self.writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record written as its formatter has it."""
        try:
            self.writer.put(self.format(record).encode("utf-8", "backslashreplace") + b"\n")
        except Exception:
            self.writer.drop()  # no word of what failed: it may be a client's


def dropped_lines() -> int:
    """Return how many lines of this process's log were dropped; 0 if it is not written by a `WritingHandler`."""
    return sum(
        handler.writer.dropped for handler in logging.getLogger().handlers if isinstance(handler, WritingHandler)
    )
