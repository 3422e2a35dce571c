"""`broker demo`: a broker, a subscriber and a publisher in one process, so that a newcomer sees events arrive.

The subscriber is a client like any other, over a real socket; latency counts from the publish call to the frame's
arrival there, both in this process and so on one clock.
"""

import errno
import itertools
import json
import secrets
import signal
from functools import partial
from time import perf_counter
from typing import Any, Final

import trio
from msgspec import Struct

from ..broker import Broker, open_broker
from ..commands.context import CommandContext
from ..config import AccountConfig, Config, DashboardConfig, KeyConfig, OperatorConfig, ServerConfig
from ..keys import hash_key, new_key
from ..transport.listeners import Address
from ..transport.server import serve
from .client import Say, Stream, StreamRequest, open_stream
from .lines import about
from .options import program_name

ACCOUNT_ID: Final = "acct_demo"
INBOX_IDS: Final = ("inbox_sales", "inbox_support", "inbox_billing")
EVENT_SECONDS: Final = 1.0
_MAX_SENT: Final = 1_000
_A_PORT_THAT_IS_NOT_TO_BE_HAD: Final = frozenset({errno.EADDRINUSE, errno.EACCES})


def demo_event(number: int) -> dict[str, Any]:
    """Return the demo's event of a number: the four types in turn, over three inboxes (PROTOCOL section 3)."""
    inbox_id = INBOX_IDS[number % len(INBOX_IDS)]
    message_id = f"msg_{number:06d}"
    bounced = {"message_id": message_id, "recipient": "nobody@example.com", "reason": "mailbox does not exist"}
    complaint = {"message_id": message_id, "recipient": "grumpy@example.com", "feedback_type": "abuse"}
    events: list[tuple[str, dict[str, Any]]] = [
        ("message.received", {"message": _message(message_id, inbox_id, number)}),
        ("message.bounced", bounced),
        ("message.complaint", complaint),
        ("account.upgraded", {"tier": "growth", "previous_tier": "developer"}),
    ]
    event_type, payload = events[number % len(events)]
    event: dict[str, Any] = {"type": event_type, "payload": payload}
    return event if event_type == "account.upgraded" else event | {"inbox_id": inbox_id}


def _message(message_id: str, inbox_id: str, number: int) -> dict[str, Any]:
    return {
        "message_id": message_id,
        "inbox_id": inbox_id,
        "from": "ada@example.com",
        "to": [f"{inbox_id.removeprefix('inbox_')}@agents.example.com"],
        "subject": f"Question number {number}",
        "body": "Can your agent help me with this?",
        "labels": ["inbox", "unread"],
    }


async def run_demo(*, host: str, port: int, seconds: float | None, say: Say) -> None:
    """Run the demo for ``seconds`` (None: until SIGINT or SIGTERM). A port that is taken is replaced by a free one."""
    with (
        trio.move_on_after(float("inf") if seconds is None else seconds) as showing,
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_show, host, port, say)
            await anext(signals)
            say("\nbye")
            showing.cancel()


async def _show(host: str, port: int, say: Say) -> None:
    key, operator_key = new_key(), new_key(operator=True)
    async with open_broker(demo_config(key, host, operator_key)) as broker, trio.open_nursery() as nursery:
        register_commands(broker)
        address = await _serve_somewhere(nursery, broker, port, say)
        request = StreamRequest(f"ws://{_host_port(address)}", key)
        async with open_stream(request, say) as stream:
            ready = await anext(stream)
            say(_instructions(address, key, operator_key))
            say(f"connected    {ready['connection_id']}, subscribed to {', '.join(ready['inbox_ids'])}")
            await _talk(broker, stream, say)


def demo_config(key: str, host: str = "127.0.0.1", operator_key: str | None = None) -> Config:
    """Return a configuration with one account and one key, one for an operator, too, and the dashboard."""
    return Config(
        server=ServerConfig(host=host),
        dashboard=DashboardConfig(enabled=True),
        accounts=(AccountConfig(id=ACCOUNT_ID, keys=(KeyConfig(id="key_demo", sha256=hash_key(key)),)),),
        operators=() if operator_key is None else (OperatorConfig(id="op_demo", sha256=hash_key(operator_key)),),
    )


async def _serve_somewhere(nursery: trio.Nursery, broker: Broker, port: int, say: Say) -> Address:
    try:
        addresses: list[Address] = await nursery.start(partial(serve, broker, port=port))
    except OSError as error:
        if error.errno not in _A_PORT_THAT_IS_NOT_TO_BE_HAD:
            raise
        say(f"Port {port}: {error.strerror or error}; taking a free one.")
        addresses = await nursery.start(partial(serve, broker, port=0))
    return addresses[0]


