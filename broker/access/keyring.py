"""Whose credential it is, now and for as long as its connections live (PROTOCOL sections 1 and 8).

A credential is a key of the configuration, a key that somebody outside knows (`lookup`), or a token of either. Who has
a connection watches its key (`watched`).
"""

from contextlib import AbstractContextManager
from datetime import UTC, datetime

import trio
from msgspec import Struct

from ..errors import RequestError
from ..protocol.messages import Token, TokenRequest
from ..protocol.names import Tier
from ..schedule import Schedule
from .keys import (
    ACCOUNT_KEY_PREFIX,
    OPERATOR_KEY_PREFIX,
    TOKEN_PREFIX,
    Access,
    Key,
    digest_of,
    may_be_key,
    unauthorized,
)
from .lookup import Lookup, LookupStatistics
from .tokens import Tokens
from .watched import Changed, Watch, WatchedKeys


class KeyringStatistics(Struct, frozen=True):
    """What is being watched."""

    watched: int
    """Keys with live connections."""
    lookup: LookupStatistics | None
    """None: only the configuration's keys are known."""


class Keyring:
    """All credentials. ``lookup`` None: only the configuration's keys are known."""

    def __init__(self, access: Access, tokens: Tokens, lookup: Lookup | None, schedule: Schedule) -> None:
        self.access = access
        """The keys of the configuration."""
        self._tokens = tokens
        self._lookup = lookup
        self._watched = WatchedKeys(self._configured, lookup, schedule)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask for keys, and see to those that are watched, for ever."""
        async with trio.open_nursery() as nursery:
            if self._lookup is not None:
                await nursery.start(self._lookup.run)
            await nursery.start(self._watched.run)
            task_status.started()

    # --- whose it is

    async def authenticate(self, credential: str, remote: str | None) -> Key:
        """Return the key of a credential; ``remote`` is the client's address, if it is known.

        Raises `RequestError`: ``unauthorized``, or ``unavailable`` if nobody can say whose it is.
        """
        if credential.startswith(OPERATOR_KEY_PREFIX):
            return _known(self.access.operator_key(digest_of(credential)))
        if credential.startswith(ACCOUNT_KEY_PREFIX):
            digest = digest_of(credential)
            return await self._find(digest, remote) if may_be_key(credential) else _known(self._configured(digest))
        if credential.startswith(TOKEN_PREFIX):
            claims = self._tokens.read(credential, datetime.now(UTC))
            return (await self._find(claims.key_sha256, remote)).narrowed(claims.narrowing)
        raise unauthorized("The credential is of no known form")

    def _configured(self, digest: str) -> Key | None:
        return self.access.account_key(digest)

    async def _find(self, digest: str, remote: str | None) -> Key:
        key = self._configured(digest)
        if key is not None or self._lookup is None:
            return _known(key)
        kept = await self._lookup.find(digest, remote)
        self._watched.learned(digest, kept)
        # Meanwhile the configuration may have come to know it.
        return _known(self._configured(digest) or kept.key)

    async def recall(self, key: Key) -> Key:
        """Return what a key that was known once, maybe before a restart, reaches by now; it is asked for if need be.

        Raises `RequestError` as `authenticate` does.
        """
        return (await self._find(key.sha256, None)).narrowed(key.narrowing)

    def confirm(self, key: Key) -> Key:
        """Return what a key reaches by now, without a question. Raises `RequestError` as `authenticate` does."""
        if key.is_operator:
            return _known(self.access.operator_key(key.sha256))
        fresh = self._configured(key.sha256)
        if fresh is None and self._lookup is not None:
            kept = self._lookup.kept(key.sha256)
            # What was said of many keys displaces what was said of one; its live connections go on.
            fresh = self._watched.key(key.sha256) if kept is None else kept.key
            if kept is None and fresh is None:
                raise RequestError("unavailable", "The key must be checked again")
        return _known(fresh).narrowed(key.narrowing)

    def require_account(self, account_id: str, path: str | None = None) -> None:
        """Raise `RequestError` (`not_found`) unless there may be such an account; ``path``: where it is named."""
        if self._lookup is None and not self.access.holds_account(account_id):
            place = "" if path is None else f" - at `{path}`"
            raise RequestError("not_found", f"There is no account {account_id!r}{place}")

    def tier_of(self, account_id: str) -> Tier | None:
        """Return the tier of an account of the configuration; None: it is none of these."""
        return self.access.tier_of(account_id)

    def issue(self, key: Key, request: TokenRequest) -> Token:
        """Return a token of a key. Raises `RequestError` (`forbidden`)."""
        return self._tokens.issue(key, request, datetime.now(UTC))

    # --- live connections

    def watch(self, key: Key, remote: str | None, changed: Changed) -> AbstractContextManager[Watch]:
        """Call ``changed`` whenever the key was judged again, inside the block; see `WatchedKeys.watch`."""
        return self._watched.watch(key, remote, changed)

    def settle(self, account_id: str) -> bool:
        """Tell connections of an account what their keys reach; return whether all know: see `WatchedKeys.settle`."""
        return self._watched.settle(account_id)

    def reload(self, access: Access) -> None:
        """Go on with the keys of another configuration, and judge all that are watched."""
        self.access = access
        self._watched.reloaded()

    def statistics(self) -> KeyringStatistics:
        """Return what is being watched."""
        return KeyringStatistics(len(self._watched), None if self._lookup is None else self._lookup.statistics())


def _known(key: Key | None) -> Key:
    if key is None:
        raise unauthorized("The key is not known")
    return key
