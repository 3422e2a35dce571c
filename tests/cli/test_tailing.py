"""`broker tail` as people and scripts meet it, and what it says while it waits."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
from contextlib import suppress

import pytest
from certificates import Authority
from click.testing import CliRunner
from daimon_email import ending
from processes import COMMAND, GUARD_SECONDS, KEY, free_port, process, serving

from broker.cli import client
from broker.cli.cli import main
from broker.keys import hash_key

CONFIG = f"""
[[accounts]]
id = "acct_test"
tier = "free"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
"""


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def url(config_path):
    with serving("--config", config_path) as (_, url):
        yield url


def publish(url, *types):
    lines = "\n".join(json.dumps({"type": kind, "payload": {"subject": "\x1b[2J"}}) for kind in types)
    answer = CliRunner().invoke(main, ["publish", "--url", url], input=lines, env={"BROKER_KEY": KEY})
    assert answer.exit_code == 0, answer.output


def test_it_replays_since_filters_types_and_ends_after_so_many_events(url):
    publish(url, "account.upgraded", "message.received", "account.closed", "account.opened")
    with process("tail", "--url", url, "--since", "5m", "--type", "account.*", "--count", "2") as tailing:
        output, _ = tailing.communicate(timeout=GUARD_SECONDS)
    frames = [json.loads(line) for line in output.splitlines()]
    assert [frame["type"] for frame in frames] == ["connection.ready", "account.upgraded", "account.closed"]
    assert frames[0]["replay"] == {"recovered": True, "count": 4}
    assert tailing.returncode == 0


def test_an_authority_that_is_named_is_of_no_matter_where_there_is_no_tls(url, tmp_path):
    publish(url, "account.upgraded")
    path = Authority(tmp_path).path
    with process("tail", "--url", url, "--since", "5m", "--count", "1", "--ca-file", path) as tailing:
        output, said = tailing.communicate(timeout=GUARD_SECONDS)
    assert tailing.returncode == 0, said
    assert len(output.splitlines()) == 2


def test_it_goes_on_after_a_restart_of_the_server_and_says_so(config_path):
    at_port = ("--config", config_path, "--port", free_port())
    with serving(*at_port) as (first, url), process("tail", "--url", url) as tailing:
        assert "connection.ready" in tailing.stdout.readline()
        first.send_signal(signal.SIGTERM)
        assert "server.draining" in tailing.stdout.readline()
        assert first.wait(GUARD_SECONDS) == 0
        with process("serve", *at_port) as second:
            second.stderr.readline()
            ready = json.loads(tailing.stdout.readline())
        tailing.kill()
        said = tailing.stderr.read()
    assert ready["type"] == "connection.ready"
    assert ready["replay"]["recovered"] is False
    assert "1012: restart; the next try is in" in said


def test_it_ends_when_the_broker_will_not_have_it(url):
    with process("tail", "--url", url, "--key", "dm_live_unknown") as tailing:
        assert tailing.wait(GUARD_SECONDS) == 1
        assert "401" in tailing.stderr.read()


def test_where_nothing_listens_it_says_what_it_waits_for_and_when_it_tries_again():
    with process("tail", "--url", "127.0.0.1:1") as tailing:
        assert "following * at ws://127.0.0.1:1" in tailing.stderr.readline()
        for _ in range(2):
            said = tailing.stderr.readline()
            assert "ws://127.0.0.1:1: Connection refused; the next try is in 0." in said


def test_at_the_connection_limit_it_says_so_and_waits_as_long_as_it_is_told(url):
    with process("tail", "--url", url) as holding:
        assert "connection.ready" in holding.stdout.readline()
        with process("tail", "--url", url) as tailing:
            tailing.stderr.readline()
            said = tailing.stderr.readline()
    assert "429" in said
    assert re.search(r"the next try is in 5\.[012] s", said)


def test_it_comes_back_after_the_same_endings_as_the_client_library():
    assert client.STAY_AWAY_CODES == ending.STAY_AWAY_CODES
    assert client.STAY_AWAY_STATUSES == ending.STAY_AWAY_STATUSES


def test_what_is_no_broker_is_said_to_be_none():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\n???")

        threading.Thread(target=answer, daemon=True).start()
        with process("tail", "--url", f"127.0.0.1:{listener.getsockname()[1]}") as tailing:
            assert tailing.wait(GUARD_SECONDS) == 1
            assert "404: the server there will not open a stream; is it a broker?" in tailing.stderr.read()


@pytest.mark.parametrize("listens", [False, True])
def test_without_retry_it_ends_when_there_is_no_connection_or_none_any_more(listens, config_path):
    with serving("--config", config_path) as (server, url):
        if not listens:
            server.kill()
            server.wait()
        with process("tail", "--no-retry", "--url", url) as tailing:
            if listens:
                assert "connection.ready" in tailing.stdout.readline()
                server.kill()
            assert tailing.wait(GUARD_SECONDS) == 1
            assert "Error: " in tailing.stderr.read()


@pytest.mark.parametrize("since", ["yesterday", "5 m", "2026-11-23", "c" * 65])
def test_a_since_that_is_neither_duration_nor_time_nor_cursor_by_form_is_refused(since):
    answer = CliRunner().invoke(main, ["tail", "--since", since], env={"BROKER_KEY": KEY})
    assert answer.exit_code == 2
    assert since in answer.stderr


def seen_on_a_terminal(url, *options):
    """What tail writes to a terminal, up to its end."""
    ours, theirs = pty.openpty()
    command = [*COMMAND, "tail", "--url", url, "--since", "5m", "--count", "1", *options]
    with subprocess.Popen(command, stdout=theirs, env={**os.environ, "BROKER_KEY": KEY}) as tailing:
        assert tailing.wait(GUARD_SECONDS) == 0
    os.close(theirs)
    with os.fdopen(ours, "rb") as terminal:
        lines = []
        with suppress(OSError):  # the other end is closed
            lines.extend(iter(terminal.readline, b""))
    return b"".join(lines).decode()


def test_on_a_terminal_it_prints_lines_for_people_that_strangers_cannot_abuse(url):
    publish(url, "message.received")
    seen = seen_on_a_terminal(url)
    assert "message.received   (account)      subject: �[2J" in seen
    assert "\x1b" not in seen
    assert json.loads(seen_on_a_terminal(url, "--json").splitlines()[1])["type"] == "message.received"


def test_ctrl_c_is_an_end_without_a_word(url):
    command = ["env", "--default-signal=INT", *COMMAND]
    with process("tail", "--url", url, command=command) as tailing:
        assert "connection.ready" in tailing.stdout.readline()
        tailing.stderr.readline()
        tailing.send_signal(signal.SIGINT)
        assert tailing.wait(GUARD_SECONDS) == 130
        assert tailing.stderr.read() == ""


def test_a_reader_that_has_enough_is_an_end_without_a_word(url):
    with process("tail", "--url", url, PYTHONUNBUFFERED="") as tailing:
        assert "connection.ready" in tailing.stdout.readline()
        tailing.stderr.readline()
        tailing.stdout.close()
        publish(url, "message.received")
        assert tailing.wait(GUARD_SECONDS) == 0
        assert tailing.stderr.read() == ""
