"""A broker under load for long: `make soak`, or `python -m proofs.soaking --seconds 1800`; exits with 1 if it broke.

Connections come and go at a `broker serve` of their own while events are published at a steady rate. A subscriber
resumes by its cursor, and a few stay away for longer than the window. At the end each has every event of its inboxes
once and in order, or was told by gaps exactly how many it missed. From when the window is full, what the broker holds
stays flat: its resident memory, descriptors and tasks in the last third of the time are not above those of the first
by more than `accounting` says. When all have left, it is at rest as before, and ends with 0 and no error in its log.
"""

import argparse
import json
import math
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from chaos import Node
from clients import PING, PONG, TEXT, Closed, WebSocket, ask, connected, masked, post_events, reset
from proofs.accounting import MIB, Sample, Subscriber, not_flat

from broker.keys import hash_key
from broker.transport.files import raise_open_files_limit

ACCOUNTS = [f"acct_{number}" for number in range(8)]
INBOXES = [f"in_{number}" for number in range(25)]
"""Of each account."""
EVERYTHING_EACH = 49
"""The first subscriber and each so many later holds all inboxes of its account; others hold one to three."""
OPERATOR = "dm_operator_of_the_soak"
LONG_WINDOW_SECONDS, LONG_STAY_SECONDS = 300, 20.0
LINE_SECONDS = 10
SETTLE_SECONDS = 60.0
FAILURES = (OSError, AssertionError, Closed, ValueError, IndexError, trio.BrokenResourceError, trio.TooSlowError)
LATE_SECONDS = 2.0
"""If the clients' own loop is later than that, it may need longer to say a head than the broker waits for one."""


@dataclass(frozen=True)
class Plan:
    """What is done.

    Args:
        seconds: how long events come.
        connections: how many subscribers there are, each with one connection at a time.
        events_per_second: of all accounts.
        lose: how many events clients lose on their way, whose cursors they know all the same.
        patience_seconds: how long a subscriber's last visit may take.
    """

    seconds: float = 1800
    connections: int = 1000
    events_per_second: float = 200
    lose: int = 0
    patience_seconds: float = SETTLE_SECONDS

    @property
    def window_seconds(self) -> float:
        return min(LONG_WINDOW_SECONDS, self.seconds / 6)

    @property
    def warm_up_seconds(self) -> float:
        """Until the window is full, and a little more."""
        return self.window_seconds * 1.2

    @property
    def stay_seconds(self) -> float:
        """On average; where there are many connections in a short time, not more visits than a core can make."""
        return min(LONG_STAY_SECONDS, max(self.seconds / 8, self.connections / 100))

    @property
    def long_away_share(self) -> float:
        """Of visits after which a subscriber stays away for longer than the window: some each fifth one once."""
        return 0.2 * self.stay_seconds / self.seconds


def configuration(window_seconds: float) -> str:
    """A broker.toml."""
    accounts = "".join(
        f'[[accounts]]\nid = "{account}"\ntier = "enterprise"\n'
        f'[[accounts.keys]]\nid = "key"\nsha256 = "{hash_key(key_of(account))}"\n'
        f'[[accounts.keys]]\nid = "publisher"\nsha256 = "{hash_key(publisher_of(account))}"\nscopes = ["publish"]\n'
        for account in ACCOUNTS
    )
    return (
        f'[logs]\nlevel = "warning"\n[replay]\nseconds = {window_seconds}\n{accounts}'
        f'[[operators]]\nid = "op"\nsha256 = "{hash_key(OPERATOR)}"\n'
    )


def key_of(account: str) -> str:
    return f"dm_live_{account}"


def publisher_of(account: str) -> str:
    return f"dm_live_publisher_{account}"


