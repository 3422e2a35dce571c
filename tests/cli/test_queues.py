"""`broker queues …` and `broker work` against a broker that is served: what became of events, and of what was run."""

import json
import signal
import sys
import time

import pytest
from click.testing import CliRunner
from processes import KEY, line_with, process, serving

from broker.cli.cli import main
from broker.keys import hash_key

CONFIG = f"""
[storage]
path = "{{path}}"
min_free_bytes = 0
[[accounts]]
id = "acct_test"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
scopes = ["subscribe", "publish", "command", "webhooks"]
"""
GUARD_SECONDS = 60


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queues")
    path = folder / "broker.toml"
    path.write_text(CONFIG.format(path=folder / "broker.db"))
    with serving("--config", path) as (_, url):
        yield url


@pytest.fixture
def run(url):
    def run(*arguments, exit_code=0, **options):
        done = CliRunner().invoke(main, arguments, env={"BROKER_KEY": KEY, "BROKER_URL": url}, **options)
        assert done.exit_code == exit_code, done.output
        return [json.loads(line) for line in done.stdout.splitlines()] if exit_code == 0 else done.output

    return run


@pytest.fixture
def queue(run, request):
    """A queue of this test's own, that gets the events of an inbox of the same name."""
    name = f"q{abs(hash(request.node.name))}"
    run("queues", "add", name, "--inbox", name)
    yield name
    run("queues", "remove", name)


def publish(run, inbox, count=1):
    event = {"type": "message.received", "inbox_id": inbox, "payload": {"message": {"subject": "Hello"}}}
    return [each["event_id"] for each in run("publish", input="\n".join([json.dumps(event)] * count))]


def states(run, queue):
    return {each["event_id"]: each["state"] for each in run("queues", "deliveries", queue)}


def working(url, queue, *arguments):
    return process("work", "--queue", queue, *arguments, BROKER_URL=url)


def python(program):
    return (sys.executable, "-c", program)


def until(what):
    """Look until something is so."""
    ends = time.monotonic() + GUARD_SECONDS
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_queue_is_added_shown_paused_resumed_and_removed(run):
    [made] = run("queues", "add", "cli", "--type", "job.*", "--order", "none", "--max-attempts", "2", "--stop")
    assert (made["queue_id"], made["order"], made["max_attempts"], made["dead_after"]) == ("cli", "none", 2, "stop")
    assert run("queues", "show", "cli") == [made]
    assert made in run("queues", "list")
    assert run("queues", "pause", "cli")[0]["status"] == "paused"
    assert run("queues", "resume", "cli")[0]["status"] == "active"
    assert run("queues", "remove", "cli") == [{"queue_id": "cli"}]
    assert "not_found" in run("queues", "show", "cli", exit_code=1)


def test_what_is_to_be_given_again_is_said_in_one_way(run, queue):
    assert "say which events" in run("queues", "resend", queue, exit_code=2)
    assert "--since needs --dead" in run("queues", "resend", queue, "e", "--since", "1h", exit_code=2)


def test_a_command_gets_the_event_and_its_exit_code_0_says_that_it_is_done(url, run, queue):
    [event_id] = publish(run, queue)
    program = "import os, sys; print(sys.stdin.read().strip(), os.environ['BROKER_ONCE'], os.environ['BROKER_ATTEMPT'])"
    with working(url, queue, "--count", "1", "--", *python(program)) as worker:
        said, _ = worker.communicate(timeout=GUARD_SECONDS)
    event, once, attempt = said.rsplit(maxsplit=2)
    assert (json.loads(event)["event_id"], once, attempt) == (event_id, event_id, "1")
    assert worker.returncode == 0
    assert states(run, queue) == {event_id: "acked"}


def test_numbers_of_an_event_reach_the_command_with_all_their_digits(url, run, queue):
    written = '{"price":1.10,"ratio":0.12345678901234567890123456789}'
    run("publish", "--type", "job.done", "--inbox", queue, "--payload", written)
    with working(url, queue, "--count", "1", "--", *python("import sys; print(sys.stdin.read())")) as worker:
        said, _ = worker.communicate(timeout=GUARD_SECONDS)
    assert f'"payload":{written}' in said


@pytest.mark.parametrize(("code", "state"), [(75, "waiting"), (65, "dead"), (3, "waiting")])
def test_other_exit_codes_give_the_event_back_or_let_it_be_dead(url, run, queue, code, state):
    [event_id] = publish(run, queue)
    with working(url, queue, "--count", "1", "--", *python(f"raise SystemExit({code})")) as worker:
        _, said = worker.communicate(timeout=GUARD_SECONDS)
    assert f"{event_id}: exit code {code}" in said
    [delivery] = run("queues", "deliveries", queue)
    assert (delivery["state"], delivery["last"]["reason"]) == (state, f"exit code {code}")
    assert run("queues", "resend", queue, "--dead") == [{"resent": int(state == "dead")}]


