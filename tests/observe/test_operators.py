"""What an operator asks of all connections: found, sorted, a page of them, one of them; and what that costs."""

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    BOB,
    INBOXES,
    OPERATOR,
    ask,
    bearer,
    connected,
    event,
    key_of,
    open_socket,
    read_until,
    serving,
    until,
)

import broker.observe.looks
from broker import CloseCode
from broker.observe.census import Censuses
from broker.observe.choosing import MOST_PAGES, Wanted, page_of
from broker.observe.connections import Connections, ConnectionStatistics, Link, OpenConnection
from broker.observe.looks import Looks
from broker.protocol.selection import EVERYTHING
from broker.schedule import Schedule


async def asked(served, query="", key=OPERATOR):
    answer = await ask(served.address, "GET", f"/v1/operator/connections{query}", key=key)
    assert answer.status == 200, answer.body
    return answer.result


async def ids_of(served, query=""):
    return [seen["connection_id"] for seen in (await asked(served, query))["connections"]]


@pytest.fixture
def a_look_each_time(monkeypatch):
    """Whoever asks is given a new look."""
    monkeypatch.setattr(broker.observe.looks, "LOOK_SECONDS", 0.0)


# --- a row -------------------------------------------------------------------


async def test_an_operator_sees_of_each_connection_who_it_is_and_what_it_does():
    async with serving() as served:
        query, agent = "client_id=worker&inbox_ids=in_2,in_1", ("User-Agent", "agent/1.0 \u00e9\x85")
        async with connected(served.address, query, agent) as client:
            await until(lambda: served.connection(client).statistics().live)
            page = await asked(served)
    [seen] = page.pop("connections")
    assert page == {"total": 1, "matching": 1}
    assert seen.pop("opened_at").endswith("Z")
    assert 0 < seen.pop("rtt_seconds") < 60
    assert seen.pop("bytes_sent") > len("HTTP/1.1 101")
    assert 0 <= seen.pop("silent_seconds") < 60
    assert seen == {
        "connection_id": client.ready["connection_id"],
        "account_id": ACCOUNT,
        "key_id": "key_alice",
        "client_id": "worker",
        "transport": "websocket",
        "remote": "127.0.0.1",
        "agent": "agent/1.0 \u00e9?",
        "state": "live",
        "inboxes": 2,
        "behind_events": 0,
        "behind_seconds": 0.0,
        "held_bytes": 0,
        "commands": 0,
        "watch": False,
    }


async def test_one_connection_alone_tells_its_inboxes_its_filter_and_its_commands():
    async with serving() as served:

        @served.broker.command("think")
        async def think(params: dict, context) -> None:
            await trio.sleep_forever()

        query = "inbox_ids=in_2,in_1&event_types=message.*,a.b"
        async with connected(served.address, query, key=INBOXES) as client:
            await client.say(action="think", request_id="r1")
            await until(lambda: served.connection(client).statistics().waiting_commands)
            path = f"/v1/operator/connections/{client.ready['connection_id']}"
            seen = (await ask(served.address, "GET", path, key=OPERATOR)).result
    assert (seen["commands"], seen["request_ids"]) == (1, ["r1"])
    assert (seen["inboxes"], seen["inbox_ids"]) == (2, ["in_1", "in_2"])
    assert seen["event_types"] == ["a.b", "message.*"]


