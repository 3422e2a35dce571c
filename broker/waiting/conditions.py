"""What the event that somebody waits for must be like (PROTOCOL section 11).

Pure. Conditions are texts to be found, upper and lower case alike: no patterns, so that each costs one look over
what it is looked for in. They are for `payload.message`, or for the payload itself where there is none.
"""

from collections.abc import Callable, Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw, Struct

MAX_ADDRESSES: Final = 1_000
"""Of one message that are looked at."""
_DOMAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")

Text = Annotated[str, Meta(min_length=1, max_length=256)]


class Where(Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """Conditions that all must be true; a text is found wherever it stands, upper and lower case alike."""

    from_: Annotated[Text | None, Meta(description="In the sender; `@example.com`: of this domain.")] = None
    to: Annotated[Text | None, Meta(description="In one of the recipients; `@example.com`: of this domain.")] = None
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
        sender = _finder(where.from_)
        checks.append(lambda mail: sender(mail.from_))
    if where.to is not None:
        recipient = _finder(where.to)
        checks.append(lambda mail: any(map(recipient, mail.to)))
    if where.subject is not None:
        subject = _finder(where.subject, domains=False)
        checks.append(lambda mail: subject(mail.subject))
    if where.contains is not None:
        anything = _finder(where.contains, domains=False)
        checks.append(lambda mail: anything(mail.subject) or anything(mail.body))
    if where.thread_id is not None:
        checks.append(lambda mail: mail.thread_id == where.thread_id)
    if where.in_reply_to is not None:
        checks.append(lambda mail: mail.in_reply_to == where.in_reply_to)
    return lambda mail: all(check(mail) for check in checks)


def _finder(wanted: str, *, domains: bool = True) -> Callable[[str], bool]:
    """Return what says whether a text is in another; one that begins with `@` must be the whole of a domain."""
    folded = wanted.casefold()
    if not (domains and folded.startswith("@")):
        return lambda text: folded in text.casefold()

    def of_domain(text: str) -> bool:
        text = text.casefold()
        start = text.find(folded)
        while start >= 0:
            end = start + len(folded)
            if text[end : end + 1] not in _DOMAIN:
                return True
            start = text.find(folded, end)
        return False

    return of_domain
