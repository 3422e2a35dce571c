"""What changes between two snapshots of a broker, and numbers as people read them."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from msgspec import Struct

from ..observe.live import Buckets, Snapshot

_ROUNDED_SECONDS: Final = 0.2
"""An uptime may be told for so much less than it is."""
_BARS: Final = "▁▂▃▄▅▆▇█"
_BINARY: Final = ("B", "KB", "MB", "GB", "TB")


class Rates(Struct, frozen=True):
    """What happened between two snapshots, a second where it is a rate."""

    seconds: float
    published_per_second: float
    delivered_per_second: float
    fell_behind: int
    gaps: int
    gap_events: int
    refused: dict[str, int]
    delay_p50_seconds: float | None
    """From publish to the kernel of a batch's last subscriber; None: nothing was delivered."""
    delay_p99_seconds: float | None
    loop_lag_p99_seconds: float | None


def is_another_run(before: Snapshot, now: Snapshot, *, lost: bool) -> bool:
    """Return whether the broker was started again in between: it is up for less than it was.

    Or, where it was ``lost`` meanwhile, for less than the time since then by its own clock.
    """
    if now.uptime_seconds < before.uptime_seconds:
        return True
    passed = datetime.fromisoformat(now.at) - datetime.fromisoformat(before.at)
    return lost and now.uptime_seconds < passed.total_seconds() - _ROUNDED_SECONDS


def rates_between(before: Snapshot, now: Snapshot) -> Rates | None:
    """Return what happened in between; None if it is another run of the broker, or no time has passed."""
    seconds = round(now.uptime_seconds - before.uptime_seconds, 3)
    if seconds <= 0 or now.counters.published < before.counters.published:
        return None
    new, old = now.counters, before.counters
    refused = {reason: count - old.refused.get(reason, 0) for reason, count in new.refused.items()}
    return Rates(
        seconds,
        round((new.published - old.published) / seconds, 1),
        round((new.delivered - old.delivered) / seconds, 1),
        new.fell_behind - old.fell_behind,
        new.gaps - old.gaps,
        new.gap_events - old.gap_events,
        {reason: count for reason, count in refused.items() if count},
        quantile(before.delay_seconds, now.delay_seconds, 0.5),
        quantile(before.delay_seconds, now.delay_seconds, 0.99),
        quantile(before.loop_lag_seconds, now.loop_lag_seconds, 0.99),
    )


def quantile(before: Buckets, now: Buckets, share: float) -> float | None:
    """Return about how long that share of what came in between took at most, in seconds; None if nothing came.

    Within a bucket it is as if all lengths were as many; beyond the last bound it is that bound.
    """
    if before.buckets != now.buckets:
        return None
    counts = [max(new - old, 0) for new, old in zip(now.counts, before.counts, strict=True)]
    wanted, below = share * sum(counts), 0.0
    if not wanted:
        return None
    for count, low, high in zip(counts, (0.0, *now.buckets), now.buckets, strict=False):
        if below + count >= wanted:
            return low + (high - low) * (wanted - below) / count
        below += count
    return now.buckets[-1]


# --- numbers as people read them ---------------------------------------------


def number_text(number: float) -> str:
    """Return a number: whole from 10 on, with commas."""
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def seconds_text(seconds: float | None) -> str:
    """Return a short time with its unit; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        milliseconds = seconds * 1000
        return f"{milliseconds:.0f} ms" if milliseconds >= 10 or not milliseconds else f"{milliseconds:.1f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else duration_text(seconds)


def duration_text(seconds: float) -> str:
    """Return a long time in its two largest units."""
    whole = int(seconds)
    for name, size, smaller, of_it in (("d", 86_400, "h", 3_600), ("h", 3_600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // of_it} {smaller}"
    return f"{whole} s"


def bytes_text(number: float) -> str:
    """Return a size in the largest unit that leaves it above one."""
    unit = 0
    while number >= 1024 and unit < len(_BINARY) - 1:
        number /= 1024
        unit += 1
    return f"{number:.0f} {_BINARY[unit]}" if number >= 10 or not unit else f"{number:.1f} {_BINARY[unit]}"


def bars(values: Iterable[float], width: int) -> str:
    """Return the last ``width`` values as bars, the highest one full."""
    last: Sequence[float] = [*values][-width:]
    most = max(last, default=0)
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] if most else _BARS[0] for value in last)
