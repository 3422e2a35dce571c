"""The drain of a full house (PROTOCOL section 5): 200 clients of every kind, events all the time, work under way."""

import contextlib
import json
from dataclasses import dataclass, field
from functools import partial

import httpx
import pytest
import trio
from certificates import Authority
from clients import ACCOUNT, ALICE, bearer, configured, connected, event, numbers, serving, until
from msgspec import structs
from trio.testing import wait_all_tasks_blocked as blocked

import broker.transport.endpoints
from broker import BrokerClosedError, CloseCode, ServerConfig

SOCKETS, SLOW_SOCKETS, STREAMS, FOLLOWING_POLLS, WAITING_POLLS = 100, 20, 40, 20, 20
SMALL = 4_096
"""A receive buffer so small that the broker cannot write to a client that does not read."""


@dataclass
class House:
    """What the clients of one broker have heard."""

    served: object
    http: httpx.AsyncClient
    tls: object
    published: list[int] = field(default_factory=list)
    """Numbers of the events whose publisher was told that they are stored."""
    release: trio.Event = field(default_factory=trio.Event)
    """Set when the handlers that are at work are to end."""
    under_way: int = 0
    noticed: int = 0
    """How many were told of the drain."""
    sockets: list = field(default_factory=list)
    """Of each WebSocket: its name, the frames after its ready, its Close, whether its TCP ended in order."""
    streams: list = field(default_factory=list)
    """Of each event stream: the frames after its `connection.ready`, and the last `retry:`."""
    followed: list = field(default_factory=list)
    """Of each client that polled on and on: its last answer, and all events."""
    waited: list = field(default_factory=list)
    """Of each poll that waited for what did not come: its answer."""

    @property
    def polls(self) -> int:
        """How many polls hold a place."""
        return self.served.broker.connections.statistics().open.get(("enterprise", "poll"), 0)

    def notice(self, frame) -> None:
        """Count who was told of the drain; when all were, let the handlers end."""
        self.noticed += frame["type"] == "server.draining"
        if self.noticed == SOCKETS + SLOW_SOCKETS + STREAMS:
            self.release.set()


async def a_socket(house, name, *, slow, task_status):
    buffer = SMALL if slow else None
    async with connected(house.served.address, "inbox_ids=in_1", receive_buffer_bytes=buffer, tls=house.tls) as client:
        await client.say(action="work", request_id=name)
        task_status.started()
        if slow:
            await house.served.broker.draining.wait()
        frames, closed = [], None
        while closed is None:
            try:
                frames.append(await client.next())
                house.notice(frames[-1])
            except Exception as ended:
                closed = ended
        await client.say_close(closed.code)
        house.sockets.append((name, frames, closed, await client.at_end()))


async def a_stream(house, _, *, task_status):
    frames, retry = [], None
    async with house.http.stream("GET", "/v1/events/stream?inbox_ids=in_1") as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():  # raises if the end is not in order
            name, _, value = line.partition(": ")
            if name == "retry":
                retry = int(value)
            elif name == "data":
                frames.append(json.loads(value))
                house.notice(frames[-1])
                if len(frames) == 1:
                    task_status.started()
    house.streams.append((frames[1:], retry))


async def a_poll_after_another(house, _, *, task_status):
    """Poll without a pause, until that is refused."""
    query, events = {"inbox_ids": "in_1", "since": "5m"}, []
    while (answer := await house.http.get("/v1/events", params=query)).status_code == 200:
        task_status.started()
        task_status = trio.TASK_STATUS_IGNORED
        result = answer.json()["result"]
        events += result["events"]
        query |= {"since": result["cursor"], "wait": 50}
    house.followed.append(((answer.status_code, answer.json()["error"]["code"]), events))


async def a_poll_that_waits(house, _, *, task_status):
    task_status.started()
    answer = await house.http.get("/v1/events", params={"inbox_ids": "in_2", "wait": 50})
    house.waited.append((answer.status_code, answer.json()["result"]["events"]))


async def publish_until_refused(house):
    number = 0
    with contextlib.suppress(BrokerClosedError):
        while True:
            number += 1
            await house.served.broker.publish(ACCOUNT, event(number, size=2_000))
            house.published.append(number)


@contextlib.asynccontextmanager
async def a_full_house(authority):
    """200 clients, each of which has begun what it does, and events that are published without a pause."""
    server = structs.replace(ServerConfig() if authority is None else authority.sign(), drain_seconds=600)
    trust = None if authority is None else authority.trust()
    async with serving(configured(server=server)) as served:
        base = f"http{'s' if trust else ''}://localhost:{served.address[1]}"
        limits = httpx.Limits(max_connections=None)
        http = httpx.AsyncClient(
            base_url=base, headers=[bearer(ALICE)], verify=trust or True, limits=limits, timeout=60, trust_env=False
        )
        async with http, trio.open_nursery() as nursery:
            house = House(served, http, trust)

            @served.broker.command("work", seconds=60)
            async def work(params: dict, context) -> dict:
                house.under_way += 1
                await house.release.wait()
                return {"done": True}

            for count, client in (
                (SOCKETS, partial(a_socket, house, slow=False)),
                (SLOW_SOCKETS, partial(a_socket, house, slow=True)),
                (STREAMS, partial(a_stream, house)),
                (FOLLOWING_POLLS, partial(a_poll_after_another, house)),
                (WAITING_POLLS, partial(a_poll_that_waits, house)),
            ):
                for number in range(count):
                    await nursery.start(client, f"r{number}_{count}")
            await until(lambda: house.under_way == SOCKETS + SLOW_SOCKETS and house.polls == 40)
            nursery.start_soon(publish_until_refused, house)
            await until(lambda: len(house.published) > 100)
            yield house


