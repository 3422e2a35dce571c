"""What may happen to a broker: killed, stopped, out of descriptors, full, its clock set, its handlers at fault.

A log on disk has its own: `tests/cli/test_killed.py`, `tests/queues/test_killed.py`.
"""

import json
import resource
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta

import pytest
import trio
from clients import (
    ACCOUNT,
    broker_log,
    configured,
    connected,
    event,
    numbers,
)
from clients import serving as serving_here
from durable import publish, stream
from fairness.resting import at_rest
from processes import COMMAND, GUARD_SECONDS, KEY, free_port, serving
from proofs.proving import more

from broker import CommandsConfig, ReplayConfig
from broker.keys import hash_key

STOPPED_SECONDS = more(2, 20)
DESCRIPTORS = 80
CONFIG = f"""
[limits]
heartbeat_seconds = 1
[[accounts]]
id = "acct_test"
tier = "enterprise"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
"""


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(CONFIG)
    return path


def said(client):
    """What a client of `durable` hears next, as JSON."""
    return json.loads(client.recv(GUARD_SECONDS))


def ids_heard(client, count):
    """The ids of the next events; cursors and the like are skipped."""
    heard = []
    while len(heard) < count:
        frame = said(client)
        heard += [frame["event_id"]] if "event_id" in frame else []
    return heard


# --- the process ---------------------------------------------------------------------------------------------------


def test_killed_without_a_log_on_disk_it_says_that_all_before_is_gone_and_goes_on(config_path):
    port = free_port()
    with serving("--config", config_path, "--port", port) as (broker, url), stream(url, None) as client:
        ready = said(client)
        publish(url, ["before_1", "before_2"])
        assert ids_heard(client, 2) == ["before_1", "before_2"]
        broker.send_signal(signal.SIGKILL)
    with serving("--config", config_path, "--port", port) as (_, url), stream(url, ready["cursor"]) as client:
        ready, gap = said(client), said(client)
        assert (ready["replay"]["recovered"], ready["replay"]["count"]) == (False, 0)
        assert (gap["type"], gap["from"], gap["count"]) == ("replay.gap", None, None)
        publish(url, ["before_1", "after"])
        assert ids_heard(client, 2) == ["before_1", "after"]


def test_stopped_for_a_while_it_goes_on_with_the_same_clients_and_loses_nothing(config_path):
    with (
        serving("--config", config_path) as (broker, url),
        stream(url, None) as reader,
        stream(url, None) as other,
    ):
        said(reader)
        said(other)
        publish(url, ["before"])
        broker.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        other.send(json.dumps({"action": "publish", "request_id": "p", "events": {
            "type": "a.b", "inbox_id": "i1", "event_id": "meanwhile", "payload": {}}}))  # fmt: skip
        while time.monotonic() < began + STOPPED_SECONDS:
            with suppress(TimeoutError):
                reader.recv(began + STOPPED_SECONDS - time.monotonic())
        broker.send_signal(signal.SIGCONT)
        publish(url, ["after"])
        heard = ids_heard(other, 3)
        assert set(heard) == {"before", "meanwhile", "after"}
        other.send(json.dumps({"action": "ping", "request_id": "alive"}))
        reader.send(json.dumps({"action": "ping", "request_id": "alive"}))
        for client in (other, reader):
            while said(client).get("request_id") != "alive":
                pass


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_out_of_descriptors_it_serves_who_is_there_and_whoever_waited_when_some_are_free(config_path):
    with serving("--config", config_path) as (broker, url), stream(url, None) as client:
        said(client)
        _, hard = resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with ExitStack() as stack:
            taken = [stack.enter_context(socket.create_connection(address)) for _ in range(DESCRIPTORS + 20)]
            client.send(json.dumps({"action": "publish", "events": {
                "type": "a.b", "inbox_id": "i1", "event_id": "still", "payload": {}}}))  # fmt: skip
            assert ids_heard(client, 1) == ["still"]
            waiting = taken[-1]
            waiting.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            for each in taken[:-1]:
                each.close()
            waiting.settimeout(GUARD_SECONDS)
            assert waiting.recv(4_096).startswith(b"HTTP/1.1 200 ")
        publish(url, ["after"])
        assert ids_heard(client, 1) == ["after"]


