"""Answers that outlive the process: kept in the log on disk before they are told, and taken back at the start."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from ..errors import RequestError
from ..log.engines.answers import AnswerKey, KeptAnswer, forget_answers, read_answers, write_answers
from ..log.storage import Storage
from .remembered import Outcome, Run

ANSWER_SECONDS: Final = 86_400.0
"""How long answers are remembered where a restart does not forget them."""
_RESTORE_ROWS: Final = 512


class KeptAnswers:
    """What is remembered of commands, on disk. ``clock`` is monotonic, ``wall_clock`` returns seconds since 1970."""

    def __init__(self, storage: Storage, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self._storage = storage
        self._clock = clock
        self._wall_clock = wall_clock

    async def keep(self, run: Run, outcome: Outcome) -> None:
        """Keep what a run has come to. If that cannot be written, it is remembered by this process alone."""
        key = _key_of(run)
        if key is None or not outcome.lasting:
            return
        answer = KeptAnswer(key, run.digest, self._wall_clock(), outcome.result, outcome.error)
        with suppress(RequestError):  # the storage says why; who gave the command is to hear what it came to
            await self._storage.write_together(write_answers, answer)

    def forget(self, run: Run) -> None:
        """Keep no longer what is remembered no longer."""
        key = _key_of(run)
        if key is not None:
            self._storage.begin_together(forget_answers, key, _ignore)

    async def restore(self, remember: Callable[[AnswerKey, bytes, Outcome, float], None]) -> None:
        """Let all that is kept be remembered: ``remember(key, digest, outcome, ended_at)``, by the monotonic clock."""
        offset = self._clock() - self._wall_clock()
        after = 0
        while page := await self._storage.read(partial(read_answers, after=after, most=_RESTORE_ROWS)):
            for after, answer in page:  # noqa: B007
                outcome = Outcome(answer.result, answer.error)
                remember(answer.key, answer.digest, outcome, min(answer.ended_at + offset, self._clock()))
            await trio.lowlevel.checkpoint()


def _key_of(run: Run) -> AnswerKey | None:
    if run.identity is None:
        return None
    account_id, kind = run.remembered.owner
    return AnswerKey(account_id, kind, run.identity)


def _ignore(_: object) -> None:
    pass
