"""Long catch-ups: a connection and an in-process subscriber read a part of the log, then others have their turn."""

from contextlib import contextmanager

import pytest
import trio
from clients import ACCOUNT, connected, event, numbers, serving

from broker import open_broker
from broker.fanout.follower import READ_EVENTS
from broker.log.replay import ReplayBuffer

EVENTS = 5_000


class Reads(trio.abc.Instrument):
    """What was read of logs: in all, and at most in one step of a task."""

    def __init__(self) -> None:
        self.all = self.most = self.now = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.now = 0

    def note(self, count: int) -> None:
        self.all += count
        self.now += count
        self.most = max(self.most, self.now)


@pytest.fixture
def reads(monkeypatch):
    noted, read = Reads(), ReplayBuffer.read

    def read_and_note(self, *args, **bounds):
        entries, reached = read(self, *args, **bounds)
        noted.note(len(entries))
        return entries, reached

    monkeypatch.setattr(ReplayBuffer, "read", read_and_note)
    return noted


@contextmanager
def watched_by(instrument: trio.abc.Instrument):
    trio.lowlevel.add_instrument(instrument)
    yield
    trio.lowlevel.remove_instrument(instrument)


async def test_a_connection_that_comes_back_to_a_full_window_reads_a_part_of_it_in_each_step(reads):
    async with serving() as served:
        await served.broker.publish(ACCOUNT, [event(n) for n in range(EVENTS)])
        with watched_by(reads):
            async with connected(served.address, "inbox_ids=*&since=5m") as client:
                found = []
                while len(found) < EVENTS:
                    found += numbers([await client.next()])
    assert found == list(range(EVENTS))
    assert (reads.all, reads.most) == (EVENTS, READ_EVENTS)


async def test_a_subscriber_that_comes_back_to_a_full_window_reads_a_part_of_it_in_each_step(reads):
    async with open_broker() as broker:
        async with broker.subscribe("acct") as subscriber:
            start = subscriber.cursor
        await broker.publish("acct", [event(n) for n in range(EVENTS)])
        with watched_by(reads):
            async with broker.subscribe("acct", since=start) as subscriber:
                found = [(await anext(subscriber)).payload["number"] for _ in range(EVENTS)]
    assert found == list(range(EVENTS))
    assert (reads.all, reads.most) == (EVENTS, READ_EVENTS)
