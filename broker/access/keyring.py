"""Whose credential it is, now and for as long as its connections live (PROTOCOL sections 1 and 8).

A credential is a key of the configuration, a key that somebody outside knows (`lookup`), or a token of either. Who has
a connection watches its key: after a reload, and when an answer from outside has had its time, the key is judged again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

import trio
from msgspec import Struct

from ..config import Config
from ..errors import RequestError
from ..protocol.messages import Token, TokenRequest
from ..schedule import Schedule
from .keys import (
    ACCOUNT_KEY_PREFIX,
    OPERATOR_KEY_PREFIX,
    TOKEN_PREFIX,
    Access,
    Key,
    Narrowing,
    digest_of,
    may_be_key,
    unauthorized,
)
from .lookup import RETRY_SECONDS, Kept, Lookup, LookupStatistics
from .tokens import Tokens

MAX_ASKING_AGAIN: Final = 16
"""Questions for keys of live connections under way at once: those who want to come in are not kept waiting by them."""

SHORTEST_SECONDS: Final = 1.0
"""How soon a key of a live connection is asked for again at the earliest."""

Changed = Callable[[Key | None], None]
"""Called with what a key reaches now; None: it is gone."""


_UNJUDGED: Final = Key("", None, frozenset())


class _Watched:
    """A key that is watched, or about to be asked for again. ``judged`` is what it reached at the last look."""

    __slots__ = ("asking", "judged", "remote", "unschedule", "was_configured", "watches")

    def __init__(self, remote: str | None) -> None:
        self.remote = remote
        self.watches: dict[Changed, Narrowing | None] = {}
        self.judged: Key | None = _UNJUDGED
        self.asking = False
        """Whether a question is under way."""
        self.unschedule: Callable[[], None] | None = None
        """Set while one is to be asked when the last answer has had its time."""
        self.was_configured = False
        """Whether it has left the configuration, and nobody outside has said anything of it since."""


class KeyringStatistics(Struct, frozen=True):
    """What is being watched."""

    watched: int
    """Keys with live connections."""
    lookup: LookupStatistics | None
    """None: only the configuration's keys are known."""


