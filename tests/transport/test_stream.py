"""`ClientStream`: over sockets where the kernel has a say, over memory streams for the clock."""

import contextlib
import errno
import gc
import os
import socket
import sys

import pytest
import trio
from clients import open_descriptors, reset
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import assert_checkpoints, check_half_closeable_stream, memory_stream_pair
from trio.testing import wait_all_tasks_blocked as blocked

from broker.fanout.listeners import Listener
from broker.protocol.framing import PING, text_frame
from broker.transport.stream import LINGER_SECONDS, ClientStream
from broker.turns import Turns

PONG_FRAME = b"\x8a\x00"
CLOSE_FRAME = b"\x88\x02\x03\xe8"


class Pair:
    """A `ClientStream` over one end of a socket pair, and the other end, which is read only on request."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self.peer = theirs
        self.peer.setblocking(False)
        self.stream = ClientStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        self.socket = self.stream._transport.socket

    def read(self, most: int = 1 << 20) -> bytes:
        """What the peer can read now."""
        with contextlib.suppress(BlockingIOError):
            return self.peer.recv(most)
        return b""

    def read_all(self) -> bytes:
        return b"".join(iter(self.read, b""))

    async def pump(self, afn, *args) -> bytes:
        """Call ``afn`` while the peer reads; return what it read."""
        read = bytearray()
        async with trio.open_nursery() as nursery:
            done = trio.Event()

            async def call() -> None:
                await afn(*args)
                done.set()

            nursery.start_soon(call)
            while not done.is_set():
                await blocked()
                read += self.read()
        return bytes(read) + self.read_all()

    def fill_with_remainder(self) -> bytes:
        """Write a frame of which a part becomes the stream's remainder; return it."""
        frame = text_frame(b"r" * 4_000_000)
        assert 0 < self.stream.write_nowait(frame) < len(frame)
        return frame


@contextlib.contextmanager
def pair(*, send_buffer_bytes: int = 8_192):
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    made = Pair(ours, theirs)
    try:
        yield made
    finally:
        made.socket.close()
        theirs.close()


@contextlib.contextmanager
def tcp_pair(server: socket.socket | None = None):
    with server or socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
        ours, _ = listener.accept()
    made = Pair(ours, theirs)
    try:
        yield made
    finally:
        made.socket.close()
        theirs.close()


def memory_pair() -> tuple[ClientStream, trio.StapledStream]:
    ours, theirs = memory_stream_pair()
    return ClientStream(ours), theirs


# --- it is a stream ----------------------------------------------------------


async def test_it_is_a_half_closeable_stream_over_memory(autojump_clock):
    async def make() -> tuple[ClientStream, ClientStream]:
        one, two = memory_stream_pair()
        return ClientStream(one), ClientStream(two)

    # The check sends without pause while the other side lingers, so the clock must also run by itself.
    autojump_clock.rate = 50
    # A second sender waits for the lock where trio's clogged check wants BusyResourceError.
    await check_half_closeable_stream(make, None)


async def test_it_is_a_half_closeable_stream_over_sockets(autojump_clock):
    async def make() -> tuple[ClientStream, ClientStream]:
        one, two = trio.socket.socketpair()
        return ClientStream(trio.SocketStream(one)), ClientStream(trio.SocketStream(two))

    autojump_clock.rate = 50
    await check_half_closeable_stream(make, None)


# --- write_nowait ------------------------------------------------------------


async def test_write_nowait_writes_at_once_what_the_kernel_takes():
    with pair() as link:
        assert link.stream.write_nowait(text_frame(b"{}")) == 4
        assert link.read() == text_frame(b"{}")


async def test_a_partial_write_keeps_the_remainder_and_says_how_much_was_taken():
    with pair() as link:
        frame = text_frame(b"x" * 1_000_000)
        taken = link.stream.write_nowait(frame)
        assert 0 < taken < len(frame)
        assert link.stream.statistics().remainder_bytes == len(frame) - taken


async def test_what_was_written_is_kept_no_longer():
    with pair() as made:
        frame = text_frame(b"x" * 1_000_000)
        before = sys.getrefcount(frame)
        assert await made.pump(made.stream.send_frames, frame) == frame
        assert sys.getrefcount(frame) == before


async def test_a_full_kernel_takes_nothing_and_nothing_is_kept():
    with pair() as link:
        fill = b"z" * 100
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(link.socket.fileno(), fill)
        assert link.stream.write_nowait(text_frame(b"{}")) == 0
        statistics = link.stream.statistics()
        assert (statistics.remainder_bytes, statistics.broken) == (0, False)


