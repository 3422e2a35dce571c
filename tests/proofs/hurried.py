"""A broker in a hurry: what it tries again it tries after moments, and a client that does not read is behind soon.

`python -m proofs.hurried serve …` is `broker serve` so. In small steps it does little at a time: more comes between.
"""

import os
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import broker.fanout.follower
import broker.fanout.hub
import broker.transport.listeners
import broker.webhooks.attempts
import broker.webhooks.breaker
from broker.cli.cli import main

MOMENT = 0.05
OFTEN = 100_000
FEW = 2
SMALL_STEPS = "BROKER_SMALL_STEPS"
_FEW_AT_A_TIME = (
    (broker.fanout.hub, "TURN_SECONDS", 0.0),
    (broker.fanout.hub, "BATCH_EVENTS", FEW),
    (broker.fanout.follower, "READ_EVENTS", FEW),
)


@contextmanager
def hurried(small_steps: bool):
    """Let brokers of this process be so while the block lasts."""
    with ExitStack() as stack:
        for module, name, value in (
            *(_FEW_AT_A_TIME if small_steps else ()),
            (broker.transport.listeners, "SEND_BUFFER_BYTES", 4_096),
            (broker.webhooks.attempts, "DELAYS_SECONDS", (MOMENT,) * OFTEN),
            (broker.webhooks.attempts, "MAX_ATTEMPTS", OFTEN + 1),
            (broker.webhooks.breaker, "FIRST_OPEN_SECONDS", MOMENT),
            (broker.webhooks.breaker, "MAX_OPEN_SECONDS", 2 * MOMENT),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield


if __name__ == "__main__":
    with hurried(bool(os.environ.get(SMALL_STEPS))):
        main()
