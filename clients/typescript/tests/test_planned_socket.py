"""What the plan prints for a WebSocket of one's own (`ws`), to the letter, against a broker."""

import json
import urllib.request
from hashlib import sha256

import pytest
from daimon_email.testing import ACCOUNT, KEY
from typescript_programs import PRINTED, running

from broker import AccountConfig, Config, KeyConfig

INBOX = "inbox_abc123"
INBOX_KEY = "dm_live_inbox"
SNIPPETS = {path.stem: path.read_text() for path in (PRINTED / "socket").glob("*.mjs")}
IS_READY = "await new Promise((resolve) => ws.once('message', resolve));\n"
IMPORT = "import WebSocket from 'ws';\n"


@pytest.fixture
def planned(workshop, local_broker):
    """Runs snippets one behind the other, with an inbox's key; each but the first when the stream is open."""
    keys = [KeyConfig(id=name, sha256=sha256(key.encode()).hexdigest(), inbox_ids=inbox_ids)
            for name, key, inbox_ids in (("all", KEY, None), ("inbox", INBOX_KEY, (INBOX,)))]  # fmt: skip
    config = Config(accounts=(AccountConfig(id=ACCOUNT, tier="enterprise", keys=tuple(keys)),))

    async def reload():
        local_broker.broker.reload(config)

    local_broker.call(reload)

    def run(first, *others, **environment):
        text = SNIPPETS[first] + IS_READY + "".join(SNIPPETS[name] for name in others)
        program = workshop / f"{'-'.join([first, *others])}.mjs"
        program.write_text(text if text.startswith(IMPORT) else IMPORT + text)
        return running(workshop, program.name, local_broker, **{"KEY": INBOX_KEY, **environment})

    return run


def test_what_is_received_is_printed(planned, local_broker):
    with planned("opening", "receiving") as program:
        assert program.says("ready") == [["log", "Connected to daimon.email WebSocket"]]
        local_broker.receive_mail(INBOX, subject="Hello")
        assert program.says("log", "New message:", "Hello") == []


def test_commands_are_done(planned, local_broker):
    with planned("opening", "sending", "executing", "multiplexing") as program:
        program.says("ready")
        for _ in range(4):  # an answer each
            program.says("log", "Event from undefined: response")
    given = sorted((command.action, command.inbox_id or "") for command in local_broker.commands)
    assert given == [("mark_as_read", ""), ("send_email", INBOX), ("send_email", INBOX)]
    sent = [command.params for command in local_broker.commands if command.action == "send_email"]
    assert sent == [{"to": "user@example.com", "subject": "Hello", "body": "Message from agent"}] * 2


def test_a_lost_connection_is_noticed_and_opened_again_in_five_seconds(planned, local_broker):
    with planned("opening", "lifecycle") as program:
        program.says("ready")
        local_broker.cut()
        assert program.says("connectWebSocket") == [["log", "WebSocket closed: 1006 "], ["waits", 5_000]]


def test_each_type_of_event_has_its_handler(planned, local_broker):
    events = {
        "message.received": {"message": {"subject": "Hello"}},
        "message.bounced": {"message_id": "msg_1", "recipient": "eve@example.com", "reason": "unknown"},
        "message.complaint": {"message_id": "msg_1", "recipient": "eve@example.com", "feedback_type": "abuse"},
    }
    with planned("opening", "streaming") as program:
        program.says("ready")
        local_broker.publish(
            *({"type": name, "inbox_id": INBOX, "payload": payload} for name, payload in events.items())
        )
        assert program.says("handleComplaint", "abuse") == [
            ["handleNewMessage", "Hello"],
            ["handleBounce", "eve@example.com"],
        ]


def test_an_account_key_hears_of_its_upgrade_and_of_several_inboxes(planned, local_broker):
    with planned("opening", "streaming", "multiplexing", KEY=KEY) as program:
        program.says("ready")
        program.says("log", "Event from undefined: response")
        local_broker.receive_mail("inbox_ghi789", subject="Hello")
        assert program.says("log", "Event from inbox_ghi789: message.received") == [["handleNewMessage", "Hello"]]
        upgraded = {"tier": "growth", "previous_tier": "free"}
        local_broker.publish({"type": "account.upgraded", "payload": upgraded})
        assert program.says("log", "Event from undefined: account.upgraded") == [["handleUpgrade", "growth"]]


def test_heartbeats_and_pauses_lose_nothing(planned, local_broker):
    with planned("opening", "heartbeats", "backpressure") as program:
        program.says("ready")
        for number in range(20):
            local_broker.receive_mail(INBOX, subject=f"Mail {number}")
        before = program.says("processEvent", "Mail 19")
        assert before == [["processEvent", f"Mail {number}"] for number in range(19)]


@pytest.mark.parametrize("way", ["by-header", "by-query", "by-token"])
def test_each_way_of_saying_who_one_is_opens_a_stream(planned, local_broker, way):
    request = urllib.request.Request(
        f"{local_broker.url.replace('ws', 'http')}/v1/websocket/token",
        b"",
        {"Authorization": f"Bearer {INBOX_KEY}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        token = json.load(answer)["result"]["token"]
    with planned(way, "receiving", TOKEN=token) as program:
        program.says("ready")
        local_broker.receive_mail(INBOX, subject="Hello")
        assert program.says("log", "New message:", "Hello") == []
