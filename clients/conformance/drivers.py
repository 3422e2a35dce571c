"""A driver: a client program of any language as a process, told and heard by lines of JSON."""

import contextlib
import json
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import trio

from .expecting import Changes, MismatchError

READ_BYTES: Final = 65_536
EXIT_SECONDS: Final = 20.0
STDERR_LINES: Final = 12


class Driver:
    """One driver at work, and the trace of what it has written. Made by `open_driver`."""

    def __init__(self, name: str, process: trio.Process, changes: Changes) -> None:
        self.name = name
        self.trace: list[dict[str, Any]] = []
        self.complaints: deque[str] = deque(maxlen=STDERR_LINES)
        """The last that it wrote on standard error."""
        self._process = process
        self._changes = changes
        self.was_killed = False
        self._told = 0
        self._complained = trio.Event()
        """Set when its standard error has ended."""
        changes.forbid(f"{name} wrote what is no line of a trace, or ended by itself", lambda: self._broken)
        self._broken = False

    async def tell(self, do: str, **fields: Any) -> None:
        """Tell it something. What is None is left out."""
        said = {"do": do} | {name: value for name, value in fields.items() if value is not None}
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(json.dumps(said).encode() + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise MismatchError(f"{self.name} has ended by itself") from None

    def on(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """Return what it has written of this so far, with these fields."""
        wanted = {"on": name} | fields
        return [item for item in self.trace if wanted.items() <= item.items()]

    async def until(self, name: str, count: int = 1, *, seconds: float | None = None, **fields: Any) -> dict[str, Any]:
        """Wait until it has written this so many times; return the last. Raises `MismatchError`."""
        limits = {} if seconds is None else {"seconds": seconds}
        what = f"{self.name}: {count} times {json.dumps({'on': name} | fields)}"
        found = await self._changes.until(
            what, lambda: found if len(found := self.on(name, **fields)) >= count else None, **limits
        )
        return found[count - 1]

    @property
    def events(self) -> list[str]:
        """The ids of the events that its handler was called with, in order."""
        return [item["event_id"] for item in self.on("event")]

    async def handle(self, **fields: Any) -> None:
        """Tell it how to handle events; it does so when this returns."""
        await self.tell("handle", **fields)
        await self.settled()

    async def settled(self) -> None:
        """Wait until it has done what it was told, connected or not: it answers a webhook that is none."""
        self._told += 1
        await self.tell("verify", id=f"told {self._told}", headers={}, body="", secret="whsec_" + "A" * 32)
        await self.until("answer", id=f"told {self._told}")

    async def command(self, command_id: str, action: str, **fields: Any) -> None:
        """Tell it to give a command; its answer is for `until`."""
        await self.tell("command", id=command_id, action=action, params=fields.pop("params", {}), **fields)

    async def close(self) -> None:
        """Close its client and wait until it has ended."""
        if not self.on("ended"):
            await self.tell("close")
            await self.until("ended")

    async def kill(self) -> None:
        """End the process as a crash does."""
        self.was_killed = True
        self._process.kill()
        await self._process.wait()

    async def listen(self) -> None:
        """Take its lines until it ends."""
        assert self._process.stdout is not None
        rest = b""
        async for data in self._process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                try:
                    item = json.loads(line)
                    item["on"]
                except (ValueError, TypeError, KeyError):
                    self._broken = True
                    self.complaints.append(f"it wrote: {line[:200]!r}")
                else:
                    self.trace.append(item)
            self._changes.happened()
        with trio.move_on_after(10):
            await self._complained.wait()
        self._broken = self._broken or not (self.was_killed or self.on("ended"))
        self._changes.happened()

    async def listen_to_complaints(self) -> None:
        """Keep the last lines of its standard error."""
        assert self._process.stderr is not None
        rest = b""
        async for data in self._process.stderr:
            *lines, rest = (rest + data).split(b"\n")
            self.complaints.extend(line.decode(errors="replace") for line in lines)
        self._complained.set()

    async def end(self) -> None:
        """Let it read the end of its input, and wait for it. Raises `MismatchError` if it stays, or fails."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        with trio.move_on_after(EXIT_SECONDS):
            code = await self._process.wait()
            if code and not self.was_killed:
                raise MismatchError(f"{self.name} ended with {code}")
            return
        raise MismatchError(f"{self.name} does not end with its input")


@contextlib.asynccontextmanager
async def open_driver(name: str, command: Sequence[str], changes: Changes) -> AsyncIterator[Driver]:
    """Start a driver; kill it with the block."""
    pipe = subprocess.PIPE
    process = await trio.lowlevel.open_process(list(command), stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        async with trio.open_nursery() as nursery:
            driver = Driver(name, process, changes)
            nursery.start_soon(driver.listen)
            nursery.start_soon(driver.listen_to_complaints)
            yield driver
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
