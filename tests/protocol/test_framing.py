"""framing.py, read by somebody else's parser (wsproto, as a client)."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from broker.protocol import framing

LENGTHS = st.one_of(st.integers(0, 125), st.integers(126, 65_535), st.integers(65_536, 70_000))


def parsed(data: bytes) -> list:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(data)
    return list(client.events())


def text_of(events: list) -> str:
    assert all(isinstance(event, TextMessage) for event in events)
    assert [event.message_finished for event in events] == [False] * (len(events) - 1) + [True]
    return "".join(event.data for event in events)


@given(text=st.text(max_size=40), length=LENGTHS)
@example(text="", length=0)
@example(text="", length=125)
@example(text="", length=126)
@example(text="", length=65_535)
@example(text="", length=65_536)
def test_a_text_frame_of_any_length_is_read_back_by_another_implementation(text, length):
    payload = text.encode()
    payload += b"x" * (length - len(payload))
    frame = framing.text_frame(payload)
    assert text_of(parsed(frame)) == payload.decode()
    assert framing.payload_of(frame) == payload


@given(texts=st.lists(st.text(max_size=300), min_size=1, max_size=5))
def test_frames_joined_into_one_write_are_still_separate_messages(texts):
    events = parsed(b"".join(framing.text_frame(text.encode()) for text in texts))
    assert [event.data for event in events] == texts
    assert all(event.message_finished for event in events)


@pytest.mark.parametrize(("length", "header"), [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10), (2**32, 10)])
def test_the_header_is_as_short_as_rfc_6455_asks(length, header):
    assert len(framing.text_header(length)) == header


def test_the_header_of_a_huge_frame_holds_its_length_in_network_order():
    assert framing.text_header(2**32 + 5) == b"\x81\x7f" + (2**32 + 5).to_bytes(8, "big")


def test_frames_are_final_and_not_masked():
    for length in (0, 126, 65_536):
        header = framing.text_header(length)
        assert header[0] == 0x81
        assert header[1] & 0x80 == 0


def test_the_ping_is_a_whole_empty_ping():
    (event,) = parsed(framing.PING)
    assert isinstance(event, Ping)
    assert event.payload == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_close_is_known_by_its_first_byte(kind):
    close = Connection(ConnectionType.SERVER).send(CloseConnection(code=CloseReason.SERVICE_RESTART, reason="x"))
    assert framing.is_close(kind(close)) is True
    assert framing.is_close(kind(framing.PING)) is False
    assert framing.is_close(kind(framing.text_frame(b"\x88"))) is False
    assert framing.is_close(kind(b"")) is False
