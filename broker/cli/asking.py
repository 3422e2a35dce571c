"""Verbs that ask a running broker one thing over HTTP: `publish`, `send`, `token` (PROTOCOL section 6)."""

import http.client
import json
import ssl
import sys
import urllib.error
import urllib.request
from typing import Any, Final

import click

from .exact import json_of, read_json
from .options import (
    BrokerUrl,
    Seconds,
    UsageError,
    ca_file_option,
    inbox_option,
    json_option,
    key_option,
    print_json,
    print_out,
    say,
    scope_option,
    url_option,
)

ANSWER_SECONDS: Final = 30.0


@click.command()
@url_option
@ca_file_option
@key_option
@click.option("--type", "event_type", help="The event's type; its payload is then read from --payload or stdin.")
@click.option("--inbox", "inbox_id", help="The event's inbox; left out: an event of the account.")
@click.option("--account", "account_id", help="The event's account, with an operator key.")
@click.option("--event-id", help="The event's own id: sent again with the same one, it is there once.")
@click.option("--payload", help="The payload, a JSON object.")
def publish(
    url: BrokerUrl,
    trust: ssl.SSLContext | None,
    key: str,
    event_type: str | None,
    inbox_id: str | None,
    account_id: str | None,
    event_id: str | None,
    payload: str | None,
) -> None:
    """Publish events.

    One event made from the options, or, without --type, NDJSON events from standard input.
    """
    if event_type is None:
        given = [("--inbox", inbox_id), ("--account", account_id), ("--event-id", event_id), ("--payload", payload)]
        if needless := [name for name, value in given if value is not None]:
            raise UsageError(
                f"{', '.join(needless)} needs --type; without it whole events are read from standard input"
            )
        body, content_type = _standard_input("events, a line of JSON each"), "application/x-ndjson"
    else:
        if payload is None:
            parsed = _parse_payload(_standard_input("the payload, a JSON object"), "standard input, the payload,")
        else:
            parsed = _parse_payload(payload, "--payload")
        event = {"type": event_type, "payload": parsed}
        event |= {"inbox_id": inbox_id} if inbox_id is not None else {}
        event |= {"account_id": account_id} if account_id is not None else {}
        event |= {"event_id": event_id} if event_id is not None else {}
        body, content_type = _body(event), "application/json"
    for published in _post(url, trust, "/v1/events", key, body, content_type)["events"]:
        print_json(published)


def _standard_input(what: str) -> bytes:
    """Read standard input to its end; say so to who sits before it, and would else think that it hangs."""
    if sys.stdin.isatty():
        say(f"reading {what}, from here; Ctrl-D ends it")
    return sys.stdin.buffer.read()


def _parse_payload(text: str | bytes, called: str) -> Any:
    try:
        return read_json(text)
    except ValueError as error:
        raise UsageError(f"{called} is not JSON: {error}") from None


def _body(value: Any) -> bytes:
    """Return what is to be sent, as JSON. Raises `UsageError`: a shell hands on bytes that are no text, too."""
    try:
        return json_of(value)
    except ValueError:
        raise UsageError("what was given is not all UTF-8, or has half a character in it") from None


@click.command()
@url_option
@ca_file_option
@key_option
@click.argument("action")
@click.option("--inbox", "inbox_id", help="The inbox that the command is about.")
@click.option(
    "--param",
    "params",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter (repeat it); the value is JSON if it is any, else text.",
)
@click.option("--request-id", help="Sent again with the same one, the command is done once.")
@click.option(
    "--once",
    envvar="BROKER_ONCE",
    show_envvar=True,
    help="Of all that say the same in an inbox one is done, whoever sends them; the event that this answers.",
)
@click.option(
    "--lease-id",
    envvar="BROKER_LEASE_ID",
    show_envvar=True,
    help="The lease by which this is done: where it is over, nothing is.",
)
@click.pass_context
def send(
    context: click.Context,
    url: BrokerUrl,
    trust: ssl.SSLContext | None,
    key: str,
    action: str,
    inbox_id: str | None,
    params: tuple[str, ...],
    request_id: str | None,
    once: str | None,
    lease_id: str | None,
) -> None:
    """Give a command, such as send_email.

    Where `broker work` runs this, it is done once for the event in its inbox, and not at all when the lease is lost.
    """
    if once is not None and inbox_id is None:
        if context.get_parameter_source("once") is click.core.ParameterSource.COMMANDLINE:
            raise UsageError("--once needs --inbox")
        once = None
    command: dict[str, Any] = {"action": action, "params": params_of(params)}
    command |= {"inbox_id": inbox_id} if inbox_id is not None else {}
    named = {"request_id": request_id, "once": once, "lease_id": lease_id}
    command |= {name: value for name, value in named.items() if value is not None}
    print_json(_post(url, trust, "/v1/commands", key, _body(command)))


