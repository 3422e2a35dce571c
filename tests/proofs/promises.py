"""The state machine end to end: what may happen to a broker and its clients, in any order, whatever runs the broker.

`Promises` has what holds of every broker, `Owing` what a log on disk brings: webhooks and queues. A variant says where
its broker runs and adds what can befall it there (`test_stateful`).
"""

import json
import shutil
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

import trio
from apis import SECRET as API_SECRET
from apis import json_answer, running_api
from clients import ACCOUNT, ALICE, INBOXES, ask, configured, post_events
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs
from proofs.clientele import ACCOUNTS, NAMES, NARROWED, REACHED, SLOTS, clients_of
from proofs.owed import CUTS, REFUSES, SECRET, TAKES, Endpoint, Queue, Wanted
from proofs.proving import more
from proofs.stages import Stage
from proofs.theatre import Theatre
from proofs.witness import OWN, History
from receivers import receiving

from broker import ReplayConfig
from broker.config import (
    AccountQueueConfig,
    AccountWebhookConfig,
    CommandsConfig,
    StorageConfig,
    WebhooksConfig,
)

WINDOW = 25
KINDS = ("a.b", "a.c", "m.n")
LONG_SECONDS = 3_600
NAPS = more(1, 3)
"""How often one sleeps through a lease in one go: each takes a second."""
WEBHOOK_SECONDS = 30
slots = st.integers(0, len(SLOTS) - 1)
workers = st.integers(0, 1)
"""The clients whose key reaches all of the account that has queues."""
nodes = st.integers(0, 1)
accounts = st.sampled_from(sorted(ACCOUNTS))
kinds = st.sampled_from(KINDS)
inboxes = st.sampled_from(NAMES)
selections = st.sampled_from((("*",), NAMES[:1], NAMES[:2], NAMES[1:]))
filters = st.sampled_from((None, None, None, ("a.*",), ("m.n",), ("a.b", "m.*")))


