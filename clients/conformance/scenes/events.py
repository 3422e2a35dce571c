"""Events in an ordinary life."""

from broker import LimitsConfig

from ..brokers import INBOX, OTHER_INBOX, mail
from ..expecting import expect, require
from ..proxy import Cut, Link
from ..stage import Stage, scene
from ..wire import CLOSE, WireFrame, from_server, saying


@scene()
async def events(stage: Stage) -> None:
    """Events come in order, by type, once."""
    driver = await stage.connected()
    bounced = {"message_id": "msg_0", "recipient": "eve@example.com", "reason": "unknown"}
    await stage.brokers.publish(
        mail(1),
        mail(2, OTHER_INBOX),
        {"type": "message.bounced", "event_id": "evt_3", "inbox_id": INBOX, "payload": bounced},
        {"type": "account.upgraded", "event_id": "evt_4", "payload": {"tier": "growth", "previous_tier": "free"}},
        {"type": "agent.thought", "event_id": "evt_1", "inbox_id": OTHER_INBOX, "payload": {"unknown": [1, None]}},
    )
    await driver.until("handled", 5)
    await driver.close()
    seen = [(item["event_id"], item["type"], item.get("inbox_id")) for item in driver.on("event")]
    expect(
        "what handlers got",
        seen,
        [
            ("evt_1", "message.received", INBOX),
            ("evt_2", "message.received", OTHER_INBOX),
            ("evt_3", "message.bounced", INBOX),
            ("evt_4", "account.upgraded", None),
            ("evt_1", "agent.thought", OTHER_INBOX),
        ],
    )
    expect("connections", len(stage.proxy.links), 1)


@scene()
async def unknown(stage: Stage) -> None:
    """Frames, fields, payloads and close codes of a later broker: they stop nothing."""

    def rule(link: Link, frame: WireFrame) -> bytes | Cut:
        match frame.said.get("event_id"):
            case "evt_1":
                later = {"type": "server.later", "cursor": "not for you", "list": [{}]}
                return saying(later) + saying(frame.said | {"later": {"a": 1}})
            case "evt_3":
                return frame.wire + from_server(CLOSE, (4999).to_bytes(2) + b"later")
        return frame.wire

    stage.proxy.rule = rule
    driver = await stage.connected()
    await stage.publish(1)
    await stage.brokers.publish(mail(2) | {"payload": {}})
    await stage.publish(3)
    await driver.until("connected", 2)
    await stage.publish(4)
    await driver.until("handled", event_id="evt_4")
    await driver.close()
    expect("events", driver.events, ["evt_1", "evt_2", "evt_3", "evt_4"])
    expect("errors", driver.on("error"), [])
    require("it goes on from the last event", "since" in stage.proxy.links[1].query)


@scene()
async def order(stage: Stage) -> None:
    """So many handlers run at once as `concurrency` says, but one at a time of a thread, or of an inbox."""
    drivers = {
        order: await stage.connected(client_id=f"by_{order}", concurrency=4, order=order)
        for order in ("thread", "inbox")
    }
    for driver in drivers.values():
        await driver.handle(milliseconds=400)
    await stage.brokers.publish(
        mail(1, thread_id="t1"), mail(2, thread_id="t1"), mail(3, thread_id="t2"), mail(4, OTHER_INBOX, thread_id="t3")
    )
    for driver in drivers.values():
        await driver.until("handled", 4)
        await driver.close()
    for order, first, later in (("thread", (1, 3, 4), [(1, 2)]), ("inbox", (1, 4), [(1, 2), (2, 3)])):
        trace = [(item["on"], item.get("event_id")) for item in drivers[order].trace]
        handled_at = [trace.index(("handled", f"evt_{number}")) for number in range(1, 5)]
        began_at = [trace.index(("event", f"evt_{number}")) for number in range(1, 5)]
        at_once = max(began_at[number - 1] for number in first) < min(handled_at)
        require(f"by {order}, these run at once: {first}", at_once)
        for earlier, other in later:
            one_by_one = handled_at[earlier - 1] < began_at[other - 1]
            require(f"by {order}, evt_{other} waits for evt_{earlier}", one_by_one)


@scene()
async def failing_handler(stage: Stage) -> None:
    """A handler that fails is reported, and stops neither the others nor the client."""
    driver = await stage.connected()
    await driver.handle(fail=True)
    await stage.publish(1)
    await driver.until("error")
    await driver.handle()
    await stage.publish(2)
    await driver.until("handled", event_id="evt_2")
    await driver.close()
    expect("events", driver.events, ["evt_1", "evt_2"])
    expect("connections", len(stage.proxy.links), 1)


@scene(limits=LimitsConfig(heartbeat_seconds=0.3))
async def slow_handler(stage: Stage) -> None:
    """A handler that takes longer than the heartbeat's patience: the connection lives, the queue holds."""
    driver = await stage.connected(grace_seconds=2.5)
    await driver.handle(milliseconds=4_000)
    await stage.publish(1)
    await driver.until("event")
    pongs = (await stage.proxy.link(1)).pongs
    await driver.handle()
    for number in range(2, 12):
        await stage.publish(number)
    await stage.changes.until(
        "two more pings are answered while the handler runs",
        lambda: stage.proxy.links[0].pongs >= pongs + 2 and not driver.on("handled"),
    )
    await driver.until("handled", 11)
    await driver.close()
    expect("events", driver.events, [f"evt_{number}" for number in range(1, 12)])
    expect("connections", len(stage.proxy.links), 1)


@scene()
async def full_queue(stage: Stage) -> None:
    """A flood before a slow handler: 8 MiB are read and no more, until its command needs an answer; all of it comes."""
    count = 120
    driver = await stage.connected()
    await driver.handle(event_id="evt_1", command={"action": "ping", "params": {}})
    await driver.tell("pause")
    await driver.settled()
    for number in range(1, count + 1):
        await stage.publish(number, body="x" * 250_000)
    came = stage.proxy.links[0].to_client
    await stage.changes.until("8 MiB are read", lambda: len(came) > 33)
    await stage.changes.never("it reads on and on", lambda: len(came) > count * 3 // 4, 1.5)
    await driver.tell("resume")
    answer = await driver.until("answer", id="evt_1")
    require(f"the command of a handler has its answer: {answer}", "result" in answer)
    await driver.until("handled", count, seconds=60)
    await driver.close()
    expect("events", driver.events, [f"evt_{number}" for number in range(1, count + 1)])
    expect("gaps", driver.on("gap"), [])


@scene()
async def pause(stage: Stage) -> None:
    """Paused, nothing is handed on; resumed, everything is, in order."""
    driver = await stage.connected()
    await stage.publish(1)
    await driver.until("handled")
    await driver.tell("pause")
    await driver.settled()
    await stage.publish(2, 3)
    await driver.command("c1", "ping")  # its answer comes after the events
    await driver.until("answer", id="c1")
    await stage.changes.never("a handler was called in a pause", lambda: len(driver.events) > 1, 0.5)
    await driver.tell("resume")
    await driver.until("handled", 3)
    await driver.close()
    expect("events", driver.events, ["evt_1", "evt_2", "evt_3"])
