"""`keys new`, `keys check`, `secrets new`: what is printed where, and that it loads."""

import re

import pytest
from click.testing import CliRunner
from standardwebhooks.webhooks import Webhook

from broker.cli.cli import main
from broker.config import parse_config
from broker.keys import hash_key

FILE = """
[[accounts]]
id = "acct_one"
[[accounts.keys]]
id = "key_agent"
sha256 = "{}"
inbox_ids = ["inbox_b", "inbox_a"]
[[accounts]]
id = "acct_two"
tier = "growth"
[[operators]]
id = "op_main"
sha256 = "{}"
"""
ONE, OPERATOR = "dm_live_one", "dm_operator_main"


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "broker.toml"
    path.write_text(FILE.format(hash_key(ONE), hash_key(OPERATOR)))
    return path


@pytest.fixture
def no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments, key=""):
    return CliRunner().invoke(main, arguments, env={"BROKER_KEY": key})


def made(*arguments):
    """The key that was made, and the lines of TOML."""
    answer = run("keys", "new", *arguments)
    assert answer.exit_code == 0, answer.output
    [key] = re.findall(r"dm_(?:live|operator)_[\w-]{43}", answer.stderr)
    assert key not in answer.stdout
    return key, answer.stdout


@pytest.mark.parametrize("options", [[], ["--inbox", "inbox_a", "--scope", "subscribe", "--tier", "free"]])
def test_the_key_is_on_standard_error_and_lines_that_load_on_standard_output(options, no_file):
    key, lines = made(*options)
    [account] = parse_config(lines, {}).accounts
    assert account.tier == ("free" if options else "developer")
    assert account.keys[0].sha256 == hash_key(key)
    assert account.keys[0].inbox_ids == (("inbox_a",) if options else None)
    assert account.keys[0].scopes == (("subscribe",) if options else ("subscribe", "command", "publish"))
    assert key != made()[0]


def test_an_operators_key_is_of_its_own_form(no_file):
    key, lines = made("--operator", "--id", "op_second")
    [operator] = parse_config(lines, {}).operators
    assert key.startswith("dm_operator_")
    assert (operator.id, operator.sha256) == ("op_second", hash_key(key))


def test_for_an_account_that_is_in_the_file_only_the_keys_own_lines_are_printed(path):
    key, lines = made("--account", "acct_two")
    assert "[[accounts]]" not in lines
    path.write_text(path.read_text() + lines)
    [_, two] = parse_config(path.read_text(), {}).accounts
    assert [known.sha256 for known in two.keys] == [hash_key(key)]


def test_names_that_are_taken_are_not_given_again(path):
    assert 'id = "key_agent_2"' in made("--account", "acct_one")[1]
    assert 'id = "op_main_2"' in made("--operator")[1]
    refused = run("keys", "new", "--account", "acct_one", "--id", "key_agent")
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_lines_that_may_not_be_appended_are_said_to_belong_elsewhere(path):
    assert "before the next [[accounts]]" in run("keys", "new", "--account", "acct_one").stderr
    assert "belong" not in run("keys", "new", "--account", "acct_two").stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--account", "acct_one", "--tier", "free"],
        ["--operator", "--inbox", "a"],
        ["--account", "an account"],
        ["--id", "a,b"],
        ["--operator", "--id", "a b"],
        ["--inbox", "*"],
        ["--inbox", "a,b"],
    ],
)
def test_what_cannot_be_a_keys_is_refused(options, path):
    answer = run("keys", "new", *options)
    assert (answer.exit_code, answer.stdout) == (2, "")


def test_check_says_whose_a_key_is_and_what_it_may(path):
    answer = run("keys", "check", key=ONE)
    assert answer.exit_code == 0
    for part in ("key_agent of acct_one", "developer (10", "subscribe, command, publish", "inbox_a, inbox_b"):
        assert part in answer.stdout
    assert "op_main" in run("keys", "check", key=OPERATOR).stdout
    clerk, lines = made("--account", "acct_two", "--scope", "webhooks")
    path.write_text(path.read_text() + lines)
    assert "may     webhooks\n" in run("keys", "check", key=clerk).stdout


def test_check_says_that_a_key_reaches_the_whole_account(path):
    key, lines = made("--account", "acct_two")
    path.write_text(path.read_text() + lines)
    assert "whole account" in run("keys", "check", key=key).stdout


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("dm_live_unknown", "does not hold this key"),
        (hash_key(ONE), "SHA-256"),
        ("wst_abc", "token"),
    ],
)
def test_check_says_why_it_does_not_know_a_key(key, says, path):
    answer = run("keys", "check", key=key)
    assert answer.exit_code == 1
    assert says in answer.stderr


def test_check_says_who_else_would_be_asked(path):
    path.write_text(
        path.read_text()
        + '[access]\nurl = "https://api.example.com/a"\nsecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"'
    )
    answer = run("keys", "check", key="dm_live_unknown")
    assert "https://api.example.com/a would be asked" in answer.stderr


def test_a_new_secret_signs_callouts_and_tokens():
    secret = run("secrets", "new").stdout.strip()
    Webhook(secret)
    for section in ("access", "commands"):
        parse_config(f'[{section}]\nurl = "https://api.example.com"\nsecret = "{secret}"', {})
    parse_config(f'[tokens]\nsecret = "{secret}"', {})
    assert secret != run("secrets", "new").stdout.strip()
