"""What `broker doctor` looks at, one thing after the other: each as a client of the broker would meet it.

What comes later needs what came before, so the first thing without which there is no going on ends it.
"""

import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import trio
from msgspec import Struct, field

from ..access.keys import OPERATOR_KEY_PREFIX, TOKEN_PREFIX
from .client import LostError, RefusedError, SingleConnection, StreamRequest, open_single
from .figures import seconds_text
from .findings import Finding, ok, problem, quantiles, skipped
from .probing import STEP_SECONDS, Answer, Place, ProblemError, ask, connect, open_http, speaks_tls, stop

if TYPE_CHECKING:
    import httpx

ROUND_TRIPS: Final = 10
SKEW_SECONDS: Final = 1.0
"""By how much clocks may differ."""
SLOW_SECONDS: Final = 0.5
"""Beyond two round trips: what the slowest of a hundred deliveries may take."""
PROBE_TYPE: Final = "doctor.probe"
PROBE_INBOX: Final = "broker_doctor"
"""Where it publishes with the key of a whole account: nobody's inbox."""
SCOPES: Final = ("subscribe", "command", "publish", "webhooks")

_PROXY: Final = "have the proxy in between pass on `Upgrade` and `Connection` (docs/proxies.md), or go around it"
_HOLDS_BACK: Final = "switch buffering off in the proxy in between (nginx: proxy_buffering off; docs/proxies.md)"


class Patient(Struct):
    """What is known of the broker and the key."""

    place: Place
    websocket_url: str
    """The same of WebSockets."""
    key: str
    inbox: str | None
    idle_seconds: float
    samples: int
    scopes: set[str] = field(default_factory=set)
    account_id: str = ""
    heartbeat_seconds: float = 30.0
    round_trip_seconds: float = 0.0
    client_id: str = field(default_factory=lambda: f"doctor_{secrets.token_hex(6)}")
    """One for each run, so that a connection that was cut is taken over."""

    def stream(self, since: str | None = None) -> StreamRequest:
        """Return what to open: the inbox of the probes, once that is known, and nothing but probes of it."""
        inboxes = () if self.inbox is None or "subscribe" not in self.scopes else (self.inbox,)
        return StreamRequest(self.websocket_url, self.key, inboxes, since, (PROBE_TYPE,))


async def examine(patient: Patient, tell: Callable[[Finding], None]) -> None:
    """Tell what is found, check by check; the last one is a problem where it could not go on."""
    try:
        tell(await _reach(patient))
        async with open_http(patient.place, patient.key) as http:
            tell(await _broker(patient, http))
            tell(await _key(patient, http))
            if "webhooks" in patient.scopes:
                tell(await _webhooks(patient, http))
            cursor = await _examine_stream(patient, tell)
            tell(await _replay(patient, http, cursor))
            tell(await _quiet(patient))
        async with open_http(patient.place, patient.key) as http:  # what was kept open may have died in the quiet
            tell(await _event_stream(patient, http))
    except ProblemError as error:
        tell(error.finding)


async def _reach(patient: Patient) -> Finding:
    place, before = patient.place, trio.current_time()
    await trio.aclose_forcefully(await connect(place))
    seconds = trio.current_time() - before
    with_tls = "with TLS " if place.is_tls else ""
    return ok(
        "reach", f"{place.host}:{place.port} answers {with_tls}in {seconds_text(seconds)}", seconds=round(seconds, 6)
    )


async def _broker(patient: Patient, http: "httpx.AsyncClient") -> Finding:
    answer = await _asked(patient, http, "GET", "/readyz")
    if answer.status == 200 and answer.result == {"status": "ready"}:
        return ok("broker", f"a broker is there and takes connections; it answers in {seconds_text(answer.seconds)}")
    if answer.code == "draining":
        raise stop("broker", "not_ready", "the broker drains: it is about to end", "wait until it is there again")
    if answer.code == "unavailable":
        do = "see its log, and the storage that it is configured with"
        raise stop("broker", "not_ready", f"the broker takes no connections: {answer.message}", do)
    if not patient.place.is_tls and await speaks_tls(patient.place):
        raise _wrong_scheme(patient)
    said = f"what answers there is no broker: {answer.status} {answer.message} to /readyz".rstrip()
    raise stop("broker", "no_broker", said, "see the address, and where a proxy in between leads")


