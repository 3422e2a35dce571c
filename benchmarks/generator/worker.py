"""A process of the generator: holds one object, and calls its methods when it is told to.

Between calls an object with `receive` receives, until there is the next call: its connections are never neglected.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

LIFETIME_SECONDS = 3600
"""No process lives longer: each one sets an alarm that ends it."""
_CALL_SECONDS = 180.0


class WorkerError(Exception):
    """A process of the generator failed; the message says why."""


class Worker:
    """A process with an object that ``make(*arguments, control=descriptor)`` makes there.

    Args:
        name: what it is called in error messages.
        make: importable; the object may have `receive`.
        arguments: of ``make``.
        cores: where it runs; None: anywhere.
        background: whether it gives way at once to everything that is not in the background.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., Any],
        *arguments: Any,
        cores: set[int] | None = None,
        background: bool = False,
    ) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, make, arguments, cores, background), daemon=True, name=name
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def tell(self, method: str, *arguments: Any, **named: Any) -> None:
        """Call a method there; `hear` returns what it returned."""
        try:
            self._pipe.send((method, arguments, named))
        except OSError:
            self.hear()  # what it said before it ended
            raise WorkerError(f"the {self.name} ended") from None

    def hear(self, seconds: float = _CALL_SECONDS) -> Any:
        """Return what the call of `tell` returned; the first one, what was made, is None."""
        if not self._pipe.poll(seconds):
            raise WorkerError(f"the {self.name} did not answer for {seconds:g} s")
        try:
            error, result = self._pipe.recv()
        except EOFError:
            raise WorkerError(f"the {self.name} ended") from None
        if error:
            raise WorkerError(f"the {self.name}: {error}")
        return result

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method there and return what it returned."""
        self.tell(method, *arguments, **named)
        return self.hear()


def _work(
    pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...], cores: set[int] | None, background: bool
) -> None:
    """Be the process."""
    signal.alarm(LIFETIME_SECONDS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends everything in its own order
    if cores is not None:
        os.sched_setaffinity(0, cores)
    if background:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        held = make(*arguments, control=pipe.fileno())
        pipe.send(("", None))
        while True:
            if hasattr(held, "receive"):
                held.receive()
            method, given, named = pipe.recv()
            pipe.send(("", getattr(held, method)(*given, **named)))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        known = type(error).__module__.startswith("benchmarks.")
        pipe.send((str(error) if known else traceback.format_exc(), None))