def assert_whole(frames, house) -> None:
    """Each event since the first that came, in order, up to the last that was stored."""
    heard = numbers(frames)
    assert heard, "no event came"
    assert heard == list(range(heard[0], house.published[-1] + 1))


def notice_of(frames) -> int:
    """When the client is told to come back, which it is told once."""
    [told] = [frame["reconnect_after_ms"] for frame in frames if frame["type"] == "server.draining"]
    return told


@pytest.mark.parametrize("over", ["plain", "tls"])
async def test_each_of_200_clients_gets_its_notice_every_event_its_answer_and_its_end(over, tmp_path, no_errors):
    with trio.fail_after(60):
        async with a_full_house(None if over == "plain" else Authority(tmp_path)) as house:
            house.served.broker.start_draining()
            await house.served.ended.wait()

    assert len(house.sockets) == SOCKETS + SLOW_SOCKETS
    for name, frames, closed, in_order in house.sockets:
        assert_whole(frames, house)
        [answer] = [frame for frame in frames if frame["type"] == "response"]
        assert (answer["request_id"], answer["result"]) == (name, {"done": True})
        assert (closed.code, in_order) == (CloseCode.RESTART, True)

    assert len(house.streams) == STREAMS
    for frames, retry in house.streams:
        assert_whole(frames, house)
        assert retry == notice_of(frames)

    told = [notice_of(frames) for frames in [*(s[1] for s in house.sockets), *(s[0] for s in house.streams)]]
    assert min(told) > 0
    assert len(set(told)) > len(told) / 2

    assert len(house.followed) == FOLLOWING_POLLS
    for refused, frames in house.followed:
        heard = numbers(frames)
        assert heard == list(range(1, len(heard) + 1))
        assert refused == (503, "draining")
    assert house.waited == [(200, [])] * WAITING_POLLS


# --- what nobody waits for any more


@contextlib.asynccontextmanager
async def an_action_of_nobody(drain_seconds: float):
    """A served broker with a handler at work, whose client has left, and the event that lets it end."""
    begun, release = trio.Event(), trio.Event()
    async with serving(configured(server=ServerConfig(drain_seconds=drain_seconds))) as served:

        @served.broker.command("work", seconds=600)
        async def work(params, context):
            begun.set()
            await release.wait()
            return {}

        async with connected(served.address) as client:
            await client.say(action="work", request_id="r1")
            await begun.wait()
        await served.until_gone()
        yield served, release


async def test_a_command_whose_client_has_left_is_finished_before_the_broker_ends():
    """Cut off, it would be done again: its client comes back with the same `request_id`."""
    async with an_action_of_nobody(drain_seconds=600) as (served, release):
        served.broker.start_draining()
        await blocked()
        assert not served.ended.is_set()
        release.set()
        with trio.fail_after(60):
            await served.ended.wait()
        assert served.broker.statistics().commands.under_way == 0


async def test_a_command_that_never_ends_has_the_time_of_the_drain_and_no_more():
    async with an_action_of_nobody(drain_seconds=0.1) as (served, _):
        served.broker.start_draining()
        with trio.fail_after(60):
            await served.ended.wait()


# --- newcomers of the last moment ----------------------------------------------


async def test_an_event_stream_let_in_before_the_drain_is_ready_first_and_then_told(monkeypatch):
    """Between the check of its head and its first frame lies a wait."""
    real, gate, inside = broker.transport.endpoints.open_event_stream, trio.Event(), trio.Event()

    async def wait_then_go_on(*args: object) -> object:
        opening = await real(*args)
        inside.set()
        await gate.wait()
        return opening

    monkeypatch.setitem(broker.transport.endpoints.ROUTES["/v1/events/stream"], "GET", wait_then_go_on)
    config = configured(server=ServerConfig(drain_seconds=600))
    async with serving(config) as served, trio.open_nursery() as nursery:

        async def come() -> None:
            http = httpx.AsyncClient(headers=[bearer(ALICE)], timeout=60, trust_env=False)
            url = f"http://localhost:{served.address[1]}/v1/events/stream?inbox_ids=in_1"
            async with http, http.stream("GET", url) as answer:
                said = [json.loads(line[6:]) async for line in answer.aiter_lines() if line.startswith("data: ")]
            assert [frame["type"] for frame in said] == ["connection.ready", "server.draining"]

        nursery.start_soon(come)
        await inside.wait()
        served.broker.start_draining()
        await blocked()
        gate.set()
        with trio.fail_after(60):
            await served.ended.wait()