def _wrong_scheme(patient: Patient) -> ProblemError:
    place = patient.place
    said = f"{place.host}:{place.port} speaks TLS, and was asked without"
    return stop("broker", "scheme", said, f"say --url https://{place.parts.netloc}")


async def _asked(patient: Patient, http: "httpx.AsyncClient", method: str, path: str, body: Any = None) -> Answer:
    """Return the answer to a request of HTTP. Raises `ProblemError` if there is none."""
    import httpx

    try:
        return await ask(http, method, path, body)
    except httpx.TimeoutException:
        said = f"it takes connections, but does not answer {method} {path} within {STEP_SECONDS:g} s"
        do = "see whether something else listens there, or the broker hangs: its log, and /debug/tasks"
        raise stop("broker", "no_answer", said, do) from None
    except httpx.HTTPError as error:
        if not patient.place.is_tls and await speaks_tls(patient.place):
            raise _wrong_scheme(patient) from None
        said = f"what answers there is no broker: it does not speak HTTP ({error})"
        raise stop("broker", "no_broker", said, "see what listens there") from None


# --- the key -----------------------------------------------------------------


async def _key(patient: Patient, http: "httpx.AsyncClient") -> Finding:
    """Find out what the key may, by asking for tokens of one scope each: what it does not carry is refused."""
    if patient.key.startswith(TOKEN_PREFIX):
        patient.scopes = {"subscribe"}
        return skipped("key", "this is a connection token: only opening the stream will show what it is worth")
    if patient.key.startswith(OPERATOR_KEY_PREFIX):
        said = "this is an operator's key: it opens no stream"
        raise stop("key", "key", said, "give the key of an account; for operators there is `broker top`")
    for scope in SCOPES:
        answer = await _asked(patient, http, "POST", "/v1/websocket/token", {"scopes": [scope], "ttl_seconds": 1})
        if answer.status == 401:
            do = "see `broker keys check`; a configuration that was changed is read again at SIGHUP"
            raise stop("key", "key", "the broker does not know this key", do)
        if answer.status == 200:
            patient.scopes.add(scope)
        elif answer.status not in (400, 403):
            said = f"the broker does not say what the key may: {answer.status} {answer.code} {answer.message}"
            raise stop("key", "no_answer", said, "see the broker's log, and, if it asks an API for keys, that API")
    may = ", ".join(scope for scope in SCOPES if scope in patient.scopes) or "nothing"
    if "subscribe" not in patient.scopes:
        said = f"the key may {may}: a stream that is opened with it gets no events"
        return problem("key", "scope", said, "give the key the scope `subscribe`, if events are wanted", scopes=may)
    return ok("key", f"the key may {may}", scopes=may)


async def _webhooks(patient: Patient, http: "httpx.AsyncClient") -> Finding:
    """Find out whether webhooks and queues are at this node."""
    webhooks, queues = [await _asked(patient, http, "GET", f"/v1/{name}") for name in ("webhooks", "queues")]
    if webhooks.status == queues.status == 200:
        endpoints, lines = len(webhooks.result["webhooks"]), len(queues.result["queues"])
        return ok("webhooks", f"it keeps webhooks and queues; of this account {endpoints} and {lines}")
    return skipped("webhooks", f"this node keeps no webhooks and queues: {webhooks.message}")


# --- the stream --------------------------------------------------------------


async def _examine_stream(patient: Patient, tell: Callable[[Finding], None]) -> str:
    """Look at the stream over one connection, and cut that. Returns the last cursor."""
    async with AsyncExitStack() as stack:
        stream, ready = await _open(patient, stack)
        tell(_reaches(patient, ready))
        if patient.inbox is None:
            patient.inbox = (ready["inbox_ids"] or [PROBE_INBOX])[0]
        cursor = await _subscribe(patient, stream) if "subscribe" in patient.scopes else str(ready["cursor"])
        clock, finding = await _round_trip(patient, stream)
        tell(finding)
        tell(_clock(*clock))
        finding, cursor = await _delivery(patient, stream, cursor)
        tell(finding)
        return cursor


