"""The fan-out benchmark: one event to N subscribers, until the last one has it, beside the kernel's floor.

Each run starts afresh the floor and the broker, each with N subscribers of the same program, and lets them take
turns, one round each, so that the machine's moods hit both. Only the ratio of one run means anything; the last
line is the median of the runs. ``--neighbour`` measures instead what such broadcasts cost another account.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .children import ChildError
from .figures import Summary, summarise, table
from .machine import Others
from .neighbour import Latencies, Load, measure
from .sides import Delivery, Placement, open_account, open_broker_child, open_floor, placement

FANOUT_BAR = 1.25
NEIGHBOUR_BAR_MS = 2.0


@dataclass(frozen=True)
class Half:
    """One side's rounds of a run: milliseconds, and the server's processor time for each delivery."""

    rounds: Summary
    processor_us: float

    @classmethod
    def of(cls, deliveries: Sequence[Delivery], connections: int) -> "Half":
        used = sum(delivery.processor_ns for delivery in deliveries)
        each = used / 1000 / len(deliveries) / connections
        return cls(summarise([delivery.nanoseconds for delivery in deliveries]), each)


@dataclass(frozen=True)
class Run:
    """One run: both sides."""

    floor: Half
    broker: Half
    floor_language: str
    frame_bytes: int

    @property
    def ratio(self) -> float:
        return self.broker.rounds.median / self.floor.rounds.median


def run_once(options: argparse.Namespace, where: Placement) -> Run:
    """Start everything, warm up, and let the floor and the broker take turns."""
    with (
        open_floor(options.connections, where) as (language, floor),
        open_broker_child(options.payload_bytes, where) as (server, port),
        open_account(server, port, "bench", options.connections, where) as broker,
    ):
        frame_bytes = broker.deliver().frame_bytes
        floors: list[Delivery] = []
        brokers: list[Delivery] = []
        for _ in range(options.warm_up + options.rounds):
            time.sleep(options.pause_ms / 1000)
            floors.append(floor.deliver(frame_bytes))
            time.sleep(options.pause_ms / 1000)
            brokers.append(broker.deliver())
            frame_bytes = brokers[-1].frame_bytes
        floor_half = Half.of(floors[options.warm_up :], options.connections)
        broker_half = Half.of(brokers[options.warm_up :], options.connections)
        return Run(floor_half, broker_half, language, frame_bytes)


def fan_out(options: argparse.Namespace, where: Placement) -> tuple[dict[str, Any], bool]:
    """Measure and print the fan-out; return the figures and whether the bar holds."""
    runs: list[Run] = []
    for number in range(1, options.runs + 1):
        print(f"run {number} of {options.runs} …", file=sys.stderr)
        runs.append(run_once(options, where))
    ratio = median(run.ratio for run in runs)
    holds = ratio <= FANOUT_BAR
    language = runs[0].floor_language
    print(
        f"One event to {options.connections} subscribers, {runs[0].frame_bytes}-byte frames, "
        f"{options.rounds} rounds a run, {'pinned' if where.servers else 'not pinned'}; "
        f"from the publish call until the last one has it. The floor is a loop over send() in {language}."
    )
    if language != "C":
        print("NO C COMPILER: this floor is slower than the kernel's, and the ratio flatters the broker.")
    print(_table_of(runs, options.connections))
    print(
        f"broker / floor, median of the runs: {ratio:.3f} (bar: {FANOUT_BAR}) {'holds' if holds else 'DOES NOT HOLD'}"
    )
    figures = {
        "connections": options.connections,
        "pinned": where.servers is not None,
        "ratio": ratio,
        "holds": holds,
        "runs": [asdict(run) | {"ratio": run.ratio} for run in runs],
    }
    return figures, holds


def _table_of(runs: Sequence[Run], connections: int) -> str:
    """Return two lines for each run; what is per delivery comes first, then what is of the whole round."""
    head = ["run", "side", "µs/delivery", "server cpu µs", "min ms", "median ms", "p99 ms", "max ms", "ratio"]
    rows: list[list[str]] = []
    for number, run in enumerate(runs, start=1):
        for side, half, ratio in (("floor", run.floor, ""), ("broker", run.broker, f"{run.ratio:.3f}")):
            whole = half.rounds
            each = [f"{whole.median * 1000 / connections:.2f}", f"{half.processor_us:.2f}"]
            cells = [f"{cell:.2f}" for cell in (whole.minimum, whole.median, whole.p99, whole.maximum)]
            rows.append([str(number), side, *each, *cells, ratio])
    return table(head, rows)


def neighbour(options: argparse.Namespace, where: Placement) -> tuple[dict[str, Any], bool]:
    """Measure and print the neighbour's latencies; return the figures and whether the bar holds."""
    result = measure(options.connections, options.samples, options.payload_bytes, where)
    rows: list[list[str]] = []
    figures: dict[str, Any] = {"connections": options.connections, "pinned": where.servers is not None}

    def add(label: str, latencies: Latencies, load: Load | None) -> Summary:
        call, asking = summarise(latencies.from_call), summarise(latencies.from_asking)
        rate = load.broadcasts / load.seconds if load else 0.0
        figures[label] = {"call": asdict(call), "asking": asdict(asking), "broadcasts_per_second": rate}
        cells = [f"{cell:.3f}" for cell in (call.median, call.p99, call.maximum, asking.p99)]
        rows.append([label, *cells, f"{rate:.0f}" if load else "-"])
        return call

    alone = add("alone", result.alone, None)
    machine = add("beside the floor's broadcast", result.beside_floor, result.floor_load)
    busy = add("beside the broker's broadcast", result.beside_broadcast, result.broker_load)
    added = busy.p99 - alone.p99
    holds = added <= NEIGHBOUR_BAR_MS
    print(
        f"An account with one subscriber, {alone.count} events each; beside it, broadcasts to "
        f"{options.connections} subscribers of another account, without a break."
    )
    print(table(["neighbour", "median ms", "p99 ms", "max ms", "p99 ms from asking", "broadcasts/s"], rows))
    print(
        f"added to the neighbour's p99: {added:.3f} ms (bar: {NEIGHBOUR_BAR_MS:g} ms) "
        f"{'holds' if holds else 'DOES NOT HOLD'}; a broadcast that is not the broker's adds "
        f"{machine.p99 - alone.p99:.3f} ms"
    )
    figures |= {"added_p99_ms": added, "holds": holds}
    return figures, holds


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fanout", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--connections", type=_within(1, 19_000), default=1000, help="subscribers of the broadcast")
    parser.add_argument("--rounds", type=_within(1, 100_000), default=200, help="rounds of each side in a run")
    parser.add_argument("--runs", type=_within(1, 100), default=5, help="runs, each with fresh processes")
    parser.add_argument("--warm-up", type=_within(0, 1000), default=20, help="rounds before, not counted")
    parser.add_argument("--pause-ms", type=_within(0, 1000), default=5, help="before each round")
    parser.add_argument("--payload-bytes", type=_within(160, 60_000), default=200, help="the event's payload, as JSON")
    parser.add_argument("--pin", action="store_true", help="servers on the first core, subscribers on the others")
    parser.add_argument("--neighbour", action="store_true", help="measure another account's latency instead")
    parser.add_argument("--samples", type=_within(100, 100_000), default=2000, help="of the neighbour, in each state")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the bar does not hold")
    return parser.parse_args(arguments)


def _within(low: int, high: int) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"from {low} to {high}")
        return value

    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    options = parse(arguments)
    try:
        with Others() as others:
            figures, holds = (neighbour if options.neighbour else fan_out)(options, placement(options.pin))
    except ChildError as error:
        print(f"fanout: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(others)
    figures["cores_of_other_processes"] = others.cores
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if options.check and not holds else 0


if __name__ == "__main__":
    sys.exit(main())