@pytest.mark.parametrize("writer", ["send_all", "send_frames"])
async def test_the_next_writer_writes_the_remainder_first(writer):
    with pair() as link:
        frame = link.fill_with_remainder()
        read = await link.pump(getattr(link.stream, writer), PONG_FRAME)
        assert read == frame + PONG_FRAME
        assert link.stream.statistics().remainder_bytes == 0


async def test_a_close_comes_after_the_remainder():
    with pair() as link:
        frame = link.fill_with_remainder()
        assert await link.pump(link.stream.send_all, CLOSE_FRAME) == frame + CLOSE_FRAME


async def test_the_end_comes_after_the_remainder():
    with pair() as link:
        frame = link.fill_with_remainder()
        assert await link.pump(link.stream.send_eof) == frame
        assert link.peer.recv(1) == b""


async def test_write_nowait_takes_nothing_while_a_remainder_waits():
    with pair() as link:
        frame = link.fill_with_remainder()
        kept = link.stream.statistics().remainder_bytes
        read = link.read_all()
        assert link.stream.write_nowait(PING) == 0
        assert link.stream.statistics().remainder_bytes == kept
        assert read + await link.pump(link.stream.send_frames, b"") == frame


async def test_write_nowait_takes_nothing_while_another_writes():
    with pair() as link:
        frame = text_frame(b"x" * 1_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.stream.send_frames, frame)
            await blocked()
            read = link.read()
            assert link.stream.write_nowait(PING) == 0
            while len(read) < len(frame):
                await blocked()
                read += link.read()
        assert read == frame
        assert link.stream.write_nowait(PING) == len(PING)


async def test_write_nowait_takes_nothing_after_a_close_or_the_end():
    with pair() as link:
        await link.stream.send_all(CLOSE_FRAME)
        assert link.stream.write_nowait(PING) == 0
        assert link.read_all() == CLOSE_FRAME
    with pair() as link:
        await link.stream.send_eof()
        assert link.stream.write_nowait(PING) == 0
        assert not link.stream.statistics().broken


async def test_write_nowait_takes_nothing_over_a_stream_without_a_socket():
    stream, _ = memory_pair()
    assert stream.write_nowait(PING) == 0
    assert stream.statistics().remainder_bytes == 0


async def test_frames_after_a_close_are_refused():
    with pair() as link:
        await link.stream.send_all(CLOSE_FRAME)
        with pytest.raises(trio.ClosedResourceError):
            await link.stream.send_frames(PING)
        assert link.read_all() == CLOSE_FRAME


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["write_nowait", "send_frames", "send_all", "cancelled", "read"]),
        st.sampled_from([1, 100, 125, 126, 4_000, 9_000, 40_000, 65_536, 200_000]),
    ),
    max_size=25,
)


@given(acts=ACTS)
@settings(max_examples=60)
async def test_frames_of_all_writers_come_whole_and_in_their_order(acts):
    with pair(send_buffer_bytes=4_608) as link:
        stream, sent, read = link.stream, bytearray(), bytearray()
        for number, (act, size) in enumerate(acts):
            frame = text_frame(bytes([number]) * size)
            match act:
                case "read":
                    read += link.read(size)
                    continue
                case "write_nowait":
                    if not stream.write_nowait(frame):
                        continue
                case "cancelled":
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(stream.send_frames, frame)
                        await blocked()
                        nursery.cancel_scope.cancel()
                case writer:
                    read += await link.pump(getattr(stream, writer), frame)
            sent += frame
        read += await link.pump(stream.send_frames, b"")
        assert bytes(read) == bytes(sent)


async def test_a_cancelled_send_leaves_the_remainder_to_be_written_first():
    with pair() as link:
        frame = text_frame(b"x" * 1_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.stream.send_frames, frame)
            await blocked()
            nursery.cancel_scope.cancel()
        assert 0 < link.stream.statistics().remainder_bytes < len(frame)
        assert link.stream.write_nowait(PING) == 0
        assert await link.pump(link.stream.send_all, PONG_FRAME) == frame + PONG_FRAME


async def test_a_cancelled_send_over_memory_breaks_the_stream_for_nobody_knows_what_was_sent(
    autojump_clock,
):
    stream, _ = memory_pair()

    async def never(*_: object) -> None:
        await trio.sleep_forever()

    stream._transport.send_stream.send_all_hook = never
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_frames, PING)
            await blocked()
            scope.cancel()
    with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
        await stream.send_frames(PING)


