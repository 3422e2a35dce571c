"""Who gets a slot and who loses one, with real clients: limits of the tiers, takeover by `client_id`, ghosts."""

from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    BOB,
    PING,
    PONG,
    TEXT,
    Closed,
    alices,
    config_of,
    configured_key,
    connected,
    event,
    masked,
    numbers,
    open_socket,
    opening,
    reset,
    serving,
    token_of,
    until,
    upgrade_head,
)
from trio.testing import MockClock

from broker import AccountConfig, CloseCode, KeyConfig
from broker.access.admission import GHOST_SECONDS, SILENT_SECONDS
from broker.access.keys import MAX_CONNECTIONS, digest_of
from broker.access.slots import SlotsStatistics
from broker.transport.connection import Connection
from broker.transport.stream import ClientStream

ALSO = "dm_live_also"
"""Another key of the same account."""


def config(tier="free"):
    return config_of(
        alices(configured_key(ALICE), configured_key(ALSO), tier=tier),
        AccountConfig(id="acct_bob", tier=tier, keys=(configured_key(BOB),)),
    )


def taken(served) -> int:
    return served.broker.statistics().slots.connections


async def check_full(served, query: str = "", key: str = ALICE) -> None:
    """One more is refused."""
    answer = await opening(served.address, query, key=key)
    assert (answer.status, answer.code) == (429, "connection_limit")


# --- how many


@pytest.mark.parametrize(("tier", "limit"), [("free", 1), ("developer", 10), ("growth", 100)])
async def test_a_tier_has_so_many_connections_and_the_next_is_refused(tier, limit):
    async with serving(config(tier)) as served, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(served.address)) for _ in range(limit)]
        await check_full(served)
        await check_full(served, "client_id=agent")
        await check_full(served, key=ALSO)
        assert taken(served) == limit
        async with connected(served.address, key=BOB):
            pass
        await clients[0].say_close()
        await until(lambda: taken(served) == limit - 1)
        await stack.enter_async_context(connected(served.address, key=ALSO))
        await check_full(served)


async def test_the_tier_enterprise_has_any_number():
    async with serving(config("enterprise")) as served, AsyncExitStack() as stack:
        for _ in range(110):
            await stack.enter_async_context(connected(served.address))
        assert served.broker.statistics().slots == SlotsStatistics(accounts=1, connections=110)


async def test_the_refusal_says_when_to_come_again():
    async with serving(config()) as served, connected(served.address):
        answer = await opening(served.address)
        assert answer.status == 429
        assert answer.headers["retry-after"] == "5"
        assert answer.json["error"]["code"] == "connection_limit"
        assert answer.json["error"]["retry_after_ms"] == 5_000
        assert "free" in answer.message


async def test_tokens_count_as_their_account_does():
    async with serving(config()) as served:
        token = await token_of(served.address)
        async with connected(served.address, key=token):
            await check_full(served)
            await check_full(served, key=token)


@pytest.mark.parametrize(
    ("query", "key", "status"),
    [
        ("", "dm_live_nobody", 401),
        ("client_id=a%20b", ALICE, 400),
        ("since=5m&inbox_ids=", ALICE, 400),
        ("inbox_ids=*", "dm_operator_main", 403),
    ],
)
async def test_a_refused_opening_takes_no_slot_and_takes_none_away(query, key, status):
    async with serving(config()) as served:
        for _ in range(3):
            assert (await opening(served.address, query, key=key)).status == status
        assert served.broker.statistics().slots == SlotsStatistics(0, 0)
        async with connected(served.address, "client_id=agent") as client:
            assert (await opening(served.address, query, key=key)).status == status
            await client.ping()


async def close(client) -> None:
    await client.say_close()


async def end(client) -> None:
    await client.stream.send_eof()


async def cut(client) -> None:
    reset(client.stream)


async def misbehave(client) -> None:
    await client.send(masked(TEXT, b"{") * 20)


async def break_framing(client) -> None:
    await client.send(b"\xff\xff\xff\xff")


