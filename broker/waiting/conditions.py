"""What the event that somebody waits for must be like (PROTOCOL section 11).

Pure. Conditions are texts to be found, upper and lower case alike: no patterns, so that each costs one look over
what it is looked for in. They are for `payload.message`, or for the payload itself where there is none. However many
look at a mail, what they look at is read out of it once.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from itertools import chain, islice
from typing import Annotated, Final, NamedTuple

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


class Mail(Struct, frozen=True, dict=True, rename={"from_": "from"}):
    """What conditions are for, and what is read out of a message: texts, "" where there is none."""

    from_: str = ""
    to: tuple[str, ...] = ()
    subject: str = ""
    body: str = ""
    thread_id: str = ""
    in_reply_to: str = ""

    @cached_property
    def sender(self) -> Address | None:
        """The address that it is from; None: that is not clear."""
        return address_of(self.from_)

    @cached_property
    def recipients(self) -> tuple[Address, ...]:
        """The addresses that it is to, `MAX_ADDRESSES` at most."""
        return tuple(islice(chain.from_iterable(map(addresses_in, self.to)), MAX_ADDRESSES))

    @cached_property
    def folded_from(self) -> tuple[str, ...]:
        """The sender, in one case, as what `from` is looked for in; the same of the others below."""
        return (self.from_.casefold(),)

    @cached_property
    def folded_to(self) -> tuple[str, ...]:
        """The recipients."""
        return tuple(map(str.casefold, self.to))

    @cached_property
    def folded_subject(self) -> tuple[str, ...]:
        """The subject."""
        return (self.subject.casefold(),)

    @cached_property
    def folded_text(self) -> tuple[str, ...]:
        """Subject and body."""
        return (*self.folded_subject, self.body.casefold())


class Sought(NamedTuple):
    """What is to be looked for first where many look: a text that a mail must have in a place, whole or as a part."""

    place: str
    """One of `WHOLE` or `PARTS`."""
    text: str


WHOLE: Final[Mapping[str, Callable[[Mail], Collection[str]]]] = {
    "in_reply_to": lambda mail: (mail.in_reply_to,),
    "thread_id": lambda mail: (mail.thread_id,),
    "from": lambda mail: (mail.sender.whole,) if mail.sender else (),
    "to": lambda mail: {address.whole for address in mail.recipients},
    "domain of from": lambda mail: (mail.sender.domain,) if mail.sender else (),
    "domain of to": lambda mail: {address.domain for address in mail.recipients},
}
"""Places, and the texts that stand there: one of them is to be what is sought. Those that tell most come first."""
PARTS: Final[Mapping[str, Callable[[Mail], Collection[str]]]] = {
    "subject": lambda mail: mail.folded_subject,
    "contains": lambda mail: mail.folded_text,
    "part of from": lambda mail: mail.folded_from,
    "part of to": lambda mail: mail.folded_to,
}
"""The same where what is sought is to be found in one of them."""


def sought(where: Where) -> Sought | None:
    """Return what a mail must have that is as it must be, as it tells most; None: that is not so simple."""
    found = dict(filter(None, (_place("from", where.from_), _place("to", where.to))))
    found |= {
        name: text
        for name, text in (("in_reply_to", where.in_reply_to), ("thread_id", where.thread_id))
        if text is not None
    }
    found |= {
        name: text.casefold()
        for name, text in (("subject", where.subject), ("contains", where.contains))
        if text is not None
    }
    return next((Sought(place, found[place]) for place in (*WHOLE, *PARTS) if place in found), None)


def _place(name: str, wanted: str | None) -> Sought | None:
    """Return where an address, a domain or a name of a `from` or a `to` is looked for."""
    if wanted is None:
        return None
    if "@" not in wanted:
        return Sought(f"part of {name}", wanted.casefold())
    if wanted.startswith("@"):
        domain = domain_of(wanted)
        return None if domain is None else Sought(f"domain of {name}", domain)
    exact = _exact(wanted)
    return None if exact is None else Sought(name, exact.whole)


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
        checks.append(lambda mail: subject(mail.folded_subject))
    if where.contains is not None:
        anything = _finder(where.contains)
        checks.append(lambda mail: anything(mail.folded_text))
    if where.thread_id is not None:
        checks.append(lambda mail: mail.thread_id == where.thread_id)
    if where.in_reply_to is not None:
        checks.append(lambda mail: mail.in_reply_to == where.in_reply_to)
    return lambda mail: all(check(mail) for check in checks)


def _finder(wanted: str) -> Callable[[tuple[str, ...]], bool]:
    """Return what says whether a text is in one of others, which are in one case."""
    folded = wanted.casefold()
    return lambda texts: any(folded in text for text in texts)


def _sender_check(wanted: str) -> Callable[[Mail], bool]:
    """Return what says whether a sender is as wanted; with an `@` its address is meant, never a name beside it."""
    if "@" not in wanted:
        found = _finder(wanted)
        return lambda mail: found(mail.folded_from)
    is_meant = _address_finder(wanted)
    return lambda mail: mail.sender is not None and is_meant(mail.sender)


def _recipient_check(wanted: str) -> Callable[[Mail], bool]:
    """The same for recipients, each by itself."""
    if "@" not in wanted:
        found = _finder(wanted)
        return lambda mail: found(mail.folded_to)
    is_meant = _address_finder(wanted)
    return lambda mail: any(map(is_meant, mail.recipients))


def _address_finder(wanted: str) -> Callable[[Address], bool]:
    """Return what says whether an address is as wanted: its domain, all of it, or a part."""
    if wanted.startswith("@"):
        domain = domain_of(wanted)
        return lambda address: address.domain == domain
    exact, part = _exact(wanted), wanted.lower()
    if exact is not None:
        return lambda address: address == exact
    return lambda address: part in address.whole


def _exact(wanted: str) -> Address | None:
    """Return the address that is wanted as a whole; None: a part of one is."""
    exact = address_of(wanted)
    return exact if exact is not None and "." in exact.domain else None
