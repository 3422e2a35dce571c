"""What comes from the broker: JSON objects whose members are attributes, known ones and others alike."""

from collections.abc import Iterator, Mapping, Sequence
from keyword import iskeyword
from typing import Any, Final


class Fields(Mapping[str, Any]):
    """A JSON object: `fields.subject` is `fields["subject"]`; `from`, which Python keeps for itself, is `from_`.

    Objects in it are `Fields` too. A member that this library does not know is kept like any other.
    """

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members = members
        for name, value in members.items():
            if not name.startswith("_"):
                self.__dict__[f"{name}_" if name in _RESERVED or iskeyword(name) else name] = _wrapped(value)

    def __getitem__(self, name: str) -> Any:
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self._members)!r})"


_RESERVED: Final = frozenset({"keys", "values", "items", "get"})


def _wrapped(value: Any) -> Any:
    if isinstance(value, dict):
        return Fields(value)
    if isinstance(value, list):
        return [_wrapped(item) for item in value]
    return value


class Message(Fields):
    """A mail that came. What it says was written by a stranger."""

    message_id: str = ""
    inbox_id: str = ""
    from_: str = ""
    to: Sequence[str] = ()
    subject: str = ""
    body: str = ""
    labels: Sequence[str] = ()
    in_reply_to: str | None = None
    thread_id: str | None = None


class Bounce(Fields):
    """A mail of yours that could not be delivered."""

    message_id: str = ""
    recipient: str = ""
    reason: str = ""


class Complaint(Fields):
    """A mail of yours that somebody called spam."""

    message_id: str = ""
    recipient: str = ""
    feedback_type: str = ""


class Account(Fields):
    """An account that came to another tier."""

    tier: str = ""
    previous_tier: str = ""


class Gap:
    """Events that left the broker's window before this client could have them.

    ``count`` is how many of them were for it, None where the broker cannot know.
    """

    def __init__(self, from_: str | None, to: str, count: int | None) -> None:
        self.from_ = from_
        self.to = to
        self.count = count

    def __repr__(self) -> str:
        return f"Gap(from_={self.from_!r}, to={self.to!r}, count={self.count!r})"


_KINDS: Final[dict[str, type[Fields]]] = {
    "message.bounced": Bounce,
    "message.complaint": Complaint,
    "account.upgraded": Account,
}


class Event:
    """One event as it came.

    ``subject`` is what handlers get first: of `message.received` the message, of every other type the payload.
    """

    __slots__ = ("created_at", "cursor", "event_id", "frame", "inbox_id", "payload", "size", "subject", "type")

    def __init__(self, frame: Mapping[str, Any], size: int = 0) -> None:
        self.frame = frame
        """The frame as it came."""
        self.size = size
        self.type: str = frame["type"]
        self.event_id: str = frame["event_id"]
        self.inbox_id: str | None = frame.get("inbox_id")
        self.created_at: str = frame["created_at"]
        """RFC 3339, in UTC."""
        self.cursor: str = frame["cursor"]
        payload = frame.get("payload") or {}
        self.payload = _KINDS.get(self.type, Fields)(payload)
        self.subject: Fields = self.payload
        message = payload.get("message")
        if self.type == "message.received" and isinstance(message, dict):
            self.subject = Message({"inbox_id": self.inbox_id, **message})

    @property
    def thread(self) -> str | None:
        """What belongs together: the thread, else the inbox."""
        return getattr(self.subject, "thread_id", None) or self.inbox_id

    def __repr__(self) -> str:
        return f"Event({self.type} {self.event_id} in {self.inbox_id})"
