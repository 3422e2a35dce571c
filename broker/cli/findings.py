"""What `broker doctor` may find: each problem with its exit code, and what is said of a check. Pure."""

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from msgspec import Struct

Check = Literal[
    "reach",
    "broker",
    "key",
    "webhooks",
    "stream",
    "round trip",
    "clock",
    "delivery",
    "replay",
    "quiet",
    "event stream",
]
"""What is looked at, in this order."""
State = Literal["ok", "problem", "skipped"]
Problem = Literal[
    "unreachable",
    "tls",
    "scheme",
    "no_broker",
    "not_ready",
    "key",
    "scope",
    "connection_limit",
    "no_websocket",
    "held_back",
    "no_answer",
    "clock",
    "slow",
    "lost",
    "no_replay",
    "cut_when_quiet",
    "event_stream",
]

EXIT_CODES: Final[dict[Problem, int]] = {
    "unreachable": 10,
    "tls": 11,
    "scheme": 12,
    "no_broker": 13,
    "not_ready": 14,
    "key": 15,
    "scope": 16,
    "connection_limit": 17,
    "no_websocket": 18,
    "held_back": 19,
    "no_answer": 20,
    "clock": 21,
    "slow": 22,
    "lost": 23,
    "no_replay": 24,
    "cut_when_quiet": 25,
    "event_stream": 26,
}
"""What the program ends with at the first problem that it found."""

_SIGNS: Final[dict[State, str]] = {"ok": "ok", "problem": "PROBLEM", "skipped": "skipped"}


class Finding(Struct, frozen=True, omit_defaults=True):
    """What was found by one check."""

    check: Check
    state: State
    said: str
    """In a sentence: what is, or what is wrong."""
    do: str = ""
    """What to do about it."""
    problem: Problem | None = None
    measured: dict[str, float | int | str | None] = {}
    """Times in seconds."""


def ok(check: Check, said: str, **measured: float | str | None) -> Finding:
    """Return that all is well there."""
    return Finding(check, "ok", said, measured=measured)


def problem(check: Check, kind: Problem, said: str, do: str, **measured: float | str | None) -> Finding:
    """Return that something is wrong there."""
    return Finding(check, "problem", said, do, kind, measured)


def skipped(check: Check, said: str) -> Finding:
    """Return that it was not looked at, and why."""
    return Finding(check, "skipped", said)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return the exit code of the first problem; 0 if there is none."""
    return next((EXIT_CODES[finding.problem] for finding in findings if finding.problem is not None), 0)


def lines_of(finding: Finding) -> list[str]:
    """Return a finding for people."""
    lines = [f"{_SIGNS[finding.state]:8} {finding.check:13} {finding.said}"]
    return [*lines, f"{'':22} → {finding.do}"] if finding.do else lines


def quantiles(seconds: Iterable[float]) -> Mapping[str, float]:
    """Return the median, the 99th percentile and the longest of some times, as measured; there must be one."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {
        "p50_seconds": round(ordered[last // 2], 6),
        "p99_seconds": round(ordered[round(last * 0.99)], 6),
        "max_seconds": round(ordered[last], 6),
    }
