"""`broker serve --workers` with a certificate: every worker shows it, and the same new one after a reload."""

import json
import re
import shutil
import signal
import ssl

import pytest
from certificates import Authority
from click.testing import CliRunner
from processes import KEY, process

from broker.cli.cli import main
from broker.keys import hash_key

WORKERS = 2
ENOUGH_FOR_EACH = 20
"""Connections after which each of two workers has had one, but once in a million times."""


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def running(tmp_path, authority):
    """The parent process, its URL, and what a client is to be told to trust it."""
    settings = authority.sign()
    path = tmp_path / "broker.toml"
    path.write_text(f"""
[server]
workers = {WORKERS}
tls_certificate = "{settings.tls_certificate}"
tls_key = "{settings.tls_key}"
[[accounts]]
id = "acct_test"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
""")
    with process("serve", "--config", path, "--port", "0") as started:
        url = re.search(r"https://127\.0\.0\.1:\d+", lines_with(started, "listening on")[-1])[0]
        yield started, url, ("--url", url, "--ca-file", str(authority.path))


def lines_with(started, words, number=1):
    """The next lines on standard error that have these words."""
    found = []
    while len(found) < number:
        line = started.stderr.readline()
        assert line, found
        if words in line:
            found.append(line)
    return found


def presented(url):
    """The certificates that new connections are shown, by whichever workers they come to."""
    host, _, port = url.removeprefix("https://").partition(":")
    return {ssl.get_server_certificate((host, int(port))) for _ in range(ENOUGH_FOR_EACH)}


def publish(trusting):
    arguments = ("publish", *trusting, "--type", "a.b", "--payload", "{}")
    answer = CliRunner().invoke(main, arguments, env={"BROKER_KEY": KEY})
    assert answer.exit_code == 0, answer.output


def test_a_new_certificate_is_shown_by_every_worker_and_nobody_is_dropped(running, tmp_path, authority):
    started, url, trusting = running
    with process("tail", *trusting) as tailing:
        assert "connection.ready" in tailing.stdout.readline()
        [old] = presented(url)
        new = authority.sign("new")
        shutil.copy(new.tls_certificate, tmp_path / "server.pem")
        shutil.copy(new.tls_key, tmp_path / "server.key")
        started.send_signal(signal.SIGHUP)
        told = lines_with(started, "the certificate was reloaded", WORKERS)
        assert {json.loads(line)["worker"] for line in told} == set(range(WORKERS))
        [now] = presented(url)
        assert now != old
        publish(trusting)
        assert json.loads(tailing.stdout.readline())["type"] == "a.b"


def test_files_that_do_not_load_leave_every_worker_its_old_certificate(running, tmp_path):
    started, url, trusting = running
    before = presented(url)
    assert len(before) == 1
    (tmp_path / "server.key").write_text("rubbish")
    started.send_signal(signal.SIGHUP)
    told = lines_with(started, "the certificate was not reloaded", WORKERS)
    assert all(str(tmp_path / "server.key") in line for line in told)
    assert presented(url) == before
    publish(trusting)
