"""The log of `serve`: JSON or lines for people, without secrets, and nobody who waits for its reader."""

import fcntl
import json
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager

import pytest
from processes import COMMAND, GUARD_SECONDS, KEY, free_port, process, serving

from broker.cli.logs import MOST_TRACEBACKS, LineFormatter, _console, _json, told_where
from broker.keys import hash_key
from broker.logline import LogLine

OPERATOR = "dm_operator_of_the_log"
CONFIG = f"""
[tokens]
secret = "a secret of more than thirty-two characters"
[[accounts]]
id = "acct_test"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
[[operators]]
id = "op_main"
sha256 = "{hash_key(OPERATOR)}"
"""


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(CONFIG)
    return path


def ask(url, path, key=KEY):
    request = urllib.request.Request(f"{url}{path}", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=GUARD_SECONDS) as answer:
        return answer.read().decode()


def everything_said(started):
    started.send_signal(signal.SIGTERM)
    return started.stderr.read()


# --- what a line looks like --------------------------------------------------


def formatted(message, *arguments, render=None, level=logging.INFO, error=None):
    info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("broker.x", level, "", 0, message, arguments, info)
    record.created = 1_795_341_600.1239
    return LineFormatter(render or _json()).format(record)


def test_a_line_is_json_with_the_fields_beside_what_happened():
    said = formatted(LogLine("connection ended", commands=3, seconds=0.5, remote="::1", code=None))
    assert json.loads(said) == {
        "timestamp": "2026-11-22T10:00:00.123Z",
        "level": "info",
        "event": "connection ended",
        "logger": "broker.x",
        "commands": 3,
        "seconds": 0.5,
        "remote": "::1",
    }


def test_a_line_for_people_has_the_same_without_the_logger():
    said = formatted(LogLine("connection ended", commands=3, reason="a b"), render=_console(colors=False))
    assert re.split(r"\s{2,}|(?<=\]) ", said) == [
        "2026-11-22T10:00:00.123Z [info",
        "]",
        "connection ended",
        "commands=3 reason='a b'",
    ]


def test_colors_are_for_terminals():
    assert "\x1b[" in formatted("said", render=_console(colors=True))
    assert "\x1b[" not in formatted("said", render=_console(colors=False))


@pytest.mark.parametrize("render", [_json(), _console(colors=False)])
@pytest.mark.parametrize("words", ["x\nINFO all is well", "\x1b[2J", "\ud800", "\u2028"])
def test_whatever_words_are_in_it_a_line_is_one_line(render, words):
    for said in (formatted("%s", words, render=render), formatted(LogLine("said", by=words), render=render)):
        assert said.isprintable()
        assert said.encode()


@pytest.mark.parametrize("secret", ["dm_live_abcDEF123", "dm_operator_x-1", "wst_eyJ.a-b_c", "whsec_QUJD+/=="])
def test_a_credential_is_cut_off_behind_its_prefix_wherever_it_stands(secret):
    for said in (formatted("GET /v1?key=%s&x=1", secret), formatted(LogLine("said", by=f"'{secret}'"))):
        assert secret.partition("_")[0] in said
        assert secret not in said
        assert secret.rpartition("_")[2] not in said


def raised():
    try:
        try:
            raise OSError(24, "the words of a client")
        except OSError:
            raise ExceptionGroup("words", [ValueError("words"), KeyError("words")]) from None
    except ExceptionGroup as error:
        return error


def test_of_an_exception_is_said_what_it_is_and_where_and_not_its_words():
    said = formatted("it failed", error=raised())
    told = json.loads(said)["exception"]
    assert told.startswith("ExceptionGroup\n")
    assert "ValueError" in told
    assert "KeyError" in told
    assert f'File "{__file__}"' in told
    assert "words of" not in told.replace('raise OSError(24, "the words of a client")', "")


