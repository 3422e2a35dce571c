"""`broker serve --workers`: several processes that are one broker to clients, operators and supervisors."""

import json
import os
import re
import select
import signal
import socket
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import GUARD_SECONDS, KEY, line_with, process, serving
from proofs.proving import only_in_make_prove
from supervisors import OTHERS, fill

from broker.keys import hash_key

OTHER_KEY = "dm_live_another_one_of_the_same_account"
CONFIG = f"""
[server]
drain_seconds = 3
workers = 2
[[accounts]]
id = "acct_test"
tier = "growth"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
"""
MORE = f"""
[[accounts.keys]]
id = "key_other"
sha256 = "{hash_key(OTHER_KEY)}"
"""
MANY = 200
ENOUGH_FOR_EACH = 20
"""Connections after which each of two workers has had one, but once in a million times."""


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Workers that many tests share: whatever one of them does to them, they are whole again. With its socket file."""
    folder = tmp_path_factory.mktemp("w")
    config, path = folder / "broker.toml", folder / "broker.sock"
    config.write_text(CONFIG)
    with serving("--config", config, guard_seconds=600, BROKER_SERVER__UNIX=str(path)) as (started, url):
        yield started, url, config, path


def asked(url, path, key=None, body=None):
    """What is answered, over a connection of its own."""
    headers = {"Connection": "close"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(urllib.request.Request(url + path, body, headers), timeout=GUARD_SECONDS) as answer:
        return json.load(answer)["result"] if "/v1/" in path else answer.status


def children(parent, *, named):
    """The processes below a parent that have this in their command, by their ids."""
    found = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    return [int(pid) for pid in found if named in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")]


def workers_of(parent):
    return children(parent, named=b"-m broker serve")


def ended(pids):
    """Whether all these processes end, be they whose they are."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with open(descriptor) as opened:
            if not select.select([opened], [], [], GUARD_SECONDS)[0]:
                return False
    return True


