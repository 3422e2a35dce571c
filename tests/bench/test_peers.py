"""The adapters of the brokers that the bench compares: what they say, and what two of them do.

Those that must be installed are only asked for their bytes; `python -m benchmarks.peers` tries them for real.
"""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import h11
import pytest

from benchmarks.generator.churner import Churner
from benchmarks.generator.opening import connect, open_all
from benchmarks.peers import NAMES, PEERS, install, nchan
from benchmarks.peers.adapter import DUE, PeerMissingError, Publication, Running
from benchmarks.peers.broker import READY, BrokerOverTls
from benchmarks.peers.cache import place
from benchmarks.peers.probe import PAYLOAD, ProbeError, Publisher, Subscriber
from benchmarks.peers.process import PeerFailedError, core_count, free_ports, started

OTHERS = [name for name in NAMES if name != "broker"]
BY_HTTP = ["nchan", "centrifugo"]
INSTALLED_BY_MAKE = ["nats", "nchan", "centrifugo", "socketio"]

RUNNING = Running("127.0.0.1", 4711, [], Publication(4712))


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    """A machine without any peer, and without tools."""
    monkeypatch.setenv("BROKER_BENCH_PEERS", str(tmp_path / "peers"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nchan, "SYSTEM", tmp_path)
    return tmp_path


def requests_in(data):
    """Return target, headers and body of each HTTP request in data, read by h11."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        assert isinstance(event, h11.Data), event
        body += bytes(event.data)
    assert connection.trailing_data[0] == b""
    return request.method, request.target, dict(request.headers), body


def test_the_mapping_has_each_name_once_and_no_other():
    assert list(PEERS) == list(NAMES)
    assert len(PEERS) == len(set(NAMES))
    with pytest.raises(KeyError):
        PEERS["adapter"]


def test_importing_the_mapping_imports_no_adapter():
    code = "import sys, benchmarks.peers; print([name for name in sys.modules if name.startswith('benchmarks.peers.')])"
    said = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, check=True)
    assert said.stdout.decode().strip() == "['benchmarks.peers.adapter']"


@pytest.mark.parametrize("name", OTHERS)
def test_an_adapter_is_called_what_it_is_asked_for_by(name):
    assert PEERS[name].name == name
    assert PEERS[name].does


@pytest.mark.parametrize("name", OTHERS)
def test_a_subscriber_asks_for_an_upgrade_that_rfc_6455_allows_and_offers_no_compression(name):
    method, target, headers, body = requests_in(PEERS[name].subscribe(RUNNING, 3).upgrade)
    assert (method, target[:1], body) == (b"GET", b"/", b"")
    assert headers[b"host"] == b"127.0.0.1:4711"
    assert headers[b"upgrade"] == b"websocket"
    assert headers[b"connection"] == b"Upgrade"
    assert headers[b"sec-websocket-version"] == b"13"
    assert b"sec-websocket-extensions" not in headers


@pytest.mark.parametrize("name", OTHERS)
def test_subscribers_of_two_channels_say_different_things(name):
    one, other = (PEERS[name].subscribe(RUNNING, channel) for channel in (3, 4))
    assert (one.upgrade, list(one.messages)) != (other.upgrade, list(other.messages))


@pytest.mark.parametrize("name", OTHERS)
def test_what_publishes_holds_the_payload_as_it_is_and_the_place_of_the_time_once(name):
    data = PEERS[name].publish(RUNNING, 3, PAYLOAD)
    assert PAYLOAD in data
    assert data.count(DUE) == 1
    assert data != PEERS[name].publish(RUNNING, 4, PAYLOAD)


@pytest.mark.parametrize("name", BY_HTTP)
def test_what_publishes_by_http_is_one_whole_request_on_a_connection_that_is_kept(name):
    method, _, headers, body = requests_in(PEERS[name].publish(RUNNING, 3, PAYLOAD))
    assert method == b"POST"
    assert b"connection" not in headers
    assert PAYLOAD in body


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in BY_HTTP])
def test_what_publishes_over_tcp_ends_with_its_line(name):
    data = PEERS[name].publish(RUNNING, 3, PAYLOAD)
    assert data.endswith((PAYLOAD + b"\n", PAYLOAD + b"\r\n"))


@pytest.mark.parametrize(
    ("name", "ping", "pong"),
    [
        ("nats", b"PING\r\n", b"PONG\r\n"),
        ("nats", b"MSG channel.0 1 2\r\n{}\r\nPING\r\n", b"PONG\r\n"),
        ("centrifugo", b"{}", b"{}"),
        ("centrifugo", b'{"push":{}}\n{}', b"{}"),
        ("socketio", b"2", b"3"),
    ],
)
def test_a_peers_own_ping_is_answered(name, ping, pong):
    assert PEERS[name].ping(ping) == pong


@pytest.mark.parametrize("name", OTHERS)
def test_an_event_is_no_ping(name):
    peer = PEERS[name]
    assert peer.ping(peer.publish(RUNNING, 3, PAYLOAD)) is None


@pytest.mark.parametrize("name", INSTALLED_BY_MAKE)
def test_a_missing_peer_says_what_to_do(nothing_installed, name):
    with pytest.raises(PeerMissingError, match="make bench-peers"):
        PEERS[name].version()
    with pytest.raises(PeerMissingError, match="make bench-peers"), PEERS[name].open(None, 1):
        pass


def test_without_a_c_compiler_the_floor_says_so(nothing_installed):
    with pytest.raises(PeerMissingError, match="no C compiler"):
        PEERS["floor"].version()


def test_without_its_library_websockets_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets", None)
    with pytest.raises(PeerMissingError, match="pip install websockets"):
        PEERS["websockets"].version()


def test_where_peers_are_kept_can_be_chosen(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.delenv("BROKER_BENCH_PEERS", raising=False)
    assert place("nats") == Path("/caches/broker-bench/nats")
    monkeypatch.setenv("BROKER_BENCH_PEERS", "/chosen")
    assert place("nats") == Path("/chosen/nats")


def say_to_three(peer, running):
    """Have three subscribers of one channel and one of another; return what they get of two events."""
    with ExitStack() as stack:
        three = [stack.enter_context(Subscriber(peer, running, 1)) for _ in range(3)]
        other = stack.enter_context(Subscriber(peer, running, 2))
        publisher = stack.enter_context(Publisher(peer, running))
        publisher.publish(1, 1_000)
        publisher.publish(2, 2_000)
        return [subscriber.events(1) for subscriber in three], other.events(1)


@pytest.fixture(scope="module")
def place_of_the_floor(tmp_path_factory):
    return tmp_path_factory.mktemp("peers")


@pytest.fixture
def floor(monkeypatch, place_of_the_floor):
    """The floor, compiled for these tests; None where there is no compiler, which it must have said."""
    monkeypatch.setenv("BROKER_BENCH_PEERS", str(place_of_the_floor))
    peer = PEERS["floor"]
    if any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return peer
    with pytest.raises(PeerMissingError, match="no C compiler"), peer.open(None, 1):
        pass
    return None


def test_an_event_reaches_all_of_its_channel_at_the_floor(floor, place_of_the_floor):
    if floor is None:
        return
    with floor.open(None, 3) as running:
        assert say_to_three(floor, running) == ([[1_000]] * 3, [2_000])
        # And again, over what the first subscribers have left behind.
        assert say_to_three(floor, running) == ([[1_000]] * 3, [2_000])
    assert [str(path) for path in (place_of_the_floor / "floor").iterdir()] == [floor.where()]


@pytest.mark.parametrize("length", [54, 125, 126, 65_535, 65_536])
def test_the_floors_frames_are_right_for_each_length_of_header(floor, length):
    if floor is None:
        return
    payload = PAYLOAD.ljust(length)
    with floor.open(None, 1) as running, Subscriber(floor, running, 0) as subscriber:
        with Publisher(floor, running) as publisher:
            publisher.send(floor.publish(running, 0, payload))
        assert subscriber.message() == payload


def test_who_leaves_the_floor_is_forgotten_wherever_it_stood(floor):
    if floor is None:
        return
    with floor.open(None, 1) as running, Publisher(floor, running) as publisher, ExitStack() as stack:
        stay = [stack.enter_context(Subscriber(floor, running, 0)) for _ in range(2)]
        for place_in_line in range(3):
            three = [Subscriber(floor, running, 0) for _ in range(3)]
            with three.pop(place_in_line):
                pass
            publisher.publish(0, 1_000 + place_in_line)
            assert [each.events(1) for each in (*stay, *three)] == [[1_000 + place_in_line]] * 4
            for each in three:
                with each:
                    pass


def test_an_event_reaches_all_of_its_channel_by_websockets():
    peer = PEERS["websockets"]
    with peer.open(None, 3) as running:
        assert say_to_three(peer, running) == ([[1_000]] * 3, [2_000])
        [process_id] = running.process_ids
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


def test_the_broker_over_tls_is_trusted_by_who_knows_its_authority_and_connections_come_and_go():
    peer = BrokerOverTls()
    with peer.open(None, 1) as running:
        with closing(Churner(peer, running, 4, control=0)) as visitors:
            churned = visitors.churn(1, warm_up=0)
        assert (churned.opened > 0, churned.failed) == (True, 0)
        [opened] = open_all(running, [peer.subscribe(running, 0)])
        with opened.socket:
            assert opened.socket.version() == "TLSv1.3"
            assert READY in opened.received
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(replace(running, authority=""), running.port)


def test_a_refused_upgrade_is_told():
    def refuse(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(8192)
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse, args=(listener,))
        thread.start()
        running = Running("127.0.0.1", listener.getsockname()[1], [], Publication(0))
        with pytest.raises(ProbeError, match="403 Forbidden"):
            Subscriber(PEERS["floor"], running, 0)
        thread.join()


def test_a_server_that_ends_is_told_with_its_last_words():
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(PeerFailedError, match="no such thing"), started(command, free_ports(1), None):
        pass


def test_a_server_runs_on_the_cores_that_it_was_given():
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    [port] = free_ports(1)
    with started([sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)], [port], {core}) as process_id:
        assert os.sched_getaffinity(process_id) == {core}
    assert os.sched_getaffinity(0) == before
    assert (core_count({core}), core_count(None)) == (1, len(before))


class Package:
    """Something installable: there once its file is."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "file"

    def version(self) -> str:
        if not self._file.exists():
            raise PeerMissingError("It is not there.")
        return "1.0"

    def where(self) -> str:
        return str(self._file)


def test_what_is_there_is_found_and_what_is_not_is_installed(tmp_path):
    directory = tmp_path / "cache" / "package"
    recipe = install.Recipe(lambda part: (part / "file").touch(), "do it yourself")
    assert install.outcome(Package(directory), directory, recipe) == f"installed 1.0 at {directory}/file"
    assert install.outcome(Package(directory), directory, recipe) == f"found 1.0 at {directory}/file"


def test_what_cannot_be_installed_is_said_with_the_reason_and_leaves_nothing(tmp_path):
    def fail(part: Path) -> None:
        (part / "file").touch()
        raise install.InstallError("no network.")

    directory = tmp_path / "package"
    said = install.outcome(Package(directory), directory, install.Recipe(fail, "do it yourself"))
    assert said == "not possible: no network. Instead: do it yourself."
    assert list(tmp_path.iterdir()) == []
    assert install.outcome(Package(directory), directory, install.Recipe(None, "")) == "not possible: It is not there."


def test_there_is_a_recipe_for_each_peer_and_it_names_the_tool_that_is_missing(nothing_installed):
    assert list(install.RECIPES) == OTHERS
    for name in ("nchan", "centrifugo", "socketio"):
        said = install.outcome(PEERS[name], place(name), install.RECIPES[name])
        assert re.match(r"not possible: (apt-get|go|npm) is not there\. Instead: ", said)
