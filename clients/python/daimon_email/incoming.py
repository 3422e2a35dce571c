"""What the broker sends: frames to events, notices, answers, and how far the client has come. No I/O here."""

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from .commands import Commands
from .connection import EndedError
from .ending import not_opened
from .errors import CommandError
from .events import Event, Gap
from .handling import Queue
from .notices import Notices
from .place import Place, Seen
from .selection import Selection, chunks

_LATE: Final = "late:"
"""Begins the ids of subscribes that belong to an opening."""


class Incoming:
    """Takes the frames of one connection after another. ``keep`` is called when the client's place has changed."""

    def __init__(
        self,
        place: Place,
        selection: Selection,
        commands: Commands,
        queue: Queue,
        notices: Notices,
        keep: Callable[[], None],
    ) -> None:
        self._place = place
        self._selection = selection
        self._commands = commands
        self._queue = queue
        self._notices = notices
        self._keep = keep
        self._seen = Seen()
        self._ready: dict[str, Any] = {}
        self._late: set[str] = set()
        """Subscribes that belong to the opening and are not answered yet."""
        self._late_since: str | None = None
        """Where to open again while there are any."""
        self.wait_seconds = 0.0
        """How long the broker asked to wait before it went."""

    def begin(self) -> None:
        """Begin at what is handled: what came beyond it comes again."""
        for event in self._place.begin_again():
            self._seen.forget(event)

    # --- what the broker said of itself

    @property
    def resume_from(self) -> str | None:
        """Where the next connection is to begin; None: nothing came yet."""
        return self._late_since or self._place.received

    @property
    def heartbeat_seconds(self) -> float:
        """How often something comes from the broker at least."""
        return float(self._ready.get("heartbeat_seconds") or 30)

    @property
    def replay_seconds(self) -> float:
        """How long an event stays in the window."""
        return float(self._ready.get("replay_seconds") or 300)

    @property
    def most_bytes(self) -> int:
        """Of a message to the broker."""
        limits = self._ready.get("limits") or {}
        return int(limits.get("max_message_bytes") or 1_048_576)

    # --- the opening

    def take_ready(self, text: str) -> None:
        """Take the first frame of a connection. Raises `EndedError` if it is none that a broker would send."""
        try:
            ready = json.loads(text)
            if ready["type"] != "connection.ready":
                raise ValueError(ready["type"])
            cursor = ready["cursor"]
        except (ValueError, KeyError, TypeError):
            raise EndedError(not_opened("the other side is no broker")) from None
        self._ready = ready
        if self._place.received is None:
            self._moved(cursor)

    def rest(self, since: str | None, names: Sequence[str], late: Sequence[str]) -> list[str]:
        """Return what is to be sent after an opening with ``names`` at ``since``: for what it did not name.

        ``late`` did not fit into it; other inboxes may have been subscribed to, or unsubscribed, meanwhile.
        """
        added, removed = self._selection.since(names)
        if not names and self._ready.get("inbox_ids"):  # the key's own inboxes, where nothing is named
            removed = list(self._ready["inbox_ids"])
        self._late.clear()
        self._late_since = None
        if late:
            self._late_since = self._ready["cursor"] if since in (None, "acked") else since
        texts = [json.dumps({"action": "unsubscribe", "inbox_ids": removed})] if removed else []
        for inbox_ids, from_ in ((late, self._late_since), (added, None)):
            for part in chunks(inbox_ids, self.most_bytes // 2):
                request_id = f"{_LATE}{len(self._late)}"
                self._late.add(request_id)
                asked = {"action": "subscribe", "request_id": request_id, "inbox_ids": part}
                texts.append(json.dumps(asked | ({} if from_ is None else {"since": from_})))
        return texts

    # --- frames

    def take(self, text: str, size: int) -> None:
        """Take a frame of ``size`` bytes. One that cannot be read is reported."""
        try:
            frame = json.loads(text)
            self._take_frame(frame["type"], frame, size)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._notices.report("a frame that cannot be read", error)

    def _take_frame(self, kind: str, frame: dict[str, Any], size: int) -> None:
        if kind == "response":
            self._take_answer(frame)
        elif kind == "connection.cursor":
            self._moved(frame["cursor"])
        elif kind == "connection.updated":
            self._selection.narrow(frame["inbox_ids"])
        elif kind == "replay.gap":
            gap = Gap(frame["from"], frame["to"], frame["count"])
            self._notices.tell("gap", gap)
            self._moved(gap.to)
        elif kind == "server.draining":
            self.wait_seconds = float(frame["reconnect_after_ms"]) / 1_000
        elif kind == "error":
            self._notices.report("a frame", CommandError(frame["error"]["code"], frame["error"]["message"]))
        elif "event_id" in frame and "cursor" in frame:
            self._take_event(Event(frame, size))

    def _take_answer(self, frame: dict[str, Any]) -> None:
        if frame.get("action") in ("subscribe", "unsubscribe") and "result" in frame:
            # The cursor to go on from with the inboxes as they are now; a replay begins there.
            self._moved(frame["result"]["cursor"])
        request_id = frame.get("request_id")
        if request_id not in self._late:
            self._commands.answer(frame)
            return
        self._late.discard(request_id)
        if not self._late:
            self._late_since = None
        if "error" in frame:
            error = CommandError(frame["error"]["code"], frame["error"]["message"])
            self._notices.report("a subscribe that belongs to the opening", error)

    def _take_event(self, event: Event) -> None:
        if not self._seen.is_new(event):
            self._moved(event.cursor)
            return
        self._place.came(event)
        self._queue.put(event)

    def _moved(self, cursor: str) -> None:
        self._place.moved(cursor)
        self._keep()