class Promises(RuleBasedStateMachine):
    """The broker, its clients, and all that may happen wherever it runs."""

    forgets = True
    """Whether a restart does."""
    window: int | None = WINDOW
    shared = False
    ends = 0
    """How often a broker has ended, of how often it may."""
    most_ends = 10

    @initialize(chosen=st.tuples(*[selections] * len(SLOTS)), types=filters, small_steps=st.booleans())
    def begin(self, chosen, types, small_steps):
        self.folder = Path(tempfile.mkdtemp())
        self.numbers = 0
        self.narrowed = False
        lags = small_steps or self.shared
        self.histories = {account: History(self.window, self.shared, lags) for account in ACCOUNTS}
        self.theatre = Theatre()
        self.stage = self.make_stage()
        self.stage.small_steps = small_steps
        self.theatre.set(self.open)
        self.clients = clients_of(self.histories)
        for slot, selection in enumerate(chosen):
            self.come(slot, selection, types if slot == 1 else None, slot)
        for account in ACCOUNTS:
            for inbox in NAMES:
                self._publish(account, inbox, 2, KINDS[0], 10, False, 0)

    def make_stage(self):
        return Stage(self.theatre)

    async def open(self):
        """Begin all that is there; it ends with the theatre's stack."""
        await self.stage.open(self.config())

    def teardown(self):
        if not hasattr(self, "clients"):
            return
        failed = sys.exception()
        if isinstance(failed, Exception):  # told at once: it may not come again when hypothesis tries it once more
            traceback.print_exception(failed)
        try:
            if failed is None:
                self.at_the_end()
        finally:
            with suppress(Exception):
                for client in self.open_clients():
                    self.theatre.do(client.leave)
            with suppress(Exception):
                self.theatre.end()
            shutil.rmtree(self.folder, ignore_errors=True)

    def at_the_end(self):
        for client in self.open_clients():
            self.theatre.do(client.catch_up)

    def sections(self):
        """What the configuration has beside accounts."""
        return {}

    def config(self):
        config = configured(replay=ReplayConfig(max_events_per_account=WINDOW), **self.sections())
        if not self.narrowed:
            return config
        alice, bob = config.accounts
        keys = tuple(structs.replace(key, inbox_ids=tuple(NARROWED)) if key.inbox_ids else key for key in alice.keys)
        return structs.replace(config, accounts=(structs.replace(alice, keys=keys), bob))

    def open_clients(self):
        return [client for client in self.clients if client.stream is not None]

    def of_some(self):
        """Clients that hold single inboxes, of a key that reaches more."""
        return [c for c in self.open_clients() if c.key != INBOXES and c.selection != ("*",)]

    def away(self):
        """Clients that can come back."""
        return [c for c in self.clients if c.stream is None and c.selection and c.witness.last is not None]

    def away_and_acknowledged(self):
        """Those of them that can come back to what they acknowledged."""
        return [] if self.narrowed else [client for client in self.away() if client.acked is not None]

    def address(self, number=0):
        return self.stage.address(number % self.stage.nodes)

    # --- what may happen

    @rule(
        account=accounts,
        inbox=inboxes | st.just(OWN),
        count=st.sampled_from((1, 1, 3)),
        kind=kinds,
        again=st.booleans(),
        node=nodes,
    )
    def publish(self, account, inbox, count, kind, again, node):
        """Publish some events; perhaps one of them a second time."""
        self._publish(account, inbox, count, kind, 10, again, node)

    @rule(
        account=accounts,
        inbox=inboxes,
        count=st.sampled_from((5, 20, 40, 40)),
        kind=kinds,
        size=st.sampled_from((300, 9_000, 9_000)),
        node=nodes,
    )
    def publish_much(self, account, inbox, count, kind, size, node):
        """Publish more than a client that does not read takes, or than the window holds."""
        self._publish(account, inbox, count, kind, size, False, node)

    def new_names(self, count):
        self.numbers += count
        return [f"evt_{number}" for number in range(self.numbers - count + 1, self.numbers + 1)]

    def _publish(self, account, inbox, count, kind, size, again, node):
        names = self.new_names(count)
        if again:
            names.append(names[0])
        self.theatre.do(self.store, account, made(inbox, names, kind, size), node)

    async def store(self, account, events, node):
        """Publish, and take what the broker says of it."""
        answer = await post_events(self.address(node), events, key=ACCOUNTS[account])
        self.answered(account, events, answer.result["events"])

    def answered(self, account, events, told):
        """Take what the broker says of events that were published."""
        for event, said in zip(events, told, strict=True):
            inbox, name = event.get("inbox_id", OWN), event["event_id"]
            self.published(account, self.histories[account].answered(inbox, name, event["type"], said))

    def published(self, account, event):
        """Hear of an event that is stored; None: it was there before."""

    @rule(account=accounts, inbox=inboxes, back=st.integers(1, 40), node=nodes)
    def publish_again(self, account, inbox, back, node):
        """Publish an event of before once more: it is known while the window holds it."""
        known = [event for event in self.histories[account].events if event.inbox == inbox]
        if known:
            event = known[-min(back, len(known))]
            self.theatre.do(self.store, account, made(inbox, [event.event_id], event.type), node)

    @rule(slot=slots, selection=selections, types=filters, node=nodes)
    def come(self, slot, selection, types, node):
        """Connect anew; who is there already is taken over."""
        client = self.clients[slot]
        selection = self._within_reach(client, selection)
        if client.stream is not None:
            self.theatre.do(client.be_taken_over, self.address(node), selection, types)
        else:
            if client.witness.history.lags:  # what it begins with may be before what it has seen
                client.witness.seen_through = max(client.witness.seen, default=0)
            self.theatre.do(client.open, self.address(node), selection, types, None)
        client.acked = None

    def _within_reach(self, client, selection):
        if client.key != INBOXES:
            return selection
        reached = NARROWED if self.narrowed else REACHED[INBOXES]
        return tuple(name for name in selection if name in reached) or tuple(NARROWED)

    @precondition(away)
    @rule(slot=slots, node=nodes)
    def come_back(self, slot, node):
        """Come back with the last cursor, to the same inboxes."""
        self._resume(one_of(self.away(), slot), node)

    def _resume(self, client, node):
        since = client.witness.last, client.witness.last
        selection = self._within_reach(client, client.selection)
        self.theatre.do(client.open, self.address(node), selection, client.types, since)

    def all_come_back(self):
        for number, client in enumerate(self.away()):
            self._resume(client, number)

    @precondition(away_and_acknowledged)
    @rule(slot=slots, node=nodes)
    def come_back_to_what_was_acknowledged(self, slot, node):
        self.resume_acknowledged(one_of(self.away_and_acknowledged(), slot), node)

    def resume_acknowledged(self, client, node):
        through = client.witness.history.position_of(client.acked)
        client.witness.seen = {position for position in client.witness.seen if position <= through}
        since = "acked", client.acked
        self.theatre.do(client.open, self.address(node), client.selection, client.types, since)

    @precondition(lambda self: self.open_clients())
    @rule(slot=slots)
    def read(self, slot):
        """Read all that is owed."""
        self.theatre.do(one_of(self.open_clients(), slot).catch_up)

    @precondition(lambda self: self.open_clients())
    @rule(slot=slots)
    def be_cut(self, slot):
        self.theatre.do(one_of(self.open_clients(), slot).leave)

    @precondition(lambda self: self.open_clients())
    @rule(slot=slots, node=nodes)
    def be_cut_and_come_back(self, slot, node):
        """The usual case: the network fails for a moment."""
        client = one_of(self.open_clients(), slot)
        self.theatre.do(client.leave)
        if client.selection:
            self._resume(client, node)

    @precondition(lambda self: self.of_some())
    @rule(slot=slots, selection=selections, types=filters, back=st.none() | st.integers(0, 40) | st.integers(0, 12))
    def subscribe(self, slot, selection, types, back):
        """Subscribe to more, from now on or from an event of before; perhaps to other types."""
        client = one_of(self.of_some(), slot)
        if selection == ("*",):
            selection = NAMES
        fields = {"inbox_ids": list(selection)} | ({} if types is None else {"event_types": list(types)})
        self._change(client, "subscribe", None if back is None else self._cursor_of(client, back), fields)

    def _cursor_of(self, client, back):
        """The cursor of an event of before; None if there is none."""
        history = client.witness.history
        events = history.events
        return f"{history.prefix}.{events[-min(back, len(events) - 1) - 1].position}" if events else None

    @precondition(lambda self: self.of_some())
    @rule(slot=slots, name=inboxes)
    def unsubscribe(self, slot, name):
        client = one_of(self.of_some(), slot)
        if client.selection == (name,) or name not in client.selection:
            return
        self._change(client, "unsubscribe", None, {"inbox_ids": [name]})

    @precondition(lambda self: self.of_some())
    @rule(slot=slots, name=inboxes, back=st.integers(0, 12))
    def leave_an_inbox_and_come_back_to_it(self, slot, name, back):
        """What came meanwhile, and a little of what was before, comes then."""
        client = one_of(self.of_some(), slot)
        if name in client.selection and client.selection != (name,):
            for action, since in (("unsubscribe", None), ("subscribe", self._cursor_of(client, back))):
                self._change(client, action, since, {"inbox_ids": [name]})

    def _change(self, client, action, since, fields):
        async def act():
            await client.catch_up()
            return await client.ask(action, since, **fields)

        answer = self.theatre.do(act)
        assert "result" in answer, answer
        client.selection, client.acked = tuple(answer["result"]["inbox_ids"]), None
        client.types = client.witness.types

    @precondition(lambda self: self.open_clients())
    @rule(slot=slots)
    def acknowledge(self, slot):
        """Acknowledge all that came."""
        self.let_acknowledge(one_of(self.open_clients(), slot))

    def let_acknowledge(self, client):
        async def act():
            await client.catch_up()
            cursor = client.witness.last
            answer = await client.ask("ack", cursor=cursor)
            assert answer["result"]["cursor"] == cursor, answer
            client.acked = cursor

        self.theatre.do(act)

    @rule()
    def change_keys(self):
        """The key of two inboxes loses one of them, or gets it back."""
        self.narrowed = not self.narrowed
        narrowed = [client for client in self.clients if client.key == INBOXES]
        reach = NARROWED if self.narrowed else REACHED[INBOXES]

        async def act():
            for client in narrowed:
                client.witness.reach = reach
            await self.stage.reload(self.config())
            for client in narrowed:
                if client.stream is not None:
                    await client.catch_up()
                    assert client.witness.reached.keys() <= reach
                client.selection, client.acked = client.selection and tuple(NARROWED), None

        self.theatre.do(act)

    @precondition(lambda self: self.ends < self.most_ends)
    @rule(account=accounts, count=st.sampled_from((0, 3, 20)), kind=kinds, node=nodes)
    def drain_and_begin_again(self, account, count, kind, node):
        """All clients of a node are told, get all that is there, and are closed; then there is another."""
        self.ends += 1
        node %= self.stage.nodes
        names = self.new_names(count)

        async def act():
            # Much that is for few goes before what is for many: of that nothing was sent yet when the drain begins.
            events = [*made(NAMES[2], names[:-3], kind, 9_000), *made(NAMES[0], names[-3:], kind)]
            if events:
                await self.store_just_before(account, events, node)
            clients = [client for client in self.open_clients() if client.address == self.address(node)]
            self.another_life()
            await self.stage.start_draining(node)
            for client in clients:
                owed = client.witness.owed
                await client.until_closed()
                assert client.witness.closed == 1012, client.witness.closed
                assert client.witness.drained
                assert not client.witness.owed or self.shared, owed

        self.theatre.do(act)
        self.theatre.do(self.stage.begin_again, node)
        self.another_life()
        if self.forgets:
            for history in self.histories.values():
                history.begin_again()
            for client in self.clients:
                client.witness.seen, client.acked = set(), None
        self.all_come_back()

    async def store_just_before(self, account, events, node):
        """Publish, just before a drain begins."""
        await self.store(account, events, node)

    def another_life(self):
        """Hear that a broker begins to end, or that another has begun."""

    @invariant()
    def nothing_but_what_was_done_ends_a_connection(self):
        for client in getattr(self, "clients", ()):
            assert client.stream is None or client.witness.closed is None, client.witness.closed


