# ruff: noqa: E501
"""Of queues: who is given what, in which order, whose a lease is, when an event is dead."""

from proofs.mutants.mutant import Mutant, of

MUTANTS: list[Mutant] = [
    *of(
        "broker/log/jobs.py", "tests/log/test_jobs.py",
        ("a queue gets events of its inboxes alone",
         "if entry.inbox not in self.selection or not (self.types", "if not (self.types"),
        ("a queue gets events of its types alone",
         "or not (self.types is None or self.types.accepts(entry.type)):", "or False:"),
        ("a queue gets nothing that tells of queues",
         'return not entry.type.startswith("queue.")', "return True"),
        ("events of one thread are given one after the other",
         "behind = bool(key) and (key in taken or _first(connection, intake.queue, key, HEAD) is not None)", "behind = bool(key) and key in taken"),
        ("without order nobody stands in line",
         '    if order == "none":\n        return b""\n', ""),
        ("who is in a thread stands in its line",
         '            name = f"thread {message.thread_id}"\n', "            pass\n"),
        ("who did the last of a thread is given the next, if it waits",
         'move_up(connection, queue, key, holder if state == "acked" else "")', "move_up(connection, queue, key)"),
        ("a lease is given to who has room",
         "            room[worker.ticket] -= 1\n", ""),
        ("large events are given a few at a time",
         "        if worker is None or size >= GRANT_BYTES:\n", "        if worker is None:\n"),
        ("what is due later is not given",
         '" AND due_at <= ? ORDER BY due_at, position LIMIT ?"\n    )\n    size', '" AND (due_at <= ? OR 1) ORDER BY due_at, position LIMIT ?"\n    )\n    size'),
        ("an attempt is counted when it is given",
         "position, attempts + 1, worker, now, new_id, content)", "position, attempts or 1, worker, now, new_id, content)"),
        ("a lease whose time is over is over",
         "AND state = 'leased' AND until <= ?\"\n        \" ORDER BY", "AND state = 'leased' AND until < ? - 1\"\n        \" ORDER BY"),
        ("after its last attempt an event is dead",
         "    if attempts >= terms.max_attempts:\n", "    if attempts > terms.max_attempts:\n"),
    ),
]  # fmt: skip
"""Each is wrong by one small thing."""
