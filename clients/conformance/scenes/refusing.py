"""Refusals and closes: when to stay away, and when to come back."""

from itertools import pairwise

from ..brokers import INBOX, SILENT_KEY
from ..expecting import expect, require
from ..proxy import Answered
from ..stage import Stage, scene


async def _ends(stage: Stage, **fields: object) -> None:
    """Connect with what is refused, and look that it ends and does not come back."""
    stage.changes.forbid("it came back", lambda: len(stage.proxy.links) > 1)
    driver = await stage.connecting(**fields)
    await driver.until("ended")
    await driver.close()
    await stage.changes.never("it came back", lambda: len(stage.proxy.links) > 1, 0.3)
    expect("what it was told of the connection", driver.on("connected"), [])
    require("it was told why", driver.on("disconnected"))


@scene()
async def refused_401(stage: Stage) -> None:
    """A wrong key: it ends, and does not come back."""
    await _ends(stage, api_key="dm_live_nobody")
    ended = stage.drivers[0].on("ended")
    expect("how it ended", [(item.get("status"), item.get("code")) for item in ended], [(401, "unauthorized")])


@scene()
async def refused_403(stage: Stage) -> None:
    """A key that may not follow events: it ends, and does not come back."""
    await _ends(stage, api_key=SILENT_KEY, inbox_ids=[INBOX])
    ended = stage.drivers[0].on("ended")
    expect("how it ended", [(item.get("status"), item.get("code")) for item in ended], [(403, "forbidden")])


async def _comes_back(stage: Stage, status: int, code: str) -> None:
    """Refuse with a Retry-After twice, and look that each is waited for."""
    stage.proxy.then(*(Answered(status, code, {"Retry-After": "1"}) for _ in range(2)))
    driver = await stage.connecting()
    await driver.until("connected")
    await stage.publish(1)
    await driver.until("handled")
    await driver.close()
    links = stage.proxy.links
    expect("attempts", len(links), 3)
    for earlier, later in pairwise(links):
        waited = later.began_at - earlier.told_at
        require(f"it came back after {waited:.2f} s, earlier than Retry-After", waited >= 0.98)


@scene()
async def refused_429(stage: Stage) -> None:
    """At the limit of connections: it comes back after `Retry-After`, not before."""
    await _comes_back(stage, 429, "connection_limit")


@scene()
async def refused_503(stage: Stage) -> None:
    """A broker that drains: it comes back after `Retry-After`, not before."""
    await _comes_back(stage, 503, "draining")


@scene()
async def revoked_4401(stage: Stage) -> None:
    """Its key is revoked: it ends, and does not come back."""
    stage.changes.forbid("it came back", lambda: len(stage.proxy.links) > 1)
    driver = await stage.connected()
    stage.brokers.revoke()
    ended = await driver.until("ended")
    expect("how it ended", ended.get("code"), 4401)
    await stage.changes.never("it came back", lambda: len(stage.proxy.links) > 1, 0.3)


@scene()
async def replaced_4409(stage: Stage) -> None:
    """Another program takes its `client_id` over: it ends, does not come back, and the other one lives."""
    stage.changes.forbid("it came back", lambda: len(stage.proxy.links) > 2)
    driver = await stage.connected(client_id="agent")
    other = await stage.connected(client_id="agent")
    ended = await driver.until("ended")
    expect("how it ended", ended.get("code"), 4409)
    await stage.publish(1)
    await other.until("handled")
    await other.close()
    expect("events of the one that was replaced", driver.events, [])
