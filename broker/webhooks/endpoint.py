"""An endpoint: what an account asks for, what is kept of it, and what is shown.

Whatever an account asks for is checked here, and what does not fit names the field.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..access.keys import Key, inbox_ids_of
from ..config import AccountWebhookConfig, LimitsConfig, WebhookSecret
from ..errors import RequestError, nothing_to_change
from ..log.letters import Route
from ..protocol.messages import format_time
from ..protocol.names import ALL_INBOXES, AsMade, Dead, Identifier, InboxName, TypePattern, too_many
from ..protocol.selection import Selection, TypeFilter
from ..protocol.wording import any_of, told
from .guard import Guard, address_of
from .signing import OVERLAP_SECONDS

MAX_ENDPOINTS: Final = 16
"""Of an account."""
MAX_URL: Final = 2_048
MAX_INBOX_IDS: Final = 1_000
"""That an endpoint may name: all of an account's are listed in one step."""
MAX_CLIENT_IDS: Final = 100
MAX_FALLBACK_SECONDS: Final = 86_400
DEFAULT_FALLBACK_SECONDS: Final = 30.0

Mode = Literal["always", "fallback"]
Order = Literal["none", "inbox"]
Status = Literal["active", "paused", "disabled"]
Because = Literal["gone", "failing", "key_gone"]
"""Why an endpoint was disabled: it answered 410, it failed for days, or its key is gone."""
told("mode", any_of(Mode))
told("order", any_of(Order))
told("status", "`active` or `paused`")

FallbackSeconds = (
    Annotated[float, Meta(ge=0, le=MAX_FALLBACK_SECONDS)] | Annotated[int, Meta(ge=0, le=MAX_FALLBACK_SECONDS)]
)
InboxIds = Annotated[list[InboxName], Meta(min_length=1)] | Literal["*"]
TypePatterns = Annotated[list[TypePattern], Meta(min_length=1)]
ClientIds = list[Identifier]


class NewEndpoint(Struct, frozen=True):
    """An endpoint to make (PROTOCOL section 9). Left out: all inboxes that the key reaches, all types, a new secret."""

    url: str
    webhook_id: Identifier | None = None
    inbox_ids: InboxIds | None = None
    event_types: TypePatterns | None = None
    mode: Mode = "always"
    client_ids: ClientIds | None = None
    fallback_seconds: FallbackSeconds = DEFAULT_FALLBACK_SECONDS
    order: Order = "none"
    secret: WebhookSecret | None = None
    status: AsMade = "active"


class EndpointChange(Struct, frozen=True):
    """What is to change of an endpoint; null for `inbox_ids` and `event_types` is all of them.

    Its `webhook_id` may be said again and stays; a `secret` is made by another request, and refused here.
    """

    webhook_id: str | UnsetType = UNSET
    secret: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    inbox_ids: InboxIds | UnsetType | None = UNSET
    event_types: TypePatterns | UnsetType | None = UNSET
    mode: Mode | UnsetType = UNSET
    client_ids: ClientIds | UnsetType | None = UNSET
    fallback_seconds: FallbackSeconds | UnsetType = UNSET
    order: Order | UnsetType = UNSET
    status: Literal["active", "paused"] | UnsetType = UNSET


class Resend(Struct, frozen=True):
    """What is to be sent again: these events, or what is dead since then (all, if that is left out)."""

    event_ids: Annotated[list[Identifier], Meta(min_length=1, max_length=1_000)] | UnsetType = UNSET
    state: Dead | UnsetType = UNSET
    since: str | UnsetType = UNSET


