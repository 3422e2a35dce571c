"""Server-Sent Events over real sockets: what is written, where a client resumes, who may, and how it ends."""

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    INBOXES,
    OPERATOR,
    PUBLISHER,
    config_of,
    configured,
    configured_key,
    connected,
    event,
    numbers,
    serving,
    token_of,
    until,
)
from eventstreams import reading as read_from
from hypothesis import given
from hypothesis import strategies as st

from broker import AccountConfig, BrowsersConfig, LimitsConfig, ReplayConfig
from broker.protocol.framing import PING, frames_of, text_frame
from broker.transport.sse import COMMENT, as_server_sent_events


def reading(served, *arguments, **options):
    """A client of a broker's event stream."""
    return read_from(served.address, *arguments, **options)


async def refusal(served, query="", *headers, key=ALICE):
    async with reading(served, query, *headers, key=key) as reader:
        return reader.status


# --- what is written ---------------------------------------------------------


async def test_the_answer_is_an_event_stream_that_no_proxy_keeps_or_holds_back():
    async with serving() as served, reading(served) as reader:
        assert reader.status == 200
        assert reader.headers["content-type"] == "text/event-stream"
        assert reader.headers["cache-control"] == "no-cache"
        assert reader.headers["x-accel-buffering"] == "no"
        assert "date" in reader.headers


async def test_ready_comes_first_without_an_id_and_a_browser_is_told_when_to_come_back():
    async with serving() as served, reading(served) as reader:
        identity, ready = await reader.next()
        assert identity is None
        assert ready["type"] == "connection.ready"
        assert ready["inbox_ids"] == ["*"]
        assert reader.retry_ms > 0


async def test_an_event_is_the_streams_own_json_with_its_cursor_as_id():
    async with serving() as served, reading(served) as reader, connected(served.address, "inbox_ids=*") as client:
        await reader.next()
        await served.broker.publish(ACCOUNT, [event(1), event(2, inbox=None)])
        for _ in range(2):
            streamed = await client.next()
            assert await reader.next() == (streamed["cursor"], streamed)


async def test_a_client_of_http_1_0_gets_the_stream_without_chunks():
    async with serving() as served, reading(served, version="1.0") as reader:
        assert "transfer-encoding" not in reader.headers
        assert (await reader.next())[1]["type"] == "connection.ready"
        await served.broker.publish(ACCOUNT, event(1))
        assert numbers([(await reader.next())[1]]) == [1]


@given(st.lists(st.one_of(st.just(b""), st.binary(max_size=300), st.integers(126, 70_000).map(lambda n: b"x" * n))))
def test_frames_are_taken_apart_as_they_were_put_together(payloads):
    joined = b"".join(text_frame(payload) + PING for payload in payloads)
    assert list(frames_of(joined)) == [part for payload in payloads for part in ((True, payload), (False, b""))]


@pytest.mark.parametrize(
    ("said", "identity"),
    [
        (
            b'{"type":"a.b","event_id":"e","inbox_id":"i","created_at":"t","cursor":"c1","payload":{"cursor":"c2"}}',
            "c1",
        ),
        (b'{"type":"a.b","event_id":"e","created_at":"t","cursor":"c1","payload":{}}', "c1"),
        (b'{"type":"a.b","event_id":"e","created_at":"t","traceparent":"00-1","cursor":"c1","payload":{}}', "c1"),
        (b'{"type":"connection.cursor","cursor":"c1"}', "c1"),
        (b'{"type":"connection.ready","connection_id":"x","account_id":"a","inbox_ids":[],"cursor":"c1"}', None),
        (b'{"type":"replay.gap","from":null,"to":"c1","count":null}', None),
        (b'{"type":"connection.updated","inbox_ids":["cursor"]}', None),
    ],
)
def test_only_what_may_be_resumed_from_has_an_id(said, identity):
    written = as_server_sent_events(text_frame(said))
    assert (b"id: " in written) == (identity is not None)
    if identity is not None:
        assert written.startswith(b"id: %b\ndata: " % identity.encode())
    assert written.endswith(b"data: " + said + b"\n\n")


async def test_each_heartbeat_is_a_comment_and_a_quiet_clients_cursor():
    beating = configured(limits=LimitsConfig(heartbeat_seconds=0.1))
    async with serving(beating) as served, reading(served, "inbox_ids=in_1") as reader:
        _, ready = await reader.next()
        [other] = await served.broker.publish(ACCOUNT, event(1, inbox="in_2"))
        identity, told = await reader.next()
        assert told == {"type": "connection.cursor", "cursor": other.cursor}
        assert identity == other.cursor != ready["cursor"]
        while not reader.comments:
            await reader._chunk()
            reader.comments += reader._text.count(COMMENT)