async def _subscribe(patient: Patient, stream: SingleConnection) -> str:
    """Follow the inbox of the probes. Returns the cursor."""
    await stream.say(action="subscribe", request_id="subscribe", inbox_ids=[patient.inbox])
    answer = await _answer(stream, "stream", "subscribe")
    if "error" in answer:
        said = f"subscribing to {patient.inbox} is refused: {answer['error']['message']}"
        raise stop("stream", "scope", said, "see what the key reaches; `--inbox` must be one of its inboxes")
    return str(answer["result"]["cursor"])


async def _open(
    patient: Patient, stack: AsyncExitStack, since: str | None = None
) -> tuple[SingleConnection, dict[str, Any]]:
    """Open the stream until the stack is closed; return it with its first frame. Raises `ProblemError`."""
    tcp = await connect(patient.place)
    opening = open_single(patient.stream(since), tcp, client_id=patient.client_id)
    try:
        stream = await stack.enter_async_context(opening)
    except RefusedError as refused:
        raise _refused(refused) from None
    except LostError as lost:
        if "429" in str(lost):
            said = "all connections of the account's tier are taken; the doctor needs one of its own"
            raise stop(
                "stream", "connection_limit", said, "end one, or look whose they are with `broker top`"
            ) from None
        said = f"the upgrade to a WebSocket does not come through: {lost}"
        raise stop("stream", "no_websocket", said, _PROXY) from None
    return stream, await _next(stream, "stream", "the stream opens, but its first frame does not come")


def _refused(refused: RefusedError) -> ProblemError:
    said = str(refused)
    if refused.status == 401:
        return stop("stream", "key", said, "a token lives for a minute; see `broker keys check` for a key")
    if refused.status == 403:
        return stop("stream", "key", said, "see what the key reaches; `--inbox` must be one of its inboxes")
    said = f"the upgrade to a WebSocket does not come through: {refused}"
    return stop("stream", "no_websocket", said, _PROXY)


async def _next(stream: SingleConnection, check: Any, otherwise: str) -> dict[str, Any]:
    """Return the next frame. Raises `ProblemError` if none comes in time."""
    try:
        with trio.fail_after(STEP_SECONDS):
            return await stream.next()
    except trio.TooSlowError:
        said = f"{otherwise} within {STEP_SECONDS:g} s: something in between holds it back"
        raise stop(check, "held_back", said, _HOLDS_BACK) from None
    except (LostError, RefusedError) as lost:
        do = "see the broker's log for why it ended; if it says that the client left, look at what is in between"
        raise stop(check, "lost", f"the connection ended: {lost}", do) from None


def _reaches(patient: Patient, ready: dict[str, Any]) -> Finding:
    patient.account_id, patient.heartbeat_seconds = str(ready["account_id"]), float(ready["heartbeat_seconds"])
    said = f"the stream of {patient.account_id} opens; it replays {ready['replay_seconds']:g} s"
    measured = {"heartbeat_seconds": patient.heartbeat_seconds, "replay_seconds": ready["replay_seconds"]}
    return ok("stream", f"{said}, with a heartbeat each {patient.heartbeat_seconds:g} s", **measured)


async def _answer(stream: SingleConnection, check: Any, request_id: str) -> dict[str, Any]:
    """Return the answer to a command; what comes before it is let go."""
    while True:
        frame = await _next(stream, check, "a command is not answered")
        if frame.get("request_id") == request_id:
            return frame