class Keyring:
    """All credentials. ``lookup`` None: only the configuration's keys are known."""

    def __init__(self, config: Config, tokens: Tokens, lookup: Lookup | None, schedule: Schedule) -> None:
        self._access = Access(config)
        self._tokens = tokens
        self._lookup = lookup
        self._schedule = schedule
        self._watched: dict[str, _Watched] = {}
        self._limit = trio.CapacityLimiter(MAX_ASKING_AGAIN)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask again for the keys that are watched, for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self._lookup is not None:
                await nursery.start(self._lookup.run)
            task_status.started()
            await trio.sleep_forever()

    # --- whose it is

    async def authenticate(self, credential: str, remote: str | None) -> Key:
        """Return the key of a credential; ``remote`` is the client's address, if it is known.

        Raises `RequestError`: ``unauthorized``, or ``unavailable`` if nobody can say whose it is.
        """
        if credential.startswith(OPERATOR_KEY_PREFIX):
            return _known(self._access.operator_key(digest_of(credential)))
        if credential.startswith(ACCOUNT_KEY_PREFIX):
            digest = digest_of(credential)
            if not may_be_key(credential):
                return _known(self._access.account_key(digest))
            return await self._find(digest, remote)
        if credential.startswith(TOKEN_PREFIX):
            claims = self._tokens.read(credential, datetime.now(UTC))
            return (await self._find(claims.key_sha256, remote)).narrowed(claims.narrowing)
        raise unauthorized("The credential is of no known form")

    async def _find(self, digest: str, remote: str | None) -> Key:
        key = self._access.account_key(digest)
        if key is not None or self._lookup is None:
            return _known(key)
        kept = await self._lookup.find(digest, remote)
        watched = self._watched.get(digest)
        if watched is not None and watched.judged is not kept.key:
            self._judge(digest, kept.key)
        return _known(kept.key)

    def confirm(self, key: Key) -> Key:
        """Return what a key reaches by now, without a question. Raises `RequestError` as `authenticate` does."""
        if key.is_operator:
            return _known(self._access.operator_key(key.sha256))
        fresh = self._access.account_key(key.sha256)
        if fresh is None and self._lookup is not None:
            kept = self._lookup.kept(key.sha256)
            if kept is None:
                raise RequestError("unavailable", "The key must be checked again")
            fresh = kept.key
        return _known(fresh).narrowed(key.narrowing)

    def require_account(self, account_id: str) -> None:
        """Raise `RequestError` (`not_found`) unless there may be such an account."""
        if self._lookup is None and not self._access.holds_account(account_id):
            raise RequestError("not_found", f"There is no account {account_id!r}")

    def issue(self, key: Key, request: TokenRequest) -> Token:
        """Return a token of a key. Raises `RequestError` (`forbidden`)."""
        return self._tokens.issue(key, request, datetime.now(UTC))

    # --- live connections

    @contextmanager
    def watch(self, key: Key, remote: str | None, changed: Changed) -> Iterator[None]:
        """Call ``changed`` whenever the key was judged again, inside the block."""
        digest = key.sha256
        watched = self._watched.setdefault(digest, _Watched(remote))
        watched.watches[changed] = key.narrowing
        if self._lookup is not None and self._access.account_key(digest) is None:
            self._ask_when_due(digest, watched, self._lookup.kept(digest))
        try:
            yield
        finally:
            del watched.watches[changed]
            self._forget_idle(digest, watched)

    def _forget_idle(self, digest: str, watched: _Watched) -> None:
        if not (watched.watches or watched.asking or watched.unschedule):
            del self._watched[digest]

    def reload(self, config: Config) -> None:
        """Go on with the keys of another configuration, and judge all that are watched."""
        before, self._access = self._access, Access(config)
        for digest, watched in list(self._watched.items()):
            key = self._access.account_key(digest)
            kept = None if self._lookup is None else self._lookup.kept(digest)
            if key is not None or self._lookup is None:
                self._judge(digest, key)
            elif kept is not None:
                self._judge(digest, kept.key)
                self._ask_when_due(digest, watched, kept)
            else:
                watched.was_configured = watched.was_configured or before.account_key(digest) is not None
                self._start_asking(digest, watched)

    def _judge(self, digest: str, key: Key | None) -> None:
        """Tell everybody who watches a key what it reaches now."""
        watched = self._watched.get(digest)
        if watched is not None:
            watched.judged = key
            for changed, narrowing in list(watched.watches.items()):
                changed(None if key is None else key.narrowed(narrowing))

    # --- asking again

    def _ask_when_due(self, digest: str, watched: _Watched, kept: Kept | None) -> None:
        """Ask for a key when what was said of it has had its time (None: now), if that is not to be done already."""
        if not (watched.asking or watched.unschedule):
            now = trio.current_time()
            self._ask_at(now if kept is None else max(kept.until, now + SHORTEST_SECONDS), digest, watched)

    def _ask_at(self, due: float, digest: str, watched: _Watched) -> None:
        def ask(_: float) -> None:
            watched.unschedule = None
            if watched.watches and self._access.account_key(digest) is None:
                self._start_asking(digest, watched)
            else:
                self._forget_idle(digest, watched)

        watched.unschedule = self._schedule.add(due, ask)

    def _start_asking(self, digest: str, watched: _Watched) -> None:
        if watched.unschedule is not None:
            watched.unschedule()
            watched.unschedule = None
        if not watched.asking:
            watched.asking = True
            assert self._nursery is not None
            self._nursery.start_soon(self._ask_again, digest, watched)

    async def _ask_again(self, digest: str, watched: _Watched) -> None:
        """Ask for a key of live connections. No answer leaves them, unless nobody outside ever knew the key."""
        assert self._lookup is not None
        async with self._limit:
            kept = await self._lookup.ask(digest, watched.remote)
        watched.asking = False
        if self._access.account_key(digest) is None:
            if kept is not None:
                self._judge(digest, kept.key)
            elif watched.was_configured:
                self._judge(digest, None)
            if watched.judged is not None and kept is None:
                self._ask_at(trio.current_time() + RETRY_SECONDS, digest, watched)
            elif watched.judged is not None:
                self._ask_when_due(digest, watched, kept)
        watched.was_configured = False
        self._forget_idle(digest, watched)

    def statistics(self) -> KeyringStatistics:
        """Return what is being watched."""
        return KeyringStatistics(len(self._watched), None if self._lookup is None else self._lookup.statistics())


def _known(key: Key | None) -> Key:
    if key is None:
        raise unauthorized("The key is not known")
    return key
