"""Whatever is done in whatever order, PROTOCOL section 3 holds, over real sockets, of a real broker, from end to end.

Publish, subscribe, filter, stop reading, cut, come back by cursor or by what was acknowledged, take over, change keys,
drain and begin again; with memory alone, with a log on disk (and then webhooks that fail and queues that are worked
at), as a process that is killed, and as two nodes at one engine: hypothesis chooses, and a `Witness` for each client
judges.
"""

import os

import trio
from clients import ACCOUNT, masked, post_events, until
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from proofs.clientele import ACCOUNTS, NAMES
from proofs.promises import KINDS, Owing, Promises, accounts, kinds, made, nodes, one_of, slots
from proofs.proving import PROVING, more
from proofs.stages import FAILURES, Pair, Process

from broker.config import EngineConfig

MUTATING = os.environ.get("BROKER_MUTATING") == "1"


class InMemory(Promises):
    """All is in memory: what is too old is gone, and a restart forgets the rest."""

    async def store_just_before(self, account, events, node):
        """Publish in the very step in which the drain begins."""
        stored = await self.stage.broker.publish(account, events)
        self.stage.broker.start_draining()
        told = [
            {"event_id": event["event_id"], "cursor": each.cursor} for event, each in zip(events, stored, strict=True)
        ]
        self.answered(account, events, told)

    @rule()
    def expire(self):
        """All that is there becomes too old. Clients say something before: they live."""

        async def act():
            for client in self.open_clients():
                await client.catch_up()
                await client.stream.send_all(masked(0x9, b""))
            await trio.testing.wait_all_tasks_blocked(0.02)

        async def gone():
            await until(lambda: self.stage.broker.statistics().replay.events == 0)

        async def jump():
            self.theatre.clock.jump(310)

        self.theatre.do(act)
        self.theatre.set(jump)
        self.theatre.do(gone)
        for history in self.histories.values():
            history.expire(self.theatre.clock.current_time())


class OnDisk(Owing):
    """There is a log on disk."""


class Killed(Owing):
    """The broker is a process, with a log on disk, and may be killed in the middle of what it does."""

    most_ends = more(2, 5)

    def make_stage(self):
        return Process(self.theatre, self.folder)

    def at_the_end(self):
        self.be_killed(ACCOUNT, KINDS[0], 6, 0.01)
        super().at_the_end()

    @precondition(lambda self: self.ends < self.most_ends)
    @rule(
        account=accounts, kind=kinds, count=st.sampled_from((1, 6, 12)), after=st.sampled_from((0.0, 0.003, 0.01, 0.03))
    )
    def be_killed(self, account, kind, count, after):
        """Publishes are under way: what was answered is there after, what was not is there once if it is sent again."""
        self.ends += 1
        names = self.new_names(count)
        answered = {}

        async def publish(name):
            events = made(NAMES[0], [name], kind, 300)
            try:
                answer = await post_events(self.address(), events, key=ACCOUNTS[account])
                [answered[name]] = answer.result["events"]
            except FAILURES:
                pass  # it is not known whether it is stored

        async def act():
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(publish, name)
                await trio.sleep(after)
                self.another_life()
                self.stage.kill()
            await self.stage.begin_again(0)
            self.another_life()
            again = [await self._send_again(account, name, kind) for name in names]
            for said in again:
                before = answered.get(said["event_id"])
                assert before is None or said == before | {"duplicate": True}, f"{before}, then {said}"
            history = self.histories[account]
            for said in sorted(again, key=lambda said: history.position_of(said["cursor"])):
                self.published(account, history.stored(NAMES[0], said["event_id"], kind, said["cursor"]))
            for client in self.open_clients():
                await client.hear_the_rest()

        self.theatre.do(act)
        self.all_come_back()

    async def _send_again(self, account, name, kind):
        answer = await post_events(self.address(), made(NAMES[0], [name], kind, 300), key=ACCOUNTS[account])
        [said] = answer.result["events"]
        return said


class Joined(Promises):
    """Two nodes are one broker; clients move from one to the other."""

    forgets = False
    shared = True

    def make_stage(self):
        return Pair(self.theatre)

    def sections(self):
        return {"engine": EngineConfig(url=self.stage.server.url)}

    def teardown(self):
        try:
            super().teardown()
        finally:
            if hasattr(self, "stage"):
                self.stage.server.close()

    @precondition(lambda self: self.open_clients() and not self.narrowed)
    @rule(slot=slots, node=nodes, count=st.sampled_from((1, 3)))
    def acknowledge_and_move(self, slot, node, count):
        """Acknowledge, be cut, miss something, and go on from there at the other node."""
        client = one_of(self.open_clients(), slot)
        elsewhere = int(client.address == self.address(0))
        self.let_acknowledge(client)
        self.theatre.do(client.leave)
        events = made(NAMES[0], self.new_names(count), KINDS[0])
        self.theatre.do(self.store, client.account, events, node)
        self.resume_acknowledged(client, elsewhere)

    @rule(account=accounts, kind=kinds, inbox=st.sampled_from(NAMES), node=nodes)
    def publish_at_both(self, account, kind, inbox, node):
        """The same event is sent to both nodes at once: it is stored once."""
        [name] = self.new_names(1)
        said = []

        async def publish(at):
            answer = await post_events(self.address(at), made(inbox, [name], kind), key=ACCOUNTS[account])
            said.extend(answer.result["events"])

        async def act():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish, node)
                nursery.start_soon(publish, node + 1)

        self.theatre.do(act)
        first, again = sorted(said, key=lambda each: each.get("duplicate", False))
        assert (first.get("duplicate"), again) == (None, first | {"duplicate": True})
        self.histories[account].answered(inbox, name, kind, first)


# To tell a failure in fewer steps takes minutes: each step is of a real broker.
def limits(usually, when_mutating, when_proving):
    return settings(
        max_examples=when_mutating if MUTATING else more(usually, when_proving),
        stateful_step_count=40,
        phases=(Phase.generate,),
        derandomize=not PROVING,
        database=None,
        deadline=None,
    )


InMemory.TestCase.settings = limits(15, 40, 100)
OnDisk.TestCase.settings = limits(8, 20, 40)
Killed.TestCase.settings = limits(3, 8, 10)
Joined.TestCase.settings = limits(10, 20, 60)
TestPromisesInMemory = InMemory.TestCase
TestPromisesOnDisk = OnDisk.TestCase
TestPromisesKilled = Killed.TestCase
TestPromisesOfTwoNodes = Joined.TestCase