async def _round_trip(patient: Patient, stream: SingleConnection) -> tuple[tuple[float, float], Finding]:
    """Return by how much the broker's clock is ahead, how sure that is, and what a command and its answer take."""
    trips: list[tuple[float, float]] = []
    for number in range(ROUND_TRIPS):
        wall, before, request_id = time.time(), trio.current_time(), f"ping_{number}"
        await stream.say(action="ping", request_id=request_id)
        answer = await _answer(stream, "round trip", request_id)
        seconds = trio.current_time() - before
        server = datetime.fromisoformat(answer["result"]["server_time"]).timestamp()
        trips.append((seconds, server - (wall + seconds / 2)))
    quickest, ahead = min(trips)
    measured = quantiles(seconds for seconds, _ in trips)
    patient.round_trip_seconds = measured["p50_seconds"]
    usual = seconds_text(measured["p50_seconds"])
    said = f"a command and its answer take {usual}, at the quickest {seconds_text(quickest)}"
    return (ahead, quickest / 2), ok("round trip", said, min_seconds=round(quickest, 6), **measured)


def _clock(ahead: float, unsure: float) -> Finding:
    if abs(ahead) <= SKEW_SECONDS + unsure:
        return ok(
            "clock", f"this machine's clock and the broker's differ by {seconds_text(abs(ahead))}", ahead_seconds=ahead
        )
    where = "ahead of" if ahead > 0 else "behind"
    said = f"the broker's clock is {abs(ahead):.1f} s {where} this machine's"
    do = "set both by NTP: a time given as `since` is read by the broker's, and signatures of another time are refused"
    return problem("clock", "clock", said, do, ahead_seconds=round(ahead, 3))


async def _delivery(patient: Patient, stream: SingleConnection, cursor: str) -> tuple[Finding, str]:
    """Publish, and measure until the event is there. Returns the last cursor, too."""
    if not {"publish", "subscribe"} <= patient.scopes or not patient.samples:
        why = "it was not wanted" if {"publish", "subscribe"} <= patient.scopes else "the key may not do both"
        return skipped("delivery", f"nothing is published and received: {why}"), cursor
    took: list[float] = []
    for number in range(patient.samples):
        event = {"type": PROBE_TYPE, "inbox_id": patient.inbox, "payload": {"number": number}}
        before, request_id = trio.current_time(), f"publish_{number}"
        await stream.say(action="publish", request_id=request_id, events=event)
        arrived, answered = None, False
        while arrived is None or not answered:
            frame = await _next(stream, "delivery", "an event was published, and does not come")
            if frame.get("request_id") == request_id:
                if "error" in frame:
                    error = frame["error"]
                    return skipped("delivery", f"publishing is refused: {error['code']}: {error['message']}"), cursor
                answered = True
            elif frame.get("type") == PROBE_TYPE and frame["payload"].get("number") == number:
                arrived, cursor = trio.current_time() - before, str(frame["cursor"])
        took.append(arrived)
    measured = quantiles(took)
    p50, p99 = measured["p50_seconds"], measured["p99_seconds"]
    said = f"from publish to receive {seconds_text(p50)}, 99 of 100 within {seconds_text(p99)} ({len(took)} events)"
    if p99 <= SLOW_SECONDS + 2 * patient.round_trip_seconds:
        return ok("delivery", said, events=len(took), **measured), cursor
    do = "see in `broker top` whether the broker takes that long (publish → kernel, loop lag), or the way to it"
    return problem("delivery", "slow", said, do, events=len(took), **measured), cursor


async def _replay(patient: Patient, http: "httpx.AsyncClient", cursor: str) -> Finding:
    """Come back after a cut, with what was published meanwhile, if something may be."""
    if "subscribe" not in patient.scopes:
        return skipped("replay", "the key gets no events")
    expected = None
    if "publish" in patient.scopes and patient.samples:
        event = {"type": PROBE_TYPE, "inbox_id": patient.inbox, "payload": {"number": -1}}
        answer = await _asked(patient, http, "POST", "/v1/events", event)
        expected = answer.result["events"][0]["event_id"] if answer.status == 200 else None
    async with AsyncExitStack() as stack:
        stream, ready = await _open(patient, stack, cursor)
        if not ready.get("replay", {}).get("recovered"):
            said = "after a cut the broker does not know the cursor that was given out a moment before"
            do = "it was restarted without [storage], or several brokers answer there that do not share an engine"
            raise stop("replay", "no_replay", said, do)
        if expected is None:
            return ok("replay", "after a cut the stream goes on where it was")
        came: list[str] = []
        while expected not in came:
            frame = await _next(stream, "replay", "what was published during a cut does not come")
            came += [str(frame["event_id"])] if frame.get("type") == PROBE_TYPE else []
        if came != [expected]:
            said = f"after a cut {len(came)} events came where one was missed"
            raise stop("replay", "no_replay", said, "this is a fault of the broker's: please report it")
        return ok("replay", "after a cut the stream goes on where it was, and brings what was published meanwhile")


