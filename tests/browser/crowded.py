"""A broker that has so many connections without a network, for who looks at it: `crowded.py COUNT`; prints its URL."""

import random
import sys
from functools import partial

import trio

from broker import AccountConfig, Config, OperatorConfig, open_broker, serve
from broker.access.keys import Key, digest_of
from broker.observe.connections import ConnectionDetails, Connections, ConnectionStatistics, Link, OpenConnection
from broker.protocol.selection import EVERYTHING

ACCOUNTS = ("acct_northwind", "acct_contoso", "acct_fabrikam", "acct_litware")
OPERATOR = "dm_operator_of_a_crowd"
AGENTS = ("daimon-python/0.3.1", "daimon-js/0.3.0", "websockets/17.4")


class Pretended:
    """A connection that is live; of fifty one is behind, and of a hundred one paused."""

    def __init__(self, connections: Connections, number: int) -> None:
        self.connections = connections
        self.number = number
        self.ended = trio.Event()

    async def live(self) -> None:
        account_id = ACCOUNTS[self.number % len(ACCOUNTS)]
        key = Key("key_agents", account_id, frozenset({"subscribe"}), tier="growth")
        name, address = f"agent-{self.number:05}", f"203.0.113.{self.number % 250}"
        entry = OpenConnection(f"conn_{self.number:05}", key, name, address, "websocket", self)
        entry.agent = AGENTS[self.number % len(AGENTS)]
        self.connections.enter(entry)
        await self.ended.wait()

    def last_heard(self) -> float:
        return trio.current_time() - self.number % 30

    def link(self) -> Link:
        return Link(self.number % 90 / 1_000, self.number * 100)

    def statistics(self) -> ConnectionStatistics:
        behind = self.number if self.number % 50 == 0 else 0
        since = trio.current_time() - 12.5 if behind else None
        position = random.randrange(1_000_000) if behind % 100 else 0
        return ConnectionStatistics(EVERYTHING, not behind, behind, 0, behind, None, position, since)

    def details(self) -> ConnectionDetails:
        return ConnectionDetails(None, [])


async def main(count: int) -> None:
    accounts = tuple(AccountConfig(id=name, tier="growth") for name in ACCOUNTS)
    operators = (OperatorConfig(id="op_main", sha256=digest_of(OPERATOR)),)
    async with open_broker(Config(accounts=accounts, operators=operators)) as broker, trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(Pretended(broker.connections, number).live)
        for name in ACCOUNTS:
            await broker.publish(name, {"type": "a.b", "payload": {}})
        [(host, port), *_] = await nursery.start(partial(serve, broker, host="127.0.0.1", port=0))
        print(f"http://{host}:{port}", flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
