"""Who may connect, and what a key reaches (PROTOCOL section 1).

Pure. Keys are known by their SHA-256 alone; what is compared is compared in constant time.
"""

import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from hashlib import blake2b, sha256
from hmac import compare_digest
from itertools import chain
from typing import Final

import msgspec
from msgspec import Struct

from ..config import AccountConfig, Config, KeyConfig
from ..errors import RequestError
from ..protocol.names import ALL_INBOXES, Scope, Tier
from ..protocol.selection import ACCOUNT_EVENTS, EVERYTHING, NOTHING, Selection

ACCOUNT_KEY_PREFIX: Final = "dm_live_"
OPERATOR_KEY_PREFIX: Final = "dm_operator_"
TOKEN_PREFIX: Final = "wst_"
SUBPROTOCOL_PREFIX: Final = "bearer."
"""Of the WebSocket subprotocol that carries a token, from where nothing else can be sent (browsers)."""
MAX_CONNECTIONS: Final[dict[Tier, int | None]] = {"free": 1, "developer": 10, "growth": 100, "enterprise": None}
"""Concurrent connections of an account; None: any number."""
_KEY: Final = re.compile(ACCOUNT_KEY_PREFIX + r"[A-Za-z0-9._~+/=-]{1,200}")
"""The alphabet is that of Bearer credentials (RFC 6750 section 2.1)."""
_CHALLENGE: Final = (("WWW-Authenticate", "Bearer"),)


class Narrowing(Struct, frozen=True):
    """What a token leaves of its key; None: all of it."""

    inbox_ids: frozenset[str] | None = None
    scopes: frozenset[str] | None = None

    def digest(self) -> str:
        """Return what stands for it: the same for the same narrowing, in every process; "" if it takes nothing away."""
        if self.inbox_ids is None and self.scopes is None:
            return ""
        return blake2b(msgspec.json.encode(self, order="deterministic"), digest_size=16).hexdigest()


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
    narrowed_to: str = ""
    """The narrowing's digest."""

    @property
    def identity(self) -> str:
        """Who its bearer is, where the same client is to be known again: the key, and how a token narrows it.

        Neither what a key is called nor what it reaches is part of that: both may change while it lives.
        """
        return f"{self.sha256 or self.id}/{self.narrowed_to}" if self.narrowed_to else self.sha256 or self.id

    @property
    def narrowed_inbox_ids(self) -> frozenset[str] | None:
        """The inboxes that a token names; None: there is no token, or it names none."""
        return None if self.narrowing is None else self.narrowing.inbox_ids

    @property
    def is_library(self) -> bool:
        """Whether it stands for the program that embeds the broker: no rate limits that."""
        return not self.sha256

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
        digest = narrowing.digest()
        return msgspec.structs.replace(
            self, scopes=scopes, inbox_ids=inbox_ids, narrowing=narrowing, narrowed_to=digest
        )

    def looking(self) -> "Key":
        """Return what is left of this key for a look (`watch=1`): the scope `subscribe` alone, now and later."""
        return self.narrowed(Narrowing(self.narrowed_inbox_ids, frozenset({"subscribe"})))

    def require_key(self) -> None:
        """Raise `RequestError` (`forbidden`) for a token: it opens streams, and nothing else."""
        if self.narrowing is not None:
            raise RequestError("forbidden", "A connection token opens a stream and nothing else")

    def require_whole_account(self) -> None:
        """Raise `RequestError` (`forbidden`) for an inbox key: it does not see what others of its account do."""
        if self.inbox_ids is not None:
            raise RequestError("forbidden", "An inbox key does not see the account's connections")

    def require_operator(self) -> None:
        """Raise `RequestError` (`forbidden`) unless it is an operator's."""
        if not self.is_operator:
            raise RequestError("forbidden", "This is for operator keys")

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
        if self.inbox_ids is not None and not self.inbox_ids.issuperset(names):
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
_LET_GO: Final = 1_024
"""Keys, or their inboxes, that are let go in one step."""
_Keys = dict[str, Key]


