"""`python -m benchmarks check`: measures what the bars are about, and nothing else."""

from collections.abc import Sequence
from dataclasses import replace

from .bars import Bar, Verdict, judge
from .options import Options
from .results import Results
from .runner import Say, run
from .scenarios import SCENARIOS


def check(bars: Sequence[Bar], options: Options, say: Say) -> tuple[Results, list[Verdict]]:
    """Measure each scenario that bars are about as they say; return all tables in one, and the verdicts."""
    measured: dict[tuple[str, int, tuple[str, ...], int], Results] = {}
    for bar in bars:
        if bar.measured_by not in measured:
            measured[bar.measured_by] = run([SCENARIOS[bar.scenario]], options_for(bar, options), say)
    whole = _together(list(measured.values()))
    return whole, [judge(bar, measured[bar.measured_by].tables[0]) for bar in bars]


def options_for(bar: Bar, options: Options) -> Options:
    """Return the options that a bar is measured with: a brief check has fewer runs, of the same size."""
    runs = min(bar.runs, 3) if options.brief else bar.runs
    subscribers = (bar.subscribers,) if bar.subscribers else ()
    return replace(options, subscribers=subscribers, cases=bar.cases, runs=runs)


def steps(bars: Sequence[Bar], options: Options) -> int:
    """Return how many cases there are to measure."""
    shared = {bar.measured_by: bar for bar in bars}
    return sum(options_for(bar, options).runs * max(1, len(bar.cases)) for bar in shared.values())


def _together(parts: Sequence[Results]) -> Results:
    first = parts[0]
    return Results(
        created_at=first.created_at,
        machine=first.machine,
        versions={name: version for part in parts for name, version in part.versions.items()},
        does={name: does for part in parts for name, does in part.does.items()},
        options=first.options,
        other_processes_cores=max(part.other_processes_cores for part in parts),
        tables=[table for part in parts for table in part.tables],
    )
