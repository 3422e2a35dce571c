"""The trace of a publish: it is in the event, whatever way that came in, and whatever carries it to whom."""

import json

import pytest
from clients import ACCOUNT, ALICE, ask, connected, event, open_socket, post_events, read_until, serving

from broker import NewEvent

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_header_of_the_publish_is_the_trace_of_all_events_that_name_none():
    async with serving() as served, connected(served.address, "inbox_ids=*") as client:
        events = [event(1), event(2, traceparent=OTHER), event(3, traceparent="nonsense")]
        await post_events(served.address, events, ("traceparent", TRACE))
        assert [(await client.next()).get("traceparent") for _ in events] == [TRACE, OTHER, TRACE]


async def test_so_it_is_for_lines_of_json():
    async with serving() as served, connected(served.address, "inbox_ids=*") as client:
        lines = "\n".join(map(json.dumps, [event(1), event(2, traceparent=OTHER)])).encode()
        headers = [("traceparent", TRACE), ("Content-Type", "application/x-ndjson")]
        assert (await post_events(served.address, lines, *headers)).status == 200
        assert [(await client.next())["traceparent"] for _ in range(2)] == [TRACE, OTHER]


@pytest.mark.parametrize("header", ["nonsense", TRACE.upper(), f"{TRACE}, {OTHER}", ""])
async def test_a_header_that_is_no_trace_is_as_good_as_none(header):
    async with serving() as served, connected(served.address, "inbox_ids=*") as client:
        assert (await post_events(served.address, event(1), ("traceparent", header))).status == 200
        assert "traceparent" not in await client.next()


async def test_a_publish_over_the_stream_names_it_beside_the_events_or_in_each():
    async with serving() as served, connected(served.address, "inbox_ids=*") as client:
        await client.say(action="publish", events=[event(1), event(2, traceparent=OTHER)], traceparent=TRACE)
        await client.say(action="publish", events=event(3))
        await client.say(action="publish", events=event(4), params={"traceparent": TRACE})
        frames = [frame for frame in [await client.next() for _ in range(7)] if frame["type"] == "test.event"]
        assert [frame.get("traceparent") for frame in frames] == [TRACE, OTHER, None, None]


async def test_a_publish_that_is_sent_again_in_another_trace_is_the_same_publish():
    async with serving() as served, connected(served.address) as client:
        await client.say(action="publish", request_id="r1", events=event(1), traceparent=TRACE)
        first = await client.answer("r1")
        await client.say(action="publish", request_id="r1", events=event(1), traceparent=OTHER)
        assert await client.answer("r1") == first


async def test_the_library_gives_and_gets_it():
    async with serving() as served, served.broker.subscribe(ACCOUNT) as subscriber:
        await served.broker.publish(ACCOUNT, NewEvent("a.b", {}, traceparent=TRACE))
        await served.broker.publish(ACCOUNT, {"type": "a.b", "payload": {}, "traceparent": TRACE})
        await served.broker.publish(ACCOUNT, NewEvent("a.b", {}))
        assert [(await anext(subscriber)).traceparent for _ in range(3)] == [TRACE, TRACE, None]


async def test_polls_and_event_streams_and_replays_bring_it_too():
    async with serving() as served:
        async with connected(served.address) as client:
            start = client.ready["cursor"]
        [published] = await served.broker.publish(ACCOUNT, NewEvent("a.b", {}, traceparent=TRACE))
        page = await ask(served.address, "GET", f"/v1/events?since={start}", key=ALICE)
        assert [told["traceparent"] for told in page.result["events"]] == [TRACE]
        async with connected(served.address, f"inbox_ids=*&since={start}") as client:
            assert (await client.next())["traceparent"] == TRACE
        async with await open_socket(served.address) as stream:
            head = f"GET /v1/events/stream?since={start}&key={ALICE} HTTP/1.1\r\nHost: x\r\n\r\n"
            await stream.send_all(head.encode())
            written = await read_until(stream, b'"payload"')
        assert f"id: {published.cursor}\n".encode() in written
        assert f'"traceparent":"{TRACE}"'.encode() in written