# --- errors ------------------------------------------------------------------


async def test_a_closed_sockets_number_is_never_written_to():
    """The next connection gets the descriptor's number; a frame of another account must not reach it."""
    with pair() as link:
        number = link.socket.fileno()
        assert link.stream.write_nowait(PING) == len(PING)
        link.socket.close()
        stranger, strangers_peer = socket.socketpair()
        with stranger, strangers_peer:
            if stranger.fileno() != number:
                os.dup2(stranger.fileno(), number)
            try:
                assert link.stream.write_nowait(text_frame(b"secret")) == 0
                strangers_peer.setblocking(False)
                with pytest.raises(BlockingIOError):
                    strangers_peer.recv(1)
            finally:
                if stranger.fileno() != number:
                    os.close(number)


async def test_a_closed_socket_marks_the_stream_broken():
    with pair() as link:
        link.socket.close()
        assert link.stream.write_nowait(PING) == 0
        assert link.stream.statistics().broken


async def test_a_peer_that_is_gone_marks_the_stream_broken():
    with pair() as link:
        link.peer.close()
        assert link.stream.write_nowait(PING) == 0
        assert link.stream.statistics().broken
        with pytest.raises(trio.BrokenResourceError):
            await link.stream.send_frames(b"")
        with pytest.raises(trio.BrokenResourceError):
            await link.stream.send_all(PONG_FRAME)


async def test_a_reset_marks_only_that_stream_broken():
    with tcp_pair() as link, tcp_pair() as other:
        reset(trio.SocketStream(trio.socket.from_stdlib_socket(link.peer)))
        await trio.lowlevel.wait_readable(link.socket)
        assert link.stream.write_nowait(PING) == 0
        assert link.stream.statistics().broken
        assert other.stream.write_nowait(PING) == len(PING)
        assert not other.stream.statistics().broken


@pytest.mark.parametrize("number", [errno.EBADF, errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.ENOBUFS])
async def test_any_error_but_a_full_buffer_marks_the_stream_broken_and_raises_nothing(number, monkeypatch):
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with pair() as link:
        monkeypatch.setattr(link.stream, "_send", refuse)
        assert link.stream.write_nowait(PING) == 0
        assert link.stream.statistics().broken
        assert link.stream.write_nowait(PING) == 0
        assert link.read_all() == b""


def fan_out(listener: Listener, data: bytes) -> int:
    """Write as the fan-out does."""
    try:
        taken = listener.send(data)
    except OSError as error:
        listener.send_failed(error)
        return 0
    if 0 < taken < len(data):
        listener.sent_part(data, taken)
    return taken


async def test_the_fan_out_writes_by_the_socket_itself_only_while_nothing_is_in_the_way():
    with pair() as link:
        listener = Listener(link.stream.write_nowait, lambda: None)
        link.stream.lend(listener)
        assert listener.send == link.stream._socket.send
        assert fan_out(listener, PING) == len(PING)
        async with link.stream._alone():
            assert fan_out(listener, PING) == 0
        frame = text_frame(b"x" * 4_000_000)
        taken = fan_out(listener, frame)
        assert 0 < taken < len(frame)
        assert fan_out(listener, PING) == 0, "a remainder waits"
        assert await link.pump(link.stream.send_frames, b"") == PING + frame
        assert fan_out(listener, PING) == len(PING)
        await link.pump(link.stream.send_all, CLOSE_FRAME)
        assert fan_out(listener, PING) == 0, "a Close was sent"


async def test_the_fan_out_does_not_write_to_a_socket_that_is_closed_or_gone():
    with pair() as closed, pair() as gone:
        for link, spoil in ((closed, closed.socket.close), (gone, gone.peer.close)):
            listener = Listener(link.stream.write_nowait, lambda: None)
            link.stream.lend(listener)
            spoil()
            assert fan_out(listener, PING) == 0
            assert link.stream.statistics().broken
            assert listener.send is not link.stream._socket.send
            assert fan_out(listener, PING) == 0


async def test_a_full_buffer_is_no_failure_to_the_fan_out():
    with pair() as link:
        listener = Listener(link.stream.write_nowait, lambda: None)
        link.stream.lend(listener)
        while fan_out(listener, PING):
            pass
        assert not link.stream.statistics().broken
        link.read_all()
        assert fan_out(listener, PING) == len(PING)


async def test_a_send_to_a_peer_that_is_gone_raises_broken():
    with pair() as link:
        link.peer.close()
        with pytest.raises(trio.BrokenResourceError):
            await link.stream.send_frames(PING)
        assert link.stream.statistics().broken


# --- reading -----------------------------------------------------------------


async def test_what_was_put_back_is_read_first():
    with pair() as link:
        link.peer.send(b"later")
        link.stream.put_back(b"earlier")
        assert await link.stream.receive_some(3) == b"ear"
        assert await link.stream.receive_some(100) == b"lier"
        assert await link.stream.receive_some() == b"later"


async def test_reading_what_was_put_back_is_a_checkpoint():
    stream, _ = memory_pair()
    stream.put_back(b"earlier")
    with assert_checkpoints():
        await stream.receive_some()


async def test_the_time_of_the_last_read_moves_with_each_read(mock_clock):
    stream, theirs = memory_pair()
    started = stream.last_read
    mock_clock.jump(7)
    assert stream.last_read == started
    await theirs.send_all(b"x")
    await stream.receive_some(1)
    assert stream.last_read == started + 7


class Full(Turns):
    """Turns of which none has room."""

    full = True


async def test_who_is_cancelled_while_a_turn_with_room_is_waited_for_has_lost_nothing(autojump_clock):
    ours, theirs = memory_stream_pair()
    stream = ClientStream(ours, Full())
    await theirs.send_all(b"first")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await blocked()
        nursery.cancel_scope.cancel()
    with trio.fail_after(5):
        assert await stream.receive_some(3) == b"fir"
        assert await stream.receive_some() == b"st"


async def test_what_was_read_in_a_turn_without_room_is_read_once(autojump_clock):
    class Soon(Full):
        async def come_in(self, who):
            await trio.lowlevel.checkpoint()

    ours, theirs = memory_stream_pair()
    stream = ClientStream(ours, Soon())
    with trio.fail_after(5):
        for data in (b"first", b"second"):
            await theirs.send_all(data)
            assert await stream.receive_some() == data


# --- closing -----------------------------------------------------------------


async def test_a_peer_that_still_sends_reads_our_last_bytes_and_no_reset():
    with tcp_pair() as link:
        link.peer.setblocking(True)
        link.peer.send(b"never read by anybody" * 1_000)
        await link.stream.send_all(CLOSE_FRAME)

        def read_to_end() -> bytes:
            link.peer.settimeout(60)
            data = b"".join(iter(lambda: link.peer.recv(100), b""))
            link.peer.send(b"and one more")
            link.peer.close()
            return data

        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.stream.aclose)
            assert await trio.to_thread.run_sync(read_to_end) == CLOSE_FRAME


async def test_closing_ends_as_soon_as_the_peer_has_ended(autojump_clock):
    stream, theirs = memory_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.aclose)
        await blocked()
        assert await theirs.receive_some(1) == b""
        await theirs.aclose()
    assert trio.current_time() == 0


async def test_a_peer_that_never_ends_is_waited_for_no_longer_than_the_linger(autojump_clock):
    stream, theirs = memory_pair()

    async def send_for_ever() -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await theirs.send_all(b"x" * 1_000)
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_for_ever)
        await stream.aclose()
        assert trio.current_time() == pytest.approx(LINGER_SECONDS)
        assert LINGER_SECONDS <= 2


async def test_a_peer_that_never_reads_is_waited_for_no_longer_than_the_linger(autojump_clock):
    with pair() as link:
        link.fill_with_remainder()
        await link.stream.aclose()
        assert trio.current_time() == pytest.approx(LINGER_SECONDS)
        assert link.socket.fileno() == -1


async def test_a_cancelled_close_closes_at_once(autojump_clock):
    with pair() as link:
        gc.collect()
        before = open_descriptors()
        await trio.aclose_forcefully(link.stream)
        assert open_descriptors() == before - 1
        assert trio.current_time() == 0
        with pytest.raises(trio.ClosedResourceError):
            await link.stream.send_all(PING)
        assert link.stream.write_nowait(PING) == 0


async def test_a_close_beside_a_reader_ends_at_once_and_the_reader_hears_of_it(autojump_clock):
    stream, _ = memory_pair()
    heard = []

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError) as closed:
            await stream.receive_some()
        heard.append(closed)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await blocked()
        await stream.aclose()
    assert heard
    assert trio.current_time() == 0