def one_of(clients, slot):
    """The client that is meant, of those that can."""
    return clients[slot % len(clients)]


def made(inbox, names, kind, size=10):
    """Events to publish."""
    where = {} if inbox == OWN else {"inbox_id": inbox}
    return [{"type": kind, "event_id": name, "payload": {"x": "y" * size}, **where} for name in names]


class Owing(Promises):
    """The same with a log on disk: a restart forgets nothing, endpoints are posted to, and workers take events."""

    forgets = False
    window = None
    slept = 0

    async def open(self):
        self.endpoints = [
            Endpoint("each", Wanted(), in_line=False),
            Endpoint("line", Wanted(NAMES[:2], ("a.*",)), in_line=True),
        ]
        self.queues = [
            Queue("pool", Wanted(types=("a.*", "queue.*")), in_line=False),
            Queue("line", Wanted(NAMES[:2], own=False), in_line=True),
        ]
        for endpoint in self.endpoints:
            endpoint.stand_at(await self.theatre.stack.enter_async_context(receiving()))
        self.api = await self.theatre.stack.enter_async_context(running_api())
        self.api.answer = json_answer({"result": {"done": True}})
        await super().open()

    def sections(self):
        return {
            "storage": StorageConfig(path=str(self.folder / "broker.db"), synchronous="normal"),
            "commands": CommandsConfig(url=self.api.url, secret=API_SECRET),
            "webhooks": WebhooksConfig(allow_networks=("127.0.0.0/8",), allow_http=True),
        }

    def config(self):
        config = super().config()
        webhooks = tuple(
            AccountWebhookConfig(
                id=each.name, url=each.url, secret=SECRET, inbox_ids=each.wanted.inboxes,
                event_types=each.wanted.types, order="inbox" if each.in_line else "none",
            )
            for each in self.endpoints
        )  # fmt: skip
        queues = tuple(
            AccountQueueConfig(
                id=each.name, inbox_ids=each.wanted.inboxes, event_types=each.wanted.types,
                order="inbox" if each.in_line else "none", lease_seconds=LONG_SECONDS, max_attempts=100,
            )
            for each in self.queues
        )  # fmt: skip
        alice, bob = config.accounts
        return structs.replace(config, accounts=(structs.replace(alice, webhooks=webhooks, queues=queues), bob))

    def published(self, account, event):
        if account == ACCOUNT and event is not None:
            for queue in self.queues:
                queue.published(event)

    def another_life(self):
        for endpoint in self.endpoints:
            endpoint.life += 1

    # --- webhooks

    @rule(number=st.integers(0, 1), does=st.sampled_from((REFUSES, CUTS)))
    def an_endpoint_fails(self, number, does):
        self.endpoints[number].does = does

    @precondition(lambda self: any(endpoint.does != TAKES for endpoint in self.endpoints))
    @rule()
    def endpoints_come_back(self):
        """All that they are owed is posted by and by, whatever failed before."""
        self.theatre.do(self._have_all_posted)

    async def _have_all_posted(self):
        history = self.histories[ACCOUNT]
        for endpoint in self.endpoints:
            endpoint.does = TAKES
        with trio.move_on_after(WEBHOOK_SECONDS):
            while any(endpoint.owed(history) for endpoint in self.endpoints):  # noqa: ASYNC110
                await trio.sleep(0.01)
        for endpoint in self.endpoints:
            endpoint.judge(ACCOUNT, history)
            assert not endpoint.owed(history), f"{endpoint.name} was not posted {endpoint.owed(history)}"

    def at_the_end(self):
        super().at_the_end()
        self.endpoints_come_back()
        self.all_work_is_done()

    @invariant()
    def what_is_posted_is_right(self):
        for endpoint in getattr(self, "endpoints", ()):
            self.theatre.do(self._judge, endpoint)

    async def _judge(self, endpoint):
        endpoint.judge(ACCOUNT, self.histories[ACCOUNT])

    # --- queues

    def _ask(self, slot, action, **fields):
        """Give a command of a worker: over a client's connection; or by a request, where it has none."""
        client = self.clients[slot]

        async def act():
            if client.stream is not None:
                return await client.ask(action, **fields)
            body = json.dumps({"action": action, **fields}).encode()
            return (await ask(self.address(), "POST", "/v1/commands", key=ALICE, body=body)).json

        return self.theatre.do(act)

    def _told(self, slot, action, **fields):
        answer = self._ask(slot, action, **fields)
        assert "result" in answer, answer
        return answer["result"]

    def _holder(self, slot):
        client = self.clients[slot]
        return (slot, client.connections) if client.stream is not None else None

    def in_state(self, state):
        """All jobs that are."""
        return [job for queue in self.queues for job in queue.in_state(state)]

    def _leased(self, which, back):
        """Some job that is leased, and its queue: if one is, the one that is meant."""
        queue = self.queues[which]
        if not queue.in_state("leased"):
            queue = self.queues[1 - which]
        leased = queue.in_state("leased")
        return queue, leased[-min(back, len(leased))]

    @precondition(lambda self: self.in_state("waiting"))
    @rule(slot=workers, which=st.integers(0, 1), most=st.sampled_from((1, 2, 5)))
    def lease(self, slot, which, most):
        queue = self.queues[which]
        queue.given(self._told(slot, "lease", queue_id=queue.name, max=most), most, self._holder(slot))

    @precondition(lambda self: self.in_state("leased"))
    @rule(slot=workers, which=st.integers(0, 1), back=st.integers(1, 5), acks=st.booleans())
    def finish(self, slot, which, back, acks):
        """Acknowledge a lease, whoever it was given to, or give it back; then it is over."""
        queue, job = self._leased(which, back)
        lease_ids = [job.lease_id]
        if acks:
            assert self._told(slot, "ack", lease_ids=lease_ids) == {"acked": 1, "lost": []}
        else:
            result = self._told(slot, "nack", lease_ids=lease_ids, retry_after_ms=0)
            assert result == {"nacked": 1, "lost": []}
        queue.ended(job, "acked" if acks else "waiting")

    @precondition(lambda self: self.in_state("leased"))
    @rule(slot=workers, which=st.integers(0, 1), back=st.integers(1, 5))
    def hold(self, slot, which, back):
        _, job = self._leased(which, back)
        result = self._told(slot, "hold", lease_ids=[job.lease_id], seconds=LONG_SECONDS)
        assert (result["held"], result["lost"]) == (1, [])

    @precondition(lambda self: any(queue.over for queue in self.queues))
    @rule(slot=workers, which=st.integers(0, 1), back=st.integers(1, 10))
    def come_with_a_lease_that_is_over(self, slot, which, back):
        """Nothing is done by it."""
        over = self.queues[which].over or self.queues[1 - which].over
        lease_ids = [over[-min(back, len(over))]]
        assert self._told(slot, "ack", lease_ids=lease_ids) == {"acked": 0, "lost": lease_ids}
        result = self._told(slot, "hold", lease_ids=lease_ids, seconds=LONG_SECONDS)
        assert (result["held"], result["lost"]) == (0, lease_ids)
        assert self._told(slot, "nack", lease_ids=lease_ids)["lost"] == lease_ids
        self._work(slot, lease_ids[0], is_current=False)

    @precondition(lambda self: self.in_state("leased"))
    @rule(slot=workers, which=st.integers(0, 1), back=st.integers(1, 5))
    def do_work(self, slot, which, back):
        """A command by a lease is done while it is current."""
        self._work(slot, self._leased(which, back)[1].lease_id, is_current=True)

    def _work(self, slot, lease_id, *, is_current):
        asked = len(self.api.asked)
        answer = self._ask(slot, "work", lease_id=lease_id, inbox_id="in_1")
        assert answer.get("error", {}).get("code") == (None if is_current else "lease_lost"), answer
        assert len(self.api.asked) == asked + is_current

    @precondition(lambda self: self.in_state("waiting") and self.slept < NAPS)
    @rule(slot=workers, which=st.integers(0, 1))
    def sleep_through_a_lease(self, slot, which):
        """Its time is over: it is another's, and who had it can do nothing by it."""
        self.slept += 1
        queue = self.queues[which]
        result = self._told(slot, "lease", queue_id=queue.name, seconds=1)
        for job in queue.given(result, 1, self._holder(slot)):
            lease_id = job.lease_id
            self.theatre.do(trio.sleep, 1.05)
            assert self._told(slot, "ack", lease_ids=[lease_id])["lost"] == [lease_id]
            queue.ended(job, "waiting")
            self._work(slot, lease_id, is_current=False)

    @precondition(lambda self: self.in_state("leased"))
    @rule(slot=workers, which=st.integers(0, 1), back=st.integers(1, 5))
    def give_up(self, slot, which, back):
        """What a worker says is dead is nobody's any more, and the account is told."""
        queue, job = self._leased(which, back)
        assert self._told(slot, "nack", lease_ids=[job.lease_id], dead=True) == {"nacked": 1, "lost": []}
        queue.ended(job, "dead")
        self.theatre.do(self._hear_of_the_dead, queue.name, job.event.event_id)

    async def _hear_of_the_dead(self, queue_id, event_id):
        history = self.histories[ACCOUNT]
        since = f"{history.prefix}.{history.head}"
        answer = await ask(self.address(), "GET", f"/v1/events?since={since}&wait=10&event_types=queue.dead", key=ALICE)
        [told] = answer.result["events"]
        assert told["payload"] == {"queue_id": queue_id, "event_ids": [event_id], "count": 1}
        self.published(ACCOUNT, history.stored(OWN, told["event_id"], told["type"], told["cursor"]))

    @rule(slot=workers)
    def go_for_good(self, slot):
        """Close as one does who does not come back: what it had is free at once."""
        client = self.clients[slot]
        if client.stream is not None:
            holder = self._holder(slot)
            self.theatre.do(client.say_goodbye)
            for queue in self.queues:
                queue.left(holder)

    def all_work_is_done(self):
        """Each event of a queue can be done, and then nothing is left."""
        for queue in self.queues:
            for job in queue.in_state("leased"):
                assert self._told(0, "ack", lease_ids=[job.lease_id]) == {"acked": 1, "lost": []}
                queue.ended(job, "acked")
            while queue.in_state("waiting"):
                result = self._told(0, "lease", queue_id=queue.name, max=50)
                given = queue.given(result, 50, None)
                lease_ids = [job.lease_id for job in given]
                assert self._told(0, "ack", lease_ids=lease_ids) == {"acked": len(given), "lost": []}
                for job in given:
                    queue.ended(job, "acked")
            assert self._told(0, "lease", queue_id=queue.name, max=50) == {"leases": [], "waiting": 0}
