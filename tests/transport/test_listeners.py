"""Where a server listens, and taking clients whatever runs out."""

import contextlib
import errno
import gc
import logging
import os
import resource
import socket
import stat
from functools import partial

import pytest
import trio
from clients import (
    ask,
    configured,
    open_descriptors,
    parse_answer,
    read_to_end,
    read_until,
    serving,
    until,
    upgrade_head,
)
from processes import has_ipv6

from broker import ServerConfig, open_broker, serve
from broker.transport.listeners import accept_clients, address_of, open_listeners, text_of

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def health_of(stream: trio.abc.Stream) -> int:
    """The status of `/healthz` over a stream."""
    async with stream:
        with trio.fail_after(60):
            await stream.send_all(HEALTH)
            return parse_answer(await read_to_end(stream)).status


async def health_at(path) -> int:
    return await health_of(await trio.open_unix_socket(str(path)))


@contextlib.asynccontextmanager
async def served(**options):
    """A broker that is served; gives its addresses."""
    async with open_broker(configured(server=ServerConfig(**options))) as opened, trio.open_nursery() as nursery:
        yield await nursery.start(serve, opened)
        nursery.cancel_scope.cancel()


# --- hosts -------------------------------------------------------------------


async def test_several_hosts_share_a_port():
    async with served(host=("127.0.0.1", "127.0.0.2"), port=0) as addresses:
        assert [host for host, _ in addresses] == ["127.0.0.1", "127.0.0.2"]
        assert len({port for _, port in addresses}) == 1
        for address in addresses:
            assert (await ask(address, "GET", "/healthz")).status == 200


async def test_hosts_that_are_given_count_before_those_of_the_configuration():
    async with open_broker(configured(server=ServerConfig(host="127.0.0.9"))) as opened, trio.open_nursery() as nursery:
        hosts = ["127.0.0.3", "127.0.0.4"]
        addresses = await nursery.start(partial(serve, opened, host=hosts, port=0))
        assert [host for host, _ in addresses] == hosts
        nursery.cancel_scope.cancel()


@has_ipv6
async def test_all_addresses_are_those_of_ipv4_too():
    async with served(host="::", port=0) as ((host, port),):
        assert host == "::"
        for target in ("127.0.0.1", "::1"):
            assert await health_of(await trio.open_tcp_stream(target, port)) == 200


@has_ipv6
async def test_beside_others_all_addresses_are_those_of_ipv6():
    async with served(host=["0.0.0.0", "::"], port=0) as addresses:
        assert [host for host, _ in addresses] == ["0.0.0.0", "::"]
        for target in ("127.0.0.1", "::1"):
            assert await health_of(await trio.open_tcp_stream(target, addresses[0][1])) == 200


@pytest.mark.parametrize("hosts", [["127.0.0.1"], ["127.0.0.2", "127.0.0.1"]])
async def test_an_address_that_is_taken_is_named(hosts):
    before = open_descriptors()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with open_broker() as opened:
            with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: .*in use") as caught:
                await serve(opened, host=hosts, port=port)
    assert caught.value.errno == errno.EADDRINUSE
    assert open_descriptors() <= before


async def test_a_host_that_is_not_known_is_named():
    async with open_broker() as opened:
        with pytest.raises(OSError, match=r"cannot listen on nowhere\.invalid:0"):
            await serve(opened, host="nowhere.invalid", port=0)


# --- a socket file -----------------------------------------------------------


async def test_a_socket_file_is_served_beside_the_port_for_owner_and_group_and_removed_at_the_end(tmp_path):
    path = tmp_path / "broker.sock"
    async with served(port=0, unix=str(path)) as addresses:
        assert addresses[1] == (str(path), 0)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert await health_at(path) == 200
        assert (await ask(addresses[0], "GET", "/healthz")).status == 200
    assert not path.exists()


async def test_a_socket_file_is_told_as_one_by_whatever_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, shown in (("broker.sock", "unix:broker.sock"), (f"{tmp_path}/other.sock", f"unix:{tmp_path}/other.sock")):
        async with served(port=0, unix=path) as addresses:
            assert text_of(addresses[1]) == shown
            assert text_of(addresses[0]) == f"127.0.0.1:{addresses[0][1]}"


async def test_a_websocket_lives_over_a_socket_file(tmp_path):
    path = tmp_path / "broker.sock"
    async with served(port=0, unix=str(path)), await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(upgrade_head("inbox_ids=in_1"))
        assert (await read_until(stream, b"connection.ready")).startswith(b"HTTP/1.1 101 ")


async def test_a_socket_file_that_nobody_serves_is_replaced(tmp_path):
    path = tmp_path / "broker.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with served(port=0, unix=str(path)):
        assert await health_at(path) == 200