@dataclass
class Soak:
    """A broker at work, who publishes and who subscribes."""

    plan: Plan
    node: Node
    subscribers: list[Subscriber] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    broke: list[str] = field(default_factory=list)
    """What is not as it should be."""
    visits: int = 0
    late: int = 0
    """Failures of clients that had no time themselves: this machine's, not the broker's."""
    _late_at: float = -1.0
    _open: int = 0
    _lost: int = 0
    _published: dict[str, Counter[str]] = field(default_factory=lambda: {account: Counter() for account in ACCOUNTS})

    async def run(self) -> None:
        """Do all of it."""
        await self.node.ready()
        await self._begin()
        before = await self._sample(0)
        async with trio.open_nursery() as whole:
            whole.start_soon(self._notice_when_late)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                with trio.move_on_after(self.plan.seconds):
                    async with trio.open_nursery() as load:
                        for account in ACCOUNTS:
                            load.start_soon(self._publish, account)
                        for subscriber in self.subscribers:
                            load.start_soon(self._come_and_go, subscriber)
                nursery.cancel_scope.cancel()
            await self._have_the_rest()
            whole.cancel_scope.cancel()
        await self._come_to_rest(before)
        self.broke += not_flat([s for s in self.samples if s.second > self.plan.warm_up_seconds])
        self._look_at_subscribers()

    @property
    def published(self) -> int:
        return sum(map(Counter.total, self._published.values()))

    async def _notice_when_late(self) -> None:
        while True:
            due = trio.current_time() + LATE_SECONDS / 4
            await trio.sleep_until(due)
            if trio.current_time() > due + LATE_SECONDS:
                self._late_at = trio.current_time()

    def _failed(self, began_at: float, what: str) -> None:
        """Note what failed since a time, unless the clients had no time themselves meanwhile."""
        if self._late_at >= began_at:
            self.late += 1
        else:
            self.broke.append(what)
            print(what, flush=True)

    # --- clients

    async def _begin(self) -> None:
        """Make the subscribers, who all begin before the first event."""
        heads = {}
        for account in ACCOUNTS:
            answer = await ask(self.node.address, "GET", "/v1/events?inbox_ids=*", key=key_of(account))
            heads[account] = answer.result["cursor"]
        for number in range(self.plan.connections):
            account, everything = ACCOUNTS[number % len(ACCOUNTS)], number % EVERYTHING_EACH == 0
            inboxes = INBOXES if everything else random.sample(INBOXES, random.choice((1, 2, 3)))
            self.subscribers.append(Subscriber(account, frozenset(inboxes), everything, heads[account]))

    async def _publish(self, account: str) -> None:
        """Publish one event or a few at their times, for ever."""
        try:
            async with connected(self.node.address, key=publisher_of(account), seconds=1e9) as websocket:
                await self._publish_by(websocket, account)
        except FAILURES as error:
            self.broke.append(f"a publish of {account} failed: {error!r}")

    async def _publish_by(self, websocket: WebSocket, account: str) -> None:
        published, number, due = self._published[account], 0, trio.current_time()
        while True:
            inboxes = random.choices(INBOXES, k=random.choice((1, 1, 1, 2, 5)))
            due += len(inboxes) * len(ACCOUNTS) / self.plan.events_per_second
            await trio.sleep_until(due)
            events = []
            for inbox in inboxes:
                number += 1
                published[inbox] += 1
                payload = {"account": account, "number": number, "in_inbox": published[inbox], "text": "x" * 200}
                events.append({"type": "soak.event", "inbox_id": inbox, "event_id": f"e{number}", "payload": payload})
            with trio.CancelScope(shield=True), trio.fail_after(SETTLE_SECONDS):  # what is counted is published
                if account == ACCOUNTS[0]:
                    await self._publish_by_request(account, events)
                else:
                    await websocket.say(action="publish", request_id=str(number), events=events)
                    said = await websocket.answer(str(number))
                    assert "result" in said, said

    async def _publish_by_request(self, account: str, events: list[dict[str, Any]]) -> None:
        """Publish, and again if there was no answer: the ids are the same."""
        while True:
            began_at = trio.current_time()
            try:
                answer = await post_events(self.node.address, events, key=publisher_of(account))
            except FAILURES as error:
                self._failed(began_at, f"a publish of {account} had no answer: {error!r}")
            else:
                assert answer.status == 200, answer.body
                return

    async def _come_and_go(self, subscriber: Subscriber) -> None:
        await trio.sleep(random.uniform(0, min(5, self.plan.seconds / 10)))
        while True:
            await self._visit(subscriber, self._stay_a_while)
            if random.random() < self.plan.long_away_share:
                await trio.sleep(self.plan.window_seconds * 1.2)
            else:
                await trio.sleep(random.expovariate(2 / min(2, self.plan.stay_seconds)))

    async def _stay_a_while(self, subscriber: Subscriber, websocket: WebSocket) -> None:
        with trio.move_on_after(random.expovariate(1 / self.plan.stay_seconds)):
            while True:
                await self._hear(subscriber, websocket)
        await _leave(websocket)

    async def _stay_for_the_rest(self, subscriber: Subscriber, websocket: WebSocket) -> None:
        while subscriber.owed(self._published[subscriber.account_id]):
            await self._hear(subscriber, websocket)

    async def _visit(self, subscriber: Subscriber, stay: Callable[[Subscriber, WebSocket], Awaitable[None]]) -> None:
        """A connection that resumes; that it is refused, or an end that nobody asked for, is noted."""
        began_at = trio.current_time()
        try:
            async with connected(
                self.node.address, subscriber.query, key=key_of(subscriber.account_id), seconds=1e9
            ) as websocket:
                began_at = math.inf
                self.visits += 1
                self._open += 1
                try:
                    await stay(subscriber, websocket)
                finally:
                    self._open -= 1
        except FAILURES as error:
            self._failed(began_at, f"a connection was refused, or ended that nobody had ended: {error!r}")
            await trio.sleep(1)

    async def _hear(self, subscriber: Subscriber, websocket: WebSocket) -> None:
        opcode, payload = await websocket.frame()
        if opcode == PING:
            await websocket.send(masked(PONG, payload))
        elif opcode == TEXT:
            frame = json.loads(payload)
            if "payload" in frame and self._lost < self.plan.lose:
                self._lost += 1
                subscriber.cursor = frame["cursor"]
            else:
                subscriber.take(frame)

    async def _have_the_rest(self) -> None:
        """Let each subscriber come once more, and stay until it has everything."""
        places = trio.CapacityLimiter(100)

        async def have_the_rest(subscriber: Subscriber) -> None:
            async with places:
                with trio.move_on_after(self.plan.patience_seconds):
                    await self._visit(subscriber, self._stay_for_the_rest)

        async with trio.open_nursery() as nursery:
            for subscriber in self.subscribers:
                nursery.start_soon(have_the_rest, subscriber)

    def _look_at_subscribers(self) -> None:
        for number, subscriber in enumerate(self.subscribers):
            wrong = list(subscriber.wrong)
            owed = subscriber.owed(self._published[subscriber.account_id])
            if owed:
                wrong.append(f"at the end {owed} events neither came nor were in a gap")
            self.broke += [f"subscriber {number}: {text}" for text in wrong]

    # --- what the broker holds

    async def _watch(self) -> None:
        """Look at it some sixty times or more, and tell of it every few seconds."""
        begun, told = trio.current_time(), 0.0
        while True:
            await trio.sleep(min(LINE_SECONDS, max(0.25, self.plan.seconds / 60)))
            second = trio.current_time() - begun
            try:
                self.samples.append(await self._sample(second))
            except FAILURES as error:
                self._failed(begun + second, f"the operator got no answer at {second:.0f} s: {error!r}")
                continue
            if second - told >= LINE_SECONDS:
                told = second
                print(self._line(self.samples[-1]), flush=True)

    async def _sample(self, second: float) -> Sample:
        process = Path(f"/proc/{self._process_id}")
        tree = await ask(self.node.address, "GET", "/debug/tasks?grouped=1", key=OPERATOR)
        metrics = await ask(self.node.address, "GET", "/metrics", key=OPERATOR)
        lines = metrics.body.decode().splitlines()
        dropped = [line.split()[-1] for line in lines if line.startswith("broker_window_dropped_events_total{")]
        return Sample(
            second=second,
            dropped=int(sum(map(float, dropped))),
            resident_bytes=int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            descriptors=len(os.listdir(process / "fd")),
            tasks=tree.result["tasks"],
        )

    @property
    def _process_id(self) -> int:
        assert self.node.process is not None
        return self.node.process.pid

    def _line(self, sample: Sample) -> str:
        return (
            f"{sample.second:6.0f} s  {self._open:5} open  {self.visits:7,} visits  {self.published:8,} published  "
            f"{sum(s.events for s in self.subscribers):10,} told  {sum(s.gaps for s in self.subscribers):4} gaps  "
            f"{sample.resident_bytes / MIB:7.1f} MiB  {sample.descriptors:5} descriptors  {sample.tasks:5} tasks"
        )

    async def _come_to_rest(self, before: Sample) -> None:
        """When all have left, no descriptor and no task is there that was not before; told to end, it ends well."""
        after = before
        with trio.move_on_after(SETTLE_SECONDS / 3):
            while True:
                after = await self._sample(0)
                if after.descriptors <= before.descriptors and after.tasks <= before.tasks:
                    break
                await trio.sleep(0.2)
        for name in ("descriptors", "tasks"):
            if getattr(after, name) > getattr(before, name):
                self.broke.append(f"{getattr(after, name)} {name} at rest, {getattr(before, name)} before the first")
        self.node.send(signal.SIGTERM)
        process = self.node.process
        assert process is not None
        code = await trio.to_thread.run_sync(process.wait, SETTLE_SECONDS)
        if code:
            self.broke.append(f"the broker ended with {code}")
        said = self.node.log.read_text()
        if "Traceback" in said or '"level":"error"' in said.replace(" ", ""):
            self.broke.append(f"its log has errors: {said[-2_000:]}")


