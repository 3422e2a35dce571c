"""What `broker top` shows, on a terminal: drawn by rich, as large as the terminal is."""

from typing import TYPE_CHECKING, Final

from .figures import bars, bytes_text, duration_text, number_text, seconds_text
from .lines import plain
from .picture import (
    COLUMNS,
    Picture,
    cells_of,
    connections_words,
    contact_words,
    delay_words,
    loss_words,
    refused_words,
    window_words,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_HEAD_LINES: Final = 7
_SIDE_ROWS: Final = 5
"""Accounts and connections that ended, each with a head."""
_ROOM_FOR_SIDES: Final = 24
"""Lines of a terminal from which on these are shown."""
_COLOURS: Final = {"live": "green", "behind": "yellow", "paused": "magenta"}
_FROM_WIDTH: Final = {"agent": 130, "rtt": 105, "silent": 96, "cmds": 88, "for": 80, "held": 72}
"""Columns of which a terminal of fewer characters has none."""
_RIGHT: Final = frozenset({"behind", "for", "held", "cmds", "silent", "rtt"})
FOOTER: Final = (
    "q quit · sort: b behind, t for how long, h held, c commands, s silent, i inboxes, o opened, a account"
    " · r turn · f filter"
)


def rows_of(height: int) -> int:
    """Return how many connections are shown on a terminal of so many lines."""
    sides = _SIDE_ROWS + 2 if height >= _ROOM_FOR_SIDES else 0
    return max(height - _HEAD_LINES - sides - 3, 1)


def drawn(picture: Picture, width: int, height: int) -> "RenderableType":
    """Return what fills the terminal."""
    from rich.console import Group

    parts: list[RenderableType] = [*_head(picture, width), _connections(picture, width, rows_of(height))]
    if picture.snapshot is not None and height >= _ROOM_FOR_SIDES:
        parts.append(_sides(picture))
    parts.append(_line(FOOTER, "dim"))
    return Group(*parts)


def _line(text: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(plain(text), style, no_wrap=True, overflow="ellipsis")


def _head(picture: Picture, width: int) -> list["RenderableType"]:
    snapshot, rates = picture.snapshot, picture.rates
    version = "" if snapshot is None else f" {snapshot.version}"
    title = _line(f"broker{version}  {picture.url}  ", "bold")
    draining = snapshot is not None and snapshot.draining
    style = "yellow" if draining or picture.contact == "connecting" else "green"
    title.append(plain(contact_words(picture)), "bold red" if picture.contact == "lost" else style)
    if snapshot is None:
        return [title]
    room = max((width - 44) // 2, 5)
    came = f"{number_text(rates.published_per_second)}/s" if rates else "-"
    went = f"{number_text(rates.delivered_per_second)}/s" if rates else "-"
    traffic = _line(f"in  {came:>10} ")
    traffic.append(f"{bars(picture.incoming, room):{room}}", "cyan")
    traffic.append(f"   out {went:>10} ")
    traffic.append(bars(picture.outgoing, room), "cyan")
    losing = rates is not None and rates.gaps > 0
    return [
        title,
        _line(connections_words(snapshot)),
        traffic,
        _line(delay_words(rates)),
        _line(loss_words(snapshot, rates), "bold red" if losing else ""),
        _line(window_words(snapshot)),
        _line(refused_words(snapshot)),
    ]


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, expand=True, pad_edge=False, header_style="bold reverse")
    for name in columns:
        justify = "right" if name in _RIGHT else "left"
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
    return table


def _connections(picture: Picture, width: int, rows: int) -> "RenderableType":
    from rich.text import Text

    shown = [number for number, name in enumerate(COLUMNS) if width >= _FROM_WIDTH.get(name, 0)]
    table = _table(*(COLUMNS[number] for number in shown))
    page = picture.page
    of = "all" if picture.only is None else picture.only
    total = 0 if page is None else page.matching
    table.title = _line(f"{total:,} connections ({of}), by {picture.sort}, {picture.order}", "dim")
    table.title_justify = "left"
    for connection in [] if page is None else page.connections[:rows]:
        cells = cells_of(connection)
        style = "" if connection.state == "live" else _COLOURS[connection.state]
        table.add_row(*(Text(cells[number]) for number in shown), style=style)
    for _ in range(rows - len(table.rows)):
        table.add_row()
    return table


def _sides(picture: Picture) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    assert picture.snapshot is not None
    accounts = _table("busiest account", "events/s", "connections", "window")
    for account in picture.snapshot.accounts[:_SIDE_ROWS]:
        of = "" if account.max_connections is None else f" of {account.max_connections}"
        kept = "" if account.window_seconds is None else f", {seconds_text(account.window_seconds)}"
        cut = "cut short: " if account.squeezed else ""
        told = (
            account.account_id,
            number_text(account.events_per_second),
            f"{account.connections:,}{of}",
            f"{cut}{account.window_events:,}, {bytes_text(account.window_bytes)}{kept}",
        )
        accounts.add_row(*(Text(plain(text)) for text in told))
    closed = _table("closed lately", "account", "lived", "why")
    for ended in picture.snapshot.closed[:_SIDE_ROWS]:
        code = "" if ended.code is None else f"{ended.code} "
        why = ended.reason.removeprefix(f"closed by the broker with {ended.code}: ")
        told = (ended.at[11:19], ended.account_id, duration_text(ended.lived_seconds), f"{code}{why}")
        closed.add_row(*(Text(plain(text)) for text in told))
    for table in (accounts, closed):
        for _ in range(_SIDE_ROWS - len(table.rows)):
            table.add_row()
    sides = Table.grid(expand=True, padding=(0, 2))
    sides.add_column(ratio=1)
    sides.add_column(ratio=1)
    sides.add_row(accounts, closed)
    return sides
