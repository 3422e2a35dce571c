"""Who is connected: the list over HTTP, who may see it and close what is in it, and that a step of it is bounded."""

import logging
from contextlib import AsyncExitStack

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    BOB,
    INBOXES,
    LISTENER,
    OPERATOR,
    Closed,
    ask,
    bearer,
    command,
    configured,
    connected,
    event,
    key_of,
    masked,
    open_socket,
    read_to_end,
    read_until,
    serving,
    token_of,
    until,
)

import broker.observe.connections
from broker import CloseCode, ReplayConfig
from broker.logline import LogLine
from broker.observe.connections import SLICE, Connections, ConnectionStatistics, Ended, OpenConnection
from broker.protocol.selection import EVERYTHING
from broker.transport.files import raise_open_files_limit


@pytest.fixture(scope="module", autouse=True)
def open_files():
    raise_open_files_limit()


async def page_of(served, key=ALICE, after=None):
    query = "" if after is None else f"?after={after}"
    answer = await ask(served.address, "GET", f"/v1/connections{query}", key=key)
    assert answer.status == 200, answer.body
    return answer.json["result"]


async def ids_of(served, key=ALICE):
    return [connection["connection_id"] for connection in (await page_of(served, key))["connections"]]


async def close(served, connection_id, key=ALICE):
    return await ask(served.address, "DELETE", f"/v1/connections/{connection_id}", key=key)


# --- the list ----------------------------------------------------------------


async def test_an_account_sees_who_is_connected_to_it_and_what_each_does():
    async with (
        serving() as served,
        connected(served.address, "client_id=worker&inbox_ids=in_2,in_1") as client,
        connected(served.address, "inbox_ids=*", key=LISTENER),
    ):
        await until(lambda: served.connection(client).statistics().live)
        first, second = (await page_of(served))["connections"]
    opened_at, listener_opened_at = first.pop("opened_at"), second.pop("opened_at")
    assert opened_at <= listener_opened_at
    assert first == {
        "connection_id": client.ready["connection_id"],
        "account_id": ACCOUNT,
        "key_id": "key_alice",
        "client_id": "worker",
        "remote": "127.0.0.1",
        "transport": "websocket",
        "inbox_ids": ["in_1", "in_2"],
        "inboxes": 2,
        "live": True,
        "behind": 0,
        "waiting_commands": 0,
        "held_bytes": 0,
    }
    assert (second["key_id"], second["inbox_ids"], second["inboxes"]) == ("key_listener", ["*"], None)
    assert "client_id" not in second


async def test_an_account_sees_nobody_of_another_and_an_operator_sees_all():
    async with (
        serving() as served,
        connected(served.address) as alice,
        connected(served.address, key=BOB) as bob,
    ):
        assert await ids_of(served, ALICE) == [alice.ready["connection_id"]]
        assert await ids_of(served, BOB) == [bob.ready["connection_id"]]
        assert await ids_of(served, OPERATOR) == [alice.ready["connection_id"], bob.ready["connection_id"]]


async def test_who_has_left_is_no_longer_seen():
    async with serving() as served:
        async with connected(served.address):
            assert len(await ids_of(served)) == 1
        await served.until_gone()
        assert await ids_of(served) == []


async def test_of_many_inboxes_some_are_shown_and_all_are_counted():
    names = ",".join(f"in_{number}" for number in range(1_000))
    async with serving() as served, connected(served.address, f"inbox_ids={names}"):
        [seen] = (await page_of(served))["connections"]
        assert seen["inboxes"] == 1_000
        assert len(seen["inbox_ids"]) == broker.observe.connections.MOST_INBOXES_SHOWN
        assert seen["inbox_ids"] == sorted(seen["inbox_ids"])


async def test_a_client_that_does_not_read_is_seen_behind_with_what_is_held_for_it():
    async with serving() as served, connected(served.address, "inbox_ids=*", receive_buffer_bytes=4096) as client:
        connection = served.connection(client)
        await until(lambda: connection.statistics().live)
        for number in range(8):
            await served.broker.publish(ACCOUNT, event(number, size=200_000))
        await until(lambda: not connection.statistics().live)
        [seen] = (await page_of(served))["connections"]
        assert not seen["live"]
        assert seen["behind"] > 0
        assert seen["held_bytes"] > 0


