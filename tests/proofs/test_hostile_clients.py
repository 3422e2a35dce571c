"""Whatever hostile clients do, others are served, it costs a bounded amount, and the broker is at rest afterwards.

Each client of `hostile` is told what it must be told; a neighbour of another account publishes, hears its own events
and is asked for nothing else meanwhile. What the attack cost is in the summary of `make prove`.
"""

import contextlib
import gc
import logging
import tracemalloc

import pytest
import trio
from certificates import Authority
from clients import ALICE, BOB, ask, broker_log, configured, connected, event, serving, until
from fairness.resting import at_rest
from fairness.steps import counted_steps
from proofs.hostile import HOSTILE, PATIENCE

import broker.transport.connection
import broker.transport.server
import broker.transport.session
import broker.transport.stream
from broker import LimitsConfig, ReplayConfig, ServerConfig
from broker.transport.files import raise_open_files_limit
from broker.transport.http11 import HttpLimits

LEFT_BYTES = 250_000
"""What may differ between two moments of rest beside the window: tables that grew, lines of the latest clients."""
POSITION_BYTES = 64
"""What is remembered of an event that left the window, at most."""
LONGEST_WAIT = 0.15
"""Seconds that the broker works while the neighbour waits for its event."""
ROUNDS = 3
INBOX = "in_neighbour"
WINDOW = 200

each_hostile = pytest.mark.parametrize("hostile", [pytest.param(each, id=each.does) for each in HOSTILE])


@pytest.fixture(autouse=True)
def short_deadlines(monkeypatch):
    """Let clients that keep the broker waiting be gone soon."""
    raise_open_files_limit()
    limits = HttpLimits(head_seconds=PATIENCE, idle_seconds=PATIENCE, body_seconds=PATIENCE)
    monkeypatch.setattr(broker.transport.server, "HttpLimits", lambda: limits)
    monkeypatch.setattr(broker.transport.server, "HANDSHAKE_SECONDS", PATIENCE)
    monkeypatch.setattr(broker.transport.connection, "HANDSHAKE_SECONDS", PATIENCE)
    monkeypatch.setattr(broker.transport.connection, "CLOSE_SECONDS", PATIENCE)
    monkeypatch.setattr(broker.transport.stream, "LINGER_SECONDS", PATIENCE)
    monkeypatch.setattr(broker.transport.session, "GRACE_SECONDS", PATIENCE)


class Neighbour:
    """Publishes and hears, as long as it is let."""

    def __init__(self, steps=None):
        self.steps = steps
        self.rounds = 0
        self.longest_wait = 0.0

    async def live(self, served, tls=None):
        async with connected(served.address, f"inbox_ids={INBOX}", key=BOB, tls=tls, seconds=100) as client:
            while True:
                before = 0.0 if self.steps is None else self.steps.work
                await client.say(action="publish", events=event(self.rounds, inbox=INBOX))
                heard = [await client.next(), await client.next()]
                assert [each["payload"]["number"] for each in heard if "payload" in each] == [self.rounds]
                if self.steps is not None:
                    self.longest_wait = max(self.longest_wait, self.steps.work - before)
                self.rounds += 1
                await trio.sleep(0.005)


async def attack(served, hostile, neighbour, tls):
    """Let it do its worst while the neighbour lives, and the neighbour live on for a while."""
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(neighbour.live, served, tls)
            await hostile.attack(served)
            lived = neighbour.rounds
            await until(lambda: neighbour.rounds >= lived + ROUNDS)
            nursery.cancel_scope.cancel()


@each_hostile
async def test_others_are_served_it_costs_little_and_nothing_is_left(hostile, tmp_path, no_errors, costs):
    authority = Authority(tmp_path)
    config = configured(
        server=authority.sign() if hostile.tls else ServerConfig(),
        replay=ReplayConfig(max_events_per_account=WINDOW),
        limits=LimitsConfig(heartbeat_seconds=PATIENCE),
    )
    tls = authority.trust() if hostile.tls else None
    async with serving(config) as served:
        rest = await at_rest(served)
        await attack(served, hostile, Neighbour(), tls)  # what is made once is made now
        await rest.again()
        with counted_steps() as steps:
            neighbour = Neighbour(steps)
            tracemalloc.start()
            try:
                await attack(served, hostile, neighbour, tls)
                _, peak = tracemalloc.get_traced_memory()
                await rest.again()
                gc.collect()
                left, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        replay = served.broker.statistics().replay
        kept = replay.bytes + POSITION_BYTES * replay.dropped
    costs(hostile.does, peak, steps.work, neighbour.longest_wait, left - kept)
    assert peak < hostile.most_bytes
    assert left - kept < LEFT_BYTES
    assert neighbour.longest_wait < LONGEST_WAIT


async def test_a_key_in_a_url_reaches_no_log_whatever_is_asked_and_however_it_fails(caplog):
    caplog.set_level(logging.DEBUG)
    secret = "dm_live_in_a_url_of_somebody"
    async with serving() as served:
        for key in (ALICE, secret):
            for path in broker.transport.endpoints.ROUTES:
                for method in ("GET", "POST", "DELETE", "PATCH", "OPTIONS", "PUT"):
                    for extra in ("", "&since=%0a", f"&{key}=1", "&key=x", "\x00", " HTTP/1.1\r\nX: y"):
                        if (method, path) in {("GET", "/v1/events/stream"), ("GET", "/v1/operator/live")}:
                            continue
                        with contextlib.suppress(IndexError, ValueError):
                            await ask(served.address, method, f"{path}?key={key}{extra}", body=b"{" + key.encode())
        await served.until_gone()
    log = broker_log(caplog)
    assert "request refused" in log
    assert "dm_live" not in log
