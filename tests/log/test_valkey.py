"""The engine of many nodes against real servers: brokers that share one, and what fails.

What every engine promises is in `test_engines`. In real time, since the server has a clock of its own: deadlines are
made short instead.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from logs import prepared
from valkeys import KINDS, Server, promote_stale, server

from broker import Broker, Config, EngineConfig, ReplayConfig, RequestError, open_broker
from broker.address import parse_address
from broker.errors import ConfigError
from broker.fanout.subscriber import Subscriber
from broker.log.engines.valkey import Names, appending, calls, link, scripts, tail
from broker.log.engines.valkey.engine import ValkeyEngine
from broker.log.engines.valkey.scripts import Script
from broker.log.engines.valkey.tail import Standing, Tail
from broker.protocol.messages import Gap

GUARD_SECONDS = 60


@pytest.fixture
def valkey():
    with server() as running:
        yield running


@pytest.fixture(params=KINDS)
def any_server(request):
    with server(request.param) as running:
        yield running


@asynccontextmanager
async def nodes(at: Server, number: int = 2, **settings) -> AsyncIterator[list[Broker]]:
    """Brokers that share a server, for no longer than a test may take."""
    replay = ReplayConfig(**settings.pop("replay", {}))
    config = Config(engine=EngineConfig(url=at.url, **settings), replay=replay)
    with trio.fail_after(GUARD_SECONDS):
        async with _opened(config, number) as opened:
            yield opened


@asynccontextmanager
async def _opened(config: Config, number: int) -> AsyncIterator[list[Broker]]:
    if not number:
        yield []
        return
    async with open_broker(config) as one, _opened(config, number - 1) as others:
        yield [one, *others]


def engine_of(broker: Broker) -> ValkeyEngine:
    engine = broker._engine
    assert isinstance(engine, ValkeyEngine)
    return engine


def events(*numbers: int, inbox: str = "i1", size: int = 0) -> list[dict]:
    text = "x" * size
    return [{"type": "x.y", "inbox_id": inbox, "event_id": f"e{n}", "payload": {"n": n, "text": text}} for n in numbers]


async def publish(broker: Broker, *numbers: int, **kinds) -> list[str]:
    return [published.cursor for published in await broker.publish("a", events(*numbers, **kinds))]


async def heard(subscriber: Subscriber, until: str) -> list[str | int | None]:
    """The ids of events and the counts of gaps, up to an id."""
    found: list[str | int | None] = []
    while not found or found[-1] != until:
        item = await anext(subscriber)
        found.append(item.count if isinstance(item, Gap) else item.event_id)
    return found


def ids(*numbers: int) -> list[str]:
    return [f"e{n}" for n in numbers]


async def until_ready(*brokers: Broker) -> None:
    for broker in brokers:
        await engine_of(broker).link.ready.wait()


async def until(true: Callable[[], bool]) -> None:
    """Until something is so of which nobody is told."""
    while not true():  # noqa: ASYNC110
        await trio.sleep(0.01)


async def until_lost(broker: Broker, losses: int) -> None:
    """Until a node has noticed so many losses of its link, and has another."""
    await until(lambda: engine_of(broker).link.losses >= losses)
    await until_ready(broker)


# --- many nodes are one ------------------------------------------------------


async def test_an_event_that_one_node_takes_in_reaches_who_is_connected_to_another(any_server):
    async with nodes(any_server) as [one, other], other.subscribe("a") as subscriber:
        await publish(one, 1, 2)
        await publish(other, 3)
        assert await heard(subscriber, "e3") == ids(1, 2, 3)


async def test_a_client_that_moves_from_node_to_node_with_its_cursor_sees_one_stream(any_server):
    found: list[str | int | None] = []
    async with nodes(any_server, 3) as brokers:
        async with brokers[0].subscribe("a") as subscriber:
            cursor = subscriber.cursor
        async with trio.open_nursery() as nursery:
            for start in (0, 100):
                nursery.start_soon(_publish_one_by_one, brokers[start // 100], range(start, start + 100))
            while len(found) < 200:
                broker = brokers[len(found) % 3]
                async with broker.subscribe("a", since=cursor) as subscriber:
                    assert subscriber.replay.recovered
                    found += await heard_some(subscriber, 7)
                    cursor = subscriber.cursor
    assert sorted(found) == sorted(ids(*range(200)))
    for start in (0, 100):
        assert [one for one in found if start <= int(one[1:]) < start + 100] == ids(*range(start, start + 100))


async def _publish_one_by_one(broker: Broker, numbers: range) -> None:
    for n in numbers:
        await publish(broker, n)


async def heard_some(subscriber: Subscriber, most: int) -> list[str | int | None]:
    """At least one, and at most so many, if they come at once."""
    found: list[str | int | None] = []
    with trio.move_on_after(1) as patience:
        while len(found) < most:
            item = await anext(subscriber)
            found.append(item.count if isinstance(item, Gap) else item.event_id)
            patience.deadline = trio.current_time() + 0.05
    return found


async def test_the_same_id_on_two_nodes_is_one_event(any_server):
    async with nodes(any_server) as [one, other]:
        [first] = await one.publish("a", events(1))
        [again] = await other.publish("a", events(1))
        [elsewhere] = await other.publish("b", events(1))
    assert (again.cursor, again.duplicate) == (first.cursor, True)
    assert not elsewhere.duplicate
    assert elsewhere.cursor.partition(".")[0] != first.cursor.partition(".")[0]


async def test_a_cursor_that_a_node_was_told_before_it_heard_of_the_event_is_good(valkey):
    async with nodes(valkey) as [one, other], other.subscribe("a"):
        engine_of(other).link._channels.clear()  # it hears nothing any more
        [cursor] = await publish(one, 1)
        await publish(one, 2)
        async with other.subscribe("a", since=cursor) as late:
            assert late.replay.recovered
            assert await heard(late, "e2") == ids(2)


async def test_an_event_is_the_same_text_whichever_node_tells_of_it(any_server):
    event = {"type": "x.y", "payload": {"text": "Grüße \U0001f600\u2028", "n": 1.50}, "event_id": "e1"}
    told = []
    async with nodes(any_server) as [one, other]:
        [published] = await one.publish("a", [event])
        for broker in (one, other):
            async with broker.subscribe("a", since="5m") as subscriber:
                told.append(await anext(subscriber))
    assert told[0] == told[1]
    assert told[0].cursor == published.cursor
    assert told[0].payload == event["payload"]


async def test_a_duration_is_answered_from_what_the_server_holds(valkey):
    async with nodes(valkey, 1) as [one]:
        await publish(one, *range(3_000))
        async with _opened(one.config, 1) as [other], other.subscribe("a", since="1m") as subscriber:
            assert (subscriber.replay.recovered, subscriber.replay.count) == (True, 3_000)
            assert await heard(subscriber, "e2999") == ids(*range(3_000))


async def test_a_cursor_that_is_none_gets_the_whole_window_after_a_gap(valkey):
    async with nodes(valkey, 1) as [one]:
        await publish(one, 1, 2)
        async with one.subscribe("a", since="cnone") as subscriber:
            assert await heard(subscriber, "e2") == [None, *ids(1, 2)]


async def test_gaps_are_counted_on_a_node_that_was_not_there(any_server):
    async with nodes(any_server, 1, replay={"max_events_per_account": 10}) as [one]:
        cursors = [cursor for n in range(30) for cursor in await publish(one, n, inbox=f"i{n % 2}")]
        async with _opened(one.config, 1) as [other]:
            async with other.subscribe("a", ["i1"], since=cursors[4]) as subscriber:
                assert await heard(subscriber, "e29") == [8, *ids(*range(21, 30, 2))]
            async with other.subscribe("a", since="5m") as subscriber:
                assert not subscriber.replay.recovered
                assert await heard(subscriber, "e29") == [20, *ids(*range(20, 30))]


async def test_what_is_larger_than_a_message_between_nodes_arrives_all_the_same(valkey):
    async with nodes(valkey) as [one, other], other.subscribe("a") as subscriber:
        await publish(one, *range(40), size=100_000)
        assert await heard(subscriber, "e39") == ids(*range(40))
        assert engine_of(other).tail.reads > 3  # a megabyte at a time


async def test_a_list_of_ten_thousand_is_stored_part_by_part_and_a_longer_one_refused(valkey):
    async with nodes(valkey) as [one, other], other.subscribe("a") as subscriber:
        await one.publish("a", [{"type": "x.y", "payload": {}, "event_id": f"e{n}"} for n in range(10_000)])
        assert len(await heard(subscriber, "e9999")) == 10_000
        assert engine_of(one).appending.calls >= 10_000 / 512
        one.intake._limits = type(one.config.limits)(max_events_per_request=20_000)
        with pytest.raises(RequestError, match="10,000") as refused:
            await one.publish("a", [{"type": "x.y", "payload": {}}] * 10_001)
    assert refused.value.code == "too_large"


async def test_an_account_that_nobody_listens_to_costs_a_node_nothing(valkey):
    async with nodes(valkey) as [one, other], other.subscribe("a"):
        await publish(one, 1)
        assert (len(engine_of(one).tail), len(engine_of(other).tail)) == (0, 1)
        assert one.statistics().replay.events == 0


async def test_an_account_that_nobody_needs_any_more_is_let_go_after_a_while(valkey, monkeypatch):
    monkeypatch.setattr(tail, "SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(tail, "LINGER_SECONDS", 0.05)
    async with nodes(valkey) as [one, other]:
        async with other.subscribe("a") as subscriber:
            [cursor] = await publish(one, 1)
            await heard(subscriber, "e1")
        engine = engine_of(other)
        await until(lambda: not len(engine.tail))
        assert other.statistics().replay.bytes == 0
        await publish(one, 2)
        async with other.subscribe("a", since=cursor) as subscriber:
            assert await heard(subscriber, "e2") == ids(2)


async def test_an_account_is_followed_while_somebody_needs_it_and_for_a_while_after_that(valkey, monkeypatch):
    monkeypatch.setattr(tail, "SWEEP_SECONDS", 0.01)
    async with nodes(valkey) as [one, other]:
        followed = engine_of(other).tail
        async with other.subscribe("a") as subscriber:
            monkeypatch.setattr(tail, "LINGER_SECONDS", 0.0)
            async with other.subscribe("b"):
                pass
            await until(lambda: followed.held("b") is None)  # there was a sweep
            await publish(one, 1)
            assert await heard(subscriber, "e1") == ids(1)
            assert len(followed) == 1
            monkeypatch.setattr(tail, "LINGER_SECONDS", 60.0)
        await trio.sleep(0.1)  # some sweeps
        assert followed.held("a") is not None


async def test_two_databases_of_one_server_have_nothing_to_do_with_each_other(valkey):
    async with nodes(valkey, 1) as [one], one.subscribe("a") as subscriber:
        config = Config(engine=EngineConfig(url=f"{valkey.url}?db=1"))
        async with open_broker(config) as stranger:
            await publish(stranger, 1)
            await publish(one, 2)
            assert await heard(subscriber, "e2") == ids(2)
            assert engine_of(one).tail.reads == 0  # it heard nothing of the other's


# --- what a node did not hear ------------------------------------------------


async def test_a_message_that_is_lost_is_read_when_the_next_one_comes(valkey):
    async with nodes(valkey) as [one, other], other.subscribe("a") as subscriber:
        of_other = engine_of(other).link
        [(channel, hear)] = of_other._channels.items()
        of_other._channels[channel] = lambda message: None
        await publish(one, 1)
        await engine_of(other).link._hello()  # behind the message
        of_other._channels[channel] = hear
        await publish(one, 2)
        assert await heard(subscriber, "e2") == ids(1, 2)


async def test_the_last_message_before_silence_is_found_by_looking_at_the_heads(valkey, monkeypatch):
    monkeypatch.setattr(tail, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(tail, "LOOK_SECONDS", 0.05)
    async with nodes(valkey) as [one, other], other.subscribe("a") as subscriber:
        of_other = engine_of(other).link
        [channel] = of_other._channels
        of_other._channels[channel] = lambda message: None
        await publish(one, 1)
        assert await heard(subscriber, "e1") == ids(1)


async def test_what_arrives_while_it_is_not_known_where_an_account_is_is_not_lost(valkey):
    """The message comes before the answer that says where the head is: nothing tells of it again."""
    async with nodes(valkey) as [one, other], other.subscribe("a") as subscriber:
        await publish(one, 1)
        await heard(subscriber, "e1")
        of_other = engine_of(other)
        held = of_other.tail.held("a")
        run = of_other.link.run

        async def slow(script, *rest):
            answer = await run(script, *rest)
            if script is tail.HEADS:
                await publish(one, 2)
                await of_other.link._hello()  # by now the message is here
            return answer

        of_other.link.run = slow
        held.stand(Standing.ASKED)
        await of_other.tail.greet()
        of_other.link.run = run
        assert await heard(subscriber, "e2") == ids(2)


async def test_who_is_live_is_told_how_many_a_node_missed_that_was_behind_the_window(any_server):
    async with nodes(any_server, replay={"max_events_per_account": 10}) as [one, other]:  # noqa: SIM117
        async with other.subscribe("a") as every, other.subscribe("a", ["i1"]) as only:
            await publish(one, 0)
            assert [await heard(every, "e0"), await heard(only, "e0")] == [["e0"], ["e0"]]
            channels = engine_of(other).link._channels
            [(channel, hear)] = channels.items()
            channels[channel] = lambda message: None
            for n in range(1, 40):
                await publish(one, n, inbox=f"i{n % 3}")
            channels[channel] = hear
            await publish(one, 40)
            said = await heard(every, "e40")
            assert [sum(one for one in said if isinstance(one, int)), said[-10:]] == [30, ids(*range(31, 41))]
            said = await heard(only, "e40")
            assert sum(one for one in said if isinstance(one, int)) == sum(n % 3 == 1 for n in range(1, 31))


async def test_what_is_no_event_in_an_accounts_channel_harms_nobody(valkey, no_errors):
    async with nodes(valkey) as [one, other], other.subscribe("a") as subscriber:
        names = engine_of(one).link.names
        for words in ("", "nonsense", "1 2 3 4 5 6", "h", "9" * 400 + " 1 e i x {}"):
            valkey.command("PUBLISH", names.events("a"), words)
            valkey.command("PUBLISH", names.node(engine_of(other).link.node), words)
        await publish(one, 1)
        assert await heard(subscriber, "e1") == ids(1)


# --- what fails --------------------------------------------------------------


async def test_a_link_that_is_cut_costs_nobody_anything(any_server):
    async with nodes(any_server) as [one, other], other.subscribe("a") as subscriber:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_publish_one_by_one, one, range(300))
            for losses in range(1, 4):
                any_server.command("CLIENT", "KILL", "TYPE", "pubsub")
                await until_lost(other, losses)
        assert await heard(subscriber, "e299") == ids(*range(300))


async def test_what_was_published_while_a_link_was_cut_is_told_when_it_is_back_though_nothing_follows(valkey):
    async with nodes(valkey) as [one, other], other.subscribe("a") as subscriber:
        await publish(one, 1)
        assert await heard(subscriber, "e1") == ids(1)
        of_other = engine_of(other).link
        address, of_other._address = of_other._address, parse_address("unix:///nowhere")
        of_other.drop("it is cut")
        await until_away(other)
        await publish(one, 2)
        of_other._address = address
        assert await heard(subscriber, "e2") == ids(2)


async def test_a_publish_waits_for_a_server_that_comes_back_and_everybody_is_told_of_the_gap(any_server):
    async with nodes(any_server) as [one, other], other.subscribe("a") as live:
        [cursor] = await publish(one, 1)
        assert await heard(live, "e1") == ids(1)
        any_server.kill()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, one, 2)
            await until_away(one, other)
            any_server.start()
        await publish(one, 3)
        assert await heard(live, "e3") in ([None, *ids(2, 3)], [None, *ids(3)])
        async with other.subscribe("a", since=cursor) as late:
            gap = await anext(late)
            assert (gap.from_, gap.count) == (None, None)
            assert await heard(late, "e3") == ids(2, 3)


async def until_away(*brokers: Broker) -> None:
    for broker in brokers:
        await until(lambda broker=broker: engine_of(broker).away)


async def test_while_the_server_is_away_a_publish_is_unavailable_after_its_deadline_and_nobody_can_open(
    valkey, monkeypatch
):
    async with nodes(valkey, 1) as [one]:
        with monkeypatch.context() as soon:
            soon.setattr(appending, "DEADLINE_SECONDS", 0.3)
            soon.setattr(tail, "DEADLINE_SECONDS", 0.3)
            valkey.kill()
            for attempt in (publish(one, 1), publish(one, 2)):
                with pytest.raises(RequestError) as refused:
                    await attempt
                assert (refused.value.code, refused.value.retry_after_ms) == ("unavailable", 1_000)
            with pytest.raises(RequestError) as refused:
                one.require_ready()
            assert refused.value.code == "unavailable"
            with pytest.raises(RequestError):
                async with one.subscribe("a"):
                    pass
        valkey.start()
        await until_ready(one)
        one.require_ready()
        async with one.subscribe("a", since="5m") as subscriber:
            await publish(one, 3)
            found = await heard(subscriber, "e3")
            assert not {"e1", "e2"} & set(found), "what was refused is not stored behind its publisher's back"


async def until_begun(broker: Broker, publishes: int) -> None:
    await until(lambda: engine_of(broker).appending.under_way == publishes)


async def test_who_is_cancelled_takes_back_what_was_not_sent_and_nothing_else(valkey):
    async with nodes(valkey) as [one, other], other.subscribe("a") as subscriber, trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def publish_until_cancelled() -> None:
            with scope:
                await publish(one, 2)

        valkey.kill()
        await until_away(one, other)
        nursery.start_soon(publish, one, 1)
        await until_begun(one, 1)
        nursery.start_soon(publish_until_cancelled)
        await until_begun(one, 2)
        nursery.start_soon(publish, one, 3)
        await until_begun(one, 3)
        scope.cancel()
        await until_begun(one, 2)
        valkey.start()
        assert (await heard(subscriber, "e3"))[-2:] in (ids(1, 3), [None, *ids(3)])
        [again] = await other.publish("a", events(2))
        assert not again.duplicate


async def test_what_is_taken_back_in_the_step_in_which_it_was_begun_ends_nobody(valkey):
    async with nodes(valkey, 1) as [one], one.subscribe("a") as subscriber:
        outcomes = []
        take_back = engine_of(one).begin({"a": [prepared("e1")]}, outcomes.append)
        take_back()
        assert [outcome.code for outcome in outcomes] == ["unavailable"]
        await trio.testing.wait_all_tasks_blocked()
        await publish(one, 2)
        assert await heard(subscriber, "e2") == ids(2)


async def test_who_is_cancelled_when_it_was_sent_loses_only_the_answer(valkey):
    async with nodes(valkey) as [one, other], other.subscribe("a") as subscriber, trio.open_nursery() as nursery:
        scope, left = trio.CancelScope(), trio.Event()

        async def publish_until_cancelled() -> None:
            with scope:
                await publish(one, 1)
            left.set()

        valkey.freeze()
        nursery.start_soon(publish_until_cancelled)
        await until(lambda: any(publish.sent for publish in engine_of(one).appending._begun))
        scope.cancel()
        await left.wait()
        assert engine_of(one).appending.under_way == 1
        valkey.thaw()
        assert await heard(subscriber, "e1") == ids(1)
        await until_begun(one, 0)


async def test_what_waits_for_a_server_that_is_away_has_a_budget(valkey, monkeypatch):
    monkeypatch.setattr(appending, "MAX_WAITING_BYTES", 5_000)
    async with nodes(valkey, 1) as [one]:
        await publish(one, 0, size=4_000)
        valkey.kill()
        await until_away(one)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, one, 1)
            await until_begun(one, 1)
            with pytest.raises(RequestError, match="behind") as refused:
                await publish(one, 2, size=5_000)
            assert refused.value.code == "unavailable"
            nursery.start_soon(partial(publish, one, 3, size=4_000))
            await until_begun(one, 2)
            valkey.start()
        await publish(one, 4, size=4_000)


async def test_a_frozen_server_is_away_within_seconds_and_what_it_took_is_stored_once(valkey, monkeypatch):
    monkeypatch.setattr(link, "CALL_SECONDS", 0.3)
    async with nodes(valkey) as [one, other], other.subscribe("a") as subscriber:
        await publish(one, 1)
        valkey.freeze()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, one, 2)
            await until_away(one, other)
            await trio.sleep(0.5)
            valkey.thaw()
        assert await heard(subscriber, "e2") == ids(1, 2)
        [again] = await other.publish("a", events(2))
        assert again.duplicate
        await publish(one, 3)
        assert await heard(subscriber, "e3") == ids(3)


@pytest.mark.parametrize(
    ("others", "losing"), [(1, "APPEND"), (600, "APPEND"), (600, "FINISH")], ids=["short", "long", "last of long"]
)
async def test_an_own_repetition_of_a_lost_call_is_no_duplicate_but_the_same_id_twice_in_a_list_is(
    valkey, others, losing
):
    async with nodes(valkey, 1) as [one]:
        of_one = engine_of(one).link
        run, lost = of_one.run, []

        async def lose_the_answer(script, *rest):
            answer = await run(script, *rest)
            if script is getattr(calls, losing) and not lost:
                lost.append(answer)
                of_one.drop("its answer is lost")
                raise link.LinkLostError("lost")
            return answer

        of_one.run = lose_the_answer
        outcome = await one.publish("a", events(*range(1, 1 + others), 1))
        assert lost
        assert [published.duplicate for published in outcome] == [False] * others + [True]
        of_one.run = run
        assert [published.duplicate for published in await one.publish("a", events(1))] == [True]


@pytest.mark.parametrize("loss", ["FLUSHALL", "restarted empty"])
async def test_a_server_that_lost_everything_has_another_history_and_everybody_hears_of_it(any_server, loss):
    async with nodes(any_server) as [one, other], one.subscribe("a") as on_one, other.subscribe("a") as on_other:
        [cursor] = await publish(one, 1)
        for subscriber in (on_one, on_other):
            await heard(subscriber, "e1")
        if loss == "FLUSHALL":
            any_server.command("FLUSHALL")
        else:
            any_server.restart()
        await publish(one, 2)
        for subscriber in (on_one, on_other):
            assert await heard(subscriber, "e2") in ([None, *ids(2)], [None])
        async with other.subscribe("a", since=cursor) as late:
            assert not late.replay.recovered
        [first] = await one.publish("a", events(1))
        assert not first.duplicate


async def test_a_stale_replica_that_takes_its_place_has_another_history(any_server):
    """What the old server answered last never reached it: a node that went on as before would lose that silently."""
    with server("valkey" if "valkey" in any_server._binary else "redis") as replica:
        replica.command("REPLICAOF", "127.0.0.1", "1")
        follow(replica, any_server)
        async with nodes(any_server) as [one, other], other.subscribe("a") as subscriber:
            await publish(one, 1)
            await heard(subscriber, "e1")
            await caught_up(replica, any_server)
            replica.command("REPLICAOF", "127.0.0.1", "1")
            await publish(one, *range(2, 30))
            await heard(subscriber, "e29")
            overtaken = trio.Event()  # by then the new server's positions are beyond what the other node has seen
            engine_of(other).link.greetings.insert(0, overtaken.wait)
            promote_stale(any_server, replica)
            any_server._process, replica._process = replica._process, None
            for n in range(30, 60):
                await publish(one, n)
            overtaken.set()
            found = await heard(subscriber, "e59")
            assert found[0] is None
            assert found[1:] == ids(*range(60 - len(found) + 1, 60))
            assert len(found) > 28


def follow(replica: Server, primary: Server) -> None:
    replica.command("REPLICAOF", "127.0.0.1", port_of(primary))


def port_of(at: Server) -> int:
    """Let a server listen at a port, too."""
    if not at.port:
        from processes import free_port

        at.port = free_port()
        assert at.command("CONFIG", "SET", "port", at.port) == "OK"
    return at.port


async def caught_up(replica: Server, primary: Server) -> None:
    while True:
        told, had = replica.command("INFO", "replication"), primary.command("INFO", "replication")
        offset = next(line for line in had.splitlines() if line.startswith("master_repl_offset"))
        if "master_link_status:up" in told and offset in told:
            return
        await trio.sleep(0.02)


async def test_a_first_replica_is_no_other_history(any_server):
    """It gives the server another replication id, though nothing is lost."""
    with server("valkey" if "valkey" in any_server._binary else "redis") as replica:
        async with nodes(any_server) as [one, other], other.subscribe("a") as subscriber:
            await publish(one, 1)
            follow(replica, any_server)
            await until(lambda: "master_link_status:up" in replica.command("INFO", "replication"))
            await publish(one, 2)
            assert await heard(subscriber, "e2") == ids(1, 2)


async def test_a_publish_is_told_when_a_replica_has_it_and_refused_if_none_does(valkey):
    with server() as replica:
        async with nodes(valkey, 1, wait_replicas=1) as [one]:
            with pytest.raises(RequestError, match="replicas") as refused:
                await publish(one, 1)
            assert refused.value.code == "unavailable"
            follow(replica, valkey)
            await until(lambda: "master_link_status:up" in replica.command("INFO", "replication"))
            [again] = await one.publish("a", events(1))
            assert again.duplicate  # it was stored all the same
            await publish(one, 2)
            key = engine_of(one).link.names.of_account("s", "a")
            assert replica.command("LLEN", key) == 2


async def test_a_full_server_stores_nothing_and_whoever_is_connected_stays(any_server, caplog):
    async with nodes(any_server) as [one, other], other.subscribe("a") as subscriber:
        await publish(one, 1)
        await heard(subscriber, "e1")
        any_server.command("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(RequestError) as refused:
            await publish(one, 2)
        assert refused.value.code == "unavailable"
        await trio.sleep(1.2)  # a probe
        assert not engine_of(one).away
        any_server.command("CONFIG", "SET", "maxmemory", 0)
        await publish(one, 3)
        assert await heard(subscriber, "e3") == ids(3)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert said
    assert all("OOM" in line for line in said)


async def test_a_server_that_forgets_keys_by_itself_is_not_used(any_server, caplog):
    any_server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.log.engines.valkey.engine.START_SECONDS", 0.3)
        async with nodes(any_server, 1) as [one]:
            assert engine_of(one).away
            await until(lambda: caplog.records)
            [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
            assert "maxmemory-policy noeviction" in line
            any_server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
            await until_ready(one)
            await publish(one, 1)


async def test_a_server_that_brokers_of_another_version_use_is_not_used(any_server, caplog):
    any_server.command("HSET", Names(0).generation, "format", "0")
    async with nodes(any_server, 1) as [one]:
        await until(lambda: "another version" in caplog.text)
        assert engine_of(one).away
        any_server.command("FLUSHDB")
        await publish(one, 1)


async def test_no_password_stands_in_the_log(valkey, caplog):
    caplog.set_level(logging.DEBUG)
    valkey.command("CONFIG", "SET", "requirepass", "hunter2")
    right, wrong = (valkey.url.replace("unix://", f"unix://:{password}@") for password in ("hunter2", "wrong2"))
    async with open_broker(Config(engine=EngineConfig(url=right))) as one:
        assert not engine_of(one).away
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.log.engines.valkey.engine.START_SECONDS", 0.5)
        async with open_broker(Config(engine=EngineConfig(url=wrong))) as one:
            assert engine_of(one).away
    assert "hunter2" not in caplog.text
    assert "wrong2" not in caplog.text


async def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "coredis", None)
    monkeypatch.delitem(sys.modules, "broker.log.engines.valkey.engine", raising=False)
    monkeypatch.delitem(sys.modules, "broker.log.engines.valkey.link", raising=False)
    with pytest.raises(ConfigError, match=r"daimon-broker\[cluster\]"):
        async with open_broker(Config(engine=EngineConfig(url="redis://127.0.0.1"))):
            pass


async def test_a_message_to_a_node_reaches_it_and_no_other(valkey):
    async with nodes(valkey) as [one, other]:
        heard_by_one, arrived = [], trio.Event()
        wires = [engine_of(broker).wire for broker in (one, other)]
        wires[0].follow(lambda message: (heard_by_one.append(message), arrived.set()), lambda: None)
        wires[1].follow(lambda message: pytest.fail("not for this node"), lambda: None)
        await wires[1].tell(wires[0].node, b'["hello"]')
        await arrived.wait()
        assert valkey.command("EXISTS", f"{wires[0].leases}{wires[0].node}") == 1
    assert heard_by_one == [b'["hello"]']


async def test_who_stands_on_a_nodes_wire_runs_scripts_of_his_own_and_hears_when_it_is_back(valkey):
    async with nodes(valkey, 1) as [one]:
        wire, renewed = engine_of(one).wire, trio.Event()
        wire.follow(lambda message: None, renewed.set)
        key = wire.key("k", "a")
        for n in (1, 2):
            assert await wire.call("return redis.call('INCR', KEYS[1])", [key], []) == n
        valkey.kill()
        await until_away(one)
        with pytest.raises(RequestError) as refused:
            await wire.call("return 1", [key], [])
        assert refused.value.code == "unavailable"
        with pytest.raises(RequestError):
            await wire.tell(wire.node, b"x")
        valkey.start()
        await renewed.wait()
        assert await wire.call("return redis.call('INCR', KEYS[1])", [key], []) == 1


async def test_who_is_connected_to_a_quiet_account_hears_soon_that_the_server_lost_everything(valkey):
    async with nodes(valkey, 1) as [one], one.subscribe("a") as subscriber:
        valkey.command("FLUSHALL")
        gap = await anext(subscriber)
        assert (gap.count, isinstance(gap, Gap)) == (None, True)


async def test_what_waited_for_the_server_goes_together(valkey):
    async with nodes(valkey, 1) as [one], trio.open_nursery() as nursery:
        await publish(one, 0)
        valkey.kill()
        await until_away(one)
        calls = engine_of(one).appending.calls
        for n in range(60):
            nursery.start_soon(one.publish, f"acct_{n}", events(n))
        await until_begun(one, 60)
        valkey.start()
        await until_begun(one, 0)
        assert engine_of(one).appending.calls == calls + 1


async def test_publishes_of_many_go_together(valkey):
    """Those that come while a call is under way: with the first one, that is held here, it takes nine for 500."""
    async with nodes(valkey, 1) as [one], trio.open_nursery() as nursery:
        of_one, all_began = engine_of(one).link, trio.Event()
        run = of_one.run

        async def run_when_all_began(script, keys, arguments):
            await all_began.wait()
            return await run(script, keys, arguments)

        of_one.run = run_when_all_began
        for n in range(500):
            nursery.start_soon(one.publish, f"acct_{n % 50}", events(n))
        await until_begun(one, 500)
        all_began.set()
        await until_begun(one, 0)
        assert engine_of(one).appending.calls <= 1 + -(-499 // 64)


async def test_an_account_with_long_lists_keeps_no_other_waiting(valkey):
    async with nodes(valkey, 1) as [one]:
        order: list[str] = []

        async def publish_and_note(account_id: str, number: int) -> None:
            await one.publish(account_id, [{"type": "x.y", "payload": {}}] * number)
            order.append(account_id)

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(publish_and_note, "greedy", 3_000)
            await until(lambda: bool(order))
            nursery.start_soon(publish_and_note, "modest", 1)
    assert "modest" in order[:-1]


async def test_the_events_of_a_list_are_few_words_of_a_call(valkey):
    """Each word is taken apart by itself here, in one step, and by the server's one thread."""
    async with nodes(valkey, 1) as [one]:
        of_one = engine_of(one).link
        run, words = of_one.run, []

        async def count(script, keys, arguments):
            words.append(len(arguments))
            return await run(script, keys, arguments)

        of_one.run = count
        await one.publish("a", events(*range(5_000)))
        assert max(words) < 100