async def test_a_poll_that_waits_is_a_connection_until_it_is_answered():
    async with serving() as served, trio.open_nursery() as nursery:
        target = "/v1/events?inbox_ids=in_1&wait=60&client_id=poller"
        nursery.start_soon(lambda: ask(served.address, "GET", target, key=ALICE))
        await until(lambda: len(served.broker.connections) == 1)
        [seen] = (await page_of(served))["connections"]
        assert (seen["transport"], seen["client_id"], seen["inbox_ids"]) == ("poll", "poller", ["in_1"])
        assert (await close(served, seen["connection_id"])).status == 200
        await until(lambda: len(served.broker.connections) == 0)


async def test_an_event_stream_is_seen_and_closed_as_others_are():
    async with serving() as served, await open_socket(served.address) as stream:
        head = f"GET /v1/events/stream?inbox_ids=in_1 HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {ALICE}\r\n\r\n"
        await stream.send_all(head.encode())
        await read_until(stream, b"connection.ready")
        [seen] = (await page_of(served))["connections"]
        assert (seen["transport"], seen["inbox_ids"]) == ("sse", ["in_1"])
        assert (await close(served, seen["connection_id"])).status == 200
        await read_to_end(stream)
        await served.until_gone()
        assert served.broker.statistics().connections.closed == {"1001": 1}


async def test_pages_bring_everybody_once_in_the_order_of_their_coming(monkeypatch):
    monkeypatch.setattr(broker.observe.connections, "PAGE_CONNECTIONS", 2)
    async with serving() as served, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(served.address)) for _ in range(5)]
        ids, after, sizes = [], None, []
        while True:
            page = await page_of(served, after=after)
            ids += [seen["connection_id"] for seen in page["connections"]]
            sizes.append(len(page["connections"]))
            if "next" not in page:
                break
            after = page["next"]
        assert ids == [client.ready["connection_id"] for client in clients]
        assert sizes == [2, 2, 1]


async def test_a_page_goes_on_though_the_connection_that_it_ended_with_is_gone(monkeypatch):
    monkeypatch.setattr(broker.observe.connections, "PAGE_CONNECTIONS", 1)
    async with serving() as served, connected(served.address) as first, connected(served.address) as second:
        page = await page_of(served)
        await close(served, first.ready["connection_id"])
        await until(lambda: len(served.broker.connections) == 1)
        page = await page_of(served, after=page["next"])
        assert [seen["connection_id"] for seen in page["connections"]] == [second.ready["connection_id"]]


@pytest.mark.parametrize("after", ["conn_1", "-1", "1.5", "9" * 21, "%C2%B2"])
async def test_what_no_page_said_is_a_bad_request(after):
    async with serving() as served:
        answer = await ask(served.address, "GET", f"/v1/connections?after={after}", key=ALICE)
        assert (answer.status, answer.code) == (400, "bad_request")
        assert "`after`" in answer.message


async def test_a_page_that_its_client_does_not_take_counts_as_what_is_held_for_the_account():
    names = ",".join(f"{number}".rjust(250, "x") for number in range(20))
    async with serving() as served, AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(connected(served.address, f"inbox_ids={names}"))
        async with await open_socket(served.address, receive_buffer_bytes=4096) as stream:
            head = f"GET /v1/connections HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {ALICE}\r\n\r\n"
            await stream.send_all(head.encode())
            await until(lambda: served.broker.bodies.bytes > 500_000)
        await until(lambda: served.broker.bodies.bytes == 0)


# --- closing -----------------------------------------------------------------


async def test_an_account_closes_a_connection_of_its_own_with_1001():
    async with serving() as served, connected(served.address) as client, connected(served.address) as other:
        answer = await close(served, client.ready["connection_id"])
        assert answer.json == {"result": {"connection_id": client.ready["connection_id"]}}
        assert await client.until_closed() == CloseCode.GOING_AWAY
        await other.ping()