def test_what_led_to_an_exception_is_said_and_what_the_system_says_of_it():
    try:
        try:
            raise OSError(24, "words")
        except OSError as cause:
            raise RuntimeError("words") from cause
    except RuntimeError as error:
        told = told_where(error)
    assert re.search(r"^RuntimeError\n.*^after OSError: Too many open files\n", told, re.MULTILINE | re.DOTALL)


def test_what_fails_again_and_again_is_told_in_full_ten_times_a_minute():
    formatter = LineFormatter(_json())

    def told(minute, line=1):
        error = raised()
        record = logging.LogRecord("broker.x", logging.ERROR, "", line, "it failed", (), (None, error, None))
        record.created = 60.0 * minute
        return json.loads(formatter.format(record))["exception"]

    assert ["File" in told(1) for _ in range(MOST_TRACEBACKS + 3)] == [True] * MOST_TRACEBACKS + [False] * 3
    assert told(1) == "ExceptionGroup"
    assert "File" in told(1, line=2)
    assert "File" in told(2)


def test_a_traceback_is_bounded():
    def deep(n):
        return deep(n - 1) if n else [][0]

    try:
        deep(500)
    except IndexError as error:
        group = BaseExceptionGroup("all", [error] * 100)
    assert told_where(group).count("File") <= 30 * 10


# --- which of them -----------------------------------------------------------


@contextmanager
def serving_at_a_terminal(*arguments, **environment):
    ours, theirs = pty.openpty()
    command = [*COMMAND, "serve", "--port", "0", *map(str, arguments)]
    started = subprocess.Popen(command, stderr=theirs, env={**os.environ, **environment})
    os.close(theirs)
    try:
        with open(ours, "rb", buffering=0) as terminal:
            yield started, terminal
    finally:
        started.kill()
        started.wait()


def read_some(terminal):
    said = terminal.read(4_096)
    assert said, "it has ended"
    return said


def said_at_a_terminal(*arguments, **environment):
    with serving_at_a_terminal(*arguments, **environment) as (started, terminal):
        said = b""
        while b"listening" not in said:
            said += read_some(terminal)
        started.send_signal(signal.SIGTERM)
        while b"draining" not in said:
            said += read_some(terminal)
    return said.decode()


def test_at_a_terminal_lines_are_for_people_and_colored_unless_they_want_none(config_path):
    said = said_at_a_terminal("--config", config_path)
    assert re.search(r"\x1b\[.*draining for at most", said)
    assert '{"' not in said
    assert "\x1b[" not in said_at_a_terminal("--config", config_path, NO_COLOR="1")


def test_a_pipe_gets_json_after_the_line_that_says_where_it_listens(config_path):
    with serving("--config", config_path) as (started, _):
        lines = everything_said(started).splitlines()
    assert [json.loads(line)["level"] for line in lines] == ["info"]


@pytest.mark.parametrize("by", ["flag", "file", "environment"])
def test_the_operator_chooses_the_format_and_the_level(config_path, by):
    if by == "file":
        config_path.write_text(f'{CONFIG}\n[logs]\nformat = "console"\nlevel = "warning"\n'.replace("secret =", "# "))
    else:
        config_path.write_text(CONFIG.replace("secret =", "# "))
    flags = ["--log-format", "console", "--log-level", "warning"] if by == "flag" else []
    chosen = {"BROKER_LOGS__FORMAT": "console", "BROKER_LOGS__LEVEL": "warning"} if by == "environment" else {}
    with serving("--config", config_path, *flags, **chosen) as (started, _):
        said = everything_said(started)
    assert re.fullmatch(r"\S+ \[warning  \] \[tokens\] has no `secret`.*\n", said)


def test_a_flag_overrides_the_configuration(config_path):
    with serving("--config", config_path, "--log-level", "info", BROKER_LOGS__LEVEL="error") as (started, _):
        assert "draining" in everything_said(started)


