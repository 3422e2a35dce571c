"""The rules of the stream protocol for one client: a message and a time in, frames and changes out.

Pure: no stream, no task, no clock. What is to be written waits in here, answers first, then events, and is
taken by whoever owns the socket. What must be done elsewhere is returned: a `PublishRequest`, an `Asked`, what is to be
asked of the archive, or the close code that ends the connection. So every rule that a client can see is a plain call.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from ..access.keys import Key, inbox_ids_of
from ..access.opening import Opening, size_of
from ..budget import Held
from ..commands.requests import CommandRequest, PublishRequest, check_command, trace_of
from ..config import Config
from ..errors import BadCommandError, BadFrameError, CloseCode, RequestError, part_from_frames
from ..fanout.acknowledged import Acknowledged, AckRequest
from ..fanout.follower import Follower
from ..fanout.listeners import Listener
from ..fanout.subscriptions import Subscriptions
from ..log.archive import Older, Page, Reach, Reached
from ..log.replay import ReplayBuffer
from ..protocol.decoding import decode_command, decode_params, is_long, require_few, sound
from ..protocol.framing import PING, text_frame
from ..protocol.messages import (
    MAX_EVENT_IDS,
    AckParams,
    Command,
    CursorUpdate,
    Draining,
    Gap,
    HoldParams,
    Limits,
    Ready,
    Replay,
    SubscribeParams,
    SubscriptionResult,
    UnsubscribeParams,
    Updated,
    encode,
    encode_error,
    encode_response,
    format_time,
)
from ..protocol.names import ACKED, ALL_INBOXES, check_no_inbox, check_spelling, too_many
from ..protocol.selection import NOTHING, Selection, TypeFilter
from ..queues.asked import WorkAsked, check_work, is_work
from ..waiting.asked import Asked, check_wait
from .naming import Naming

MAX_BAD_FRAMES: Final = 20
GRACE_SECONDS: Final = 10.0
"""A heartbeat may be so late (PROTOCOL section 5)."""
SILENT_SECONDS: Final = 40.0
"""Nothing read for the replay window and so long: the client's events are gone anyway."""
MAX_WAITING_ANSWER_BYTES: Final = 262_144
"""A client whose answers wait for more than this is not read from until it takes some."""
MAX_REPLAYS: Final = 64
"""Nor one with more replays under way, until some have met: what all of them have missed is counted in one step."""
_DONE_HERE: Final = frozenset({"subscribe", "unsubscribe", "ping", "ack", "hold", "lease", "nack", "wait_for"})


def count_nothing(*_: object) -> None:
    """Be the ``count`` of a session whose client gives no commands."""


class SubscribeRequest(Struct, frozen=True):
    """A client's `subscribe` that starts where memory does not reach: to be obeyed again with the answer to this."""

    command: Command
    reach: Reach


Elsewhere = PublishRequest | CommandRequest | SubscribeRequest | AckRequest | Asked | WorkAsked
"""What others do for the client, and answer later."""


