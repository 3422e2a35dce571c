"""The command line as its users meet it: separate processes, real ports, exit codes."""

import hashlib
import json
import re
import signal
import tomllib

import pytest
from click.testing import CliRunner
from processes import GUARD_SECONDS, KEY, process

from broker.cli.cli import main
from broker.config import parse_config

CONFIG = f"""
[[accounts]]
id = "acct_test"
[[accounts.keys]]
id = "key_test"
sha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"
"""


def run(*arguments, text="", **environment):
    return CliRunner().invoke(main, arguments, input=text, env={"BROKER_KEY": KEY, **environment})


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def server(config_path):
    """A running `broker serve` and its URL."""
    with process("serve", "--config", config_path, "--port", "0") as serving:
        listening = serving.stderr.readline()
        yield serving, re.search(r"http://127\.0\.0\.1:\d+", listening)[0]


def test_serve_says_in_one_line_where_it_listens(server):
    assert server[1].startswith("http://127.0.0.1:")


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


def test_what_is_published_from_the_command_line_arrives_at_tail(server):
    _, url = server
    with process("tail", "--url", url, "--inbox", "inbox_a") as tailing:
        ready = json.loads(tailing.stdout.readline())
        assert ready["inbox_ids"] == ["inbox_a"]
        answer = run(
            "publish", "--url", url, "--type", "message.received", "--inbox", "inbox_a", "--payload", '{"n":1}'
        )
        assert answer.exit_code == 0, answer.output
        event = json.loads(tailing.stdout.readline())
    assert (event["type"], event["inbox_id"], event["payload"]) == ("message.received", "inbox_a", {"n": 1})
    assert json.loads(answer.output) == {"event_id": event["event_id"], "cursor": event["cursor"]}


def test_tail_replays_since_and_filters_types(server):
    _, url = server
    lines = [{"type": kind, "payload": {}} for kind in ("account.upgraded", "message.received", "account.closed")]
    published = run("publish", "--url", url, text="\n".join(json.dumps(line) for line in lines))
    assert len(published.output.splitlines()) == 3
    with process("tail", "--url", url, "--since", "5m", "--type", "account.*") as tailing:
        frames = [json.loads(tailing.stdout.readline()) for _ in range(3)]
    assert [frame["type"] for frame in frames] == ["connection.ready", "account.upgraded", "account.closed"]
    assert frames[0]["replay"] == {"recovered": True, "count": 3}


def test_tail_goes_on_after_a_restart_of_the_server(config_path):
    with process("serve", "--config", config_path, "--port", "0") as first:
        url = re.search(r"http://\S+", first.stderr.readline())[0]
        with process("tail", "--url", url) as tailing:
            assert "connection.ready" in tailing.stdout.readline()
            first.send_signal(signal.SIGTERM)
            assert "server.draining" in tailing.stdout.readline()
            assert first.wait(GUARD_SECONDS) == 0
            with process("serve", "--config", config_path, "--port", url.rpartition(":")[2]) as second:
                second.stderr.readline()
                ready = json.loads(tailing.stdout.readline())
    assert ready["type"] == "connection.ready"
    assert ready["replay"]["recovered"] is False


def test_publish_says_what_the_broker_refuses(server):
    _, url = server
    answer = run("publish", "--url", url, "--type", "Message", "--payload", "{}")
    assert answer.exit_code == 1
    assert "$.type" in answer.output
    unknown = run("publish", "--url", url, "--key", "dm_live_unknown", "--type", "a", "--payload", "{}")
    assert "401" in unknown.output


def test_tail_ends_when_the_broker_will_not_have_it(server):
    _, url = server
    with process("tail", "--url", url, "--key", "dm_live_unknown") as tailing:
        assert tailing.wait(GUARD_SECONDS) == 1
        assert "401" in tailing.stderr.read()


def test_publish_without_a_broker_is_one_line_and_no_traceback():
    answer = run("publish", "--url", "http://127.0.0.1:1", "--type", "a", "--payload", "{}")
    assert answer.exit_code == 1
    assert "Traceback" not in answer.output
    assert "127.0.0.1:1" in answer.output


def test_a_payload_that_is_no_json_is_refused_before_anything_is_sent():
    answer = run("publish", "--type", "a", "--payload", "{")
    assert answer.exit_code == 2
    assert "--payload" in answer.output


