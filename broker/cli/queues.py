"""`broker queues …`: an account's queues, by the broker's HTTP API (PROTOCOL section 11)."""

import json
import ssl
from collections.abc import Callable
from functools import wraps
from typing import Any, Final
from urllib.parse import quote, urlencode

import click

from ..log.jobs import STATES
from .asking import ask
from .options import BrokerUrl, Seconds, UsageError, ca_file_option, inbox_option, key_option, print_json, url_option

Asked = Callable[..., Any]
"""Asks the broker by a method, at a path below `/v1/queues`, with a body; returns the result."""


def _asking(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the options that say which broker it asks, as one argument."""

    @wraps(command)
    def asking(url: BrokerUrl, trust: ssl.SSLContext | None, key: str, **given: Any) -> Any:
        def asked(method: str, path: str = "", body: Any = None) -> Any:
            content = None if body is None else json.dumps(body).encode()
            return ask(url, trust, method, f"/v1/queues{path}", key, content)

        return command(asked, **given)

    return url_option(ca_file_option(key_option(asking)))


def _path(queue_id: str, more: str = "") -> str:
    return f"/{quote(queue_id, safe='')}{more}"


_ID: Final = click.argument("queue_id", metavar="ID")


@click.group()
def queues() -> None:
    """See to the queues that an account's workers take events from."""


@queues.command()
@_ID
@inbox_option("An inbox whose events it gets (repeat it); left out: all that the key reaches.")
@click.option("--type", "event_types", multiple=True, help="A type, or `a.*` (repeat it); left out: all.")
@click.option(
    "--order",
    type=click.Choice(("thread", "inbox", "none")),
    help="Of what one event is given at a time; left out: thread.",
)
@click.option("--lease-seconds", type=Seconds(1, 3_600), help="How long a worker has an event; left out: 60.")
@click.option("--max-attempts", type=click.IntRange(1, 100), help="After so many an event is dead; left out: 5.")
@click.option("--max-age-seconds", type=Seconds(60, 604_800), help="What nobody did by then is dead; left out: 3 days.")
@click.option("--stop", is_flag=True, help="A thread waits behind a dead event until that is sent again.")
@_asking
def add(
    asked: Asked,
    queue_id: str,
    inbox_ids: tuple[str, ...],
    event_types: tuple[str, ...],
    stop: bool,
    **given: Any,
) -> None:
    """Make a queue, and print it."""
    body = {"queue_id": queue_id, "inbox_ids": inbox_ids, "event_types": event_types, **given}
    body |= {"dead_after": "stop"} if stop else {}
    print_json(asked("POST", body={name: value for name, value in body.items() if value not in (None, ())}))


@queues.command(name="list")
@_asking
def list_all(asked: Asked) -> None:
    """Print the account's queues, each in a line."""
    for queue in asked("GET")["queues"]:
        print_json(queue)


@queues.command()
@_ID
@_asking
def show(asked: Asked, queue_id: str) -> None:
    """Print a queue."""
    print_json(asked("GET", _path(queue_id)))


@queues.command()
@_ID
@_asking
def pause(asked: Asked, queue_id: str) -> None:
    """Let a queue's events wait: no worker is given any."""
    print_json(asked("PATCH", _path(queue_id), {"status": "paused"}))


@queues.command()
@_ID
@_asking
def resume(asked: Asked, queue_id: str) -> None:
    """Let a queue that is paused go on."""
    print_json(asked("PATCH", _path(queue_id), {"status": "active"}))


@queues.command()
@_ID
@_asking
def remove(asked: Asked, queue_id: str) -> None:
    """Remove a queue, with all that waits in it."""
    print_json(asked("DELETE", _path(queue_id)))


@queues.command()
@_ID
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--event-id", help="Only those of this event.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="At most so many.")
@_asking
def deliveries(asked: Asked, queue_id: str, state: str | None, event_id: str | None, limit: int) -> None:
    """Print what became of a queue's events, the newest first, each in a line."""
    query = {"state": state, "event_id": event_id, "limit": limit}
    wanted = urlencode({name: value for name, value in query.items() if value is not None})
    for delivery in asked("GET", _path(queue_id, f"/deliveries?{wanted}"))["deliveries"]:
        print_json(delivery)


@queues.command()
@_ID
@click.argument("event_ids", nargs=-1, metavar="[EVENT_ID]...")
@click.option("--dead", is_flag=True, help="All that is dead.")
@click.option("--since", help="Of that, what died since then: a time, or a duration such as 24h.")
@_asking
def resend(asked: Asked, queue_id: str, event_ids: tuple[str, ...], dead: bool, since: str | None) -> None:
    """Let workers have events again."""
    if bool(event_ids) == dead:
        raise UsageError("say which events, or --dead")
    if since is not None and not dead:
        raise UsageError("--since needs --dead")
    body: dict[str, Any] = {"event_ids": event_ids} if event_ids else {"state": "dead"}
    body |= {"since": since} if since is not None else {}
    print_json(asked("POST", _path(queue_id, "/resend"), body))
