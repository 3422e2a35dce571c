"""What a scenario is: cases, and how one is measured; and the figures that several scenarios share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..generator.effort import Effort, why_late
from ..histograms import encoded, merged, milliseconds, of_nanoseconds
from ..options import Options
from ..peers.adapter import Running
from ..results import Column, Row
from ..sides import Measurement


@dataclass(frozen=True)
class Case:
    """One thing to measure of one peer.

    Args:
        peer: its name.
        case: as the table shows it.
        size: what it scales with; 0: nothing.
    """

    peer: str
    case: str
    size: int = 0


@dataclass(frozen=True)
class Scenario:
    """One question, and how it is answered.

    Args:
        name: on the command line.
        title: of its table.
        what: how it is measured, for the report.
        columns: of its table.
        headline: the key of the column that peers are compared by.
        cases: what there is to measure with these options.
        measure: measures one case; more than one row if it is measured in several states.
        scale: what `Case.size` is, if a plot over it makes sense.
        document: what the documentation says of the rows, in lines of Markdown, for so many bytes of a payload.
    """

    name: str
    title: str
    what: str
    columns: Sequence[Column]
    headline: str
    cases: Callable[[Options], list[Case]]
    measure: Callable[[Options, Case], list[Row]]
    scale: str = ""
    document: Callable[[Sequence[Row], int], list[str]] | None = None


LATENCY_COLUMNS = (
    Column("p50_ms", "p50 ms", 2, "lower"),
    Column("p99_ms", "p99 ms", 2, "lower"),
    Column("max_ms", "max ms", 2, "lower"),
)
LAST_COLUMNS = (Column("last_p50_ms", "last p50 ms", 2, "lower"), Column("last_p99_ms", "last p99 ms", 2, "lower"))
COST_COLUMNS = (Column("server_us", "server µs each", 1, "lower"),)


DELIVERIES_PER_SECOND = 15_000
"""Unless a rate is chosen: well below what any peer delivers, so that latency is no queue's."""
GREATEST_RATE = 50.0


def calm_rate(options: Options, subscribers: int) -> float:
    """Return how many events a second go to each of so many subscribers."""
    return options.rate or min(GREATEST_RATE, DELIVERIES_PER_SECOND / subscribers)


def row_of(case: Case, running: Running, *turns: Measurement) -> Row:
    """Return the row of a measurement, or of several turns together: latency, and what a delivery cost the server."""
    latency = merged(turn.received.latency for turn in turns)
    late = merged(turn.sent.late for turn in turns)
    deliveries = sum(turn.received.deliveries for turn in turns)
    row = Row(
        peer=case.peer,
        case=case.case,
        size=case.size,
        latency=encoded(latency),
        slices=[encoded(part) for turn in turns for part in turn.received.slices] if len(turns) == 1 else [],
        seconds=sum(turn.sent.expected.seconds for turn in turns),
        generator=shares(turns[0].efforts),
        notes=running.notes,
        refused=next((turn.refused for turn in turns if turn.refused), "")
        or why_late(milliseconds(late, 99), milliseconds(latency, 99)),
        void=next((turn.void for turn in turns if turn.void), ""),
        figures={
            "p50_ms": milliseconds(latency, 50),
            "p99_ms": milliseconds(latency, 99),
            "max_ms": milliseconds(latency, 100),
            "late_p99_ms": milliseconds(late, 99),
        },
    )
    if running.process_ids and deliveries:
        row.figures["server_us"] = sum(turn.server_ns for turn in turns) / 1000 / deliveries
    return row


def with_last(row: Row, *turns: Measurement) -> Row:
    """Add the time until the last subscriber had an event, and the deliveries a second."""
    to_last = of_nanoseconds([nanoseconds for turn in turns for nanoseconds in turn.to_last])
    deliveries = sum(turn.received.latency.total_count for turn in turns)
    row.figures |= {
        "last_p50_ms": milliseconds(to_last, 50),
        "last_p99_ms": milliseconds(to_last, 99),
        "per_second": deliveries / row.seconds,
    }
    return row


def shares(efforts: Sequence[Effort]) -> dict[str, float]:
    """Return the share of a core that each process used, by its role."""
    roles = [effort.role for effort in efforts]
    return {
        role if roles.count(role) == 1 else f"{role} {number}": round(effort.processor_share, 3)
        for number, (role, effort) in enumerate(zip(roles, efforts, strict=True))
    }