@pytest.mark.parametrize("options", [[], ["--inbox", "inbox_a", "--scope", "subscribe"]])
def test_keys_new_prints_a_key_once_and_lines_that_load(options):
    output = run("keys", "new", *options).output
    [key] = re.findall(r"dm_live_\S+", output)
    [account] = parse_config(output, {}).accounts
    assert account.keys[0].sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert account.keys[0].inbox_ids == (("inbox_a",) if options else None)
    assert account.keys[0].scopes == (("subscribe",) if options else ("subscribe", "command", "publish"))
    assert key not in run("keys", "new").output


def test_keys_new_makes_operator_keys():
    output = run("keys", "new", "--operator", "--id", "op_main").output
    [key] = re.findall(r"dm_operator_\S+", output)
    [operator] = tomllib.loads(output)["operators"]
    assert operator == {"id": "op_main", "sha256": hashlib.sha256(key.encode()).hexdigest()}


def test_check_config_says_that_it_loads(config_path):
    answer = run("check-config", "--config", str(config_path))
    assert (answer.exit_code, answer.output) == (0, "ok: 1 accounts, 1 keys, 0 operators\n")


@pytest.mark.parametrize("command", ["check-config", "serve"])
def test_a_setting_that_is_not_known_is_named(command, config_path):
    config_path.write_text("[server]\nporrt = 1\n")
    answer = run(command, "--config", str(config_path))
    assert answer.exit_code == 1
    assert "porrt" in answer.output
    by_environment = run("check-config", BROKER_SERVER__PORRT="1")
    assert "BROKER_SERVER__PORRT" in by_environment.output


def test_a_port_that_is_taken_is_an_error_that_says_so(server, config_path):
    port = server[1].rpartition(":")[2]
    with process("serve", "--config", config_path, "--port", port) as second:
        assert second.wait(GUARD_SECONDS) == 1
        said = second.stderr.read()
    assert "cannot listen" in said
    assert "Traceback" not in said


def test_the_environment_overrides_the_file_and_a_flag_overrides_both(config_path):
    config_path.write_text(CONFIG + "[server]\nport = 1\n")
    with process("serve", "--config", config_path, "--port", "0", BROKER_SERVER__PORT="2") as serving:
        assert re.search(r":(\d+)$", serving.stderr.readline().strip())[1] not in {"1", "2"}


def test_serve_raises_its_limit_of_open_files(server):
    import resource

    serving, _ = server
    soft, hard = resource.prlimit(serving.pid, resource.RLIMIT_NOFILE)
    assert soft == hard


def test_the_demo_shows_the_four_types_with_their_latency_and_ends_by_itself():
    with process("demo", "--port", "0", "--seconds", "4.5") as demo:
        output, _ = demo.communicate(timeout=GUARD_SECONDS)
    assert demo.returncode == 0
    for event_type in ("message.received", "message.bounced", "message.complaint", "account.upgraded"):
        assert re.search(rf"\d+\.\d\d ms {event_type}", output), output
    for answer in ("send_email", "mark_as_read"):
        assert re.search(rf"\d+\.\d\d ms   {answer} .*message_id", output), output
    for client in ("curl ", "wscat ", "websocat "):
        assert client in output


def test_the_demo_can_be_met_with_the_key_it_prints():
    with process("demo", "--port", "0") as demo:
        lines = iter(demo.stdout.readline, "")
        curl = next(line for line in lines if "curl " in line)
        url, key = re.search(r"http://[\d.:]+", curl)[0], re.search(r"dm_live_[\w-]+", curl)[0]
        answer = run("publish", "--url", url, "--key", key, "--type", "hello.there", "--payload", "{}")
        assert answer.exit_code == 0, answer.output
        assert any("from outside" in line and "hello.there" in line for line in lines)
        demo.send_signal(signal.SIGINT)
        demo.stdout.read()
        assert demo.wait(GUARD_SECONDS) == 0


def test_the_demo_takes_a_free_port_if_its_own_is_taken(server):
    port = server[1].rpartition(":")[2]
    with process("demo", "--port", port, "--seconds", "1") as demo:
        output, _ = demo.communicate(timeout=GUARD_SECONDS)
    assert demo.returncode == 0
    assert "taking a free one" in output