@pytest.mark.parametrize("leave", [close, end, cut, misbehave, break_framing])
async def test_a_slot_is_free_as_soon_as_the_connection_ends_and_not_only_when_it_is_gone(leave):
    """Its client neither closes its end nor answers the server's Close."""
    async with serving(config()) as served, connected(served.address) as client:
        connection = served.connection(client)
        await leave(client)
        await until(lambda: taken(served) == 0)
        if leave not in (cut, end):
            assert connection.id in served.server.connections
        async with connected(served.address) as newcomer:
            assert newcomer.ready["connection_id"] != connection.id
            assert taken(served) == 1


# --- takeover


async def test_a_newcomer_of_the_same_key_and_name_takes_the_slot_over_at_once(quick_close):
    async with serving(config()) as served, connected(served.address, "client_id=agent") as old:
        async with connected(served.address, "client_id=agent") as new:
            assert await old.until_closed() == CloseCode.REPLACED
            assert taken(served) == 1
            await served.broker.publish(ACCOUNT, event(1, inbox=None))
            assert numbers([await new.next()]) == [1]
            assert await old.at_end()
        await served.until_gone()
        assert taken(served) == 0


async def test_a_slot_may_be_taken_over_again_and_again():
    async with serving(config()) as served, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connected(served.address, "client_id=agent", key=ALICE)) for _ in range(20)
        ]
        for client in clients[:-1]:
            assert await client.until_closed() == CloseCode.REPLACED
        await clients[-1].ping()
        assert taken(served) == 1


async def test_the_end_of_the_old_connection_leaves_the_slot_to_the_new_one(quick_close):
    async with (
        serving(config()) as served,
        connected(served.address, "client_id=agent") as old,
        connected(served.address, "client_id=agent") as new,
    ):
        connection_id = old.ready["connection_id"]
        await old.stream.aclose()
        await until(lambda: connection_id not in served.server.connections)
        assert taken(served) == 1
        await check_full(served)
        await new.ping()


async def test_one_that_does_not_read_is_replaced_too_and_the_newcomer_does_not_wait_for_it(quick_close):
    async with (
        serving(config()) as served,
        connected(served.address, "client_id=agent&inbox_ids=in_1", receive_buffer_bytes=4_096, seconds=60) as old,
    ):
        connection = served.connection(old)
        for number in range(60):
            await served.broker.publish(ACCOUNT, event(number, size=20_000))
        await until(lambda: not connection.statistics().live)
        async with connected(served.address, "client_id=agent") as new:
            assert connection.id in served.server.connections
            assert taken(served) == 1
            await until(lambda: connection.id not in served.server.connections)
            await new.ping()
            frames = []
            with suppress(trio.BrokenResourceError, Closed, AssertionError):
                while True:
                    frames.append(await old.next())
            assert numbers(frames) == list(range(len(frames)))
            assert len(frames) < 60
            assert taken(served) == 1


async def test_nothing_is_written_to_a_connection_after_it_was_replaced():
    query = "client_id=agent&inbox_ids=*"
    async with (
        serving(config()) as served,
        connected(served.address, query) as old,
        connected(served.address, query) as new,
    ):
        await served.broker.publish(ACCOUNT, [event(1), event(2, inbox=None)])
        frames, closed = await old.rest()
        assert (frames, closed.code) == ([], CloseCode.REPLACED)
        assert numbers([await new.next(), await new.next()]) == [1, 2]


async def test_the_same_name_of_another_key_or_account_is_another_slot():
    async with (
        serving(config("developer")) as served,
        connected(served.address, "client_id=agent") as client,
        connected(served.address, "client_id=agent", key=ALSO) as other_key,
        connected(served.address, "client_id=agent", key=BOB) as other_account,
        connected(served.address, "client_id=Agent") as other_name,
    ):
        for each in (client, other_key, other_account, other_name):
            await each.ping()
        assert served.broker.statistics().slots == SlotsStatistics(accounts=2, connections=4)


async def test_at_the_limit_only_the_names_own_slot_can_be_taken():
    async with serving(config()) as served, connected(served.address, "client_id=agent") as client:
        await check_full(served, "client_id=agent", key=ALSO)
        await check_full(served, "client_id=other")
        await check_full(served)
        await client.ping()
        async with connected(served.address, "client_id=agent"):
            assert await client.until_closed() == CloseCode.REPLACED


