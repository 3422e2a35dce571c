"""Where the workers of one broker listen: bound once and kept by their parent, so that no worker's end resets a client.

At each address every worker has a socket of its own (`SO_REUSEPORT`), among which the kernel deals out who comes. A
socket file, and what a supervisor handed over, is there once, and all take from it.
"""

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from ..transport.listeners import ALL_ADDRESSES, BACKLOG, Address, address_of, listening_at, naming

_TRIES_FOR_A_FREE_PORT: Final = 10


class WorkerSockets:
    """What the workers of a broker listen at. Made by `open_sockets`."""

    def __init__(self, shared: Sequence[socket.socket], own: Sequence[Sequence[socket.socket]]) -> None:
        self._shared = shared
        self._own = own
        self.addresses: list[Address] = [address_of(each) for each in (*own[0], *shared)]

    def of(self, worker: int) -> list[socket.socket]:
        """Return what a worker listens at."""
        return [*self._own[worker], *self._shared]

    def close_of(self, worker: int) -> None:
        """Let the kernel deal out nobody more to a worker that does not come back."""
        for each in self._own[worker]:
            each.close()


@contextmanager
def open_sockets(
    hosts: Sequence[str], port: int, unix: str | None, workers: int, handed: Sequence[socket.socket] = ()
) -> Iterator[WorkerSockets]:
    """Listen for so many workers on a port of each host (0: any that is free), and at a path, until the block ends.

    Where sockets that listen were handed over, these are used, and nothing else is bound. Raises `OSError` that names
    the address.
    """
    with ExitStack() as stack:
        own: list[list[socket.socket]] = [[] for _ in range(workers)]
        for host in () if handed else hosts:
            everywhere = list(hosts) == [ALL_ADDRESSES]
            with naming(f"{host}:{port}"):
                for family, address in _resolved(host):
                    bound = _bound_for_all(family, (address, port), workers, everywhere)
                    for each, listening in zip(own, bound, strict=True):
                        each.append(stack.enter_context(listening))
                    port = port or own[0][0].getsockname()[1]
        shared = [stack.enter_context(each) for each in handed]
        if unix is not None and not handed:
            shared.append(stack.enter_context(stack.enter_context(listening_at(unix))))
        yield WorkerSockets(shared, own)


def _resolved(host: str) -> Iterator[tuple[socket.AddressFamily, str]]:
    """Yield the addresses of a host that this machine can have."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, address in found:
        try:
            socket.socket(family).close()
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT and len(found) > 1:
                continue
            raise
        yield family, str(address[0])


def _bound_for_all(
    family: socket.AddressFamily, address: tuple[str, int], workers: int, everywhere: bool
) -> list[socket.socket]:
    """Return a socket for each worker that listens at one address; a free port is the same for all of them."""
    for _ in range(_TRIES_FOR_A_FREE_PORT):
        # Who binds alone finds out whether somebody is there: those who share would join another broker unnoticed.
        with _bound(family, address, everywhere, shared=False) as probe:
            free = (address[0], probe.getsockname()[1])
        with ExitStack() as stack:
            try:
                bound = [stack.enter_context(_bound(family, free, everywhere, shared=True)) for _ in range(workers)]
            except OSError as error:
                if error.errno == errno.EADDRINUSE and address[1] == 0:
                    continue
                raise
            for each in bound:
                each.listen(BACKLOG)
            stack.pop_all()
            return bound
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _bound(family: socket.AddressFamily, address: tuple[str, int], everywhere: bool, *, shared: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not everywhere)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound
