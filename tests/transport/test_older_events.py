"""Clients of every kind that start, or fall, further back than memory reaches, where an archive keeps that."""

from contextlib import asynccontextmanager

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    Closed,
    alices,
    ask,
    config_of,
    configured,
    configured_key,
    connected,
    event,
    numbers,
    open_socket,
    serving,
    until,
    upgrade_head,
)

from broker import BrokerClosedError, Gap, ReplayConfig, RequestError, StorageConfig, open_broker

TINY = ReplayConfig(max_events_per_account=5)
EVENTS = 600
GONE = RequestError("unavailable", "The disk is gone")


@asynccontextmanager
async def served_with_a_past(config=None):
    """A server whose memory has the last five of many events, and the cursor before all of them."""
    async with serving(config or configured(replay=TINY)) as served:
        async with served.broker.subscribe(ACCOUNT) as subscriber:
            start = subscriber.cursor
        await served.broker.publish(ACCOUNT, [event(n) for n in range(EVENTS)])
        await until(lambda: served.broker.statistics().replay.events == 5)
        yield served, start


async def next_events(client, number):
    """The numbers of the next events; nothing else comes between them."""
    found = []
    while len(found) < number:
        frame = await client.next()
        assert "payload" in frame, frame
        found += numbers([frame])
    return found


# --- openings ----------------------------------------------------------------


async def test_a_client_that_was_off_for_longer_than_memory_holds_misses_nothing(archives):
    async with (
        served_with_a_past() as (served, start),
        connected(served.address, f"inbox_ids=*&since={start}") as client,
    ):
        assert client.ready["replay"] == {"recovered": True, "count": EVENTS}
        assert client.ready["cursor"] == start
        assert client.ready["replay_seconds"] == archives[0].keep_seconds
        assert await next_events(client, EVENTS) == list(range(EVENTS))
        await served.broker.publish(ACCOUNT, event(EVENTS))
        assert await next_events(client, 1) == [EVENTS]
        await until(lambda: served.connection(client).session.follower.live)


async def test_what_the_archive_has_let_go_is_told_as_a_gap_and_the_rest_comes(archives):
    async with served_with_a_past() as (served, start):
        archives[0].let_go_first(ACCOUNT, 100, 10**9)
        async with connected(served.address, f"inbox_ids=*&since={start}") as client:
            assert client.ready["replay"] == {"recovered": False, "count": EVENTS - 100}
            gap = await client.next()
            assert (gap["type"], gap["from"], gap["count"]) == ("replay.gap", start, 100)
            assert await next_events(client, EVENTS - 100) == list(range(100, EVENTS))


async def test_many_that_come_back_at_once_share_what_is_read(archives):
    async with served_with_a_past() as (served, start), trio.open_nursery() as nursery:
        found = []

        async def come_back():
            async with connected(served.address, f"inbox_ids=*&since={start}") as client:
                found.append(await next_events(client, EVENTS))

        for _ in range(20):
            nursery.start_soon(come_back)
        await until(lambda: len(found) == 20)
        assert found == [list(range(EVENTS))] * 20
    assert served.broker.past.statistics().shared > 0


async def test_who_is_ended_while_the_past_is_asked_for_ends_at_once(archives, monkeypatch):
    monkeypatch.setattr("broker.log.past.ANSWER_SECONDS", 600)
    alice = configured_key(ALICE)
    async with served_with_a_past(config_of(alices(alice), replay=TINY)) as (served, start):
        archives[0].answering = trio.Event()
        with trio.fail_after(60):
            async with await open_socket(served.address) as stream:
                await stream.send_all(upgrade_head(f"inbox_ids=*&since={start}"))
                await until(lambda: archives[0].asked)
                served.broker.reload(config_of(replay=TINY))
                await served.until_gone()
                assert served.broker.statistics().slots.connections == 0


