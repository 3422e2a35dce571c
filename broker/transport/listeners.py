"""Where a server listens: a port on one host or several, and a socket file; and taking clients, whatever runs out.

Binding says which address it is that cannot be had. Accepting outlives a lack of descriptors or memory: it is said once
when it begins and once when it is over, and clients wait in the kernel's queue meanwhile.
"""

import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from ipaddress import ip_address
from typing import Final

import trio

from .stream import SEND_BUFFER_BYTES

logger = logging.getLogger(__name__)

BACKLOG: Final = 4_096
RETRY_SECONDS: Final = 0.1
"""How soon accepting is tried again when there is no descriptor for a client."""
ALL_ADDRESSES: Final = "::"
"""Alone, this host is all addresses, those of IPv4 too; beside others, those of IPv6."""
_USED_UP: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_LONGEST_PATH: Final = 107
"""What a `sockaddr_un` has room for, beside its end."""
_FIRST_HANDED: Final = 3
"""The descriptor behind those of standard input, output and error."""
_SOCKET_UMASK: Final = 0o117
"""Leaves 0660: owner and group."""

Address = tuple[str, int]
"""Host and port; of a socket file its path, and 0."""


@asynccontextmanager
async def open_listeners(
    hosts: Sequence[str], port: int, unix: str | None, handed: Sequence[socket.socket] = ()
) -> AsyncIterator[list[trio.SocketListener]]:
    """Listen on a port of each host (0: any that is free, the same for all), and at a path, until the block ends.

    Where sockets that listen were handed over, these are used, and nothing else is bound.
    Raises `OSError` that names the address.
    """
    async with AsyncExitStack() as stack:
        listeners: list[trio.SocketListener] = []
        for given in handed:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(given))
            listeners.append(await stack.enter_async_context(listener))
        for host in () if handed else hosts:
            with naming(f"{host}:{port}"):
                opened = await _listen(host, port, everywhere=list(hosts) == [ALL_ADDRESSES])
            listeners += [await stack.enter_async_context(listener) for listener in opened]
            port = port or listeners[0].socket.getsockname()[1]
        if unix is not None and not handed:
            opened_at = trio.socket.from_stdlib_socket(stack.enter_context(listening_at(unix)))
            listeners.append(await stack.enter_async_context(trio.SocketListener(opened_at)))
        for listener in listeners:
            # What is accepted inherits the bounded send buffer.
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        yield listeners


def take_handed_over(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """Return the sockets at which a supervisor listens for this process (systemd's `sd_listen_fds`); [] if none.

    They are asked for once: a process that this one starts shall take none. Raises `OSError` that names the descriptor
    that is no socket which listens.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    del environment["LISTEN_PID"]
    count = environment.pop("LISTEN_FDS", "0")
    return [handed_over(fd) for fd in range(_FIRST_HANDED, _FIRST_HANDED + int(count))] if count.isdecimal() else []


def handed_over(descriptor: int) -> socket.socket:
    """Return the socket that has a descriptor. Raises `OSError` that names the descriptor if it does not listen."""
    with naming(f"descriptor {descriptor}"):
        os.set_inheritable(descriptor, False)
        handed = socket.socket(fileno=descriptor)
        if not (handed.type == socket.SOCK_STREAM and handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
            raise OSError(errno.EINVAL, "this is no stream socket that listens")
        return handed


def address_of(listening: socket.socket | trio.socket.SocketType) -> Address:
    """Return where a socket listens."""
    name = listening.getsockname()
    return (name, 0) if isinstance(name, str) else name[:2]


def is_loopback(address: Address) -> bool:
    """Whether only this machine's own programs reach an address; a socket file is for a proxy, which others reach."""
    try:
        return ip_address(address[0].partition("%")[0]).is_loopback
    except ValueError:
        return False


def text_of(address: Address) -> str:
    """Return an address as people write it."""
    host, port = address
    if port == 0:
        return f"unix:{host}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Let an `OSError` name the address that cannot be had."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror or error}") from None


async def _listen(host: str, port: int, *, everywhere: bool) -> list[trio.SocketListener]:
    if not everywhere:
        return await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    listening = trio.socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        await listening.bind((host, port))
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return [trio.SocketListener(listening)]


@contextmanager
def listening_at(path: str) -> Iterator[socket.socket]:
    """Listen at a path that only owner and group may use; at the end it is removed, if it is still ours."""
    listening = socket.socket(socket.AF_UNIX)
    with naming(path):
        try:
            require_place(path)
            _remove_stale(path)
            before = os.umask(_SOCKET_UMASK)
            try:
                listening.bind(path)
            finally:
                os.umask(before)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
    ours = os.stat(path)
    try:
        yield listening
    finally:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), ours):
                os.unlink(path)


def require_place(path: str) -> None:
    """Raise `OSError` where no socket file can be: there is no directory, or another file, or the path is too long."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise OSError(errno.ENOENT, f"there is no directory {folder!r}")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise OSError(errno.ENAMETOOLONG, f"the path of a socket has at most {_LONGEST_PATH} bytes")
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "there is a file that is no socket")


def _remove_stale(path: str) -> None:
    """Remove a socket file on which nobody listens. Raises `OSError` if somebody does."""
    if not os.path.lexists(path):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # somebody listens, and is busy
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


async def accept_clients(
    listeners: Sequence[trio.SocketListener],
    serve_client: Callable[[trio.SocketStream], Awaitable[object]],
    clients: trio.Nursery,
) -> None:
    """Start ``serve_client`` in ``clients`` for everybody who comes, for ever."""
    short: set[trio.SocketListener] = set()
    """Those that could not accept when they tried last."""

    async def accept(listener: trio.SocketListener) -> None:
        # Out of descriptors, the kernel refuses to accept even where nobody waits.
        await trio.lowlevel.wait_readable(listener.socket)
        try:
            stream = await listener.accept()
        except OSError as error:
            if error.errno not in _USED_UP:
                raise
            if not short:
                logger.error("clients wait, and none can be accepted: %s", error.strerror)
            short.add(listener)
            await trio.sleep(RETRY_SECONDS)
            return
        if short == {listener}:
            logger.warning("clients are accepted again")
        short.discard(listener)
        clients.start_soon(serve_client, stream)

    async def accept_all(listener: trio.SocketListener) -> None:
        while True:
            await accept(listener)

    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(accept_all, listener)