async def test_without_a_name_nobody_is_replaced():
    async with (
        serving(config("developer")) as served,
        connected(served.address) as one,
        connected(served.address) as two,
    ):
        await one.ping()
        await two.ping()
        assert taken(served) == 2


async def test_a_token_takes_over_the_slot_of_its_key_and_the_key_that_of_its_token():
    async with serving(config()) as served:
        token = await token_of(served.address)
        async with (
            connected(served.address, "client_id=agent") as first,
            connected(served.address, "client_id=agent", key=token) as second,
            connected(served.address, "client_id=agent") as third,
        ):
            assert await first.until_closed() == CloseCode.REPLACED
            assert await second.until_closed() == CloseCode.REPLACED
            await third.ping()


async def test_a_token_that_is_narrowed_has_a_slot_of_its_own_and_the_same_narrowing_the_same_slot(quick_close):
    """In whatever order its inboxes were named."""
    async with serving(config("developer")) as served:
        some, same, less, mute = [
            await token_of(served.address, **narrowing)
            for narrowing in (
                {"inbox_ids": ["in_1", "in_2"]},
                {"inbox_ids": ["in_2", "in_1", "in_2"]},
                {"inbox_ids": ["in_1"]},
                {"scopes": []},
            )
        ]
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(connected(served.address, "client_id=agent", key=key))
                for key in (ALICE, some, less, mute)
            ]
            for client in clients:
                await client.ping()
            assert taken(served) == 4
            async with connected(served.address, "client_id=agent", key=same) as newcomer:
                assert await clients[1].until_closed() == CloseCode.REPLACED
                for client in (clients[0], clients[2], clients[3], newcomer):
                    await client.ping()


async def test_a_client_keeps_its_slot_over_a_reload_that_changes_what_its_key_reaches_and_how_it_is_called():
    async with serving(config()) as served, connected(served.address, "client_id=agent") as old:
        changed = KeyConfig(id="key_renamed", sha256=digest_of(ALICE), inbox_ids=("in_1",))
        served.broker.reload(config_of(alices(changed, tier="free")))
        async with connected(served.address, "client_id=agent"):
            assert await old.until_closed() == CloseCode.REPLACED


async def test_a_new_key_of_an_old_name_is_another_client():
    """The same id in the configuration, for another secret."""
    async with serving(config("developer")) as served, connected(served.address, "client_id=agent") as old:
        keys = configured_key(ALSO), KeyConfig(id=configured_key(ALICE).id, sha256=digest_of("dm_live_new"))
        served.broker.reload(config_of(alices(*keys)))
        assert await old.until_closed() == CloseCode.REVOKED
        async with (
            connected(served.address, "client_id=agent", key=ALSO) as other,
            connected(served.address, "client_id=agent", key="dm_live_new"),
        ):
            await other.ping()
            assert taken(served) == 2


@pytest.mark.parametrize("name", ["", "a%20b", "a%0A", "%C3%A9", "x" * 129, "a/b"])
async def test_a_name_that_is_none_is_a_bad_request_and_is_named(name):
    async with serving(config()) as served:
        answer = await opening(served.address, f"client_id={name}")
        assert (answer.status, answer.code) == (400, "bad_request")
        assert "`client_id`" in answer.message


@pytest.fixture
def held_handshake(monkeypatch):
    """Hold the next connection's handshake until the event is set."""
    shake, gates = Connection._handshake, [trio.Event()]

    async def wait_and_shake(self, nursery):
        if gates:
            await gates.pop().wait()
        return await shake(self, nursery)

    [gate] = gates
    monkeypatch.setattr(Connection, "_handshake", wait_and_shake)
    return gate


async def test_one_in_the_middle_of_its_handshake_is_replaced_too(held_handshake, quick_close):
    async with serving(config()) as served, await open_socket(served.address) as old:
        await old.send_all(upgrade_head("client_id=agent&inbox_ids=*"))
        await until(lambda: served.server.connections)
        async with connected(served.address, "client_id=agent&inbox_ids=*") as new:
            assert taken(served) == 1
            await served.broker.publish(ACCOUNT, event(1))
            held_handshake.set()
            with trio.fail_after(60):
                said = b"".join([bytes(data) async for data in old])
            assert b"test.event" not in said
            assert CloseCode.REPLACED.to_bytes(2) in said
            assert numbers([await new.next()]) == [1]
            assert taken(served) == 1


