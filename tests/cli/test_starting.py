"""`broker init`: what it writes serves, and keeps its secrets."""

import re

import pytest
from click.testing import CliRunner

from broker.cli.cli import main
from broker.config import parse_config
from broker.keys import hash_key


def run(*arguments):
    return CliRunner().invoke(main, ["init", *map(str, arguments)])


def environment_of(path):
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if line and not line.startswith("#"))


def test_it_writes_a_configuration_with_an_account_and_its_secrets_beside_it(tmp_path):
    answer = run(tmp_path, "--account", "acct_mine", "--tier", "growth")
    assert answer.exit_code == 0, answer.output
    secrets = environment_of(tmp_path / "broker.env")
    config = parse_config((tmp_path / "broker.toml").read_text(), secrets)
    [account] = config.accounts
    assert (account.id, account.tier) == ("acct_mine", "growth")
    assert account.keys[0].sha256 == hash_key(secrets["BROKER_KEY"])
    assert config.operators[0].sha256 == hash_key(secrets["BROKER_OPERATOR_KEY"])
    assert config.tokens.secret == secrets["BROKER_TOKENS__SECRET"]


def test_the_secrets_are_for_their_owner_alone_and_not_for_version_control(tmp_path):
    (tmp_path / ".gitignore").write_text("build/\n*.log")
    said = run(tmp_path).output
    assert (tmp_path / "broker.env").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / ".gitignore").read_text().splitlines() == ["build/", "*.log", "broker.env"]
    written = (tmp_path / "broker.toml").read_text() + said
    for secret in environment_of(tmp_path / "broker.env").values():
        assert secret not in written


@pytest.mark.parametrize("name", ["broker.toml", "broker.env"])
def test_nothing_is_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    answer = run(tmp_path)
    assert answer.exit_code == 1
    assert name in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_an_account_that_cannot_be_is_refused_before_anything_is_written(tmp_path):
    answer = run(tmp_path, "--account", 'a"b')
    assert answer.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_every_setting_that_is_commented_out_is_one(tmp_path):
    run(tmp_path)
    text = (tmp_path / "broker.toml").read_text()
    assert "# [commands]" in text
    uncommented = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE).replace(
        "whsec_…", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    )
    config = parse_config(uncommented, {})
    assert config.replay == parse_config(text, {}).replay, "a comment shows another value than what holds"
    assert config.commands.url
    assert config.rates.developer.commands_per_connection
    assert config.accounts[0].keys[0].inbox_ids
