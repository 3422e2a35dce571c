"""`LentStream`: what trio-websocket reads of a client, when, and for how long."""

import math

import pytest
import trio
from clients import CLOSE, PING, PONG, TEXT, masked
from steps import Growth
from trio.testing import memory_stream_pair
from trio.testing import wait_all_tasks_blocked as blocked

from broker import CloseCode
from broker.transport.ending import CLIENT_GONE
from broker.transport.pacing import DISCARDED_FRAMES, PIECE_FRAMES
from broker.transport.reading import LentStream
from broker.transport.stream import ClientStream
from broker.turns import Turns, Who

HALF = masked(TEXT, b"half", first_byte=TEXT)
"""The first fragment of a message."""
COMMAND = masked(TEXT, b"{}")


class Lent(LentStream):
    """A lent stream over memory, and its client's end."""

    def __init__(
        self, put_back: bytes = b"", head: bytes = b"", max_message_bytes: int = 1_000, turns: Turns | None = None
    ) -> None:
        ours, self.client = memory_stream_pair()
        stream = ClientStream(ours, turns)
        stream.put_back(put_back)
        self.flushed = 0
        super().__init__(stream, head, max_message_bytes, self._note_flush)

    def _note_flush(self) -> None:
        self.flushed += 1

    async def read(self) -> list[bytes]:
        """All that trio-websocket reads."""
        pieces = []
        while piece := await self.receive_some():
            pieces.append(piece)
        return pieces


def opened(**fields) -> Lent:
    lent = Lent(**fields)
    lent.open()
    return lent


def code_of(lent: Lent) -> int:
    assert lent.ending is not None
    assert lent.ending.close is not None
    return int.from_bytes(lent.ending.close[:2])


# --- the upgrade -------------------------------------------------------------


