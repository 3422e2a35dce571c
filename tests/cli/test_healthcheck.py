"""`broker healthcheck`: finds by its configuration the broker on this machine, and says by its exit code how it is."""

import signal
import socket

import pytest
from certificates import Authority
from click.testing import CliRunner
from processes import GUARD_SECONDS, KEY, free_port, has_ipv6, line_with, process

from broker.cli.cli import main
from broker.keys import hash_key

ACCOUNT = f'[[accounts]]\nid = "acct_test"\n[[accounts.keys]]\nid = "key_test"\nsha256 = "{hash_key(KEY)}"\n'


def check(*arguments, **environment):
    return CliRunner().invoke(main, ["healthcheck", *map(str, arguments)], env=environment)


def server_settings(kind, folder):
    if kind == "a socket file":
        return f'port = 0\nunix = "{folder / "broker.sock"}"\n'
    host = {"all addresses": "0.0.0.0", "all of IPv6": "::"}.get(kind, "127.0.0.1")
    settings = f'host = "{host}"\nport = {free_port()}\n'
    if kind == "TLS":
        made = Authority(folder).sign()
        settings += f'tls_certificate = "{made.tls_certificate}"\ntls_key = "{made.tls_key}"\n'
    return settings


@pytest.mark.parametrize(
    "kind", ["a port", "all addresses", pytest.param("all of IPv6", marks=has_ipv6), "TLS", "a socket file"]
)
def test_it_finds_the_broker_wherever_its_configuration_has_it(kind, tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(f"[server]\n{server_settings(kind, tmp_path)}{ACCOUNT}")
    with process("serve", "--config", path) as started:
        assert "listening on" in started.stderr.readline()
        for answer in (check("--config", path), check("--config", path, "--ready"), check(BROKER_CONFIG=str(path))):
            assert (answer.exit_code, answer.output) == (0, "ok\n")
        started.terminate()
        assert started.wait(GUARD_SECONDS) == 0
    answer = check("--config", path)
    assert answer.exit_code == 1
    assert answer.stderr.startswith("Error: no answer: ")


def test_while_it_drains_it_lives_and_is_not_ready(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(f"[server]\nport = {(port := free_port())}\n{ACCOUNT}")
    with process("serve", "--config", path) as started:
        assert "listening on" in started.stderr.readline()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.settimeout(GUARD_SECONDS)
            lines = ["POST /v1/events HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", "Content-Length: 2"]
            client.sendall("\r\n".join([*lines, "Expect: 100-continue", "", ""]).encode())
            assert b" 100 " in client.recv(100)  # it is under way, and holds up the drain
            started.send_signal(signal.SIGTERM)
            line_with(started.stderr, "draining")
            assert check("--config", path).exit_code == 0
            answer = check("--config", path, "--ready")
    assert answer.exit_code == 1
    assert "503" in answer.stderr


def test_what_hangs_is_no_answer(monkeypatch):
    monkeypatch.setattr("broker.cli.health.ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = check(BROKER_SERVER__PORT=str(silent.getsockname()[1]))
    assert answer.exit_code == 1
    assert "no answer: timed out" in answer.stderr


def test_what_answers_and_is_no_http_is_no_answer():
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(GUARD_SECONDS)
        with process("healthcheck", BROKER_SERVER__PORT=str(other.getsockname()[1])) as asking:
            talking, _ = other.accept()
            with talking:
                talking.sendall(b"220 mail.example ESMTP\r\n")
                assert asking.wait(GUARD_SECONDS) == 1
            said = asking.stderr.read()
    assert "no answer" in said
    assert "Traceback" not in said


def test_a_port_that_is_chosen_at_the_start_cannot_be_known():
    answer = check(BROKER_SERVER__PORT="0")
    assert answer.exit_code == 1
    assert "server.port" in answer.stderr
