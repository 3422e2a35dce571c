"""Lines for a descriptor that may take none: nobody waits, and what is lost is counted and said."""

import fcntl
import logging
import os
import select

import pytest

from broker.observe.log_writer import LogWriter, WritingHandler, dropped_lines

GUARD_SECONDS = 60
PIPE_BYTES = 4_096


def say_dropped(lines):
    return b"dropped %d\n" % lines


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield reading, writing
    for descriptor in (reading, writing):
        os.close(descriptor)


class Reader:
    """Reads a pipe to its end, once it is told to."""

    def __init__(self, descriptor):
        self._descriptor = descriptor
        self.read = bytearray()

    def until(self, condition):
        while not condition(bytes(self.read)):
            assert select.select([self._descriptor], [], [], GUARD_SECONDS)[0], "nothing more is written"
            self.read += os.read(self._descriptor, 65_536)
        return bytes(self.read).splitlines()


def line(number, size=100):
    return b"%d" % number + b"." * (size - 1 - len(b"%d" % number)) + b"\n"


def test_lines_are_written_whole_and_in_order(pipe):
    writer = LogWriter(pipe[1], say_dropped)
    for number in range(20):
        writer.put(line(number))
    writer.close()
    assert os.read(pipe[0], 65_536) == b"".join(map(line, range(20)))
    assert writer.dropped == 0


def test_nobody_waits_for_a_descriptor_that_takes_nothing_and_what_is_kept_is_bounded(pipe):
    writer = LogWriter(pipe[1], say_dropped, max_waiting_bytes=10_000)
    for number in range(5_000):
        writer.put(line(number))
    assert 5_000 - 10_000 // 100 - PIPE_BYTES // 100 - 1 <= writer.dropped < 5_000
    dropped = writer.dropped
    said = Reader(pipe[0]).until(lambda read: b"dropped" in read)
    assert said[0] + b"\n" == line(0), "the first are written, the later ones dropped"
    assert said[-1] == b"dropped %d" % dropped
    assert len(said) - 1 == 5_000 - dropped
    writer.close()


def test_what_was_written_makes_room_for_more(pipe):
    writer = LogWriter(pipe[1], say_dropped, max_waiting_bytes=1_000)
    reader = Reader(pipe[0])
    for number in range(50):
        writer.put(line(number))
        assert writer.dropped == 0
        reader.until(lambda read, most=number + 1: read.count(b"\n") == most)
    writer.close()


def test_each_dropped_line_is_spoken_of_once(pipe):
    writer = LogWriter(pipe[1], say_dropped, max_waiting_bytes=10_000)
    reader = Reader(pipe[0])
    told = 0
    for _ in range(3):
        for number in range(1_000):
            writer.put(line(number))
        writer_dropped = writer.dropped

        def spoken_of(read):
            return sum(int(said.split()[1]) for said in read.splitlines() if said.startswith(b"dropped "))

        def are_all_spoken_of(read, most=writer_dropped):
            assert spoken_of(read) <= most
            return spoken_of(read) == most

        reader.until(are_all_spoken_of)
        assert writer_dropped > told
        told = writer_dropped
    writer.close()


def test_a_descriptor_that_fails_loses_lines_and_stops_nobody():
    reading, writing = os.pipe()
    os.close(reading)
    writer = LogWriter(writing, say_dropped)
    for number in range(10):
        writer.put(line(number))
    writer.close()
    os.close(writing)
    assert writer.dropped == 10


def test_a_descriptor_that_somebody_made_nonblocking_is_written_all_the_same(pipe):
    os.set_blocking(pipe[1], False)
    writer = LogWriter(pipe[1], say_dropped)
    for number in range(200):
        writer.put(line(number))

    def is_all_there(read):
        assert writer.dropped == 0
        return read.count(b"\n") == 200

    assert len(Reader(pipe[0]).until(is_all_there)) == 200
    writer.close()
    assert writer.dropped == 0


def test_the_end_does_not_wait_for_ever(pipe, monkeypatch):
    monkeypatch.setattr("broker.observe.log_writer.CLOSE_SECONDS", 0.01)
    writer = LogWriter(pipe[1], say_dropped)
    for number in range(200):
        writer.put(line(number))
    writer.close()
    Reader(pipe[0]).until(lambda read: read.count(b"\n") == 200)


def test_a_line_that_cannot_be_made_is_dropped_and_what_failed_is_not_said(pipe, capfd):
    class Broken(logging.Formatter):
        def format(self, record):
            raise ValueError("the words of a client")

    writer = LogWriter(pipe[1], say_dropped)
    handler = WritingHandler(writer)
    handler.setFormatter(Broken())
    logging.getLogger().addHandler(handler)
    try:
        logging.getLogger("broker").error("never")
        assert dropped_lines() == 1
    finally:
        logging.getLogger().removeHandler(handler)
    writer.close()
    assert dropped_lines() == 0
    assert b"words" not in os.read(pipe[0], 65_536)
    assert "words" not in "".join(capfd.readouterr())