# --- where it resumes --------------------------------------------------------


@pytest.mark.parametrize("form", ["since", "Last-Event-ID", "both"])
async def test_a_client_resumes_after_the_last_event_it_saw(form):
    async with serving() as served:
        first, _ = await served.broker.publish(ACCOUNT, [event(1), event(2)])
        query, headers = "inbox_ids=*", []
        if form in ("since", "both"):
            query += f"&since={'5m' if form == 'both' else first.cursor}"
        if form in ("Last-Event-ID", "both"):
            headers.append(("Last-Event-ID", first.cursor))
        async with reading(served, query, *headers) as reader:
            _, ready = await reader.next()
            assert ready["replay"] == {"recovered": True, "count": 1}
            assert numbers([(await reader.next())[1]]) == [2]


async def test_a_gap_is_said_without_an_id():
    async with serving(configured(replay=ReplayConfig(max_events_per_account=2))) as served:
        first = (await served.broker.publish(ACCOUNT, event(0)))[0]
        for n in range(1, 5):
            await served.broker.publish(ACCOUNT, event(n))
        async with reading(served, f"inbox_ids=*&since={first.cursor}") as reader:
            _, ready = await reader.next()
            assert ready["replay"]["recovered"] is False
            identity, gap = await reader.next()
            assert (identity, gap["type"], gap["count"]) == (None, "replay.gap", 2)
            assert numbers([(await reader.next())[1], (await reader.next())[1]]) == [3, 4]


async def test_a_client_that_stops_reading_is_fed_from_the_log_and_misses_nothing():
    async with serving() as served, reading(served, receive_buffer_bytes=4096) as reader:
        await reader.next()
        for n in range(60):
            await served.broker.publish(ACCOUNT, event(n, size=50_000))
        [held] = served.server.connections.values()
        assert held.statistics().remainder_bytes < 300_000
        found = [(await reader.next())[1] for _ in range(60)]
    assert numbers(found) == list(range(60))


async def test_a_client_resumes_after_what_it_acknowledged_on_the_stream():
    async with serving() as served:
        async with connected(served.address, "inbox_ids=*&client_id=agent&since=acked") as client:
            told = await served.broker.publish(ACCOUNT, [event(1), event(2)])
            await client.next()
            await client.say(action="ack", request_id="r", cursor=told[0].cursor)
            await client.answer("r")
        async with reading(served, "inbox_ids=*&client_id=agent&since=acked") as reader:
            _, ready = await reader.next()
            assert ready["replay"] == {"recovered": True, "count": 1}
            assert numbers([(await reader.next())[1]]) == [2]
        assert await refusal(served, "since=acked") == 400


# --- who may -----------------------------------------------------------------


async def test_a_token_opens_it_as_a_browser_would():
    pages = configured(browsers=BrowsersConfig(origins=("https://app.example",)))
    async with serving(pages) as served:
        token = await token_of(served.address, inbox_ids=["in_1"])
        page = ("Origin", "https://app.example")
        async with reading(served, f"inbox_ids=in_1&token={token}", page, key=None) as reader:
            assert reader.headers["access-control-allow-origin"] == "https://app.example"
            assert (await reader.next())[1]["inbox_ids"] == ["in_1"]


@pytest.mark.parametrize(
    ("query", "headers", "key", "status"),
    [
        ("", (), None, 401),
        ("", (), "dm_live_unknown_key_that_nobody_has", 401),
        ("inbox_ids=*", (), PUBLISHER, 403),
        ("", (), OPERATOR, 403),
        ("inbox_ids=in_9", (), INBOXES, 403),
        ("since=", (), ALICE, 400),
        ("", (("Origin", "https://evil.example"),), ALICE, 403),
    ],
)
async def test_what_the_stream_refuses_is_refused_here_too(query, headers, key, status):
    async with serving() as served:
        assert await refusal(served, query, *headers, key=key) == status


@pytest.mark.parametrize("query", ["", "event_types=x.y", "client_id=me"])
async def test_who_may_not_subscribe_has_no_event_stream(query):
    """Nothing would ever come, and nothing can be said over it: unlike a socket it is for events alone."""
    async with serving() as served:
        assert await refusal(served, query, key=PUBLISHER) == 403
        narrowed = await token_of(served.address, scopes=["command", "publish"])
        assert await refusal(served, query, key=narrowed) == 403


async def test_it_counts_as_a_connection():
    free = config_of(AccountConfig(id=ACCOUNT, tier="free", keys=(configured_key(ALICE),)))
    async with serving(free) as served, reading(served) as reader:
        await reader.next()
        assert await refusal(served) == 429


