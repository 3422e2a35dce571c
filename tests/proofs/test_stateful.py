"""Whatever is done in whatever order, PROTOCOL section 3 holds, over real sockets, of a real broker, from end to end.

Publish, subscribe, stop reading, cut, come back by cursor or by what was acknowledged, take over, expire, change keys,
drain and begin again, with and without a log on disk: hypothesis chooses, a `Witness` for each client judges.
"""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import trio
from clients import (
    ACCOUNT,
    ALICE,
    BOB,
    CLOSE,
    INBOXES,
    TEXT,
    FrameParser,
    command,
    configured,
    masked,
    open_socket,
    post_events,
    reset,
    serving,
    until,
    upgrade_head,
)
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs
from proofs.proving import more
from proofs.theatre import Theatre
from proofs.witness import OWN, History, Witness

import broker.transport.listeners
from broker import ReplayConfig
from broker.config import StorageConfig

WINDOW = 25
NAMES = ("in_1", "in_2", "in_3")
ACCOUNTS = {ACCOUNT: ALICE, "acct_bob": BOB}
SLOTS = ((ALICE, ACCOUNT), (ALICE, ACCOUNT), (INBOXES, ACCOUNT), (BOB, "acct_bob"))
"""Clients: their keys and accounts. `INBOXES` reaches two inboxes, and no events of the account itself."""
REACHED = {ALICE: frozenset(NAMES), BOB: frozenset(NAMES), INBOXES: frozenset(NAMES[:2])}
slots = st.integers(0, len(SLOTS) - 1)
accounts, sizes, counts = (
    st.sampled_from(sorted(ACCOUNTS)),
    st.sampled_from((10, 10, 9_000)),
    st.sampled_from((1, 1, 3, 12)),
)
inboxes = st.sampled_from(NAMES)
selections = st.sampled_from((("*",), NAMES[:1], NAMES[:2], NAMES[1:]))


class Client:
    """One client: its witness, and its connection, if it has one."""

    def __init__(self, number, history):
        self.key, self.account = SLOTS[number]
        self.name = f"client_{number}"
        self.witness = Witness(history, REACHED[self.key], own=self.key != INBOXES)
        self.stream = None
        self.selection = ()
        self.acked = None
        """The cursor that it acknowledged last, while its selection is what it was."""
        self._parser = FrameParser()
        self._asked = 0

    async def open(self, address, selection, since):
        self.selection = selection
        given = "" if since is None else f"&since={since[0]}"
        self.witness.opens(None if since is None else since[1])
        self._parser = FrameParser()
        self.stream = await open_socket(address, receive_buffer_bytes=4_096)
        query = f"inbox_ids={','.join(selection)}&client_id={self.name}{given}"
        await self.stream.send_all(upgrade_head(query, key=self.key))
        head = b""
        while b"\r\n\r\n" not in head:
            received = bytes(await self.stream.receive_some(65_536))
            assert received, head
            head += received
        head, _, rest = head.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        self._take(rest)
        while self.witness._waits_for_ready:
            await self._receive()

    def _take(self, data):
        for opcode, payload in self._parser.feed(data):
            assert self.witness.closed is None, "a frame after the Close"
            if opcode == TEXT:
                self.witness.hears(payload)
            elif opcode == CLOSE:
                self.witness.closed = int.from_bytes(payload[:2])

    async def _receive(self):
        data = b""
        with suppress(trio.BrokenResourceError):
            data = bytes(await self.stream.receive_some(65_536))
        self._take(data)
        return bool(data)

    async def ask(self, action, since=None, **fields):
        """Give a command, and read up to its answer."""
        self._asked += 1
        request_id = f"{self.name}.{self._asked}"
        if action == "subscribe":
            self.witness.asks(request_id, since)
            fields |= {} if since is None else {"since": since}
        await self.stream.send_all(command(action=action, request_id=request_id, **fields))
        while request_id not in self.witness.answers:
            assert await self._receive(), "the connection ended before the answer"
        return self.witness.answers.pop(request_id)

    async def catch_up(self):
        """Read until nothing is owed, and a little on: nothing else may come."""
        while self.witness.owed and self.witness.closed is None:
            if not await self._receive():
                return
        if self.witness.closed is None:
            await self.ask("ping")

    async def until_closed(self):
        while self.witness.closed is None and await self._receive():
            pass
        await self.leave()

    async def leave(self):
        """Be gone, by a reset."""
        stream, self.stream = self.stream, None
        if stream is not None:
            reset(stream)
        self.witness.cut()


