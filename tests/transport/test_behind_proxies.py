"""The broker behind nginx and behind Caddy, each set up as docs/proxies.md shows it."""

import logging
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    PING,
    Closed,
    bearer,
    broker_log,
    configured,
    connected,
    event,
    numbers,
    serving,
    until,
)
from eventstreams import reading
from proxies import caddy, nginx

from broker import CloseCode, LimitsConfig, ServerConfig

CLIENT, PROXY, FORGED = "127.0.0.7", "127.0.0.1", "203.0.113.9"
QUICK = LimitsConfig(heartbeat_seconds=0.2)
HEARTBEATS = 8
"""In a pause that is longer than a proxy waits."""
PATIENCE_SECONDS = 1.0

each_proxy = pytest.mark.parametrize("proxied", [nginx, caddy])
each_way = pytest.mark.parametrize("way", ["tcp", "unix"])


@asynccontextmanager
async def behind(proxied, folder, *, way="unix", limits=None, seconds=PATIENCE_SECONDS):
    """A broker, and a proxy that hands on what comes by TCP or to a socket file."""
    socket_file = folder / "broker.sock"
    server = ServerConfig(unix=str(socket_file), trusted_proxies=(PROXY,), drain_seconds=600)
    async with serving(configured(server=server, limits=limits)) as served:
        host, port = served.address
        upstream = f"unix:{socket_file}" if way == "unix" else f"{host}:{port}"
        async with proxied(folder, upstream, seconds=seconds) as proxy:
            yield served, proxy


def asking(proxy) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        verify=proxy.trust, base_url=proxy.url, headers=[bearer(ALICE)], timeout=60, trust_env=False
    )


def through(proxy, query="inbox_ids=in_1", **options):
    return connected(proxy.address, query, tls=proxy.trust, **options)


@asynccontextmanager
async def event_stream(proxy, *headers, **options):
    async with reading(proxy.address, "inbox_ids=in_1", *headers, tls=proxy.trust, **options) as reader:
        assert reader.status == 200
        assert (await reader.next())[1]["type"] == "connection.ready"
        yield reader


# --- what is carried -----------------------------------------------------------


@each_way
@each_proxy
async def test_stream_event_stream_polls_and_publishes_go_through_it(proxied, way, tmp_path, no_errors):
    async with (
        behind(proxied, tmp_path, way=way) as (served, proxy),
        asking(proxy) as http,
        through(proxy) as websocket,
        event_stream(proxy) as events,
    ):
        assert (await http.get("/healthz")).status_code == 200
        pages = []

        async def poll():
            pages.append((await http.get("/v1/events?inbox_ids=in_1&wait=30")).json()["result"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll)
            await until(lambda: served.broker.connections.statistics().open.get(("enterprise", "poll")))
            await websocket.say(action="publish", request_id="r", events=event(1))
        assert numbers(pages[0]["events"]) == [1]
        assert (await websocket.answer("r"))["result"]
        assert numbers([(await events.next())[1]]) == [1]
        assert (await http.post("/v1/events", json=event(2))).status_code == 200
        assert numbers([(await events.next())[1]]) == [2]


@each_proxy
async def test_a_large_publish_goes_through_it(proxied, tmp_path):
    async with behind(proxied, tmp_path) as (_, proxy), asking(proxy) as http:
        events = [event(number, size=200_000) for number in range(39)]  # 7.8 MB
        answer = await http.post("/v1/events", json=events)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["result"]["events"]) == 39


