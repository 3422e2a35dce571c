"""Who may connect, and what a key reaches (PROTOCOL section 1).

Pure. Keys are known by their SHA-256 alone; what is compared is compared in constant time.
"""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest
from typing import Final

import msgspec
from msgspec import Struct

from ..config import Config
from ..errors import RequestError
from ..protocol.names import ALL_INBOXES, Scope, Tier
from ..protocol.selection import ACCOUNT_EVENTS, EVERYTHING, NOTHING, Selection

ACCOUNT_KEY_PREFIX: Final = "dm_live_"
OPERATOR_KEY_PREFIX: Final = "dm_operator_"
TOKEN_PREFIX: Final = "wst_"
MAX_CONNECTIONS: Final[dict[Tier, int | None]] = {"free": 1, "developer": 10, "growth": 100, "enterprise": None}
"""Concurrent connections of an account; None: any number."""
_CHALLENGE: Final = (("WWW-Authenticate", "Bearer"),)


class Narrowing(Struct, frozen=True):
    """What a token leaves of its key; None: all of it."""

    inbox_ids: frozenset[str] | None = None
    scopes: frozenset[str] | None = None


class Key(Struct, frozen=True):
    """A credential that was recognised. ``inbox_ids`` None: the whole account. Operators have no account."""

    id: str
    account_id: str | None
    scopes: frozenset[str]
    inbox_ids: frozenset[str] | None = None
    tier: Tier = "developer"
    sha256: str = ""
    """Of the key itself, also where a token of it was given; "" in the library."""
    narrowing: Narrowing | None = None
    """What the token left of it; None: the key itself was given."""

    @property
    def is_operator(self) -> bool:
        """Whether it publishes for any account, and opens no stream."""
        return self.account_id is None

    @property
    def reach(self) -> Selection:
        """All that a connection of this key may be sent."""
        if "subscribe" not in self.scopes:
            return NOTHING
        return EVERYTHING if self.inbox_ids is None else Selection(self.inbox_ids)

    @property
    def account_events(self) -> Selection:
        """What every connection of this key is sent, whatever it asks for."""
        return Selection(frozenset({ACCOUNT_EVENTS})) if ACCOUNT_EVENTS in self.reach else NOTHING

    def narrowed(self, narrowing: Narrowing | None) -> "Key":
        """Return what a token leaves of this key; None: the key itself."""
        if narrowing is None:
            return self
        scopes, inbox_ids = self.scopes, self.inbox_ids
        if narrowing.scopes is not None:
            scopes = scopes & narrowing.scopes
        if narrowing.inbox_ids is not None:
            inbox_ids = narrowing.inbox_ids if inbox_ids is None else inbox_ids & narrowing.inbox_ids
        return msgspec.structs.replace(self, scopes=scopes, inbox_ids=inbox_ids, narrowing=narrowing)

    def require_key(self) -> None:
        """Raise `RequestError` (`forbidden`) for a token: it opens streams, and nothing else."""
        if self.narrowing is not None:
            raise RequestError("forbidden", "A connection token opens a stream and nothing else")

    def require(self, scope: Scope) -> None:
        """Raise `RequestError` (`forbidden`) unless the key carries the scope."""
        if scope not in self.scopes:
            raise RequestError("forbidden", f"The key does not carry the scope `{scope}`")

    def require_inbox(self, inbox_id: str | None, path: str) -> None:
        """Raise `RequestError` (`forbidden`) unless the key reaches the inbox; None is the account's own events."""
        if self.inbox_ids is None:
            return
        if inbox_id is None:
            raise RequestError("forbidden", f"An inbox key needs an inbox it reaches - at `{path}`")
        if inbox_id not in self.inbox_ids:
            raise RequestError("forbidden", f"The key does not reach the inbox {inbox_id!r} - at `{path}`")

    def select(self, inbox_ids: Iterable[str], path: str) -> Selection:
        """Return the selection of inboxes, ``*`` for all that the key reaches, with the account's own events.

        Raises `RequestError` (`forbidden`) for an inbox that the key does not reach.
        """
        names = list(inbox_ids)
        if ALL_INBOXES in names:
            return EVERYTHING if self.inbox_ids is None else Selection(self.inbox_ids)
        for index, name in enumerate(names):
            self.require_inbox(name, f"{path}[{index}]")
        own = () if self.inbox_ids is not None else (ACCOUNT_EVENTS,)
        return Selection(frozenset((*names, *own)))

    def initial_selection(self) -> Selection:
        """Return what a connection of this key gets when it asks for nothing."""
        if "subscribe" not in self.scopes:
            return NOTHING
        return self.select([] if self.inbox_ids is None else [ALL_INBOXES], "inbox_ids")


def inbox_ids_of(selection: Selection) -> list[str]:
    """Return a selection's inboxes as clients see them: sorted; ``["*"]`` for all."""
    return [ALL_INBOXES] if selection.inboxes is None else sorted(selection.inboxes - {ACCOUNT_EVENTS})


_PREFIX: Final = 16
"""Digits of a digest that a key is looked up by; the whole is then compared in constant time."""
_Keys = dict[str, Key]


class Access:
    """The keys of a configuration."""

    def __init__(self, config: Config) -> None:
        self._accounts = frozenset(account.id for account in config.accounts)
        self._account_keys: _Keys = {}
        for account in config.accounts:
            for key in account.keys:
                inbox_ids = None if key.inbox_ids is None else frozenset(key.inbox_ids)
                known = Key(key.id, account.id, frozenset(key.scopes), inbox_ids, account.tier, key.sha256)
                self._account_keys[key.sha256[:_PREFIX]] = known
        self._operator_keys: _Keys = {
            operator.sha256[:_PREFIX]: Key(operator.id, None, frozenset({"publish"}), sha256=operator.sha256)
            for operator in config.operators
        }

    def account_key(self, digest: str) -> Key | None:
        """Return the account's or inbox key of this SHA-256 (lower-case hex), if there is one."""
        return _find(self._account_keys, digest)

    def operator_key(self, digest: str) -> Key | None:
        """Return the operator's key of this SHA-256, if there is one."""
        return _find(self._operator_keys, digest)

    def holds_account(self, account_id: str) -> bool:
        """Whether the configuration has the account."""
        return account_id in self._accounts


def _find(keys: _Keys, digest: str) -> Key | None:
    key = keys.get(digest[:_PREFIX])
    return key if key is not None and compare_digest(key.sha256, digest) else None


def digest_of(credential: str) -> str:
    """Return the SHA-256 of a key, as it is stored."""
    return sha256(credential.encode("utf-8", "surrogatepass")).hexdigest()


def unauthorized(message: str) -> RequestError:
    """Return the refusal of a credential, with the challenge that goes with it (RFC 9110 section 11.6.1)."""
    return RequestError("unauthorized", message, headers=_CHALLENGE)


def credential_of(authorization: str | None, query: Mapping[str, str]) -> str:
    """Return the one credential of a request: a Bearer header, else ``key`` or ``token`` of the query.

    Raises `RequestError`: `unauthorized` if there is none, `bad_request` if there are two.
    """
    found = [query[name] for name in ("key", "token") if name in query]
    if authorization is not None:
        scheme, _, credential = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise unauthorized("Authorization must be `Bearer KEY`")
        found.append(credential.strip())
    if len(found) > 1:
        raise RequestError("bad_request", "Two credentials: give one, in `Authorization`, `key` or `token`")
    if not found or not found[0]:
        raise unauthorized("A key is needed: `Authorization: Bearer KEY`")
    return found[0]
