"""What a scene expects, and the waiting for it: always with a deadline, always with words for what did not come."""

from collections.abc import Callable
from typing import Final, TypeVar

import trio

STEP_SECONDS: Final = 20.0
"""For one thing to happen, on a busy machine, unless a scene says otherwise. A command is given up after 30."""

T = TypeVar("T")


class MismatchError(Exception):
    """A client did not do what it must."""


def expect(what: str, found: object, expected: object) -> None:
    """Compare. Raises `MismatchError`."""
    if found != expected:
        raise MismatchError(f"{what}: {found!r} instead of {expected!r}")


def require(what: str, holds: object) -> None:
    """Raise `MismatchError` with these words unless it holds."""
    if not holds:
        raise MismatchError(what)


class Changes:
    """Tells those who wait that something has happened: a line of a driver, a frame on the proxy."""

    def __init__(self) -> None:
        self._parked = trio.lowlevel.ParkingLot()
        self._forbidden: list[tuple[str, Callable[[], object]]] = []

    def happened(self) -> None:
        """Let those who wait look again."""
        self._parked.unpark_all()

    def forbid(self, what: str, condition: Callable[[], object]) -> None:
        """Let every wait from now on fail at once if this holds."""
        self._forbidden.append((what, condition))

    def check(self) -> None:
        """Raise `MismatchError` if something happened that must not."""
        for what, condition in self._forbidden:
            if condition():
                raise MismatchError(what)

    async def until(self, what: str, condition: Callable[[], T | None], seconds: float = STEP_SECONDS) -> T:
        """Wait until there is something, and return it. Raises `MismatchError` with ``what`` when time is up."""
        with trio.move_on_after(seconds):
            while True:
                self.check()
                found = condition()
                if found:
                    return found
                await self._parked.park()
        raise MismatchError(f"not within {seconds:g} s: {what}")

    async def never(self, what: str, condition: Callable[[], object], seconds: float) -> None:
        """Watch for so long that something does not happen. Raises `MismatchError` with ``what`` if it does."""
        with trio.move_on_after(seconds):
            while not condition():
                self.check()
                await self._parked.park()
            raise MismatchError(what)
