"""What a client with a key may do by subscribing, and by publishing over the stream."""

import json
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import trio

from ..generator.frames import CLOSE, TEXT, masked_frame
from ..peers.wire import upgrade
from .bodies import SMALL, filled, listed
from .client import PIECE_BYTES, UnexpectedError, WebSocket, answer_of, command, connected, cut, opened, post, send
from .row import ACCOUNT_BODIES_BYTES, ACCOUNT_NAMES_BYTES, MEBIBYTE, MESSAGE_BYTES, WINDOW_BYTES, Row
from .strangers import names
from .target import ANY, FREE, LISTENER, NEIGHBOUR, Target

EVENTS = 10_000
"""The most there may be in a request."""
MOST_INBOXES = 9_999


async def say_all(websocket: WebSocket, frames: Sequence[bytes], request_id: str = "last") -> dict[str, Any]:
    """Send frames in one go while all that comes is read; return the answer to a command behind them."""
    data = b"".join([*frames, command(action="ping", request_id=request_id)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, websocket.stream, data)
        return await websocket.answer(request_id)


async def publish(target: Target, events: object, key: str = ANY) -> list[dict[str, Any]]:
    """Publish a list of events; return what became of each."""
    answer = (await post(target, "/v1/events", key, json.dumps(events).encode())).require(200)
    published: list[dict[str, Any]] = json.loads(answer.body)["result"]["events"]
    return published


def event(inbox: str | None = "in_1", kind: str = "a.b", **payload: Any) -> dict[str, Any]:
    """Return an event to publish."""
    return {"type": kind, "payload": payload} | ({"inbox_id": inbox} if inbox else {})


async def one_message(message: bytes, target: Target) -> None:
    """Send one message, and have it answered."""
    async with opened(target, ANY) as websocket:
        await say_all(websocket, [masked_frame(TEXT, message[:MESSAGE_BYTES])])


async def many_replays(count: int, target: Target) -> None:
    """Subscribe to so many inboxes one by one in one go, each with a `since` of its own."""
    published = await publish(target, [event(f"in_{number}") for number in range(count)])
    frames = [
        command(action="subscribe", inbox_ids=[f"in_{number}"], since=told["cursor"])
        for number, told in enumerate(published)
    ]
    async with opened(target, LISTENER) as websocket:
        await say_all(websocket, frames)


async def many_types(count: int, target: Target) -> None:
    """Ask for so many prefixes of types, then have events of 1,000 new types published."""
    prefixes = [f"t{number:05}.*" for number in range(count)]
    async with opened(target, LISTENER) as websocket:
        await say_all(websocket, [command(action="subscribe", inbox_ids=["*"], event_types=prefixes)])
        await publish(target, [event("in_1", f"n.t{number}") for number in range(1_000)])
        await say_all(websocket, [])


async def many_filters(target: Target, connections: int = 200) -> None:
    """Ask for 100 prefixes on each of many connections, others on each, then publish events of 1,000 new types."""
    async with AsyncExitStack() as stack:
        for number in range(connections):
            websocket = await stack.enter_async_context(opened(target, LISTENER))
            prefixes = [f"t{number}.n{place}.*" for place in range(100)]
            await websocket.ask("s", action="subscribe", inbox_ids=["*"], event_types=prefixes)
        await publish(target, [event("in_1", f"n.t{number}") for number in range(1_000)])
        await say_all(websocket, [])


async def many_groups(target: Target, connections: int = 500) -> None:
    """Subscribe each of many connections to an inbox of its own, then publish events for all of them."""
    async with AsyncExitStack() as stack:
        for number in range(connections):
            websocket = await stack.enter_async_context(opened(target, LISTENER, f"?inbox_ids=in_{number}"))
        await publish(target, [event(None, number=number) for number in range(5)])
        while (said := await websocket.text()) is not None and said.get("payload") != {"number": 4}:
            pass


async def empty_subscribes(target: Target, times: int = 100) -> None:
    """Subscribe to nothing again and again, on a connection that has 9,999 inboxes."""
    inboxes = [f"in_{number}@example.com" for number in range(MOST_INBOXES)]
    async with opened(target, LISTENER) as websocket:
        await websocket.ask("all", action="subscribe", inbox_ids=inboxes)
        await say_all(websocket, [command(action="subscribe", inbox_ids=[])] * times)


async def to_and_fro(target: Target, times: int = 10) -> None:
    """Subscribe to 9,999 inboxes and unsubscribe them, again and again."""
    inboxes = [f"in_{number}" for number in range(MOST_INBOXES)]
    turn = [command(action=action, inbox_ids=inboxes) for action in ("subscribe", "unsubscribe")]
    async with opened(target, LISTENER) as websocket:
        await say_all(websocket, turn * times)


async def one_by_one(target: Target, inboxes: int = 1_000) -> None:
    """Subscribe to inboxes one by one, in one go."""
    frames = [command(action="subscribe", inbox_ids=[f"in_{number}"]) for number in range(inboxes)]
    async with opened(target, LISTENER) as websocket:
        await say_all(websocket, frames)


async def long_names(target: Target) -> None:
    """Subscribe to as many inboxes with the longest names as fit into a message, again and again."""
    frames = [command(action="subscribe", inbox_ids=long_inboxes(turn)) for turn in range(5)]
    async with opened(target, LISTENER) as websocket:
        await say_all(websocket, frames)


def long_inboxes(of: object, count: int = 2_000) -> list[str]:
    """Return so many names of 250 characters."""
    return [f"{of}_{number}".ljust(250, "x") for number in range(count)]


def require_room_for_some(refused: Sequence[bool], most: int) -> None:
    """Raise `UnexpectedError` unless some have found room for long names, and no more than there is room for."""
    taken = refused.count(False)
    if not 0 < taken <= most:
        raise UnexpectedError(f"{taken} of {len(refused)} found room for their names")


async def kept_names(target: Target, connections: int = 100) -> None:
    """Subscribe to 2,000 inboxes with the longest names on each of many connections, then to all.

    Of a client that has a name it is kept what it was sent of which inboxes, until it acknowledges that.
    """
    async with AsyncExitStack() as stack:
        refused = []
        for number in range(connections):
            websocket = await stack.enter_async_context(opened(target, LISTENER, f"?client_id=c{number}"))
            answer = await websocket.ask("s", action="subscribe", inbox_ids=long_inboxes(number))
            refused.append("error" in answer)
            await websocket.ask("all", action="subscribe", inbox_ids=["*"])
        require_room_for_some(refused, ACCOUNT_NAMES_BYTES // (2_000 * 250))


async def replays_unread(target: Target, connections: int = 20) -> None:
    """Ask for a replay of 10,000 events on many connections, and read nothing."""
    await publish(target, [event("in_1", text="x" * 400) for _ in range(EVENTS)])
    async with AsyncExitStack() as stack:
        for _ in range(connections):
            websocket = await stack.enter_async_context(opened(target, LISTENER))
            await websocket.say(action="subscribe", inbox_ids=["*"], since="5m")
        await trio.sleep(0.5)


async def replays_filtered(target: Target, connections: int = 20) -> None:
    """Ask for replays of 10,000 events of which none passes the filter, again and again."""
    await publish(target, [event("in_1") for _ in range(EVENTS)])
    async with AsyncExitStack() as stack:
        for number in range(connections):
            websocket = await stack.enter_async_context(opened(target, LISTENER))
            fields = {"inbox_ids": ["in_1"], "since": "5m", "event_types": [f"n{number}.*"]}
            await websocket.say(action="subscribe", **fields)
        await say_all(websocket, [])


async def publish_small(target: Target, count: int = 3_000) -> None:
    """Publish single events over the stream, in one go."""
    async with opened(target, ANY) as websocket:
        await say_all(websocket, [command(action="publish", events=event())] * count)


async def publish_remembered(target: Target, count: int = 3_000) -> None:
    """Publish single events with a `request_id` each, in one go: what became of each is remembered."""
    frames = [command(action="publish", request_id=f"r{number}", events=event()) for number in range(count)]
    async with opened(target, ANY) as websocket:
        await say_all(websocket, frames)


async def publish_ahead(target: Target, times: int = 100, ahead: int = 3) -> None:
    """Keep two lists of 100 events under way on each of four connections; each is answered."""
    events = [event("in_1", text="x" * 150) for _ in range(100)]

    async def one() -> None:
        async with opened(target, ANY) as websocket:
            for number in range(times + ahead):
                if number < times:
                    await websocket.say(action="publish", request_id=f"r{number}", events=events)
                if number >= ahead and "result" not in await websocket.answer(f"r{number - ahead}"):
                    raise UnexpectedError(f"list {number - ahead} was refused")

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)


async def great_publishes_waiting(target: Target, connections: int = 40) -> None:
    """Publish messages of nearly 1 MiB on many connections at once."""
    message = json.dumps({"action": "publish", "events": [event("in_1", text="x" * 200_000)] * 5}).encode()
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for _ in range(connections):
            websocket = await stack.enter_async_context(opened(target, ANY))
            nursery.start_soon(websocket.flood, masked_frame(TEXT, message), 1)


async def cut_streams(target: Target, connections: int = 1_000) -> None:
    """Open streams, and cut them all at once."""
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(opened(target, LISTENER, f"?inbox_ids=in_{number}"))
            for number in range(connections)
        ]
        cut([websocket.stream for websocket in streams])


