"""The one address of a mail's sender or recipient, as RFC 5322 writes it (section 3.4); strict, as strangers write it.

Pure. What could be read in two ways is no address: several mailboxes, groups, comments, characters that nobody sees.
One look over a text that is bounded, whatever stands in it.
"""

import re
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

MAX_CHARACTERS: Final = 1_024
"""Of one mailbox with its name: a line of a mail has at most 998 (RFC 5322, section 2.1.1)."""
MAX_ADDRESSES: Final = 1_000
"""Of one message that are looked at."""

_LOCAL: Final = r'(?:[^\s"(),:;<>@\[\\\]]{1,256}+|"[^"\\<>@]{1,256}+")'
_LABEL: Final = r"[^\W_][\w-]{0,62}+"
_ADDRESS: Final = rf"{_LOCAL}@{_LABEL}(?:\.{_LABEL})*+\.?"
_QUOTED: Final = r'"(?:[^"\\]++|\\.)*+"'
_MAILBOX: Final = re.compile(rf'(?P<bare>{_ADDRESS})|(?:(?P<name>[^"(),:;<>\\]*+)|{_QUOTED} *+)<(?P<angle>{_ADDRESS})>')
_ITEM: Final = re.compile(r'(?:[^",]++|"(?:[^"\\]++|\\.)*+"?)++|,++')
_WIDE_SPACES: Final = str.maketrans("\u00a0\u3000", "  ")
"""Spaces that people write in names. Others, like whatever else is not to be seen, are of those who hide something."""
_KELVIN: Final = "\u212a"
"""The one character that is not of ASCII and is in lower case."""


class Address(Struct, frozen=True):
    """An address in lower case, without a dot at its end."""

    whole: str
    domain: str


def address_of(text: str) -> Address | None:
    """Return the address of a text that is exactly one mailbox; None: it is none, more than one, or not clear.

    A name before an address in angle brackets counts for nothing. If there is an `@` in it outside of quotes, it is
    the address itself.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = text.translate(_WIDE_SPACES).strip(" ")
    found = _MAILBOX.fullmatch(text) if text.isprintable() else None
    if found is None:
        return None
    address = (found["bare"] or found["angle"]).lower().removesuffix(".")
    name = found["name"] or ""
    if _KELVIN in text or ("@" in name and name.strip(" ").lower().removesuffix(".") != address):
        return None
    return Address(address, address.rpartition("@")[2])


def domain_of(text: str) -> str | None:
    """Return the domain that a text `@example.com` names, in lower case; None: it names none."""
    address = address_of(f"x{text}")
    return None if address is None else address.domain


def addresses_in(text: str) -> Iterator[Address]:
    """Yield the addresses of a list of mailboxes with commas between them: each that is one by itself.

    None of a list that has more than `MAX_ADDRESSES`.
    """
    if "@" in text and text.count(",") < MAX_ADDRESSES:
        for item in _ITEM.finditer(text):
            address = address_of(item[0])
            if address is not None:
                yield address