def test_a_format_that_there_is_not_is_an_error_that_names_those_that_there_are(config_path):
    config_path.write_text(f'{CONFIG}\n[logs]\nformat = "xml"\n')
    with process("serve", "--config", config_path) as started:
        _, said = started.communicate(timeout=GUARD_SECONDS)
    assert "Expected `auto`, `json` or `console`, not 'xml' - at `$.logs.format`" in said


def test_what_others_say_below_a_warning_is_not_written():
    said = subprocess.run(
        [sys.executable, "-c", OTHERS], capture_output=True, text=True, check=True, timeout=GUARD_SECONDS
    ).stderr
    assert "of no use" in said
    assert "https://" not in said
    assert "broker.transport" in said


OTHERS = """
import logging, warnings
from broker.cli.logs import open_log
from broker.config import LogsConfig
with open_log(LogsConfig(format="json", level="debug")):
    logging.getLogger("httpx").info("HTTP Request: POST https://x/?secret=1")
    logging.getLogger("trio-websocket").debug("https://")
    logging.getLogger("broker.transport").debug("ours")
    warnings.warn("of no use")
"""


def test_without_a_standard_error_it_serves_all_the_same(config_path, tmp_path):
    port = free_port()
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *COMMAND, "serve", "--port", str(port), "--config", str(config_path)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "told"))
        told.settimeout(GUARD_SECONDS)
        with subprocess.Popen(command, env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "told")}) as started:
            try:
                assert b"READY=1" in told.recv(4_096)
                assert lines_dropped(f"http://127.0.0.1:{port}") == 0
                started.send_signal(signal.SIGTERM)
                assert started.wait(GUARD_SECONDS) == 0
            finally:
                started.kill()


# --- nobody waits for its reader ---------------------------------------------


SERVE_WITH_LITTLE_ROOM = """
from functools import partial
import broker.cli.logs
from broker.cli.cli import main
broker.cli.logs.LogWriter = partial(broker.cli.logs.LogWriter, max_waiting_bytes=10_000)
main()
"""


@contextmanager
def serving_with_little_room(config_path):
    """A server whose log is read by us alone, and by nobody until we do."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4_096)
    command = [sys.executable, "-c", SERVE_WITH_LITTLE_ROOM, "serve", "--port", "0", "--config", str(config_path)]
    with subprocess.Popen(command, stderr=writing) as started, open(reading, "rb", buffering=0) as log:
        os.close(writing)
        guard = threading.Timer(GUARD_SECONDS, started.kill)
        guard.start()
        try:
            yield started, log, re.search(rb"http://\S+", log.read(4_096))[0].decode()
        finally:
            guard.cancel()
            started.kill()


def lines_dropped(url):
    return int(float(re.search(r"^broker_log_lines_dropped_total (\S+)", ask(url, "/metrics", OPERATOR), re.M)[1]))


def test_a_server_serves_on_when_nobody_reads_its_log_and_says_what_was_lost(config_path):
    with serving_with_little_room(config_path) as (started, log, url):
        assert lines_dropped(url) == 0
        for _ in range(40):
            with urllib.request.urlopen(f"{url}/v1/events/stream?key={KEY}", timeout=GUARD_SECONDS) as events:
                assert events.read(1)
        lost = lines_dropped(url)
        assert lost > 20
        started.send_signal(signal.SIGTERM)
        told = [json.loads(line) for line in log.read().splitlines()]
        assert started.wait() == 0
    assert sum(line["lines"] for line in told if "dropped" in line["event"]) >= lost


def test_a_server_whose_log_nobody_ever_reads_ends_with_exit_code_0(config_path):
    with serving_with_little_room(config_path) as (started, _, url):
        for _ in range(40):
            with urllib.request.urlopen(f"{url}/v1/events/stream?key={KEY}", timeout=GUARD_SECONDS) as events:
                assert events.read(1)
        started.send_signal(signal.SIGTERM)
        assert started.wait() == 0
