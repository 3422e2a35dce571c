"""`GET /v1/operator/live`: the broker's figures as Server-Sent Events, for who watches it (PROTOCOL section 6)."""

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Final

import trio

from ..broker import Broker
from ..errors import RequestError
from ..observe.live import EVERY_SECONDS
from .response import Response
from .sse import CONTENT_TYPE, HEADERS

RETRY_MS: Final = 1_000


def check_every(query: Mapping[str, str]) -> int:
    """Return how many seconds lie between two frames. Raises `RequestError` (`bad_request`)."""
    shortest, longest = EVERY_SECONDS
    text = query.get("every", str(shortest))
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 3 else 0
    if not shortest <= number <= longest:
        raise RequestError("bad_request", f"Expected whole seconds from {shortest} to {longest} - at `every`")
    return number


def live_answer(broker: Broker, every_seconds: int, judge: Callable[[], object]) -> Response:
    """Return the answer that tells of the broker every so many seconds.

    It ends when ``judge`` raises, which is asked before each frame, and when the broker drains: then with a frame that
    says so.
    """
    return Response(200, _frames(broker, every_seconds, judge), HEADERS, CONTENT_TYPE, close=True)


async def _frames(broker: Broker, every_seconds: int, judge: Callable[[], object]) -> AsyncGenerator[bytes, None]:
    yield b"retry: %d\n\n" % RETRY_MS
    due = trio.current_time()
    while True:
        last = broker.draining.is_set()
        frame = await broker.live.frame(new=last)
        try:
            judge()
        except RequestError:
            return
        yield b"data: %b\n\n" % frame
        if last:
            return
        due = max(due + every_seconds, trio.current_time())
        with trio.move_on_at(due):
            await broker.draining.wait()
