"""What the verbs share: where a broker is, and which configuration is meant."""

import sys

import pytest
from click.testing import CliRunner

import broker
from broker.cli.cli import main
from broker.cli.options import BrokerUrl, parse_url, program_name


def run(*arguments, **environment):
    return CliRunner().invoke(main, arguments, env={"BROKER_KEY": "dm_live_x", **environment})


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("localhost:8765", "://localhost:8765"),
        ("http://localhost:8765", "://localhost:8765"),
        ("ws://localhost:8765/", "://localhost:8765"),
        ("https://events.example.com", "s://events.example.com"),
        ("wss://events.example.com/v1/stream", "s://events.example.com"),
        ("https://example.com/broker/", "s://example.com/broker"),
        ("[::1]:8765", "://[::1]:8765"),
        ("localhost:", "://localhost"),
    ],
)
def test_a_url_may_be_written_in_any_form_that_says_where_the_broker_is(text, where):
    assert parse_url(text) == BrokerUrl(f"http{where}", f"ws{where}")


BAD_URLS = {
    "ftp://localhost": "starts with",
    ":8765": "host",
    "http://": "host",
    "local host:8765": "host",
    "localhost:99999": "port",
    "localhost:http": "port",
    "http://localhost:8765/?key=dm_live_x": "BROKER_KEY",
    "http://user:word@localhost": "BROKER_KEY",
}


@pytest.mark.parametrize("verb", [["tail"], ["publish"], ["send", "a"], ["token"]])
@pytest.mark.parametrize("text", BAD_URLS)
def test_a_bad_url_is_one_line_in_every_verb(verb, text):
    answer = run(*verb, "--url", text)
    assert answer.exit_code == 2
    [line] = answer.stderr.splitlines()
    assert BAD_URLS[text] in line
    assert "dm_live_x" not in line


@pytest.mark.parametrize("verb", ["tail", "publish", "send", "token"])
def test_help_names_the_variables_that_stand_for_options(verb):
    said = run(verb, "--help").output
    assert "BROKER_URL" in said
    assert "BROKER_KEY" in said


def test_a_key_that_no_header_could_carry_is_one_line():
    answer = run("publish", "--key", "dm_live_x\nX: y")
    assert answer.exit_code == 2
    assert len(answer.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "verb",
    ["tail", "publish", "send a", "token", "top", "doctor", "work --queue q true", "queues list", "webhooks list"],
)
def test_a_key_that_is_empty_is_one_line_in_every_verb(verb):
    answer = run(*verb.split(), "--key", "", "--url", "ftp://x")
    assert (answer.exit_code, answer.stderr) == (2, "Error: --key is empty\n")


SECONDS = [
    ["demo", "--seconds"],
    ["doctor", "--idle"],
    ["token", "--ttl-seconds"],
    ["work", "--queue", "q", "--lease-seconds"],
    ["queues", "add", "q", "--lease-seconds"],
    ["queues", "add", "q", "--max-age-seconds"],
    ["webhooks", "add", "https://a.example", "--fallback", "agent-1", "--fallback-seconds"],
]


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("options", SECONDS, ids=" ".join)
def test_a_time_without_an_end_is_refused_by_name(options, number):
    wrong = ["--port", "x"] if options[0] == "demo" else ["--url", "ftp://x"]  # else it would be run, for ever perhaps
    answer = run(*options, number, *wrong)
    assert answer.exit_code == 2
    assert f"Invalid value for '{options[-1]}'" in answer.stderr


@pytest.mark.parametrize("options", [["tail", "--inbox"], ["tail", "--type"], ["token", "--inbox"]], ids=" ".join)
def test_a_name_that_is_empty_is_one_line(options):
    answer = run(*options, "", "--url", "ftp://x")
    assert (answer.exit_code, answer.stderr) == (2, f"Error: {options[-1]} is empty\n")


@pytest.mark.parametrize("inbox", ["", "a b", "*"])
def test_a_doctor_is_told_an_inbox(inbox):
    answer = run("doctor", "--inbox", inbox)
    assert answer.exit_code == 2
    [line] = answer.stderr.splitlines()
    assert line.endswith("- at `--inbox`")


def test_the_version_is_that_of_the_package():
    assert run("--version").output == f"broker, version {broker.__version__}\n"


# --- which configuration -----------------------------------------------------

CONFIG = '[[accounts]]\nid = "acct_{}"\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_configuration_of_the_current_folder_is_taken_and_said(folder):
    (folder / "broker.toml").write_text(CONFIG.format("here"))
    assert run("check-config").output == "ok: 1 account, 0 keys, 0 operators (broker.toml)\n"


def test_the_one_that_the_environment_names_comes_before_and_a_flag_before_both(folder):
    (folder / "broker.toml").write_text("not TOML")
    (folder / "named.toml").write_text(CONFIG.format("a") + CONFIG.format("b"))
    (folder / "flag.toml").write_text("")
    named = {"BROKER_CONFIG": "named.toml"}
    assert run("check-config", **named).output == "ok: 2 accounts, 0 keys, 0 operators (named.toml)\n"
    assert "(flag.toml)" in run("check-config", "--config", "flag.toml", **named).output


def test_without_any_the_defaults_are_taken_and_said(folder):
    assert run("check-config").output == "ok: 0 accounts, 0 keys, 0 operators (no file)\n"


def test_a_variable_with_one_underscore_is_a_warning_that_names_the_right_one(folder):
    answer = run("check-config", BROKER_SERVER_PORT="1", BROKER_TOKENS_TTL_SECONDS="5", BROKER_OTHER="x")
    assert answer.exit_code == 0
    first, second = answer.stderr.splitlines()
    assert "BROKER_SERVER_PORT" in first
    assert "BROKER_SERVER__PORT" in first
    assert "BROKER_TOKENS__TTL_SECONDS" in second


# --- how the program is called -----------------------------------------------


def test_printed_commands_name_the_program_as_it_can_be_called_from_here(folder, monkeypatch):
    program = folder / ".venv/bin/broker"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert program_name() == ".venv/bin/broker"
    monkeypatch.setenv("PATH", str(program.parent))
    assert program_name() == "broker"
    monkeypatch.setattr(sys, "argv", ["/anywhere/broker/__main__.py"])
    assert program_name() == f"{sys.executable} -m broker"