class Access:
    """The keys of a configuration that was checked, to be found by their SHA-256. Of a large one this takes a while."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._tiers: dict[str, Tier] = {account.id: account.tier for account in config.accounts}
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

    def let_go(self) -> Generator[None, None, None]:
        """Forget all of it, in steps: of many keys, to be freed is long, too. It knows nobody afterwards."""
        accounts, known = list(self.config.accounts), list(self._account_keys.values())
        self.config = Config()
        for keys in (self._account_keys, self._tiers):
            while keys:
                for _ in range(min(_LET_GO, len(keys))):
                    keys.popitem()
                yield
        weighed = 0
        for weight in chain(_let_go_keys(known), _let_go_accounts(accounts)):
            weighed += weight
            if weighed >= _LET_GO:
                weighed = 0
                yield

    def account_key(self, digest: str) -> Key | None:
        """Return the account's or inbox key of this SHA-256 (lower-case hex), if there is one."""
        return _find(self._account_keys, digest)

    def operator_key(self, digest: str) -> Key | None:
        """Return the operator's key of this SHA-256, if there is one."""
        return _find(self._operator_keys, digest)

    def holds_account(self, account_id: str) -> bool:
        """Whether the configuration has the account."""
        return account_id in self._tiers

    def tier_of(self, account_id: str) -> Tier | None:
        """Return an account's tier; None: the configuration does not have it."""
        return self._tiers.get(account_id)


def _let_go_accounts(accounts: list[AccountConfig]) -> Iterator[int]:
    """Let go of one account after the other, and of its keys; yield what each weighed."""
    while accounts:
        keys = list(accounts.pop().keys)
        yield 1
        yield from _let_go_keys(keys)


def _let_go_keys(keys: list[KeyConfig] | list[Key]) -> Iterator[int]:
    """Let go of one key after the other; yield what each weighed: one, and its inboxes."""
    while keys:
        yield 1 + len(keys.pop().inbox_ids or ())


def _find(keys: _Keys, digest: str) -> Key | None:
    key = keys.get(digest[:_PREFIX])
    return key if key is not None and compare_digest(key.sha256, digest) else None


def digest_of(credential: str) -> str:
    """Return the SHA-256 of a key, as it is stored."""
    return sha256(credential.encode("utf-8", "surrogatepass")).hexdigest()


def may_be_key(credential: str) -> bool:
    """Whether an account's key could look like this: nobody is asked whose it is, if not."""
    return _KEY.fullmatch(credential) is not None


def unauthorized(message: str) -> RequestError:
    """Return the refusal of a credential, with the challenge that goes with it (RFC 9110 section 11.6.1)."""
    return RequestError("unauthorized", message, headers=_CHALLENGE)


def credential_of(authorization: str | None, query: Mapping[str, str], subprotocols: Iterable[str] = ()) -> str:
    """Return the one credential of a request (PROTOCOL section 1).

    It stands in a Bearer header (another scheme is a proxy's, and not looked at), as ``key`` or ``token`` in the query,
    or, a token, in one of the WebSocket subprotocols that are offered, ``bearer.wst_…``.
    Raises `RequestError`: `unauthorized` if there is none, `bad_request` if there are two.
    """
    found = [query[name] for name in ("key", "token") if name in query]
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() == "bearer":
        found.append(given.strip())
    offered = [name.removeprefix(SUBPROTOCOL_PREFIX) for name in subprotocols if name.startswith(SUBPROTOCOL_PREFIX)]
    if len(found) + len(offered) > 1:
        message = "Two credentials: give one, in `Authorization`, `key`, `token` or a subprotocol"
        raise RequestError("bad_request", message)
    if offered and not offered[0].startswith(TOKEN_PREFIX):
        raise unauthorized(f"The subprotocol `{SUBPROTOCOL_PREFIX}…` carries a connection token, and no key")
    credential = (found or offered or [""])[0]
    if not credential:
        raise unauthorized("A key is needed: `Authorization: Bearer KEY`")
    return credential
