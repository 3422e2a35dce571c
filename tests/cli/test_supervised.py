"""`broker serve` under a supervisor that listens at `NOTIFY_SOCKET`, and the units in contrib/systemd."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from documents import ROOT
from processes import GUARD_SECONDS, KEY, line_with, process, serving
from supervisors import fill

from broker.keys import hash_key

UNITS = ROOT / "contrib" / "systemd"
CONFIG = f"""
[server]
drain_seconds = 3
[[accounts]]
id = "acct_test"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
"""
HANGS_AT_SIGUSR1 = """
import signal, time
from broker.cli.cli import main
def hang(*_):
    print("hangs", flush=True)
    time.sleep(600)
signal.signal(signal.SIGUSR1, hang)
main()
"""


class Supervisor:
    """The other end of `NOTIFY_SOCKET`."""

    def __init__(self, listening):
        self.socket = listening

    def hear(self, *, seconds=GUARD_SECONDS):
        """The next message that is not the watchdog's, as a dict. Raises TimeoutError."""
        while (message := self.hear_all(seconds=seconds)) == {"WATCHDOG": "1"}:
            pass
        return message

    def hear_all(self, *, seconds=GUARD_SECONDS):
        """The next message, as a dict. Raises TimeoutError."""
        self.socket.settimeout(seconds)
        lines = self.socket.recv(4_096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def hear_what_was_said(self):
        """Take what it was told by now, and has not heard yet."""
        with suppress(BlockingIOError):
            while True:
                self.hear_all(seconds=0)

    def hears_nothing(self, *, seconds):
        """Whether for so long nothing comes."""
        try:
            self.hear_all(seconds=seconds)
        except TimeoutError:
            return True
        return False


@contextmanager
def listening(name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        yield Supervisor(opened)


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def notify(tmp_path):
    return str(tmp_path / "notify")


# --- what it is told ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_it_is_told_when_clients_are_taken_and_where(kind, config_path, notify):
    name = notify if kind == "path" else f"@broker-test-{os.getpid()}"
    with listening(name) as supervisor, serving("--config", config_path, NOTIFY_SOCKET=name) as (_, url):
        assert supervisor.hear() == {"READY": "1", "STATUS": f"listening on {url.removeprefix('http://')}"}


def test_it_is_told_that_a_reload_begins_and_ends_and_what_came_of_it(config_path, notify):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
    with listening(notify) as supervisor, serving("--config", config_path, NOTIFY_SOCKET=notify) as (started, _):
        supervisor.hear()
        started.send_signal(signal.SIGHUP)
        begins = supervisor.hear()
        assert begins.keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert before < int(begins["MONOTONIC_USEC"]) < time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        assert supervisor.hear() == {"READY": "1", "STATUS": "the configuration was reloaded: 1 accounts"}

        config_path.write_text(CONFIG + "porrt = 1\n")
        started.send_signal(signal.SIGHUP)
        supervisor.hear()
        ends = supervisor.hear()
        assert ends["READY"] == "1"
        assert ends["STATUS"].startswith("the configuration was not reloaded")
        assert "porrt" in ends["STATUS"]

        config_path.write_text("")  # as it is for a moment where it is being written
        started.send_signal(signal.SIGHUP)
        supervisor.hear()
        assert "all accounts are gone" in supervisor.hear()["STATUS"]


def test_it_is_told_that_the_drain_begins_and_how_long_it_may_take(config_path, notify):
    with listening(notify) as supervisor, serving("--config", config_path, NOTIFY_SOCKET=notify) as (started, url):
        supervisor.hear()
        with process("tail", "--url", url) as tailing:
            assert "connection.ready" in tailing.stdout.readline()
            started.terminate()
            said = supervisor.hear()
        assert said == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "8000000", "STATUS": "draining for at most 3 s"}
        assert started.wait(GUARD_SECONDS) == 0


def test_it_is_told_of_the_drain_though_there_is_nothing_to_drain(config_path, notify):
    with listening(notify) as supervisor, serving("--config", config_path, NOTIFY_SOCKET=notify) as (started, _):
        supervisor.hear()
        started.terminate()
        assert supervisor.hear()["STOPPING"] == "1"
        assert started.wait(GUARD_SECONDS) == 0


# --- the watchdog ------------------------------------------------------------


def test_the_watchdog_is_fed_for_as_long_as_the_event_loop_runs(config_path, notify):
    options = {"NOTIFY_SOCKET": notify, "WATCHDOG_USEC": "100000"}
    command = [sys.executable, "-c", HANGS_AT_SIGUSR1]
    arguments = ("serve", "--port", "0", "--config", config_path)
    with listening(notify) as supervisor, process(*arguments, command=command, **options) as started:
        assert "READY" in supervisor.hear()
        for _ in range(5):
            assert supervisor.hear_all() == {"WATCHDOG": "1"}
        started.send_signal(signal.SIGUSR1)
        assert line_with(started.stdout, "hangs")
        supervisor.hear_what_was_said()
        assert supervisor.hears_nothing(seconds=1)


@pytest.mark.parametrize("options", [{}, {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}])
def test_a_watchdog_that_nobody_set_for_this_process_is_not_fed(options, config_path, notify):
    with listening(notify) as supervisor, serving("--config", config_path, NOTIFY_SOCKET=notify, **options):
        assert "READY" in supervisor.hear()
        assert supervisor.hears_nothing(seconds=0.3)


# --- supervisors in trouble --------------------------------------------------


def test_a_supervisor_that_is_not_there_is_one_line_in_the_log(config_path, notify):
    options = {"NOTIFY_SOCKET": notify, "WATCHDOG_USEC": "2000"}
    with serving("--config", config_path, **options) as (started, url):
        with process("tail", "--url", url) as tailing:
            assert "connection.ready" in tailing.stdout.readline()
        started.terminate()
        assert started.wait(GUARD_SECONDS) == 0
        assert started.stderr.read().count("the supervisor was not told") == 1


def test_a_supervisor_that_reads_late_hears_that_it_is_ready_and_delays_no_client(config_path, notify):
    with listening(notify) as supervisor:
        fill(notify)
        with serving("--config", config_path, NOTIFY_SOCKET=notify) as (_, url):
            with process("tail", "--url", url) as tailing:
                assert "connection.ready" in tailing.stdout.readline()
            while (heard := supervisor.hear()) == {"STATUS": "others"}:
                pass
            assert heard["READY"] == "1"


# --- the units ---------------------------------------------------------------


def settings(unit):
    """A unit's settings by their names; of one that is there twice, all values."""
    found = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", (UNITS / unit).read_text(encoding="utf-8"), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def analyzed(*arguments):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze: the units are not looked at by systemd")
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)