def params_of(params: tuple[str, ...]) -> dict[str, Any]:
    """Return parameters that were given as `name=value`. Raises `UsageError`."""
    values: dict[str, Any] = {}
    for param in params:
        name, equals, text = param.partition("=")
        if not (name and equals):
            raise UsageError(f"--param {param!r} is not NAME=VALUE")
        if name in values:
            raise UsageError(f"--param {name} is there twice; a list is one value: {name}='[…, …]'")
        try:
            values[name] = read_json(text)
        except ValueError:
            values[name] = text
    return values


@click.command()
@url_option
@ca_file_option
@key_option
@inbox_option("An inbox that it reaches (repeat it); left out: the key's.")
@scope_option("What it may do (repeat it); left out: the key's.")
@click.option("--ttl-seconds", type=Seconds(min=0, min_open=True), help="How long it opens a stream.")
@json_option
def token(
    url: BrokerUrl,
    trust: ssl.SSLContext | None,
    key: str,
    inbox_ids: tuple[str, ...],
    scopes: tuple[str, ...],
    ttl_seconds: float | None,
    *,
    as_json: bool,
) -> None:
    """Make a connection token.

    For a browser, or whoever must not have the key. It opens streams for a minute.
    """
    asked = {"inbox_ids": inbox_ids or None, "scopes": scopes or None, "ttl_seconds": ttl_seconds}
    made = _post(url, trust, "/v1/websocket/token", key, _body(asked))
    if as_json:
        print_json(made)
        return
    click.echo(f"expires at {made['expires_at']}", err=True)
    print_out(made["token"])


def _post(
    url: BrokerUrl,
    trust: ssl.SSLContext | None,
    path: str,
    key: str,
    body: bytes,
    content_type: str = "application/json",
) -> Any:
    return ask(url, trust, "POST", path, key, body, content_type)


def ask(
    url: BrokerUrl,
    trust: ssl.SSLContext | None,
    method: str,
    path: str,
    key: str,
    body: bytes | None = None,
    content_type: str = "application/json",
) -> Any:
    """Return the result of a request. Raises `click.ClickException`, one line."""
    headers = {"Authorization": f"Bearer {key}"} | ({} if body is None else {"Content-Type": content_type})
    request = urllib.request.Request(url.http + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS, context=trust) as answer:
            return read_json(answer.read())["result"]
    except urllib.error.HTTPError as error:
        raise click.ClickException(_refusal(error)) from None
    except OSError as error:
        raise click.ClickException(f"{url.http}: {_why(error)}") from None
    except (http.client.HTTPException, ValueError, KeyError, TypeError):
        raise click.ClickException(f"{url.http}: what answers there is no broker") from None


def _why(error: OSError) -> str:
    """Return why there is no answer."""
    why = getattr(error, "reason", error)
    if isinstance(why, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {why.verify_message}"
    if isinstance(why, ssl.SSLError) and why.reason == "WRONG_VERSION_NUMBER":
        return "what answers there speaks no TLS; http:// is without"
    if isinstance(why, http.client.RemoteDisconnected):
        return "it ended the connection without an answer; if it speaks TLS, say https://"
    return str(getattr(why, "strerror", None) or why)


def _refusal(answer: urllib.error.HTTPError) -> str:
    try:
        error = json.load(answer)["error"]
        return f"{answer.code} {error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{answer.code}: {answer.reason}"
