"""Connections that are lost, at the worst of times."""

from collections.abc import Callable
from itertools import pairwise

import trio

from broker import LimitsConfig, ReplayConfig

from ..brokers import INBOX, OTHER_INBOX
from ..expecting import expect, require
from ..proxy import Cut, Link, Reset, Through
from ..stage import Stage, scene
from ..wire import WireFrame, saying


@scene()
async def drop_mid_event(stage: Stage) -> None:
    """A connection cut in the middle of a frame: the event comes whole after the reconnect, once."""

    def rule(link: Link, frame: WireFrame) -> bytes | Cut:
        in_it = link.number == 1 and frame.said.get("event_id") == "evt_2"
        return Cut(frame.wire[: len(frame.wire) // 2]) if in_it else frame.wire

    stage.proxy.rule = rule
    driver = await stage.connected()
    await stage.publish(1)
    await driver.until("handled")
    await stage.publish(2, 3)
    await driver.until("connected", 2)
    await stage.publish(4)
    await driver.until("handled", event_id="evt_4")
    await driver.close()
    expect("events", driver.events, ["evt_1", "evt_2", "evt_3", "evt_4"])
    expect("gaps", driver.on("gap"), [])
    require("it said that it was disconnected", driver.on("disconnected"))


@scene()
async def drop_before_first(stage: Stage) -> None:
    """Cut after the 101 and before the first frame: nothing is missed."""

    def rule(link: Link, frame: WireFrame) -> bytes | Cut:
        return Cut() if link.number in (2, 3) else frame.wire

    stage.proxy.rule = rule
    driver = await stage.connected()
    await stage.publish(1)
    await driver.until("handled")
    stage.proxy.links[0].cut()
    await stage.publish(2)
    await driver.until("connected", 2)
    await stage.publish(3)
    await driver.until("handled", event_id="evt_3")
    await driver.close()
    expect("events", driver.events, ["evt_1", "evt_2", "evt_3"])
    expect("gaps", driver.on("gap"), [])
    require("a connection is open only when its first frame was read", len(driver.on("connected")) == 2)


@scene()
async def drop_while_handling(stage: Stage) -> None:
    """Cut while a handler runs: what it has not returned from does not come twice, and the cursor is behind it."""
    driver = await stage.connected(cursor_file=stage.cursor_file)
    await driver.handle(milliseconds=300)
    await stage.publish(1, 2)
    await driver.until("event", event_id="evt_1")
    stage.proxy.links[0].cut()
    await driver.until("connected", 2)
    await driver.until("handled", event_id="evt_2")
    expect("events", driver.events, ["evt_1", "evt_2"])
    await driver.handle(milliseconds=60_000, event_id="evt_4")  # the others still take 300 ms
    await stage.publish(3, 4, 5)
    await driver.until("event", event_id="evt_4")
    stage.proxy.links[1].cut()
    await driver.until("connected", 3)
    await driver.kill()
    again = await stage.connected(cursor_file=stage.cursor_file)
    await stage.publish(6)
    await again.until("handled", event_id="evt_6")
    await again.close()
    expect("events of the program that was started again", again.events, ["evt_4", "evt_5", "evt_6"])


@scene()
async def restart_from_store(stage: Stage) -> None:
    """A program that is killed goes on from its cursor store, with its `client_id`."""
    driver = await stage.connected(cursor_file=stage.cursor_file)
    await stage.publish(1, 2)
    await driver.until("handled", 2)
    await driver.command("c1", "ping")  # time to write its store
    await driver.until("answer", id="c1")
    await driver.kill()
    await stage.publish(3)
    again = await stage.connected(cursor_file=stage.cursor_file)
    await stage.publish(4)
    await again.until("handled", event_id="evt_4")
    await again.close()
    expect("events of the program that was started again", again.events, ["evt_3", "evt_4"])
    first, second = (link.query.get("client_id") for link in stage.proxy.links)
    require("it has a client_id", first)
    expect("its client_id", second, first)


@scene(stored=True)
async def drain(stage: Stage) -> None:
    """1012 with `reconnect_after_ms`: it waits so long, and misses nothing."""

    def rule(link: Link, frame: WireFrame) -> bytes | Cut:
        if frame.said.get("type") == "server.draining":
            return saying(frame.said | {"reconnect_after_ms": 1_500})
        return frame.wire

    stage.proxy.rule = rule
    driver = await stage.connected()
    await stage.publish(1)
    await driver.until("handled")
    await stage.brokers.drain()
    ended_at = stage.proxy.links[0].told_at
    await stage.restart()
    await stage.publish(2)
    link = await stage.proxy.link(2)
    waited = link.began_at - ended_at
    require(f"it waited {waited:.2f} s instead of 1.5 s", waited >= 1.45)
    await driver.until("handled", event_id="evt_2")
    await driver.close()
    expect("events", driver.events, ["evt_1", "evt_2"])
    expect("gaps", driver.on("gap"), [])


@scene(replay=ReplayConfig(max_events_per_account=5))
async def gap(stage: Stage) -> None:
    """A counted gap is told once."""
    driver = await stage.connected()
    await stage.publish(1)
    await driver.until("handled")
    away = trio.Event()
    stage.proxy.then(Through(away))
    stage.proxy.links[0].cut()
    await driver.until("disconnected")
    await stage.publish(*range(2, 14))
    await stage.proxy.link(2)
    away.set()
    await driver.until("handled", event_id="evt_13")
    stage.proxy.links[1].cut()
    await driver.until("connected", 3)
    await stage.publish(14)
    await driver.until("handled", event_id="evt_14")
    await driver.close()
    expect("gaps", [item["count"] for item in driver.on("gap")], [7])
    expect("events", driver.events, ["evt_1", *(f"evt_{number}" for number in range(9, 15))])


@scene(replay=ReplayConfig(max_events_per_account=10))
async def gap_while_paused(stage: Stage) -> None:
    """A client that read nothing for longer than the window: gaps are told before what comes after them, and add up."""
    driver = await stage.connected()
    await driver.tell("pause")
    await driver.settled()
    count = 140
    for number in range(1, count + 1):
        await stage.publish(number, body="x" * 250_000)
    await driver.tell("resume")
    await driver.until("handled", event_id=f"evt_{count}", seconds=60)
    await driver.close()
    told, last = 0, 0
    for item in driver.trace:
        if item["on"] == "event":
            last, seen = int(item["event_id"].removeprefix("evt_")), last
            require(f"evt_{last} came after evt_{seen}", last > seen)
            missing = last - len(driver.events[: driver.events.index(item["event_id"]) + 1])
            require(f"{missing} were missing before evt_{last}, {told} in gaps", missing <= told)
        elif item["on"] == "gap":
            told += item["count"]
    expect("missing, by the gaps that were told", told, count - len(driver.events))
    require("there was a gap", driver.on("gap"))
    expect("connections", len(stage.proxy.links), 1)


@scene()
async def forgotten(stage: Stage) -> None:
    """A broker that has forgotten the cursor: a gap without a count is told once, and what it has comes."""

    def rule(link: Link, frame: WireFrame) -> bytes | Cut:
        if frame.said.get("type") == "server.draining":
            return saying(frame.said | {"reconnect_after_ms": 100})
        return frame.wire

    stage.proxy.rule = rule
    driver = await stage.connected()
    await stage.publish(1)
    await driver.until("handled")
    away = trio.Event()
    stage.proxy.then(Through(away))
    await stage.brokers.drain()
    await stage.restart()
    await stage.publish(2)
    away.set()
    await driver.until("connected", 2)
    await stage.publish(3)
    await driver.until("handled", event_id="evt_3")
    stage.proxy.links[1].cut()
    await driver.until("connected", 3)
    await stage.publish(4)
    await driver.until("handled", event_id="evt_4")
    await driver.close()
    expect("gaps", [item.get("count") for item in driver.on("gap")], [None])
    expect("events", driver.events, ["evt_1", "evt_2", "evt_3", "evt_4"])


@scene()
async def subscriptions(stage: Stage) -> None:
    """What is followed after a reconnect is what was followed before it, not what was at the first opening."""
    driver = await stage.connected(inbox_ids=[INBOX])
    await stage.publish(1)
    await stage.publish(2, inbox_id=OTHER_INBOX)
    await driver.tell("subscribe", id="s", inbox_ids=[OTHER_INBOX])
    answer = await driver.until("answer", id="s")
    expect("the answer", answer["result"]["inbox_ids"], [INBOX, OTHER_INBOX])
    await stage.publish(3, inbox_id=OTHER_INBOX)
    await driver.tell("unsubscribe", id="u", inbox_ids=[INBOX])
    await driver.until("answer", id="u")
    await driver.until("handled", event_id="evt_3")
    stage.proxy.links[0].cut()
    await stage.publish(4)
    await stage.publish(5, inbox_id=OTHER_INBOX)
    await driver.until("connected", 2)
    await stage.publish(6)
    await stage.publish(7, inbox_id=OTHER_INBOX)
    await stage.brokers.publish({"type": "account.upgraded", "event_id": "evt_8", "payload": {}})  # for everybody
    await driver.until("handled", event_id="evt_8")
    await driver.close()
    expect("events", driver.events, ["evt_1", "evt_3", "evt_5", "evt_7", "evt_8"])


@scene()
async def subscribe_answer_lost(stage: Stage) -> None:
    """A subscribe whose answer was lost takes effect, is answered, and lasts."""

    def rule(link: Link, frame: WireFrame) -> bytes | Cut:
        return Cut() if link.number == 1 and frame.said.get("action") == "subscribe" else frame.wire

    stage.proxy.rule = rule
    driver = await stage.connected(inbox_ids=[INBOX])
    await driver.tell("subscribe", id="s", inbox_ids=[OTHER_INBOX])
    answer = await driver.until("answer", id="s")
    expect("the answer", answer.get("result", {}).get("inbox_ids"), [INBOX, OTHER_INBOX])
    await stage.publish(1, inbox_id=OTHER_INBOX)
    await driver.until("handled", event_id="evt_1")
    stage.proxy.links[1].cut()
    await stage.publish(2, inbox_id=OTHER_INBOX)
    await stage.publish(3)
    await driver.until("handled", event_id="evt_3")
    await driver.close()
    expect("events", driver.events, ["evt_1", "evt_2", "evt_3"])


@scene()
async def narrowed(stage: Stage) -> None:
    """Its key reaches less now: after a reconnect it follows what is left, instead of being refused for the rest."""
    driver = await stage.connected(inbox_ids=[INBOX, OTHER_INBOX])
    stage.brokers.narrow(INBOX)
    link = stage.proxy.links[0]
    await stage.changes.until("a connection.updated", lambda: link.told(type="connection.updated"))
    await stage.publish(1)
    await driver.until("handled", event_id="evt_1")
    link.cut()
    await stage.publish(2)
    await driver.until("connected", 2)
    await driver.until("handled", event_id="evt_2")
    await driver.close()
    expect("events", driver.events, ["evt_1", "evt_2"])


@scene()
async def duplicate(stage: Stage) -> None:
    """An event that comes again over a reconnect in the middle of a replay is handed on once."""

    def rule(link: Link, frame: WireFrame) -> bytes | Cut:
        return Cut() if link.number == 1 and frame.said.get("event_id") == "evt_3" else frame.wire

    driver = await stage.connected(inbox_ids=[INBOX])
    await stage.publish(1, 2, 3, inbox_id=OTHER_INBOX)
    await stage.publish(4)
    await driver.until("handled")
    stage.proxy.rule = rule
    await driver.tell("subscribe", id="s", inbox_ids=[OTHER_INBOX], since="5m")
    await driver.until("connected", 2)
    await stage.publish(5)
    await driver.until("handled", event_id="evt_5")
    await driver.close()
    came = [frame["event_id"] for link in stage.proxy.links for frame in link.to_client if "event_id" in frame]
    expect("events on the wire", came, ["evt_4", "evt_1", "evt_2", "evt_3", "evt_4", "evt_5"])
    expect("events", driver.events, ["evt_4", "evt_1", "evt_2", "evt_3", "evt_5"])


@scene(limits=LimitsConfig(heartbeat_seconds=0.5))
async def half_open(stage: Stage) -> None:
    """The network swallows everything: it is noticed after the heartbeat's patience, and nothing is missed."""
    driver = await stage.connected(grace_seconds=1.5)
    await stage.publish(1)
    await driver.until("handled")
    link = stage.proxy.links[0]
    link.swallow()
    await stage.publish(2)
    second = await stage.proxy.link(2, seconds=9)  # by the usual grace it would be 10.5
    waited = second.began_at - link.told_at
    require(f"it gave up after {waited:.2f} s, earlier than after 2 s", waited >= 1.95)
    await driver.until("handled", event_id="evt_2")
    await driver.close()
    expect("events", driver.events, ["evt_1", "evt_2"])
    require(
        "it keeps its client_id, which frees its slot", link.query.get("client_id") == second.query.get("client_id")
    )


@scene()
async def back_off(stage: Stage) -> None:
    """Refused TCP: waits grow with jitter and are set back by success."""
    first, least, most = 0.02, 8, 13
    driver = await stage.connected(reconnect_delay=first)
    stage.proxy.otherwise = Reset()
    links = stage.proxy.links
    links[0].cut()

    def waits() -> list[float]:
        return [later.began_at - (earlier.ended_at or later.began_at) for earlier, later in pairwise(links)]

    def grown() -> bool:
        found = waits()
        told = ", ".join(f"{wait:.2f}" for wait in found)
        is_grown = sum(wait > 0.25 for wait in found) > 1  # of two, for a busy machine may make one
        require(f"waits grow: {told}", is_grown or len(found) < most)
        return is_grown and len(found) >= least

    await stage.changes.until("waits that grow", grown, 15)
    limits = [first * 2**number for number in range(most)]
    told = ", ".join(f"{wait:.2f}" for wait in waits())
    over = [wait for wait, limit in zip(waits(), limits, strict=False) if wait > limit + 1]
    require(f"no wait is longer than reconnect_delay · 2ⁿ⁻¹: {told}", len(over) <= 1)  # likewise
    shares = [wait / limit for wait, limit in zip(waits(), limits, strict=False)][3:]
    require(f"waits are of any length up to the longest: {told}", min(shares) < 0.95)
    stage.proxy.otherwise = Through()
    await driver.tell("reconnect_now")
    await driver.until("connected", 2)
    for count in range(4):
        before = len(links)
        links[-1].cut()
        await stage.changes.until("the next attempt soon: a success sets the wait back", _more_than(before, links), 1.5)
        await driver.until("connected", 3 + count)
    await driver.close()


def _more_than(count: int, links: list[Link]) -> Callable[[], bool]:
    return lambda: len(links) > count