async def test_an_inbox_key_gets_its_inboxes_only():
    async with serving() as served, reading(served, "", key=INBOXES) as reader:
        await reader.next()
        await served.broker.publish(ACCOUNT, [event(1, inbox="in_9"), event(2, inbox=None), event(3)])
        assert numbers([(await reader.next())[1]]) == [3]


# --- how it ends -------------------------------------------------------------


async def test_a_client_that_leaves_leaves_nothing_behind():
    async with serving() as served:
        async with reading(served) as reader:
            await reader.next()
            assert served.broker.statistics().slots.connections == 1
        await until(lambda: not served.server.connections)
        assert served.broker.statistics().slots.connections == 0


async def test_a_newer_connection_of_the_same_client_id_ends_it():
    async with serving() as served, reading(served, "client_id=me") as reader:
        await reader.next()
        async with connected(served.address, "client_id=me"):
            assert await reader.next() is None
        assert reader.ended


async def test_a_key_that_is_revoked_ends_it_and_one_that_reaches_less_is_told():
    async with serving() as served, reading(served) as reader:
        await reader.next()
        narrowed = configured_key(ALICE, inbox_ids=("in_2",))
        served.broker.reload(config_of(AccountConfig(id=ACCOUNT, tier="enterprise", keys=(narrowed,))))
        assert (await reader.next())[1] == {"type": "connection.updated", "inbox_ids": ["in_2"]}
        await served.broker.publish(ACCOUNT, [event(1), event(2, inbox="in_2")])
        assert numbers([(await reader.next())[1]]) == [2]
        served.broker.reload(config_of())
        assert await reader.next() is None


async def test_a_drain_says_so_sends_everything_and_ends_the_answer():
    async with serving() as served, reading(served) as reader:
        await reader.next()
        await served.broker.publish(ACCOUNT, [event(n) for n in range(300)])
        served.broker.start_draining()
        found = []
        while (said := await reader.next()) is not None:
            found.append(said)
        assert numbers([data for _, data in found]) == list(range(300))
        [(identity, draining)] = [said for said in found if said[1]["type"] == "server.draining"]
        assert identity is None
        assert reader.retry_ms == draining["reconnect_after_ms"]


async def test_a_client_whose_tcp_is_dead_is_ended_and_one_that_only_listens_is_not(monkeypatch):
    beating = configured(limits=LimitsConfig(heartbeat_seconds=0.05), replay=ReplayConfig(seconds=1))
    async with serving(beating) as served, reading(served) as reader:
        await reader.next()
        [held] = served.server.connections.values()
        await until(lambda: held.statistics().live)  # what was read is known to be taken
        assert held.beat(trio.current_time() + 10_000) is not None
        monkeypatch.setattr("broker.transport.stream.ClientStream.unacknowledged_seconds", lambda _: 100.0)
        assert held.beat(trio.current_time()) is None
        await until(lambda: not served.server.connections)


async def test_what_fails_inside_ends_this_client_only(monkeypatch, caplog):
    async with serving() as served, connected(served.address, "inbox_ids=*") as other:
        async with reading(served) as reader:
            await reader.next()
            monkeypatch.setattr("broker.transport.sse.as_server_sent_events", lambda _: 1 / 0)
            await served.broker.publish(ACCOUNT, event(1))
            assert await reader.next() is None
        assert numbers([await other.next()]) == [1]
    assert sum(record.exc_info is not None for record in caplog.records) == 1


# --- further back than memory reaches ----------------------------------------


async def test_an_event_stream_that_was_off_for_longer_than_memory_holds_misses_nothing(archives):
    async with serving(configured(replay=ReplayConfig(max_events_per_account=5))) as served:
        first, *_ = await served.broker.publish(ACCOUNT, [event(n) for n in range(600)])
        await until(lambda: served.broker.statistics().replay.events == 5)
        async with reading(served, "inbox_ids=*", ("Last-Event-ID", first.cursor)) as reader:
            assert (await reader.next())[1]["replay"] == {"recovered": True, "count": 599}
            assert numbers([(await reader.next())[1] for _ in range(599)]) == list(range(1, 600))
            await served.broker.publish(ACCOUNT, event(600))
            assert numbers([(await reader.next())[1]]) == [600]


async def test_an_event_stream_that_reads_too_late_for_memory_misses_nothing(archives):
    config = configured(replay=ReplayConfig(max_events_per_account=5))
    async with serving(config) as served, reading(served, "inbox_ids=*", receive_buffer_bytes=4_096) as reader:
        await reader.next()
        for n in range(40):
            await served.broker.publish(ACCOUNT, [event(10 * n + i, size=4_000) for i in range(10)])
        assert numbers([(await reader.next())[1] for _ in range(400)]) == list(range(400))
