"""`broker top` as people and scripts meet it: on a terminal and off it, over a restart, and where it is refused."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from contextlib import contextmanager

import click
import pytest
from click.testing import CliRunner
from processes import COMMAND, GUARD_SECONDS, KEY, free_port, line_with, process, serving

import broker.cli.top
from broker.cli.cli import main
from broker.keys import hash_key

OPERATOR = "dm_operator_test"
CONFIG = f"""
[[accounts]]
id = "acct_test"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
[[operators]]
id = "op_main"
sha256 = "{hash_key(OPERATOR)}"
"""
AS_OPERATOR = {"BROKER_OPERATOR_KEY": OPERATOR}


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("top") / "broker.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def url(config_path):
    with serving("--config", config_path) as (_, url):
        yield url


def test_once_says_how_it_is_with_rates_and_connections(url):
    with process("tail", "--url", url) as tailing:
        assert "connection.ready" in tailing.stdout.readline()
        with process("top", "--url", url, "--once", **AS_OPERATOR) as watching:
            said, errors = watching.communicate(timeout=GUARD_SECONDS)
    assert (watching.returncode, errors) == (0, "")
    assert "serving, up" in said
    assert "in 0/s" in said
    assert "account acct_test: 0 events/s, connections 1 of 10" in said
    assert re.search(r"● live +acct_test +conn_", said)


def test_as_json_each_line_is_a_document_and_once_is_one(url):
    with process("top", "--url", url, "--json", **AS_OPERATOR) as watching:
        first, second = (json.loads(watching.stdout.readline()) for _ in range(2))
    assert (first["contact"], first["rates"]) == ("live", None)
    assert second["rates"]["seconds"] == pytest.approx(1, abs=0.5)
    with process("top", "--url", url, "--json", "--once", **AS_OPERATOR) as watching:
        said, _ = watching.communicate(timeout=GUARD_SECONDS)
    assert json.loads(said)["page"]["total"] == 0


def test_without_a_terminal_it_prints_lines_and_goes_on_over_a_restart(config_path):
    port = free_port()
    with (
        serving("--config", config_path, "--port", port) as (first, url),
        process("top", "--url", url, **AS_OPERATOR) as watching,
    ):
        assert "serving" in watching.stdout.readline()
        first.send_signal(signal.SIGTERM)
        line_with(watching.stdout, "lost")
        assert first.wait(GUARD_SECONDS) == 0
        with process("serve", "--config", config_path, "--port", port):
            line_with(watching.stdout, "restarts seen: 1")


def once(url, **environment):
    return CliRunner().invoke(main, ["top", "--url", url, "--once"], env={"BROKER_KEY": KEY, **environment})


def test_an_accounts_key_is_refused_and_told_which_key_it_takes(url):
    answer = once(url)
    assert answer.exit_code == 1
    assert "this needs an operator key, in BROKER_OPERATOR_KEY or --key" in answer.stderr


def test_an_unknown_key_is_refused(url):
    answer = once(url, BROKER_OPERATOR_KEY="dm_operator_unknown")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert "401" in answer.stderr


def test_where_nothing_listens_once_says_so_and_ends():
    answer = once("127.0.0.1:1", **AS_OPERATOR)
    assert answer.exit_code == 1
    assert answer.stderr == "Error: Connection refused\n"


def test_where_nothing_listens_it_goes_on_trying():
    with process("top", "--url", "127.0.0.1:1", **AS_OPERATOR) as watching:
        for _ in range(2):
            assert "lost: Connection refused; it tries again each second" in watching.stdout.readline()


def test_a_reader_that_has_enough_is_an_end_without_a_word(url):
    with process("top", "--url", url, PYTHONUNBUFFERED="", **AS_OPERATOR) as watching:
        assert "serving" in watching.stdout.readline()
        watching.stdout.close()
        assert watching.wait(GUARD_SECONDS) == 0
        assert watching.stderr.read() == ""


# --- on a terminal -----------------------------------------------------------


class Terminal:
    """A terminal of 120 characters in 30 lines, and the program on it."""

    def __init__(self, ours, theirs, program):
        self._ours, self._theirs, self.program = ours, theirs, program
        self.seen = ""

    def until(self, text):
        """Read until a text is drawn."""
        due = time.monotonic() + GUARD_SECONDS
        while text not in click.unstyle(self.seen):
            readable, _, _ = select.select([self._ours], [], [], max(0, due - time.monotonic()))
            assert readable, f"{text!r} was not drawn, but {click.unstyle(self.seen)[-2_000:]}"
            self.seen += os.read(self._ours, 65_536).decode(errors="replace")
        self.seen = ""

    def press(self, keys):
        os.write(self._ours, keys.encode())

    def attributes(self):
        return termios.tcgetattr(self._theirs)


@contextmanager
def on_a_terminal(*arguments, command=COMMAND):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (30, 120))
    environment = {**os.environ, **AS_OPERATOR, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [*command, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, process_group=0
    ) as program:
        try:
            yield Terminal(ours, theirs, program)
        finally:
            program.kill()
            program.wait()
            os.close(ours)
            os.close(theirs)


def test_on_a_terminal_keys_sort_and_q_ends_it_with_the_terminal_as_it_was(url):
    with on_a_terminal("top", "--url", url) as terminal:
        before = terminal.attributes()
        terminal.until("serving, up")
        terminal.press("o")
        terminal.until("by opened_at, desc")
        terminal.press("r")
        terminal.until("by opened_at, asc")
        assert terminal.attributes() != before
        terminal.press("q")
        assert terminal.program.wait(GUARD_SECONDS) == 0
        assert terminal.attributes() == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_leaves_the_terminal_as_it_was(url, number, code):
    with on_a_terminal("top", "--url", url, command=["env", "--default-signal=INT", *COMMAND]) as terminal:
        before = terminal.attributes()
        terminal.until("serving, up")
        terminal.program.send_signal(number)
        assert terminal.program.wait(GUARD_SECONDS) == code
        assert terminal.attributes() == before


def test_a_refusal_is_said_after_the_screen_is_gone(url):
    with on_a_terminal("top", "--url", url, "--key", "dm_operator_unknown") as terminal:
        terminal.until("Error: 401")
        assert terminal.program.wait(GUARD_SECONDS) == 1


def test_without_rich_a_terminal_gets_lines_and_is_told_how_to_get_a_screen(url, monkeypatch):
    monkeypatch.setattr(broker.cli.top, "find_spec", lambda name: None)
    monkeypatch.setattr(broker.cli.top, "_is_terminal", lambda: True)
    monkeypatch.setattr(broker.cli.top, "_watch_in_lines", lambda *given: click.echo("lines"))
    answer = CliRunner().invoke(main, ["top", "--url", url], env=AS_OPERATOR)
    assert answer.stdout == "lines\n"
    assert "pip install 'daimon-broker[top]'" in answer.stderr