class Promises(RuleBasedStateMachine):
    """The broker, its clients, and all that may happen."""

    on_disk = False

    @initialize(chosen=st.tuples(*[selections] * len(SLOTS)))
    def begin(self, chosen):
        self.folder = Path(tempfile.mkdtemp())
        self.theatre = Theatre()
        self.numbers = 0
        self.narrowed = False
        self.histories = {account: History(None if self.on_disk else WINDOW) for account in ACCOUNTS}
        self.theatre.set(self._serve)
        self.clients = [Client(number, self.histories[account]) for number, (_, account) in enumerate(SLOTS)]
        for slot, selection in enumerate(chosen):
            self.come(slot, selection)

    def teardown(self):
        if not hasattr(self, "clients"):
            return
        try:
            for client in self.open_clients():
                self.theatre.do(client.catch_up)
        finally:
            with suppress(Exception):
                for client in self.open_clients():
                    self.theatre.do(client.leave)
            with suppress(Exception):
                self.theatre.end()
            shutil.rmtree(self.folder, ignore_errors=True)

    def config(self):
        storage = StorageConfig(path=str(self.folder / "broker.db"), synchronous="normal")
        config = configured(
            replay=ReplayConfig(max_events_per_account=WINDOW), **({"storage": storage} if self.on_disk else {})
        )
        if not self.narrowed:
            return config
        alice, bob = config.accounts
        keys = tuple(structs.replace(key, inbox_ids=("in_1",)) if key.inbox_ids else key for key in alice.keys)
        return structs.replace(config, accounts=(structs.replace(alice, keys=keys), bob))

    async def _serve(self):
        # So that a client that does not read is behind soon.
        with patch.object(broker.transport.listeners, "SEND_BUFFER_BYTES", 4_096):
            self.served = await self.theatre.stack.enter_async_context(serving(self.config()))

    def open_clients(self):
        return [client for client in self.clients if client.stream is not None]

    # --- what may happen

    @rule(account=accounts, inbox=inboxes | st.just(OWN), count=st.sampled_from((1, 1, 3)), again=st.booleans())
    def publish(self, account, inbox, count, again):
        """Publish some events; perhaps one of them a second time."""
        self._publish(account, inbox, count, 10, again)

    @rule(account=accounts, inbox=inboxes, count=st.sampled_from((5, 20, 40)), size=st.sampled_from((300, 9_000)))
    def publish_much(self, account, inbox, count, size):
        """Publish more than a client that does not read takes, or than the window holds."""
        self._publish(account, inbox, count, size, again=False)

    def _publish(self, account, inbox, count, size, again):
        names = []
        for _ in range(count):
            self.numbers += 1
            names.append(f"evt_{self.numbers}")
        if again:
            names.append(names[0])
        where = {} if inbox == OWN else {"inbox_id": inbox}
        events = [{"type": "a.b", "event_id": name, "payload": {"x": "y" * size}, **where} for name in names]

        async def act():
            answer = await post_events(self.served.address, events, key=ACCOUNTS[account])
            for name, said in zip(names, answer.result["events"], strict=True):
                self.histories[account].answered(inbox, name, said)

        self.theatre.do(act)

    @rule(account=accounts, inbox=inboxes, back=st.integers(1, 40))
    def publish_again(self, account, inbox, back):
        """Publish an event of before once more: it is known while the window holds it."""
        history = self.histories[account]
        known = [event for event in history.events if event.inbox == inbox]
        if not known:
            return
        event = known[-min(back, len(known))]

        async def act():
            made = {"type": "a.b", "event_id": event.event_id, "inbox_id": inbox, "payload": {}}
            answer = await post_events(self.served.address, made, key=ACCOUNTS[account])
            history.answered(inbox, event.event_id, answer.result["events"][0])

        self.theatre.do(act)

    @rule(slot=slots, selection=selections)
    def come(self, slot, selection):
        """Connect anew; who is there already is taken over."""
        self._connect(slot, selection, None)

    @rule(slot=slots)
    def come_back(self, slot):
        """Come back with the last cursor, to the same inboxes."""
        client = self.clients[slot]
        if client.stream is None and client.selection and client.witness.last is not None:
            self._connect(slot, client.selection, (client.witness.last, client.witness.last))

    @rule(slot=slots)
    def come_back_to_what_was_acknowledged(self, slot):
        client = self.clients[slot]
        if client.stream is None and client.acked is not None and not self.narrowed:
            through = client.witness.history.position_of(client.acked)
            client.witness.seen = {position for position in client.witness.seen if position <= through}
            self._connect(slot, client.selection, ("acked", client.acked))

    def _connect(self, slot, selection, since):
        client = self.clients[slot]
        if client.key == INBOXES:
            selection = (
                tuple(name for name in selection if name in (NAMES[:1] if self.narrowed else NAMES[:2])) or NAMES[:1]
            )

        async def act():
            await client.open(self.served.address, selection, since)

        if client.stream is not None:
            self.theatre.do(self._take_over, client, selection)
        else:
            self.theatre.do(act)
        if since is None:
            client.acked = None

    async def _take_over(self, client, selection):
        """The old connection hears all that it was sent, and 4409; then the new one goes on."""
        before = client.stream, client._parser
        witness, client.witness = (
            client.witness,
            Witness(client.witness.history, REACHED[client.key], client.witness.own),
        )
        client.witness.seen = set(witness.seen)
        await client.open(self.served.address, selection, None)
        after = client.stream, client._parser, client.witness
        (client.stream, client._parser), client.witness = before, witness
        await client.until_closed()
        assert witness.closed in (4409, 4408), witness.closed
        seen = witness.seen
        client.stream, client._parser, client.witness = after
        client.witness.seen |= seen
        client.witness.seen_through = max(seen, default=0)

    @rule(slot=slots)
    def read(self, slot):
        """Read all that is owed."""
        client = self.clients[slot]
        if client.stream is not None:
            self.theatre.do(client.catch_up)

    @rule(slot=slots)
    def be_cut(self, slot):
        client = self.clients[slot]
        if client.stream is not None:
            self.theatre.do(client.leave)

    @rule(slot=slots)
    def be_cut_and_come_back(self, slot):
        """The usual case: the network fails for a moment."""
        self.be_cut(slot)
        self.come_back(slot)

    @rule(slot=slots, selection=selections, back=st.none() | st.integers(0, 40))
    def subscribe(self, slot, selection, back):
        """Subscribe to more, from now on or from an event of before."""
        client = self.clients[slot]
        if client.stream is None or client.key == INBOXES or selection == ("*",):
            return
        events = client.witness.history.events
        since = None
        if back is not None and events:
            since = f"{client.witness.history.prefix}.{events[-min(back, len(events) - 1) - 1].position}"
        answer = self.theatre.do(self._subscribe, client, since, list(selection))
        assert "result" in answer, answer
        held = answer["result"]["inbox_ids"]
        client.selection, client.acked = tuple(held), None

    async def _subscribe(self, client, since, selection):
        await client.catch_up()
        return await client.ask("subscribe", since, inbox_ids=selection)

    @rule(slot=slots, name=inboxes)
    def unsubscribe(self, slot, name):
        client = self.clients[slot]
        if client.stream is None or client.selection == ("*",) or client.selection == (name,):
            return
        if name not in client.selection:
            return
        answer = self.theatre.do(self._unsubscribe, client, name)
        client.selection, client.acked = tuple(answer["result"]["inbox_ids"]), None

    async def _unsubscribe(self, client, name):
        await client.catch_up()
        return await client.ask("unsubscribe", inbox_ids=[name])

    @rule(slot=slots)
    def acknowledge(self, slot):
        """Acknowledge all that came."""
        client = self.clients[slot]
        if client.stream is None:
            return

        async def act():
            await client.catch_up()
            cursor = client.witness.last
            answer = await client.ask("ack", cursor=cursor)
            assert answer["result"]["cursor"] == cursor, answer
            client.acked = cursor

        self.theatre.do(act)

    @precondition(lambda self: not self.on_disk)
    @rule()
    def expire(self):
        """All that is there becomes too old. Clients say something before: they live."""

        async def act():
            for client in self.open_clients():
                await client.catch_up()
                await client.stream.send_all(masked(0x9, b""))
            await trio.testing.wait_all_tasks_blocked(0.02)

        async def gone():
            await until(lambda: self.served.broker.statistics().replay.events == 0)

        async def jump():
            self.theatre.clock.jump(310)

        self.theatre.do(act)
        self.theatre.set(jump)
        self.theatre.do(gone)
        for history in self.histories.values():
            history.expired_through = history.head

    @rule()
    def change_keys(self):
        """The key of two inboxes loses one of them, or gets it back."""
        self.narrowed = not self.narrowed

        async def act():
            self.served.broker.reload(self.config())
            for client in self.open_clients():
                if client.key == INBOXES:
                    await client.catch_up()
                    if self.narrowed:
                        assert "in_2" not in client.witness.reached
            for client in self.clients:
                if client.key == INBOXES:
                    client.selection, client.acked = client.selection and NAMES[:1], None

        self.theatre.do(act)

    @rule()
    def drain_and_begin_again(self):
        """All clients are told, get all that is there, and are closed; then there is another broker."""

        async def act():
            clients = self.open_clients()
            self.served.broker.start_draining()
            for client in clients:
                owed = client.witness.owed
                await client.until_closed()
                assert client.witness.closed == 1012, client.witness.closed
                assert client.witness.drained
                assert not client.witness.owed, owed
            with trio.fail_after(20):
                await self.served.ended.wait()

        async def again():
            await self.theatre.stack.aclose()
            await self._serve()

        self.theatre.do(act)
        self.theatre.set(again)
        if not self.on_disk:
            for history in self.histories.values():
                history.begin_again()
            for client in self.clients:
                client.witness.seen, client.acked = set(), None
        for slot in range(len(SLOTS)):
            self.come_back(slot)

    @invariant()
    def nothing_but_what_was_done_ends_a_connection(self):
        for client in getattr(self, "clients", ()):
            assert client.stream is None or client.witness.closed is None, client.witness.closed


class PromisesOnDisk(Promises):
    """The same with a log on disk: a restart forgets nothing."""

    on_disk = True


# To tell a failure in fewer steps takes minutes: each step is of a real broker.
phases = (Phase.generate,) if os.environ.get("BROKER_MUTATING") == "1" else (Phase.reuse, Phase.generate)
limits = settings(max_examples=more(6, 60), stateful_step_count=40, phases=phases)
Promises.TestCase.settings = limits
PromisesOnDisk.TestCase.settings = limits
TestPromisesInMemory = Promises.TestCase
TestPromisesOnDisk = PromisesOnDisk.TestCase
