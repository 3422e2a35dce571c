"""The alphabets of names, and what the short texts of a query mean (PROTOCOL, Names and section 2).

Pure. What does not fit is a `RequestError` that names the field.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from ..errors import RequestError
from .wording import any_of, located, spelled, told

# `$` alone would let a trailing line break pass.
_WORDS = r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*"
_IN_AN_ADDRESS = r"[A-Za-z0-9.:@!#$%&'*+/=?^_`{|}~-]{1,254}"
_LINES_OF_INBOXES = re.compile(rf"(?:{_IN_AN_ADDRESS}\n)*")
_AN_INBOX = "an inbox: 1 to 254 of letters, digits and .:@!#$%&'*+-/=?^_`{|}~"
_A_TYPE = (
    "an event type: words of `a-z`, `0-9` and `_`, joined by `.`, each with a letter first, at most 128 characters"
)

Identifier = Annotated[str, spelled(r"^[A-Za-z0-9_.:@-]{1,128}$(?!\n)", "1 to 128 of letters, digits and `_.:@-`")]
"""`account_id`, `client_id`, `event_id`, `request_id`, `action`."""
InboxId = Annotated[str, spelled(rf"^(?!\*$){_IN_AN_ADDRESS}$(?!\n)", f"{_AN_INBOX}, but not `*` alone")]
"""An `inbox_id`, often an address: RFC 5322 `atext`, `.`, `:` and `@`. None of it needs an escape in JSON."""
InboxName = Annotated[str, spelled(rf"^{_IN_AN_ADDRESS}$(?!\n)", f"{_AN_INBOX}, or `*` for all")]
"""An `inbox_id`, or `*` for all that the key reaches."""
EventType = Annotated[str, spelled(rf"^(?=.{{1,128}}$){_WORDS}$(?!\n)", _A_TYPE)]
TypePattern = Annotated[
    str, spelled(rf"^(?=.{{1,128}}(\.\*)?$){_WORDS}(\.\*)?$(?!\n)", f"{_A_TYPE}, or the beginning of one and `.*`")
]
"""One of a filter's: an event type, or a prefix of types with `.*`."""

AsMade = Annotated[str, spelled(r"^active$(?!\n)", "`active`, which is what is made: a PATCH pauses it")]
"""The `status` of what is to be made: one that says it is paused must not be at work."""

Scope = Literal["subscribe", "command", "publish", "webhooks"]
"""What a key may do; `webhooks` is not among those it has unless that is said."""
NameList = Literal["inbox_ids", "event_types", "event_ids", "lease_ids"]
"""What a client gives as a list of names."""
Dead = Literal["dead"]
"""The `state` of what is to be sent or done again."""
Tier = Literal["free", "developer", "growth", "enterprise"]
_CALLED: Final[dict[NameList, str]] = {
    "inbox_ids": "inboxes",
    "event_types": "event types",
    "event_ids": "event ids",
    "lease_ids": "leases",
}
told("scopes", any_of(Scope))
told("state", any_of(Dead))
told("tier", any_of(Tier))
told("inbox_ids", "a list of inboxes, or `*`")

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

ALL_INBOXES: Final = "*"
ACKED: Final = "acked"
"""As `since`: where this client last acknowledged. No cursor is called so."""


class Duration(Struct, frozen=True):
    """`since` as a duration before now."""

    seconds: float


_Moment = Annotated[datetime, Meta(tz=True)]
_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h)")
_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def check_traceparent(text: str | None) -> str | None:
    """Return the trace that a client names (W3C Trace Context, `traceparent`); None if it is none: then there is none.

    What is not understood is not an error there, and is not handed on.
    """
    return text if text is not None and _TRACEPARENT.fullmatch(text) else None


def parse_since(text: str) -> Duration | datetime | str:
    """Return what `since` means: a `Duration`, a time, or else a cursor (PROTOCOL section 2)."""
    match = _DURATION.fullmatch(text)
    if match:
        return Duration(int(match[1]) * _UNIT_SECONDS[match[2]])
    try:
        return parse_time(text)
    except ValueError:
        return text


def parse_time(text: str) -> datetime:
    """Return the moment of an RFC 3339 time with its offset; a leap second, as the second after it.

    Raises ValueError for what is none.
    """
    leaps = text[17:19] == "60"
    try:
        moment: datetime = msgspec.convert(f"{text[:17]}59{text[19:]}" if leaps else text, _Moment)
        if not leaps:
            return moment
        moment += timedelta(seconds=1)
        after = moment.astimezone(UTC)
    except (msgspec.ValidationError, UnicodeEncodeError, OverflowError):
        raise ValueError(f"{text!r} is no time") from None
    if after.time().replace(microsecond=0) != time() or after.day != 1:  # leap seconds end a month of UTC
        raise ValueError(f"no leap second was at {text!r}")
    return moment


def check_since(text: object) -> None:
    """Check that a `since` is text that says something. Raises `RequestError` (`bad_request`) that names it."""
    if not isinstance(text, str):
        kind = type(text).__name__
        raise RequestError("bad_request", f"Expected a cursor, a duration or a time, as text, not {kind} - at `since`")
    if not text:
        raise RequestError("bad_request", "A cursor, a duration or a time is missing - at `since`")


def check_list(values: Sequence[str], kind: Literal["inbox_ids", "event_types"], most: int | None = None) -> None:
    """Check names that came in a query, at most so many. Raises `RequestError` (`bad_request`) that names the field."""
    if most is not None and len(values) > most:
        raise too_many(kind, most, kind, code="bad_request")
    item: Any = InboxName if kind == "inbox_ids" else TypePattern
    try:
        msgspec.convert(values, Annotated[list[item], Meta(min_length=1)])
    except msgspec.ValidationError as error:
        raise RequestError("bad_request", located(str(error), kind)) from None


