"""The command line: `serve`, `demo`, `publish`, `tail`, `keys new`, `token`, `check-config` (PROTOCOL section 7).

Commands read their options, call a floor below, and say what happened. What is slow to import is imported where
it is used, so that `broker --help` is quick.
"""

import hashlib
import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Final

import click

from ..config import Config, load_config
from ..errors import BrokerError, ConfigError, first_of

if TYPE_CHECKING:
    from .client import StreamRequest

DEFAULT_URL: Final = "http://127.0.0.1:8765"
ANSWER_SECONDS: Final = 30.0

_SCOPES: Final = click.Choice(["subscribe", "command", "publish"])
_config_option = click.option(
    "--config", "config_path", type=click.Path(dir_okay=False), help="TOML file with the settings and the keys."
)
_url_option = click.option("--url", default=DEFAULT_URL, show_default=True, envvar="BROKER_URL", help="The broker.")
_key_option = click.option("--key", required=True, envvar="BROKER_KEY", help="The key; better given as BROKER_KEY.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="daimon-broker")
def main() -> None:
    """An event broker for AI agents with e-mail inboxes."""


@main.command()
@_config_option
@click.option("--host", help="Address to listen on; overrides the configuration.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port to listen on, 0 for a free one.")
def serve(config_path: str | None, host: str | None, port: int | None) -> None:
    """Serve until SIGTERM or SIGINT, then drain: every client gets what is stored, and is told to come back."""
    import gc
    import logging
    from functools import partial

    import trio

    from ..transport.server import raise_open_files_limit, serve_until_signal

    config = _load(config_path)
    if not config.accounts:
        click.echo("broker: no accounts are configured: nobody can connect (see `broker keys new`)", err=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it writes the URL of every callout
    raise_open_files_limit()
    gc.freeze()
    try:
        load_again = partial(load_config, config_path, os.environ)
        trio.run(serve_until_signal, config, load_again, host, port, _say_listening)
    except* OSError as group:
        raise click.ClickException(f"cannot listen: {first_of(group)}") from None


def _say_listening(addresses: list[tuple[str, int]]) -> None:
    where = ", ".join(f"http://{f'[{host}]' if ':' in host else host}:{port}" for host, port in addresses)
    click.echo(f"broker: listening on {where}", err=True)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8765, show_default=True, help="Port to listen on; a free one if it is taken.")
@click.option("--seconds", type=click.FloatRange(min=0), help="End by itself after so many seconds.")
def demo(host: str, port: int, seconds: float | None) -> None:
    """Run a broker, a subscriber and a publisher, and print what arrives with its latency."""
    from functools import partial

    import trio

    from .demo import run_demo

    try:
        trio.run(partial(run_demo, host=host, port=port, seconds=seconds, say=click.echo, say_aside=click.echo))
    except* KeyboardInterrupt:
        click.echo("\nbye")


@main.command()
@_url_option
@_key_option
@click.option("--inbox", "inbox_ids", multiple=True, help="An inbox to follow (repeat it); left out: all.")
@click.option("--since", help="Replay from a cursor, a duration (5m) or a time.")
@click.option("--type", "event_types", multiple=True, help="An event type, or a prefix with .* (repeat it).")
def tail(url: str, key: str, inbox_ids: tuple[str, ...], since: str | None, event_types: tuple[str, ...]) -> None:
    """Print every frame as a line of JSON; after a lost connection, go on where it was."""
    import trio

    from .client import StreamRequest

    request = StreamRequest(_websocket_url(url), key, inbox_ids or ("*",), since, event_types)
    try:
        trio.run(_print_frames, request)
    except* BrokerError as group:
        raise click.ClickException(str(first_of(group))) from None
    except* (KeyboardInterrupt, BrokenPipeError):
        sys.exit(130)


async def _print_frames(request: "StreamRequest") -> None:
    from .client import open_stream

    async with open_stream(request) as stream:
        async for frame in stream:
            click.echo(json.dumps(frame, ensure_ascii=False, separators=(",", ":")))


@main.command()
@_url_option
@_key_option
@click.option("--type", "event_type", help="The event's type; its payload is then read from --payload or stdin.")
@click.option("--inbox", "inbox_id", help="The event's inbox; left out: an event of the account.")
@click.option("--account", "account_id", help="The event's account, with an operator key.")
@click.option("--payload", help="The payload, a JSON object.")
def publish(
    url: str, key: str, event_type: str | None, inbox_id: str | None, account_id: str | None, payload: str | None
) -> None:
    """Publish one event made from the options, or, without --type, NDJSON events from standard input."""
    if event_type is None:
        body, content_type = sys.stdin.buffer.read(), "application/x-ndjson"
    else:
        given = payload if payload is not None else sys.stdin.read()
        event = {"type": event_type, "payload": _parse_payload(given)}
        event |= {"inbox_id": inbox_id} if inbox_id else {}
        event |= {"account_id": account_id} if account_id else {}
        body, content_type = json.dumps(event).encode(), "application/json"
    for published in _post(url, "/v1/events", key, body, content_type)["events"]:
        click.echo(json.dumps(published, separators=(",", ":")))


def _parse_payload(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--payload") from None


def _post(url: str, path: str, key: str, body: bytes, content_type: str = "application/json") -> Any:
    """Return the result of a request. Raises `click.ClickException`."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": content_type}
    request = urllib.request.Request(_http_url(url) + path, body, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)["result"]
    except urllib.error.HTTPError as error:
        try:
            message = json.load(error)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = error.reason
        raise click.ClickException(f"{error.code}: {message}") from None
    except OSError as error:
        raise click.ClickException(f"{url}: {error}") from None


@main.group()
def keys() -> None:
    """Make keys."""


@keys.command("new")
@click.option("--account", "account_id", default="acct_demo", show_default=True, help="The account it is for.")
@click.option("--id", "key_id", default="key_agent", show_default=True, help="The key's own name.")
@click.option("--inbox", "inbox_ids", multiple=True, help="An inbox that it reaches (repeat it); left out: all.")
@click.option("--scope", "scopes", multiple=True, type=_SCOPES, help="What it may do (repeat it); left out: all.")
@click.option("--operator", is_flag=True, help="A key that publishes for any account.")
def keys_new(account_id: str, key_id: str, inbox_ids: tuple[str, ...], scopes: tuple[str, ...], operator: bool) -> None:
    """Print a new key, once, and the TOML lines to paste; the broker keeps only its SHA-256."""
    key = f"{'dm_operator_' if operator else 'dm_live_'}{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(key.encode()).hexdigest()
    click.echo(f"# The key, shown only now; keep it where secrets are kept, not in this file:\n# {key}\n")
    if operator:
        click.echo(f'[[operators]]\nid = "{key_id}"\nsha256 = "{digest}"')
        return
    lines = ["[[accounts]]", f'id = "{account_id}"', 'tier = "developer"', "[[accounts.keys]]", f'id = "{key_id}"']
    lines += [f'sha256 = "{digest}"', f"scopes = {json.dumps(scopes or ['subscribe', 'command', 'publish'])}"]
    lines += [f"inbox_ids = {json.dumps(inbox_ids)}"] if inbox_ids else []
    click.echo("\n".join(lines))


@main.command()
@_url_option
@_key_option
@click.option("--inbox", "inbox_ids", multiple=True, help="An inbox that it reaches (repeat it); left out: the key's.")
@click.option("--scope", "scopes", multiple=True, type=_SCOPES, help="What it may do (repeat it); left out: the key's.")
@click.option("--ttl-seconds", type=click.FloatRange(min=0, min_open=True), help="How long it opens a stream.")
def token(url: str, key: str, inbox_ids: tuple[str, ...], scopes: tuple[str, ...], ttl_seconds: float | None) -> None:
    """Print a connection token: for a browser, or whoever must not have the key. It opens streams for a minute."""
    asked = {"inbox_ids": inbox_ids or None, "scopes": scopes or None, "ttl_seconds": ttl_seconds}
    made = _post(url, "/v1/websocket/token", key, json.dumps(asked).encode())
    click.echo(f"expires at {made['expires_at']}", err=True)
    click.echo(made["token"])


@main.command("check-config")
@_config_option
def check_config(config_path: str | None) -> None:
    """Say whether the configuration, with the environment, loads."""
    config = _load(config_path)
    keys = sum(len(account.keys) for account in config.accounts)
    click.echo(f"ok: {len(config.accounts)} accounts, {keys} keys, {len(config.operators)} operators")


def _load(path: str | None) -> Config:
    try:
        return load_config(path, os.environ)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


def _websocket_url(url: str) -> str:
    return "ws" + url.removeprefix("http") if url.startswith("http") else url


def _http_url(url: str) -> str:
    return ("http" + url.removeprefix("ws") if url.startswith("ws") else url).rstrip("/")
