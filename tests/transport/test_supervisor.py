"""A supervisor that does not read for a while."""

import socket
from contextlib import suppress

import trio

from broker.transport.supervisor import SAY_SECONDS, Supervisor

OTHERS = b"STATUS=others"


def read_all(supervisor):
    messages = []
    with suppress(BlockingIOError):
        while True:
            messages.append(supervisor.recv(4_096))
    return messages


async def test_it_is_told_that_clients_are_taken_however_late_it_reads(tmp_path, autojump_clock):
    notify = str(tmp_path / "notify")
    datagrams = (socket.AF_UNIX, socket.SOCK_DGRAM)
    with socket.socket(*datagrams) as supervisor, socket.socket(*datagrams) as others:
        supervisor.bind(notify)
        others.connect(notify)
        for end in (supervisor, others):
            end.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                others.send(OTHERS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Supervisor({"NOTIFY_SOCKET": notify}).begun, "listening")
            await trio.sleep(10 * SAY_SECONDS)
            assert set(read_all(supervisor)) == {OTHERS}
        assert read_all(supervisor) == [b"READY=1\nSTATUS=listening"]