def test_a_lease_is_held_while_the_command_runs(url, run, queue, tmp_path):
    [event_id] = publish(run, queue)
    goes_on = tmp_path / "on"
    program = f"import pathlib, time\nwhile not pathlib.Path({str(goes_on)!r}).exists(): time.sleep(0.02)"
    ends = set()

    def held_beyond_its_first_end():
        ends.update(each["expires_at"] for each in run("queues", "deliveries", queue, "--state", "leased"))
        return len(ends) > 3  # it is held each third of its time

    with working(url, queue, "--count", "1", "--lease-seconds", "4", "--", *python(program)) as worker:
        until(held_beyond_its_first_end)
        goes_on.touch()
        _, said = worker.communicate(timeout=GUARD_SECONDS)
    assert "lost" not in said
    [delivery] = run("queues", "deliveries", queue, "--event-id", event_id)
    assert (delivery["state"], delivery["attempts"]) == ("acked", 1)


def test_all_that_a_command_started_ends_when_its_lease_is_lost(url, run, queue, tmp_path):
    publish(run, queue)
    alive = tmp_path / "alive"
    child = f"import time, pathlib\nwhile True: pathlib.Path({str(alive)!r}).touch(); time.sleep(0.05)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with working(url, queue, "--count", "1", "--lease-seconds", "4", "--", *python(program)) as worker:
        until(alive.exists)
        run("queues", "remove", queue)  # and with it all of its leases
        _, said = worker.communicate(timeout=GUARD_SECONDS)
    assert "its lease is lost, and the command was ended" in said
    alive.unlink()
    time.sleep(0.3)
    assert not alive.exists()
    run("queues", "add", queue, "--inbox", queue)


def test_so_many_commands_run_at_once(url, run, queue, tmp_path):
    run("queues", "remove", queue)
    run("queues", "add", queue, "--inbox", queue, "--order", "none")
    publish(run, queue, 2)
    program = (
        "import os, pathlib, time\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / os.environ['BROKER_ONCE']).touch()\n"
        "while len(list(folder.iterdir())) < 2: time.sleep(0.02)\n"
    )
    with working(url, queue, "--count", "2", "--concurrency", "2", "--", *python(program)) as worker:
        worker.communicate(timeout=GUARD_SECONDS)
    assert set(states(run, queue).values()) == {"acked"}


def test_a_command_that_cannot_be_started_is_that_events_end_and_no_other(url, run, queue, tmp_path):
    command = tmp_path / "command"
    command.write_text('#!/bin/sh\nmv "$0" "$0.elsewhere"; sleep 1\n')
    command.chmod(0o755)
    publish(run, queue, 2)
    with working(url, queue, "--count", "2", "--concurrency", "1", "--", str(command)) as worker:
        _, said = worker.communicate(timeout=GUARD_SECONDS)
    assert worker.returncode == 0
    assert "cannot be started: No such file or directory" in said
    assert "Traceback" not in said
    assert sorted(states(run, queue).values()) == ["acked", "waiting"]


def test_who_is_asked_to_end_lets_the_command_end_first_and_takes_no_more(url, run, queue, tmp_path):
    first, second = publish(run, queue, 2)
    begun, goes_on = tmp_path / "begun", tmp_path / "on"
    program = (
        "import pathlib, time\n"
        f"pathlib.Path({str(begun)!r}).touch()\n"
        f"while not pathlib.Path({str(goes_on)!r}).exists(): time.sleep(0.02)\n"
    )
    with working(url, queue, "--", *python(program)) as worker:
        until(begun.exists)
        worker.send_signal(signal.SIGTERM)
        line_with(worker.stderr, "taking no more")
        goes_on.touch()
        assert worker.wait(GUARD_SECONDS) == 0
    assert states(run, queue) == {first: "acked", second: "waiting"}


def test_who_is_asked_twice_ends_the_command_and_its_event_waits_for_others(url, run, queue, tmp_path):
    [event_id] = publish(run, queue)
    begun = tmp_path / "begun"
    program = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(60)"
    with working(url, queue, "--", *python(program)) as worker:
        until(begun.exists)
        worker.send_signal(signal.SIGTERM)
        line_with(worker.stderr, "taking no more")
        worker.send_signal(signal.SIGTERM)
        worker.wait(GUARD_SECONDS)
    assert states(run, queue) == {event_id: "waiting"}


def test_a_worker_without_a_queue_or_a_program_ends_with_a_line(url):
    with working(url, "none", "--", *python("")) as worker:
        _, said = worker.communicate(timeout=GUARD_SECONDS)
    assert worker.returncode == 1
    assert "404 not_found: There is no such queue" in said
    with working(url, "none", "--", "no-such-program") as worker:
        _, said = worker.communicate(timeout=GUARD_SECONDS)
    assert (worker.returncode, "there is no program 'no-such-program'" in said) == (2, True)


def test_what_a_command_of_a_worker_sends_bears_its_lease_and_its_event(monkeypatch):
    sent = []
    monkeypatch.setattr("broker.cli.asking.ask", lambda *given: sent.append(json.loads(given[5])) or {})
    env = {"BROKER_KEY": KEY, "BROKER_LEASE_ID": "lse_1_1_0f", "BROKER_ONCE": "evt_1"}
    for arguments in (("--inbox", "in_1"), ()):
        assert CliRunner().invoke(main, ["send", "send_email", *arguments], env=env).exit_code == 0
    assert sent == [
        {"action": "send_email", "params": {}, "inbox_id": "in_1", "once": "evt_1", "lease_id": "lse_1_1_0f"},
        {"action": "send_email", "params": {}, "lease_id": "lse_1_1_0f"},
    ]


def test_once_needs_an_inbox(run):
    assert "--once needs --inbox" in run("send", "send_email", "--once", "evt_1", exit_code=2)
