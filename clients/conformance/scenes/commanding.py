"""Commands, their answers, and waits, over connections that are lost."""

import trio

from broker import LimitsConfig, TokensConfig

from ..brokers import INBOX, OTHER_INBOX
from ..expecting import expect, require
from ..proxy import Cut, Link, Through
from ..stage import Stage, scene
from ..wire import WireFrame, saying

SEND = {"inbox_id": INBOX, "to": ["ada@example.com"], "subject": "Hello", "body": "…"}


@scene(limits=LimitsConfig(max_message_bytes=4_096))
async def too_big(stage: Stage) -> None:
    """1009: it comes back without sending that message again."""

    def rule(link: Link, frame: WireFrame) -> bytes | Cut:
        if frame.said.get("type") != "connection.ready":
            return frame.wire
        # As where something before the broker takes less than the broker says: the client has to hear 1009.
        return saying(frame.said | {"limits": frame.said["limits"] | {"max_message_bytes": 1_048_576}})

    stage.proxy.rule = rule
    stage.changes.forbid("it sent the message again, and was closed again", lambda: len(stage.proxy.links) > 2)
    driver = await stage.connected()
    await stage.publish(1)
    await driver.until("handled")
    await driver.command("big", "send_email", params=SEND | {"body": "x" * 8_000})
    answer = await driver.until("answer", id="big")
    expect("the answer to the command", answer.get("error"), {"code": "too_large"})
    await driver.until("connected", 2)
    await driver.command("small", "send_email", params=SEND)
    await driver.until("answer", id="small")
    await stage.publish(2)
    await driver.until("handled", event_id="evt_2")
    await driver.close()
    expect("events", driver.events, ["evt_1", "evt_2"])
    expect("mails that were sent", len(stage.brokers.sent), 1)


@scene()
async def answer_after_reconnect(stage: Stage) -> None:
    """A command whose answer was lost is sent again with its `request_id`, and done once."""

    def rule(link: Link, frame: WireFrame) -> bytes | Cut:
        is_lost = link.number == 1 and frame.said.get("action") == "send_email"
        return Cut() if is_lost else frame.wire

    stage.proxy.rule = rule
    driver = await stage.connected()
    await driver.command("c1", "send_email", params=SEND)
    answer = await driver.until("answer", id="c1")
    expect("the answer", answer.get("result"), {"message_id": "sent_1"})
    await driver.close()
    expect("answers", len(driver.on("answer")), 1)
    expect("mails that were sent", len(stage.brokers.sent), 1)
    sent = [frame["request_id"] for link in stage.proxy.links for frame in link.heard(action="send_email")]
    require(f"it was sent twice with one request_id: {sent}", len(sent) == 2 and len(set(sent)) == 1)


@scene()
async def command_times_out(stage: Stage) -> None:
    """A command that has no answer in time is said to have none, and is not sent again."""

    def rule(link: Link, frame: WireFrame) -> bytes | Cut:
        return b"" if link.number == 1 and frame.said.get("action") == "send_email" else frame.wire

    stage.proxy.rule = rule
    driver = await stage.connected()
    await driver.command("c1", "send_email", params=SEND, timeout=0.5)
    answer = await driver.until("answer", id="c1")
    expect("the answer", answer.get("error"), {"code": "timed_out"})
    stage.proxy.links[0].cut()
    await driver.until("connected", 2)
    await driver.command("c2", "ping")
    await driver.until("answer", id="c2")
    await driver.close()
    sent = [frame for link in stage.proxy.links for frame in link.heard(action="send_email")]
    expect("how often it was sent", len(sent), 1)
    expect("answers", len(driver.on("answer")), 2)


@scene()
async def command_before_open(stage: Stage) -> None:
    """What is given before the connection is open is done when it is."""
    may_open = trio.Event()
    stage.proxy.then(Through(may_open))
    driver = await stage.connecting()
    await stage.proxy.link(1)
    for number in (1, 2, 3):
        await driver.command(f"c{number}", "send_email", params=SEND | {"subject": f"Mail {number}"})
    await driver.settled()
    may_open.set()
    for number in (1, 2, 3):
        answer = await driver.until("answer", id=f"c{number}")
        require(f"c{number} was answered: {answer}", "result" in answer)
    await driver.close()
    subjects = sorted(sent.params["subject"] for sent in stage.brokers.sent)
    expect("mails that were sent", subjects, ["Mail 1", "Mail 2", "Mail 3"])


@scene(tokens=TokensConfig(secret="x" * 32, ttl_seconds=2))
async def token_expired(stage: Stage) -> None:
    """A fresh token for each opening; one that cannot be had is a failed opening like any other."""
    driver = await stage.connecting(token_url=stage.tokens.url)
    await driver.until("connected")
    await stage.publish(1)
    await driver.until("handled")
    await trio.sleep(2.1)  # by now the first token has expired
    stage.tokens.fails = 1
    stage.proxy.links[0].cut()
    await driver.until("connected", 2)
    await stage.publish(2)
    await driver.until("handled", event_id="evt_2")
    await driver.close()
    expect("events", driver.events, ["evt_1", "evt_2"])
    expect("tokens that were asked for", stage.tokens.asked, 3)
    require("no token is in the URL", not any("token" in link.query for link in stage.proxy.links))