@pytest.mark.parametrize("early", [b"", COMMAND])
async def test_after_the_head_nothing_is_read_until_the_upgrade_is_answered(early):
    """Wsproto throws away what it gets between the head and its own answer."""
    lent = Lent(early, b"head")
    assert await lent.receive_some(100) == b"head"
    await lent.client.send_all(masked(PING))
    read = []

    async def receive() -> None:
        read.append(await lent.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await blocked()
        assert read == []
        assert not lent.opened
        lent.open()
    assert read == [early or masked(PING)]


# --- pieces, in turn ---------------------------------------------------------


async def test_however_much_comes_at_once_others_have_their_turn_between_small_pieces():
    lent, steps, sizes = opened(), 0, []

    async def others() -> None:
        nonlocal steps
        while True:
            await trio.lowlevel.checkpoint()
            steps += 1

    await lent.client.send_all(masked(PONG) * 5_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        for number in range(5_000 // PIECE_FRAMES):
            sizes.append(len(await lent.receive_some()))
            assert steps >= number
        nursery.cancel_scope.cancel()
    assert set(sizes) == {PIECE_FRAMES * len(masked(PONG))}


async def test_of_many_who_flood_one_piece_is_handed_on_between_two_looks_at_the_network():
    """The turns are the broker's: who opens a hundred connections gets no more of them."""
    turns, pieces = Turns(), []

    async def read(lent: Lent) -> None:
        await lent.receive_some()
        while lent._scanner.holds:
            pieces.append(await lent.receive_some())

    lents = [opened(turns=turns) for _ in range(20)]
    for lent in lents:
        await lent.client.send_all(masked(PONG) * PIECE_FRAMES * 10)
    growth = Growth(pieces)
    trio.lowlevel.add_instrument(growth)
    async with trio.open_nursery() as nursery:
        for lent in lents:
            nursery.start_soon(read, lent)
    assert len(pieces) == 20 * 9
    assert growth.most == 1


async def test_answers_are_flushed_before_the_client_is_waited_for_and_not_between_pieces():
    lent = opened()
    await lent.client.send_all(COMMAND * PIECE_FRAMES * 3)
    for _ in range(3):
        await lent.receive_some()
        assert lent.handing_out
    assert lent.flushed == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lent.receive_some)
        await blocked()
        assert lent.flushed == 2
        assert not lent.handing_out
        nursery.cancel_scope.cancel()


async def test_answers_are_flushed_before_trio_websocket_writes():
    lent = opened()
    await lent.send_all(b"pong")
    assert lent.flushed == 1
    assert await lent.client.receive_some() == b"pong"


# --- the end -----------------------------------------------------------------


async def test_a_clients_close_is_the_end_and_what_came_before_it_is_read():
    lent = opened()
    await lent.client.send_all(COMMAND + masked(CLOSE, b"\x03\xf6later") + COMMAND)
    assert await lent.read() == [COMMAND]
    assert lent.ending is not None
    assert lent.ending.close == b"\x03\xf6later"
    assert await lent.read() == []


async def test_too_much_is_the_end_and_what_came_before_it_is_read():
    lent = opened()
    await lent.client.send_all(COMMAND + masked(TEXT, b"x" * 1_001) + COMMAND)
    assert await lent.read() == [COMMAND]
    assert code_of(lent) == CloseCode.TOO_BIG


async def test_a_client_that_leaves_is_the_end():
    lent = opened()
    await lent.client.send_all(COMMAND + HALF)
    await lent.client.send_eof()
    assert await lent.read() == [COMMAND + HALF]
    assert lent.ending is CLIENT_GONE


async def leave(lent: Lent) -> None:
    lent.client.send_stream.close()


async def close(lent: Lent) -> None:
    await lent.client.send_all(masked(CLOSE, b"\x03\xe8"))


async def say_too_much(lent: Lent) -> None:
    await lent.client.send_all(masked(TEXT, b"x" * 1_001))


@pytest.mark.parametrize("how", [leave, close, say_too_much])
async def test_of_many_who_end_at_once_one_ends_between_two_looks_at_the_network(how):
    turns, gone = Turns(), []
    growth = Growth(gone)

    async def read(lent: Lent) -> None:
        assert await lent.receive_some() == b""
        gone.append(lent)

    lents = [opened(turns=turns) for _ in range(20)]
    trio.lowlevel.add_instrument(growth)
    async with trio.open_nursery() as nursery:
        for lent in lents:
            nursery.start_soon(read, lent)
        await blocked()
        for lent in lents:
            await how(lent)
    assert len(gone) == 20
    assert growth.most == 1


async def test_a_connection_that_breaks_is_the_end():
    async def reset() -> None:
        raise trio.BrokenResourceError

    lent = opened()
    lent._stream._transport.receive_stream.receive_some_hook = reset
    assert await lent.read() == []
    assert lent.ending is CLIENT_GONE


async def test_when_trio_websocket_closes_it_only_its_own_reading_ends():
    lent = opened()
    await lent.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await lent.receive_some()
    await lent.send_all(b"last words")
    assert await lent.client.receive_some() == b"last words"


# --- what is owed ------------------------------------------------------------


async def test_who_has_begun_a_message_owes_its_rest_from_then_on_whatever_else_it_sends(autojump_clock):
    lent = opened()

    async def send() -> None:
        await lent.client.send_all(HALF)
        for _ in range(3):
            await trio.sleep(10)
            await lent.client.send_all(masked(PING) + masked(0, b"x", first_byte=0))
        await trio.sleep(10)
        assert lent.owed_seconds(trio.current_time()) == pytest.approx(40)
        await lent.client.send_all(masked(0))
        await blocked()
        assert lent.owed_seconds(trio.current_time()) is None
        nursery.cancel_scope.cancel()

    assert lent.owed_seconds(trio.current_time()) is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await lent.read()


async def test_what_is_owed_of_each_message_is_counted_anew(autojump_clock):
    lent = opened()

    async def send() -> None:
        await lent.client.send_all(HALF)
        for _ in range(5):
            await trio.sleep(30)
            assert lent.owed_seconds(trio.current_time()) == pytest.approx(30)
            await lent.client.send_all(masked(0, b"rest") + HALF)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await lent.read()


async def test_the_time_that_a_client_waits_for_us_is_not_counted(autojump_clock):
    """Its answers wait, so it is not read from; its message may have come long ago."""
    lent = opened()
    await lent.client.send_all(HALF)
    assert await lent.receive_some() == HALF
    await trio.sleep(1_000)
    assert lent.owed_seconds(trio.current_time()) == 0
    with trio.move_on_after(7):
        await lent.receive_some()
    await lent.client.send_all(masked(0, b"rest"))
    await lent.receive_some()
    assert lent.owed_seconds(trio.current_time()) is None


async def test_waiting_for_a_client_costs_no_timer(autojump_clock):
    lent = opened()
    await lent.client.send_all(HALF)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lent.read)
        await blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf
        nursery.cancel_scope.cancel()


# --- after our own Close -----------------------------------------------------


async def test_after_our_close_all_is_thrown_away_until_the_clients():
    lent = opened()
    await lent.client.send_all((COMMAND + masked(PONG)) * 500 + HALF + masked(CLOSE))
    await lent.discard()
    assert await lent.read() == []
    await lent.discard()


async def test_after_too_much_the_rest_of_it_is_thrown_away_until_the_clients_close():
    lent = opened()
    big = masked(TEXT, b"\x88\x80\0\0\0\0" * 1_000)
    await lent.client.send_all(big[:2_000])
    await lent.read()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lent.discard)
        await blocked()
        await lent.client.send_all(big[2_000:])
        await blocked()
        assert nursery.child_tasks, "what looks like a Close inside a payload is none"
        await lent.client.send_all(masked(CLOSE))


async def test_what_is_thrown_away_is_thrown_away_in_turn_and_in_few_turns():
    turns = 0

    class Counted(Turns):
        async def take(self, who: Who) -> None:
            nonlocal turns
            turns += 1
            await super().take(who)

    lent = opened(turns=Counted())
    await lent.client.send_all(masked(PONG) * DISCARDED_FRAMES * 10 + masked(CLOSE))
    await lent.discard()
    assert turns == 10


@pytest.mark.parametrize("how", ["the client has left", "its frames are broken"])
async def test_nothing_is_waited_for_where_nothing_can_come(how):
    lent = opened()
    if how == "the client has left":
        await lent.client.aclose()
        await lent.read()
    else:
        await lent.aclose()
    with trio.fail_after(60):
        await lent.discard()
