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


STATEFUL = "tests/proofs/test_stateful.py::TestPromisesInMemory"
ON_DISK = "tests/proofs/test_stateful.py::TestPromisesOnDisk"
AS_A_PROCESS = "tests/proofs/test_stateful.py::TestPromisesKilled"
TWO_NODES = "tests/proofs/test_stateful.py::TestPromisesOfTwoNodes"

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
        "broker/transport/session.py", STATEFUL,
        ("filter: a subscribe with `event_types` replaces the connection's",
         "types = follower.event_filter if params.event_types is None else TypeFilter(params.event_types)",
         "types = follower.event_filter"),
    ),
    *_in(
        "broker/fanout/follower.py", STATEFUL,
        ("filter: it holds for replayed events",
         "entries = [entry for entry in entries if event_filter.accepts(entry.type)]", "entries = list(entries)"),
    ),
    *_in(
        "broker/fanout/listeners.py", STATEFUL,
        ("filter: it holds for live events",
         "return bool(self.members) and (self.event_filter is None or self.event_filter.accepts(entry.type))",
         "return bool(self.members)"),
    ),
    *_in(
        "broker/transport/life.py", STATEFUL,
        ("drain: everything up to the head is sent before the close",
         "await self._account.passed(self._account.buffer.head)\n                await self.until(written)",
         "pass"),
    ),
]  # fmt: skip

OWED = [
    *_in(
        "broker/log/jobs.py", ON_DISK,
        ("lease: of a line one event at a time is given",
         "behind = bool(key) and (key in taken or _first(connection, intake.queue, key, HEAD) is not None)",
         "behind = False"),
        ("lease: what was not acknowledged in time comes again",
         "WHERE queue = ? AND state = 'leased' AND until <= ?\"\n        \" ORDER BY until LIMIT ?\"",
         "WHERE queue = ? AND state = 'leased' AND until <= ? - 3600\"\n        \" ORDER BY until LIMIT ?\""),
        ("lease: what is acknowledged never comes again",
         'end_job(connection, row[0], row[1], "acked", now, None)',
         '_fall_back(connection, Terms(row[0], 1000, False), row[1], row[2], now, now, None)'),
        ("lease: what is given back comes again",
         "if attempts >= terms.max_attempts:", "if attempts >= 1:"),
        ("lease: who goes for good has not tried",
         "SET state = 'waiting', attempts = attempts - 1, lease_id = NULL", "SET state = 'waiting', lease_id = NULL"),
    ),
    *_in(
        "broker/queues/giving.py", ON_DISK,
        ("fence: a command by a lease that is over is not done",
         "return until is not None and until > self._backlog.wall_clock()", "return True"),
    ),
    *_in(
        "broker/transport/connection.py", ON_DISK,
        ("lease: it is its id, and no connection",
         "if self._life.ending.code is None and self._life.ending.close_code in _FOR_GOOD:", "if True:"),
        ("lease: who goes for good leaves what it has to others at once",
         "if self._life.ending.code is None and self._life.ending.close_code in _FOR_GOOD:", "if False:"),
    ),
    *_in(
        "broker/webhooks/posting.py", ON_DISK,
        ("webhook: what an endpoint refused is posted again",
         "due_at = None if outcome.status == GONE else verdict.due_at",
         "due_at = None if outcome.status else verdict.due_at"),
    ),
    *_in(
        "broker/log/letters.py", ON_DISK,
        ("webhook: each inbox in order, where that is promised",
         "behind = inbox in taken or head_of(connection, webhook, inbox) is not None", "behind = inbox in taken"),
        ("webhook: what an endpoint has taken is not posted again",
         "UPDATE letters SET state = 'sending', attempts", "UPDATE letters SET state = state, attempts"),
        ("webhook: an endpoint gets what is for it, and nothing else",
         "if entry.inbox not in self.selection or not (self.types is None or self.types.accepts(entry.type)):",
         "if entry.inbox not in self.selection:"),
    ),
    *_in(
        "broker/log/letterbook.py", AS_A_PROCESS,
        ("kill: what was being posted is posted again",
         "SELECT webhook, position FROM letters WHERE state = 'sending' LIMIT ?",
         "SELECT webhook, position FROM letters WHERE state = 'gone' LIMIT ?"),
    ),
    *_in(
        "broker/log/database.py", AS_A_PROCESS,
        ("kill: cursors go on",
         'meta["synchronous"] == "normal" and not same_boot', 'meta["synchronous"] == "normal"'),
    ),
    *_in(
        "broker/log/writing.py", AS_A_PROCESS,
        ("kill: what is answered is committed",
         'self._connection.execute("COMMIT")', 'self._connection.execute("COMMIT" if len(group) > 1 else "ROLLBACK")'),
    ),
]  # fmt: skip

SHARED = [
    *_in(
        "broker/log/engines/valkey/storing.py", TWO_NODES,
        ("nodes: an id is published once, whichever node it is sent to",
         "local before = here[identity] or seen[(at + 3) / 4 + 3]", "local before = here[identity]"),
    ),
    *_in(
        "broker/log/engines/valkey/scripts.py", TWO_NODES,
        ("nodes: what a node did not see comes in order",
         "for j = #back, 1, -1 do page[#page + 1] = back[j] end", "for j = 1, #back do page[#page + 1] = back[j] end"),
    ),
    *_in(
        "broker/log/engines/valkey/tail.py", TWO_NODES,
        ("nodes: what was not sent along is read", "if not entries and not message.startswith(b\"h\"):", "if not entries:"),
    ),
    *_in(
        "broker/access/claims.py", TWO_NODES,
        ("nodes: who is taken over at another is closed",
         """redis.call('PUBLISH', ARGV[2] .. node, '["replaced","' .. token .. '"]')""", ""),
    ),
    *_in(
        "broker/fanout/shared.py", TWO_NODES,
        ("nodes: a client comes back anywhere where it acknowledged",
         "self._acknowledged.put(client.account_id, client.digest, int(position))", "pass"),
    ),
]  # fmt: skip

MUTATIONS = END_TO_END + OWED + SHARED