async def test_a_client_that_reads_nothing_is_behind_and_then_paused_and_says_for_how_long(a_look_each_time):
    async with serving() as served, connected(served.address, "inbox_ids=*", receive_buffer_bytes=4096) as client:
        connection = served.connection(client)
        await until(lambda: connection.statistics().live)
        for number in range(8):
            await served.broker.publish(ACCOUNT, event(number, size=200_000))
        await until(lambda: not connection.statistics().live)
        await until(lambda: connection.statistics().remainder_bytes)
        [seen] = (await asked(served))["connections"]
        assert seen["state"] == "behind"
        assert seen["behind_events"] > 0
        assert seen["behind_seconds"] >= 0
        assert seen["held_bytes"] > 0
        with trio.fail_after(60):
            while not (paused := (await asked(served, "?state=paused"))["connections"]):
                pass  # its kernel took a little more between two looks
        assert paused[0]["behind_seconds"] >= seen["behind_seconds"]
        path = f"/v1/operator/connections/{client.ready['connection_id']}"
        assert (await ask(served.address, "GET", path, key=OPERATOR)).result["state"] == "paused"
        for _ in range(8):
            await client.next()
        await until(lambda: connection.statistics().live)
        assert (await asked(served, "?state=live"))["matching"] == 1


async def test_event_streams_and_waiting_polls_are_seen_too():
    async with serving() as served, trio.open_nursery() as nursery, await open_socket(served.address) as stream:
        head = f"GET /v1/events/stream?inbox_ids=in_1 HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer {ALICE}\r\n\r\n"
        await stream.send_all(head.encode())
        await read_until(stream, b"connection.ready")
        target = "/v1/events?inbox_ids=in_1&wait=60&event_types=a.b"
        nursery.start_soon(lambda: ask(served.address, "GET", target, key=ALICE))
        await until(lambda: len(served.broker.connections) == 2)
        by_transport = {seen["transport"]: seen for seen in (await asked(served))["connections"]}
        assert by_transport["sse"]["bytes_sent"] > 0
        assert (by_transport["poll"]["rtt_seconds"], by_transport["poll"]["bytes_sent"]) == (None, None)
        path = f"/v1/operator/connections/{by_transport['poll']['connection_id']}"
        assert (await ask(served.address, "GET", path, key=OPERATOR)).result["event_types"] == ["a.b"]
        assert (await ask(served.address, "DELETE", path, key=OPERATOR)).status == 200


# --- found and sorted --------------------------------------------------------


@pytest.fixture
async def some():
    """Three connections: of alice with an inbox, of alice with all, of bob with three inboxes."""
    async with (
        serving() as served,
        connected(served.address, "client_id=one&inbox_ids=in_1", ("User-Agent", "Curl/8")) as one,
        connected(served.address, "inbox_ids=*") as all_,
        connected(served.address, "client_id=three&inbox_ids=in_1,in_2,in_3", key=BOB) as three,
    ):
        served.ids = {
            client.ready["connection_id"]: name
            for name, client in [("one", one), ("all", all_), ("three", three)]
        }  # fmt: skip
        yield served


SORTED = {
    "?sort=opened_at&order=asc": ["one", "all", "three"],
    "?sort=opened_at": ["three", "all", "one"],
    "?sort=inboxes": ["all", "three", "one"],
    "?sort=inboxes&order=asc": ["one", "three", "all"],
    "?sort=account_id&order=asc": ["one", "all", "three"],
    "?sort=account_id&order=desc": ["three", "one", "all"],
    "?sort=behind_events": ["one", "all", "three"],
    "?sort=inboxes&limit=1": ["all"],
    "?sort=inboxes&offset=1&limit=1": ["three"],
    "?sort=inboxes&offset=3": [],
    "?account_id=acct_bob": ["three"],
    "?account_id=acct_nobody": [],
    "?q=CURL": ["one"],
    "?q=bob": ["three"],
    "?q=key_alice&sort=opened_at": ["all", "one"],
    "?q=127.0.0.1&sort=opened_at&limit=2": ["three", "all"],
    "?q=nobody": [],
    "?state=live&sort=opened_at&order=asc": ["one", "all", "three"],
    "?state=paused": [],
}


@pytest.mark.parametrize(("query", "names"), SORTED.items())
async def test_connections_are_found_sorted_and_taken_in_pages(some, query, names):
    await until(lambda: some.broker.statistics().hub.live == 3)
    assert [some.ids[connection_id] for connection_id in await ids_of(some, query)] == names


