"""`broker storage`: the file of a log looked into, checked, copied, compacted; with a broker at work or without."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from durable import publish, stream
from processes import GUARD_SECONDS, KEY, process, serving, shut_in

from broker.cli.cli import main
from broker.keys import hash_key

CONFIG = f"""
[storage]
path = "{{path}}"
[[accounts]]
id = "acct_test"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "broker.db"


@pytest.fixture
def config(tmp_path, path):
    config = tmp_path / "broker.toml"
    config.write_text(CONFIG.format(path=path))
    return config


@pytest.fixture
def filled(config, path):
    """A file in which a broker has stored some events, and that it has closed."""
    with serving("--config", config) as (broker, url):
        publish(url, [f"e{number}" for number in range(200)], size=2_000)
        broker.terminate()
        assert broker.wait(GUARD_SECONDS) == 0
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["storage", *map(str, arguments)], env={})


def said(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 1
    return result.output


def test_a_file_at_rest_says_what_is_in_it(config, filled):
    lines = said("info", "--config", config)
    for part in (str(filled), "no broker has it; the last one closed it", "events: 200, ", "rows of accounts: 1"):
        assert part in lines
    found = json.loads(said("info", "--storage", filled, "--json"))
    assert (found["rows"]["events"], found["clean"], found["used_by_pid"]) == (200, True, None)
    assert found["bytes"] == os.path.getsize(filled)


def test_a_file_at_work_is_looked_into_checked_and_copied_and_the_copy_is_a_log(config, path, tmp_path):
    copy = tmp_path / "copy.db"
    with serving("--config", config) as (broker, url):
        (told,) = publish(url, ["e1"])
        assert f"a broker has it: pid {broker.pid}" in said("info", "--config", config)
        assert said("check", "--config", config) == f"{path}: ok\n"
        assert said("backup", "--config", config, copy).startswith(f"{copy}: ")
        publish(url, ["e2"])
    assert copy.stat().st_mode & 0o777 == 0o600
    assert sorted(name for name in os.listdir(tmp_path) if name.startswith("copy")) == ["copy.db"]
    with serving("--config", config, "--storage", copy) as (_, url):
        assert publish(url, ["e1"])[0]["duplicate"]
        assert "duplicate" not in publish(url, ["e2"])[0]
        with stream(url, told["cursor"]) as client:
            ready = json.loads(client.recv(GUARD_SECONDS))
            gap = json.loads(client.recv(GUARD_SECONDS))
            assert (ready["replay"]["recovered"], gap["type"], gap["count"]) == (False, "replay.gap", None)
            assert [json.loads(client.recv(GUARD_SECONDS))["event_id"] for _ in range(2)] == ["e1", "e2"]


def test_a_copy_replaces_nothing(filled, tmp_path):
    copy = tmp_path / "copy.db"
    copy.write_text("something else")
    assert f"{copy}: it is there already" in refused("backup", "--storage", filled, copy)
    assert copy.read_text() == "something else"


def test_what_is_unused_is_given_back(filled):
    before = filled.stat().st_size
    lines = said("compact", "--storage", filled)
    assert f"{filled}: " in lines
    assert filled.stat().st_size <= before
    assert said("check", "--storage", filled) == f"{filled}: ok\n"


def test_a_file_that_a_broker_has_is_not_compacted(config, path):
    with serving("--config", config) as (broker, _):
        assert f"another broker (pid {broker.pid}) has it" in refused("compact", "--storage", path)


def test_damage_is_found_and_named(filled):
    with filled.open("r+b") as file:
        file.seek(4_096 * 12)
        file.write(b"\xff" * 4_096 * 4)
    assert str(filled) in refused("check", "--storage", filled)


@pytest.mark.parametrize("verb", ["info", "check", "compact"])
def test_what_is_no_log_or_is_not_there_is_named(tmp_path, verb):
    other = tmp_path / "notes.txt"
    assert f"{other}: there is no such file" in refused(verb, "--storage", other)
    other.write_text("notes" * 100)
    assert f"{other}: it is not a broker's log" in refused(verb, "--storage", other)


def refused_shut_in(*arguments, writable=()):
    shutting = shut_in(str(os.getuid()), *map(str, writable))
    command = [*shutting, sys.executable, "-m", "broker", "storage", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GUARD_SECONDS)
    assert done.returncode == 1, done.stdout
    return done.stderr


@pytest.mark.parametrize("verb", ["info", "check"])
def test_on_a_read_only_mount_it_says_why_it_cannot_look_and_what_can_be_done(filled, verb):
    told = refused_shut_in(verb, "--storage", filled)
    assert f"{filled}: its file system is read-only, and who reads it needs broker.db-wal" in told
    assert "copy it, with broker.db-wal if there is one, to a folder where they can be made" in told


def test_a_backup_of_or_to_a_read_only_mount_says_which_of_them_is(filled, tmp_path):
    (folder := tmp_path / "copies").mkdir()
    copy = folder / "copy.db"
    told = refused_shut_in("backup", "--storage", filled, copy, writable=[folder])
    assert f"{filled}: its file system is read-only" in told
    assert f"{copy}.part: Read-only file system" in refused_shut_in("backup", "--storage", filled, copy)
    assert list(folder.iterdir()) == []


def test_a_file_that_may_not_be_written_is_not_compacted(filled):
    shutting = [*shut_in(str(os.getuid()), str(filled.parent)), "--ro-bind", str(filled), str(filled)]
    command = [*shutting, sys.executable, "-m", "broker", "storage", "compact", "--storage", str(filled)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GUARD_SECONDS)
    assert done.returncode == 1
    assert f"{filled}: it is read-only, or the file system that it is on" in done.stderr


def test_without_a_file_it_says_how_to_name_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--storage" in refused("info")


def test_the_verbs_are_there_for_people_too():
    with process("storage", "--help") as started:
        lines, _ = started.communicate(timeout=GUARD_SECONDS)
    assert all(verb in lines for verb in ("info", "check", "backup", "compact"))


def test_for_programs_each_verb_prints_one_line_of_json(filled, tmp_path):
    assert json.loads(said("check", "--storage", filled, "--json")) == {"path": str(filled), "faults": []}
    copied = json.loads(said("backup", "--storage", filled, tmp_path / "copy.db", "--json"))
    assert copied == {"copy": str(tmp_path / "copy.db"), "bytes": os.path.getsize(tmp_path / "copy.db")}
    compacted = json.loads(said("compact", "--storage", filled, "--json"))
    assert compacted["bytes"] == os.path.getsize(filled) <= compacted["bytes_before"]