async def test_who_comes_while_a_long_list_is_written_out_is_stored_beside_it_but_no_other_of_its_accounts(valkey):
    async with nodes(valkey, 1) as [one]:
        await publish(one, 0)
        begin, order = engine_of(one).appending.begin, []
        begin(
            {"greedy": [prepared(f"e{n}") for n in range(9_000)], "too": [prepared("e1")]},
            lambda _: order.append("long"),
        )
        begin({"too": [prepared("e2")]}, lambda _: order.append("after it"))
        await trio.lowlevel.checkpoint()
        begin({"modest": [prepared("e1")]}, lambda _: order.append("beside it"))
        await until_begun(one, 0)
        assert order == ["beside it", "long", "after it"]


# --- long lists --------------------------------------------------------------


def long_list(first: int = 0, number: int = 1_500) -> list[dict]:
    return [{"type": "x.y", "event_id": f"l{n}", "payload": {}} for n in range(first, first + number)]


async def publish_for_many(broker: Broker, account_ids: list[str], first: int = 0, number: int = 1_500) -> Any:
    """Publish a list of which each account gets every so-manieth event; return what became of it."""
    of_each = [range(first + n, first + number, len(account_ids)) for n in range(len(account_ids))]
    outcome: list[Any] = []
    told = trio.Event()

    def done(said: Any) -> None:
        outcome.append(said)
        told.set()

    by_account = {name: [prepared(f"l{n}") for n in some] for name, some in zip(account_ids, of_each, strict=True)}
    engine_of(broker).begin(by_account, done)
    await told.wait()
    return outcome[0]


