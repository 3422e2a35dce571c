"""`open_broker` with a log on disk: what is promised of one in memory, and that a restart takes nothing away."""

import pytest
import trio
from clients import ACCOUNT
from msgspec import structs
from trio.testing import wait_all_tasks_blocked

from broker import (
    Config,
    ConfigError,
    Gap,
    NewEvent,
    ReplayConfig,
    RequestError,
    StorageConfig,
    StorageError,
    open_broker,
)

INBOX = "inbox_1"


@pytest.fixture
def config(tmp_path):
    return Config(storage=StorageConfig(path=str(tmp_path / "broker.db")))


def event(name, **fields):
    return NewEvent(type="x.y", payload={"n": name}, inbox_id=INBOX, event_id=name, **fields)


async def take(broker, since, count):
    with trio.fail_after(60):
        async with broker.subscribe(ACCOUNT, since=since) as subscriber:
            return [await anext(subscriber) for _ in range(count)]


async def test_a_subscriber_goes_on_after_a_restart_where_it_was(config):
    async with open_broker(config) as broker:
        first, *_ = await broker.publish(ACCOUNT, [event("e1"), event("e2")])
        seen = await take(broker, first.cursor, 1)
    async with open_broker(config) as broker:
        assert await take(broker, first.cursor, 1) == seen
        await broker.publish(ACCOUNT, event("e3"))
        assert [found.event_id for found in await take(broker, first.cursor, 2)] == ["e2", "e3"]


async def test_what_memory_does_not_hold_any_more_is_read_from_disk_before_a_restart_and_after_it(config):
    names = [f"e{number}" for number in range(1_000)]
    config = structs.replace(config, replay=ReplayConfig(max_events_per_account=10))
    async with open_broker(config) as broker:
        first, *_ = await broker.publish(ACCOUNT, [event("e"), *[event(name) for name in names]])
        assert [found.event_id for found in await take(broker, first.cursor, 1_000)] == names
    async with open_broker(config) as broker:
        await broker.publish(ACCOUNT, event("new"))
        assert [found.event_id for found in await take(broker, first.cursor, 1_001)] == [*names, "new"]
        assert [found.event_id for found in await take(broker, "1h", 1_002)] == ["e", *names, "new"]
        assert broker.statistics().hub.gaps == 0


async def test_an_event_that_was_stored_before_a_restart_is_a_duplicate_after_it(config):
    async with open_broker(config) as broker:
        (first,) = await broker.publish(ACCOUNT, event("e1"))
    async with open_broker(config) as broker:
        (again,) = await broker.publish(ACCOUNT, event("e1"))
        assert (again.cursor, again.duplicate) == (first.cursor, True)
        assert broker.statistics().duplicates == 1


async def test_many_publishers_are_told_in_the_order_of_the_log_and_share_commits(config):
    told = []

    async with open_broker(config) as broker:
        async with broker.subscribe(ACCOUNT) as subscriber:

            async def publish(number):
                (published,) = await broker.publish(ACCOUNT, event(f"e{number}"))
                told.append((published.cursor, published.event_id))

            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(publish, number)
            with trio.fail_after(60):
                got = [await anext(subscriber) for _ in range(200)]
        assert sorted(told) == [(found.cursor, found.event_id) for found in got]
        storage = broker.statistics().storage
        assert storage.works >= 200
        assert sum(storage.groups) < 100


async def test_a_publisher_that_leaves_while_its_event_is_committed_loses_only_the_answer(config):
    async with open_broker(config) as broker, broker.subscribe(ACCOUNT) as subscriber:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker.publish, ACCOUNT, event("e1"))
            await wait_all_tasks_blocked(0)
            nursery.cancel_scope.cancel()
        (published,) = await broker.publish(ACCOUNT, event("e1"))
        with trio.fail_after(60):
            assert (await anext(subscriber)).cursor == published.cursor


async def test_an_unknown_cursor_is_a_gap_and_then_all_that_is_left(config):
    async with open_broker(config) as broker:
        await broker.publish(ACCOUNT, event("e1"))
    async with open_broker(config) as broker:
        gap, first = await take(broker, "cnobody.1", 2)
        assert isinstance(gap, Gap)
        assert (gap.from_, gap.count, first.event_id) == (None, None, "e1")


async def test_while_the_disk_is_almost_full_subscribers_are_served_and_publishers_are_told_when_to_come_again(config):
    async with open_broker(config) as broker:
        (first,) = await broker.publish(ACCOUNT, [event("e1")])
        await broker.publish(ACCOUNT, [event("e2")])
    short = StorageConfig(path=config.storage.path, min_free_bytes=1 << 62)
    async with open_broker(Config(storage=short)) as broker:
        with pytest.raises(RequestError) as refused:
            await broker.publish(ACCOUNT, event("e3"))
        assert (refused.value.code, refused.value.retry_after_ms) == ("unavailable", 1_000)
        assert [found.event_id for found in await take(broker, first.cursor, 1)] == ["e2"]
        broker.require_ready()
        with pytest.raises(RequestError):
            broker.require_storing()
        assert broker.statistics().storage.short_of_room


async def test_a_file_that_is_no_log_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a log" * 100)
    with pytest.raises(StorageError, match=r"notes\.txt: it is not a broker's log"):
        async with open_broker(Config(storage=StorageConfig(path=str(path)))):
            pass


async def test_what_is_kept_on_disk_is_kept_for_as_long_as_the_window_at_least():
    with pytest.raises(ConfigError, match=r"`replay\.seconds`, 300 - at `\$\.storage\.keep_seconds`"):
        async with open_broker(Config(storage=StorageConfig(path="x.db", keep_seconds=10))):
            pass
