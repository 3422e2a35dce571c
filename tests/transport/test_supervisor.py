"""A supervisor that does not read for a while."""

import socket
from contextlib import suppress

import trio
from supervisors import OTHERS, fill

from broker.transport.supervisor import SAY_SECONDS, Supervisor


def read_all(supervisor):
    messages = []
    with suppress(BlockingIOError):
        while True:
            messages.append(supervisor.recv(4_096))
    return messages


async def test_it_is_told_that_clients_are_taken_however_late_it_reads(tmp_path, autojump_clock):
    notify = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(notify)
        supervisor.setblocking(False)
        fill(notify)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Supervisor({"NOTIFY_SOCKET": notify}).begun, "listening")
            await trio.sleep(10 * SAY_SECONDS)
            assert set(read_all(supervisor)) == {OTHERS}
        assert read_all(supervisor) == [b"READY=1\nSTATUS=listening"]
