"""`broker.testing`: a broker and its clients without a network, and a stream that stalls."""

import pytest
import trio
from trio.testing import check_half_closeable_stream, memory_stream_pair
from trio.testing import wait_all_tasks_blocked as blocked

from broker import CommandContext, Config, LimitsConfig, ReplayConfig, RequestError, open_broker
from broker.testing import ACCOUNT, KEY, SlowStream, config, connect


def event(number=0, inbox_id="inbox_a", size=0):
    return {"type": "message.received", "inbox_id": inbox_id, "payload": {"n": number, "more": "x" * size}}


async def test_a_client_hears_what_is_published():
    async with open_broker(config()) as broker, connect(broker) as client:
        assert (client.ready["account_id"], client.ready["inbox_ids"]) == (ACCOUNT, ["*"])
        [published] = await broker.publish(ACCOUNT, event(1))
        heard = await client.receive()
    assert (heard["cursor"], heard["payload"]["n"]) == (published.cursor, 1)


async def test_a_client_opens_with_the_query_of_the_protocol():
    async with open_broker(config()) as broker:
        [published] = await broker.publish(ACCOUNT, event(0))
        await broker.publish(ACCOUNT, [event(1), event(2, "in:b@x")])
        async with connect(broker, inbox_ids="in:b@x", since=published.cursor) as client:
            assert client.ready["replay"] == {"recovered": True, "count": 1}
            assert (await client.receive())["payload"]["n"] == 2


async def test_a_command_is_asked_and_what_comes_meanwhile_is_kept(autojump_clock):
    async with open_broker(config()) as broker, connect(broker) as client:

        @broker.command("work")
        async def work(params: dict, context: CommandContext):
            await broker.publish(ACCOUNT, event(7))
            await trio.sleep(5)
            return [params, context.inbox_id]

        assert await client.ask("work", {"a": 1}, inbox_id="inbox_a") == [{"a": 1}, "inbox_a"]
        assert (await client.receive())["payload"]["n"] == 7
        with pytest.raises(RequestError, match="unknown_action"):
            await client.ask("other")


async def test_a_client_that_is_refused_learns_why():
    async with open_broker(config()) as broker:
        with pytest.raises(RequestError, match="unauthorized"):
            async with connect(broker, "dm_live_unknown"):
                pass
        with pytest.raises(RequestError, match="event_types"):
            async with connect(broker, event_types="???"):
                pass


async def test_minutes_pass_in_no_time_and_a_client_that_answers_pings_stays(autojump_clock):
    async with open_broker(config()) as broker, connect(broker) as client:
        await trio.sleep(3_600)
        assert "server_time" in await client.ask("ping")


async def test_a_client_that_has_much_unread_stays(autojump_clock):
    async with open_broker(config()) as broker, connect(broker) as client:
        await broker.publish(ACCOUNT, [event(number) for number in range(5)])
        await trio.sleep(200)
        await broker.publish(ACCOUNT, event(5))
        assert [(await client.receive())["payload"]["n"] for _ in range(6)] == list(range(6))


async def test_a_drain_ends_the_client_with_its_code(autojump_clock):
    async with open_broker(config()) as broker, connect(broker) as client:
        await broker.publish(ACCOUNT, event(1))
        broker.start_draining()
        assert sorted([frame["type"] async for frame in client]) == ["message.received", "server.draining"]
        assert client.close_code == 1012


async def test_a_client_that_stops_reading_is_fed_when_it_reads_again_or_told_of_a_gap(autojump_clock):
    settings = config(replay=ReplayConfig(max_events_per_account=10))
    async with open_broker(settings) as broker, connect(broker, room_bytes=100) as client:
        for number in range(100):
            await broker.publish(ACCOUNT, event(number, size=1000))
            await blocked()
        with trio.move_on_after(1) as waiting:
            await client.receive()
        assert waiting.cancelled_caught, "a part of a frame is none"
        client.link.flow()
        numbers, missed = [], 0
        while not numbers or numbers[-1] < 99:
            frame = await client.receive()
            if frame["type"] == "replay.gap":
                missed += frame["count"]
            else:
                numbers.append(frame["payload"]["n"])
        assert missed
        assert len(numbers) + missed == 100


async def test_a_client_that_reads_nothing_ends_with_its_block_at_once(autojump_clock):
    async with open_broker(config()) as broker:
        began = trio.current_time()
        async with connect(broker, room_bytes=0):
            await broker.publish(ACCOUNT, event())
        assert trio.current_time() == began


async def test_a_client_that_answers_nothing_is_closed_after_its_heartbeat(autojump_clock):
    settings = config(limits=LimitsConfig(heartbeat_seconds=30), replay=ReplayConfig(seconds=60))
    async with open_broker(settings) as broker, connect(broker) as client:
        client.link.stall()
        await trio.sleep(300)
        client.link.flow()
        assert [frame async for frame in client] == []


def test_the_configuration_takes_other_sections():
    made = config(replay=ReplayConfig(seconds=7))
    assert isinstance(made, Config)
    assert made.replay.seconds == 7
    assert made.accounts[0].id == ACCOUNT
    assert KEY.startswith("dm_live_")


# --- the stream --------------------------------------------------------------


async def test_a_slow_stream_that_flows_is_a_stream_like_any_other():
    async def pair():
        one, other = memory_stream_pair()
        return SlowStream(one), SlowStream(other)

    await check_half_closeable_stream(pair, None)


async def test_a_slow_stream_takes_as_many_bytes_as_it_may(autojump_clock):
    ours, theirs = memory_stream_pair()
    slow = SlowStream(theirs, room_bytes=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.send_all, b"abcdefgh")
        await blocked()
        assert await ours.receive_some() == b"abc"
        slow.take(2)
        assert await ours.receive_some() == b"de"
        slow.stall()
        with trio.move_on_after(1) as waiting:
            await ours.receive_some()
        assert waiting.cancelled_caught
        slow.flow()
        assert await ours.receive_some() == b"fgh"


async def test_a_slow_stream_says_when_it_might_take_something(autojump_clock):
    slow = SlowStream(memory_stream_pair()[0], room_bytes=0)
    with trio.move_on_after(1) as waiting:
        await slow.wait_send_all_might_not_block()
    assert waiting.cancelled_caught
    slow.take(1)
    await slow.wait_send_all_might_not_block()
