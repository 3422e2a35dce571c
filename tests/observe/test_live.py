"""What an operator watches: one small frame a second, the same for all, while the broker and the key are there."""

import json
from contextlib import asynccontextmanager

import pytest
import trio
from clients import ALICE, OPERATOR, alices, ask, configured, connected, event, serving, until
from described import OPENAPI, faults

import broker.observe.live
import broker.observe.looks
from broker import AccountConfig, Config, ReplayConfig, StorageConfig, open_broker
from broker.access.keys import MAX_CONNECTIONS
from broker.observe.connections import ConnectionStatistics, OpenConnection
from broker.observe.live import MAX_FRAME_BYTES
from broker.protocol.selection import EVERYTHING
from broker.transport.server import serve_stream


async def frame_of(broker):
    return json.loads(await broker.live.frame())


@pytest.fixture
def each_frame_new(monkeypatch):
    """Whoever asks is given a new frame, of a new look."""
    monkeypatch.setattr(broker.observe.looks, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(broker.observe.live, "FRESH_SECONDS", 0.0)


# --- a frame -----------------------------------------------------------------


async def test_a_frame_is_described_to_its_last_field(noisy_broker):
    frame = await frame_of(noisy_broker.broker)
    assert faults(frame, OPENAPI["components"]["schemas"]["Snapshot"], OPENAPI) == []
    assert frame["type"] == "operator.snapshot"


async def test_a_frame_tells_what_a_broker_holds_and_has_done(noisy_broker):
    frame = await frame_of(noisy_broker.broker)
    assert frame["connections"] == {
        "total": 2, "live": 2, "behind": 0, "paused": 0, "websocket": 2, "sse": 0, "poll": 0,
    }  # fmt: skip
    assert frame["counters"]["published"] == 10
    assert frame["counters"]["delivered"] >= 20
    assert (frame["counters"]["gaps"], frame["counters"]["gap_events"]) == (1, 6)
    assert frame["counters"]["refused"] == {"not_found": 1}
    assert (frame["window"]["events"], frame["window"]["seconds"]) == (4, 300)
    assert frame["window"]["shortest_seconds"] < 300
    assert 0 < frame["window"]["bytes"] < frame["window"]["max_bytes"]
    assert not frame["draining"]
    for name in ("delay_seconds", "loop_lag_seconds"):
        assert len(frame[name]["counts"]) == len(frame[name]["buckets"]) + 1
    assert sum(frame["delay_seconds"]["counts"]) >= 1


async def test_a_log_on_disk_is_told_with_how_far_it_reaches(tmp_path):
    storage = StorageConfig(path=str(tmp_path / "broker.db"), keep_seconds=7_200)
    for config, seconds in ((configured(storage=storage), 7_200), (configured(), None)):
        async with serving(config) as served:
            assert (await frame_of(served.broker))["window"]["disk_seconds"] == seconds


async def test_the_connections_that_ended_last_are_told_with_why_and_how_long_they_lived():
    async with serving() as served:
        async with connected(served.address, "client_id=worker") as client:
            await ask(served.address, "DELETE", f"/v1/connections/{client.ready['connection_id']}", key=ALICE)
            await client.until_closed()
        await served.until_gone()
        async with connected(served.address) as other:
            await other.say_close()
            assert await other.at_end()
        await served.until_gone()
        last, first = (await frame_of(served.broker))["closed"]
    assert (first["connection_id"], first["code"]) == (client.ready["connection_id"], 1001)
    assert "closed on request" in first["reason"]
    assert (first["account_id"], first["client_id"]) == ("acct_alice", "worker")
    assert 0 <= first["lived_seconds"] < 20
    assert (last["connection_id"], last["code"]) == (other.ready["connection_id"], None)
    assert "closed by the client" in last["reason"]


async def test_the_busiest_accounts_come_first_with_what_they_have(each_frame_new, autojump_clock):
    accounts = tuple(AccountConfig(id=f"acct_{number}") for number in range(12))
    async with open_broker(Config(accounts=accounts)) as opened:
        for number in range(12):
            await opened.publish(f"acct_{number}", event())
        await frame_of(opened)
        await trio.sleep(2)
        await opened.publish("acct_7", [event(number) for number in range(10)])
        await opened.publish("acct_3", [event(number) for number in range(4)])
        told = (await frame_of(opened))["accounts"]
    assert len(told) == 10
    assert [(seen["account_id"], seen["events_per_second"]) for seen in told[:3]] == [
        ("acct_7", 5.0), ("acct_3", 2.0), ("acct_0", 0.0),
    ]  # fmt: skip
    assert (told[0]["window_events"], told[0]["window_seconds"]) == (11, 2.0)
    assert told[0]["connections"] == 0


async def test_an_account_is_told_with_its_connections_and_how_many_it_may_have():
    async with serving(Config(accounts=(alices(),))) as served, connected(served.address), connected(served.address):
        [seen] = (await frame_of(served.broker))["accounts"]
    assert (seen["connections"], seen["max_connections"], seen["tier"]) == (2, 10, "developer")
    assert (seen["window_seconds"], seen["squeezed"]) == (None, False)


async def test_an_account_without_connections_is_told_with_the_tier_that_it_is_configured_with():
    accounts = AccountConfig(id="acct_1", tier="free"), AccountConfig(id="acct_2", tier="enterprise")
    async with open_broker(Config(accounts=accounts)) as opened:
        for account in accounts:
            await opened.publish(account.id, event())
        told = {seen["account_id"]: seen for seen in (await frame_of(opened))["accounts"]}
    assert {name: (seen["tier"], seen["connections"]) for name, seen in told.items()} == {
        "acct_1": ("free", 0), "acct_2": ("enterprise", 0),
    }  # fmt: skip
    assert told["acct_1"]["max_connections"] == MAX_CONNECTIONS["free"]


async def test_an_account_is_squeezed_while_its_window_reaches_less_far_than_configured(each_frame_new, autojump_clock):
    config = Config(accounts=(AccountConfig(id="acct_1"),), replay=ReplayConfig(seconds=60, max_events_per_account=3))
    squeezed = []
    async with open_broker(config) as opened:
        for published, seconds in [(3, 1), (1, 10), (0, 60)]:
            for number in range(published):
                await opened.publish("acct_1", event(number))
            await trio.sleep(seconds)
            squeezed.append((await frame_of(opened))["accounts"][0]["squeezed"])
    assert squeezed == [False, True, False]


class Ended:
    """A connection that has ended, for a reason of many words."""

    def last_heard(self):
        return 0.0

    def statistics(self):
        return ConnectionStatistics(EVERYTHING, True, 0, 0, 0, None, ending="closed by the broker " + "x" * 125)


async def test_a_frame_is_small_whatever_the_size_of_the_broker_and_the_length_of_its_names(autojump_clock):
    accounts = tuple(AccountConfig(id=f"{number}".rjust(128, "x")) for number in range(300))
    async with open_broker(Config(accounts=accounts)) as opened:
        for account in accounts:
            await opened.publish(account.id, event())
        key = key_of_account(accounts[0].id)
        for number in range(30):
            entry = OpenConnection(f"conn_{number:024}", key, None, None, "websocket", Ended())
            opened.connections.enter(entry)
            opened.connections.leave(entry)
        frame = await opened.live.frame()
    assert len(frame) <= MAX_FRAME_BYTES
    told = json.loads(frame)
    assert len(told["accounts"]) == 10
    assert told["closed"][0]["connection_id"] == f"conn_{29:024}"


def key_of_account(account_id):
    from broker.access.keys import Key

    return Key("key_1", account_id, frozenset())


async def test_all_who_watch_at_once_are_given_the_same_frame(autojump_clock):
    frames = []
    async with open_broker() as opened:

        async def watch():
            frames.append(await opened.live.frame())

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(watch)
        await trio.sleep(1)
        later = await opened.live.frame()
    assert len({id(frame) for frame in frames}) == 1
    assert later != frames[0]


# --- the stream of them ------------------------------------------------------


@asynccontextmanager
async def watching(opened, query="", key=OPERATOR):
    """Watch over a stream in memory, so that time may jump; gives what reads the next frame."""
    client, server = trio.testing.memory_stream_pair()
    buffer = bytearray()

    async def next_frame():
        while b"data: " not in buffer or b"\n\n" not in buffer[buffer.index(b"data: ") :]:
            received = await client.receive_some(65_536)
            if not received:
                return None
            buffer.extend(received)
        start = buffer.index(b"data: ") + 6
        end = buffer.index(b"\n\n", start)
        frame = json.loads(bytes(buffer[start:end]))
        del buffer[:end]
        return frame

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, opened, server)
        head = f"GET /v1/operator/live{query} HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {key}\r\n\r\n"
        await client.send_all(head.encode())
        yield next_frame
        nursery.cancel_scope.cancel()