async def test_an_operator_closes_any_connection():
    async with serving() as served, connected(served.address, key=BOB) as client:
        assert (await close(served, client.ready["connection_id"], OPERATOR)).status == 200
        with pytest.raises(Closed) as closed:
            await client.next()
        assert closed.value.code == CloseCode.GOING_AWAY


async def test_a_connection_of_another_account_is_as_unknown_as_one_that_never_was():
    async with serving() as served, connected(served.address, key=BOB) as client:
        of_bob = await close(served, client.ready["connection_id"])
        unknown = await close(served, "conn_000000000000000000000000")
        assert (of_bob.status, of_bob.code) == (404, "not_found")
        assert (of_bob.status, of_bob.body) == (unknown.status, unknown.body)
        assert (await close(served, "")).status == 404
        await client.ping()


# --- who may -----------------------------------------------------------------

ROUTES = [("GET", "/v1/connections"), ("DELETE", "/v1/connections/conn_1")]
each_route = pytest.mark.parametrize(("method", "path"), ROUTES)


@each_route
async def test_an_inbox_key_sees_and_closes_no_connection(method, path):
    async with serving() as served:
        answer = await ask(served.address, method, path, key=INBOXES)
        assert (answer.status, answer.code) == (403, "forbidden")


@each_route
async def test_a_token_sees_and_closes_no_connection(method, path):
    async with serving() as served:
        answer = await ask(served.address, method, path, key=await token_of(served.address))
        assert (answer.status, answer.code) == (403, "forbidden")


@each_route
async def test_nobody_without_a_key_sees_or_closes_a_connection(method, path):
    async with serving() as served:
        assert (await ask(served.address, method, path)).status == 401
        assert (await ask(served.address, method, path, bearer("dm_live_nobody"))).status == 401


async def test_a_path_with_an_id_has_the_methods_of_its_route():
    async with serving() as served:
        answer = await ask(served.address, "PUT", "/v1/connections/conn_1", key=ALICE)
        assert (answer.status, answer.headers["allow"]) == (405, "DELETE, OPTIONS")
        assert (await ask(served.address, "GET", "/v1/connections/conn_1/more", key=ALICE)).status == 404


# --- how many there were -----------------------------------------------------


async def test_connections_are_counted_by_tier_and_transport_and_their_ends_by_close_code():
    async with serving() as served:
        async with connected(served.address) as client:
            now = served.broker.statistics().connections
            assert (now.open, now.opened, now.closed) == ({("enterprise", "websocket"): 1}, {"websocket": 1}, {})
            await client.say_close()
            assert await client.at_end()
        await served.until_gone()
        async with connected(served.address) as client:
            await client.send(command() + b"".join([masked(1, b"rubbish")] * 20))
            assert await client.until_closed() == CloseCode.TOO_MANY_BAD_FRAMES
        await served.until_gone()
        now = served.broker.statistics().connections
        assert (now.open, now.opened) == ({("enterprise", "websocket"): 0}, {"websocket": 2})
        assert now.closed == {"none": 1, "1008": 1}


async def test_refused_requests_are_counted_by_error_code():
    async with serving() as served:
        await ask(served.address, "GET", "/nowhere")
        await ask(served.address, "POST", "/v1/events", body=b"{}")
        await ask(served.address, "POST", "/v1/events", body=b"{}", key=ALICE)
        assert served.broker.statistics().connections.refused == {
            "not_found": 1,
            "unauthorized": 1,
            "invalid_params": 1,
        }


# --- what the log says of them -----------------------------------------------


def told(caplog, what):
    lines = [record for record in caplog.records if isinstance(record.msg, LogLine)]
    return [record.msg.fields for record in lines if record.msg.what == what]


WHO = {"account_id": ACCOUNT, "key_id": "key_alice", "client_id": "agent", "remote": "127.0.0.1"}


