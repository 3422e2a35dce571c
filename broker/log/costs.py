"""What names cost in a replay window beside the events: each event comes with strings of its own, and shares them then.

Pure. Events of one inbox have one string of its name; those of them that follow each other with one type, one of that.
"""

from collections.abc import Sequence
from typing import Final

from ..protocol.messages import Entry

INBOX_OVERHEAD_BYTES: Final = 170
"""What an inbox costs that has events in the window, beside these and its name."""
NAME_OVERHEAD_BYTES: Final = 50
"""What a name, of an inbox or a type, costs beside its characters: those have no other alphabet than ASCII."""


def name_cost(name: str) -> int:
    """Return what a string of a name costs."""
    return NAME_OVERHEAD_BYTES + len(name)


def inbox_cost(inbox: str) -> int:
    """Return what an inbox costs, its name included."""
    return INBOX_OVERHEAD_BYTES + name_cost(inbox)


def share_names(entries: Sequence[Entry], following: Entry | None) -> int:
    """Give events of one inbox the strings of those behind them; ``following`` comes behind all.

    Returns what the types cost that are then their own.
    """
    cost = 0
    for entry in reversed(entries):
        if following is not None:
            entry.inbox = following.inbox
        if following is not None and entry.type == following.type:
            entry.type = following.type
        else:
            cost += name_cost(entry.type)
        following = entry
    return cost
