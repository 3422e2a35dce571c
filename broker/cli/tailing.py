"""`broker tail`: follow a stream, frame by frame."""

import re
import ssl
import sys
from typing import Final

import click
import trio
from msgspec import Struct

from ..protocol.names import parse_since
from .client import StreamRequest, open_stream
from .lines import line_of
from .options import (
    BrokerUrl,
    UsageError,
    ca_file_option,
    inbox_option,
    key_option,
    none_empty,
    print_json,
    print_out,
    say,
    url_option,
)

_CURSOR: Final = re.compile(r"c[A-Za-z0-9._-]{0,63}")


class _Tail(Struct, frozen=True):
    """How to follow: when to end, and in which form to print."""

    request: StreamRequest
    retry: bool
    count: int | None
    as_json: bool


def _since(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    meant = None if text is None else parse_since(text)
    if isinstance(meant, str) and not _CURSOR.fullmatch(meant):
        raise UsageError(f"--since {text!r} is neither a duration (90s, 5m), nor a time, nor a cursor by its form")
    return text


@click.command()
@url_option
@ca_file_option
@key_option
@inbox_option("An inbox to follow (repeat it); left out: all.")
@click.option(
    "--since",
    callback=_since,
    help="Replay from a cursor, a duration (5m) or a time with its offset (2026-11-23T10:00:00Z).",
)
@click.option(
    "--type",
    "event_types",
    multiple=True,
    callback=none_empty,
    help="An event type, or a prefix with .* (repeat it).",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@click.option("--no-retry", is_flag=True, help="End with exit code 1 when there is no connection, or none any more.")
@click.option("--json", "as_json", is_flag=True, help="Print frames as JSON on a terminal, too.")
def tail(
    url: BrokerUrl,
    trust: ssl.SSLContext | None,
    key: str,
    inbox_ids: tuple[str, ...],
    since: str | None,
    event_types: tuple[str, ...],
    count: int | None,
    no_retry: bool,
    as_json: bool,
) -> None:
    """Follow a stream.

    Prints every frame: on a terminal a line for people, else JSON. After a lost connection it goes on where it was.
    """
    request = StreamRequest(url.websocket, key, inbox_ids or ("*",), since, event_types, trust)
    trio.run(_follow, _Tail(request, not no_retry, count, as_json or not sys.stdout.isatty()))


async def _follow(tail: _Tail) -> None:
    say(f"following {', '.join(tail.request.inbox_ids)} at {tail.request.url}")
    events = 0
    async with open_stream(tail.request, say, retry=tail.retry) as stream:
        async for frame in stream:
            if tail.as_json:
                print_json(frame)
            else:
                print_out(line_of(frame))
            events += "event_id" in frame
            if events == tail.count:
                return
