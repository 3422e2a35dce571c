"""What nodes share beside their logs: slots, commands, acknowledged positions; by the server of their engine."""

import trio
from msgspec import Struct

from .access.admission import examine
from .access.claims import NodeSlots
from .commands.sharing import SharedAnswers
from .fanout.acknowledged import Acknowledged
from .fanout.handed import Handing
from .fanout.shared import SharedPositions
from .log.engines import Engine
from .nodes import Wire


class Joined(Struct, frozen=True):
    """What this node shares with others. Its positions run where acknowledgements are kept."""

    slots: NodeSlots
    answers: SharedAnswers
    positions: SharedPositions
    handing: Handing
    wire: Wire

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the tasks of all but the positions, for ever."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.slots.run)
            await nursery.start(self.answers.run)
            await nursery.start(self.handing.run)
            task_status.started()


def join(engine: Engine, answer_seconds: float, acknowledged: Acknowledged) -> Joined | None:
    """Return what the nodes of an engine share; None: this one is alone."""
    wire: Wire | None = getattr(engine, "wire", None)
    if wire is None:
        return None
    slots, answers = NodeSlots(wire, examine), SharedAnswers(wire, answer_seconds)
    positions = SharedPositions(acknowledged, wire)
    return Joined(slots, answers, positions, Handing(wire), wire)
