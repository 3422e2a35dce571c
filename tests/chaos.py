"""A cluster of real processes under load, what may befall it, and who counts what its clients were told.

Nodes are `broker serve` with sockets of their own, at one server. Publishers send to any node, and again, with the same
ids, what was not answered. One of them sends long lists for all accounts. Followers, one an account, come back to any
node with their last cursor, and believe nothing: what was answered is there once, in order, or in a gap that was said,
and a list is there whole, in one piece, or not at all.
"""

import json
import os
import random
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio
from clients import Address, Closed, ask, connected, post_events
from processes import COMMAND, free_port
from valkeys import Server

from broker.keys import hash_key

ACCOUNTS = [f"acct_{n}" for n in range(8)]
OPERATOR = "dm_operator_of_the_chaos"
FAILURES = (OSError, AssertionError, Closed, ValueError, IndexError, trio.BrokenResourceError, trio.TooSlowError)
"""What a client may see of a node that fails; it tries again."""
GIVE_UP_SECONDS = 30.0
SETTLE_SECONDS = 300.0
EVENTS_BETWEEN = 15
"""That are answered between two faults, at least."""
LIST_EVENTS = (600, 1_500)
"""Of a list, at least and at most."""
ON_DISK = ("--appendonly", "yes", "--appendfsync", "always")


def key_of(account_id: str) -> str:
    return f"dm_live_{account_id}"


def configuration(url: str, seconds: float) -> str:
    accounts = "".join(
        f'[[accounts]]\nid = "{account_id}"\ntier = "growth"\n[[accounts.keys]]\nid = "key"\n'
        f'sha256 = "{hash_key(key_of(account_id))}"\n'
        for account_id in ACCOUNTS
    )
    return (
        f'[server]\ndrain_seconds = 1\n[engine]\nurl = "{url}"\n[replay]\nseconds = {seconds}\n{accounts}'
        f'[[operators]]\nid = "op"\nsha256 = "{hash_key(OPERATOR)}"\n'
    )


def position_of(cursor: str) -> int:
    return int(cursor.partition(".")[2])