def are_inbox_names(names: Sequence[str]) -> bool:
    """Whether all of them are such as `InboxName` says: at once, for thousands a tenth of what one by one costs."""
    lines = "\n".join((*names, ""))
    return lines.count("\n") == len(names) and _LINES_OF_INBOXES.fullmatch(lines) is not None


def too_many(kind: NameList, most: int, path: str, *, code: str = "invalid_params") -> RequestError:
    """Return the refusal of a list of names that is too long, and stands at ``path``."""
    return RequestError(code, f"More than {most:,} {_CALLED[kind]} - at `{path}`")


def check_identifier(value: str, name: str, *, code: str = "invalid_params") -> None:
    """Check one name. Raises `RequestError` with this code, which names it."""
    try:
        msgspec.convert(value, Identifier)
    except msgspec.ValidationError as error:
        raise RequestError(code, located(str(error), name)) from None


_FIELD: Final = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_NEAR: Final = 32
_INBOX_SPELLINGS: Final = ("inbox_id", "inbox_ids", "inbox", "inboxes", "inboxId", "inboxIds")
Spelled = Literal[
    "inbox_id", "inbox_ids", "event_types", "since", "client_id", "scopes", "ttl_seconds", "event_id", "request_id",
    "wait", "wait_seconds", "timeout_seconds", "seconds", "retry_after_ms",
]  # fmt: skip
"""The names that are known in other spellings, too."""
_SPELLINGS: Final[dict[Spelled, tuple[str, ...]]] = {
    "inbox_id": _INBOX_SPELLINGS,
    "inbox_ids": _INBOX_SPELLINGS,
    "event_id": ("eventId", "idempotency_key"),
    "request_id": ("requestId",),
    "wait": ("wait_seconds", "timeout", "timeout_seconds"),
    "wait_seconds": ("wait", "timeout", "timeout_seconds"),
    "timeout_seconds": ("timeout", "wait", "wait_seconds"),
    "seconds": ("lease_seconds", "hold_seconds"),
    "retry_after_ms": ("retry_after", "retry_after_seconds", "delay", "delay_ms", "delay_seconds"),
    "event_types": ("event_type", "eventType", "eventTypes", "types"),
    "since": ("cursor", "after"),
    "client_id": ("client", "clientId"),
    "scopes": ("scope",),
    "ttl_seconds": ("ttl",),
}


def check_spelling(
    paths: Mapping[str, str],
    *names: Spelled,
    values: Mapping[str, Raw] | None = None,
    code: str = "invalid_params",
) -> None:
    """Refuse what is meant as one of ``names`` and spelled otherwise.

    To ignore it would be to take all for some, to do again what is to be done once, or not to wait. Beside the right
    name, unless that is null in ``values``, it is a field that is not known, and is ignored as others are.
    ``paths`` says where each name that was given stands. Raises `RequestError` that names both.
    """
    for right in names:
        if right in paths and (values is None or is_given(right, values)):
            continue
        for name in _SPELLINGS[right]:
            if name in paths and name != right:
                raise RequestError(code, f"The name is `{right}` - at `{paths[name]}`")


def is_given(name: str, values: Mapping[str, Raw]) -> bool:
    """Whether a name is among what a client said, and is not null there."""
    return name in values and bytes(memoryview(values[name])[:5]) != b"null"


def check_no_inbox(paths: Mapping[str, str], *, code: str = "invalid_params") -> None:
    """Refuse an inbox that is named beside events: passed over, it would make them the whole account's.

    ``paths`` says where each name that was given stands. Raises `RequestError` that names it.
    """
    for name in _INBOX_SPELLINGS:
        if name in paths:
            raise RequestError(code, f"Each event says its own `inbox_id`, and nothing beside it - at `{paths[name]}`")


def check_near_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is nearly a known one: what was to be narrowed by it would be left whole.

    Nearly: the same but for case, `_` and `-`, or with one letter more, less, other, or at its neighbour's place. What
    is further away is ignored, as PROTOCOL has it. Raises `RequestError` that names the known one, and where the
    other stands if that is a name such as fields have.
    """
    known = list(known)
    plain = [(right, _plain(right)) for right in known]
    for name in given:
        if name in known or len(name) > _LONGEST_NEAR:
            continue
        for right, letters in plain:
            if _is_near(_plain(name), letters):
                where = f"$.{name}" if _FIELD.fullmatch(name) else "$"
                raise RequestError("invalid_params", f"The name is `{right}` - at `{where}`")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _is_near(one: str, other: str) -> bool:
    """Whether one letter at most lies between two words, or two neighbours have changed places."""
    if abs(len(one) - len(other)) > 1:
        return False
    same = 0
    for here, there in zip(one, other, strict=False):
        if here != there:
            break
        same += 1
    one, other = one[same:], other[same:]
    if len(one) != len(other):
        return one[1:] == other or one == other[1:]
    return one[1:] == other[1:] or (one[:2] == other[1::-1] and one[2:] == other[2:])


def require_lists(**given: Iterable[str] | None) -> None:
    """Raise TypeError for what is no list of names; of one string each letter would be one."""
    for name, names in given.items():
        if isinstance(names, str):
            raise TypeError(f"`{name}` is a list of names, not one string: [{names!r}]")
        if isinstance(names, bytes) or not isinstance(names, Iterable | None):
            raise TypeError(f"`{name}` is a list of names, not {type(names).__name__}")
