"""The command line: `python -m benchmarks SCENARIO | all | check | report`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import bars, check, report
from .options import OUT, Options
from .peers import NAMES, PEERS
from .peers.adapter import PeerMissingError
from .results import Results, ResultsError, load, save
from .runner import cases_of, run
from .scenarios import SCENARIOS
from .scenarios.scenario import Scenario

ALL = "all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--tls"]:
        arguments[0] = "tls"
    given = parser().parse_args(arguments)
    try:
        if given.command == "report":
            return _rewrite(given.results)
        if given.command == "check":
            return _check(options_of(given))
        return _measure(given)
    except KeyboardInterrupt:
        return 130
    except ResultsError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def _measure(given: argparse.Namespace) -> int:
    """Measure one scenario or all, show the tables, and write the report."""
    from .terminal import progress, show

    options = options_of(given)
    scenarios = list(SCENARIOS.values()) if given.command == ALL else [SCENARIOS[given.command]]
    say_missing({case.peer for scenario in scenarios for case in cases_of(scenario, options)})
    with progress(steps(scenarios, options)) as say:
        results = run(scenarios, options, say)
    show(results)
    for scenario, table in zip(scenarios, results.tables, strict=True):
        if scenario.document is not None and not options.url:
            print(*scenario.document(table.rows, options.payload_bytes), "", sep="\n")
    written = keep(results, options)
    print(f"Report: {written}")
    return 1 if any(row.void for table in results.tables for row in table.rows) else 0


def _check(options: Options) -> int:
    """Measure the bars and show them; 1 if one does not hold."""
    from .terminal import progress, show, show_verdicts

    wanted = bars.read()
    with progress(check.steps(wanted, options)) as say:
        results, verdicts = check.check(wanted, options, say)
    show(results)
    show_verdicts(verdicts)
    print(f"Report: {keep(results, options)}")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


def keep(results: Results, options: Options) -> Path:
    """Write results and report; return where the report is."""
    options.out.mkdir(parents=True, exist_ok=True)
    save(results, options.out / report.RESULTS)
    return report.write(results, options.out)


def _rewrite(path: Path) -> int:
    """Write the report of old results again."""
    file = path / report.RESULTS if path.is_dir() else path
    print(f"Report: {report.write(load(file), file.parent)}")
    return 0


def steps(scenarios: Sequence[Scenario], options: Options) -> int:
    """Return how many cases there are to measure."""
    return sum(len(cases_of(scenario, options)) for scenario in scenarios) * options.runs


def say_missing(peers: set[str]) -> None:
    """Say aloud which peers are not here, before anything is measured."""
    for name in sorted(peers & set(NAMES)):
        try:
            PEERS[name].version()
        except PeerMissingError as error:
            print(f"skipped: {name}: {error}", file=sys.stderr)


# --- options


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    whole = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the broker, and its peers.")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = _options()
    for scenario in SCENARIOS.values():
        commands.add_parser(scenario.name, parents=[shared], help=scenario.title, description=scenario.what)
    commands.add_parser(ALL, parents=[shared], help="a short run of all scenarios")
    commands.add_parser("check", parents=[shared], help="measure the ratios that must hold")
    rewrite = commands.add_parser("report", help="write the report of results again")
    rewrite.add_argument("results", type=Path, help="results.json, or the directory that holds it")
    return whole


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    add = options.add_argument
    add("--url", default="", help="a broker that runs already: http(s)://HOST:PORT")
    add("--key", default="", help="a key of it that subscribes and publishes for a whole account")
    add("--storage", default="", metavar="DIR", help="let the broker have its log on disk, a new one in this directory")
    add("--peers", type=_peers, default=NAMES[1:], help=f"all, none, or some of {','.join(NAMES[1:])}")
    add("--seconds", type=_number(0.1, 3600, float), help="how long each case is measured")
    add("--subscribers", type=_sizes, default=(), metavar="N,N", help="sizes: subscribers, inboxes or connections")
    add("--cases", type=_names, default=(), metavar="NAME,NAME", help="only these, by their names in the table")
    add("--rate", type=_number(0.01, 1_000_000, float), help="events, or requests, a second")
    add("--payload-bytes", type=_number(180, 60_000, int), default=200, help="of each event, as JSON")
    add("--runs", type=_number(1, 100, int), default=1, help="of each case; medians are shown")
    add("--processes", type=_number(1, 64, int), default=1, help="that hold the subscribers")
    add("--pin", action="store_true", help="the server on the first core, the generator on the others")
    add("--brief", action="store_true", help="small sizes, short times")
    add("--profile", action="store_true", help="save a profile of each server beside the report")
    add("--out", type=Path, default=OUT, help="directory of results, report and profiles")
    return options


def options_of(given: argparse.Namespace) -> Options:
    """Return the options as scenarios take them."""
    return Options(
        url=given.url,
        key=given.key,
        storage=given.storage,
        peers=given.peers,
        seconds=given.seconds,
        subscribers=given.subscribers,
        cases=given.cases,
        rate=given.rate,
        payload_bytes=given.payload_bytes,
        runs=given.runs,
        processes=given.processes,
        pin=given.pin,
        brief=given.brief or given.command == ALL,
        profile=given.profile,
        out=given.out,
    )


def _peers(text: str) -> tuple[str, ...]:
    if text in ("all", "none"):
        return NAMES[1:] if text == "all" else ()
    names = tuple(text.split(","))
    for name in names:
        if name not in NAMES[1:]:
            raise argparse.ArgumentTypeError(f"{name}: not one of {', '.join(NAMES[1:])}")
    return names


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_number(1, 19_000, int)(part) for part in text.split(","))


def _number(low: float, high: float, kind: type[Any]) -> Any:
    def number(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"from {low:g} to {high:g}")
        return value

    return number