class Halted:
    """Lets a node's calls of a script wait from the one of a number on, until it may go on."""

    def __init__(self, broker: Broker, script: str, number: int = 0) -> None:
        self.script = getattr(calls, script)
        self.here, self.may_go_on = trio.Event(), trio.Event()
        self._link = engine_of(broker).link
        self._run = self._link.run
        self._left = number

    async def _wait_with(self, script, keys, arguments):
        if script is self.script:
            self._left -= 1
            if self._left < 0:
                self.here.set()
                await self.may_go_on.wait()
        return await self._run(script, keys, arguments)

    def __enter__(self) -> "Halted":
        self._link.run = self._wait_with  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self.may_go_on.set()
        self._link.run = self._run  # type: ignore[method-assign]


async def test_while_a_list_is_written_others_are_stored_and_nobody_sees_any_of_it_until_all_is_there(any_server):
    async with nodes(any_server) as [one, other], other.subscribe("a") as on_a, other.subscribe("b") as on_b:
        await publish(one, 1)
        async with trio.open_nursery() as nursery:
            with Halted(one, "FINISH") as halted:
                nursery.start_soon(publish_for_many, one, ["b", "a"])
                await halted.here.wait()
                await other.publish("c", events(1))
                await one.publish("c", events(2))
                nursery.start_soon(publish, other, 2)
                nursery.start_soon(publish, one, 3)
                await until_begun(other, 1)
                async with one.subscribe("a", since="1m") as late:
                    assert await heard(late, "e1") == [None, "e1"] or late.replay.recovered
                assert await heard(on_a, "e1") == ids(1)
        found = await heard(on_a, "l1499")
        assert [event_id for event_id in found if event_id not in ids(2, 3)] == [f"l{n}" for n in range(1, 1_500, 2)]
        assert await heard(on_b, "l1498") == [f"l{n}" for n in range(0, 1_500, 2)]
        [second, third] = await other.publish("a", events(2, 3))
        assert second.duplicate
        assert third.duplicate


