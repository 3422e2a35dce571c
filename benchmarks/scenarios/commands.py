"""commands: how many commands a second are answered over sockets, and how soon."""

from ..options import OURS, Options
from ..results import Column, Row
from .asking import LATENCY_AT_HALF, Load, ask
from .scenario import Case, Scenario

SIZES, BRIEF_SIZES = (1, 10, 100), (1, 100)
MOST_CONNECTIONS = 500
"""The publisher waits by select(), which sees a thousand descriptors."""
UNDER_WAY = 8
"""Commands of each connection in the closed loop, at most."""
UNDER_WAY_IN_ALL = 256


def cases(options: Options) -> list[Case]:
    """Return each number of connections; the broker alone has commands."""
    sizes = [min(size, MOST_CONNECTIONS) for size in options.sizes(SIZES, BRIEF_SIZES)]
    return [Case(OURS, f"{size} connections", size) for size in dict.fromkeys(sizes)]


def measure(options: Options, case: Case) -> list[Row]:
    """Measure the command that the broker answers itself: what any other costs before its handler is asked."""
    broker = options.broker()
    with broker.open(options.where.servers, 1) as opened:
        running, command = broker.pinging(opened)
        window = max(1, min(UNDER_WAY, UNDER_WAY_IN_ALL // case.size))
        return [ask(options, case, running, Load(command, case.size, window), f"commands-{case.size}")]


SCENARIO = Scenario(
    name="commands",
    title="Commands, answered",
    what=(
        "Clients keep a fixed number of `ping` commands under way, which finds how many are answered a second. "
        "Then commands are due at fixed times, half as many, and the latency counts from when each was due."
    ),
    columns=(Column("per_second", "round trips/s", 0, "higher"), *LATENCY_AT_HALF),
    headline="per_second",
    cases=cases,
    measure=measure,
    scale="connections",
)