@each_proxy
async def test_the_brokers_refusals_come_through_it_as_they_are(proxied, tmp_path):
    async with behind(proxied, tmp_path) as (_, proxy), asking(proxy) as http:
        answer = await http.get("/v1/events?inbox_ids=", headers={"Authorization": "Bearer dm_live_nobody"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"


# --- pauses --------------------------------------------------------------------


@each_proxy
async def test_the_heartbeat_carries_quiet_clients_over_its_timeouts(proxied, tmp_path):
    """No client says anything, and no event comes, for longer than the proxy waits."""
    async with (
        behind(proxied, tmp_path, limits=QUICK) as (served, proxy),
        through(proxy) as websocket,
        event_stream(proxy) as events,
    ):
        started = trio.current_time()
        for _ in range(HEARTBEATS):
            await websocket.wait_for(PING)
        assert trio.current_time() - started > PATIENCE_SECONDS
        await served.broker.publish(ACCOUNT, event(1))
        assert numbers([await websocket.next()]) == [1]
        assert numbers([(await events.next())[1]]) == [1]
        assert events.comments >= HEARTBEATS / 2


async def test_without_a_heartbeat_in_time_nginx_cuts_a_client_off_and_that_is_what_the_page_says(tmp_path):
    async with behind(nginx, tmp_path) as (_, proxy), through(proxy) as websocket:
        with pytest.raises(Closed) as closed:
            await websocket.next()
        assert closed.value.code is None


# --- ends ----------------------------------------------------------------------


@each_proxy
async def test_a_drain_reaches_the_clients_behind_it(proxied, tmp_path):
    async with (
        behind(proxied, tmp_path) as (served, proxy),
        through(proxy) as websocket,
        event_stream(proxy) as events,
    ):
        await served.broker.publish(ACCOUNT, event(1))
        served.broker.start_draining()
        frames, closed = await websocket.rest()
        assert {frame["type"] for frame in frames} == {"test.event", "server.draining"}
        assert closed.code == CloseCode.RESTART
        await websocket.say_close(closed.code)
        said = [await events.next() for _ in range(3)]
        assert said[2] is None
        assert {frame["type"] for _, frame in said[:2]} == {"test.event", "server.draining"}
        with trio.fail_after(60):
            await served.ended.wait()


@each_proxy
async def test_when_it_reads_its_configuration_again_nothing_is_lost(proxied, tmp_path):
    """Open streams live on, or end: then their clients come back by cursor."""
    async with behind(proxied, tmp_path) as (served, proxy), through(proxy) as websocket:
        await served.broker.publish(ACCOUNT, event(1))
        heard = await websocket.next()
        await proxy.reload()
        await served.broker.publish(ACCOUNT, event(2))
        try:
            frames = [heard, await websocket.next()]
        except Closed:
            assert proxied is caddy
            async with through(proxy, f"inbox_ids=in_1&since={heard['cursor']}") as again:
                frames = [heard, await again.next()]
        assert numbers(frames) == [1, 2]
        async with through(proxy) as newcomer:
            await served.broker.publish(ACCOUNT, event(3))
            assert numbers([await newcomer.next()]) == [3]


@each_proxy
async def test_a_client_that_leaves_it_leaves_the_broker(proxied, tmp_path):
    async with behind(proxied, tmp_path) as (served, proxy):
        async with through(proxy), event_stream(proxy):
            assert len(served.server.connections) == 2
        with trio.fail_after(60):
            await served.until_gone()


# --- who asks ------------------------------------------------------------------


@each_way
@each_proxy
@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
async def test_the_address_of_a_client_is_its_own_whatever_it_claims(proxied, way, header, tmp_path):
    claim = header, FORGED if header == "X-Forwarded-For" else f"for={FORGED}"
    async with (
        behind(proxied, tmp_path, way=way) as (_, proxy),
        asking(proxy) as http,
        event_stream(proxy, claim, local=CLIENT),
    ):
        [listed] = (await http.get("/v1/connections")).json()["result"]["connections"]
        assert listed["remote"] == CLIENT


# --- what is written down --------------------------------------------------------


@each_proxy
async def test_no_key_is_in_what_it_writes_of_requests_that_went_well_or_were_refused(proxied, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    async with behind(proxied, tmp_path) as (_, proxy), asking(proxy) as http:
        http.headers.pop("Authorization")
        for key in (ALICE, "dm_live_nobody"):
            answer = await http.get(f"/v1/events?inbox_ids=in_1&key={key}")
            assert answer.status_code == (200 if key == ALICE else 401)
        written = proxy.written() + broker_log(caplog)
    assert written
    assert "dm_live" not in written
