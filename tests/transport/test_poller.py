"""Clients' sockets that are waited for by an epoll of our own: who is woken when, and that nobody is forgotten."""

import contextlib
import socket
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import trio
from steps import Rounds
from trio.testing import wait_all_tasks_blocked as blocked

from broker.transport import poller
from broker.transport.poller import FEW, PolledSocket, open_pollers
from broker.turns import FIRST_LET_IN, MOST_LET_IN, Turns

pytestmark = pytest.mark.skipif(not poller.IS_USABLE, reason="this system has no epoll")


class Client:
    """One end of a pair of sockets that is read by way of the pollers, and the peer's."""

    def __init__(self, pollers):
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self.kernel = ours
        self.polled = PolledSocket(pollers, self.stream, ours)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self.peer.close()

    def close(self):
        self.polled.close()
        self.stream.socket.close()

    async def read(self, who="one"):
        return bytes(await self.polled.receive_some(65_536, who))

    def fill(self):
        """Write until the kernel takes nothing more."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.kernel.send(bytes(65_536))

    def drain(self):
        with contextlib.suppress(BlockingIOError):
            while self.peer.recv(1 << 20):
                pass


@asynccontextmanager
async def opened(*, few=FEW):
    """Open pollers, as they are while so many others wait by trio's own ways."""
    turns = Turns()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        async with open_pollers(turns) as pollers:
            pollers.few = few
            yield pollers
        nursery.cancel_scope.cancel()


@pytest.fixture
async def pollers():
    async with opened() as found:
        yield found


@pytest.fixture
def client(pollers):
    with Client(pollers) as found:
        yield found


async def test_of_many_that_send_at_once_few_are_woken_in_one_turn_of_the_loop_round_the_accounts(pollers):
    rounds, woken = Rounds(), []

    async def read(client, who):
        assert await client.read(who) == b"x"
        woken.append((who, rounds.number))

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(pollers)) for _ in range(200)]
        last = stack.enter_context(Client(pollers))
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(read, client, "crowd")
            nursery.start_soon(read, last, "neighbour")
            await blocked()
            trio.lowlevel.add_instrument(rounds)
            for client in [*clients, last]:
                client.peer.send(b"x")
        trio.lowlevel.remove_instrument(rounds)
    assert len(woken) == 201
    assert max(Counter(number for _, number in woken).values()) <= FIRST_LET_IN + MOST_LET_IN
    assert [who for who, _ in woken].index("neighbour") < 2 * (FIRST_LET_IN + MOST_LET_IN)


async def test_few_wait_as_trio_has_it_and_make_room_for_others_when_they_have_read():
    async with opened(few=0) as pollers:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(pollers)) for _ in range(FEW + 10)]
            await blocked()
            before = trio.lowlevel.current_statistics().io_statistics.tasks_waiting_read
            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    for client in clients:
                        nursery.start_soon(client.read)
                    await blocked()
                    assert pollers.few == FEW
                    assert trio.lowlevel.current_statistics().io_statistics.tasks_waiting_read == before + FEW
                    for client in clients:
                        client.peer.send(b"x")
                assert pollers.few == 0


async def test_what_was_sent_before_is_read_and_nothing_is_missed(client):
    for said in (b"one", b"two"):
        client.peer.send(said)
        assert await client.read() == said
    async with trio.open_nursery() as nursery:
        nursery.start_soon(blocked)
        client.peer.send(bytes(100_000))
        read = 0
        while read < 100_000:
            read += len(await client.read())
    client.peer.close()
    assert await client.read() == b""


async def test_who_is_cancelled_has_lost_nothing(client):
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.read)
            await blocked()
            client.peer.send(b"x")
            nursery.cancel_scope.cancel()
        with trio.move_on_after(0):
            await client.read()
        assert await client.read() == b"x"


async def test_nobody_is_woken_for_a_client_that_is_not_waited_for(client):
    client.peer.send(b"x")
    assert await client.read() == b"x"
    with trio.move_on_after(0):
        await client.read()
    rounds = Rounds()
    trio.lowlevel.add_instrument(rounds)
    for _ in range(10):
        client.peer.send(b"y")
        await blocked()
    trio.lowlevel.remove_instrument(rounds)
    assert rounds.number <= 50, "the loop runs though nobody has anything to do"
    assert await client.read() == b"y" * 10


@pytest.mark.parametrize("few", [0, FEW], ids=["by trio", "by the poller"])
async def test_two_may_not_read_at_once_and_who_reads_is_told_of_the_close(few):
    async with opened(few=few) as pollers:
        with Client(pollers) as client:
            async with trio.open_nursery() as nursery:

                async def read():
                    with pytest.raises(trio.ClosedResourceError):
                        await client.read()

                nursery.start_soon(read)
                await blocked()
                with pytest.raises(trio.BusyResourceError):
                    await client.read()
                client.close()
            with pytest.raises(trio.ClosedResourceError):
                await client.read()


async def test_who_waits_to_write_goes_on_when_there_is_room_and_is_told_of_the_close(client):
    async def send():
        sent.append(await client.polled.send(memoryview(b"last"), "one"))

    async def send_in_vain():
        with pytest.raises(trio.ClosedResourceError):
            await client.polled.send(memoryview(b"last"), "one")

    sent: list[int] = []
    client.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await blocked()
        assert not sent
        client.drain()
    assert sent == [4]
    client.fill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_in_vain)
        await blocked()
        client.close()


async def test_a_reset_is_told_as_trio_tells_it(pollers):
    with socket.create_server(("127.0.0.1", 0)) as listening, Client(pollers) as client:
        peer = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
        with ours, peer:
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            client.polled = PolledSocket(pollers, stream, ours)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()
            with pytest.raises(trio.BrokenResourceError):
                await client.read()
            client.close()


async def test_a_descriptor_that_is_used_again_wakes_its_new_owner_for_what_is_its_own(pollers):
    """The old owner was noted as ready, and closed before it was woken."""
    turns = 20 * MOST_LET_IN
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(Client(pollers)) for _ in range(turns)]
        async with trio.open_nursery() as nursery:

            async def read_until_closed(client):
                with contextlib.suppress(trio.ClosedResourceError):
                    await client.read("crowd")

            for client in crowd:
                nursery.start_soon(read_until_closed, client)
            await blocked()
            for client in crowd:
                client.peer.send(b"old")
            for _ in range(3):
                await trio.lowlevel.checkpoint()  # all are noted, and few were woken
            old = {client.kernel.fileno() for client in crowd}
            for client in crowd:
                client.close()
            new = [stack.enter_context(Client(pollers)) for _ in range(turns)]
            assert old & {client.kernel.fileno() for client in new}
            heard = []

            async def read(client):
                heard.append(await client.read("new"))

            for client in new:
                nursery.start_soon(read, client)
            await blocked()
            assert not heard
            for client in new:
                client.peer.send(b"new")
    assert heard == [b"new"] * turns


async def test_where_the_system_has_no_epoll_trio_is_asked(monkeypatch):
    monkeypatch.setattr(poller, "IS_USABLE", False)
    async with open_pollers(Turns()) as pollers:
        assert pollers is None


@pytest.mark.parametrize("way", ["read", "write"])
async def test_who_waits_after_the_end_of_all_is_cancelled_with_it(way):
    async with opened() as pollers:
        client = Client(pollers)
    with client, trio.CancelScope() as scope:
        client.fill()
        scope.cancel()
        if way == "read":
            await client.read()
        else:
            await client.polled.send(memoryview(b"x"), "one")
    assert scope.cancelled_caught
