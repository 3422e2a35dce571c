"""`--json`: wherever a verb prints something for people, programs get it in one line."""

import json

import pytest
from click.testing import CliRunner
from processes import KEY, serving

from broker.cli.cli import main
from broker.config import parse_config
from broker.keys import hash_key

WITHOUT = {
    "serve": "logs, by `--log-format`",
    "demo": "is a show for people",
    "publish": "prints JSON",
    "send": "prints JSON",
    "webhooks": "prints JSON, all of it",
    "queues": "prints JSON, all of it",
    "work": "prints what its commands print",
    "completion": "prints a shell's script",
}


def verbs(group=main, words=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


@pytest.mark.parametrize(("verb", "command"), list(verbs()), ids=[verb for verb, _ in verbs()])
def test_every_verb_that_prints_for_people_prints_json_too(verb, command):
    takes_it = any("--json" in parameter.opts for parameter in command.params)
    assert takes_it != (verb in WITHOUT or verb.split()[0] in WITHOUT), (
        "give it `json_option` of broker/cli/options.py, or say above why not"
    )


def printed(*arguments, **environment):
    answer = CliRunner().invoke(main, [*map(str, arguments), "--json"], env={"BROKER_KEY": KEY, **environment})
    assert answer.exit_code == 0, answer.output
    assert answer.stderr == ""
    [line] = answer.stdout.splitlines()
    return json.loads(line)


@pytest.fixture
def config_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "broker.toml"
    path.write_text(
        f'[[accounts]]\nid = "acct_test"\ntier = "free"\n[[accounts.keys]]\nid = "key_test"\n'
        f'sha256 = "{hash_key(KEY)}"\ninbox_ids = ["in_2", "in_1"]\n'
        f'[[operators]]\nid = "op_main"\nsha256 = "{hash_key("dm_operator_test")}"\n'
    )
    return path


def test_init_says_what_it_wrote(tmp_path):
    made = printed("init", tmp_path, "--account", "acct_mine")
    assert made == {
        "config": str(tmp_path / "broker.toml"), "secrets": str(tmp_path / "broker.env"), "account_id": "acct_mine",
    }  # fmt: skip
    assert (tmp_path / "broker.toml").exists()


def test_check_config_counts(config_path):
    assert printed("check-config") == {"config": "broker.toml", "accounts": 1, "keys": 1, "operators": 1}


def test_keys_new_gives_the_key_its_hash_and_lines_that_load(config_path):
    made = printed("keys", "new", "--account", "acct_test", "--inbox", "in_1")
    assert made["sha256"] == hash_key(made["key"])
    config = parse_config(config_path.read_text().replace("[[operators]]", made["toml"] + "\n[[operators]]"), {})
    assert [key.id for key in config.accounts[0].keys] == ["key_test", made["id"]]


def test_keys_check_says_what_a_key_may(config_path):
    assert printed("keys", "check") == {
        "id": "key_test",
        "operator": False,
        "account_id": "acct_test",
        "tier": "free",
        "max_connections": 1,
        "scopes": ["command", "publish", "subscribe"],
        "inbox_ids": ["in_1", "in_2"],
    }
    assert printed("keys", "check", BROKER_KEY="dm_operator_test") == {"id": "op_main", "operator": True}


def test_secrets_new_gives_the_secret():
    assert printed("secrets", "new")["secret"].startswith("whsec_")


def test_token_and_healthcheck_say_what_a_running_broker_answers(config_path):
    with serving("--config", config_path) as (_, url):
        made = printed("token", "--url", url)
        port = url.rpartition(":")[2]
        health = printed("healthcheck", BROKER_SERVER__PORT=port)
        ready = printed("healthcheck", "--ready", BROKER_SERVER__PORT=port)
    assert made["token"].startswith("wst_")
    assert made["expires_at"].endswith("Z")
    assert (health, ready) == ({"status": "ok"}, {"status": "ready"})
