"""Sent twice, done once: what became of commands that carried a client's `request_id`, or `once` (PROTOCOL section 4).

Pure: time comes in as an argument. A `Run` is one doing of a command. While it is under way, whoever sends the same
again waits for its outcome; afterwards the outcome is given again, for a time, within a number and a size for each
account. What the handler did not itself decide is not remembered.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from ..errors import RequestError, request_id_reused

MAX_ANSWERS: Final = 10_000
MAX_BYTES: Final = 16_777_216
_FORGET_AT_ONCE: Final = 16
"""Outcomes that are forgotten beside the beginning of a command."""
ONCE_SECONDS: Final = 86_400.0
"""How long the outcome of a command with `once` is given again."""
RUN_OVERHEAD_BYTES: Final = 700
"""What a remembered run costs beside its identity and its outcome."""

Identity = tuple[str, str, str]
"""Who gave the command (`Key.identity`), its `client_id` or "", the `request_id`. Or: inbox, action, `once`."""


class Outcome(Struct, frozen=True):
    """What a command came to: the JSON of its result, or an error. ``lasting``: the handler itself decided it."""

    result: bytes
    error: RequestError | None = None
    lasting: bool = True
    duplicate: bool = False
    """Whether it is told to somebody else than the first who gave a command with `once`."""

    @property
    def size(self) -> int:
        """Bytes of what it says."""
        if self.error is None:
            return len(self.result)
        return len(self.result) + len(self.error.code.encode()) + len(self.error.message.encode())


class Run:
    """One doing of a command. ``replies`` are called with its outcome, once."""

    __slots__ = ("cost", "digest", "ended_at", "identity", "outcome", "remembered", "replies")

    def __init__(self, remembered: "Remembered", identity: Identity | None, digest: bytes) -> None:
        self.remembered = remembered
        self.identity = identity
        self.digest = digest
        self.replies: list[Callable[[Outcome], None]] = []
        self.outcome: Outcome | None = None
        self.ended_at = 0.0
        self.cost = 0


class RememberedStatistics(Struct, frozen=True):
    """What is remembered for one account."""

    under_way: int
    """Runs without an outcome yet."""
    answers: int
    """Outcomes that can be given again."""
    bytes: int
    """What these cost in memory."""


class Remembered:
    """The runs of one account, of one kind of identity. ``seconds`` is how long an outcome is remembered."""

    def __init__(
        self,
        seconds: float,
        *,
        max_answers: int = MAX_ANSWERS,
        max_bytes: int = MAX_BYTES,
        owner: tuple[str, str] = ("", ""),
        forgotten: Callable[[Run], None] | None = None,
    ) -> None:
        self.owner = owner
        """The account, and the kind of identity: `""`, or `"once"`."""
        self._forgotten = forgotten
        """Called with what is remembered no longer."""
        self._seconds = seconds
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._under_way: dict[Identity, Run] = {}
        self._ended: OrderedDict[Identity, Run] = OrderedDict()
        self._bytes = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is remembered."""
        return not self._under_way and not self._ended

    def begin(self, identity: Identity | None, digest: bytes, now: float) -> tuple[Run, bool]:
        """Return the run of a command, and whether it is a new one, which the caller must do and `finish`.

        ``identity`` None: it carries no `request_id` of a client, and is always new. ``digest`` stands for its
        content. Raises `RequestError` (`request_id_reused`) if the same identity came with other content.
        """
        self.forget(now, _FORGET_AT_ONCE)
        if identity is None:
            return Run(self, None, digest), True
        known = self._under_way.get(identity) or self._ended.get(identity)
        if known is not None and self._is_over(known, now):
            self._forget(known)
            known = None
        if known is None:
            run = self._under_way[identity] = Run(self, identity, digest)
            return run, True
        if known.digest != digest:
            raise request_id_reused()
        return known, False

    def finish(self, run: Run, outcome: Outcome, now: float) -> None:
        """Give a run its outcome, tell everybody who waits for it, and remember it if it lasts."""
        run.outcome = outcome
        if run.identity is not None and self._under_way.pop(run.identity, None) is run and outcome.lasting:
            self._remember(run, run.identity, outcome, now)
        replies, run.replies = run.replies, []
        for reply in replies:
            reply(outcome)

    def restore(self, identity: Identity, digest: bytes, outcome: Outcome, ended_at: float) -> None:
        """Remember what a run of another process came to, the one that ended first before the others."""
        run = Run(self, identity, digest)
        run.outcome = outcome
        self._remember(run, identity, outcome, ended_at)

    def _remember(self, run: Run, identity: Identity, outcome: Outcome, ended_at: float) -> None:
        run.ended_at = ended_at
        run.cost = RUN_OVERHEAD_BYTES + outcome.size + sum(map(len, identity))
        self._ended[identity] = run
        self._bytes += run.cost
        while len(self._ended) > self._max_answers or self._bytes > self._max_bytes:
            self._forget(next(iter(self._ended.values())))

    def forget(self, now: float, most: int) -> int:
        """Forget outcomes that are too old, at most so many. Returns how many these were."""
        forgotten = 0
        while forgotten < most and self._ended:
            oldest = next(iter(self._ended.values()))
            if not self._is_over(oldest, now):
                break
            self._forget(oldest)
            forgotten += 1
        return forgotten

    def _is_over(self, run: Run, now: float) -> bool:
        """Whether a run's outcome is too old to be given again."""
        return run.outcome is not None and run.ended_at < now - self._seconds

    def _forget(self, run: Run) -> None:
        assert run.identity is not None
        del self._ended[run.identity]
        self._bytes -= run.cost
        if self._forgotten is not None:
            self._forgotten(run)

    def statistics(self) -> RememberedStatistics:
        """Return what is remembered."""
        return RememberedStatistics(len(self._under_way), len(self._ended), self._bytes)
