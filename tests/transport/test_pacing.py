"""`FrameScanner`: what is handed on in one step, and what is too much. wsproto says what the frames are."""

import gc
import struct

import pytest
from clients import BINARY, CLOSE, PING, PONG, TEXT
from hypothesis import given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import CloseConnection, Event

from broker import CloseCode
from broker.transport.pacing import (
    FRAGMENT_BYTES,
    MAX_EMPTY_FRAGMENTS,
    MIN_FRAGMENTS,
    PIECE_FRAMES,
    FrameScanner,
)

MAX_BYTES = 100_000
CONTINUATION = 0x0


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes = b"mask") -> bytes:
    size = len(payload)
    if size < 126:
        head = bytes((fin << 7 | opcode, 0x80 | size))
    elif size < 65_536:
        head = struct.pack("!BBH", fin << 7 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", fin << 7 | opcode, 0x80 | 127, size)
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def begun(payload: bytes = b"a") -> bytes:
    """The first fragment of a message."""
    return frame(TEXT, payload, fin=False)


def fragment(payload: bytes = b"") -> bytes:
    return frame(CONTINUATION, payload, fin=False)


def pieces_of(scanner: FrameScanner, *fed: bytes) -> list[bytes]:
    """What is handed on of what is fed, one after the other."""
    pieces = []
    for data in fed:
        scanner.feed(data, 0.0)
        while piece := scanner.next_piece():
            pieces.append(piece)
    return pieces


def events_of(connection: Connection, data: bytes) -> list[Event]:
    connection.receive_data(data)
    return list(connection.events())


def fate_of(*fed: bytes, max_bytes: int = MAX_BYTES) -> CloseCode | None:
    """The code with which a client that sends this is closed, if it is too much."""
    scanner = FrameScanner(max_bytes)
    pieces_of(scanner, *fed)
    if scanner.too_much is None:
        return None
    assert scanner.too_much.close is not None
    return CloseCode(int.from_bytes(scanner.too_much.close[:2]))


payloads = st.one_of(st.binary(max_size=10), st.integers(0, 300).map(bytes), st.just(bytes(70_000)))
messages = st.lists(payloads, min_size=1, max_size=5).map(
    lambda parts: b"".join(
        frame(CONTINUATION if n else BINARY, part, fin=n == len(parts) - 1) for n, part in enumerate(parts)
    )
)
controls = st.builds(frame, st.sampled_from([PING, PONG]), st.binary(max_size=125))
floods = st.tuples(controls, st.integers(2, 100)).map(lambda flood: flood[0] * flood[1])
streams = st.tuples(st.lists(st.one_of(messages, controls, floods), max_size=12), st.sampled_from([b"", None]))


# --- pieces ------------------------------------------------------------------


@given(stream=streams, cuts=st.lists(st.integers(0, 5_000), max_size=20))
def test_however_the_bytes_come_all_frames_are_handed_on_in_order_few_at_once(stream, cuts):
    frames, close = stream
    data = b"".join(frames) + (b"" if close is None else frame(CLOSE, b"\x03\xe8bye"))
    fed, rest = [], data
    for cut in cuts:
        fed.append(rest[:cut])
        rest = rest[cut:]
    scanner, parser = FrameScanner(10**6), Connection(ConnectionType.SERVER)
    pieces = pieces_of(scanner, *fed, rest)
    for piece in pieces:
        assert len(events_of(parser, piece)) <= PIECE_FRAMES
    assert b"".join(pieces) == b"".join(frames)
    assert scanner.close == (None if close is None else b"\x03\xe8bye")
    assert scanner.too_much is None


def test_a_read_that_is_one_message_is_handed_on_as_it_is():
    scanner, data = FrameScanner(MAX_BYTES), frame(TEXT, b"x" * 200)
    scanner.feed(data, 0.0)
    assert scanner.next_piece() is data
    assert scanner.next_piece() == b""


def test_what_is_handed_on_is_not_kept():
    scanner = FrameScanner(MAX_BYTES)
    pieces_of(scanner, begun(b"x" * 60_000))
    assert not scanner.holds
    assert b"".join(kept for kept in gc.get_referents(scanner) if isinstance(kept, bytes)) == b""


@pytest.mark.parametrize("unit", [frame(PONG), fragment(b"x"), frame(TEXT, b"{}"), frame(PING, b"x" * 125)])
def test_a_flood_is_cut_into_pieces_of_a_few_frames_whatever_they_are(unit):
    pieces = pieces_of(FrameScanner(MAX_BYTES), begun() * (unit[0] == 0) + unit * 1_000)
    assert max(map(len, pieces)) <= PIECE_FRAMES * len(unit)
    assert len(pieces) >= 1_000 // PIECE_FRAMES


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_a_control_frame_is_handed_on_whole(opcode):
    scanner, data = FrameScanner(MAX_BYTES), frame(opcode, b"\x03\xe8" + b"x" * 100)
    assert pieces_of(scanner, *(data[n : n + 1] for n in range(len(data) - 1))) == []
    assert pieces_of(scanner, data[-1:]) == ([] if opcode == CLOSE else [data])


def test_after_the_clients_close_nothing_is_handed_on():
    scanner = FrameScanner(MAX_BYTES)
    assert pieces_of(scanner, frame(TEXT, b"{}") + frame(CLOSE) + frame(TEXT, b"{}"), frame(PING)) == [
        frame(TEXT, b"{}")
    ]
    assert scanner.close == b""


BROKEN = {
    "unmasked": b"\x81\x02{}",
    "an unmasked close": b"\x88\x02\x03\xe8",
    "a reserved bit": frame(TEXT, b"{}").replace(b"\x81", b"\xc1", 1),
    "an unknown opcode": frame(3),
    "a fragmented ping": frame(PING, fin=False),
    "a fragmented close": frame(CLOSE, fin=False),
    "a ping of 126 bytes": frame(PING, b"x" * 126),
    "a close of 65536 bytes": frame(CLOSE, b"x" * 65_536),
    "a length in more bytes than it needs": b"\x81\xfe\x00\x05mask12345",
    "a continuation of nothing": frame(CONTINUATION, b"x"),
    "a new message inside another": begun() + frame(TEXT, b"x"),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_broken_is_left_to_who_parses_it(data):
    parser = Connection(ConnectionType.SERVER)
    events = [event for piece in pieces_of(FrameScanner(MAX_BYTES), data) for event in events_of(parser, piece)]
    assert isinstance(events[-1], CloseConnection)
    assert events[-1].code == CloseCode.PROTOCOL_ERROR


# --- too much ----------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 900])
def test_a_message_may_have_max_message_bytes_and_not_one_more(parts):
    size = MAX_BYTES // parts
    first = [begun(b"x" * size), *[fragment(b"x" * size)] * (parts - 2)] if parts > 1 else []
    rest = MAX_BYTES - size * (parts - 1)
    last = CONTINUATION if parts > 1 else TEXT
    assert fate_of(*first, frame(last, b"x" * rest)) is None
    assert fate_of(*first, frame(last, b"x" * (rest + 1))) is CloseCode.TOO_BIG


def test_a_message_is_too_big_as_soon_as_its_header_says_so():
    scanner = FrameScanner(MAX_BYTES)
    assert pieces_of(scanner, frame(TEXT, b"{}") + frame(TEXT, b"x" * (MAX_BYTES + 1))[:14]) == [frame(TEXT, b"{}")]
    assert scanner.too_much is not None


def test_bytes_are_counted_for_each_message_and_not_those_of_pings_between_its_fragments():
    message = begun(b"x" * (MAX_BYTES - 1)) + frame(PING, b"p" * 125) + frame(CONTINUATION, b"x")
    assert fate_of(message * 3) is None


def test_a_message_in_tiny_fragments_is_too_big_before_its_parts_cost_more_than_its_bytes_may():
    most = max(MIN_FRAGMENTS, MAX_BYTES // FRAGMENT_BYTES)
    assert fate_of(begun(), fragment(b"x") * (most - 1)) is None
    assert fate_of(begun(), fragment(b"x") * most) is CloseCode.TOO_BIG
    assert fate_of(begun(), fragment(b"x" * FRAGMENT_BYTES) * (most - 1)) is None
    assert fate_of(begun(), fragment(b"x") * (MIN_FRAGMENTS - 1), max_bytes=2_000) is None


def test_empty_fragments_are_bounded_in_each_message_and_an_empty_last_one_is_none_of_them():
    empty = fragment() * MAX_EMPTY_FRAGMENTS
    message = begun() + empty + frame(CONTINUATION)
    assert fate_of(message * 3 + frame(TEXT) * (MAX_EMPTY_FRAGMENTS + 1)) is None
    assert fate_of(message + begun() + empty + fragment()) is CloseCode.TOO_MANY_BAD_FRAMES


def test_what_came_before_is_handed_on_and_nothing_after():
    scanner = FrameScanner(10)
    data = frame(TEXT, b"before") + frame(TEXT, b"x" * 11) + frame(TEXT, b"after")
    assert pieces_of(scanner, data, frame(TEXT, b"later")) == [frame(TEXT, b"before")]


def test_who_is_pardoned_is_followed_to_his_close_through_whatever_he_sends():
    scanner = FrameScanner(10)
    pieces_of(scanner, frame(TEXT, b"x" * 5_000)[:2_000])
    assert scanner.too_much is not None
    scanner.pardon()
    pieces_of(scanner, frame(TEXT, b"x" * 5_000)[2_000:] + begun() + fragment() * 1_000 + frame(CLOSE, b"\x03\xe8"))
    assert scanner.too_much is None
    assert scanner.close == b"\x03\xe8"


# --- messages that are begun -------------------------------------------------


def test_a_message_is_begun_when_its_first_byte_after_the_header_may_be_late():
    scanner = FrameScanner(MAX_BYTES)
    for now, data, begun_at in [
        (1.0, frame(TEXT, b"{}"), None),
        (2.0, begun(), 2.0),
        (3.0, frame(PING), 2.0),
        (4.0, fragment(b"x"), 2.0),
        (5.0, frame(CONTINUATION, b"xyz")[:-1], 2.0),
        (6.0, frame(CONTINUATION, b"xyz")[-1:], None),
        (7.0, frame(TEXT, b"long")[:7], 7.0),
        (8.0, frame(TEXT, b"long")[7:] + begun(), 8.0),
        (9.0, frame(CONTINUATION), None),
    ]:
        scanner.feed(data, now)
        while scanner.next_piece():
            pass
        assert scanner.begun_at == begun_at
