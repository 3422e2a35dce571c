"""What a program asks of the broker and of who does its commands, as calls: each waits for its own answer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, Literal

from .errors import TimedOutError
from .events import Event, Fields
from .waiting import Found

COMMAND_SECONDS: Final = 30.0
MAX_WAIT_FOR_SECONDS: Final = 3_600.0
"""That the broker waits in one go."""

ANSWER_SECONDS: Final = 5.0
"""The answer to a wait may be so late."""

Once = str | None | Literal["event"]


class Calls(ABC):
    """Commands by their names. All raise as `command` does."""

    @abstractmethod
    async def command(
        self,
        action: str,
        params: Mapping[str, Any] | None = None,
        *,
        once: Once = "event",
        timeout: float = COMMAND_SECONDS,
        request_id: str | None = None,
    ) -> Fields:
        """Give a command and return its result."""

    @abstractmethod
    async def subscribe(
        self,
        inbox_ids: str | Iterable[str] = "*",
        *,
        since: str | None = None,
        event_types: Iterable[str] | None = None,
    ) -> Fields:
        """Follow more inboxes."""

    @abstractmethod
    async def unsubscribe(self, inbox_ids: str | Iterable[str] = "*") -> Fields:
        """Follow these inboxes no longer."""

    async def send(self, command: Mapping[str, Any]) -> Fields:
        """Give a command as it is written, ``{"action": "send_email", …}``; return its result. Raises as `command`."""
        fields = dict(command)
        action = fields.pop("action", None)
        if not isinstance(action, str):
            raise ValueError(f"action: {action!r} is no name of a command")
        request_id = fields.pop("request_id", None)
        params = {**fields.pop("params", {}), **fields}
        inbox_ids = params.get("inbox_ids", "*")
        if action == "subscribe":
            types = params.get("event_types")
            return await self.subscribe(inbox_ids, since=params.get("since"), event_types=types)
        if action == "unsubscribe":
            return await self.unsubscribe(inbox_ids)
        return await self.command(action, params, request_id=request_id)

    async def send_email(
        self,
        *,
        inbox_id: str,
        to: str | Sequence[str],
        subject: str = "",
        body: str = "",
        in_reply_to: str | None = None,
        once: Once = "event",
        timeout: float = COMMAND_SECONDS,
        **more: Any,
    ) -> Fields:
        """Send a mail; return what the deployment says of it. Raises as `command`."""
        fields = {"inbox_id": inbox_id, "to": to, "subject": subject, "body": body, "in_reply_to": in_reply_to, **more}
        return await self.command("send_email", fields, once=once, timeout=timeout)

    async def mark_as_read(self, *, message_id: str, inbox_id: str | None = None, once: Once = "event") -> Fields:
        """Mark a message as read. Raises as `command`."""
        return await self.command("mark_as_read", {"message_id": message_id, "inbox_id": inbox_id}, once=once)

    async def publish(self, events: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Fields:
        """Publish one event or a list. Raises as `command`."""
        return await self.command("publish", {"events": events})

    async def ping(self) -> Fields:
        """Ask for a sign of life. Raises as `command`."""
        return await self.command("ping")

    # --- waiting

    async def wait_for(
        self,
        event_type: str = "message.received",
        *,
        inbox_id: str | None = None,
        where: Mapping[str, str] | Callable[[Any], bool] | None = None,
        since: str = "now",
        timeout: float = 60.0,
        extract: Sequence[Literal["code", "link"]] = (),
    ) -> Found | None:
        """Return the first event that is like this, None if there is none in time.

        ``where``: texts to find (`from`, `to`, `subject`, `contains`, `thread_id`, `in_reply_to`), or a function of
        what a handler would get. ``since``: a cursor or a duration such as `5m`, from where on what is stored is looked
        at. Raises as `command`.
        """
        deadline = monotonic() + timeout
        asked: dict[str, Any] = {"event_types": [event_type], "extract": list(extract)}
        if inbox_id is not None:
            asked["inbox_ids"] = [inbox_id]
        if isinstance(where, Mapping):
            asked["where"] = dict(where)
        if since == "now":  # told once: a wait that is sent again over a reconnect begins at the same place
            now = {**asked, "timeout_seconds": 0}
            since = (await self.command("wait_for", now, timeout=timeout + ANSWER_SECONDS))["cursor"]
        while True:
            left = max(0.0, min(deadline - monotonic(), MAX_WAIT_FOR_SECONDS))
            wait = {**asked, "since": since, "timeout_seconds": left}
            try:
                answer = await self.command("wait_for", wait, timeout=left + ANSWER_SECONDS)
            except TimedOutError:  # the connection was away; if there had been one before, it would have come
                if monotonic() >= deadline:
                    return None
                continue
            since, frame = answer["cursor"], answer["event"]
            if frame is None:
                if monotonic() >= deadline:
                    return None
                continue
            event = Event(frame)
            if not callable(where) or where(event.subject):
                extracted = answer.get("extracted") or {}
                links = [Fields(link) for link in extracted.get("link") or ()]
                return Found(event, since, tuple(extracted.get("code") or ()), tuple(links))
