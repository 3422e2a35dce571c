"""Workers that die at random at a broker that is killed: each mail is answered once, each thread in its order."""

import json
import random
from contextlib import ExitStack, suppress
from functools import partial

import httpx
import trio
from apis import SECRET, json_answer, running_api
from processes import KEY, free_port, serving

from broker.keys import hash_key

CONFIG = """
[server]
port = {port}
[storage]
path = "{path}"
min_free_bytes = 0
[commands]
url = "{api}"
secret = "{secret}"
[[accounts]]
id = "acct_test"
[[accounts.keys]]
id = "key_test"
sha256 = "{sha256}"
scopes = ["subscribe", "publish", "command", "webhooks"]
[[accounts.queues]]
id = "support"
lease_seconds = 2
max_attempts = 100
"""
MAILS, THREADS, WORKERS, KILLS = 120, 10, 6, 3
GUARD_SECONDS = 120


class Body(httpx.AsyncByteStream):
    """A body in one piece: no generator is left in the middle of it where the broker is killed."""

    def __init__(self, content):
        self._parts = [content]

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self._parts:
            raise StopAsyncIteration
        return self._parts.pop()


class Desk:
    """A broker that is killed, and workers that ask it again and again."""

    def __init__(self, url):
        self.client = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, timeout=60
        )
        self.acked = []
        self.chance = random.Random(7)

    async def ask(self, action, **params):
        """The result of a command, or its error; asked again while the broker is away."""
        while True:
            with suppress(httpx.HTTPError):
                request = self.client.build_request("POST", "/v1/commands", json={"action": action, **params})
                request.stream = Body(request.content)
                answer = (await self.client.send(request)).json()
                if answer.get("error", {}).get("code") not in ("unavailable", "draining", "timeout", "internal"):
                    return answer
            await trio.sleep(0.05)

    async def work(self):
        """Answer mails in other words each time; one in eight times die: before the answer, or after it."""
        while True:
            leased = await self.ask("lease", queue_id="support", wait_seconds=1)
            for lease in leased["result"]["leases"]:
                dies = self.chance.randrange(16)
                if dies == 0:
                    continue
                event = lease["event"]
                body = f"I am {self.chance.random()}"
                sent = await self.ask(
                    "send_email", inbox_id="in_1", once=event["event_id"], lease_id=lease["lease_id"], body=body
                )
                if dies == 1 or "error" in sent:
                    continue
                answer = await self.ask("ack", lease_ids=[lease["lease_id"]])
                self.acked += [event["event_id"]] * answer["result"]["acked"]

    async def until_all_is_done(self):
        while True:
            with suppress(httpx.HTTPError):
                page = (await self.client.get("/v1/queues/support/deliveries?limit=1000")).json()
                if {each["state"] for each in page["result"]["deliveries"]} == {"acked"}:
                    return
            await trio.sleep(0.1)


async def until_asked(api, times):
    while True:
        if len(api.asked) >= times:
            return
        await trio.sleep(0.01)


def mail(number):
    payload = {"message": {"thread_id": f"t{number % THREADS}", "subject": f"Mail {number}"}}
    return {"type": "message.received", "inbox_id": "in_1", "event_id": f"evt_{number}", "payload": payload}


async def test_each_mail_is_answered_once_and_each_thread_in_its_order(tmp_path):
    async with running_api() as api:
        api.answer = json_answer({"result": {"sent": True}})
        port = free_port()
        config = tmp_path / "broker.toml"
        settings = {"port": port, "path": tmp_path / "broker.db", "api": api.url, "secret": SECRET}
        config.write_text(CONFIG.format(sha256=hash_key(KEY), **settings))
        start = partial(ExitStack.enter_context)
        with trio.fail_after(GUARD_SECONDS), ExitStack() as stack:
            at_port = partial(serving, "--config", config, "--port", port)
            broker, url = await trio.to_thread.run_sync(start, stack, at_port())
            desk = Desk(url)
            (await desk.client.post("/v1/events", json=[mail(n) for n in range(MAILS)])).raise_for_status()
            async with trio.open_nursery() as nursery:
                for _ in range(WORKERS):
                    nursery.start_soon(desk.work)
                for kill in range(1, KILLS + 1):
                    await until_asked(api, kill * MAILS // (KILLS + 2))
                    broker.kill()
                    broker, _ = await trio.to_thread.run_sync(start, stack, at_port())
                await desk.until_all_is_done()
                nursery.cancel_scope.cancel()
            await desk.client.aclose()
            asked = [(headers["webhook-id"], json.loads(body)["once"]) for headers, body in api.asked]
    firsts = list(dict.fromkeys(once for _, once in asked))
    assert len(firsts) == MAILS
    assert len({message_id for message_id, _ in asked}) == MAILS
    assert len(desk.acked) == len(set(desk.acked))
    for thread in range(THREADS):
        numbers = [int(once.removeprefix("evt_")) for once in firsts]
        of_thread = [number for number in numbers if number % THREADS == thread]
        assert of_thread == sorted(of_thread)
