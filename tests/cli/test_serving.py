"""`broker serve` and `check-config` as operators meet them: separate processes, real ports, exit codes."""

import json
import re
import resource
import signal
import urllib.request

import pytest
from click.testing import CliRunner
from processes import GUARD_SECONDS, KEY, free_port, process, serving

import broker
from broker.cli.cli import main
from broker.keys import hash_key

CONFIG = f"""
[[accounts]]
id = "acct_test"
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
def server(config_path):
    with serving("--config", config_path) as started:
        yield started


def published(url, event_id):
    """What became of an event that was published over HTTP."""
    event = json.dumps({"type": "x.y", "inbox_id": "i1", "event_id": event_id, "payload": {}}).encode()
    request = urllib.request.Request(f"{url}/v1/events", event, {"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=GUARD_SECONDS) as response:
        return json.load(response)["result"]["events"][0]


def run(*arguments, **environment):
    return CliRunner().invoke(main, arguments, env=environment)


def test_serve_says_in_one_line_what_it_is_what_it_serves_and_last_where(config_path):
    with process("serve", "--config", config_path, "--port", "0") as started:
        line = started.stderr.readline()
    for part in (
        broker.__version__,
        "1 account",
        str(config_path),
        "memory only: a restart forgets the window",
        "300 s",
    ):
        assert part in line
    assert re.search(r" http://127\.0\.0\.1:\d+\n$", line)


def test_serve_with_a_log_on_disk_says_where_it_is_and_goes_on_where_it_ended(config_path, tmp_path):
    path = tmp_path / "broker.db"
    stream = ("--config", config_path, "--storage", path)
    with serving(*stream) as (started, url):
        cursors = [published(url, name)["cursor"] for name in ("e1", "e2")]
        started.terminate()
        assert started.wait(GUARD_SECONDS) == 0
    with process("serve", "--port", "0", *stream) as started:
        line = started.stderr.readline()
        assert f"the log in {path}" in line
        url = re.search(r"http://\S+", line)[0]
        with process("tail", "--json", "--url", url, "--since", cursors[0], "--count", "1") as tailing:
            assert '"e2"' in tailing.communicate(timeout=GUARD_SECONDS)[0]
        assert published(url, "e1") == {"event_id": "e1", "cursor": cursors[0], "duplicate": True}


def test_a_second_serve_on_the_same_log_is_refused_in_a_line(config_path, tmp_path):
    stream = ("--config", config_path, "--storage", tmp_path / "broker.db")
    with serving(*stream) as (started, _):
        with process("serve", "--port", "0", *stream) as second:
            _, said = second.communicate(timeout=GUARD_SECONDS)
        assert second.returncode == 1
        assert said == f"Error: {tmp_path / 'broker.db'}: another broker (pid {started.pid}) has it\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_with_exit_code_0_when_it_is_told_to(server, number):
    serving, _ = server
    serving.send_signal(number)
    assert serving.wait(GUARD_SECONDS) == 0


def test_more_signals_while_it_drains_change_nothing(server):
    serving, url = server
    with process("tail", "--url", url) as tailing:
        assert "connection.ready" in tailing.stdout.readline()
        for _ in range(5):
            serving.send_signal(signal.SIGTERM)
            serving.send_signal(signal.SIGINT)
        assert "server.draining" in tailing.stdout.readline()
        assert serving.wait(GUARD_SECONDS) == 0
    assert "draining for at most 8 s: connections open 1, requests under way 0" in serving.stderr.read()


@pytest.mark.parametrize(("level", "logged"), [("info", True), ("warning", False)])
def test_the_log_level_is_chosen_by_the_operator(config_path, level, logged):
    with serving("--config", config_path, "--log-level", level) as (started, url):
        with process("tail", "--url", url) as tailing:
            assert "connection.ready" in tailing.stdout.readline()
        started.terminate()
        _, said = started.communicate(timeout=GUARD_SECONDS)
    assert ("conn_" in said) is logged


def test_a_configuration_without_accounts_is_said_to_serve_nobody(tmp_path):
    with process("serve", "--port", "0") as started:
        assert "http://127.0.0.1:" in started.stderr.readline()
        assert "no accounts" in started.stderr.readline()


def test_serve_raises_its_limit_of_open_files(server):
    serving, _ = server
    soft, hard = resource.prlimit(serving.pid, resource.RLIMIT_NOFILE)
    assert soft == hard


# --- the configuration -------------------------------------------------------


def test_check_config_says_that_it_loads(config_path):
    answer = run("check-config", "--config", str(config_path))
    assert (answer.exit_code, answer.output) == (0, f"ok: 1 account, 1 key, 0 operators ({config_path})\n")


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_a_setting_that_is_not_known_is_named(command, config_path):
    config_path.write_text("[server]\nporrt = 1\n")
    answer = run(command, "--config", str(config_path))
    assert answer.exit_code == 1
    assert "porrt" in answer.output
    by_environment = run("check-config", BROKER_SERVER__PORRT="1")
    assert "BROKER_SERVER__PORRT" in by_environment.output


TOGETHER = "A log on disk does not go together with"


@pytest.mark.parametrize(
    ("flags", "more", "said"),
    [
        (
            ("--workers", "2"),
            '[storage]\npath = "x.db"\n',
            f"{TOGETHER} several `server.workers` - at `$.storage.path`",
        ),
        (
            ("--storage", "x.db"),
            "[server]\nworkers = 2\n",
            f"{TOGETHER} several `server.workers` - at `$.storage.path`",
        ),
        (
            ("--workers", "2", "--storage", "x.db"),
            '[engine]\nurl = "redis://h"\n',
            f"{TOGETHER} several `server.workers` - at `$.storage.path`",
        ),
    ],
)
def test_flags_that_do_not_go_together_with_the_configuration_are_one_line(flags, more, said, config_path):
    config_path.write_text(more + CONFIG)
    answer = run("serve", "--config", str(config_path), *flags)
    assert (answer.exit_code, answer.output) == (1, f"Error: the configuration: {said}\n")


QUEUE = '[[accounts.queues]]\nid = "support"\n'
WEBHOOK = f'[[accounts.webhooks]]\nid = "hook"\nurl = "https://example.com"\nsecret = "whsec_{"MDEy" * 10}"\n'


@pytest.mark.parametrize("command", ["check-config", "serve"])
@pytest.mark.parametrize(("name", "section"), [("queues", QUEUE), ("webhooks", WEBHOOK)])
def test_what_needs_a_log_on_disk_where_there_is_none_is_told_before_it_is_served(command, name, section, config_path):
    config_path.write_text(CONFIG + section)
    answer = run(command, "--config", str(config_path))
    said = f"Error: {name} need a log on disk, `storage.path` - at `$.accounts[0].{name}`\n"
    assert (answer.exit_code, answer.output) == (1, said)
    path, engine = {"BROKER_STORAGE__PATH": "x.db"}, {"BROKER_ENGINE__URL": "redis://h"}
    for settings in (path, engine, path | engine):  # beside an engine another node may have the log on disk
        there = run("check-config", "--config", str(config_path), **settings)
        assert (there.exit_code, there.output[:3]) == (0, "ok:")


@pytest.mark.parametrize(
    ("setting", "path", "said"),
    [
        ("unix", "gone/broker.sock", "`server.unix`: cannot listen on {path}: there is no directory '{folder}/gone'"),
        ("unix", "broker.toml", "`server.unix`: cannot listen on {path}: there is a file that is no socket"),
        ("path", "gone/broker.db", "`storage.path`: {path}: there is no directory '{folder}/gone'"),
    ],
)
def test_check_config_names_a_file_that_is_to_be_made_and_has_no_place(setting, path, said, config_path):
    folder = config_path.parent
    config_path.rename(folder / "broker.toml")
    variable = {"unix": "BROKER_SERVER__UNIX", "path": "BROKER_STORAGE__PATH"}[setting]
    answer = run("check-config", "--config", str(folder / "broker.toml"), **{variable: str(folder / path)})
    said = said.format(path=folder / path, folder=folder)
    assert (answer.exit_code, answer.output) == (1, f"Error: {said}\n")


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_authorities_for_webhooks_that_are_not_there_are_named_before_anything_is_served(command, tmp_path):
    settings = {"BROKER_WEBHOOKS__CA_FILE": str(tmp_path / "none.pem"), "BROKER_STORAGE__PATH": str(tmp_path / "b.db")}
    answer = run(command, **settings)
    assert answer.exit_code == 1
    assert answer.stderr == f"Error: webhooks.ca_file: {tmp_path}/none.pem: No such file or directory\n"
    assert not (tmp_path / "b.db").exists()


def test_check_config_is_content_with_a_file_that_can_be_made_or_is_a_brokers_at_work(config_path):
    folder = config_path.parent
    settings = {"BROKER_SERVER__UNIX": str(folder / "b.sock"), "BROKER_STORAGE__PATH": str(folder / "broker.db")}
    with serving("--config", config_path, **settings):
        assert run("check-config", "--config", str(config_path), **settings).exit_code == 0
    assert run("check-config", "--config", str(config_path), **settings).exit_code == 0


def test_serve_with_an_engine_says_where_that_is_without_its_password_and_warns_once_that_it_is_away(config_path):
    url = f"redis://me:hush@127.0.0.1:{free_port()}/3"
    with process("serve", "--config", config_path, "--port", "0", BROKER_ENGINE__URL=url) as started:
        lines = [started.stderr.readline() for _ in range(2)]
        started.terminate()
        assert started.wait(GUARD_SECONDS) == 0
        said = "".join([*lines, started.stderr.read()])
    where = url.partition("@")[2].removesuffix("/3")
    assert f"the engine at {where}, database 3: it keeps the window of 300 s, listening on http://127.0.0.1:" in said
    assert said.count(f"the engine at {where}, database 3 is away: ") == 1
    assert "memory only" not in said
    assert "hush" not in said


def test_a_port_that_is_taken_is_an_error_that_says_so(server, config_path):
    port = server[1].rpartition(":")[2]
    with process("serve", "--config", config_path, "--port", port) as second:
        assert second.wait(GUARD_SECONDS) == 1
        said = second.stderr.read()
    assert f"Error: cannot listen on 127.0.0.1:{port}: Address already in use" in said
    assert "Traceback" not in said


def test_several_hosts_and_a_socket_file_are_served_and_said(config_path, tmp_path):
    path = tmp_path / "broker.sock"
    hosts = ("--host", "127.0.0.1", "--host", "127.0.0.2")
    with process("serve", "--config", config_path, *hosts, "--port", "0", BROKER_SERVER__UNIX=str(path)) as serving:
        said = serving.stderr.readline()
        assert re.search(r"http://127\.0\.0\.1:(\d+) and http://127\.0\.0\.2:\1 and unix:(.+)$", said.strip())[
            2
        ] == str(path)
        serving.terminate()
        assert serving.wait(GUARD_SECONDS) == 0
    assert not path.exists()


def test_the_environment_overrides_the_file_and_a_flag_overrides_both(config_path):
    config_path.write_text(CONFIG + "[server]\nport = 1\n")
    with process("serve", "--config", config_path, "--port", "0", BROKER_SERVER__PORT="2") as serving:
        assert re.search(r":(\d+)$", serving.stderr.readline().strip())[1] not in {"1", "2"}
