"""`broker serve` with a certificate, and the verbs that meet it by `https://` and `wss://`: separate processes."""

import json
import re
import shutil
import signal
import ssl
from contextlib import contextmanager

import pytest
from certificates import Authority
from click.testing import CliRunner
from processes import GUARD_SECONDS, KEY, line_with, process, serving

from broker.cli.cli import main
from broker.keys import hash_key


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def authority(folder):
    return Authority(folder)


def written(folder, settings) -> str:
    """The path of a configuration with one key, and with these files."""
    path = folder / "broker.toml"
    path.write_text(f"""
[server]
tls_certificate = "{settings.tls_certificate}"
tls_key = "{settings.tls_key}"
[[accounts]]
id = "acct_test"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
""")
    return str(path)


@pytest.fixture(scope="module")
def url(folder, authority):
    with serving("--config", written(folder, authority.sign())) as (_, url):
        yield url


def run(*arguments, **environment):
    return CliRunner().invoke(main, arguments, env={"BROKER_KEY": KEY, **environment})


def test_the_line_that_says_where_it_listens_says_https(url):
    assert re.fullmatch(r"https://127\.0\.0\.1:\d+", url)


def test_events_are_published_and_followed_with_the_authoritys_file(url, authority):
    trusting = ("--url", url, "--ca-file", str(authority.path))
    with process("tail", *trusting, "--count", "1") as tailing:
        assert "connection.ready" in tailing.stdout.readline()
        answer = run("publish", *trusting, "--type", "a.b", "--payload", "{}")
        assert answer.exit_code == 0, answer.output
        assert json.loads(tailing.stdout.readline())["type"] == "a.b"
        assert tailing.wait(GUARD_SECONDS) == 0


def test_a_command_is_given_and_a_token_made_with_the_file_from_the_environment(url, authority):
    answer = run("send", "ping", "--url", url.replace("https", "wss"), BROKER_CA_FILE=str(authority.path))
    assert "server_time" in json.loads(answer.output)
    assert run("token", "--url", url, BROKER_CA_FILE=str(authority.path)).exit_code == 0


def test_a_certificate_that_is_not_trusted_is_an_error_in_one_line(url):
    answer = run("send", "ping", "--url", url)
    assert answer.exit_code == 1
    assert "certificate is not trusted" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    with process("tail", "--url", url, "--no-retry") as tailing:
        assert tailing.wait(GUARD_SECONDS) == 1
        said = tailing.stderr.read()
    assert "certificate" in said
    assert "Traceback" not in said


def test_who_asks_without_tls_where_it_is_spoken_is_told_what_to_say(url):
    answer = run("publish", "--url", url.replace("https:", "http:"), "--type", "a.b", "--payload", "{}")
    assert answer.exit_code == 1
    assert "say https://" in answer.stderr


def test_a_file_of_authorities_that_cannot_be_used_is_a_usage_error(folder):
    rubbish = folder / "rubbish.pem"
    rubbish.write_text("rubbish")
    for path in (rubbish, folder / "missing.pem"):
        answer = run("send", "ping", "--ca-file", str(path))
        assert answer.exit_code == 2
        assert str(path) in answer.stderr


# --- its files


@contextmanager
def own_server(tmp_path):
    authority = Authority(tmp_path)
    path = written(tmp_path, authority.sign())
    with process("serve", "--config", path, "--port", "0") as started:
        url = re.search(r"https://127\.0\.0\.1:\d+", started.stderr.readline())[0]
        yield started, url, ("--url", url, "--ca-file", str(authority.path))


def presented(url: str) -> str:
    """The certificate that a new connection is shown."""
    host, _, port = url.removeprefix("https://").partition(":")
    return ssl.get_server_certificate((host, int(port)))


def test_sighup_takes_a_new_certificate_for_new_connections_and_drops_none(tmp_path, authority):
    new = authority.sign("new")
    with own_server(tmp_path) as (started, url, trusting), process("tail", *trusting) as tailing:
        assert "connection.ready" in tailing.stdout.readline()
        old = presented(url)
        shutil.copy(new.tls_certificate, tmp_path / "server.pem")
        shutil.copy(new.tls_key, tmp_path / "server.key")
        started.send_signal(signal.SIGHUP)
        line_with(started.stderr, "the certificate was reloaded")
        assert presented(url) != old
        answer = run("publish", "--url", url, "--ca-file", str(authority.path), "--type", "a.b", "--payload", "{}")
        assert answer.exit_code == 0, answer.output
        assert json.loads(tailing.stdout.readline())["type"] == "a.b"


def test_sighup_with_files_that_do_not_load_keeps_the_old_certificate_and_says_so(tmp_path):
    with own_server(tmp_path) as (started, url, _):
        old = presented(url)
        (tmp_path / "server.key").write_text("rubbish")
        started.send_signal(signal.SIGHUP)
        line = line_with(started.stderr, "the certificate was not reloaded")
        assert '"level":"error"' in line
        assert str(tmp_path / "server.key") in line
        assert presented(url) == old


@pytest.mark.parametrize("verb", ["serve", "check-config"])
def test_a_file_that_cannot_be_used_is_named_before_anything_is_served(tmp_path, verb):
    settings = Authority(tmp_path).sign()
    path = written(tmp_path, settings)
    (tmp_path / "server.key").write_text("rubbish")
    with process(verb, "--config", path) as started:
        assert started.wait(GUARD_SECONDS) == 1
        said = started.stderr.read()
    assert "`server.tls_key`" in said
    assert settings.tls_key in said
    assert "Traceback" not in said