async def closed_streams(target: Target, connections: int = 1_000) -> None:
    """Open streams, and close them all at once."""
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(opened(target, LISTENER)) for _ in range(connections)]
        for websocket in streams:
            await send(websocket.stream, masked_frame(CLOSE, b"\x03\xe8"))
        for websocket in streams:
            await websocket.until_closed()


async def one_slot(target: Target, times: int = 200) -> None:
    """Take a slot over again and again, without leaving."""
    async with AsyncExitStack() as stack:
        for _ in range(times):
            await stack.enter_async_context(opened(target, LISTENER, "?client_id=one&inbox_ids=*"))


async def other_windows(target: Target) -> None:
    """Publish more than an account's window holds; nothing of another account's window goes for that."""
    kept = [event("in_1", number=number, text="x" * 5_000) for number in range(100)]
    first = (await publish(target, kept, NEIGHBOUR))[0]["cursor"]
    for _ in range(2):
        await publish(target, [event("in_1", text="x" * 700) for _ in range(EVENTS)])
    async with opened(target, NEIGHBOUR) as websocket:
        answer = await websocket.ask("s", action="subscribe", inbox_ids=["in_1"], since=first)
        if answer["result"]["replay"] != {"recovered": True, "count": 99}:
            raise UnexpectedError(f"the neighbour's window is not whole: {answer}")


