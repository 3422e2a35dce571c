"""A broker to which much has happened."""

from functools import partial
from math import inf

import pytest
from clients import ACCOUNT, ALICE, ask, configured, connected, event, post_events, serving, until

from broker import CommandError, ReplayConfig, StorageConfig
from broker.log.engines.rows import trim_events


async def let_go_of_what_memory_has_dropped(served):
    keep_from = served.broker._hub.account(ACCOUNT).buffer.dropped_through + 1
    step = partial(trim_events, stored_before=inf, keep_from=keep_from, most=100)
    await served.broker._disk.storage.write(step)


@pytest.fixture
async def noisy_broker(tmp_path):
    """A broker with a log on disk after a busy moment, and two clients of it that are still there."""
    storage = StorageConfig(path=str(tmp_path / "broker.db"))
    config = configured(replay=ReplayConfig(max_events_per_account=4), storage=storage)
    async with serving(config) as served:

        @served.broker.command("send_email")
        async def send_email(params: dict, context) -> dict:
            if params.get("to") is None:
                raise CommandError("nobody", "There is nobody to send it to")
            return {"sent": True}

        async with connected(served.address, "inbox_ids=*") as client, connected(served.address, "inbox_ids=in_1"):
            await until(lambda: served.broker.statistics().hub.live == 2)
            start = client.ready["cursor"]
            await post_events(served.address, [event(number, event_id=f"evt_{number}") for number in range(10)])
            await post_events(served.address, event(9, event_id="evt_9"))
            for _ in range(10):
                await client.next()
            await client.say(action="send_email", request_id="r1", to="ada@example.com")
            await client.say(action="send_email", request_id="r2")
            await client.say(action="paint_it_black", request_id="r3")
            await client.say(action="ping", request_id="r4")
            for request_id in ("r1", "r2", "r3", "r4"):
                await client.say(action="ping", request_id=f"after_{request_id}")
                await client.answer(f"after_{request_id}")
            await until(lambda: ("send_email", "other") in served.broker.statistics().commands.answered)
            await until(lambda: served.broker.statistics().replay.events == 4)
            await let_go_of_what_memory_has_dropped(served)
            async with connected(served.address, f"inbox_ids=*&since={start}") as late:
                await late.next()
            await ask(served.address, "GET", "/nowhere")
            await ask(served.address, "POST", "/v1/commands", key=ALICE, body=b'{"action":"ping"}')
            await until(lambda: len(served.broker.connections) == 2)
            yield served