# --- ghosts


@pytest.fixture
def clock():
    """Whoever waits for a sign of life does not wait long."""
    return MockClock(rate=0.01, autojump_threshold=0.01)


@pytest.fixture
def dead(monkeypatch):
    """Streams whose peers are gone without a word, with the time since when: their TCP acknowledges nothing."""
    since: dict[ClientStream, float] = {}

    def unacknowledged_seconds(stream):
        return trio.current_time() - since[stream] if stream in since else 0.0

    monkeypatch.setattr(ClientStream, "unacknowledged_seconds", unacknowledged_seconds)
    return since


def cut_power(served, client, dead) -> None:
    """From now on a client's machine is off: nothing comes of it, and nobody tells the server."""
    dead[served.connection(client)._stream] = trio.current_time()


async def answer_pings(client) -> None:
    """Be a client that reads, and answers pings."""
    with suppress(Closed):
        while True:
            await client.send(masked(PONG, await client.wait_for(PING)))


@asynccontextmanager
async def answering(client):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_pings, client)
        yield
        nursery.cancel_scope.cancel()


async def test_a_client_whose_power_was_cut_is_not_locked_out_by_its_own_ghost(clock, dead):
    """The free tier's one client, without a name, comes back."""
    async with serving(config()) as served, connected(served.address) as ghost:
        cut_power(served, ghost, dead)
        asked_at = trio.current_time()
        async with connected(served.address) as newcomer:
            assert trio.current_time() - asked_at >= GHOST_SECONDS
            assert taken(served) == 1
            assert await ghost.frame() == (PING, b"")
            assert await ghost.until_closed() == CloseCode.HEARTBEAT_MISSED
            await newcomer.ping()
            await check_full(served)


async def test_a_ghost_is_given_its_five_seconds(clock, dead):
    async with serving(config()) as served, connected(served.address) as client:
        cut_power(served, client, dead)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(check_full, served)
            await client.wait_for(PING)
            await trio.sleep(GHOST_SECONDS - 0.5)
            await client.send(masked(PONG))
        await client.ping()


async def test_a_client_that_answers_the_ping_keeps_its_slot(clock, dead):
    async with serving(config()) as served, connected(served.address) as client:
        cut_power(served, client, dead)
        async with answering(client):
            for _ in range(3):
                await check_full(served)
        await client.ping()


async def test_a_client_that_only_pauses_keeps_its_slot_for_its_tcp_acknowledges(clock, dead):
    async with serving(config()) as served, connected(served.address) as client:
        for _ in range(3):
            await check_full(served)
        await client.ping()


async def test_a_ghost_behind_a_proxy_that_acknowledges_for_it_loses_its_slot(clock):
    """Its TCP is alive, and acknowledges every heartbeat."""
    async with serving(config()) as served, connected(served.address, seconds=1e6) as ghost:
        await trio.sleep(SILENT_SECONDS + 1)
        asked_at = trio.current_time()
        async with connected(served.address):
            assert GHOST_SECONDS <= trio.current_time() - asked_at < GHOST_SECONDS + 1
            assert await ghost.until_closed() == CloseCode.HEARTBEAT_MISSED
            await check_full(served)
    assert (GHOST_SECONDS, SILENT_SECONDS) == (5, 40)


async def test_a_client_that_was_silent_for_long_and_answers_the_ping_keeps_its_slot(clock):
    async with serving(config()) as served, connected(served.address, seconds=1e6) as client:
        await trio.sleep(SILENT_SECONDS + 1)
        async with answering(client):
            await check_full(served)
        await client.ping()


async def test_until_a_client_was_silent_for_40_s_its_tcp_speaks_for_it_and_nobody_waits(clock):
    async with serving(config()) as served, connected(served.address, seconds=1e6) as client:
        await trio.sleep(SILENT_SECONDS - 2)
        asked_at = trio.current_time()
        await check_full(served)
        assert trio.current_time() - asked_at < 1
        await client.ping()