class Endpoint(Struct, frozen=True):
    """An endpoint as it is kept. Times are seconds since 1970; ``inbox_ids`` None: all that its key reaches."""

    account_id: str
    webhook_id: str
    url: str
    secret: str
    inbox_ids: tuple[str, ...] | None = None
    event_types: tuple[str, ...] | None = None
    mode: Mode = "always"
    client_ids: tuple[str, ...] = ()
    fallback_seconds: float = DEFAULT_FALLBACK_SECONDS
    order: Order = "none"
    status: Status | Literal["removed"] = "active"
    """Removed: what is left of it is being forgotten."""
    disabled_because: Because | None = None
    created_at: float = 0.0
    old_secret: str = ""
    old_secret_until: float = 0.0
    configured: bool = False
    key_id: str = ""
    key_sha256: str = ""
    """None ("") for no key: it stands in the configuration, or is the library's."""
    key_scopes: tuple[str, ...] = ()
    key_inbox_ids: tuple[str, ...] | None = None
    """What the key reached when that was known last."""

    @property
    def key(self) -> Key:
        """What its key reached when that was known last."""
        inbox_ids = None if self.key_inbox_ids is None else frozenset(self.key_inbox_ids)
        scopes = frozenset(self.key_scopes) or frozenset({"webhooks"})
        return Key(self.key_id or "configuration", self.account_id, scopes, inbox_ids, sha256=self.key_sha256)

    @property
    def shown_url(self) -> str:
        """The URL as others may see it: without its query."""
        return self.url.partition("?")[0]

    def secrets(self, now: float) -> tuple[str, ...]:
        """Return the secrets that sign now, the newest first."""
        return (self.secret, self.old_secret) if now < self.old_secret_until else (self.secret,)

    def selection(self, key: Key) -> Selection:
        """Return which inboxes it gets by what its key reaches now."""
        if self.inbox_ids is None:
            return key.select([ALL_INBOXES], "")
        return key.select([name for name in self.inbox_ids if key.inbox_ids is None or name in key.inbox_ids], "")

    def route(self, number: int, key: Key) -> Route:
        """Return which events it gets, and when."""
        types = None if self.event_types is None else TypeFilter(self.event_types)
        delay = self.fallback_seconds if self.mode == "fallback" else 0.0
        return Route(number, self.webhook_id, self.selection(key), types, delay, self.order == "inbox")

    def content(self) -> tuple[object, ...]:
        """Return what stands for what was asked for: the same for the same."""
        order = (self.url, self.inbox_ids, self.event_types, self.mode, self.client_ids, self.fallback_seconds)
        return (*order, self.order, self.configured)


class EndpointSeen(Struct, frozen=True):
    """An endpoint as its account sees it."""

    webhook_id: str
    url: str
    inbox_ids: list[str]
    event_types: list[str] | None
    mode: Mode
    client_ids: list[str]
    fallback_seconds: float
    order: Order
    status: Status
    disabled_because: Because | None
    failing_since: str | None
    created_at: str
    configured: bool
    key_id: str | None
    secret: str | UnsetType = UNSET
    """Said once: in the answer that made it."""


encode_endpoint = msgspec.json.Encoder().encode
decode_endpoint = msgspec.json.Decoder(Endpoint).decode


def seen(endpoint: Endpoint, key: Key, failing_since: float | None, *, with_secret: bool = False) -> EndpointSeen:
    """Return an endpoint as its account sees it; ``key`` is what its key reaches now."""
    assert endpoint.status != "removed"
    types = None if endpoint.event_types is None else list(endpoint.event_types)
    return EndpointSeen(
        endpoint.webhook_id,
        endpoint.url,
        inbox_ids_of(endpoint.selection(key)),
        types,
        endpoint.mode,
        list(endpoint.client_ids),
        endpoint.fallback_seconds,
        endpoint.order,
        endpoint.status,
        endpoint.disabled_because,
        None if failing_since is None else time_of(failing_since),
        time_of(endpoint.created_at),
        endpoint.configured,
        endpoint.key_id or None,
        endpoint.secret if with_secret else UNSET,
    )


def time_of(seconds: float) -> str:
    """Return seconds since 1970 as an answer has them."""
    return format_time(datetime.fromtimestamp(seconds, UTC))