async def test_frames_come_each_second_or_as_often_as_asked_for(autojump_clock):
    async with open_broker(configured()) as opened, watching(opened) as next_frame:
        ups = [(await next_frame())["uptime_seconds"] for _ in range(4)]
        assert ups == pytest.approx([0, 1, 2, 3], abs=0.2)
        async with watching(opened, "?every=5") as next_slow:
            slow = [(await next_slow())["uptime_seconds"] for _ in range(3)]
        assert [later - slow[0] for later in slow] == pytest.approx([0, 5, 10], abs=0.2)


async def test_it_ends_with_a_frame_that_says_so_when_the_broker_drains(autojump_clock):
    async with open_broker(configured()) as opened, watching(opened, "?every=60") as next_frame:
        assert not (await next_frame())["draining"]
        before = trio.current_time()
        opened.start_draining()
        assert (await next_frame())["draining"]
        assert trio.current_time() - before < 5
        assert await next_frame() is None


async def test_it_ends_when_the_operators_key_is_gone(autojump_clock):
    async with open_broker(configured()) as opened, watching(opened) as next_frame:
        assert await next_frame()
        opened.reload(Config(accounts=(alices(),)))
        with trio.fail_after(5):
            assert [await next_frame() for _ in range(2)][-1] is None


async def test_so_many_may_watch_and_who_leaves_makes_room(monkeypatch):
    monkeypatch.setattr(broker.observe.live, "MAX_WATCHING", 1)
    async with serving() as served:
        stream = await trio.open_tcp_stream(*served.address)
        head = f"GET /v1/operator/live HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {OPERATOR}\r\n\r\n"
        await stream.send_all(head.encode())
        assert b"text/event-stream" in await stream.receive_some()
        with trio.fail_after(60):
            answer = await ask(served.address, "GET", "/v1/operator/live", key=OPERATOR)
        assert (answer.status, answer.code) == (429, "rate_limited")
        await stream.aclose()
        await until(lambda: served.broker.live.statistics().watching == 0)


@pytest.mark.parametrize("every", ["0", "61", "1.5", "x", "", "0001", "%C2%B2"])
async def test_how_often_is_whole_seconds_up_to_a_minute(every):
    async with serving() as served:
        with trio.fail_after(60):
            answer = await ask(served.address, "GET", f"/v1/operator/live?every={every}", key=OPERATOR)
        assert (answer.status, answer.code) == (400, "bad_request")
        assert "`every`" in answer.message
