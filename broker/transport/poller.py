"""Whose socket is ready: epolls of our own, so that a thousand clients that send at once are woken in turns.

trio looks at all sockets that became ready in one turn of the loop, and wakes every task that waits for one: for a
thousand that is tens of milliseconds before the network is looked at again, however little each then does. Here one
task of trio's waits for an epoll that has all clients in it, and notes who is ready, a microsecond each. Who is noted
is woken as turns of the loop have room for it, round the accounts: whoever else sends something is soon among them.

For one client alone that is a turn of the loop more. So the first few wait as trio has it: more of them never wake at
once.

A socket is asked for anew for each wait (EPOLLONESHOT), and answers at once if it is ready by then: so nothing is
missed, whatever came before, and a client that nobody waits for wakes nobody.
"""

import errno
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from ..turns import Turns, Who

NOTED_AT_ONCE: Final = 512
"""Of those who are ready, so many are noted in one step: half a millisecond."""
FEW: Final = 16
"""While no more wait to read, they wait by trio's own epoll."""
IS_USABLE: Final = hasattr(select, "epoll")
"""Whether this system has an epoll; where it has none, trio's own ways are used."""


class _Poller:
    """Wakes those who wait for sockets to be ready in one way, in the order that ``turns`` have."""

    def __init__(self, turns: Turns, way: int) -> None:
        self.turns = turns
        self._wanted = way | select.EPOLLONESHOT
        self._epoll = select.epoll()
        self._waiting: dict[int, _Readiness] = {}
        """By their descriptors, those whose socket is asked for: none of them is closed."""

    async def run(self) -> None:
        """Wake whoever waits, for ever."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for descriptor, _ in self._epoll.poll(0, NOTED_AT_ONCE):
                    readiness = self._waiting.pop(descriptor, None)
                    if readiness is not None:
                        self.turns.wake(readiness.who, readiness.go_on)
        finally:
            self._epoll.close()

    def ask(self, readiness: "_Readiness", descriptor: int, *, again: bool) -> None:
        """Let somebody be woken, once, when his socket is ready: as soon as now.

        After the end of all this nobody is: what ended it has cancelled him, too.
        """
        if self._epoll.closed:
            return
        if again:
            self._epoll.modify(descriptor, self._wanted)
        else:
            self._epoll.register(descriptor, self._wanted)
        self._waiting[descriptor] = readiness

    def forget(self, descriptor: int) -> None:
        """Wake nobody for a socket any more."""
        self._waiting.pop(descriptor, None)

    def let_go(self, descriptor: int) -> None:
        """Have nothing to do any more with a socket that is to be closed."""
        self.forget(descriptor)
        if not self._epoll.closed:
            self._epoll.unregister(descriptor)


class _Readiness:
    """One socket's, in one way; one task at a time waits for it."""

    __slots__ = ("_asked", "_poller", "_socket", "_task", "closed", "who")

    def __init__(self, poller: _Poller, kernel: socket.socket) -> None:
        self._poller = poller
        self._socket = kernel
        self._task: trio.lowlevel.Task | None = None
        """The one that waits."""
        self._asked = False
        """Whether the socket is in the epoll."""
        self.closed = False
        self.who: Who = None
        """In whose name that task is woken."""

    def begin_to_wait(self, who: Who) -> None:
        """Let this task be woken by `go_on`; it is to wait in this very step, with `stop_waiting` as its abort."""
        if self.closed:
            raise trio.ClosedResourceError("this socket was closed")
        if self._task is not None:
            raise trio.BusyResourceError("another task waits for this socket")
        try:
            self._poller.ask(self, self._socket.fileno(), again=self._asked)
        except OSError as error:
            raise trio.BrokenResourceError(f"the socket cannot be waited for: {error}") from error
        self._asked = True
        self._task = trio.lowlevel.current_task()
        self.who = who

    def stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        """Be cancelled: who is noted already is woken no more."""
        self._task = None
        self._poller.forget(self._socket.fileno())
        return trio.lowlevel.Abort.SUCCEEDED

    def go_on(self) -> None:
        """Let the task that waits, if one does, look at its socket."""
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def close(self) -> None:
        """Let nobody wait any more."""
        self.closed = True
        if self._asked:
            self._asked = False
            self._poller.let_go(self._socket.fileno())
        self.go_on()


class Pollers:
    """What wakes those who read, and those who write, where there are more than a few of them."""

    def __init__(self, turns: Turns) -> None:
        self.reading = _Poller(turns, select.EPOLLIN)
        self.writing = _Poller(turns, select.EPOLLOUT)
        self.few = 0
        """Those who read, or wait to, by trio's own ways."""


class PolledSocket:
    """The socket of a stream, read and written by tasks that are woken in turns."""

    __slots__ = ("_more", "_pollers", "_readable", "_reads", "_socket", "_stream", "_writable")

    def __init__(self, pollers: Pollers, stream: trio.SocketStream, kernel: socket.socket) -> None:
        self._pollers = pollers
        self._stream = stream
        self._socket = kernel
        self._readable = _Readiness(pollers.reading, kernel)
        self._writable = _Readiness(pollers.writing, kernel)
        self._reads = False
        """Whether a task reads, or waits to."""
        self._more = False
        """Whether the last read brought as much as it might: there may be more."""

    async def receive_some(self, max_bytes: int, who: Who) -> bytes | bytearray:
        """Read as the stream does, in somebody's name."""
        if self._reads:
            raise trio.BusyResourceError("another task reads from this socket")
        self._reads = True
        try:
            if self._pollers.few < FEW:
                self._pollers.few += 1
                try:
                    return await self._stream.receive_some(max_bytes)
                finally:
                    self._pollers.few -= 1
            if self._more:
                await trio.lowlevel.checkpoint_if_cancelled()
                data = self._receive(max_bytes)
                if data is not None:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    return data
            while True:
                self._readable.begin_to_wait(who)
                await trio.lowlevel.wait_task_rescheduled(self._readable.stop_waiting)
                data = self._receive(max_bytes)
                if data is not None:
                    return data
        finally:
            self._reads = False

    def _receive(self, max_bytes: int) -> bytes | None:
        """Read what there is; None: nothing."""
        if self._readable.closed:
            raise trio.ClosedResourceError("this socket was closed")
        try:
            data = self._socket.recv(max_bytes)
        except BlockingIOError:
            self._more = False
            return None
        except OSError as error:
            if error.errno == errno.EBADF:
                raise trio.ClosedResourceError("this socket was closed") from None
            raise trio.BrokenResourceError(f"the connection is broken: {error}") from error
        self._more = len(data) == max_bytes
        return data

    async def send(self, data: memoryview, who: Who) -> int:
        """Wait, in somebody's name, until the kernel takes something, and write that; return how many bytes.

        Raises `OSError`.
        """
        while True:
            self._writable.begin_to_wait(who)
            await trio.lowlevel.wait_task_rescheduled(self._writable.stop_waiting)
            if self._writable.closed:
                raise trio.ClosedResourceError("another task closed this socket")
            try:
                return self._socket.send(data)
            except BlockingIOError:
                continue

    def close(self) -> None:
        """Let nobody wait any more. The socket is closed by the caller, in this very step."""
        self._readable.close()
        self._writable.close()


@asynccontextmanager
async def open_pollers(turns: Turns) -> AsyncIterator[Pollers | None]:
    """Wake those who wait for sockets until the block ends; None where the system has no epoll."""
    if not IS_USABLE:
        yield None
        return
    pollers = Pollers(turns)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pollers.reading.run)
        nursery.start_soon(pollers.writing.run)
        yield pollers
        nursery.cancel_scope.cancel()
