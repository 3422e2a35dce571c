"""A real broker in a thread of its own, so that a client on either event loop may talk to it."""

import threading
from functools import partial
from hashlib import sha256
from queue import SimpleQueue

import trio

from broker import AccountConfig, Config, KeyConfig, open_broker, serve

KEY = "dm_live_agent"
ACCOUNT = "acct_demo"


class Served:
    """A broker at work. ``call`` runs an async function of it in its own loop."""

    def __init__(self) -> None:
        started: SimpleQueue[None] = SimpleQueue()
        self.sent: list[dict] = []
        self._thread = threading.Thread(target=trio.run, args=(self._run, started))
        self._thread.start()
        started.get(timeout=30)

    async def _run(self, started):
        key = KeyConfig(id="key_agent", sha256=sha256(KEY.encode()).hexdigest())
        config = Config(accounts=(AccountConfig(id=ACCOUNT, tier="developer", keys=(key,)),))
        async with open_broker(config) as self.broker, trio.open_nursery() as nursery:

            @self.broker.command("send_email")
            async def send_email(params: dict, context):
                self.sent.append({**params, "once": context.once})
                return {"message_id": f"sent_{len(self.sent)}"}

            [(host, port)] = await nursery.start(partial(serve, self.broker, host="127.0.0.1", port=0))
            self.url = f"ws://{host}:{port}"
            self._token, self._end = trio.lowlevel.current_trio_token(), trio.Event()
            started.put(None)
            await self._end.wait()
            nursery.cancel_scope.cancel()

    def call(self, function, *args):
        return trio.from_thread.run(partial(function, *args), trio_token=self._token)

    def publish(self, *events):
        return self.call(self.broker.publish, ACCOUNT, list(events))

    def close(self):
        trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join(30)


def mail(n, inbox_id="in_1", **message):
    return {
        "type": "message.received",
        "event_id": f"evt_{n}",
        "inbox_id": inbox_id,
        "payload": {
            "message": {"message_id": f"msg_{n}", "from": "ada@example.com", "subject": f"Mail {n}", **message}
        },
    }
