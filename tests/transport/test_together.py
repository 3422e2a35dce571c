"""Whichever of a broker's workers is asked tells of all of them: figures, connections, tasks; and closes any."""

from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from clients import ACCOUNT, ALICE, OPERATOR, ask, connected, event, serving, until
from msgspec import json
from steps import result_of

import broker.observe.live
import broker.observe.looks
import broker.observe.siblings
import broker.transport.together
from broker import CloseCode
from broker.observe.choosing import ChosenPage, OperatorConnection
from broker.observe.connections import PAGE_CONNECTIONS
from broker.observe.siblings import Siblings
from broker.transport.together import _lines_of, _page_of_lines, answer_siblings, snapshot_of_all

WORKERS = 3


@asynccontextmanager
async def workers(directory, number=WORKERS):
    """Servers in one process that know of each other as workers do."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serving()) for _ in range(number)]
        nursery = await stack.enter_async_context(trio.open_nursery())
        for index, served in enumerate(servers):
            together = served.broker
            together.siblings = Siblings(str(directory), index, number)
            together.live.together = lambda own, together=together: snapshot_of_all(together, own)
            await nursery.start(answer_siblings, together)
        yield servers
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def clients_of(servers, each=1):
    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(connected(served.address, "inbox_ids=*"))
            for _ in range(each)
            for served in servers
        ]
        for served in servers:
            await until(lambda served=served: served.broker.statistics().hub.live == each)
        yield found


async def result(served, path, method="GET", key=OPERATOR):
    answer = await ask(served.address, method, path, key=key)
    assert answer.status == 200, answer.body
    return answer.result


def ids(page):
    return [seen["connection_id"] for seen in page["connections"]]


@pytest.fixture(autouse=True)
def a_look_each_time(monkeypatch):
    monkeypatch.setattr(broker.observe.looks, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(broker.observe.live, "FRESH_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def all_answer(request, monkeypatch):
    """However much this machine has to do, nobody is left out, but in tests of that: time jumps there."""
    if "autojump_clock" not in request.fixturenames:
        monkeypatch.setattr(broker.observe.siblings, "ANSWER_SECONDS", 60)
        monkeypatch.setattr(broker.transport.together, "ANSWER_SECONDS", 60)


# --- who is connected --------------------------------------------------------


async def test_all_connections_are_listed_in_the_order_of_their_opening(tmp_path):
    async with workers(tmp_path) as servers, clients_of(servers, each=2) as clients:
        for served in servers:
            page = await result(served, "/v1/connections", key=ALICE)
            assert ids(page) == [client.ready["connection_id"] for client in clients]
            assert "next" not in page


async def test_a_list_is_given_page_by_page_without_losing_or_repeating_any(tmp_path, monkeypatch):
    monkeypatch.setattr("broker.observe.connections.PAGE_CONNECTIONS", 2)
    monkeypatch.setattr("broker.observe.merging.PAGE_CONNECTIONS", 2)
    assert PAGE_CONNECTIONS > 2
    async with workers(tmp_path) as servers, clients_of(servers, each=2) as clients:
        seen, after, asked = [], "", 0
        while after is not None:
            page = await result(servers[asked % WORKERS], f"/v1/connections?after={after}")
            seen, after, asked = [*seen, *ids(page)], page.get("next"), asked + 1
        assert seen == [client.ready["connection_id"] for client in clients]
        assert asked == 3


@pytest.mark.parametrize("path", ["/v1/connections", "/v1/operator/connections"])
async def test_a_connection_of_any_worker_is_closed_by_each(path, tmp_path):
    async with workers(tmp_path) as servers, clients_of(servers) as clients:
        connection_id = clients[2].ready["connection_id"]
        assert await result(servers[0], f"{path}/{connection_id}", "DELETE") == {"connection_id": connection_id}
        assert await clients[2].until_closed() == CloseCode.GOING_AWAY
        await until(lambda: not servers[2].server.connections)
        gone = await ask(servers[0].address, "DELETE", f"{path}/{connection_id}", key=OPERATOR)
        assert gone.status == 404
        assert len(ids(await result(servers[1], "/v1/connections"))) == 2


async def test_an_operators_page_is_sorted_over_all_workers(tmp_path, monkeypatch):
    """Also where all were opened in one millisecond, as they are told."""
    monkeypatch.setattr("broker.observe.choosing.format_time", lambda moment: "2026-01-01T00:00:00.000Z")
    async with workers(tmp_path) as servers, clients_of(servers, each=2) as clients:
        opened = [client.ready["connection_id"] for client in clients]
        page = await result(servers[1], "/v1/operator/connections?sort=opened_at&order=asc&offset=1&limit=4")
        assert (page["total"], page["matching"]) == (6, 6)
        assert ids(page) == opened[1:5]
        page = await result(servers[1], f"/v1/operator/connections?sort=opened_at&q={opened[3]}")
        assert (page["total"], page["matching"], ids(page)) == (6, 1, [opened[3]])
        for sort in ("client_id", "agent", "inboxes", "behind_seconds", "silent_seconds"):
            assert len(ids(await result(servers[0], f"/v1/operator/connections?sort={sort}"))) == 6
        bad = await ask(servers[0].address, "GET", "/v1/operator/connections?sort=taste", key=OPERATOR)
        assert bad.status == 400


@pytest.mark.parametrize("rows", [1, 2, 5, 6])
async def test_a_deep_page_is_merged_and_told_some_rows_at_a_time(tmp_path, monkeypatch, rows):
    monkeypatch.setattr("broker.observe.merging._MERGED", rows)
    monkeypatch.setattr("broker.transport.together._ROWS", rows)
    async with workers(tmp_path) as servers, AsyncExitStack() as stack:
        for number in range(6):
            address = servers[number % WORKERS].address
            await stack.enter_async_context(connected(address, f"inbox_ids=*&client_id=c{number}"))
        for offset in range(8):
            query = f"sort=client_id&order=asc&offset={offset}&limit=2"
            page = await result(servers[0], f"/v1/operator/connections?{query}")
            named = [int(seen["client_id"][1:]) for seen in page["connections"]]
            assert (page["matching"], named) == (6, list(range(6))[offset : offset + 2])


def test_ten_thousand_connections_of_a_worker_are_told_in_many_steps():
    page = ChosenPage(12_000, 10_200, [(n, connection(n)) for n in range(10_200)])
    steps = list(_lines_of(page))
    lines = result_of(_lines_of(page))
    assert len(steps) > 50
    assert max(map(len, lines)) < 100_000
    assert result_of(_page_of_lines(b"\n".join(lines))) == page


def connection(number: int) -> OperatorConnection:
    """One connection as a worker tells of it."""
    who = (f"conn_{number}", "acct", "key", f"agent {number}\n", "websocket", "127.0.0.1:4711", "agent/1.0")
    return OperatorConnection(*who, "2026-01-01T00:00:00.000Z", "live", 1, number, 0.5, 0, 0, 1.5, None, None)


async def test_one_connection_is_told_of_by_each_worker(tmp_path):
    async with workers(tmp_path) as servers, clients_of(servers) as clients:
        connection_id = clients[1].ready["connection_id"]
        for served in servers:
            seen = await result(served, f"/v1/operator/connections/{connection_id}")
            assert (seen["connection_id"], seen["inbox_ids"]) == (connection_id, ["*"])
        missing = await ask(servers[0].address, "GET", "/v1/operator/connections/conn_none", key=OPERATOR)
        assert missing.status == 404


# --- figures -----------------------------------------------------------------


async def scraped(served):
    answer = await ask(served.address, "GET", "/metrics", key=OPERATOR)
    assert answer.status == 200
    lines = answer.body.decode().splitlines()
    return lines, dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


async def test_counters_histograms_and_gauges_are_those_of_all_workers(tmp_path):
    async with workers(tmp_path) as servers, clients_of(servers) as clients:
        for served, client in zip(servers, clients, strict=True):
            await served.broker.publish(ACCOUNT, [event(1), event(2)])
            await client.next()
            await client.next()
        lines, samples = await scraped(servers[1])
        assert len([line for line in lines if line.startswith("# TYPE")]) == len(
            {line for line in lines if line.startswith("# TYPE")}
        )
        assert float(samples["broker_events_published_total"]) == 6
        assert sum(float(value) for name, value in samples.items() if name.startswith("broker_connections{")) == 3
        assert float(samples['broker_fanout_last_delivery_seconds_bucket{le="+Inf"}']) >= 3
        assert float(samples["broker_window_events"]) == 6
        assert float(samples["broker_window_seconds"]) == 300
        assert float(samples["broker_workers"]) == 3
        assert [value for name, value in samples.items() if name.startswith("broker_build_info")] == ["1.0"]


async def test_an_operator_watches_all_workers_as_one_broker(tmp_path):
    async with workers(tmp_path) as servers, clients_of(servers) as clients:
        for served, client in zip(servers, clients, strict=True):
            await served.broker.publish(ACCOUNT, [event(1)])
            await client.next()
        servers[2].broker.connections.close(clients[2].ready["connection_id"], None)
        await clients[2].until_closed()
        await until(lambda: not servers[2].server.connections)
        told = json.decode(await servers[0].broker.live.frame(new=True), type=broker.observe.live.Snapshot)
        assert (told.connections.total, told.connections.live, told.counters.published) == (2, 2, 3)
        assert [closed.connection_id for closed in told.closed] == [clients[2].ready["connection_id"]]
        [account] = told.accounts
        assert (account.account_id, account.connections, account.tier) == (ACCOUNT, 2, "enterprise")
        assert sum(told.delay_seconds.counts) == 3


@pytest.mark.parametrize("grouped", [False, True])
async def test_the_tasks_of_all_workers_are_one_tree(grouped, tmp_path):
    async with workers(tmp_path) as servers, clients_of(servers) as clients:
        tree = await result(servers[0], f"/debug/tasks?grouped={int(grouped)}")
        assert tree["root"]["name"] == "workers"
        assert len(tree["root"]["under" if grouped else "tasks"]) == WORKERS
        one = await result(servers[0], f"/debug/tasks?under={clients[2].ready['connection_id']}")
        assert one["root"]["connection"]["connection_id"] == clients[2].ready["connection_id"]


# --- workers in trouble ------------------------------------------------------


async def test_a_worker_that_does_not_answer_is_left_out_after_a_second(tmp_path, autojump_clock):
    async with workers(tmp_path) as servers:
        silent = trio.socket.socket(trio.socket.AF_UNIX)
        (tmp_path / "worker-2.sock").unlink()
        await silent.bind(str(tmp_path / "worker-2.sock"))
        silent.listen()
        began = trio.current_time()
        _, samples = await scraped(servers[0])
        assert float(samples["broker_workers"]) == 2
        assert trio.current_time() - began == pytest.approx(1.0, abs=0.5)
        silent.close()


@pytest.mark.parametrize("answer", [b"", b"\0" * 8, (100).to_bytes(8) + b"half", b"\0\0"])
async def test_an_answer_that_breaks_off_is_none(answer, tmp_path):
    async with workers(tmp_path) as servers, trio.open_nursery() as nursery:
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        (tmp_path / "worker-2.sock").unlink()
        await listening.bind(str(tmp_path / "worker-2.sock"))
        listening.listen()

        async def breaking_off(stream):
            await stream.send_all(answer)
            await stream.aclose()

        listener = trio.SocketListener(listening)
        await nursery.start(trio.serve_listeners, breaking_off, [listener])
        for served in servers[:2]:
            assert ids(await result(served, "/v1/connections")) == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("question", [b"", b"nonsense", b'{"about":"weather"}', b"x" * 200_000])
async def test_what_is_no_question_of_a_worker_is_not_answered_and_harms_nobody(question, tmp_path):
    async with workers(tmp_path) as servers:
        stream = await trio.open_unix_socket(str(tmp_path / "worker-0.sock"))
        async with stream:
            try:
                await stream.send_all(question)
                await stream.send_eof()
                assert await stream.receive_some() == b""
            except trio.BrokenResourceError:
                pass
        assert len(await servers[1].broker.siblings.ask(broker.observe.siblings.Question("metrics"))) == 2
