"""`publish`, `send`, `token`: what they print, and what they say where they are refused."""

import json
import os
import pty
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner
from processes import KEY, process, serving

import broker.cli.asking
from broker.cli.asking import params_of
from broker.cli.cli import main
from broker.cli.exact import read_json
from broker.cli.options import UsageError
from broker.keys import hash_key

CONFIG = f'[[accounts]]\nid = "acct_test"\n[[accounts.keys]]\nid = "key_test"\nsha256 = "{hash_key(KEY)}"\n'


def run(*arguments, text="", **environment):
    return CliRunner().invoke(main, arguments, input=text, env={"BROKER_KEY": KEY, **environment})


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("asking") / "broker.toml"
    path.write_text(CONFIG)
    with serving("--config", path) as (_, url):
        yield url


def test_what_is_published_arrives_at_tail(url):
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


def test_publish_takes_lines_of_events_from_standard_input(url):
    lines = [{"type": kind, "payload": {}} for kind in ("account.upgraded", "message.received")]
    published = run("publish", "--url", url, text="\n".join(json.dumps(line) for line in lines))
    assert len(published.output.splitlines()) == 2


def test_an_empty_inbox_is_not_the_whole_account(url):
    """As of a variable that is not set in a script: `--inbox "$INBOX"`."""
    answer = run("publish", "--type", "job.done", "--payload", "{}", "--url", url, "--inbox", "")
    assert answer.exit_code == 1
    assert "at `$.inbox_id`" in answer.stderr


@pytest.mark.parametrize("option", ["--inbox", "--request-id", "--once", "--lease-id"])
def test_an_empty_name_of_a_command_is_not_left_out(option, monkeypatch):
    asked = []
    monkeypatch.setattr(broker.cli.asking, "ask", lambda *arguments: asked.append(json.loads(arguments[5])) or {})
    run("send", "mark_as_read", "--inbox", "inbox_a", option, "")
    named = {name: value for name, value in asked[0].items() if value == ""}
    assert named == {"inbox_id" if option == "--inbox" else option[2:].replace("-", "_"): ""}


EXACT = '{"price":1.10,"ratio":0.12345678901234567890123456789,"id":123456789012345678901234567890}'
"""Numbers that are others as floats, or are written otherwise."""


@pytest.mark.parametrize("options", [["--payload", EXACT], []])
def test_numbers_keep_their_digits_from_publish_to_tail(url, options):
    with process("tail", "--url", url, "--inbox", "inbox_exact") as tailing:
        tailing.stdout.readline()
        answer = run("publish", "--url", url, "--type", "a", "--inbox", "inbox_exact", *options, text=EXACT)
        assert answer.exit_code == 0, answer.output
        assert f'"payload":{EXACT}}}' in tailing.stdout.readline()


def test_numbers_in_parameters_and_results_keep_their_digits(monkeypatch):
    asked = []
    monkeypatch.setattr(broker.cli.asking, "ask", lambda *arguments: asked.append(arguments[5]) or read_json(EXACT))
    answer = run("send", "pay", "--param", "amount=1.10", "--param", "text=1.2.3")
    assert asked == [b'{"action":"pay","params":{"amount":1.10,"text":"1.2.3"}}']
    assert answer.stdout == EXACT + "\n"


@pytest.mark.parametrize("payload", ['{"n":NaN}', '{"n":-Infinity}'])
def test_what_is_no_number_of_json_is_not_published_as_something_else(url, payload):
    answer = run("publish", "--url", url, "--type", "a", "--payload", payload)
    assert (answer.exit_code, "--payload is not JSON" in answer.stderr) == (2, True)


@pytest.mark.parametrize("payload", ['{"n":"\\ud800"}', '{"n":"\udcff"}'])
def test_half_a_character_is_refused_in_words(payload):
    answer = run("publish", "--url", "127.0.0.1:1", "--type", "a", "--payload", payload)
    assert (answer.exit_code, "half a character" in answer.stderr) == (2, True)


def test_an_event_with_an_id_of_its_own_is_published_once(url):
    first, again = (run("publish", "--url", url, "--type", "a", "--event-id", "job-7", "--payload", "{}") for _ in "12")
    assert json.loads(again.stdout) == json.loads(first.stdout) | {"duplicate": True}
    assert json.loads(first.stdout)["event_id"] == "job-7"