class Node:
    """One `broker serve`, at the same address whenever it runs."""

    def __init__(self, folder: Path, number: int) -> None:
        self.address: Address = ("127.0.0.1", free_port())
        self.log = folder / f"node{number}.log"
        self._config = folder / "broker.toml"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            arguments = ["serve", "--config", str(self._config), "--port", str(self.address[1])]
            self.process = subprocess.Popen([*COMMAND, *arguments], stdout=log, stderr=log)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.send(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    async def ready(self) -> None:
        """Wait until it takes clients."""
        while True:
            assert self.process is None or self.process.poll() is None, self.log.read_text()[-2_000:]
            with suppress(*FAILURES):
                with trio.fail_after(2):
                    if (await ask(self.address, "GET", "/readyz")).status == 200:
                        return
            await trio.sleep(0.05)


@dataclass
class Told:
    """What one follower was told, in order: events (id, position) and gaps (after, through, count)."""

    start: int = 0
    events: list[tuple[str, int]] = field(default_factory=list)
    gaps: list[tuple[int, int, int | None]] = field(default_factory=list)
    through: int = 0
    wrong: list[str] = field(default_factory=list)
    _where: dict[str, int] = field(default_factory=dict)

    def event(self, event_id: str, position: int) -> None:
        if position <= self.through:
            self.wrong.append(f"{event_id} at {position} after {self.through}")
        before = self._where.get(event_id)
        if before is not None and not self._lost_between(before, position):
            self.wrong.append(f"{event_id} twice: at {before} and at {position}")
        self._where[event_id] = position
        self.events.append((event_id, position))
        self.through = position

    def gap(self, through: int, count: int | None) -> None:
        self.gaps.append((self.through, through, count))
        self.through = max(self.through, through)

    def torn(self, names: list[str]) -> str:
        """Why the events of a list are not there whole and in one piece, "" if they are, or if none is."""
        there = [self._where[name] for name in names if name in self._where]
        if not there:
            return ""
        expected = list(range(there[0], there[0] + len(names)))
        return "" if there == expected else f"{len(there)} of {len(names)} from {names[0]} on are at {there[:3]}…"

    def has_any(self, names: list[str]) -> bool:
        """Whether anything of a list was told."""
        return any(name in self._where for name in names)

    def _lost_between(self, one: int, other: int) -> bool:
        """Whether another history began between two positions: what was sent again there is another event."""
        return any(one <= after and through <= other and count is None for after, through, count in self.gaps)

    def has(self, event_id: str, position: int) -> bool:
        """Whether an event was told, or is in a gap that was."""
        if event_id in self._where or position <= self.start:
            return True
        return any(after < position <= through for after, through, _ in self.gaps)


class Cluster:
    """Nodes and their server, who publishes to them and who follows."""

    def __init__(self, folder: Path, server: Server, nodes: int = 2, window_seconds: float = 300) -> None:
        self.folder = folder
        self.server = server
        (folder / "broker.toml").write_text(configuration(server.url, window_seconds))
        self.nodes = [Node(folder, number) for number in range(nodes)]
        self.answered: dict[str, dict[str, int]] = {account_id: {} for account_id in ACCOUNTS}
        self.unknown: dict[str, set[str]] = {account_id: set() for account_id in ACCOUNTS}
        self.told = {account_id: Told() for account_id in ACCOUNTS}
        self.lists: list[dict[str, list[str]]] = []
        """The ids of long lists, by account."""
        self.shunned: Node | None = None
        """Where nobody publishes."""
        self.moves = 0
        self.refused = 0
        self._number = 0

    # --- clients

    async def publish(self) -> None:
        """Publish one event or a few, again and again, for ever."""
        while True:
            account_id = random.choice(ACCOUNTS)
            names = [f"e{self._number}.{n}" for n in range(random.choice((1, 1, 1, 3)))]
            self._number += 1
            body = [
                {"type": "x.y", "inbox_id": "i1", "event_id": name, "account_id": account_id, "payload": {"n": name}}
                for name in names
            ]
            with trio.move_on_after(GIVE_UP_SECONDS):
                await self._until_answered({account_id: names}, body)
            await trio.sleep(random.expovariate(50))

    async def publish_lists(self) -> None:
        """Publish long lists for all accounts, one after the other, for ever; what fails often not again."""
        while True:
            self._number += 1
            number = random.randint(*LIST_EVENTS)
            all_names = [f"l{self._number}.{n}" for n in range(number)]
            names = {account_id: all_names[n :: len(ACCOUNTS)] for n, account_id in enumerate(ACCOUNTS)}
            self.lists.append(names)
            body: list[dict[str, object]] = [
                {"type": "x.y", "inbox_id": "i2", "event_id": name, "account_id": account_id, "payload": {}}
                for account_id, of_account in names.items()
                for name in of_account
            ]
            with trio.move_on_after(GIVE_UP_SECONDS):
                await self._until_answered(names, body, tries=random.choice((1, 1, 1_000)))
            await trio.sleep(random.expovariate(5))

    async def _until_answered(
        self, names: dict[str, list[str]], body: list[dict[str, object]], tries: int = 1_000
    ) -> None:
        for account_id, of_account in names.items():
            self.unknown[account_id].update(of_account)
        owners = {name: account_id for account_id, of_account in names.items() for name in of_account}
        for _ in range(tries):
            with suppress(*FAILURES):
                with trio.fail_after(8):
                    node = random.choice([node for node in self.nodes if node is not self.shunned])
                    answer = await post_events(node.address, body, key=OPERATOR)
                if answer.status == 200:
                    for told in answer.result["events"]:
                        name = told["event_id"]
                        self.answered[owners[name]][name] = position_of(told["cursor"])
                        self.unknown[owners[name]].discard(name)
                    return
                assert answer.status == 503, answer.body
                self.refused += 1
            await trio.sleep(0.05)

    async def follow(self, account_id: str, stay_seconds: float = 1e9) -> None:
        """Follow an account for ever, at one node after the other."""
        told = self.told[account_id]
        cursor: str | None = None
        while True:
            query = "inbox_ids=*" + (f"&since={cursor}" if cursor else "")
            with suppress(*FAILURES):
                address = random.choice(self.nodes).address
                async with connected(address, query, key=key_of(account_id), seconds=1e6) as client:
                    self.moves += 1
                    if cursor is None:
                        cursor = client.ready["cursor"]
                        told.start = told.through = position_of(cursor)
                    with trio.move_on_after(random.uniform(0.5, 1.5) * stay_seconds):
                        while True:
                            cursor = self._take(told, await client.next(), cursor)
            await trio.sleep(random.uniform(0, 0.1))

    def _take(self, told: Told, frame: dict[str, object], cursor: str) -> str:
        kind = frame["type"]
        if kind == "replay.gap":
            told.gap(position_of(str(frame["to"])), frame["count"])  # type: ignore[arg-type]
            return str(frame["to"])
        if "event_id" in frame:
            told.event(str(frame["event_id"]), position_of(str(frame["cursor"])))
        return str(frame.get("cursor", cursor))

    # --- the whole

    @asynccontextmanager
    async def under_load(self, publishers: int = 4, stay_seconds: float = 1e9) -> AsyncIterator[None]:
        """Publishers and followers while the block lasts; then all that was answered must be known everywhere."""
        try:
            for node in self.nodes:
                node.start()
            with trio.fail_after(120):
                for node in self.nodes:
                    await node.ready()
            async with trio.open_nursery() as followers:
                for account_id in ACCOUNTS:
                    followers.start_soon(self.follow, account_id, stay_seconds)
                with trio.fail_after(60):
                    while not all(told.start for told in self.told.values()):  # noqa: ASYNC110
                        await trio.sleep(0.02)
                async with trio.open_nursery() as nursery:
                    for _ in range(publishers):
                        nursery.start_soon(self.publish)
                    nursery.start_soon(self.publish_lists)
                    yield
                    nursery.cancel_scope.cancel()
                with trio.move_on_after(SETTLE_SECONDS):
                    for node in self.nodes:
                        await node.ready()
                    while self.missing() or self.torn():  # noqa: ASYNC110
                        await trio.sleep(0.05)
                followers.cancel_scope.cancel()
        finally:
            for node in self.nodes:
                node.kill()

    async def has_answered(self, more: int) -> None:
        """Wait until so many more events are answered."""
        enough = self.answers + more
        while self.answers < enough:  # noqa: ASYNC110
            await trio.sleep(random.uniform(0.01, 0.1))

    @property
    def answers(self) -> int:
        return sum(map(len, self.answered.values()))

    def missing(self) -> list[str]:
        return [
            f"{account_id} {event_id} at {position}"
            for account_id, answered in self.answered.items()
            for event_id, position in answered.items()
            if not self.told[account_id].has(event_id, position)
        ]

    def torn(self) -> list[str]:
        """Lists that are not there whole for all accounts, nor for none."""
        found = []
        for names in self.lists:
            of_each = [(self.told[name], of_account) for name, of_account in names.items() if not self.told[name].gaps]
            found += [why for told, of_account in of_each if (why := told.torn(of_account))]
            if len({told.has_any(of_account) for told, of_account in of_each}) > 1:
                found.append(f"{names[ACCOUNTS[0]][0]} is there for some accounts")
        return found

    def check(self) -> None:
        """Nothing is missing without a gap that says so, nothing comes twice or out of order, counts are right.

        Each list is there whole, or not at all.
        """
        wrong = [f"{account_id}: {text}" for account_id, told in self.told.items() for text in told.wrong]
        missing = self.missing()
        assert not wrong, f"{len(wrong)} wrong: {wrong[:3]}; {self.summary()}"
        assert not missing, f"{len(missing)} missing: {missing[:3]}; {self.summary()}"
        torn = self.torn()
        assert not torn, f"{len(torn)} torn: {torn[:3]}; {self.summary()}"
        for account_id, told in self.told.items():
            seen = {event_id for event_id, _ in told.events}
            for after, through, count in told.gaps:
                if count is not None:
                    answered = sum(after < position <= through for position in self.answered[account_id].values())
                    most = answered + len(self.unknown[account_id] - seen)
                    assert answered <= count <= most, (account_id, after, through, count, answered, most)
        for node in self.nodes:
            said = node.log.read_text()
            assert "Traceback" not in said, said[-4_000:]

    def summary(self) -> str:
        gaps = [gap for told in self.told.values() for gap in told.gaps]
        counts = {
            "answered": self.answers,
            "told": sum(len(told.events) for told in self.told.values()),
            "gaps": len(gaps),
            "counted": sum(count is not None for _, _, count in gaps),
            "lists": len(self.lists),
            "moves": self.moves,
            "refused": self.refused,
        }
        return json.dumps(counts)

    # --- what may befall it

    def any_node(self) -> Node:
        return random.choice(self.nodes)

    async def replica(self) -> Server:
        """A replica of the server, which has all that it has."""
        made = Server("valkey", port=free_port())
        made.start("--replicaof", f"127.0.0.1 {self.server.port}")
        while "master_link_status:up" not in made.command("INFO", "replication"):  # noqa: ASYNC110
            await trio.sleep(0.02)
        return made

    def replace_by(self, replica: Server) -> None:
        """Let a replica be the server from now on, at the same place."""
        self.server.kill()
        os.replace(replica.path, self.server.path)
        self.server._process, replica._process = replica._process, None
        self.server.port = replica.port


async def cut(cluster: Cluster) -> None:
    """Every node's link to the server is cut."""
    cluster.server.command("CLIENT", "KILL", "TYPE", "pubsub")


async def emptied(cluster: Cluster) -> None:
    """The server is emptied."""
    cluster.server.command("FLUSHALL")


async def restarted(cluster: Cluster) -> None:
    """The server dies and comes back empty; with its data, if that is on disk."""
    cluster.server.kill()
    await trio.sleep(random.uniform(0, 1))
    cluster.server.start()


async def stuck(cluster: Cluster) -> None:
    """The server does not answer for a while."""
    cluster.server.freeze()
    await trio.sleep(random.uniform(0.2, 2.5))
    cluster.server.thaw()


async def stuck_for_long(cluster: Cluster) -> None:
    """The server does not answer for so long that publishes are refused."""
    cluster.server.freeze()
    await trio.sleep(7)
    cluster.server.thaw()


async def full(cluster: Cluster) -> None:
    """The server takes nothing more in for a while."""
    cluster.server.command("CONFIG", "SET", "maxmemory", 1)
    await trio.sleep(0.5)
    cluster.server.command("CONFIG", "SET", "maxmemory", 0)


async def killed(cluster: Cluster) -> None:
    """A node is killed, and started again."""
    node = cluster.any_node()
    node.kill()
    await trio.sleep(random.uniform(0, 0.5))
    node.start()
    await node.ready()


async def stopped(cluster: Cluster) -> None:
    """A node stands still for a while."""
    node = cluster.any_node()
    node.send(signal.SIGSTOP)
    await trio.sleep(random.uniform(0.2, 3))
    node.send(signal.SIGCONT)


async def behind(cluster: Cluster) -> None:
    """A node stands still, hears nothing, and goes on when what it has missed has left the window."""
    node = cluster.shunned = cluster.any_node()
    await cluster.has_answered(EVENTS_BETWEEN)
    node.send(signal.SIGSTOP)
    cluster.server.command("CLIENT", "KILL", "TYPE", "pubsub")
    await trio.sleep(2.5)
    node.send(signal.SIGCONT)
    cluster.shunned = None


async def drained(cluster: Cluster) -> None:
    """A node is told to end, and started again, as in a rolling restart."""
    node = cluster.any_node()
    assert node.process is not None
    node.send(signal.SIGTERM)
    await trio.to_thread.run_sync(node.process.wait)
    node.start()
    await node.ready()


async def stale(cluster: Cluster) -> None:
    """A replica takes over that has missed the last moments."""
    replica = await cluster.replica()
    replica.command("REPLICAOF", "127.0.0.1", "1")
    await trio.sleep(0.7)
    replica.command("REPLICAOF", "NO", "ONE")
    cluster.replace_by(replica)
    replica.close()


async def failed_over(cluster: Cluster) -> None:
    """A replica takes over that has everything."""
    replica = await cluster.replica()
    cluster.server.command("FAILOVER")
    while "role:master" not in replica.command("INFO", "replication"):  # noqa: ASYNC110
        await trio.sleep(0.02)
    cluster.replace_by(replica)
    replica.close()


async def first_replica(cluster: Cluster) -> None:
    """The server gets a replica, and loses it."""
    replica = await cluster.replica()
    await trio.sleep(0.3)
    replica.close()


async def anything(cluster: Cluster) -> None:
    await random.choice([cut, cut, emptied, restarted, stuck, killed, stopped, full])(cluster)


Fault = Callable[[Cluster], Awaitable[None]]


async def befall(cluster: Cluster, fault: Fault, times: int) -> None:
    """Let something happen to a cluster, so often, each time while events come in."""
    for _ in range(times):
        await cluster.has_answered(EVENTS_BETWEEN)
        await fault(cluster)
    await cluster.has_answered(EVENTS_BETWEEN)
