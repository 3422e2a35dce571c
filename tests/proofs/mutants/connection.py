# ruff: noqa: E501
"""Of the connection and its stream: what is written first, who is ended by what, who is taken for dead."""

from proofs.mutants.mutant import Mutant, of

CONNECTION = "tests/transport/test_connection.py"
DRAINING = "tests/transport/test_draining.py"

MUTANTS: list[Mutant] = [
    *of(
        "broker/transport/connection.py", CONNECTION,
        ("who has caught up can be woken again",
         "        finally:\n            self._writing = False\n", "        finally:\n            pass\n"),
        ("a client that is congested is not read from",
         "                if self.session.congested:\n", "                if False:\n"),
        ("a client that does not answer the upgrade is let go",
         "with trio.move_on_after(HANDSHAKE_SECONDS):", "with trio.move_on_after(1e6):"),
        ("a message that was begun and not finished ends the connection",
         "        if owed > patience:\n", "        if False:\n"),
        ("a client that is dead is ended",
         "        if session.overdue(silent, unacknowledged):\n", "        if False:\n"),
        ("answers that wait are the last words",
         "self._stream.send_last(answers, close_frame(close))", 'self._stream.send_last(b"", close_frame(close))'),
        ("the broker says why it closes",
         "self._stream.send_last(answers, close_frame(close))", "self._stream.send_frames(answers)"),
        ("too many frames that are no commands end the connection",
         '                self.end(action, "too many frames that are no commands")\n', "                pass\n"),
    ),
    *of(
        "broker/transport/connection.py", DRAINING,
        ("a drain waits for what is asked of queues",
         "self._waits or self._working)", "self._waits)"),
        ("a drain waits for what is acknowledged",
         "busy = self._writing or self._life.feeding or self._acknowledging", "busy = self._writing or self._life.feeding"),
        ("a drain waits for commands that are under way",
         "return not (busy or self._lane.waiting or", "return not (busy or"),
        ("a drain waits for those who wait for an event",
         "self._lane.waiting or self._waits or self._working)", "self._lane.waiting or self._working)"),
    ),
    *of(
        "broker/transport/connection.py", "tests/transport/test_older_events.py",
        ("names that are not followed after all are given back",
         "            self.session.naming.recount(self.session.key)\n", ""),
        ("a drain waits until older events are read",
         "busy = self._writing or self._life.feeding or", "busy = self._writing or"),
    ),
    *of(
        "broker/transport/connection.py", "tests/transport/test_last_words.py",
        ("a drain waits until a client that has fallen behind has caught up",
         "busy = self._writing or self._life.feeding or", "busy = self._life.feeding or"),
    ),
    *of(
        "broker/transport/life.py", "tests/transport/test_last_words.py",
        ("a drain waits until all up to the head is delivered",
         "                await self._account.passed(self._account.buffer.head)\n", ""),
    ),
    *of(
        "broker/transport/life.py", DRAINING,
        ("a drain waits until nothing is under way",
         "                say()\n                await self.until(written)\n", "                say()\n"),
    ),
]  # fmt: skip
"""Each is wrong by one small thing."""