async def test_the_quietest_is_who_said_nothing_for_longest_whatever_its_tcp_acknowledged(clock, monkeypatch):
    """A proxy acknowledges for the dead: it would hide a ghost behind those who are quiet and alive."""
    monkeypatch.setitem(MAX_CONNECTIONS, "developer", 2)
    async with (
        serving(config("developer")) as served,
        connected(served.address, seconds=1e6) as ghost,
        connected(served.address, seconds=1e6) as quiet,
    ):
        await trio.sleep(SILENT_SECONDS)
        await quiet.ping()
        await trio.sleep(10)
        await served.broker.publish(ACCOUNT, event(1, inbox=None))
        assert numbers([await ghost.next()]) == [1]
        async with connected(served.address):
            assert await ghost.until_closed() == CloseCode.HEARTBEAT_MISSED
            await quiet.ping()


@pytest.mark.parametrize("query", ["since=", "since", "inbox_ids=in_1&since=", "since=&inbox_ids=*"])
async def test_a_since_without_a_value_is_a_bad_request_and_is_named(query):
    async with serving(config()) as served:
        answer = await opening(served.address, query)
        assert (answer.status, answer.code) == (400, "bad_request")
        assert "`since`" in answer.message


@pytest.mark.parametrize(
    ("query", "key", "status"),
    [("&inbox_ids=in_2", "dm_live_narrow", 403), ("&client_id=a%20b", ALICE, 400), ("", "dm_operator_main", 403)],
)
async def test_an_opening_that_will_be_refused_anyway_does_not_wait_for_its_cursor(query, key, status, held_cursor):
    keys = configured_key(ALICE), configured_key("dm_live_narrow", inbox_ids=("in_1",))
    async with serving(config_of(alices(*keys))) as served:
        assert (await opening(served.address, f"since=c1{query}", key=key)).status == status


async def test_an_opening_that_will_be_refused_anyway_does_not_wait_for_a_ghost(clock, dead):
    async with serving(config()) as served, connected(served.address) as ghost:
        cut_power(served, ghost, dead)
        asked_at = trio.current_time()
        for query, key, status in (
            ("client_id=a%20b", ALICE, 400),
            ("since=", ALICE, 400),
            ("", "dm_live_nobody", 401),
            ("inbox_ids=*", "dm_operator_main", 403),
        ):
            assert (await opening(served.address, query, key=key)).status == status
        assert trio.current_time() - asked_at < 1
        assert taken(served) == 1


async def test_without_anything_known_of_acknowledgements_a_ping_must_be_answered(clock, monkeypatch):
    monkeypatch.setattr(ClientStream, "unacknowledged_seconds", lambda _: None)
    async with serving(config()) as served, connected(served.address) as client:
        async with answering(client):
            await check_full(served)
        async with connected(served.address):
            assert await client.until_closed() == CloseCode.HEARTBEAT_MISSED


async def test_the_quietest_connection_is_the_one_that_is_asked(clock, dead, monkeypatch):
    monkeypatch.setitem(MAX_CONNECTIONS, "developer", 3)
    async with serving(config("developer")) as served, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(served.address)) for _ in range(3)]
        for client in (clients[1], clients[2], clients[0]):
            await trio.sleep(1)
            await client.ping()
            cut_power(served, client, dead)
        async with connected(served.address):
            assert await clients[1].until_closed() == CloseCode.HEARTBEAT_MISSED
            for client in (clients[2], clients[0]):
                await client.ping()
            assert taken(served) == 3


async def test_if_the_quietest_lives_the_ghost_is_found_by_who_comes_again(clock, dead, monkeypatch):
    monkeypatch.setitem(MAX_CONNECTIONS, "developer", 2)
    async with (
        serving(config("developer")) as served,
        connected(served.address) as quiet,
        connected(served.address) as ghost,
    ):
        dead[served.connection(quiet)._stream] = trio.current_time()
        await trio.sleep(1)
        await ghost.ping()
        cut_power(served, ghost, dead)
        async with answering(quiet):
            await check_full(served)
            await trio.sleep(5)
            async with connected(served.address):
                assert await ghost.until_closed() == CloseCode.HEARTBEAT_MISSED
        await quiet.ping()