@scene()
async def acked(stage: Stage) -> None:
    """`ack`: what was handled is acknowledged; after a restart with a `client_id` and no store it goes on there."""
    driver = await stage.connected(client_id="agent", ack="auto")
    await stage.publish(1, 2)
    await driver.until("handled", 2)
    acks = stage.proxy.links[0]
    await stage.changes.until("an acknowledgement", lambda: acks.told(action="ack"))
    await driver.handle(milliseconds=60_000)
    await stage.publish(3)
    await driver.until("event", event_id="evt_3")
    await stage.changes.never(
        "it acknowledged what it is still handling", lambda: len(acks.heard(action="ack")) > 1, 2.0
    )
    await driver.kill()
    await stage.publish(4)
    again = await stage.connected(client_id="agent", ack="auto")
    await again.until("handled", event_id="evt_4")
    await again.close()
    expect("events of the program that was started again", again.events, ["evt_3", "evt_4"])
    last = stage.proxy.links[-1]
    require("what it handled was acknowledged before it closed", last.told(action="ack"))
    require("no acknowledgement was refused", not any("error" in ack for ack in last.told(action="ack")))


@scene()
async def failed_not_acked(stage: Stage) -> None:
    """An event whose handler failed is not acknowledged: after a restart with a `client_id` and no store it comes."""
    driver = await stage.connected(client_id="agent", ack="auto")
    await driver.handle(fail=True, event_id="evt_2")
    await stage.publish(1, 2, 3)
    await driver.until("handled", event_id="evt_3")
    await driver.close()
    again = await stage.connected(client_id="agent", ack="auto")
    await stage.publish(4)
    await again.until("handled", event_id="evt_4")
    await again.close()
    require(f"the program that was started again gets what had failed: {again.events}", again.events[0] == "evt_2")


@scene()
async def closing(stage: Stage) -> None:
    """Closed while a handler runs: that one ends and is acknowledged, no other begins, and goodbye is said."""
    driver = await stage.connected(client_id="agent", ack="auto")
    await driver.handle(milliseconds=500)
    await stage.publish(1, 2)
    await driver.until("event")
    await driver.close()
    expect("events", driver.events, ["evt_1"])
    expect("events that were handled", [item["event_id"] for item in driver.on("handled")], ["evt_1"])
    link = stage.proxy.links[0]
    require("what was handled is acknowledged", link.heard(action="ack"))
    await stage.changes.until("a goodbye of the client", lambda: link.goodbye)
    expect("the client's goodbye", link.goodbye, 1000)
    again = await stage.connected(client_id="agent", ack="auto")
    await stage.publish(3)
    await again.until("handled", event_id="evt_3")
    await again.close()
    expect("events of the program that was started again", again.events, ["evt_2", "evt_3"])


@scene()
async def once(stage: Stage) -> None:
    """Two drivers answer the same event in words of their own: one effect."""
    drivers = [await stage.connected(client_id=f"agent_{number}") for number in (1, 2)]
    for number, driver in enumerate(drivers):
        command = {"action": "send_email", "params": SEND | {"body": f"The words of driver {number}"}}
        await driver.handle(command=command)
    await stage.publish(1)
    for driver in drivers:
        answer = await driver.until("answer", id="evt_1")
        expect("the answer", answer.get("result"), {"message_id": "sent_1"})
        await driver.close()
    expect("what was sent is for", [sent.once for sent in stage.brokers.sent], ["evt_1"])


@scene()
async def wait_for(stage: Stage) -> None:
    """From the window, live, over a lost connection, and time over."""
    await stage.publish(1, subject="Your code is 493201")
    driver = await stage.connected()
    wanted = {"type": "message.received", "inbox_id": INBOX}
    await driver.tell(
        "wait_for", id="window", **wanted, where={"subject": "code"}, since="5m", timeout=100, extract=["code"]
    )
    answer = (await driver.until("answer", id="window")).get("result") or {}
    expect("from the window", (answer.get("event_id"), answer.get("code")), ("evt_1", ["493201"]))

    link = stage.proxy.links[0]
    await driver.tell("wait_for", id="live", **wanted, where={"subject": "live"}, timeout=100)
    await stage.changes.until("the wait", lambda: any(w.get("timeout_seconds") for w in _waits(link, "live")))
    await stage.publish(2, inbox_id=OTHER_INBOX, subject="live, elsewhere")
    await stage.publish(3, subject="live")
    answer = (await driver.until("answer", id="live")).get("result") or {}
    expect("live", answer.get("event_id"), "evt_3")

    await driver.tell("wait_for", id="over", **wanted, where={"subject": "never"}, timeout=0.3)
    answer = await driver.until("answer", id="over")
    require(f"time over is an answer with no event: {answer}", "error" not in answer and answer["result"] is None)

    await driver.tell("wait_for", id="lost", **wanted, where={"subject": "while away"}, timeout=100)
    await stage.changes.until("the wait", lambda: any(w.get("timeout_seconds") for w in _waits(link, "while away")))
    away = trio.Event()
    stage.proxy.then(Through(away))
    link.cut()
    await stage.proxy.link(2)
    await stage.publish(4, subject="while away")
    away.set()
    answer = (await driver.until("answer", id="lost")).get("result") or {}
    expect("over a lost connection", answer.get("event_id"), "evt_4")
    await driver.close()
    expect("answers", [item["id"] for item in driver.on("answer")], ["window", "live", "over", "lost"])


def _waits(link: Link, subject: str) -> list[dict[str, object]]:
    """Return the waits for a subject that a client has asked for."""
    found = []
    for frame in link.heard(action="wait_for"):
        params = frame | frame.get("params", {})
        if params.get("where", {}).get("subject") == subject:
            found.append(params)
    return found
