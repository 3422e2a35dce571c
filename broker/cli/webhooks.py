"""`broker webhooks …`: an account's endpoints, by the broker's HTTP API (PROTOCOL section 9), and one to try it."""

import json
import ssl
from collections.abc import Callable
from functools import wraps
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final
from urllib.parse import quote, urlencode

import click
from msgspec import Struct

from .asking import ask
from .options import (
    BrokerUrl,
    OutputError,
    ReaderGoneError,
    Seconds,
    UsageError,
    ca_file_option,
    inbox_option,
    key_option,
    print_json,
    print_out,
    say,
    url_option,
)

STATES: Final = ("waiting", "sending", "delivered", "acked", "dead")


class _Broker(Struct, frozen=True):
    """Which broker is asked, and with which key."""

    url: BrokerUrl
    trust: ssl.SSLContext | None
    key: str

    def ask(self, method: str, path: str = "", body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        return ask(self.url, self.trust, method, f"/v1/webhooks{path}", self.key, content)


def _asking(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the options that say which broker it asks, as one argument."""

    @wraps(command)
    def asking(url: BrokerUrl, trust: ssl.SSLContext | None, key: str, **given: Any) -> Any:
        return command(_Broker(url, trust, key), **given)

    return url_option(ca_file_option(key_option(asking)))


def _path(webhook_id: str, more: str = "") -> str:
    return f"/{quote(webhook_id, safe='')}{more}"


def _say(*answers: Any) -> None:
    for answer in answers:
        print_json(answer)


_ID: Final = click.argument("webhook_id", metavar="ID")


@click.group()
def webhooks() -> None:
    """See to the endpoints that an account's events are posted to."""


@webhooks.command()
@click.argument("endpoint", metavar="URL")
@click.option("--id", "webhook_id", help="Its id; left out: one is made.")
@inbox_option("An inbox whose events it gets (repeat it); left out: all that the key reaches.")
@click.option("--type", "event_types", multiple=True, help="A type, or `a.*` (repeat it); left out: all.")
@click.option(
    "--fallback",
    "client_ids",
    multiple=True,
    metavar="CLIENT_ID",
    help="Only what this client did not acknowledge (repeat it).",
)
@click.option("--fallback-seconds", type=Seconds(min=0), help="How long that is waited for; left out: 30.")
@click.option("--in-order", is_flag=True, help="One post at a time for each inbox, in the order of its events.")
@click.option("--secret", help="whsec_…; left out: one is made.")
@_asking
def add(
    broker: _Broker,
    endpoint: str,
    webhook_id: str | None,
    inbox_ids: tuple[str, ...],
    event_types: tuple[str, ...],
    client_ids: tuple[str, ...],
    fallback_seconds: float | None,
    in_order: bool,
    secret: str | None,
) -> None:
    """Make an endpoint, and print it with its secret."""
    if fallback_seconds is not None and not client_ids:
        raise UsageError("--fallback-seconds needs --fallback")
    asked: dict[str, Any] = {"url": endpoint, "order": "inbox" if in_order else "none"}
    asked |= {"mode": "fallback", "client_ids": client_ids} if client_ids else {}
    given = {
        "webhook_id": webhook_id,
        "inbox_ids": inbox_ids,
        "event_types": event_types,
        "fallback_seconds": fallback_seconds,
        "secret": secret,
    }
    asked |= {name: value for name, value in given.items() if value not in (None, ())}
    _say(broker.ask("POST", body=asked))


@webhooks.command(name="list")
@_asking
def list_all(broker: _Broker) -> None:
    """Print the account's endpoints, each in a line."""
    _say(*broker.ask("GET")["webhooks"])


@webhooks.command()
@_ID
@_asking
def show(broker: _Broker, webhook_id: str) -> None:
    """Print an endpoint."""
    _say(broker.ask("GET", _path(webhook_id)))


@webhooks.command()
@_ID
@_asking
def test(broker: _Broker, webhook_id: str) -> None:
    """Post a test event to an endpoint, once; exit code 1 if it was not taken."""
    tested = broker.ask("POST", _path(webhook_id, "/test"))
    _say(tested)
    if tested["error"] is not None:
        raise SystemExit(1)


@webhooks.command()
@_ID
@_asking
def pause(broker: _Broker, webhook_id: str) -> None:
    """Let an endpoint's events wait, for three days at most."""
    _say(broker.ask("PATCH", _path(webhook_id), {"status": "paused"}))


@webhooks.command()
@_ID
@_asking
def resume(broker: _Broker, webhook_id: str) -> None:
    """Let an endpoint that is paused or disabled go on."""
    _say(broker.ask("PATCH", _path(webhook_id), {"status": "active"}))


@webhooks.command()
@_ID
@_asking
def rotate(broker: _Broker, webhook_id: str) -> None:
    """Give an endpoint a new secret, and print it; the old one signs beside it for a day."""
    _say(broker.ask("POST", _path(webhook_id, "/secret")))


@webhooks.command()
@_ID
@_asking
def remove(broker: _Broker, webhook_id: str) -> None:
    """Remove an endpoint, with what it is owed."""
    _say(broker.ask("DELETE", _path(webhook_id)))


@webhooks.command()
@_ID
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--event-id", help="Only those of this event.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="At most so many.")
@_asking
def deliveries(broker: _Broker, webhook_id: str, state: str | None, event_id: str | None, limit: int) -> None:
    """Print what became of events at an endpoint, the newest first, each in a line."""
    query = {"state": state, "event_id": event_id, "limit": limit}
    asked = urlencode({name: value for name, value in query.items() if value is not None})
    _say(*broker.ask("GET", _path(webhook_id, f"/deliveries?{asked}"))["deliveries"])


@webhooks.command()
@_ID
@click.argument("event_ids", nargs=-1, metavar="[EVENT_ID]...")
@click.option("--dead", is_flag=True, help="All that is dead.")
@click.option("--since", help="Of that, what died since then: a time, or a duration such as 24h.")
@_asking
def resend(broker: _Broker, webhook_id: str, event_ids: tuple[str, ...], dead: bool, since: str | None) -> None:
    """Post events to an endpoint again."""
    if bool(event_ids) == dead:
        raise UsageError("say which events, or --dead")
    if since is not None and not dead:
        raise UsageError("--since needs --dead")
    asked: dict[str, Any] = {"event_ids": event_ids} if event_ids else {"state": "dead"}
    asked |= {"since": since} if since is not None else {}
    _say(broker.ask("POST", _path(webhook_id, "/resend"), asked))


@webhooks.command()
@click.option("--secret", required=True, envvar="BROKER_WEBHOOK_SECRET", show_envvar=True, help="The endpoint's.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65_535), default=9000, show_default=True, help="Port, 0 for a free one.")
@click.option("--status", type=click.IntRange(200, 599), default=200, show_default=True, help="What is answered.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
def receive(secret: str, host: str, port: int, status: int, count: int | None) -> None:
    """Be an endpoint: verify what is posted, and print each event in a line."""
    try:
        verify = _verifier(secret)
    except Exception:
        raise UsageError("--secret is not whsec_… and base64") from None
    left = count
    ended: list[Exception] = []

    class Receiver(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal left
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            why = verify(body, dict(self.headers.items()))
            if why is None:
                try:
                    print_out(body.decode())
                except (OutputError, ReaderGoneError) as error:
                    why = "it is not printed"
                    ended.append(error)
                    Thread(target=server.shutdown).start()
            else:
                say(f"{self.client_address[0]}: refused: {why}")
            self.send_response(status if why is None else 403)
            self.send_header("Content-Length", "0")
            self.end_headers()
            if why is None and left is not None:
                left -= 1
                if left == 0:
                    Thread(target=server.shutdown).start()

        def log_message(self, *_: Any) -> None:
            """Say nothing of each request."""

    try:
        server = ThreadingHTTPServer((host, port), Receiver)
    except OSError as error:
        raise click.ClickException(f"{host}:{port}: {error.strerror}") from None
    with server:
        say(f"listening on http://{host}:{server.server_address[1]}")
        server.serve_forever()
    if ended:
        raise ended[0]


def _verifier(secret: str) -> Callable[[bytes, dict[str, str]], str | None]:
    """Return what says of a body and its headers why they are not the broker's; None: they are."""
    from standardwebhooks.webhooks import Webhook, WebhookVerificationError

    webhook = Webhook(secret)

    def verify(body: bytes, headers: dict[str, str]) -> str | None:
        try:
            webhook.verify(body, headers, json_parse=False)
        except (WebhookVerificationError, UnicodeDecodeError) as error:
            return str(error)
        return None

    return verify
