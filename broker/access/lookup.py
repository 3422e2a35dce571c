"""Keys that the configuration does not hold: the operator's API, or a function of the library, knows them.

What it said is kept for as long as it said; while it gives no answer, what it said last holds, and who was never
asked for is refused (PROTOCOL section 8, `[access]`). One question is under way for each key, and 32 in all: clients
share them by their addresses, so that nobody who tries keys keeps the others waiting.
"""

import ipaddress
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Final

import msgspec
import trio
from msgspec import Meta, Struct

from ..callout import Callout, NoAnswerError, Outage, decode_answer
from ..errors import RequestError, first_of, part_from_frames
from ..fairness import FairLimiter
from ..protocol.names import Identifier, InboxId, Scope, Tier
from ..turns import Turns
from .keys import Key

logger = logging.getLogger(__name__)

MAX_ASKING: Final = 32
MAX_WAITING: Final = 1_000
"""Questions for clients that want to come in, under way or waiting to be; the next one is refused."""
MAX_KEPT: Final = 10_000
"""Answers of each kind, known and not known, that are kept; the ones not used for longest go first."""
MAX_KEPT_BYTES: Final = 134_217_728
"""What the known ones may take in memory, with the inboxes that they reach: likewise."""
_KEY_BYTES, _INBOX_BYTES = 1_000, 120
"""What a key takes, and one of its inboxes beside its name."""
UNKNOWN_SECONDS: Final = 10.0
"""How long a key that is not known is refused without a question."""
RETRY_SECONDS: Final = 10.0
"""How long nobody is asked again for a key, after no answer came."""
SHARED_PREFIX_BITS: Final = 64
"""Of an IPv6 address: what one who has any has for himself, and can ask from."""
_YEAR: Final = 31_536_000


class AccessAnswer(Struct, frozen=True):
    """Whose a key is, and what it reaches: ``inbox_ids`` None is the whole account."""

    account_id: Identifier
    tier: Tier
    key_id: Identifier
    scopes: list[Scope]
    inbox_ids: list[InboxId] | None
    ttl_seconds: Annotated[int, Meta(gt=0, le=_YEAR)] | Annotated[float, Meta(gt=0, le=_YEAR)]
    """For how long this may be believed."""


AskAccess = Callable[[str, str | None], Awaitable[AccessAnswer | None]]
"""Asked with a key's SHA-256 (lower-case hex) and the client's address; returns None for a key that is not known.

Whatever it raises is no answer.
"""


class Kept(Struct):
    """What was said of a key; ``key`` None: that it is not known."""

    key: Key | None
    until: float
    """By trio's clock: when it is to be asked for again."""
    bytes: int = _KEY_BYTES
    """What it takes in memory."""


class _Answers:
    """Answers of one kind, as many as may be kept; those used last stand last."""

    def __init__(self) -> None:
        self._by_digest: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._by_digest)

    def get(self, digest: str) -> Kept | None:
        """Return what was said of a key."""
        return self._by_digest.get(digest)

    def use(self, digest: str, kept: Kept) -> None:
        """Keep an answer as the one used last."""
        self.drop(digest)
        self._by_digest[digest] = kept
        self._bytes += kept.bytes
        while len(self) > MAX_KEPT or (self._bytes > MAX_KEPT_BYTES and len(self) > 1):
            self.drop(next(iter(self._by_digest)))

    def drop(self, digest: str) -> None:
        """Keep nothing of a key."""
        kept = self._by_digest.pop(digest, None)
        if kept is not None:
            self._bytes -= kept.bytes


class _Question:
    """One question under way; everybody who waits for it gets its answer."""

    def __init__(self, remote: str | None, who: str | None, ended: Callable[[], None]) -> None:
        self.remote = remote
        self.who = who
        """Who shares the questions that are asked at once with the others; None: bounded by their number alone."""
        self.ended = ended
        self.answered = trio.Event()
        self.answer: Kept | None = None
        """None: there is no answer."""


class LookupStatistics(Struct, frozen=True):
    """What is known from outside."""

    known: int
    """Keys that are kept."""
    unknown: int
    """Keys that are kept as not known."""
    asking: int
    """Questions under way, or waiting to be."""


