"""What a client with a key may do by polling."""

from contextlib import AsyncExitStack

import trio

from .client import answer_of, connected, head_of, send, talk
from .row import MEBIBYTE, WINDOW_BYTES, Row
from .subscribing import EVENTS, event, publish
from .target import LISTENER, Target

PAGE_BYTES = 4 * MEBIBYTE
"""The greatest page."""
WHOLE_PAGE = "since=5m&limit=1000"


async def fill(target: Target, size: int) -> None:
    """Publish 2,000 events of so many bytes each: more than a page."""
    for _ in range(2):
        await publish(target, [event("in_1", text="x" * size) for _ in range(1_000)])


async def polled(target: Target, query: str) -> None:
    """Poll once."""
    answer_of(await talk(target, head_of(target, "GET", f"/v1/events?{query}", LISTENER))).require(200)


async def great_pages(target: Target, polls: int = 20) -> None:
    """Ask for pages of 4 MiB, many at once."""
    await fill(target, 5_000)
    async with trio.open_nursery() as nursery:
        for _ in range(polls):
            nursery.start_soon(polled, target, WHOLE_PAGE)


async def pages_unread(target: Target, polls: int = 20) -> None:
    """Ask for pages of 4 MiB, many at once, and read nothing."""
    await fill(target, 5_000)
    async with AsyncExitStack() as stack:
        for _ in range(polls):
            stream = await stack.enter_async_context(connected(target))
            await send(stream, head_of(target, "GET", f"/v1/events?{WHOLE_PAGE}", LISTENER))
        await trio.sleep(1)


async def pages_filtered(target: Target, polls: int = 20) -> None:
    """Ask for pages of 10,000 events of which none passes the filter."""
    await publish(target, [event("in_1") for _ in range(EVENTS)])
    async with trio.open_nursery() as nursery:
        for number in range(polls):
            nursery.start_soon(polled, target, f"{WHOLE_PAGE}&inbox_ids=in_1&event_types=n{number}.*")


async def polls_waiting(target: Target, polls: int = 500) -> None:
    """Wait for an event by 500 polls at once."""
    async with trio.open_nursery() as nursery:
        for _ in range(polls):
            nursery.start_soon(polled, target, "wait=30")
        await trio.sleep(0.5)
        await publish(target, event(None))


async def polls_cut(target: Target, polls: int = 500) -> None:
    """Wait for an event by 500 polls, and cut them all."""
    async with trio.open_nursery() as nursery:
        for _ in range(polls):
            nursery.start_soon(polled, target, "wait=30")
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()


ROWS = [
    Row(
        "pages", "subscribe key: 20 polls for 4 MiB each, at once", great_pages, PAGE_BYTES, may_hold_bytes=WINDOW_BYTES
    ),
    Row(
        "pages-unread",
        "subscribe key: 20 polls for 4 MiB each, and nothing is read",
        pages_unread,
        may_hold_bytes=WINDOW_BYTES + 20 * PAGE_BYTES,
    ),
    Row("pages-filtered", "subscribe key: 20 polls over 10,000 events that are filtered", pages_filtered),
    Row("polls-waiting", "subscribe key: 500 polls wait for one event", polls_waiting),
    Row("polls-cut", "subscribe key: 500 polls that wait are cut", polls_cut),
]