class Session:
    """One client's side of the protocol. ``listener`` is its end in the fan-out.

    ``named`` is held for what it names. ``count`` is told of each command that is answered: its action, and the error
    if it is one.
    """

    def __init__(
        self,
        key: Key,
        config: Config,
        buffer: ReplayBuffer,
        subscriptions: Subscriptions,
        listener: Listener,
        opening: Opening,
        connection_id: str,
        acknowledged: Acknowledged,
        named: Held,
        count: Callable[[str, RequestError | None], None] = count_nothing,
    ) -> None:
        self.key = key
        self._config = config
        self._connection_id = connection_id
        # Of the opening nothing else is kept: it has names, and these may be given up.
        self._since = opening.since
        self._is_look = opening.watch
        self._count = count
        self._client_id = opening.client_id or ""
        self._answers: list[bytes] = []
        self.waiting_bytes = 0
        """Of answers that are to be written."""
        self.answered = 0
        """Commands that were answered."""
        self.gaps = 0
        """Gaps that were said."""
        self.wanted: Older | None = None
        """What is to be read elsewhere before `take` can go on, as that has found it."""
        self._bad_frames = 0
        self._request_ids = 0
        self._opened = False
        self._named = NOTHING
        self._names: list[str] = []
        """The inboxes of ``_named``, sorted."""
        client = None
        if opening.client_id is not None:
            client = acknowledged.client(buffer.account_id, key.identity, opening.client_id)
        self.follower = Follower(buffer, subscriptions, listener, opening.selection, opening.event_filter, client)
        self.naming = Naming(named, self.follower)

    # --- what is to be written

    @property
    def replay_seconds(self) -> float:
        """How far back a ``since`` may reach."""
        kept = self.follower.archive_seconds
        return self._config.replay.seconds if kept is None else kept

    @property
    def congested(self) -> bool:
        """Whether so much waits to be written that no further message should be read."""
        return self.waiting_bytes > MAX_WAITING_ANSWER_BYTES or self.follower.replays > MAX_REPLAYS

    def take_answers(self) -> bytes:
        """Return the frames of all waiting answers, joined; they count as written."""
        data = b"".join(self._answers)
        self._answers.clear()
        self.waiting_bytes = 0
        return data

    def put_back(self, answers: bytes) -> None:
        """Return what `take_answers` gave and could not be written at all."""
        if answers:
            self._answers.insert(0, answers)
            self.waiting_bytes += len(answers)

    def take(self) -> bytes | None:
        """Return the next frames to write: answers, then events; b"": call again.

        None: nothing is left, and from this step on the client is live (or waits for the fan-out to pass it); or what
        comes next is ``wanted`` first, and to be handed in by `take_in`.
        """
        if self._answers:
            return self.take_answers()
        self.wanted = None
        following = self.follower.next()
        if following is None:
            return None
        if isinstance(following, Older):
            self.wanted = following
            return None
        if isinstance(following, Gap):
            self.gaps += 1
            return text_frame(encode(following))
        return b"".join([entry.frame for entry in following])

    def take_in(self, older: Older, page: Page) -> None:
        """Take what was ``wanted``; `take` gives it, if it is still."""
        self.follower.take_in(older, page)

    def flush(self, write_nowait: Callable[[bytes], int]) -> None:
        """Write waiting answers at once if the client is live and takes them; else its writer is woken."""
        if self.follower.live:
            answers = self.take_answers()
            taken = write_nowait(answers)
            if taken == len(answers):
                return
            if not taken:
                self.put_back(answers)
        self.follower.pause()

    def _say(self, json: bytes) -> None:
        self._say_frame(text_frame(json))

    def _say_frame(self, frame: bytes) -> None:
        self._answers.append(frame)
        self.waiting_bytes += len(frame)

    # --- opening and ending

    def open(self, now: float, reached: Reached | None = None) -> Reach | None:
        """Say `connection.ready`, and start the replay that the opening asks for.

        A `Reach`: nothing is said yet, this is to be asked of the archive first, and the answer given to the next call.
        """
        limits, since = self._config.limits, self._since
        replay: Replay | UnsetType = UNSET
        gap = None
        if since is not None:
            reach = self.follower.reach(self.follower.selection, since, now, reached)
            if reach is not None:
                return reach
            replay, gap = self.follower.start(self.follower.resolve(since, now), reached)
        ready = Ready(
            connection_id=self._connection_id,
            account_id=self.key.account_id or "",
            inbox_ids=self._inbox_ids(),
            cursor=self.follower.cursor,
            heartbeat_seconds=limits.heartbeat_seconds,
            replay_seconds=self.replay_seconds,
            limits=Limits(
                limits.max_message_bytes,
                limits.max_event_bytes,
                limits.max_inboxes_per_connection,
                limits.max_event_types,
                limits.max_events_per_request,
                self._config.rates.of(self.key.tier).commands_per_second,
            ),
            replay=replay,
        )
        self._say(encode(ready))
        self._opened = True
        self._say_gap(gap)
        return None

    def change_key(self, key: Key) -> None:
        """Go on with what the key reaches now. If that is less, keep the rest, and say so. After the end: nothing."""
        if self.follower.closed:
            return
        less = self.key.reach.minus(key.reach) != NOTHING
        self.key = key
        held = self.follower.selection
        lost = held.minus(key.reach)
        kept = held.minus(lost).union(key.account_events)
        if kept != held:
            self.follower.drop_from_replays(lost)
            self.follower.change(kept, self.follower.event_filter)
            self.follower.join_replay(kept.minus(held))
            self.naming.recount(key)
        if less and self._opened:
            self._say(encode(Updated(self._inbox_ids())))

    def _inbox_ids(self) -> list[str]:
        """Return what is followed, as the client is told it; sorted once for each selection."""
        selection = self.follower.selection
        if selection is not self._named:
            self._named, self._names = selection, inbox_ids_of(selection)
        return self._names

    def drain(self, reconnect_after_ms: int) -> None:
        """Say that the server is about to close."""
        self._say(encode(Draining(reconnect_after_ms)))

    def close(self) -> None:
        """Follow nothing any more."""
        self.follower.close()

    def _say_gap(self, gap: Gap | None) -> None:
        if gap is not None:
            self.gaps += 1
            self._say(encode(gap))

    # --- heartbeats

    @property
    def patience_seconds(self) -> float:
        """How long a client may show no sign of life."""
        return self._config.limits.heartbeat_seconds + GRACE_SECONDS

    def overdue(self, silent_seconds: float, unacknowledged_seconds: float | None) -> bool:
        """Whether the client is to be taken for dead (PROTOCOL section 5).

        ``silent_seconds``: since a byte was read from it; ``unacknowledged_seconds``: since its TCP acknowledged
        anything, None where that is not known.
        """
        patience = self.patience_seconds
        if silent_seconds > self.replay_seconds + SILENT_SECONDS:
            return True
        if unacknowledged_seconds is None:
            unacknowledged_seconds = silent_seconds
        return silent_seconds > patience and unacknowledged_seconds > patience

    def heartbeat(self) -> None:
        """Say a ping, and the cursor of a quiet client. Nothing for those behind: they are being fed."""
        self.naming.recount_late(self.key)
        if not self.follower.live:
            return
        news = self.follower.news()
        self._say_frame(PING if news is None else PING + text_frame(encode(CursorUpdate(news))))

    def ping(self) -> None:
        """Say a ping out of turn, unless something waits to be written anyway."""
        if not self._answers:
            self._say_frame(PING)

    # --- what the client says

    def receive(self, message: str | bytes, now: float, wall: datetime) -> Elsewhere | CloseCode | Command | None:
        """Handle one message of the client; its answer waits to be written. Returns what is to be done elsewhere.

        A `Command`: it is long, and is to be proved in turns with others before this client is made to `obey` it.
        """
        try:
            if isinstance(message, bytes):
                raise BadFrameError(RequestError("invalid_params", "Binary frames carry no commands"))
            command = decode_command(message)
        except BadFrameError as bad:
            self._say(encode_error(bad.error))
            self._bad_frames += 1
            return CloseCode.TOO_MANY_BAD_FRAMES if self._bad_frames >= MAX_BAD_FRAMES else None
        except BadCommandError as bad:
            self._bad_frames = 0
            self.answer(bad.request_id or self._new_request_id(), bad.action, bad.error)
            return None
        self._bad_frames = 0
        if is_long(command) and command.action not in _DONE_HERE:
            return command
        return self.obey(command, now, wall)

    def answer(
        self,
        request_id: str,
        action: str,
        outcome: Struct | dict[str, Any] | Raw | RequestError,
        *,
        duplicate: bool = False,
    ) -> None:
        """Answer a command. ``duplicate``: with the outcome of another that has the same `once`."""
        self.answered += 1
        self._count(action, outcome if isinstance(outcome, RequestError) else None)
        self._say(encode_response(request_id, action, outcome, duplicate=duplicate))

    def _new_request_id(self) -> str:
        self._request_ids += 1
        return f"{self._connection_id}.{self._request_ids}"

    def obey(self, command: Command, now: float, wall: datetime, reached: Reached | None = None) -> Elsewhere | None:
        """Do what a command says, or return what is to be done elsewhere.

        ``reached`` is what a `SubscribeRequest` asked for; where that tells too little by now, it comes again.
        """
        request_id = command.request_id or self._new_request_id()
        gap = None
        outcome: Struct | dict[str, Any] | RequestError
        try:
            if is_work(command):
                if self._is_look:
                    raise RequestError("forbidden", "A look (`watch=1`) takes no work")
                return check_work(self.key, command, request_id)
            match command.action:
                case "subscribe":
                    subscribed = self._subscribe(command, now, reached)
                    if isinstance(subscribed, Reach):
                        return SubscribeRequest(replace(command, request_id=request_id), subscribed)
                    outcome, gap = subscribed
                case "unsubscribe":
                    outcome = self._unsubscribe(command)
                case "publish":
                    return self._publish(command, request_id)
                case "ack":
                    return self._ack(command, request_id, AckParams)
                case "hold":
                    return self._ack(command, request_id, HoldParams)
                case "ping":
                    outcome = {"server_time": format_time(wall)}
                case "wait_for":
                    return check_wait(self.key, command, request_id, self._config.limits)
                case _:
                    return check_command(self.key, command, request_id, client_id=self._client_id)
        except RequestError as error:
            outcome = part_from_frames(error)  # which holds this step, and with it the message
        self.answer(request_id, command.action, outcome)
        self._say_gap(gap)
        return None

    def _publish(self, command: Command, request_id: str) -> PublishRequest:
        self.key.require("publish")
        if "events" not in command.params:
            raise RequestError("invalid_params", "There is no `events` - at `$`")
        said = command.params.get("inbox_id")
        if said is None or bytes(said) != b"null":
            check_no_inbox(command.paths)
        if command.request_id is None:
            check_spelling(command.paths, "request_id")
        trace = trace_of(command)
        proved = sound(command)
        if is_long(command):
            proved = replace(proved, params={})  # they hold the message: what waits has its events once
        request = CommandRequest(proved, self.key, request_id, traceparent=trace, client_id=self._client_id)
        return PublishRequest(request, bytes(command.params["events"]), command.paths["events"])

    def _ack(self, command: Command, request_id: str, kind: type[AckParams | HoldParams]) -> AckRequest:
        self.key.require("subscribe")
        if self.follower.sent is None:
            raise RequestError("invalid_params", f"`{command.action}` needs a connection that has a `client_id`")
        require_few(command, "event_ids", MAX_EVENT_IDS)
        params = decode_params(command, kind)
        reach = self.key.reach
        if params.inbox_id is not None:
            self.key.require_inbox(params.inbox_id, command.paths["inbox_id"])
            reach = Selection(frozenset({params.inbox_id}))
        return AckRequest(request_id, command.action, params, reach, command.paths.get("cursor", "$.cursor"))

    def _subscribe(
        self, command: Command, now: float, reached: Reached | None
    ) -> tuple[SubscriptionResult, Gap | None] | Reach:
        if reached is not None:
            self.naming.recount(self.key)  # it was held while the archive was asked
        self.key.require("subscribe")
        check_spelling(command.paths, "inbox_ids", "event_types", "since", values=command.params)
        follower, most = self.follower, self._config.limits.max_inboxes_per_connection
        held = follower.selection
        self._require_few_inboxes(command)
        require_few(command, "event_types", self._config.limits.max_event_types)
        params = decode_params(command, SubscribeParams)
        if params.since == ACKED and follower.sent is None:
            message = f"`{ACKED}` needs a connection that has a `client_id` - at `{command.paths['since']}`"
            raise RequestError("invalid_params", message)
        where = command.paths.get("inbox_ids", "$.inbox_ids")
        wanted = held.union(self.key.select(params.asked(), where))
        if wanted != held and size_of(wanted) > most:
            raise too_many("inbox_ids", most, where)
        types = follower.event_filter if params.event_types is None else TypeFilter(params.event_types)
        added = wanted.minus(held)
        if wanted is not held:
            self.naming.hold(self.key, wanted, added)
        # What a replay under way has missed by now is said before an answer that says something newer.
        if reached is not None and reached.reach.before is not None and reached.page is not None:
            follower.take_in(reached.reach.before, reached.page)
        self._say_gap(follower.gap_of_replay())
        if params.since is not None:
            reach = follower.reach(added, params.since, now, reached)
            if reach is not None:
                return reach
        follower.change(wanted, types)
        replay: Replay | UnsetType = UNSET
        gap = None
        if params.since is None:
            follower.join_replay(added)
        else:
            replay, gap = follower.replay(added, follower.resolve(params.since, now), reached)
        if wanted.inboxes is None:
            self.naming.recount(self.key)
        return SubscriptionResult(self._inbox_ids(), follower.cursor, replay), gap

    def _require_few_inboxes(self, command: Command) -> None:
        """Refuse a longer list of inboxes than a connection may hold, or this one does."""
        most = max(self._config.limits.max_inboxes_per_connection, size_of(self.follower.selection))
        require_few(command, "inbox_ids", most)

    def _unsubscribe(self, command: Command) -> SubscriptionResult:
        self.key.require("subscribe")
        self._require_few_inboxes(command)
        params = decode_params(command, UnsubscribeParams)
        follower = self.follower
        held = follower.selection
        if ALL_INBOXES in params.inbox_ids:
            kept = self.key.select([], "inbox_ids")
        elif held.inboxes is None:
            raise RequestError(
                "invalid_params",
                f"Under `*` single inboxes cannot be unsubscribed - at `{command.paths['inbox_ids']}`",
            )
        else:
            kept = Selection(held.inboxes - frozenset(params.inbox_ids))
        removed = held.minus(kept)
        self.naming.hold(self.key, kept, removed)
        follower.drop_from_replays(removed)
        follower.change(kept, follower.event_filter)
        return SubscriptionResult(self._inbox_ids(), follower.cursor)