class Checks(Struct, frozen=True):
    """What an account may ask for: by the operator's configuration."""

    limits: LimitsConfig
    guard: Guard
    allow_http: bool

    def made(self, asked: NewEndpoint, key: Key, webhook_id: str, secret: str, now: float) -> Endpoint:
        """Return the endpoint that is asked for. Raises `RequestError` (`invalid_params`, `forbidden`)."""
        endpoint = Endpoint(
            key.account_id or "",
            asked.webhook_id or webhook_id,
            self._url(asked.url),
            asked.secret or secret,
            self._inbox_ids(asked.inbox_ids, key),
            self._event_types(asked.event_types),
            asked.mode,
            _client_ids(asked.client_ids),
            float(asked.fallback_seconds),
            asked.order,
            created_at=now,
        )
        _require_clients(endpoint)
        return owned(endpoint, key)

    def changed(self, endpoint: Endpoint, change: EndpointChange, key: Key) -> Endpoint:
        """Return an endpoint with a change. Raises `RequestError` (`invalid_params`, `forbidden`).

        Who says which inboxes it gets, or lets it be active again, is whose key it goes by from then on.
        """
        if change == EndpointChange():
            raise nothing_to_change()
        if not isinstance(change.webhook_id, UnsetType) and change.webhook_id != endpoint.webhook_id:
            raise RequestError("invalid_params", "The id of an endpoint stays as it was made - at `$.webhook_id`")
        if not isinstance(change.secret, UnsetType):
            where = f"POST /v1/webhooks/{endpoint.webhook_id}/secret"
            raise RequestError("invalid_params", f"Another secret is made by `{where}` - at `$.secret`")
        fields: dict[str, Any] = {
            name: value
            for name in ("mode", "order", "status", "fallback_seconds")
            if not isinstance(value := getattr(change, name), UnsetType)
        }
        if not isinstance(change.url, UnsetType):
            fields["url"] = self._url(change.url)
        if not isinstance(change.event_types, UnsetType):
            fields["event_types"] = self._event_types(change.event_types)
        if not isinstance(change.client_ids, UnsetType):
            fields["client_ids"] = _client_ids(change.client_ids)
        if not isinstance(change.inbox_ids, UnsetType):
            fields["inbox_ids"] = self._inbox_ids(change.inbox_ids, key)
        if "status" in fields:
            fields["disabled_because"] = None
        changed = msgspec.structs.replace(endpoint, **fields)
        _require_clients(changed)
        is_back = endpoint.status == "disabled" and changed.status != "disabled"
        return owned(changed, key) if is_back or "inbox_ids" in fields else changed

    def _url(self, url: str) -> str:
        try:
            parts = urlsplit(url)
            has_port = parts.port is None or parts.port > 0
        except ValueError:
            raise _bad_url("Expected a URL, `https://…`") from None
        if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or any(c in url for c in ' "<>\\^`{|}'):
            raise _bad_url(f"Expected a URL of at most {MAX_URL} printable ASCII characters, others escaped")
        if not url.startswith(("https://", "http://")) or not parts.hostname or not has_port:
            raise _bad_url("Expected a URL, `https://…`")
        if parts.scheme == "http" and not self.allow_http:
            raise _bad_url("Plain `http://` is not allowed here")
        return self._judged(url, parts)

    def _judged(self, url: str, parts: SplitResult) -> str:
        if "@" in parts.netloc or "#" in url:
            raise _bad_url("A URL with a name and password, or with a `#`, is not posted to")
        address = address_of(parts.hostname or "")
        if address is not None and not self.guard.permits(address):
            raise _bad_url("This address is not a public one")
        return url

    def _inbox_ids(self, names: Sequence[str] | None, key: Key) -> tuple[str, ...] | None:
        if names is None or names == ALL_INBOXES or ALL_INBOXES in names:
            return None
        most = min(MAX_INBOX_IDS, self.limits.max_inboxes_per_connection)
        if len(names) > most:
            raise too_many("inbox_ids", most, "$.inbox_ids")
        key.select(names, "$.inbox_ids")
        return tuple(sorted(set(names)))

    def _event_types(self, patterns: Sequence[str] | None) -> tuple[str, ...] | None:
        if patterns is None:
            return None
        if len(patterns) > self.limits.max_event_types:
            raise too_many("event_types", self.limits.max_event_types, "$.event_types")
        return tuple(sorted(set(patterns)))


def owned(endpoint: Endpoint, key: Key) -> Endpoint:
    """Return an endpoint that goes by what this key reaches."""
    inbox_ids = None if key.inbox_ids is None else tuple(sorted(key.inbox_ids))
    return msgspec.structs.replace(
        endpoint, key_id=key.id, key_sha256=key.sha256, key_scopes=tuple(sorted(key.scopes)), key_inbox_ids=inbox_ids
    )


def rotated(endpoint: Endpoint, secret: str, now: float) -> Endpoint:
    """Return an endpoint with another secret; the one that it had signs beside it for a while."""
    return msgspec.structs.replace(
        endpoint, secret=secret, old_secret=endpoint.secret, old_secret_until=now + OVERLAP_SECONDS
    )


def configured(account_id: str, section: AccountWebhookConfig, now: float) -> Endpoint:
    """Return an endpoint that stands in the configuration, which was checked."""
    return Endpoint(
        account_id,
        section.id,
        section.url,
        section.secret,
        None if section.inbox_ids is None else tuple(sorted(set(section.inbox_ids))),
        None if section.event_types is None else tuple(sorted(set(section.event_types))),
        section.mode,
        tuple(sorted(set(section.client_ids))),
        float(section.fallback_seconds),
        section.order,
        created_at=now,
        configured=True,
    )


def _client_ids(names: Sequence[str] | None) -> tuple[str, ...]:
    if names is not None and len(names) > MAX_CLIENT_IDS:
        raise RequestError("invalid_params", f"More than {MAX_CLIENT_IDS} clients - at `$.client_ids`")
    return tuple(sorted(set(names or ())))


def _require_clients(endpoint: Endpoint) -> None:
    if endpoint.mode == "fallback" and not endpoint.client_ids:
        message = "A `fallback` is for what clients did not acknowledge: name them - at `$.client_ids`"
        raise RequestError("invalid_params", message)


def _bad_url(words: str) -> RequestError:
    return RequestError("invalid_params", f"{words} - at `$.url`")