async def _leave(websocket: WebSocket) -> None:
    """Go as clients do: with a Close, without a word, or by a reset."""
    way = random.choice(("close", "end", "reset"))
    if way == "reset":
        reset(websocket.stream)  # type: ignore[arg-type]
    elif way == "close":
        await websocket.say_close()
        with trio.fail_after(SETTLE_SECONDS):
            await websocket.until_closed()


async def soak(plan: Plan) -> Soak:
    """Do what a plan says, and return what came of it."""
    raise_open_files_limit()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "broker.toml").write_text(configuration(plan.window_seconds))
        node = Node(folder, 0)
        made = Soak(plan, node)
        node.start()
        try:
            await made.run()
        finally:
            node.kill()
    return made


def main() -> int:
    """Return 1 if a promise broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, usual, told in (
        ("--seconds", Plan.seconds, "how long"),
        ("--connections", Plan.connections, "that come and go"),
        ("--events-per-second", Plan.events_per_second, "that are published"),
        ("--lose", Plan.lose, "events that the clients lose, to see that it is found out"),
        ("--patience-seconds", Plan.patience_seconds, "that the last visit of each may take"),
    ):
        parser.add_argument(name, type=type(usual), default=usual, help=told)
    done = trio.run(soak, Plan(**vars(parser.parse_args())))
    missed = sum(subscriber.told_missing for subscriber in done.subscribers)
    if done.samples:
        print(done._line(done.samples[-1]))
    if done.published < 0.9 * done.plan.seconds * done.plan.events_per_second:
        print(f"only {done.published / done.plan.seconds:,.0f} events/s: this machine had no time for more")
    if done.late:
        print(f"{done.late} times the clients themselves were late: this machine had no time for them")
    for text in done.broke[:20]:
        print(f"BROKE: {text}")
    told = f"{done.published:,} events published, {missed:,} told to be missed, {done.visits:,} visits"
    print(f"{told}: {len(done.broke)} promises broke" if done.broke else f"{told}: all accounted for, and flat")
    return 1 if done.broke else 0


if __name__ == "__main__":
    sys.exit(main())