class Lookup:
    """Asks ``ask``, within ``timeout_seconds`` for each key."""

    def __init__(self, ask: AskAccess, timeout_seconds: float) -> None:
        self._ask = ask
        self._timeout_seconds = timeout_seconds
        self._turns = FairLimiter(MAX_ASKING)
        self._room = FairLimiter(MAX_WAITING)
        self._begin_in_turn = Turns()
        self._known, self._unknown = _Answers(), _Answers()
        self._questions: dict[str, _Question] = {}
        self._nursery: trio.Nursery | None = None
        self._outage = Outage(
            logger,
            ceased="nobody says whose keys are (%s): unknown ones are refused, known ones hold",
            resumed="whose keys are is said again",
            misunderstood="the answer to whose a key is was not understood: %s",
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask what is to be asked, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def kept(self, digest: str) -> Kept | None:
        """Return what was last said of a key: that it is known, however long ago; that it is not, for its time."""
        known, unknown = self._known.get(digest), self._unknown.get(digest)
        if known is None and unknown is not None and trio.current_time() >= unknown.until:
            self._unknown.drop(digest)
            return None
        return known or unknown

    async def find(self, digest: str, remote: str | None) -> Kept:
        """Return what is said of a key, for a client at this address (None: not known).

        Raises `RequestError` (`unavailable`) if nobody says anything.
        """
        kept = self.kept(digest)
        if kept is not None and trio.current_time() < kept.until:
            self._use(digest, kept)
            return kept
        answer = await self._ask_for_client(digest, remote)
        if answer is None:
            kept = self._known.get(digest)
            if kept is None:
                raise RequestError("unavailable", "The key cannot be checked now")
            kept.until = trio.current_time() + RETRY_SECONDS
            return kept
        return answer

    async def _ask_for_client(self, digest: str, remote: str | None) -> Kept | None:
        """Ask for a key as `ask` does, unless too many questions wait: then there is no answer."""
        if digest not in self._questions:
            who = share_of(remote)
            if not self._room.take_nowait(who):
                return None
            self._begin(digest, remote, who, partial(self._room.give_back, who))
        return await self.ask(digest, remote)

    async def ask(self, digest: str, remote: str | None) -> Kept | None:
        """Ask for a key, or wait for the answer to a question under way; None: there is no answer."""
        question = self._questions.get(digest) or self._begin(digest, remote, None, _nothing)
        await question.answered.wait()
        return question.answer

    def _begin(self, digest: str, remote: str | None, who: str | None, ended: Callable[[], None]) -> _Question:
        """Ask for a key in a task of its own: the answer is kept though whoever wants it has gone."""
        question = self._questions[digest] = _Question(remote, who, ended)
        assert self._nursery is not None
        self._nursery.start_soon(self._answer, digest, question)
        return question

    async def _answer(self, digest: str, question: _Question) -> None:
        """Ask, and give everybody who waits the answer, or none."""
        failure: BaseException | None = None
        try:
            with trio.move_on_after(self._timeout_seconds):
                async with self._turns.place(question.who):
                    # Places are free at once where the time of those who had them was over at once.
                    await self._begin_in_turn.take(question.who)
                    failure = TimeoutError(f"no answer within {self._timeout_seconds} s")
                    question.answer, failure = await self._said_of(digest, question.remote)
            if question.answer is not None:
                self._use(digest, question.answer)
                self._outage.answered()
            elif isinstance(failure, msgspec.ValidationError):
                self._outage.not_understood(failure)
            elif failure is not None:
                self._outage.no_answer(failure)
        finally:
            if failure is not None:
                part_from_frames(failure)
            del self._questions[digest]
            question.ended()
            question.answered.set()

    async def _said_of(self, digest: str, remote: str | None) -> tuple[Kept | None, BaseException | None]:
        """Ask; return what was said, or why nothing was."""
        failure = None
        try:
            answer = checked(await self._ask(digest, remote))
        except* Exception as group:
            failure = first_of(group)
        if failure is not None:
            return None, failure
        now = trio.current_time()
        if answer is None:
            return Kept(None, now + UNKNOWN_SECONDS), None
        return Kept(_key_of(answer, digest), now + answer.ttl_seconds, _bytes_of(answer)), None

    def _use(self, digest: str, kept: Kept) -> None:
        """Keep an answer as the one used last."""
        answers, others = (self._unknown, self._known) if kept.key is None else (self._known, self._unknown)
        others.drop(digest)
        answers.use(digest, kept)

    def statistics(self) -> LookupStatistics:
        """Return what is known from outside."""
        return LookupStatistics(len(self._known), len(self._unknown), len(self._questions))


def _nothing() -> None:
    """Nobody is to be told of the end of a question."""


def share_of(remote: str | None) -> str | None:
    """Return who an address stands for: itself, of IPv6 its network of 64 bits; None if it is not known."""
    if remote is None or ":" not in remote:
        return remote
    try:
        return str(ipaddress.IPv6Network((remote.partition("%")[0], SHARED_PREFIX_BITS), strict=False))
    except ValueError:
        return remote


def checked(answer: Any) -> AccessAnswer | None:
    """Return an answer if it is one. Raises `msgspec.ValidationError` that names the field."""
    return None if answer is None else msgspec.convert(msgspec.to_builtins(answer), AccessAnswer)


def _key_of(answer: AccessAnswer, digest: str) -> Key:
    inbox_ids = None if answer.inbox_ids is None else frozenset(answer.inbox_ids)
    return Key(answer.key_id, answer.account_id, frozenset(answer.scopes), inbox_ids, answer.tier, digest)


def _bytes_of(answer: AccessAnswer) -> int:
    names = answer.inbox_ids or ()
    return _KEY_BYTES + _INBOX_BYTES * len(names) + sum(map(len, names))


def asks_api(callout: Callout) -> AskAccess:
    """Return the function that asks the operator's API."""

    async def ask(digest: str, remote: str | None) -> AccessAnswer | None:
        question = {"key_sha256": digest, "remote": remote}
        status, body = await callout.ask(question, f"msg_{secrets.token_hex(16)}")
        if status == 401:
            return None
        if status != 200:
            raise NoAnswerError("unavailable", f"The operator's API answered {status}")
        return decode_answer(body, AccessAnswer)

    return ask