async def test_of_two_that_wait_for_one_ghost_exactly_one_is_let_in(clock, dead):
    async with serving(config()) as served, connected(served.address) as ghost:
        cut_power(served, ghost, dead)
        statuses = []

        async def come(stream):
            await stream.send_all(upgrade_head())
            statuses.append(bytes(await stream.receive_some(1_000))[9:12])

        async with await open_socket(served.address) as one, await open_socket(served.address) as two:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(come, one)
                nursery.start_soon(come, two)
            assert sorted(statuses) == [b"101", b"429"]
            assert taken(served) == 1


async def test_a_slot_that_becomes_free_meanwhile_is_used(clock, dead, monkeypatch):
    """The quietest turns out to live, but another has left."""
    monkeypatch.setitem(MAX_CONNECTIONS, "developer", 2)
    async with (
        serving(config("developer")) as served,
        connected(served.address) as quiet,
        connected(served.address) as leaving,
    ):
        cut_power(served, quiet, dead)
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:

            async def leave_while_the_other_is_asked():
                await quiet.wait_for(PING)
                await leaving.say_close()
                await until(lambda: taken(served) == 1)
                await quiet.send(masked(PONG))

            nursery.start_soon(leave_while_the_other_is_asked)
            async with connected(served.address) as newcomer:
                await newcomer.ping()
                await quiet.ping()
                assert taken(served) == 2


async def test_a_slot_that_becomes_free_is_not_waited_for_any_longer(clock, dead, monkeypatch):
    monkeypatch.setitem(MAX_CONNECTIONS, "developer", 2)
    async with (
        serving(config("developer")) as served,
        connected(served.address) as ghost,
        connected(served.address) as leaving,
    ):
        cut_power(served, ghost, dead)
        await trio.sleep(1)
        asked_at = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def leave_while_the_ghost_is_asked():
                await ghost.wait_for(PING)
                await leaving.say_close()

            nursery.start_soon(leave_while_the_ghost_is_asked)
            async with connected(served.address):
                assert trio.current_time() - asked_at < GHOST_SECONDS / 2
                assert taken(served) == 2


async def test_one_that_is_still_in_its_handshake_is_no_ghost(clock, dead, held_handshake):
    async with serving(config()) as served, await open_socket(served.address) as young:
        await young.send_all(upgrade_head())
        await until(lambda: served.server.connections)
        [connection] = served.server.connections.values()
        dead[connection._stream] = trio.current_time()
        await check_full(served)
        held_handshake.set()
        assert (await young.receive_some(1_000)).startswith(b"HTTP/1.1 101 ")


async def test_a_newcomer_that_leaves_while_it_waits_takes_no_slot_with_it(clock, dead, quick_close):
    async with serving(config()) as served, connected(served.address) as ghost:
        cut_power(served, ghost, dead)
        newcomer = await open_socket(served.address)
        await newcomer.send_all(upgrade_head())
        await ghost.wait_for(PING)
        reset(newcomer)
        await trio.sleep(GHOST_SECONDS)
        await until(lambda: not served.server.exchanges)
        await ghost.stream.aclose()
        await served.until_gone()
        assert served.broker.statistics().slots == SlotsStatistics(0, 0)


async def test_a_name_takes_its_slot_over_without_asking_anybody(clock, dead):
    async with serving(config()) as served, connected(served.address, "client_id=agent") as ghost:
        cut_power(served, ghost, dead)
        asked_at = trio.current_time()
        async with connected(served.address, "client_id=agent"):
            assert trio.current_time() - asked_at < GHOST_SECONDS
            assert await ghost.until_closed() == CloseCode.REPLACED


async def test_a_client_that_is_asked_while_it_is_about_to_become_live_is_no_ghost(clock, dead):
    """All that it was sent was acknowledged before: only an answer to a ping can show that it lives."""
    async with serving(config()) as served, connected(served.address) as client, answering(client):
        connection = served.connection(client)
        await until(lambda: connection.session.follower.live)
        cut_power(served, client, dead)
        connection.session.follower.pause()
        connection.wake()
        await check_full(served)
