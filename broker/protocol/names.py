"""The alphabets of names, and what the short texts of a query mean (PROTOCOL, Names and section 2).

Pure. What does not fit is a `RequestError` that names the field.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from ..errors import RequestError

# `$` alone would let a trailing line break pass.
Identifier = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:@-]{1,128}$(?!\n)")]
"""`inbox_id`, `account_id`, `client_id`, `event_id`, `request_id`, `action`."""
InboxName = Annotated[str, Meta(pattern=r"^([A-Za-z0-9_.:@-]{1,128}|\*)$(?!\n)")]
"""An `inbox_id`, or `*` for all that the key reaches."""
EventType = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$(?!\n)", max_length=128)]
TypeFilter = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*(\.\*)?$(?!\n)", max_length=130)]
"""An event type, or a prefix of types with `.*`."""

Scope = Literal["subscribe", "command", "publish"]
"""What a key may do."""
Tier = Literal["free", "developer", "growth", "enterprise"]

ALL_INBOXES: Final = "*"


class Duration(Struct, frozen=True):
    """`since` as a duration before now."""

    seconds: float


_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h)")
_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_since(text: str) -> Duration | datetime | str:
    """Return what `since` means: a `Duration`, a time, or else a cursor (PROTOCOL section 2)."""
    match = _DURATION.fullmatch(text)
    if match:
        return Duration(int(match[1]) * _UNIT_SECONDS[match[2]])
    try:
        moment: datetime = msgspec.convert(text, Annotated[datetime, Meta(tz=True)])
    except (msgspec.ValidationError, UnicodeEncodeError):
        return text
    return moment


def check_since(text: str) -> None:
    """Check that a `since` says something. Raises `RequestError` (`bad_request`) that names it."""
    if not text:
        raise RequestError("bad_request", "A cursor, a duration or a time is missing - at `since`")


def check_list(values: Sequence[str], kind: Literal["inbox_ids", "event_types"]) -> None:
    """Check names that came in a query. Raises `RequestError` (`bad_request`) that names the field."""
    item: Any = InboxName if kind == "inbox_ids" else TypeFilter
    try:
        msgspec.convert(values, Annotated[list[item], Meta(min_length=1)])
    except msgspec.ValidationError as error:
        raise RequestError("bad_request", located(str(error), kind)) from None


def check_identifier(value: str, name: str, *, code: str = "invalid_params") -> None:
    """Check one name. Raises `RequestError` with this code, which names it."""
    try:
        msgspec.convert(value, Identifier)
    except msgspec.ValidationError as error:
        raise RequestError(code, located(str(error), name)) from None


_INBOX_SPELLINGS: Final = ("inbox_id", "inbox_ids", "inbox", "inboxes", "inboxId", "inboxIds")
_SPELLINGS: Final = {
    "inbox_id": _INBOX_SPELLINGS,
    "inbox_ids": _INBOX_SPELLINGS,
    "event_types": ("event_type", "eventType", "eventTypes"),
    "client_id": ("client", "clientId"),
}


def check_spelling(
    paths: Mapping[str, str],
    *names: Literal["inbox_id", "inbox_ids", "event_types", "client_id"],
    code: str = "invalid_params",
) -> None:
    """Refuse what is meant as one of ``names`` and spelled otherwise: to ignore it would be to take all for some.

    ``paths`` says where each name that was given stands. Raises `RequestError` that names both.
    """
    for right in names:
        for name in _SPELLINGS[right]:
            if name in paths and name != right:
                raise RequestError(code, f"The name is `{right}` - at `{paths[name]}`")


def located(message: str, path: str) -> str:
    """Return msgspec's ``message`` with the value's own ``path`` in it instead of the bare ``$``."""
    if "`$" in message:
        return message.replace("`$", f"`{path}", 1)
    return f"{message} - at `{path}`"