def waiting_client(url):
    """A client that has asked, and waits."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    connected = socket.create_connection((host, int(port)), timeout=GUARD_SECONDS)
    connected.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    return connected


def lines_until(stream, wanted):
    """What is written, up to a line that has this in it."""
    lines = []
    while not lines or wanted not in lines[-1]:
        lines.append(stream.readline())
        assert lines[-1], lines
    return lines


# --- its life ----------------------------------------------------------------


def test_it_says_in_one_line_that_all_listen_and_a_signal_drains_all_and_leaves_nothing(config_path, tmp_path):
    path = tmp_path / "broker.sock"
    options = {"BROKER_SERVER__UNIX": str(path)}
    with process("serve", "--config", config_path, "--port", "0", **options) as started, ExitStack() as stack:
        line = lines_until(started.stderr, "listening on")[-1]
        assert "a private server of the workers: a restart forgets the window of 300 s, 2 workers" in line
        [url] = re.findall(rf", 2 workers, listening on (http://127\.0\.0\.1:\d+) and unix:{path}\n$", line)
        assert len(workers_of(started)) == 2
        tails = [stack.enter_context(process("tail", "--url", url)) for _ in range(3)]
        for tailing in tails:
            assert "connection.ready" in tailing.stdout.readline()
        [server] = children(started, named=b"valkey.sock")
        folder = Path(re.search(r"unixsocket:(.+?valkey\.sock)", Path(f"/proc/{server}/cmdline").read_text())[1]).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        processes = [*workers_of(started), server]
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            started.send_signal(number)
        for tailing in tails:
            assert "server.draining" in tailing.stdout.readline()
        assert started.wait(GUARD_SECONDS) == 0
        assert ended(processes)
        assert not folder.exists()
        assert not path.exists()
        assert "listening" not in started.stderr.read()


@only_in_make_prove
def test_workers_do_not_outlive_their_parent(config_path):
    with serving("--config", config_path) as (started, _):
        processes = [*workers_of(started), *children(started, named=b"valkey.sock")]
        assert len(processes) == 3
        started.kill()
        assert ended(processes)


def test_who_waits_at_a_worker_that_is_killed_is_served_by_the_next(running):
    started, url, _, _ = running
    with ExitStack() as stack:
        killed, *others = pids = workers_of(started)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        waiting = [stack.enter_context(waiting_client(url)) for _ in range(MANY)]
        os.kill(killed, signal.SIGKILL)
        for pid in others:
            os.kill(pid, signal.SIGCONT)
        answers = [client.recv(4_096) for client in waiting]
        assert [answer[:15] for answer in answers] == [b"HTTP/1.1 200 OK"] * MANY
        said = lines_until(started.stderr, "is started again")
        assert re.search(r"worker \d ended by SIGKILL", said[-1])
        assert ended([killed])
        assert len(workers_of(started)) == 2


def test_the_first_thing_that_is_wrong_is_said_once_and_ends_it(config_path, tmp_path):
    with process("serve", "--config", config_path, "--port", "0", BROKER_STORAGE__PATH=tmp_path / "x.db") as started:
        _, said = started.communicate(timeout=GUARD_SECONDS)
    assert started.returncode == 1
    assert said.count("\n") == 1
    assert "does not go together with several `server.workers`" in said
    assert "BROKER_STORAGE__PATH" in said


def test_a_second_broker_on_the_same_port_is_refused(running):
    _, url, config_path, _ = running
    port = url.rpartition(":")[2]
    with process("serve", "--config", config_path, "--port", port) as second:
        _, said = second.communicate(timeout=GUARD_SECONDS)
    assert second.returncode == 1
    assert said == f"Error: cannot listen on 127.0.0.1:{port}: Address already in use\n"


# --- what it promises ---------------------------------------------------------


def published(url, *ids):
    """Where events are, of which each went to whichever worker took it."""
    found = []
    for event_id in ids:
        event = {"type": "x.y", "inbox_id": "in_1", "event_id": event_id, "payload": {}}
        found += asked(url, "/v1/events", KEY, json.dumps(event).encode())["events"]
    return found


def test_events_and_cursors_are_the_same_at_every_worker(running):
    _, url, _, _ = running
    with ExitStack() as stack:
        tails = [stack.enter_context(process("tail", "--json", "--url", url, "--count", "4")) for _ in range(4)]
        for tailing in tails:
            assert "connection.ready" in tailing.stdout.readline()
        ids = ["e1", "e2", "e3", "e4"]
        first, *_ = published(url, *ids)
        for tailing in tails:
            said, _ = tailing.communicate(timeout=GUARD_SECONDS)
            assert re.findall(r'"event_id":"(\w+)"', said) == ids
        for _ in range(ENOUGH_FOR_EACH):
            page = asked(url, f"/v1/events?inbox_ids=*&since={first['cursor']}", KEY)
            assert [event["event_id"] for event in page["events"]] == ids[1:]
            assert page["replay"]["recovered"] is True
        assert published(url, "e2")[0]["duplicate"] is True


@only_in_make_prove
def test_the_slots_of_a_killed_worker_are_free_within_six_seconds(config_path):
    config_path.write_text(CONFIG.replace('"growth"', '"free"'))
    with serving("--config", config_path) as (started, url), process("tail", "--url", url, "--no-retry") as tailing:
        assert "connection.ready" in tailing.stdout.readline()
        for pid in workers_of(started):
            os.kill(pid, signal.SIGKILL)
        with process("tail", "--url", url) as again:  # it asks until there is room
            assert "connection.ready" in again.stdout.readline()


@only_in_make_prove
def test_a_private_server_that_dies_is_started_again_and_everybody_is_told_of_a_gap(config_path):
    with serving("--config", config_path) as (started, url), process("tail", "--json", "--url", url) as tailing:
        assert "connection.ready" in tailing.stdout.readline()
        published(url, "e1")
        assert '"e1"' in tailing.stdout.readline()
        [server] = children(started, named=b"valkey.sock")
        os.kill(server, signal.SIGKILL)
        gap = json.loads(tailing.stdout.readline())
        assert (gap["type"], gap["count"]) == ("replay.gap", None)
        published(url, "e2")
        assert '"e2"' in tailing.stdout.readline()
        assert "what it held is lost" in lines_until(started.stderr, "the private server ended")[-1]


# --- as one broker -----------------------------------------------------------


def test_a_token_of_one_worker_is_good_at_each(running):
    _, url, _, _ = running
    token = asked(url, "/v1/websocket/token", KEY, b"{}")["token"]
    for _ in range(ENOUGH_FOR_EACH):
        with urllib.request.urlopen(f"{url}/v1/events/stream?token={token}", timeout=GUARD_SECONDS) as stream:
            assert stream.status == 200


def test_a_reload_reaches_every_worker_and_its_end_is_told_once(config_path, tmp_path):
    notify = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(notify)
        supervisor.settimeout(GUARD_SECONDS)

        def told():
            return dict(line.split("=", 1) for line in supervisor.recv(4_096).decode().split("\n"))

        with serving("--config", config_path, NOTIFY_SOCKET=notify) as (started, url):
            assert told() == {"READY": "1", "STATUS": f"listening on {url.removeprefix('http://')}, 2 workers"}
            config_path.write_text(CONFIG + MORE)
            started.send_signal(signal.SIGHUP)
            assert told().keys() == {"RELOADING", "MONOTONIC_USEC"}
            assert told() == {"READY": "1", "STATUS": "the configuration was reloaded: 1 accounts"}
            for _ in range(ENOUGH_FOR_EACH):
                assert asked(url, "/v1/events", OTHER_KEY)["events"] == []
            started.terminate()
            assert told()["STOPPING"] == "1"
            assert started.wait(GUARD_SECONDS) == 0
            supervisor.setblocking(False)
            with pytest.raises(BlockingIOError):
                supervisor.recv(1)


def test_a_supervisor_that_reads_late_hears_that_all_listen(config_path, tmp_path):
    notify = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(notify)
        fill(notify)
        with serving("--config", config_path, NOTIFY_SOCKET=notify) as (started, _):
            assert line_with(started.stderr, "the supervisor was not told READY=1")
            supervisor.settimeout(GUARD_SECONDS)
            while (heard := supervisor.recv(4_096)) == OTHERS:
                pass
            assert heard.startswith(b"READY=1\n")


@only_in_make_prove
def test_the_watchdog_is_fed_by_the_parent_and_a_worker_that_hangs_is_started_again(config_path, tmp_path):
    notify = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(notify)
        supervisor.settimeout(GUARD_SECONDS)
        options = {"NOTIFY_SOCKET": notify, "WATCHDOG_USEC": "2000000"}
        with serving("--config", config_path, **options) as (started, _):
            messages = [supervisor.recv(4_096) for _ in range(3)]
            assert messages[0].startswith(b"READY=1")
            assert messages[1:] == [b"WATCHDOG=1"] * 2
            hanging, _ = workers_of(started)
            os.kill(hanging, signal.SIGSTOP)
            assert ended([hanging])
            assert " hangs: it is killed" in lines_until(started.stderr, "hangs")[-1]


def test_a_socket_file_is_shared(running):
    _, _, _, path = running
    for _ in range(ENOUGH_FOR_EACH):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(GUARD_SECONDS)
            client.connect(str(path))
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(4_096).startswith(b"HTTP/1.1 200 ")


def test_each_line_of_the_log_says_whose_it_is(running):
    started, url, _, _ = running
    with process("tail", "--url", url) as tailing:
        assert "connection.ready" in tailing.stdout.readline()
        line = lines_until(started.stderr, "connection opened")[-1]
    assert json.loads(line)["worker"] in (0, 1)