async def test_an_opening_whose_past_cannot_be_read_ends_with_1011(archives):
    async with served_with_a_past() as (served, start):
        archives[0].error = GONE
        with pytest.raises(Closed) as ended:
            async with connected(served.address, f"inbox_ids=*&since={start}"):
                pass
        assert (ended.value.code, ended.value.reason) == (1011, "The disk is gone")


# --- connected ---------------------------------------------------------------


async def test_a_client_that_reads_too_late_for_memory_misses_nothing(archives):
    async with (
        served_with_a_past() as (served, _),
        connected(served.address, "inbox_ids=*", receive_buffer_bytes=4_096) as client,
    ):
        for n in range(40):
            await served.broker.publish(ACCOUNT, [event(10 * n + i, size=4_000) for i in range(10)])
        assert not served.connection(client).session.follower.live
        assert await next_events(client, 400) == list(range(400))


async def test_a_subscribe_reaches_back_and_is_answered_before_what_it_replays(archives):
    async with served_with_a_past() as (served, start), connected(served.address, "inbox_ids=in_2") as client:
        await client.say(action="subscribe", request_id="r", inbox_ids=["in_1"], since=start)
        answer = await client.next()
        assert answer["result"]["inbox_ids"] == ["in_1", "in_2"]
        assert answer["result"]["replay"] == {"recovered": True, "count": EVENTS}
        assert answer["result"]["cursor"] == start
        assert await next_events(client, EVENTS) == list(range(EVENTS))


async def test_what_a_client_says_after_a_subscribe_that_reaches_back_is_done_after_it(archives):
    async with served_with_a_past() as (served, start), connected(served.address, "inbox_ids=in_2") as client:
        archives[0].answering = trio.Event()
        await client.say(action="subscribe", inbox_ids=["in_1"], since=start)
        await client.say(action="unsubscribe", request_id="u", inbox_ids=["in_1"])
        await client.ping()
        archives[0].answering.set()
        assert (await client.next())["result"]["inbox_ids"] == ["in_1", "in_2"]
        assert (await client.answer("u"))["result"]["inbox_ids"] == ["in_2"]


async def test_a_subscribe_whose_past_cannot_be_read_is_unavailable_and_changes_nothing(archives):
    async with served_with_a_past() as (served, start), connected(served.address, "inbox_ids=in_2") as client:
        archives[0].error = GONE
        await client.say(action="subscribe", request_id="r", inbox_ids=["in_1"], since=start)
        assert (await client.next())["error"]["code"] == "unavailable"
        archives[0].error = None
        await client.say(action="subscribe", request_id="r", inbox_ids=["in_3"])
        assert (await client.next())["result"]["inbox_ids"] == ["in_2", "in_3"]


async def test_names_are_held_while_the_past_is_asked_about_and_given_back_if_they_are_not_followed(archives):
    names = [f"in_{number:03}" for number in range(1, 401)]
    key = configured_key(ALICE, inbox_ids=("in_1", "in_2", "in_3", *names))
    lost = configured_key(ALICE, inbox_ids=("in_2",))
    async with (
        served_with_a_past(config_of(alices(key), replay=TINY)) as (served, start),
        connected(served.address, "inbox_ids=in_2") as client,
    ):
        for gone_wrong in ("disk", "key", None):
            archives[0].answering = trio.Event()
            await client.say(action="subscribe", request_id="r", inbox_ids=["in_1", *names], since=start)
            await until(lambda: served.broker.names.bytes > 40_000)
            archives[0].error = GONE if gone_wrong == "disk" else None
            if gone_wrong == "key":
                served.broker.reload(config_of(alices(lost), replay=TINY))
            archives[0].answering.set()
            assert ("error" in await client.answer("r")) == (gone_wrong is not None)
            assert (served.broker.names.bytes == 0) == (gone_wrong is not None)
            served.broker.reload(config_of(alices(key), replay=TINY))


