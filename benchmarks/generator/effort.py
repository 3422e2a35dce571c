"""How hard the generator worked: a figure of a saturated generator is the generator's own, and is refused."""

from collections.abc import Sequence
from dataclasses import dataclass

BUSIEST_SHARE = 0.9
"""Of a core, or of the time while deliveries are under way, that a process may be busy."""
SHORTEST_BURST_SECONDS = 0.02
"""Bursts that take less in all say nothing about who was waited for."""
LARGEST_BACKLOG, LARGEST_BACKLOG_SHARE = 32, 0.1
"""Deliveries that lie ready at once in a burst, and the part of the burst that this may be.

A process that is busy all along but finds little ready keeps up; one that finds much is what was measured.
"""
LATE_MS = 1.0
"""A publisher's lateness below this is a timer's, not that of one who has too much to do."""
LATE_PART = 0.5
"""The part of the latency that may be the publisher's own lateness, both at p99."""


@dataclass(frozen=True)
class Effort:
    """What one process of the generator did while it measured.

    Args:
        role: "subscribers" or "publisher".
        processor_share: of one core.
        burst_seconds: how long deliveries were under way: from the first arrival of an event to its last.
        burst_busy_share: how much of that the process did not wait for the server.
        backlog: how many deliveries lay ready beside one, on average, while events arrived.
        backlog_share: the same as a part of an event's deliveries.
    """

    role: str
    processor_share: float
    burst_seconds: float = 0.0
    burst_busy_share: float = 0.0
    backlog: float = 0.0
    backlog_share: float = 0.0

    @property
    def behind(self) -> bool:
        """Whether deliveries waited for this process, and not it for them."""
        return (
            self.burst_seconds > SHORTEST_BURST_SECONDS
            and self.burst_busy_share > BUSIEST_SHARE
            and self.backlog > LARGEST_BACKLOG
            and self.backlog_share > LARGEST_BACKLOG_SHARE
        )


def why_refused(efforts: Sequence[Effort], cores: int) -> str:
    """Return why a figure is not the server's, "" if it is.

    Args:
        efforts: of all processes of the generator.
        cores: how many cores these had.
    """
    for effort in efforts:
        if effort.processor_share > BUSIEST_SHARE:
            return f"generator saturated: its {effort.role} used {effort.processor_share:.0%} of a core"
        if effort.behind:
            return (
                f"generator saturated: its {effort.role} was busy {effort.burst_busy_share:.0%} of the time "
                f"while events were under way, and {effort.backlog_share:.0%} of them lay ready at once"
            )
    used = sum(effort.processor_share for effort in efforts)
    if used > BUSIEST_SHARE * cores:
        return f"generator saturated: it used {used:.2f} of its {cores} cores"
    return ""


def why_late(late_ms: float, latency_ms: float) -> str:
    """Return why a latency is the publisher's own lateness, "" if it is not; both in milliseconds, both at p99."""
    if late_ms > max(LATE_MS, LATE_PART * latency_ms):
        return f"generator saturated: its publisher was {late_ms:.1f} ms late at p99"
    return ""
