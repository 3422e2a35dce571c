"""What several workers answer, made into what one broker answers."""

import heapq
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from msgspec import UNSET, Raw, Struct
from msgspec.structs import replace

from .census import MOST_ACCOUNTS_SHOWN, AccountSeen
from .choosing import ChosenPage, OperatorConnection, Wanted
from .connections import MOST_CLOSED_SHOWN, PAGE_CONNECTIONS, ConnectionsPage
from .live import Buckets, Snapshot

StructT = TypeVar("StructT", bound=Struct)

GREATEST: Final = frozenset(
    {
        "broker_build_info",
        "broker_draining",
        "broker_engine_away",
        "broker_engine_full",
        "broker_window_seconds",
        "broker_queue_oldest_waiting_seconds",
        "broker_webhook_oldest_waiting_seconds",
    }
)
"""Metrics of which the greatest counts; of all others the sum."""
LEAST: Final = frozenset({"broker_window_squeezed_seconds"})
_MERGED: Final = 128
"""Rows that are merged in one step."""


def merged_metrics(texts: Sequence[bytes]) -> Generator[None, None, bytes]:
    """Return, in steps, expositions of the same metrics as one, in Prometheus' text format, which all of them are in.

    Counters and histograms are summed, and gauges, too, but for a few of which the greatest or the least counts.
    """
    headers: dict[str, list[str]] = {}
    samples: dict[str, dict[str, float]] = {}
    for text in texts:
        family, lines = "", text.decode().splitlines()
        for line in lines:
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                known = headers.setdefault(family, [])
                if line not in known:
                    known.append(line)
                continue
            sample, _, value = line.rpartition(" ")
            of_family = samples.setdefault(family, {})
            of_family[sample] = _together(family, of_family.get(sample), float(value))
        yield
    told = list[str]()
    for family, header in headers.items():
        told += [*header, *(f"{sample} {value!r}" for sample, value in samples.get(family, {}).items())]
    return "\n".join([*told, ""]).encode()


def _together(family: str, one: float | None, other: float) -> float:
    if one is None:
        return other
    if family in GREATEST:
        return max(one, other)
    return min(one, other) if family in LEAST else one + other


class NumberedPage(Struct, frozen=True):
    """One worker's part of a page of connections, each with its number, which tells when it was opened."""

    rows: list[tuple[int, Raw]]
    more: bool


def merged_connections(pages: Iterable[NumberedPage]) -> ConnectionsPage:
    """Return the page that has the first of all, the ones opened first before the others."""
    pages = list(pages)
    merged = heapq.merge(*(page.rows for page in pages), key=lambda row: row[0])
    rows = list(islice(merged, PAGE_CONNECTIONS + 1))  # and no further, of however many workers
    chosen = rows[:PAGE_CONNECTIONS]
    more = len(rows) > len(chosen) or any(page.more for page in pages)
    return ConnectionsPage([raw for _, raw in chosen], str(chosen[-1][0]) if more and chosen else UNSET)


def merged_snapshots(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Return several workers' figures as one broker's; the first of them is who is asked."""
    first = snapshots[0]
    closed = [each for snapshot in snapshots for each in snapshot.closed]
    windows = [snapshot.window for snapshot in snapshots]
    return replace(
        first,
        uptime_seconds=max(snapshot.uptime_seconds for snapshot in snapshots),
        draining=any(snapshot.draining for snapshot in snapshots),
        connections=_summed([snapshot.connections for snapshot in snapshots]),
        held_bytes=sum(snapshot.held_bytes for snapshot in snapshots),
        counters=_summed([snapshot.counters for snapshot in snapshots]),
        delay_seconds=_buckets([snapshot.delay_seconds for snapshot in snapshots]),
        loop_lag_seconds=_buckets([snapshot.loop_lag_seconds for snapshot in snapshots]),
        window=replace(
            windows[0],
            events=sum(window.events for window in windows),
            bytes=sum(window.bytes for window in windows),
            max_bytes=sum(window.max_bytes for window in windows),
            shortest_seconds=min(window.shortest_seconds for window in windows),
        ),
        accounts=_accounts(account for snapshot in snapshots for account in snapshot.accounts),
        closed=heapq.nlargest(MOST_CLOSED_SHOWN, closed, key=lambda each: each.at),
    )


def _summed(structs: Sequence[StructT]) -> StructT:
    """Return a struct whose numbers are the sums of those of several; so are those of its mappings."""
    values = {name: [getattr(each, name) for each in structs] for name in structs[0].__struct_fields__}
    return replace(structs[0], **{name: _sum(of_field) for name, of_field in values.items()})


def _sum(values: Sequence[Any]) -> Any:
    if not isinstance(values[0], Mapping):
        return sum(values)
    counted = Counter[Any]()
    for each in values:
        counted.update(each)
    return dict(counted)


def _buckets(buckets: Sequence[Buckets]) -> Buckets:
    return replace(buckets[0], counts=tuple(map(sum, zip(*(each.counts for each in buckets), strict=True))))


def _accounts(seen: Iterable[AccountSeen]) -> list[AccountSeen]:
    """Return the busiest accounts: each worker that has an account's log has all that is published to it."""
    by_id: dict[str, AccountSeen] = {}
    for account in seen:
        other = by_id.get(account.account_id)
        by_id[account.account_id] = account if other is None else _account(other, account)
    return heapq.nsmallest(
        MOST_ACCOUNTS_SHOWN,
        by_id.values(),
        key=lambda account: (-account.events_per_second, -account.connections, account.account_id),
    )


def _account(one: AccountSeen, other: AccountSeen) -> AccountSeen:
    known, less = (one, other) if one.tier is not None else (other, one)
    return replace(
        known,
        events_per_second=max(one.events_per_second, other.events_per_second),
        connections=one.connections + other.connections,
        window_events=max(one.window_events, other.window_events),
        window_bytes=max(one.window_bytes, other.window_bytes),
        window_seconds=max(known.window_seconds or 0, less.window_seconds or 0) or None,
        squeezed=one.squeezed or other.squeezed,
    )


def merged_pages(pages: Sequence[ChosenPage], wanted: Wanted) -> Generator[None, None, ChosenPage]:
    """Return, in steps, the page that is wanted of what each worker has up to its end.

    As each worker sorts its own: of those that are alike, the ones opened first before the others.
    """
    descending = wanted.order == "desc"

    def place(row: tuple[int, OperatorConnection]) -> tuple[Any, int]:
        number, seen = row
        value = number if wanted.sort == "opened_at" else _sorted_by(seen, wanted.sort)
        return value, -number if descending else number

    rows = heapq.merge(*(page.rows for page in pages), key=place, reverse=descending)
    before = wanted.offset
    while before > 0 and list(islice(rows, min(before, _MERGED))):
        before -= _MERGED
        yield
    return ChosenPage(
        sum(page.total for page in pages),
        sum(page.matching for page in pages),
        list(islice(rows, wanted.limit)),
    )


def _sorted_by(row: OperatorConnection, name: str) -> Any:
    value = getattr(row, name)
    if value is None:
        return float("inf") if name == "inboxes" else ""
    return value
