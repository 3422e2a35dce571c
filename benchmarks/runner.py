"""Runs scenarios: case by case, each several times, and puts the runs together."""

from collections.abc import Callable, Sequence
from statistics import median

from . import machine, results
from .generator.worker import WorkerError
from .histograms import decoded, encoded, merged
from .options import OURS, Options
from .peers.adapter import PeerMissingError
from .peers.process import PeerFailedError
from .results import Results, Row, Table
from .scenarios.scenario import Case, Scenario

Say = Callable[[str], None]
"""Is told what is measured next."""


def run(scenarios: Sequence[Scenario], options: Options, say: Say) -> Results:
    """Measure all scenarios, and return what came out."""
    chosen = {name: str(value) for name, value in vars(options).items() if name != "key"}
    with machine.Others() as others:
        tables = [run_one(scenario, options, say) for scenario in scenarios]
    named = list(dict.fromkeys(row.peer for table in tables for row in table.rows))
    return Results(
        created_at=results.now(),
        machine=machine.description(),
        versions=_versions(options, named),
        does={name: options.peer(name).does for name in named},
        options=chosen,
        other_processes_cores=round(others.cores, 2),
        tables=tables,
    )


def run_one(scenario: Scenario, options: Options, say: Say) -> Table:
    """Measure one scenario: run by run, there and back, so that the machine's moods hit all peers alike."""
    cases = cases_of(scenario, options)
    rows: dict[tuple[str, str], list[Row]] = {}
    for number in range(options.runs):
        for case in cases if number % 2 == 0 else reversed(cases):
            say(f"{scenario.name}: {case.peer}, {case.case}" + (f", run {number + 1}" if options.runs > 1 else ""))
            for row in _measured(scenario, options, case):
                rows.setdefault((row.peer, row.case), []).append(row)
    if not cases:
        why = "has no such case" if options.cases else "not with --url: it must start and see the server itself"
        rows["", ""] = [Row(peer=OURS, case="-", skipped=why)]
    return Table(
        scenario=scenario.name,
        title=scenario.title,
        what=scenario.what,
        columns=list(scenario.columns),
        headline=scenario.headline,
        scale=scenario.scale,
        rows=[combined(runs) for runs in rows.values()],
    )


def cases_of(scenario: Scenario, options: Options) -> list[Case]:
    """Return what there is to measure: all cases, or the chosen ones."""
    return [case for case in scenario.cases(options) if not options.cases or case.case in options.cases]


def _measured(scenario: Scenario, options: Options, case: Case) -> list[Row]:
    """Measure a case; what cannot be measured is a row that says why."""
    try:
        return scenario.measure(options, case)
    except PeerMissingError as error:
        return [Row(peer=case.peer, case=case.case, size=case.size, skipped=str(error))]
    except (PeerFailedError, WorkerError) as error:
        return [Row(peer=case.peer, case=case.case, size=case.size, void=str(error).strip().splitlines()[-1])]


def combined(runs: Sequence[Row]) -> Row:
    """Return the row of several runs: medians of the figures, all latencies together.

    A run in which events were lost spoils all. A refused one is left out, as long as more are not refused, and the row
    says how many were.
    """
    good = [row for row in runs if not row.refused]
    if len(runs) == 1 or len(good) * 2 <= len(runs):
        return next((row for row in runs if row.void or row.refused), runs[0])
    first = good[0]
    left_out = {"refused runs": f"{len(runs) - len(good)} of {len(runs)}"} if len(good) < len(runs) else {}
    return Row(
        peer=first.peer,
        case=first.case,
        size=first.size,
        figures={key: median(row.figures[key] for row in good if key in row.figures) for key in first.figures},
        latency=encoded(merged(decoded(row.latency) for row in good if row.latency)) if first.latency else "",
        slices=first.slices,
        seconds=first.seconds,
        generator={key: max(row.generator.get(key, 0.0) for row in good) for key in first.generator},
        notes=first.notes | left_out,
        skipped=first.skipped,
        void=next((row.void for row in runs if row.void), ""),
        profile=first.profile,
        hot=first.hot,
    )


def _versions(options: Options, peers: Sequence[str]) -> dict[str, str]:
    versions = {}
    for name in peers:
        try:
            versions[name] = options.peer(name).version()
        except PeerMissingError:
            versions[name] = "not here"
    return versions