async def test_a_list_whose_node_dies_in_the_middle_was_never_there(any_server, monkeypatch):
    monkeypatch.setattr(calls, "LIST_MS", 300)
    async with nodes(any_server, 1) as [other], other.subscribe("a") as subscriber:
        async with nodes(any_server, 1) as [one], trio.open_nursery() as nursery:
            halted = Halted(one, "APPEND", 2).__enter__()
            nursery.start_soon(one.publish, "a", long_list())
            await halted.here.wait()
            nursery.cancel_scope.cancel()
        await publish(other, 1)
        assert await heard(subscriber, "e1") == ids(1)
        names = engine_of(other).link.names
        assert any_server.command("LLEN", names.of_account("s", "a")) == 1
        assert {published.duplicate for published in await other.publish("a", long_list())} == {False}


async def test_two_nodes_whose_lists_are_for_the_same_accounts_in_another_order_wait_for_each_other(valkey):
    accounts = [f"acct_{n}" for n in range(8)]
    async with nodes(valkey) as [one, other]:
        outcomes: list[Any] = []

        async def publish_all(broker: Broker, named: list[str], first: int) -> None:
            outcomes.append(await publish_for_many(broker, named, first, 1_600))

        async with trio.open_nursery() as nursery:
            for turn in range(3):
                nursery.start_soon(publish_all, one, accounts, 10_000 * turn)
                nursery.start_soon(publish_all, other, accounts[::-1], 10_000 * turn + 5_000)
        assert [sum(map(len, outcome.values())) for outcome in outcomes] == [1_600] * 6
        names = engine_of(one).link.names
        assert [valkey.command("LLEN", names.of_account("s", name)) for name in accounts] == [1_200] * 8


