# ruff: noqa: E501
"""Small mistakes for the state machine of `test_stateful`, which knows nothing of the inside: it is to find them.

A mistake is made by `mutating`, which says what to do with this list. Those that other tests are to find are in `mutants`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One mistake.

    Args:
        file: from the root of the tree.
        old: what stands there, once.
        new: what is wrong.
        promise: what it breaks.
        tests: what finds it: paths for pytest, with a space between two.
    """

    file: str
    old: str
    new: str
    promise: str
    tests: str


def _in(file: str, tests: str, *made: tuple[str, str, str]) -> list[Mutation]:
    return [Mutation(file, old, new, promise, tests) for promise, old, new in made]


STATEFUL = "tests/proofs/test_stateful.py"

END_TO_END = [
    *_in(
        "broker/fanout/listeners.py", STATEFUL,
        ("isolation: an event is for those alone who hold its inbox",
         "return (groups, *self._of_all) if isinstance(groups, Group) else (*groups, *self._of_all)",
         "return tuple(self._by_key.values())"),
        ("fan-out: an event is for all who hold everything, too",
         "return (groups, *self._of_all) if isinstance(groups, Group) else (*groups, *self._of_all)",
         "return (groups,) if isinstance(groups, Group) else tuple(groups) or tuple(self._of_all)"),
    ),
    *_in(
        "broker/fanout/subscriptions.py", STATEFUL,
        ("fan-out: of a batch all frames are written",
         'Delivery(group.snapshot(), b"".join(joined)', 'Delivery(group.snapshot(), b"".join(joined[:5])'),
        ("position: a newcomer begins where the fan-out is",
         "listener.position = listener.told = self.position", "listener.position = listener.told = self.position - 1"),
    ),
    *_in(
        "broker/fanout/follower.py", STATEFUL,
        ("gap: a gap is counted exactly",
         "return Gap(from_, to, count)", "return Gap(from_, to, count and count + 1)"),
        ("gap: what was dropped before it could be sent is said",
         "            if isinstance(following, Gap):\n",
         "            if isinstance(following, Gap):\n                following = []\n"),
        ("gap: a replay from beyond the window is not called whole",
         "return Replay(gap is None, count + self._buffer.count(selection, position, max(through, position))), gap",
         "return Replay(True, count + self._buffer.count(selection, position, max(through, position))), gap"),
        ("cursor: a cursor is never ahead of what was sent",
         "return self._replays.position if self._replays else self.position",
         "return self._buffer.head"),
        ("replay: a subscribe with `since` brings what came after it",
         "self._replays.begin(added, position, through)", "self._replays.begin(added, position + 1, through)"),
    ),
    *_in(
        "broker/log/replay.py", STATEFUL,
        ("dedupe: an id is published once while the window holds it",
         "if entry is not None and entry.inbox == inbox:\n            return entry",
         "if entry is not None and entry.inbox == inbox:\n            return None"),
        ("position: a bounded read says how far it went",
         "return entries, entries[-1].position", "return entries, reached"),
        ("gap: dropped are the oldest, as many as are too many",
         "self.start += 1\n", "self.start += 1 + (len(self.items) - self.start > 20)\n"),
    ),
    *_in(
        "broker/transport/stream.py", STATEFUL,
        ("remainder: what the kernel did not take is written first",
         "self._remainder = memoryview(bytes(self._remainder) + data) if self._remainder else memoryview(data)",
         "self._remainder = memoryview(data)"),
        ("remainder: the rest begins where the kernel stopped",
         "memoryview(data)[taken if self._tls is None else SEALED_BYTES :]",
         "memoryview(data)[taken + 1 if self._tls is None else SEALED_BYTES :]"),
    ),
    *_in(
        "broker/transport/session.py", STATEFUL,
        ("isolation: a key that reaches less loses what it held",
         "self.follower.change(kept, self.follower.event_filter)", "pass"),
        ("unsubscribe: after its answer nothing of the inbox comes",
         "kept = Selection(held.inboxes - frozenset(params.inbox_ids))", "kept = held"),
    ),
    *_in(
        "broker/transport/life.py", STATEFUL,
        ("drain: everything up to the head is sent before the close",
         "await self._account.passed(self._account.buffer.head)\n                await self.until(written)",
         "pass"),
    ),
]  # fmt: skip


MUTATIONS = END_TO_END