async def test_a_key_that_reaches_less_by_the_time_is_what_a_subscribe_is_judged_by(archives):
    wide, narrow = configured_key(ALICE), configured_key(ALICE, inbox_ids=("in_2",))
    async with (
        served_with_a_past(config_of(alices(wide), replay=TINY)) as (served, start),
        connected(served.address, "inbox_ids=in_2") as client,
    ):
        archives[0].answering = trio.Event()
        await client.say(action="subscribe", request_id="r", inbox_ids=["in_1"], since=start)
        await until(lambda: archives[0].asked)
        served.broker.reload(config_of(alices(narrow), replay=TINY))
        archives[0].answering.set()
        assert (await client.answer("r"))["error"]["code"] == "forbidden"


async def test_answers_do_not_wait_for_older_events(archives):
    async with served_with_a_past() as (served, start):
        archives[0].answering, archives[0].free = trio.Event(), 2
        async with connected(served.address, f"inbox_ids=*&since={start}") as client:
            first = await next_events(client, 256)
            await client.say(action="ping", request_id="p")
            assert "server_time" in (await client.next())["result"], "nothing else comes before it"
            archives[0].answering.set()
            assert first + await next_events(client, EVENTS - 256) == list(range(EVENTS))


async def test_a_drain_waits_until_older_events_are_read(archives):
    async with served_with_a_past() as (served, start):
        archives[0].answering, archives[0].free = trio.Event(), 2
        async with connected(served.address, f"inbox_ids=*&since={start}") as client:
            found = await next_events(client, 256)
            served.broker.start_draining()
            assert (await client.next())["type"] == "server.draining"
            archives[0].answering.set()
            frames, closed = await client.rest()
            assert found + numbers(frames) == list(range(EVENTS))
            assert closed.code == 1012


async def test_a_client_that_is_being_fed_is_ended_with_1011_when_older_events_cannot_be_read(archives):
    async with (
        served_with_a_past() as (served, start),
        connected(served.address, f"inbox_ids=*&since={start}") as client,
    ):
        archives[0].error = GONE
        frames, closed = await client.rest()
        assert numbers(frames) == list(range(len(frames)))
        assert (closed.code, closed.reason) == (1011, "The disk is gone")


# --- polls, and the library --------------------------------------------------


async def test_polls_bring_older_events_page_by_page(archives):
    async with served_with_a_past() as (served, start):
        found, cursor = [], start
        while len(found) < EVENTS:
            answer = await ask(served.address, "GET", f"/v1/events?inbox_ids=*&limit=100&since={cursor}", key=ALICE)
            page = answer.result
            assert page["replay"] == {"recovered": True, "count": EVENTS - len(found)}
            assert len(page["events"]) == 100
            found += numbers(page["events"])
            cursor = page["cursor"]
        assert found == list(range(EVENTS))


async def test_a_poll_whose_past_cannot_be_read_is_503(archives):
    async with served_with_a_past() as (served, start):
        archives[0].error = GONE
        answer = await ask(served.address, "GET", f"/v1/events?inbox_ids=*&since={start}", key=ALICE)
        assert (answer.status, answer.code) == (503, "unavailable")


async def test_a_subscriber_of_the_library_reads_older_events_and_goes_on_after_they_could_not_be_read(archives):
    async with served_with_a_past() as (served, start):
        archives[0].let_go_first(ACCOUNT, 1, 10**9)
        async with served.broker.subscribe(ACCOUNT, ["in_1"], since=start) as subscriber:
            assert subscriber.replay.count == EVENTS - 1
            gap = await anext(subscriber)
            assert (type(gap), gap.count) == (Gap, 1)
            archives[0].error = GONE
            with pytest.raises(RequestError, match="The disk is gone"):
                await anext(subscriber)
            archives[0].error = None
            found = [(await anext(subscriber)).payload["number"] for _ in range(EVENTS - 1)]
            assert found == list(range(1, EVENTS))