async def test_a_page_says_how_many_there_are_and_how_many_were_asked_for(some):
    page = await asked(some, "?q=alice&limit=1")
    assert (page["total"], page["matching"], len(page["connections"])) == (3, 2, 1)


BAD = (
    "sort=x sort= order=up state=dead limit=0 limit=201 limit=1.5 limit=%C2%B2 offset=-1 offset=10001 account_id=a%20b"
)


@pytest.mark.parametrize("query", BAD.split())
async def test_what_cannot_be_asked_is_a_bad_request_that_names_the_field(query):
    async with serving() as served:
        answer = await ask(served.address, "GET", f"/v1/operator/connections?{query}", key=OPERATOR)
        assert (answer.status, answer.code) == (400, "bad_request")
        assert query.partition("=")[0] in answer.message


# --- who may, and closing ----------------------------------------------------

ROUTES = [
    ("GET", "/v1/operator/connections"),
    ("GET", "/v1/operator/connections/conn_1"),
    ("DELETE", "/v1/operator/connections/conn_1"),
    ("GET", "/v1/operator/live"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_this_is_for_operators_alone(method, path):
    async with serving() as served:
        assert (await ask(served.address, method, path, key=ALICE)).status == 403
        assert (await ask(served.address, method, path)).status == 401
        assert (await ask(served.address, method, path, bearer("dm_operator_nobody"))).status == 401


async def test_an_operator_closes_a_connection_here_too_and_of_one_that_is_not_there_nothing_is_known():
    async with serving() as served:
        async with connected(served.address) as client:
            path = f"/v1/operator/connections/{client.ready['connection_id']}"
            assert (await ask(served.address, "DELETE", path, key=OPERATOR)).status == 200
            assert await client.until_closed() == CloseCode.GOING_AWAY
        await served.until_gone()
        for method in ("GET", "DELETE"):
            assert (await ask(served.address, method, path, key=OPERATOR)).code == "not_found"


# --- what it costs -----------------------------------------------------------


class Many:
    """A connection that counts how often it is read, and its kernel asked."""

    reads = links = 0

    def end(self, code, why):
        pass

    def last_heard(self):
        return 0.0

    def link(self):
        Many.links += 1
        return Link()

    def statistics(self):
        Many.reads += 1
        return ConnectionStatistics(EVERYTHING, False, 1, 2, 3, None)


@pytest.fixture
async def crowd():
    Many.reads = Many.links = 0
    connections = Connections()
    async with serving() as served:
        key = key_of(served.broker, ALICE)
    for number in range(5_000):
        connections.enter(OpenConnection(f"conn_{number}", key, None, None, "websocket", Many()))
    return connections


async def test_any_number_of_connections_is_looked_at_in_slices_and_the_kernel_asked_for_the_page_alone(
    crowd, monkeypatch
):
    steps = []
    checkpoint = trio.lowlevel.checkpoint

    async def counted():
        steps.append(Many.reads)
        Many.reads = 0
        await checkpoint()

    monkeypatch.setattr(trio.lowlevel, "checkpoint", counted)
    census = await Censuses(crowd, list, Schedule()).look()
    page = await page_of(census, Wanted(limit=150), crowd)
    monkeypatch.undo()
    assert (page.total, page.matching, len(page.rows)) == (5_000, 5_000, 150)
    assert max(steps) <= 64
    assert sum(steps) == 5_000
    assert Many.links == 150


async def test_a_page_is_chosen_from_any_number_in_slices(crowd, monkeypatch):
    census = await Censuses(crowd, list, Schedule()).look()
    steps, checkpoint = [], trio.lowlevel.checkpoint

    async def counted():
        steps.append(None)
        await checkpoint()

    monkeypatch.setattr(trio.lowlevel, "checkpoint", counted)
    await page_of(census, Wanted(limit=1), crowd)
    assert len(steps) >= 5_000 / 256


async def test_one_look_in_two_seconds_serves_everybody(crowd, autojump_clock):
    censuses = Censuses(crowd, list, Schedule())
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(censuses.look)
    await trio.sleep(1.9)
    await censuses.look()
    assert Many.reads == 5_000
    await trio.sleep(0.2)
    await censuses.look()
    assert Many.reads == 10_000


async def test_a_look_is_forgotten_when_nobody_asks_any_more(crowd, autojump_clock):
    schedule = Schedule()
    censuses = Censuses(crowd, list, schedule)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(schedule.run)
        for _ in range(5):
            await censuses.look()
            await trio.sleep(5)
        assert schedule.statistics().waiting == 1
        await trio.sleep(15)
        assert schedule.statistics().waiting == 0
        assert censuses.statistics().rows == 0
        nursery.cancel_scope.cancel()


class Slow(Many):
    """A connection that is behind, and takes something now and then."""

    taken, held = 0, 3

    def statistics(self):
        return ConnectionStatistics(EVERYTHING, False, 1, 2, self.held, None, position=self.taken)


async def test_a_client_that_takes_something_between_two_looks_is_behind_and_not_paused(autojump_clock):
    async with serving() as served:
        key = key_of(served.broker, ALICE)
    connections, slow = Connections(), Slow()
    connections.enter(OpenConnection("conn_1", key, None, None, "websocket", slow))
    censuses, states = Censuses(connections, list, Schedule()), []
    for taken, held in ((0, 3), (1, 3), (1, 2), (1, 2), (2, 2)):
        slow.taken, slow.held = taken, held
        states.append((await censuses.look()).rows[0].state)
        await trio.sleep(2)
    assert states == ["behind", "behind", "behind", "paused", "behind"]


async def test_a_look_is_compared_with_the_last_for_as_long_as_somebody_asks(autojump_clock):
    schedule, given = Schedule(), []

    async def take(last):
        given.append(last)
        return len(given)

    looks = Looks(take, schedule)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(schedule.run)
        for _ in range(3):
            await looks.look()
            await trio.sleep(9)
        await trio.sleep(10)
        await looks.look()
        nursery.cancel_scope.cancel()
    assert given == [None, 1, 2, None]


async def test_who_left_after_the_look_is_not_on_the_page(crowd):
    census = await Censuses(crowd, list, Schedule()).look()
    gone = crowd.find("conn_4999")
    crowd.leave(gone)
    page = await page_of(census, Wanted(sort="opened_at", limit=2), crowd)
    assert [seen.connection_id for seen in page.told().connections] == ["conn_4998"]


async def test_a_page_far_down_is_what_comes_there_when_all_are_sorted(crowd):
    census = await Censuses(crowd, list, Schedule()).look()
    for order, first in (("asc", 4_700), ("desc", 4_999 - 4_700)):
        page = await page_of(census, Wanted(sort="opened_at", order=order, offset=4_700, limit=2), crowd)
        second = first + (1 if order == "asc" else -1)
        assert [seen.connection_id for seen in page.told().connections] == [f"conn_{first}", f"conn_{second}"]


async def test_a_page_is_chosen_once_for_all_who_want_it_of_one_look(crowd):
    census = await Censuses(crowd, list, Schedule()).look()
    page = await page_of(census, Wanted(search="conn_4"), crowd)
    links = Many.links
    assert await page_of(census, Wanted(search="conn_4"), crowd) is page
    assert Many.links == links
    assert (await page_of(census, Wanted(search="conn_3"), crowd)).rows != page.rows


async def test_of_one_look_a_few_pages_are_kept(crowd):
    census = await Censuses(crowd, list, Schedule()).look()
    for number in range(2 * MOST_PAGES):
        await page_of(census, Wanted(search=f"conn_{number}", limit=1), crowd)
    assert len(census.pages) == MOST_PAGES
