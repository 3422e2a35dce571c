"""For a program that takes webhooks beside the stream: whether one is genuine, and whether its event is dealt with."""

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from .errors import DaimonError
from .events import Event

MAX_PROCESSED: Final = 10_000


class BadSignatureError(DaimonError):
    """A webhook that this broker did not send, or not lately."""


def verify(headers: Mapping[str, str], body: bytes | str, secret: str) -> Event:
    """Return the event of a webhook whose signature is good (Standard Webhooks: five minutes of tolerance).

    ``body`` is as it came, byte for byte. Raises `BadSignatureError`.
    """
    text = body if isinstance(body, str) else body.decode("utf-8", "surrogateescape")
    lowered = {name.lower(): value for name, value in headers.items()}
    try:
        Webhook(secret).verify(text, lowered)
    except (WebhookVerificationError, ValueError, UnicodeError) as error:
        raise BadSignatureError(str(error) or "the signature is not good") from None
    try:
        return Event(json.loads(text), len(text))
    except (ValueError, KeyError, TypeError) as error:
        raise BadSignatureError(f"the body is no event: {error}") from None


class _Memory:
    """Events by inbox and id; an id alone is of any inbox. The oldest are forgotten."""

    def __init__(self, most: int = MAX_PROCESSED) -> None:
        self._most = most
        self._by_id: OrderedDict[str, set[str | None]] = OrderedDict()

    def add(self, event: Event | str) -> bool:
        new = not self.has(event)
        event_id, inbox_id = _names(event)
        self._by_id.setdefault(event_id, set()).add(inbox_id)
        self._by_id.move_to_end(event_id)
        if len(self._by_id) > self._most:
            self._by_id.popitem(last=False)
        return new

    def has(self, event: Event | str) -> bool:
        event_id, inbox_id = _names(event)
        inboxes = self._by_id.get(event_id, ())
        return bool(inboxes) and (inbox_id == _ANY or inbox_id in inboxes or _ANY in inboxes)

    def remove(self, event: Event) -> None:
        event_id, inbox_id = _names(event)
        inboxes = self._by_id.get(event_id)
        if inboxes is not None:
            inboxes.discard(inbox_id)
            if not inboxes:
                del self._by_id[event_id]


_ANY: Final = "*"
"""No inbox has this name."""


def _names(event: Event | str) -> tuple[str, str | None]:
    return (event, _ANY) if isinstance(event, str) else (event.event_id, event.inbox_id)


told = _Memory()
"""What the program has said that it has dealt with: no client hands it to handlers."""
taken = _Memory()
"""What the handlers of a client have dealt with, or are at work on."""


def processed(event: Event | str) -> bool:
    """Say that an event, or an event_id of whichever inbox, is dealt with; return whether it was not before.

    No client in this process hands it to its handlers then.
    """
    new = not is_processed(event)
    told.add(event)
    return new


def is_processed(event: Event | str) -> bool:
    """Whether an event is dealt with, or being dealt with: by handlers of a client here, or as `processed` was told."""
    return told.has(event) or taken.has(event)