async def test_frames_are_taken_only_when_it_is_their_turn_and_then_they_are_written_or_kept():
    with pair() as link:
        taken = []

        def take() -> bytes:
            taken.append(text_frame(b"x" * 1_000_000))
            return taken[-1]

        first = text_frame(b"f" * 1_000_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.stream.send_frames, first)
            await blocked()
            nursery.start_soon(link.stream.write_from, take)
            await blocked()
            assert taken == []
            read = link.read_all()
            while not taken:
                await blocked()
                read += link.read_all()
            nursery.cancel_scope.cancel()
        assert len(taken) == 1
        assert read + await link.pump(link.stream.send_all, CLOSE_FRAME) == first + taken[0] + CLOSE_FRAME


async def test_frames_are_taken_when_the_remainder_is_written_and_not_before():
    with pair() as link:
        frame = link.fill_with_remainder()
        left = []

        def take() -> bytes:
            left.append(link.stream.statistics().remainder_bytes)
            return PING

        assert await link.pump(link.stream.write_from, take) == frame + PING
        assert left == [0]


async def test_over_a_socket_nobody_need_be_waited_for_to_finish_his_frame():
    with pair() as link:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.stream.send_frames, text_frame(b"x" * 1_000_000))
            await blocked()
            with trio.fail_after(60):
                await link.stream.settle()
            nursery.cancel_scope.cancel()


async def test_where_only_he_who_writes_a_frame_can_finish_it_he_is_waited_for():
    stream, theirs = memory_pair()
    gate, settled = trio.Event(), trio.Event()
    sending = stream._transport.send_stream
    pump = sending.send_all_hook

    async def wait_and_pump() -> None:
        await gate.wait()
        await pump()

    sending.send_all_hook = wait_and_pump

    async def settle() -> None:
        await stream.settle()
        settled.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_frames, PING)
        await blocked()
        nursery.start_soon(settle)
        await blocked()
        assert not settled.is_set()
        gate.set()
    assert await theirs.receive_some() == PING


async def test_who_takes_nothing_writes_only_the_remainder():
    with pair() as link:
        frame = link.fill_with_remainder()
        outcomes = []

        async def write_from(take) -> None:
            outcomes.append(await link.stream.write_from(take))

        assert await link.pump(write_from, lambda: b"") == frame
        assert await link.pump(write_from, lambda: None) == b""
        assert outcomes == [True, False]


# --- what the kernel knows ---------------------------------------------------


async def test_the_address_of_a_peer_is_that_of_its_network_if_it_has_one():
    with tcp_pair() as link:
        assert (link.stream.remote, link.stream.is_tcp, link.stream.is_by_socket_file) == ("127.0.0.1", True, False)
        link.socket.close()
        assert link.stream.remote is None
    with pair() as link:
        assert (link.stream.remote, link.stream.is_tcp, link.stream.is_by_socket_file) == (None, False, True)
    assert memory_pair()[0].remote is None


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has no IPv6 that is IPv4, too")
async def test_the_address_of_a_peer_by_ipv4_is_told_as_such():
    with tcp_pair(socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)) as link:
        assert link.socket.getsockname()[0] == "::ffff:127.0.0.1"
        assert link.stream.remote == "127.0.0.1"


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not tell")
async def test_what_the_kernel_knew_of_the_way_to_a_peer_is_known_after_the_close():
    with tcp_pair() as link:
        await link.stream.send_all(PING)
        link.peer.shutdown(socket.SHUT_WR)
        assert link.stream.link().bytes_sent == len(PING)
        await link.stream.aclose()
        assert link.stream.link().bytes_sent == len(PING)


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not tell")
async def test_after_traffic_the_last_acknowledgement_is_young():
    with tcp_pair() as link:
        await link.stream.send_all(PING)
        link.peer.setblocking(True)
        assert await trio.to_thread.run_sync(link.peer.recv, 10) == PING
        link.peer.send(b"x")
        assert await link.stream.receive_some(1) == b"x"
        assert 0 <= link.stream.unacknowledged_seconds() < 60


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="this system does not tell")
async def test_a_peer_that_pauses_with_a_full_window_owes_nothing_however_long_ago_it_acknowledged():
    with tcp_pair() as link:
        while link.stream.write_nowait(b"x" * 65_536):
            pass
        with trio.fail_after(60):
            while link.stream.unacknowledged_seconds():
                await blocked()
        assert link.stream.unacknowledged_seconds() == 0.0


async def test_where_the_kernel_does_not_know_of_acknowledgements_there_are_none():
    assert memory_pair()[0].unacknowledged_seconds() is None
    with pair() as link:
        assert link.stream.unacknowledged_seconds() is None
    with tcp_pair() as link:
        link.socket.close()
        assert link.stream.unacknowledged_seconds() is None
