"""`broker top`: a running broker on a terminal, again each second."""

import os
import signal
import ssl
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

import click
import trio
from msgspec import Struct

from ..observe.live import Snapshot
from .client import LostError
from .keyboard import keys_pressed, single_keys
from .operating import Operator, open_operator
from .options import (
    BrokerUrl,
    ca_file_option,
    operator_key_option,
    print_json,
    print_out,
    say,
    url_option,
)
from .picture import Picture, document_of, line_of, lines_of

AGAIN_SECONDS: Final = 1.0
SNAPSHOTS_FOR_RATES: Final = 3
"""The accounts' rates are of two looks, which are two seconds apart."""
PLAIN_ROWS: Final = 20
"""Connections that are told of where there is no terminal."""
_NO_RICH: Final = "one line a second: for a screen, `pip install 'daimon-broker[top]'`"

Show = Callable[[Picture], None]


class _Watching(Struct):
    """What is watched, and how it is shown."""

    picture: Picture
    rows: Callable[[], int]
    show: Show
    once: bool
    shown: int = 0


@click.command()
@url_option
@ca_file_option
@operator_key_option
@click.option("--once", is_flag=True, help="Say how it is, with the rates of now, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON each second.")
def top(url: BrokerUrl, trust: ssl.SSLContext | None, key: str, once: bool, as_json: bool) -> None:
    """Watch a broker at work.

    Connections, rates, delays and gaps, again each second; it goes on when the broker comes back. Where there is no
    terminal it prints a line each second.
    """
    picture = Picture(url.http)
    if as_json:
        _watch_in_lines(url, trust, key, picture, once, lambda shown: print_json(document_of(shown)))
    elif once:
        _watch_in_lines(url, trust, key, picture, once, lambda shown: print_out("\n".join(lines_of(shown))))
    elif not _is_terminal():
        _watch_in_lines(url, trust, key, picture, once, lambda shown: print_out(line_of(shown)))
    elif find_spec("rich") is None:
        say(_NO_RICH)
        _watch_in_lines(url, trust, key, picture, once, lambda shown: print_out(line_of(shown)))
    else:
        _watch_on_screen(url, trust, key, picture)


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _watch_in_lines(
    url: BrokerUrl, trust: ssl.SSLContext | None, key: str, picture: Picture, once: bool, show: Show
) -> None:
    trio.run(_watch, url, trust, key, _Watching(picture, lambda: PLAIN_ROWS, show, once))


def _watch_on_screen(url: BrokerUrl, trust: ssl.SSLContext | None, key: str, picture: Picture) -> None:
    from rich.console import Console
    from rich.live import Live

    from .screen import drawn, rows_of

    console = Console()
    with Live(console=console, screen=True, auto_refresh=False, redirect_stderr=False) as screen:

        def show(shown: Picture) -> None:
            screen.update(drawn(shown, console.width, console.height), refresh=True)

        show(picture)
        with single_keys() as has_keys:
            watching = _Watching(picture, lambda: rows_of(console.height), show, once=False)
            trio.run(_watch_and_obey, url, trust, key, watching, has_keys)


async def _watch_and_obey(
    url: BrokerUrl, trust: ssl.SSLContext | None, key: str, watching: _Watching, has_keys: bool
) -> None:
    """Watch until somebody presses q, or the process is to end."""
    async with open_operator(url.http, key, trust) as asking, trio.open_nursery() as nursery:
        nursery.start_soon(_end_at_signal, nursery.cancel_scope)
        nursery.start_soon(_keep_watching, asking, watching)
        if has_keys:
            nursery.start_soon(_obey, asking, watching, nursery.cancel_scope)


async def _end_at_signal(scope: trio.CancelScope) -> None:
    """End well, so that the terminal is as it was."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            scope.cancel()


async def _obey(asking: Operator, watching: _Watching, scope: trio.CancelScope) -> None:
    async for key in keys_pressed():
        if key in ("q", "\x1b"):
            scope.cancel()
        elif watching.picture.press(key):
            if watching.picture.contact == "live":
                await _look(asking, watching)
            watching.show(watching.picture)


async def _watch(url: BrokerUrl, trust: ssl.SSLContext | None, key: str, watching: _Watching) -> None:
    async with open_operator(url.http, key, trust) as asking:
        await _keep_watching(asking, watching)


async def _keep_watching(asking: Operator, watching: _Watching) -> None:
    """Show each snapshot, over all restarts. Raises `RefusedError`, and with ``once`` `LostError`."""
    picture = watching.picture
    while True:
        try:
            await _follow(asking, watching)
            if watching.once and watching.shown:
                return
            raise LostError("the broker has ended")
        except LostError as lost:
            if watching.once:
                raise
            picture.lose(f"{lost}; it tries again each second")
            watching.show(picture)
            await trio.sleep(AGAIN_SECONDS)


async def _follow(asking: Operator, watching: _Watching) -> None:
    """Show what one stream of snapshots brings, until it ends; with ``once`` the first that has all rates."""
    picture, came = watching.picture, 0

    async def take(snapshot: Snapshot) -> bool:
        nonlocal came
        came += 1
        picture.take(snapshot)
        if watching.once and came < SNAPSHOTS_FOR_RATES and not snapshot.draining:
            return False
        await _look(asking, watching)
        watching.show(picture)
        watching.shown += 1
        return watching.once

    await asking.watch(take)


async def _look(asking: Operator, watching: _Watching) -> None:
    rows = min(watching.rows(), 200)
    watching.picture.page = await asking.connections(**watching.picture.wanted(rows))
