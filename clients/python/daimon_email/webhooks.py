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


_processed: OrderedDict[str, None] = OrderedDict()


def processed(event_id: str) -> bool:
    """Note that an event is dealt with; return whether it was not before. Shared with every client in this process."""
    new = event_id not in _processed
    _processed[event_id] = None
    _processed.move_to_end(event_id)
    if len(_processed) > MAX_PROCESSED:
        _processed.popitem(last=False)
    return new


def is_processed(event_id: str) -> bool:
    """Whether an event is dealt with: the handlers of a client here have returned, or `processed` was told."""
    return event_id in _processed
