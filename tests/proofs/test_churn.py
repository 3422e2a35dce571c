"""No byte for one account ever reaches another, however fast connections come and go while events flow.

A descriptor that is closed is the next connection's: whoever kept it would write to a stranger.
"""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import trio
from clients import ACCOUNT, connected, event, numbers, serving
from fairness.resting import at_rest
from proofs.proving import more

import broker.transport.server
from broker.fanout.follower import Follower
from broker.transport.files import raise_open_files_limit
from broker.transport.poller import FEW
from broker.transport.stream import ClientStream

TIMES, TIMES_TO_FIND = more(800, 8_000), 400
SIZES = (1, 5, 2_000, 1, 1, 5)
"""Words of an event: some frames are longer than what is left in a client's buffers."""


class Churned:
    """What came of it."""

    def __init__(self, heard, descriptors):
        self.heard = heard
        self.descriptors = descriptors


async def churn(served, monkeypatch, times):
    """Let clients come and go while events of both accounts flow."""
    taken = []

    class Noted(ClientStream):
        def __init__(self, transport, turns, pollers):
            taken.append(transport.socket.fileno())
            super().__init__(transport, turns, pollers)

    monkeypatch.setattr(broker.transport.server, "ClientStream", Noted)

    async def publish():
        number = 0
        while True:
            for word in ("alice", "bob"):
                words = " ".join([word] * SIZES[number % len(SIZES)])
                made = event(number, inbox=f"in_{word}") | {"payload": {"number": number, "words": words}}
                await served.broker.publish(f"acct_{word}", made)
            number += 1
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        command = [sys.executable, "-m", "proofs.churning", *map(str, served.address), str(times)]
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with trio.fail_after(100):
            ran = await trio.run_process(
                command, capture_stdout=True, stderr=subprocess.DEVNULL, env={**os.environ, **paths}
            )
        nursery.cancel_scope.cancel()
    return Churned(json.loads(ran.stdout), taken)


@pytest.mark.parametrize("few", [FEW, 0], ids=["few by trio", "all by the pollers"])
async def test_no_byte_reaches_another_account_though_descriptors_are_used_again_at_once(few, monkeypatch, no_errors):
    raise_open_files_limit()
    monkeypatch.setattr(broker.transport.poller, "FEW", few)
    async with serving() as served:
        rest = await at_rest(served)
        async with connected(served.address, "inbox_ids=in_still", seconds=120) as still:
            churned = await churn(served, monkeypatch, TIMES)
            await served.broker.publish(ACCOUNT, [event(number, inbox="in_still") for number in range(5)])
            heard = []
            while len(heard) < 5:
                heard += numbers([await still.next()])
            assert heard == [0, 1, 2, 3, 4]
        await rest.again()
    assert churned.heard["connections"] == TIMES
    assert churned.heard["events"] > TIMES / 4
    assert "strange" not in churned.heard
    assert len(set(churned.descriptors)) < TIMES / 2, "too few were used again"


async def test_it_is_found_out_if_a_stream_keeps_its_descriptor(monkeypatch):
    """The mistake: what writes is made once, of a number, and is not taken from the fan-out when the client goes."""
    raise_open_files_limit()

    def lend_for_good(stream, door):
        door.sent_part, door.send_failed = stream._keep_rest, lambda _: None
        door.send = partial(write, stream._socket.fileno())

    def write(descriptor, data):
        try:
            return os.write(descriptor, data)
        except BlockingIOError:
            raise
        except OSError:
            return len(data)

    monkeypatch.setattr(ClientStream, "lend", lend_for_good)
    monkeypatch.setattr(ClientStream, "_set_free", lambda _: None)
    monkeypatch.setattr(Follower, "pause", lambda _: None)
    monkeypatch.setattr(Follower, "close", lambda _: None)
    async with serving() as served:
        churned = await churn(served, monkeypatch, TIMES_TO_FIND)
    assert churned.heard["strange"]