async def dropped_inboxes(target: Target, lists: int = 4) -> None:
    """Publish events for inboxes with long names, another one each, which leave the window at once."""
    for turn in range(lists):
        await publish(target, [event(f"in_{turn}_{number}".ljust(250, "x")) for number in range(EVENTS)])


async def gaps(target: Target, lists: int = 3, times: int = 20) -> None:
    """Ask again and again for what 9,999 inboxes have missed of events that left the window."""
    inboxes = [f"in_{number}" for number in range(MOST_INBOXES)]
    first = (await publish(target, event()))[0]["cursor"]
    for _ in range(lists):
        await publish(target, [event(inbox) for inbox in inboxes])
    async with opened(target, LISTENER) as websocket:
        for _ in range(times):
            answer = await websocket.ask("s", action="subscribe", inbox_ids=inboxes, since=first)
            if answer["result"]["replay"]["recovered"]:
                raise UnexpectedError("nothing is missing of events that left the window")
            await websocket.ask("u", action="unsubscribe", inbox_ids=inboxes)


async def openings(query: str, statuses: tuple[int, ...], target: Target, times: int = 20) -> None:
    """Ask for openings with this query, which are answered with one of these statuses."""
    head = upgrade(target.host, target.port, f"/v1/stream?{query}", [f"Authorization: Bearer {LISTENER}"])
    for _ in range(times):
        async with connected(target) as stream:
            await send(stream, head)
            answer_of(await stream.receive_some(PIECE_BYTES)).require(*statuses)


async def tier_limit(target: Target, openings: int = 300) -> None:
    """Hold the one connection of a free account, answer none of its pings, and ask for more of them."""
    async with opened(target, FREE), trio.open_nursery() as nursery:
        for _ in range(openings):
            nursery.start_soon(_wait_for_slot, target)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()


async def _wait_for_slot(target: Target) -> None:
    with suppress(UnexpectedError):
        async with opened(target, FREE):
            await trio.sleep_forever()


_TYPES = "event_types=" + ",".join(f"{name}.*" for name in names(2_000))
_INBOXES = "inbox_ids=" + ",".join(names(3_900))

