"""A broker that has so many connections without a network, for who looks at it: `crowded.py COUNT`; prints its URL."""

import math
import random
import sys
from functools import partial

import trio

from broker import AccountConfig, Broker, CloseCode, Config, OperatorConfig, open_broker, serve
from broker.access.keys import Key, digest_of
from broker.observe.connections import (
    ConnectionDetails,
    Connections,
    ConnectionStatistics,
    Ended,
    Link,
    OpenConnection,
)
from broker.protocol.selection import EVERYTHING

TIERS = {
    "acct_northwind": "enterprise",
    "acct_contoso": "enterprise",
    "acct_fabrikam": "growth",
    "acct_litware": "developer",
}
SMALL = {"acct_fabrikam": 71, "acct_litware": 10}
"""So many of the first connections are theirs; of the others every second one is of contoso."""
OPERATOR = "dm_operator_of_a_crowd"
AGENTS = ("daimon-python/0.3.1", "daimon-js/0.3.0", "websockets/17.4")
LEFT = (
    (None, "closed by the client with 1001: "),
    (CloseCode.REPLACED, "closed by the broker with 4409: replaced by a newer connection of the same client_id"),
    (CloseCode.HEARTBEAT_MISSED, "closed by the broker with 4408: heartbeat missed"),
    (CloseCode.TOO_MANY_BAD_FRAMES, "closed by the broker with 1008: too many frames that are no commands"),
)
READERS = 25
"""Of each of the large accounts, in this process: whoever looks sees deliveries."""


class Pretended:
    """A connection that is live; of fifty one is behind, and of a hundred one paused."""

    def __init__(self, connections: Connections, number: int) -> None:
        self.connections = connections
        self.number = number
        self.close_code: CloseCode | None = None
        self.ending = ""

    def enter(self) -> OpenConnection:
        account_id = self.account_id()
        key = Key("key_agents", account_id, frozenset({"subscribe"}), tier=TIERS[account_id])
        name, address = f"agent-{self.number:05}", f"203.0.113.{self.number % 250}"
        entry = OpenConnection(f"conn_{self.number:05}", key, name, address, "websocket", self)
        entry.agent = AGENTS[self.number % len(AGENTS)]
        entry.opened_at -= random.Random(self.number).expovariate(1 / 5_000)
        self.connections.enter(entry)
        return entry

    def account_id(self) -> str:
        number = self.number
        for account_id, count in SMALL.items():
            if number < count:
                return account_id
            number -= count
        return "acct_contoso" if self.number % 2 else "acct_northwind"

    async def live(self) -> None:
        self.enter()
        await trio.sleep_forever()

    def last_heard(self) -> float:
        return trio.current_time() - self.number % 30

    def link(self) -> Link:
        return Link(self.number % 90 / 1_000, self.number * 100)

    def statistics(self) -> ConnectionStatistics:
        behind = self.number if self.number % 50 == 0 else 0
        since = trio.current_time() - 12.5 if behind else None
        position = random.randrange(1_000_000) if behind % 100 else 0
        return ConnectionStatistics(
            EVERYTHING, not behind, behind, 0, behind, self.close_code, position, since, self.ending
        )

    def details(self) -> ConnectionDetails:
        return ConnectionDetails(None, [])

    def ended(self) -> Ended:
        return Ended()


async def read(broker: Broker, account_id: str) -> None:
    async with broker.subscribe(account_id) as subscriber:
        async for _ in subscriber:
            pass


async def talk(broker: Broker) -> None:
    """Publish now more, now less."""
    for step in range(sys.maxsize):
        wave = 4 + 3 * math.sin(step / 60) + 6 * (step % 400 in range(150, 190))
        account_ids = random.choices(list(TIERS), [50, 40, 8, 2], k=max(1, round(wave)))
        for account_id in account_ids:
            await broker.publish(account_id, {"type": "a.b", "payload": {"filler": "x" * random.randrange(2_000)}})
        await trio.sleep(0.1)


async def main(count: int) -> None:
    accounts = tuple(AccountConfig(id=name, tier=tier) for name, tier in TIERS.items())
    operators = (OperatorConfig(id="op_main", sha256=digest_of(OPERATOR)),)
    async with open_broker(Config(accounts=accounts, operators=operators)) as broker, trio.open_nursery() as nursery:
        for number, (code, ending) in enumerate(LEFT):
            left = Pretended(broker.connections, count + number)
            left.close_code, left.ending = code, ending
            broker.connections.leave(left.enter())
        for number in range(count):
            nursery.start_soon(Pretended(broker.connections, number).live)
        for name in ("acct_northwind", "acct_contoso"):
            for _ in range(READERS):
                nursery.start_soon(read, broker, name)
        nursery.start_soon(talk, broker)
        [(host, port), *_] = await nursery.start(partial(serve, broker, host="127.0.0.1", port=0))
        print(f"http://{host}:{port}", flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