async def test_a_subscriber_of_a_broker_that_is_gone_is_told_that_and_not_that_it_cannot_be_read(archives):
    async with open_broker(configured(replay=TINY)) as broker:
        async with broker.subscribe(ACCOUNT) as subscriber:
            start = subscriber.cursor
        await broker.publish(ACCOUNT, [event(n) for n in range(EVENTS)])
        await until(lambda: broker.statistics().replay.events == 5)
        opened = broker.subscribe(ACCOUNT, since=start)
        subscriber = await opened.__aenter__()
    archives[0].error = GONE
    with pytest.raises(BrokerClosedError):
        await anext(subscriber)
    await opened.__aexit__(None, None, None)


async def test_a_wait_finds_what_came_before_memory_begins(archives):
    async with served_with_a_past() as (served, start):
        found = await served.broker.wait_for(ACCOUNT, ["test.*"], since=start)
        assert found.event.payload["number"] == 0
        again = await served.broker.wait_for(ACCOUNT, ["test.*"], since=found.cursor)
        assert again.event.payload["number"] == 1


async def test_a_wait_whose_past_is_not_read_in_time_does_not_go_on_ahead_of_it(archives, autojump_clock):
    async with open_broker(configured(replay=TINY)) as broker:
        async with broker.subscribe(ACCOUNT) as subscriber:
            start = subscriber.cursor
        await broker.publish(ACCOUNT, [event(n) for n in range(EVENTS)])
        await until(lambda: broker.statistics().replay.events == 5)
        archives[0].answering = trio.Event()
        with pytest.raises(RequestError, match="does not answer"):
            await broker.wait_for(ACCOUNT, ["test.*"], since=start, timeout_seconds=1)
        archives[0].answering.set()
        archives[0].answering, archives[0].free = trio.Event(), 1
        over = await broker.wait_for(ACCOUNT, ["test.*"], since=start, timeout_seconds=1)
        assert (over.event, over.cursor) == (None, start), "it began, and read nothing"


# --- with a log on disk ------------------------------------------------------


@pytest.fixture
def on_disk(tmp_path):
    return configured(replay=TINY, storage=StorageConfig(path=str(tmp_path / "broker.db"), min_free_bytes=0))


async def everything(served, query):
    async with connected(served.address, query) as client:
        assert client.ready["replay"]["recovered"]
        return await next_events(client, client.ready["replay"]["count"])


async def test_what_memory_has_dropped_is_read_from_disk_also_by_another_process(on_disk):
    async with served_with_a_past(on_disk) as (served, start):
        assert await everything(served, f"inbox_ids=*&since={start}") == list(range(EVENTS))
        assert await everything(served, "inbox_ids=in_1&since=1h") == list(range(EVENTS))
        assert await everything(served, "inbox_ids=in_2&since=1h") == []
        assert served.broker.statistics().past.events >= 2 * (EVENTS - 5)
    async with serving(on_disk) as served:
        assert await everything(served, f"inbox_ids=*&since={start}") == list(range(EVENTS))
        async with connected(served.address, "inbox_ids=in_2") as client:
            assert client.ready["replay_seconds"] == 86_400
            await client.say(action="subscribe", inbox_ids=["in_1"], since="1h")
            assert (await client.next())["result"]["replay"] == {"recovered": True, "count": EVENTS}
            assert await next_events(client, EVENTS) == list(range(EVENTS))


async def test_who_reads_too_late_for_memory_is_fed_from_disk_while_more_is_published(on_disk):
    async with (
        serving(on_disk) as served,
        connected(served.address, "inbox_ids=*", receive_buffer_bytes=4_096) as client,
    ):
        for n in range(0, 400, 10):
            await served.broker.publish(ACCOUNT, [event(n + i, size=4_000) for i in range(10)])
        assert not served.connection(client).session.follower.live
        found = await next_events(client, 100)
        await served.broker.publish(ACCOUNT, [event(400 + i, size=4_000) for i in range(100)])
        assert found + await next_events(client, 400) == list(range(500))
