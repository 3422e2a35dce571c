"""`broker demo` as a newcomer meets it: what it shows, and that what it prints works as printed."""

import json
import re
import shlex
import signal
import subprocess

import msgspec
import pytest
from processes import COMMAND, GUARD_SECONDS, process

from broker import open_broker
from broker.cli.demo import demo_config, register_commands
from broker.protocol.decoding import decode_command

KEY = "dm_live_demo"


def test_the_demo_shows_the_plans_types_and_its_agents_own_with_their_latency_and_ends_by_itself():
    with process("demo", "--port", "0", "--seconds", "4.5") as demo:
        output, _ = demo.communicate(timeout=GUARD_SECONDS)
    assert demo.returncode == 0
    for event_type in ("message.received", "message.bounced", "message.complaint", "account.upgraded", "agent.replied"):
        assert re.search(rf"\d+\.\d\d ms {event_type}", output), output
    for answer in ("send_email", "mark_as_read"):
        assert re.search(rf"\d+\.\d\d ms   {answer} .*message_id", output), output
    for client in ("curl ", "wscat ", "websocat "):
        assert client in output


def printed(lines, word):
    """The next command among the lines that has the word in it."""
    return next(line.strip() for line in lines if word in line)


def test_the_commands_that_the_demo_prints_work_as_printed_and_its_agent_answers():
    with process("demo", "--port", "0") as demo:
        lines = iter(demo.stdout.readline, "")
        curl, tail, send = (printed(lines, word) for word in ("curl ", " tail ", " send "))
        assert "connected" in printed(lines, "connected")
        subprocess.run(curl, shell=True, check=True, capture_output=True, timeout=GUARD_SECONDS)
        assert "Hello from curl" in printed(lines, "from outside")
        assert "  send_email" in printed(lines, "you@example.com")  # the demo's own messages are answered, too
        assert "  mark_as_read" in printed(lines, "msg_curl")
        for command in (f"{tail} --count 1", send):
            subprocess.run(shlex.split(command), check=True, capture_output=True, timeout=GUARD_SECONDS)


def test_an_interrupt_ends_it_even_where_interrupts_were_ignored_when_it_began():
    with process("demo", "--port", "0", command=["env", "--ignore-signal=INT", *COMMAND]) as demo:
        printed(iter(demo.stdout.readline, ""), "connected")
        demo.send_signal(signal.SIGINT)
        demo.stdout.read()
        assert demo.wait(GUARD_SECONDS) == 0


def test_a_reader_that_has_enough_is_an_end_without_a_word():
    with process("demo", "--port", "0", PYTHONUNBUFFERED="") as demo:
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.wait(GUARD_SECONDS) == 0
        assert demo.stderr.read() == ""


def test_the_demo_takes_a_free_port_if_its_own_is_taken():
    with process("demo", "--port", "0") as first:
        port = re.search(r"127\.0\.0\.1:(\d+)", printed(iter(first.stdout.readline, ""), "curl "))[1]
        with process("demo", "--port", port, "--seconds", "1") as demo:
            output, _ = demo.communicate(timeout=GUARD_SECONDS)
    assert demo.returncode == 0
    assert "taking a free one" in output


def test_an_address_that_the_demo_cannot_have_is_one_line():
    with process("demo", "--host", "203.0.113.1", "--port", "0") as demo:
        output, said = demo.communicate(timeout=GUARD_SECONDS)
    assert (demo.returncode, output) == (1, "")
    [line] = said.splitlines()
    assert line.startswith("Error: cannot listen on 203.0.113.1:0")


@pytest.mark.parametrize("to", ["user@example.com", ["user@example.com", "ada@example.com"]])
async def test_the_demo_sends_mail_to_one_or_to_a_list(to):
    plan = {"action": "send_email", "inbox_id": "inbox_abc123", "to": to, "subject": "Hello", "body": "From an agent"}
    async with open_broker(demo_config(KEY)) as broker:
        register_commands(broker)
        key = await broker.keyring.authenticate(KEY, None)
        answer = await broker.do_command(key, decode_command(json.dumps(plan)))
    sent = msgspec.json.decode(answer.result)
    assert (sent["from"], sent["to"]) == ("inbox_abc123", to)
