"""Of the connection and its stream: what is written first, who is ended by what, who is taken for dead."""

from proofs.mutants.mutant import Mutant, of

CONNECTION = "tests/transport/test_connection.py"

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
         "                await self._stream.send_frames(self.session.take_answers())\n", ""),
        ("the broker says why it closes",
         "                    await self._stream.send_all(close_frame(self._life.ending.close))\n", ""),
        ("too many frames that are no commands end the connection",
         '                self.end(action, "too many frames that are no commands")\n', "                pass\n"),
    ),
]  # fmt: skip
"""Each is wrong by one small thing."""