ROWS = [
    Row(
        "publish-ones",
        "publish key: over the stream, 1 MiB of `[1,1,1,…]`",
        partial(one_message, filled(b'{"action":"publish","events":[1', b",1", b"]}", MESSAGE_BYTES)),
        MESSAGE_BYTES,
    ),
    Row(
        "publish-40000",
        "publish key: over the stream, 40,000 events",
        partial(one_message, b'{"action":"publish","events":' + listed(40_000, SMALL) + b"}"),
        MESSAGE_BYTES,
    ),
    Row(
        "publish-10000",
        "publish key: over the stream, 10,000 events",
        partial(one_message, b'{"action":"publish","events":' + listed(10_000) + b"}"),
        MESSAGE_BYTES,
        may_hold_bytes=WINDOW_BYTES,
    ),
    Row("publish-small", "publish key: over the stream, 3,000 single events in one go", publish_small),
    Row("publish-remembered", "publish key: the same, each with a `request_id`", publish_remembered),
    Row("publish-ahead", "publish key: 4 connections publish 100 events each, two lists ahead", publish_ahead),
    Row(
        "publish-great",
        "publish key: 40 connections publish 1 MiB each, at once",
        great_publishes_waiting,
        may_hold_bytes=ACCOUNT_BODIES_BYTES + 2 * WINDOW_BYTES,
    ),
    Row("replays-1000", "subscribe key: 1,000 `subscribe`, each with a `since`", partial(many_replays, 1_000)),
    Row("replays-2000", "subscribe key: 2,000 `subscribe`, each with a `since`", partial(many_replays, 2_000)),
    Row(
        "replays-unread",
        "subscribe key: 20 connections have 5 MB replayed, and read nothing",
        replays_unread,
        may_hold_bytes=64 * MEBIBYTE,
    ),
    Row(
        "replays-filtered",
        "subscribe key: 20 replays of 10,000 events that are filtered",
        replays_filtered,
    ),
    Row(
        "types-60000",
        "subscribe key: 60,000 `event_types`, new types",
        partial(many_types, 60_000),
        MESSAGE_BYTES,
        may_hold_bytes=WINDOW_BYTES,
    ),
    Row("types-100", "subscribe key: 100 `event_types`, then new types", partial(many_types, 100)),
    Row("types-in-query", "subscribe key: openings with 2,000 `event_types`", partial(openings, _TYPES, (400, 431))),
    Row("inboxes-in-query", "subscribe key: openings with 3,900 `inbox_ids`", partial(openings, _INBOXES, (101, 400))),
    Row("tier-limit", "any key of a free account: 300 openings beyond its one connection", tier_limit),
    Row("filters", "subscribe key: 200 connections with 100 `event_types` each, then new types", many_filters),
    Row("groups", "subscribe key: 500 connections with an inbox each, then account events", many_groups),
    Row("empty-subscribes", "subscribe key: empty `subscribe` under 9,999 inboxes", empty_subscribes),
    Row("to-and-fro", "subscribe key: `subscribe` and `unsubscribe` of 9,999 inboxes", to_and_fro, MESSAGE_BYTES),
    Row("one-by-one", "subscribe key: 1,000 inboxes, one by one", one_by_one),
    Row(
        "long-names",
        "subscribe key: 10,000 inboxes with names of 250 characters",
        long_names,
        MESSAGE_BYTES,
        may_hold_bytes=16 * MEBIBYTE,  # the names, and an answer that lists them
    ),
    Row(
        "kept-names",
        "subscribe key: 2,000 inboxes with names of 250 characters on each of 100 connections, then all inboxes",
        kept_names,
        MESSAGE_BYTES // 2,
        may_hold_bytes=ACCOUNT_NAMES_BYTES,
    ),
    Row("cut-streams", "subscribe key: 1,000 streams, cut at once", cut_streams),
    Row("closed-streams", "subscribe key: 1,000 streams, closed at once", closed_streams),
    Row("one-slot", "subscribe key: a slot, taken over 200 times", one_slot),
    Row(
        "other-windows",
        "publish key: more than a window holds, beside another account's window",
        other_windows,
        may_hold_bytes=64 * MEBIBYTE,
        settings="[replay]\nmax_bytes_per_account = 4_194_304\nmax_bytes_total = 8_388_608\n",
    ),
    Row(
        "dropped-inboxes",
        "publish key: 40,000 events for inboxes of their own leave a window of 4 MiB",
        dropped_inboxes,
        settings="[replay]\nmax_events_per_account = 1_000\nmax_bytes_per_account = 4_194_304\n",
    ),
    Row(
        "gaps",
        "subscribe key: 20 times what 9,999 inboxes have missed of 30,000 events",
        gaps,
        settings="[replay]\nmax_events_per_account = 1_000\n",
    ),
]