@pytest.mark.parametrize(
    "words",
    [
        ["tail", KEY],
        ["keys", "check", KEY],
        [KEY],
        ["tail", "--url", f"http://agent:{KEY}@127.0.0.1"],
        ["send", "--param", KEY, "x"],
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated_by_what_says_so(words):
    answer = run(*words)
    assert answer.exit_code == 2
    assert KEY not in answer.output + answer.stderr


def test_a_password_in_the_url_is_not_repeated():
    answer = run("send", "ping", "--url", "https://agent:hunter2@broker.example/v1/stream?x=1")
    assert "hunter2" not in answer.stderr
    assert "https://broker.example/v1/stream" in answer.stderr


def test_a_payload_that_is_no_json_is_said_to_be_where_it_came_from(url):
    assert "--payload is not JSON" in run("publish", "--url", url, "--type", "job.done", "--payload", "{").stderr
    assert "standard input, the payload, is not JSON" in run("publish", "--url", url, "--type", "job.done").stderr


@pytest.mark.parametrize(("options", "text"), [(["--type", "a"], "{}"), ([], '{"type":"a","payload":{}}\n')])
def test_a_byte_order_mark_before_standard_input_is_passed_over(url, options, text):
    answer = run("publish", "--url", url, *options, text="\ufeff" + text)
    assert (answer.exit_code, "event_id" in answer.stdout) == (0, True), answer.stderr


def test_publish_says_that_it_waits_for_what_is_typed(url):
    ours, theirs = pty.openpty()
    with process("publish", "--url", url, "--type", "job.done", stdin=theirs) as publishing:
        assert "reading the payload" in publishing.stderr.readline()
        os.write(ours, b"{}\n\x04")
        assert "event_id" in publishing.stdout.readline()
    os.close(ours)
    os.close(theirs)


def test_publish_says_what_the_broker_refuses(url):
    answer = run("publish", "--url", url, "--type", "Message", "--payload", "{}")
    assert answer.exit_code == 1
    assert "400 invalid_params" in answer.output
    assert "$.type" in answer.output
    unknown = run("publish", "--url", url, "--key", "dm_live_unknown", "--type", "a", "--payload", "{}")
    assert "401" in unknown.output


@pytest.mark.parametrize(
    "options",
    [["--type", "a", "--payload", "{"], ["--inbox", "a"], ["--payload", "{}"], ["--account", "a"], ["--event-id", "a"]],
)
def test_what_cannot_be_an_event_is_refused_before_anything_is_sent(options):
    answer = run("publish", "--url", "127.0.0.1:1", *options)
    assert answer.exit_code == 2
    assert options[-2] in answer.stderr


def test_a_command_is_given_and_its_result_printed(url):
    answer = run("send", "ping", "--url", url)
    assert answer.exit_code == 0, answer.output
    assert "server_time" in json.loads(answer.output)


def test_a_command_that_is_refused_is_an_error_with_its_code_and_what_would_help(url):
    answer = run("send", "send_email", "--url", url, "--inbox", "inbox_a", "--param", "to=ada@example.com")
    assert answer.exit_code == 1
    assert "404 unknown_action" in answer.stderr
    assert "[commands] url" in answer.stderr


def test_a_parameters_value_is_json_if_it_is_any_else_text():
    given = ("to=ada@example.com", "n=1", 'labels=["a","b"]', "text=a=b", 'one="1"', "empty=", "no=null")
    assert params_of(given) == {
        "to": "ada@example.com", "n": 1, "labels": ["a", "b"], "text": "a=b", "one": "1", "empty": "", "no": None
    }  # fmt: skip


@pytest.mark.parametrize("given", [("to",), ("=x",), ("to=a", "to=b")])
def test_a_parameter_has_a_name_and_one_value(given):
    with pytest.raises(UsageError):
        params_of(given)


def test_a_token_is_the_only_thing_on_standard_output(url):
    answer = run("token", "--url", url, "--inbox", "inbox_a", "--scope", "subscribe")
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.startswith("wst_")
    assert len(answer.stdout.splitlines()) == 1
    assert "expires at 20" in answer.stderr


def test_without_a_broker_it_is_one_line_that_says_why():
    answer = run("publish", "--url", "127.0.0.1:1", "--type", "a", "--payload", "{}")
    assert answer.exit_code == 1
    assert answer.stderr == "Error: http://127.0.0.1:1: Connection refused\n"


class Stranger(BaseHTTPRequestHandler):
    """Answers what no broker would."""

    def __init__(self, status, body, *arguments):
        self.status, self.body = status, body
        super().__init__(*arguments)

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_): ...


@pytest.mark.parametrize(
    ("status", "body", "says"), [(200, b"<html>", "no broker"), (200, b"[]", "no broker"), (502, b"<html>", "502")]
)
def test_what_is_no_broker_is_one_line(status, body, says):
    with HTTPServer(("127.0.0.1", 0), partial(Stranger, status, body)) as stranger:
        threading.Thread(target=stranger.handle_request, daemon=True).start()
        answer = run("publish", "--url", f"127.0.0.1:{stranger.server_port}", "--type", "a", "--payload", "{}")
    assert answer.exit_code == 1
    [line] = answer.stderr.splitlines()
    assert says in line