@pytest.mark.parametrize("busy", [False, True])
async def test_a_socket_file_that_somebody_serves_is_left_alone_and_named(tmp_path, busy):
    path = tmp_path / "broker.sock"
    before = open_descriptors()
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(path))
        listening.listen(0)
        if busy:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(path))
        async with open_broker(configured(server=ServerConfig(port=0, unix=str(path)))) as opened:
            with pytest.raises(OSError, match=rf"cannot listen on {path}: .*in use"):
                await serve(opened)
        assert path.is_socket()
    assert open_descriptors() <= before


async def test_a_file_that_is_no_socket_is_left_alone_and_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    async with open_broker(configured(server=ServerConfig(port=0, unix=str(path)))) as opened:
        with pytest.raises(OSError, match=rf"cannot listen on {path}: there is a file"):
            await serve(opened)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gone/broker.sock", "there is no directory '.*/gone'"),
        (f"{'x' * 100}.sock", "the path of a socket has"),
    ],
)
async def test_a_socket_file_that_has_no_place_is_named_with_the_reason(tmp_path, path, said):
    path = str(tmp_path / path)
    async with open_broker(configured(server=ServerConfig(port=0, unix=path))) as opened:
        with pytest.raises(OSError, match=rf"cannot listen on {path}: {said}"):
            await serve(opened)


async def test_a_socket_file_that_somebody_else_has_put_there_is_not_removed(tmp_path):
    path = tmp_path / "broker.sock"
    async with served(port=0, unix=str(path)):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as newer:
            newer.bind(str(path))
    assert path.is_socket()


# --- accepting ---------------------------------------------------------------


class Failing:
    """A listener where somebody always waits; ``accept`` raises or returns what it is told, and then waits, too."""

    def __init__(self, *outcomes: object, comes: bool = True) -> None:
        self.outcomes = list(outcomes)
        self.accepts = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.client = socket.create_connection(self.socket.getsockname()) if comes else None

    def close(self) -> None:
        if self.client is not None:
            self.client.close()
        self.socket.close()

    async def accept(self) -> object:
        await trio.lowlevel.checkpoint()
        if not self.outcomes:
            await trio.sleep_forever()
        self.accepts += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


async def accepted_by(*listeners: Failing) -> list[object]:
    """Who was accepted until nobody comes any more."""
    taken: list[object] = []

    async def serve_client(stream: object) -> None:
        taken.append(stream)

    try:
        async with trio.open_nursery() as clients, trio.open_nursery() as nursery:
            nursery.start_soon(accept_clients, listeners, serve_client, clients)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.close()
    return taken


def lack(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_a_lack_is_said_once_and_its_end_too_and_accepting_goes_on(number, autojump_clock, caplog):
    caplog.set_level(logging.INFO)
    listener = Failing("a", *[lack(number)] * 50, "b", "c", lack(number), "d")
    assert await accepted_by(listener) == ["a", "b", "c", "d"]
    said = [(record.levelname, record.exc_info) for record in caplog.records]
    assert said == [("ERROR", None), ("WARNING", None)] * 2
    assert os.strerror(number) in caplog.records[0].getMessage()


async def test_a_lack_of_several_listeners_is_one(autojump_clock, caplog):
    taken = await accepted_by(Failing(*[lack(errno.EMFILE)] * 20, "a"), Failing(*[lack(errno.EMFILE)] * 30, "b"))
    assert taken == ["a", "b"]
    assert len(caplog.records) == 2


async def test_a_lack_that_keeps_nobody_waiting_is_not_said(autojump_clock, caplog):
    listener = Failing(lack(errno.EMFILE), comes=False)
    assert await accepted_by(listener) == []
    assert (listener.accepts, caplog.records) == (0, [])


async def test_during_a_lack_accepting_is_tried_ten_times_a_second(autojump_clock):
    listener = Failing(*[lack(errno.EMFILE)] * 10_000)
    await accepted_by(listener)
    assert 590 < listener.accepts < 610


async def test_any_other_error_ends_the_server_loudly():
    with pytest.raises(BaseExceptionGroup) as caught:
        await accepted_by(Failing(lack(errno.EBADF)))
    assert caught.group_contains(OSError, match="descriptor")


async def test_listeners_are_closed_with_the_block():
    gc.collect()
    before = open_descriptors()
    async with open_listeners(["127.0.0.1"], 0, None) as (listener,):
        host, port = address_of(listener.socket)
        assert (host, port > 0) == ("127.0.0.1", True)
    assert open_descriptors() == before


async def test_a_real_lack_of_descriptors_is_outlived(caplog):
    """The last descriptors of this process are taken; who came meanwhile is served when they are free."""
    async with serving() as served:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as client:
            client.setblocking(False)
            resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
            try:
                with contextlib.ExitStack() as stack:
                    with contextlib.suppress(OSError):
                        while True:
                            stack.enter_context(socket.socket())
                    with contextlib.suppress(BlockingIOError):
                        client.connect(served.address)
                    await until(lambda: caplog.records)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert await health_of(trio.SocketStream(trio.socket.from_stdlib_socket(client.dup()))) == 200
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
