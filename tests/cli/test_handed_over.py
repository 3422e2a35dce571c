"""`broker serve` with sockets that somebody else opened, as systemd hands them over."""

import os
import socket
import subprocess
import sys
import urllib.request

from processes import GUARD_SECONDS, line_with

START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid() + int(sys.argv[2])), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "broker", "serve", "--port", "0"])
"""


def started(given: socket.socket, *, pid_is_off_by: int = 0, **options) -> subprocess.Popen:
    """A `broker serve` that has this socket as its descriptor 3."""
    descriptor = given.fileno()
    command = [sys.executable, "-c", START, str(descriptor), str(pid_is_off_by)]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, pass_fds=(descriptor,), env={**os.environ, **options}
    )


def test_a_socket_that_is_handed_over_is_used_and_nothing_is_bound():
    with socket.create_server(("127.0.0.1", 0)) as given, started(given) as process:
        try:
            port = given.getsockname()[1]
            assert process.stderr.readline().endswith(f"listening on http://127.0.0.1:{port}\n")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=GUARD_SECONDS) as answer:
                assert answer.status == 200
        finally:
            process.terminate()
        assert process.wait(GUARD_SECONDS) == 0


def test_workers_share_the_socket_that_is_handed_over_to_their_parent():
    with socket.create_server(("127.0.0.1", 0)) as given, started(given, BROKER_SERVER__WORKERS="2") as process:
        try:
            port = given.getsockname()[1]
            line = line_with(process.stderr, "listening on")
            assert line.startswith("broker:")
            assert line.endswith(f"2 workers, listening on http://127.0.0.1:{port}\n")
            for _ in range(10):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=GUARD_SECONDS) as answer:
                    assert answer.status == 200
        finally:
            process.terminate()
        assert process.wait(GUARD_SECONDS) == 0


def test_a_socket_that_was_meant_for_another_process_is_not_touched():
    with socket.create_server(("127.0.0.1", 0)) as given, started(given, pid_is_off_by=1) as process:
        try:
            line = process.stderr.readline()
            assert "listening on" in line
            assert f":{given.getsockname()[1]}\n" not in line
        finally:
            process.terminate()
        assert process.wait(GUARD_SECONDS) == 0


def test_a_descriptor_that_does_not_listen_is_an_error_in_one_line():
    with socket.socket() as given, started(given) as process:
        assert process.wait(GUARD_SECONDS) == 1
        said = process.stderr.read()
    assert "descriptor 3" in said
    assert "Traceback" not in said