async def test_a_list_that_lost_its_place_is_stored_anew_and_once(valkey):
    async with nodes(valkey) as [one, other], other.subscribe("a") as subscriber:
        async with trio.open_nursery() as nursery:
            with Halted(one, "FINISH") as halted:
                nursery.start_soon(one.publish, "a", long_list())
                await halted.here.wait()
                for key in valkey.command("KEYS", "*u:*"):
                    valkey.command("DEL", key)
                await publish(other, 1)
        assert await heard(subscriber, "l1499") == ["e1", *(f"l{n}" for n in range(1_500))]


async def test_a_list_that_a_full_server_refuses_in_its_middle_leaves_nothing(any_server, caplog):
    async with nodes(any_server) as [one, other], other.subscribe("a") as subscriber:
        with Halted(one, "APPEND", 2) as halted:
            async with trio.open_nursery() as nursery:

                async def be_refused() -> None:
                    with pytest.raises(RequestError) as refused:
                        await one.publish("a", long_list())
                    assert refused.value.code == "unavailable"

                nursery.start_soon(be_refused)
                await halted.here.wait()
                any_server.command("CONFIG", "SET", "maxmemory", 1)
                halted.may_go_on.set()
        names = engine_of(one).link.names
        assert any_server.command("LLEN", names.of_account("s", "a")) == 0
        any_server.command("CONFIG", "SET", "maxmemory", 0)
        await publish(one, 1)
        assert await heard(subscriber, "e1") == ids(1)