def test_systemd_takes_the_units(tmp_path):
    for unit in UNITS.iterdir():
        text = unit.read_text(encoding="utf-8").replace("/opt/broker/bin/broker", sys.executable)
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    for unit in UNITS.iterdir():
        done = analyzed("verify", "--man=no", tmp_path / unit.name)
        assert (done.returncode, done.stdout + done.stderr) == (0, ""), unit.name


def test_the_service_is_well_shut_in():
    done = analyzed("security", "--offline=true", "--no-pager", "--threshold=20", UNITS / "broker.service")
    assert done.returncode == 0, done.stdout


def test_the_service_is_given_what_the_broker_tells_a_supervisor(tmp_path):
    unit = settings("broker.service")
    assert unit["Type"] == ["notify"]
    assert int(unit["WatchdogSec"][0]) > 0
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert int(unit["TimeoutStopSec"][0]) > 8
    assert int(unit["LimitNOFILE"][0]) > 65_536
    program, *arguments = unit["ExecStart"][0].split()
    assert program.endswith("/bin/broker")
    path = tmp_path / "broker.toml"
    path.write_text(CONFIG)
    arguments = [str(path) if argument == "/etc/broker/broker.toml" else argument for argument in arguments]
    [log] = [value for name, _, value in (line.partition("=") for line in unit["Environment"])]
    assert Path(log).parent == Path("/var/lib") / unit["StateDirectory"][0]
    with process(*arguments, "--port", "0", BROKER_STORAGE__PATH=str(tmp_path / Path(log).name)) as started:
        assert f"the log in {tmp_path / Path(log).name}, listening on" in started.stderr.readline()