def test_with_no_room_left_for_its_log_it_serves_on(config_path):
    port = free_port()
    command = [*COMMAND, "serve", "--config", str(config_path), "--port", str(port), "--log-level", "debug"]
    with open("/dev/full", "wb") as full, subprocess.Popen(command, stderr=full, stdout=full) as broker:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(GUARD_SECONDS * 10):
                with suppress(OSError):
                    urllib.request.urlopen(f"{url}/healthz", timeout=1).close()
                    break
                time.sleep(0.1)
            with stream(url, None) as client:
                said(client)
                publish(url, [f"evt_{number}" for number in range(50)])
                assert ids_heard(client, 50) == [f"evt_{number}" for number in range(50)]
            broker.send_signal(signal.SIGTERM)
            assert broker.wait(GUARD_SECONDS) == 0
        finally:
            broker.kill()


# --- the window, and the clock -------------------------------------------------------------------------------------


async def test_at_the_cap_of_all_windows_the_oldest_events_of_all_go_and_who_missed_them_is_told_how_many():
    cap = 200_000
    async with serving_here(configured(replay=ReplayConfig(max_bytes_total=cap))) as served:
        async with connected(served.address, "inbox_ids=in_1") as client:
            start = client.ready["cursor"]
        for number in range(600):
            account = (ACCOUNT, "acct_bob")[number % 2]
            await served.broker.publish(account, event(number, size=1_000))
            assert served.broker.statistics().replay.bytes <= cap + 2_000
        async with connected(served.address, f"inbox_ids=in_1&since={start}") as client:
            gap = await client.next()
            kept = list(range(0, 600, 2))[gap["count"] :]
            assert not client.ready["replay"]["recovered"]
            assert numbers([await client.next() for _ in kept]) == kept
            assert len(kept) > 50


async def test_the_time_of_day_may_jump_and_order_cursors_and_the_window_do_not(no_errors):
    async with serving_here() as served, connected(served.address, "inbox_ids=in_1") as client:
        engine, real = served.broker._engine, served.broker._engine._wall_clock
        begun = datetime.now(UTC) - timedelta(seconds=1)
        for number, jump in enumerate((0, 86_400, -86_400, 3_600, 0)):
            engine._wall_clock = lambda jump=jump: real() + jump
            await served.broker.publish(ACCOUNT, event(number))
        assert numbers([await client.next() for _ in range(5)]) == list(range(5))
        for since in ("90s", client.ready["cursor"], begun.isoformat().replace("+00:00", "Z")):
            async with connected(served.address, f"inbox_ids=in_1&since={since}") as again:
                assert again.ready["replay"] == {"recovered": True, "count": 5}
                assert numbers([await again.next() for _ in range(5)]) == list(range(5))


# --- handlers ------------------------------------------------------------------------------------------------------


async def test_a_handler_that_raises_hangs_or_eats_its_cancellation_harms_nobody(caplog):
    config = configured(commands=CommandsConfig(timeout_seconds=0.2))
    async with serving_here(config) as served:

        @served.broker.command("raises")
        async def raises(params: dict, context: object) -> dict:
            raise ZeroDivisionError("a secret of the handler")

        @served.broker.command("raises_much")
        async def raises_much(params: dict, context: object) -> dict:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(raises, params, context)
                nursery.start_soon(trio.sleep_forever)
            return {}

        @served.broker.command("hangs")
        async def hangs(params: dict, context: object) -> dict:
            await trio.sleep_forever()
            return {}

        @served.broker.command("eats")
        async def eats(params: dict, context: object) -> dict:
            with suppress(trio.Cancelled):
                await trio.sleep_forever()
            with trio.CancelScope(shield=True):
                await trio.sleep(0.1)
            return {"late": True}

        rest = await at_rest(served)
        async with connected(served.address) as client, connected(served.address, "inbox_ids=in_1") as other:
            for action in ("eats", "hangs", "raises", "raises_much"):
                await client.say(action=action, request_id=action)
            await client.say(action="ping", request_id="ping")
            await served.broker.publish(ACCOUNT, event(1))
            assert numbers([await other.next()]) == [1]
            answers = {}
            while len(answers) < 5:
                frame = await client.next()
                assert frame["request_id"] not in answers
                answers[frame["request_id"]] = frame
            assert "result" in answers["ping"]
            assert answers["hangs"]["error"]["code"] == "timeout"
            assert answers["raises"]["error"]["code"] == answers["raises_much"]["error"]["code"] == "internal"
            assert answers["eats"].get("result") == {"late": True} or answers["eats"]["error"]["code"] == "timeout"
            await client.say(action="eats", request_id="and leaves")
            await client.ping()
        await rest.again()
    log = broker_log(caplog)
    assert log.count("the handler of raises failed") == 1