async def test_the_log_has_a_line_when_a_connection_opens_and_one_when_it_has_ended(caplog):
    caplog.set_level(logging.INFO, "broker")
    async with serving() as served:
        async with connected(served.address, "inbox_ids=*&client_id=agent") as client:
            names = {"connection_id": client.ready["connection_id"], **WHO, "transport": "websocket"}
            assert told(caplog, "connection opened") == [{**names, "tier": "enterprise"}]
            [published] = await served.broker.publish(ACCOUNT, [event(1)])
            assert (await client.next())["cursor"] == published.cursor
            await client.say(action="ping", request_id="r1")
            await client.answer("r1")
            assert told(caplog, "connection ended") == []
            await client.say_close(1000)
            assert await client.at_end()
        await served.until_gone()
    [ended] = told(caplog, "connection ended")
    assert ended["bytes_acked"] > 500
    assert ended["bytes_received"] > 100
    assert 0 <= ended["seconds"] < 60
    assert {name: value for name, value in ended.items() if not name.startswith("bytes") and name != "seconds"} == {
        **names,
        "reason": "closed by the client with 1000",
        "code": 1000,
        "commands": 1,
        "gaps": 0,
        "cursor": published.cursor,
    }


async def test_the_line_of_its_end_says_by_which_code_the_broker_closed_and_what_it_missed(caplog):
    caplog.set_level(logging.INFO, "broker")
    replay = ReplayConfig(max_events_per_account=2)
    async with serving(configured(replay=replay)) as served:
        async with connected(served.address, "inbox_ids=*") as client:
            start = client.ready["cursor"]
        await served.broker.publish(ACCOUNT, [event(number) for number in range(5)])
        async with connected(served.address, f"inbox_ids=*&since={start}") as client:
            await close(served, client.ready["connection_id"])
            assert await client.until_closed() == CloseCode.GOING_AWAY
        await served.until_gone()
    first, second = told(caplog, "connection ended")
    assert "code" not in first
    assert (second["code"], second["gaps"]) == (1001, 1)
    assert second["reason"] == "closed by the broker with 1001: closed on request"


async def test_an_event_stream_has_its_lines_too(caplog):
    caplog.set_level(logging.INFO, "broker")
    async with serving() as served:
        async with await open_socket(served.address) as stream:
            await stream.send_all(f"GET /v1/events/stream?key={ALICE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await read_until(stream, b"connection.ready")
        await served.until_gone()
    assert [line["transport"] for line in told(caplog, "connection opened")] == ["sse"]
    [ended] = told(caplog, "connection ended")
    assert (ended["transport"], ended["reason"]) == ("sse", "the client left without a Close")


@pytest.mark.parametrize(("level", "lines"), [(logging.INFO, 0), (logging.DEBUG, 1)])
async def test_polls_are_for_who_wants_to_know_everything(level, lines, caplog):
    caplog.set_level(level, "broker")
    async with serving() as served:
        await ask(served.address, "GET", "/v1/events?wait=0.001", key=ALICE)
    assert len(told(caplog, "connection opened")) == len(told(caplog, "connection ended")) == lines


# --- a step is bounded -------------------------------------------------------


class Many:
    """A connection that counts how often it is read."""

    reads = 0

    def end(self, code, why):
        pass

    def ended(self):
        return Ended()

    def statistics(self):
        Many.reads += 1
        return ConnectionStatistics(EVERYTHING, False, 1, 2, 3, None)


async def test_any_number_of_connections_is_read_in_slices(monkeypatch):
    steps = []
    checkpoint = trio.lowlevel.checkpoint

    async def counted():
        steps.append(Many.reads)
        Many.reads = 0
        await checkpoint()

    connections = Connections()
    async with serving() as served:
        key = key_of(served.broker, ALICE)
    for number in range(5_000):
        connections.enter(OpenConnection(f"conn_{number}", key, None, None, "websocket", Many()))
    monkeypatch.setattr(trio.lowlevel, "checkpoint", counted)
    rows, more = await connections.numbered(None)
    assert (len(rows), more) == (1_000, True)
    survey = await connections.survey()
    monkeypatch.undo()
    assert max(steps) == SLICE
    assert sum(steps) == 6_000
    assert (survey.behind, survey.held_bytes) == (5_000, 15_000)
