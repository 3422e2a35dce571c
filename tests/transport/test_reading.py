"""`LentStream`: what trio-websocket reads of a client, and when."""

import pytest
import trio
from trio.testing import memory_stream_pair
from trio.testing import wait_all_tasks_blocked as blocked

from broker.transport.reading import LentStream
from broker.transport.stream import ClientStream


def lent(put_back: bytes, head_bytes: int) -> tuple[LentStream, trio.StapledStream]:
    """A lent stream whose upgrade's head was put back, and the client's end."""
    ours, theirs = memory_stream_pair()
    stream = ClientStream(ours)
    stream.put_back(put_back)
    return LentStream(stream, head_bytes, lambda: None), theirs


@pytest.mark.parametrize("early", [b"", b"early"])
async def test_after_the_head_nothing_is_read_until_the_upgrade_is_answered(early):
    """Wsproto throws away what it gets between the head and its own answer."""
    stream, theirs = lent(b"head" + early, 4)
    assert await stream.receive_some(100) == b"head"
    await theirs.send_all(b"later")
    read = []

    async def receive() -> None:
        read.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await blocked()
        assert read == []
        stream.open()
    assert read == [early or b"later"]


async def test_a_head_that_is_read_in_parts_is_still_only_the_head():
    stream, _ = lent(b"", 4)
    stream._stream.put_back(b"he")
    assert await stream.receive_some() == b"he"
    stream._stream.put_back(b"adearly")
    assert await stream.receive_some() == b"ad"


async def test_when_trio_websocket_closes_it_only_its_own_reading_ends():
    stream, theirs = lent(b"", 0)
    stream.open()
    await stream.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some()
    await stream.send_all(b"last words")
    assert await theirs.receive_some() == b"last words"