async def test_a_list_takes_no_more_room_than_a_window_may_when_it_is_over(valkey):
    replay = {"max_events_per_account": 1_000}
    async with nodes(valkey, 1, replay=replay) as [one]:
        await publish(one, *range(900))
        await one.publish("a", long_list(number=600))
        names = engine_of(one).link.names
        await until(lambda: valkey.command("LLEN", names.of_account("s", "a")) == 1_000)
        assert valkey.command("HLEN", names.of_account("d", "a")) == 1_000 + len("yot")


async def test_positions_of_sixteen_digits_are_exact(any_server):
    async with nodes(any_server, 1) as [one]:
        cursors = await publish(one, *range(2_000))
    positions = [int(cursor.partition(".")[2]) for cursor in cursors]
    assert len(str(positions[0])) == 16
    assert positions == list(range(positions[0], positions[0] + 2_000))


async def test_another_history_begins_after_all_that_a_node_has_seen_though_the_servers_clock_is_behind(valkey):
    async with nodes(valkey) as [one, other]:
        await publish(one, 1)
        names = engine_of(one).link.names
        far = int(valkey.command("HGET", names.of_account("m", "a"), "n")) + 10**12
        valkey.command("FLUSHALL")
        valkey.command("HSET", names.of_account("m", "a"), "n", far)  # as a server would have it whose clock was ahead
        await until_lost(one, 1)
        async with other.subscribe("a") as subscriber:
            await publish(one, 2)
            assert await heard(subscriber, "e2") == ids(2)
            valkey.command("FLUSHALL")
            await publish(one, 3)
            gap = await anext(subscriber)
            assert (isinstance(gap, Gap), gap.count) == (True, None)
            await publish(one, 4)
            await publish(one, 5)
            found = await heard(subscriber, "e5")
            assert found in (ids(3, 4, 5), ids(4, 5))


