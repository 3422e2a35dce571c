"""`broker webhooks …` against a broker that is served, and its own receiver."""

import json

import pytest
from click.testing import CliRunner
from processes import GUARD_SECONDS, KEY, process, serving

from broker.cli.cli import main
from broker.keys import hash_key

CONFIG = f"""
[storage]
path = "{{path}}"
min_free_bytes = 0
[webhooks]
allow_networks = ["127.0.0.0/8"]
allow_http = true
[[accounts]]
id = "acct_test"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
scopes = ["subscribe", "publish", "webhooks"]
"""
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("webhooks")
    path = folder / "broker.toml"
    path.write_text(CONFIG.format(path=folder / "broker.db"))
    with serving("--config", path) as (_, url):
        yield url


@pytest.fixture
def hooks(url):
    def run(*arguments, exit_code=0):
        done = CliRunner().invoke(main, ["webhooks", *arguments], env={"BROKER_KEY": KEY, "BROKER_URL": url})
        assert done.exit_code == exit_code, done.output
        return [json.loads(line) for line in done.stdout.splitlines()] if exit_code == 0 else done.output

    return run


def publish(url, count=1):
    lines = "\n".join(['{"type":"job.done","payload":{}}'] * count)
    done = CliRunner().invoke(main, ["publish"], input=lines, env={"BROKER_KEY": KEY, "BROKER_URL": url})
    assert done.exit_code == 0
    return [json.loads(line)["event_id"] for line in done.output.splitlines()]


def receiving(*arguments):
    return process("webhooks", "receive", "--secret", SECRET, "--port", "0", *arguments)


def address_of(receiver):
    return receiver.stderr.readline().rpartition("http://")[2].strip()


def test_an_endpoint_is_added_tried_listed_and_removed_and_gets_what_is_published(url, hooks):
    with receiving("--count", "2") as receiver:
        endpoint = f"http://{address_of(receiver)}/"
        [made] = hooks("add", endpoint, "--id", "wh_cli", "--secret", SECRET, "--type", "job.*", "--in-order")
        assert (made["webhook_id"], made["secret"]) == ("wh_cli", SECRET)
        assert (made["event_types"], made["order"]) == (["job.*"], "inbox")
        [tested] = hooks("test", "wh_cli")
        assert (tested["status"], tested["error"]) == (200, None)
        assert json.loads(receiver.stdout.readline())["type"] == "webhook.test"
        [event_id] = publish(url)
        assert json.loads(receiver.stdout.readline())["event_id"] == event_id
        assert receiver.wait(GUARD_SECONDS) == 0
    [shown] = hooks("show", "wh_cli")
    assert shown == {name: value for name, value in made.items() if name != "secret"}
    assert shown in hooks("list")
    [rotated] = hooks("rotate", "wh_cli")
    assert rotated["secret"] not in ("", SECRET)
    assert hooks("remove", "wh_cli") == [{"webhook_id": "wh_cli"}]
    assert "404 not_found" in hooks("show", "wh_cli", exit_code=1)


def test_a_fallback_names_its_clients(hooks):
    [made] = hooks("add", "https://hooks.example.com/", "--fallback", "agent", "--fallback-seconds", "5")
    assert (made["mode"], made["client_ids"], made["fallback_seconds"]) == ("fallback", ["agent"], 5)
    assert "--fallback" in hooks("add", "https://hooks.example.com/", "--fallback-seconds", "5", exit_code=2)
    hooks("remove", made["webhook_id"])


def test_what_waits_is_listed_and_sent_when_the_endpoint_goes_on(url, hooks):
    with receiving() as receiver:
        hooks("add", f"http://{address_of(receiver)}/", "--id", "wh_paused", "--secret", SECRET)
        assert hooks("pause", "wh_paused")[0]["status"] == "paused"
        ids = publish(url, 2)
        waiting = hooks("deliveries", "wh_paused", "--state", "waiting", "--limit", "1")
        assert [each["event_id"] for each in waiting] == ids[1:]
        assert hooks("resume", "wh_paused")[0]["status"] == "active"
        assert {json.loads(receiver.stdout.readline())["event_id"] for _ in ids} == set(ids)
        while hooks("deliveries", "wh_paused", "--event-id", ids[0])[0]["state"] != "delivered":
            pass
        assert hooks("resend", "wh_paused", ids[0]) == [{"resent": 1}]
        assert json.loads(receiver.stdout.readline())["event_id"] == ids[0]
        assert hooks("resend", "wh_paused", "--dead", "--since", "1h") == [{"resent": 0}]
    assert "--dead" in hooks("resend", "wh_paused", exit_code=2)
    assert "--dead" in hooks("resend", "wh_paused", "evt_1", "--since", "1h", exit_code=2)
    hooks("remove", "wh_paused")


def test_a_test_that_fails_says_why_and_ends_with_an_error(hooks):
    [made] = hooks("add", "http://127.0.0.1:1/")
    assert '"error":"connect"' in hooks("test", made["webhook_id"], exit_code=1)
    hooks("remove", made["webhook_id"])


def test_the_receiver_prints_nothing_that_it_cannot_verify(hooks):
    with receiving() as receiver:
        [made] = hooks("add", f"http://{address_of(receiver)}/")  # with another secret
        assert '"status":403' in hooks("test", made["webhook_id"], exit_code=1)
        assert "refused" in receiver.stderr.readline()
    hooks("remove", made["webhook_id"])


def test_the_receiver_answers_as_it_is_told(hooks):
    with receiving("--status", "503") as receiver:
        [made] = hooks("add", f"http://{address_of(receiver)}/", "--secret", SECRET)
        assert '"status":503' in hooks("test", made["webhook_id"], exit_code=1)
    hooks("remove", made["webhook_id"])


def test_a_receiver_without_a_good_secret_or_a_free_port_says_so_in_a_line():
    run = CliRunner().invoke
    assert "--secret" in run(main, ["webhooks", "receive", "--secret", "whsec_!"]).output
    with receiving() as receiver:
        port = address_of(receiver).rpartition(":")[2]
        refused = run(main, ["webhooks", "receive", "--secret", SECRET, "--port", port])
    assert (refused.exit_code, port in refused.output) == (1, True)


def test_what_was_answered_is_posted_though_the_broker_was_killed(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(CONFIG.format(path=tmp_path / "broker.db"))

    def run(url, *arguments):
        done = CliRunner().invoke(main, ["webhooks", *arguments], env={"BROKER_KEY": KEY, "BROKER_URL": url})
        assert done.exit_code == 0, done.output

    with receiving() as receiver:
        with serving("--config", path) as (broker, url):
            run(url, "add", f"http://{address_of(receiver)}/", "--id", "wh_kept", "--secret", SECRET, "--in-order")
            run(url, "pause", "wh_kept")
            ids = publish(url, 20)
            broker.kill()
            broker.wait()
        with serving("--config", path) as (_, url):
            run(url, "resume", "wh_kept")
            assert [json.loads(receiver.stdout.readline())["event_id"] for _ in ids] == ids
