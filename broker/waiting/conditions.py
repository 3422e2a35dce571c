"""What the event that somebody waits for must be like (PROTOCOL section 11).

Pure. Conditions are texts to be found, upper and lower case alike: no patterns, so that each costs one look over
what it is looked for in. They are for `payload.message`, or for the payload itself where there is none.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain, islice
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from .addresses import MAX_ADDRESSES, Address, address_of, addresses_in, domain_of

Text = Annotated[str, Meta(min_length=1, max_length=256)]


class Where(Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Conditions that all must be true; a text is found wherever it stands, upper and lower case alike."""

    from_: Annotated[Text | None, Meta(description="In the sender; with an `@`: in its address.")] = None
    to: Annotated[Text | None, Meta(description="In a recipient; with an `@`: in its address.")] = None
    subject: Annotated[Text | None, Meta(description="In the subject.")] = None
    contains: Annotated[Text | None, Meta(description="In the subject or the body.")] = None
    thread_id: Annotated[Text | None, Meta(description="The thread, whole and exact.")] = None
    in_reply_to: Annotated[Text | None, Meta(description="What it answers, whole and exact.")] = None


class Mail(Struct, frozen=True, rename={"from_": "from"}):
    """What conditions are for, and what is read out of a message: texts, "" where there is none."""

    from_: str = ""
    to: tuple[str, ...] = ()
    subject: str = ""
    body: str = ""
    thread_id: str = ""
    in_reply_to: str = ""


class _Fields(Struct, frozen=True, rename={"from_": "from"}):
    from_: Raw = Raw(b"null")
    to: Raw = Raw(b"null")
    subject: Raw = Raw(b"null")
    body: Raw = Raw(b"null")
    thread_id: Raw = Raw(b"null")
    in_reply_to: Raw = Raw(b"null")


class _Message(Struct, frozen=True):
    message: Raw = Raw(b"null")


class _Event(Struct, frozen=True):
    payload: Raw


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_text = msgspec.json.Decoder(str).decode


def mail_of(event: bytes) -> Mail:
    """Return what the JSON of an event says as a mail; whatever is not of that form is left out."""
    payload = _decode_event(event).payload
    message = _decode_message(payload).message
    fields = _decode_fields(message if _begins(message, b"{") else payload)
    to = tuple(_texts(fields.to))
    return Mail(
        _text(fields.from_), to, _text(fields.subject), _text(fields.body), _text(fields.thread_id),
        _text(fields.in_reply_to),
    )  # fmt: skip


def _begins(raw: Raw, character: bytes) -> bool:
    return memoryview(raw)[:1] == character


def _text(raw: Raw) -> str:
    return _decode_text(raw) if _begins(raw, b'"') else ""


def _texts(raw: Raw) -> Iterator[str]:
    if not _begins(raw, b"["):
        yield _text(raw)
        return
    if bytes(raw).count(b",") < MAX_ADDRESSES:
        for item in msgspec.json.decode(raw, type=list[Raw]):
            yield _text(item)


def condition(where: Where | None) -> Callable[[Mail], bool] | None:
    """Return what says whether a mail is as it must be; None: whatever it is like."""
    if where is None or where == Where():
        return None
    checks: list[Callable[[Mail], bool]] = []
    if where.from_ is not None:
        checks.append(_sender_check(where.from_))
    if where.to is not None:
        checks.append(_recipient_check(where.to))
    if where.subject is not None:
        subject = _finder(where.subject)
        checks.append(lambda mail: subject(mail.subject))
    if where.contains is not None:
        anything = _finder(where.contains)
        checks.append(lambda mail: anything(mail.subject) or anything(mail.body))
    if where.thread_id is not None:
        checks.append(lambda mail: mail.thread_id == where.thread_id)
    if where.in_reply_to is not None:
        checks.append(lambda mail: mail.in_reply_to == where.in_reply_to)
    return lambda mail: all(check(mail) for check in checks)


def _finder(wanted: str) -> Callable[[str], bool]:
    """Return what says whether a text is in another."""
    folded = wanted.casefold()
    return lambda text: folded in text.casefold()


def _sender_check(wanted: str) -> Callable[[Mail], bool]:
    """Return what says whether a sender is as wanted; with an `@` its address is meant, never a name beside it."""
    if "@" not in wanted:
        found = _finder(wanted)
        return lambda mail: found(mail.from_)
    is_meant = _address_finder(wanted)

    def check(mail: Mail) -> bool:
        address = address_of(mail.from_)
        return address is not None and is_meant(address)

    return check


def _recipient_check(wanted: str) -> Callable[[Mail], bool]:
    """The same for recipients, each by itself."""
    if "@" not in wanted:
        found = _finder(wanted)
        return lambda mail: any(map(found, mail.to))
    is_meant = _address_finder(wanted)
    return lambda mail: any(map(is_meant, _recipients(mail.to)))


def _address_finder(wanted: str) -> Callable[[Address], bool]:
    """Return what says whether an address is as wanted: its domain, all of it, or a part."""
    if wanted.startswith("@"):
        domain = domain_of(wanted)
        return lambda address: address.domain == domain
    exact, part = address_of(wanted), wanted.lower()
    if exact is not None and "." in exact.domain:
        return lambda address: address == exact
    return lambda address: part in address.whole


@lru_cache(maxsize=1)
def _recipients(texts: tuple[str, ...]) -> tuple[Address, ...]:
    """Return the addresses of recipients; those of the last mail are kept: a thousand may ask for them."""
    return tuple(islice(chain.from_iterable(map(addresses_in, texts)), MAX_ADDRESSES))