# --- mistakes that break them ------------------------------------------------


def without_fence(patch: pytest.MonkeyPatch) -> None:
    """Go by what stands in the database, whichever server has it."""
    blind = scripts.PRELUDE.replace("known[2] == replid", "known[2]")
    for module, name in ((link, "HELLO"), (calls, "APPEND"), (calls, "FINISH"), (tail, "HEADS")):
        text = getattr(module, name).text
        assert scripts.PRELUDE in text
        patch.setattr(module, name, Script(text.replace(scripts.PRELUDE, blind)))


def without_a_note_of_what_arrives_too_early(patch: pytest.MonkeyPatch) -> None:
    arrived = Tail._arrived

    def forgetful(self, held, message):
        if held.standing is Standing.HERE:
            arrived(self, held, message)

    patch.setattr(Tail, "_arrived", forgetful)


def without_a_floor(patch: pytest.MonkeyPatch) -> None:
    """Begin another history wherever the server's clock is."""
    restart = Tail._restart

    def careless(self, held, position):
        known, held.known = held.known, trio.Event()
        restart(self, held, position)
        held.known = known

    patch.setattr(Tail, "_restart", careless)
    text = tail.HEADS.text
    assert "local floor = tonumber(ARGV[2 + i])" in text
    patch.setattr(tail, "HEADS", Script(text.replace("tonumber(ARGV[2 + i])", "0")))


@pytest.mark.parametrize(
    ("mistake", "promise"),
    [
        (without_fence, test_a_stale_replica_that_takes_its_place_has_another_history),
        (
            without_a_note_of_what_arrives_too_early,
            test_what_arrives_while_it_is_not_known_where_an_account_is_is_not_lost,
        ),
        (
            without_a_floor,
            test_another_history_begins_after_all_that_a_node_has_seen_though_the_servers_clock_is_behind,
        ),
    ],
)
async def test_a_mistake_breaks_a_promise(monkeypatch, valkey, mistake, promise):
    mistake(monkeypatch)
    monkeypatch.setitem(globals(), "GUARD_SECONDS", 4)
    with pytest.raises((AssertionError, trio.TooSlowError, BaseExceptionGroup)):
        await promise(valkey)