def register_commands(broker: Broker) -> None:
    """Give the demo's broker the plan's two commands; the mail goes nowhere."""
    sent = itertools.count()

    @broker.command("send_email")
    async def send_email(email: Email, context: CommandContext) -> dict[str, Any]:
        return {"message_id": f"sent_{next(sent):06d}", "from": context.inbox_id, "to": email.to}

    @broker.command("mark_as_read")
    async def mark_as_read(read: MarkAsRead, context: CommandContext) -> dict[str, Any]:
        return {"message_id": read.message_id, "labels": ["inbox", "read"]}


class Email(Struct, frozen=True):
    """Parameters of the demo's `send_email`."""

    to: str | list[str]
    subject: str
    body: str
    in_reply_to: str | None = None


class MarkAsRead(Struct, frozen=True):
    """Parameters of the demo's `mark_as_read`."""

    message_id: str


async def _talk(broker: Broker, stream: Stream, say: Say) -> None:
    """Publish for ever; print what the subscriber gets, and let it answer each message that it receives."""
    sent: dict[str, float] = {}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_publish, broker, sent)
        async for frame in stream:
            say(_line(frame, perf_counter(), sent))
            for command in _answers_to(frame):
                for known in (command["request_id"], *(event["event_id"] for event in command.get("events", ()))):
                    sent[known] = perf_counter()
                await stream.send(command)


def _answers_to(frame: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what an agent says to a received message: a reply, that it has read it, and, to others, the reply."""
    message = frame["payload"].get("message") if frame["type"] == "message.received" else None
    if not (isinstance(message, dict) and {"message_id", "from", "subject"} <= message.keys()):
        return []
    about = {"inbox_id": frame["inbox_id"]}
    reply = {
        "to": [message["from"]],
        "subject": f"Re: {message['subject']}",
        "body": "Certainly!",
        "in_reply_to": message["message_id"],
    }
    event_id = frame["event_id"]
    replied = {
        "type": "agent.replied",
        "event_id": f"{event_id}:replied",
        "payload": {"message_id": message["message_id"], "to": message["from"]},
        **about,
    }
    return [
        {"action": "send_email", "request_id": f"reply:{event_id}", "params": reply, **about},
        {"action": "mark_as_read", "request_id": f"read:{event_id}", "message_id": message["message_id"], **about},
        {"action": "publish", "request_id": f"told:{event_id}", "events": [replied]},
    ]


async def _publish(broker: Broker, sent: dict[str, float]) -> None:
    for number in itertools.count():
        event = demo_event(number) | {"event_id": f"evt_demo_{secrets.token_hex(8)}"}
        if len(sent) >= _MAX_SENT:
            sent.clear()
        sent[event["event_id"]] = perf_counter()
        await broker.publish(ACCOUNT_ID, event)
        await trio.sleep(EVENT_SECONDS)


def _line(frame: dict[str, Any], arrived: float, sent: dict[str, float]) -> str:
    if frame["type"] == "response":
        started = sent.pop(frame["request_id"], None)
        what, where, detail = (
            f"  {frame['action']}",
            "",
            json.dumps(frame.get("result") or frame.get("error"), default=str),
        )
    elif "event_id" in frame:
        started = sent.pop(frame["event_id"], None)
        what, where, detail = frame["type"], frame.get("inbox_id", "(account)"), about(frame["payload"])
    else:
        return f"{'':12} {frame['type']}"
    latency = "from outside" if started is None else f"{(arrived - started) * 1000:9.2f} ms"
    return f"{latency:12} {what:18} {where:14} {detail}"


def _host_port(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _instructions(address: Address, key: str, operator_key: str) -> str:
    where = _host_port(address)
    message = {"message_id": "msg_curl", "from": "you@example.com", "subject": "Hello from curl"}
    event = {"type": "message.received", "inbox_id": "inbox_sales", "payload": {"message": message}}
    return f"""
A broker with a throw-away key listens on {where}, and an agent that answers each received message.
Watch them in a browser, with this key, or the broker, with that of an operator:
  http://{where}/dashboard           {key}
  http://{where}/dashboard/operator  {operator_key}

Or meet them from another terminal, in this folder.

Publish an event, and see it arrive below, with the agent's answers:
  curl http://{where}/v1/events -H 'Authorization: Bearer {key}' -d '{json.dumps(event)}'

Subscribe beside the demo, with what you have of these:
  {program_name()} tail --url {where} --key {key}
  wscat -c 'ws://{where}/v1/stream?inbox_ids=*&since=1m' -H 'Authorization: Bearer {key}'
  websocat -H 'Authorization: Bearer {key}' 'ws://{where}/v1/stream?inbox_ids=*&since=1m'

Give a command, as an agent does:
  {program_name()} send mark_as_read --url {where} --key {key} --inbox inbox_sales --param message_id=msg_curl

Ctrl-C ends it. Latency is from the publish call to the subscriber, over a socket:
"""