# --- what a proxy does -------------------------------------------------------


async def _quiet(patient: Patient) -> Finding:
    """Leave a connection alone, but for heartbeats, for as long as it was wanted; then it must still answer."""
    idle = patient.idle_seconds
    if not idle:
        return skipped("quiet", "`--idle SECONDS`, longer than a proxy's idle time, would show whether it cuts")
    async with AsyncExitStack() as stack:
        stream, _ = await _open(patient, stack)
        began = trio.current_time()
        do = (
            f"let the proxy wait longer than the heartbeat of {patient.heartbeat_seconds:g} s (nginx:"
            " proxy_read_timeout), or lower `limits.heartbeat_seconds`"
        )
        try:
            with trio.move_on_after(idle):
                while True:
                    await stream.next()
        except (LostError, RefusedError) as lost:
            seconds = trio.current_time() - began
            said = f"a quiet connection is cut after {seconds:.1f} s: {lost}"
            return problem("quiet", "cut_when_quiet", said, do, seconds=round(seconds, 3))
        try:
            with trio.fail_after(STEP_SECONDS):
                await stream.say(action="ping", request_id="quiet")
                await _answer(stream, "quiet", "quiet")
        except (trio.TooSlowError, LostError, RefusedError, ProblemError):
            said = f"after {idle:g} s of quiet the connection is dead, and nobody says so"
            return problem("quiet", "cut_when_quiet", said, do, seconds=idle)
        heard = f"{int(idle // patient.heartbeat_seconds)} heartbeats in it"
        return ok("quiet", f"after {idle:g} s of quiet, with {heard}, the connection still answers", seconds=idle)


async def _event_stream(patient: Patient, http: "httpx.AsyncClient") -> Finding:
    """Open the stream as Server-Sent Events: what is between may pass WebSockets on, and hold these back."""
    import httpx

    if "subscribe" not in patient.scopes:
        return skipped("event stream", "the key gets no events")
    inbox = patient.inbox or PROBE_INBOX
    query = {"client_id": patient.client_id, "inbox_ids": inbox, "event_types": PROBE_TYPE}
    before, seconds = trio.current_time(), None
    try:
        with trio.fail_after(STEP_SECONDS), trio.CancelScope() as scope:
            async with http.stream("GET", "/v1/events/stream", params=query) as answer:
                if answer.status_code != 200:
                    said = f"Server-Sent Events are answered with {answer.status_code}"
                    return problem("event stream", "event_stream", said, "see where a proxy in between leads them")
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        seconds = trio.current_time() - before
                        scope.cancel()  # whoever only stops to iterate leaves generators of httpx behind
    except (trio.TooSlowError, httpx.TimeoutException):
        said = f"of Server-Sent Events nothing comes within {STEP_SECONDS:g} s: something in between holds them back"
        return problem("event stream", "event_stream", said, _HOLDS_BACK)
    except httpx.HTTPError as error:
        return problem("event stream", "event_stream", f"Server-Sent Events break off: {error}", _HOLDS_BACK)
    if seconds is None:
        return problem("event stream", "event_stream", "Server-Sent Events end at once", _HOLDS_BACK)
    said = f"Server-Sent Events come through; the first after {seconds_text(seconds)}"
    return ok("event stream", said, seconds=round(seconds, 6))
