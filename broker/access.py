"""Who may connect, and what a key reaches (PROTOCOL section 1).

Pure. Keys are known by their SHA-256 alone; what is compared is compared in constant time.
"""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from msgspec import Struct

from .config import Config, Tier
from .errors import RequestError
from .names import ALL_INBOXES
from .selection import ACCOUNT_EVENTS, EVERYTHING, NOTHING, Selection

ACCOUNT_KEY_PREFIX: Final = "dm_live_"
OPERATOR_KEY_PREFIX: Final = "dm_operator_"
_CHALLENGE: Final = (("WWW-Authenticate", "Bearer"),)


class Key(Struct, frozen=True):
    """A credential that was recognised. ``inbox_ids`` None: the whole account. Operators have no account."""

    id: str
    account_id: str | None
    scopes: frozenset[str]
    inbox_ids: frozenset[str] | None = None
    tier: Tier = "developer"

    @property
    def is_operator(self) -> bool:
        """Whether it publishes for any account, and opens no stream."""
        return self.account_id is None

    def require(self, scope: str) -> None:
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
_Keys = dict[str, tuple[str, Key | None]]
_NOBODY: Final[tuple[str, Key | None]] = ("", None)


class Access:
    """The keys of a configuration."""

    def __init__(self, config: Config) -> None:
        self._accounts = frozenset(account.id for account in config.accounts)
        self._account_keys: _Keys = {}
        for account in config.accounts:
            for key in account.keys:
                inbox_ids = None if key.inbox_ids is None else frozenset(key.inbox_ids)
                known = Key(key.id, account.id, frozenset(key.scopes), inbox_ids, account.tier)
                self._account_keys[key.sha256[:_PREFIX]] = (key.sha256, known)
        self._operator_keys: _Keys = {
            operator.sha256[:_PREFIX]: (operator.sha256, Key(operator.id, None, frozenset({"publish"})))
            for operator in config.operators
        }

    def authenticate(self, credential: str) -> Key:
        """Return the key of a credential. Raises `RequestError` (`unauthorized`)."""
        if credential.startswith(ACCOUNT_KEY_PREFIX):
            keys = self._account_keys
        elif credential.startswith(OPERATOR_KEY_PREFIX):
            keys = self._operator_keys
        else:
            raise _unauthorized("The credential is of no known form")
        digest = sha256(credential.encode("utf-8", "surrogatepass")).hexdigest()
        known, key = keys.get(digest[:_PREFIX], _NOBODY)
        if key is None or not compare_digest(known, digest):
            raise _unauthorized("The key is not known")
        return key

    def require_account(self, account_id: str) -> None:
        """Raise `RequestError` (`not_found`) unless the configuration holds the account."""
        if account_id not in self._accounts:
            raise RequestError("not_found", f"There is no account {account_id!r}")


def _unauthorized(message: str) -> RequestError:
    return RequestError("unauthorized", message, headers=_CHALLENGE)


def credential_of(authorization: str | None, query: Mapping[str, str]) -> str:
    """Return the one credential of a request: a Bearer header, else ``key`` or ``token`` of the query.

    Raises `RequestError`: `unauthorized` if there is none, `bad_request` if there are two.
    """
    found = [query[name] for name in ("key", "token") if name in query]
    if authorization is not None:
        scheme, _, credential = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise _unauthorized("Authorization must be `Bearer KEY`")
        found.append(credential.strip())
    if len(found) > 1:
        raise RequestError("bad_request", "Two credentials: give one, in `Authorization`, `key` or `token`")
    if not found or not found[0]:
        raise _unauthorized("A key is needed: `Authorization: Bearer KEY`")
    return found[0]
