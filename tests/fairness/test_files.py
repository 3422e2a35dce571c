"""Clients who come wait for no other processor: each is a file, and there is room for it."""

import socket
import sys
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from processes import GUARD_SECONDS, serving

CLIENTS = 1_000
LAST_WORDS = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def room(process_id: int) -> int:
    """How many files a process may open before its table of them grows, and it waits for that."""
    with open(f"/proc/{process_id}/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("FDSize:"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_the_table_of_open_files_does_not_grow_while_a_thousand_clients_come():
    with serving() as (broker, url), ExitStack() as stack:
        address, before = (urlsplit(url).hostname, urlsplit(url).port), room(broker.pid)
        for _ in range(CLIENTS):
            last = stack.enter_context(socket.create_connection(address, GUARD_SECONDS))
        last.sendall(LAST_WORDS)
        assert last.recv(4_096).startswith(b"HTTP/1.1 200 ")
        assert room(broker.pid) == before
