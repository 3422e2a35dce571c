"""Clients of the state machine end to end: each is one name over all its connections, and has a witness of its own."""

from contextlib import suppress

import trio
from clients import ACCOUNT, ALICE, BOB, CLOSE, INBOXES, TEXT, FrameParser, command, masked, open_socket, reset
from clients import upgrade_head as head_of
from proofs.witness import History, Witness

NAMES = ("in_1", "in_2", "in_3")
ACCOUNTS = {ACCOUNT: ALICE, "acct_bob": BOB}
SLOTS = ((ALICE, ACCOUNT), (ALICE, ACCOUNT), (INBOXES, ACCOUNT), (BOB, "acct_bob"))
"""Clients: their keys and accounts. `INBOXES` reaches two inboxes, and no events of the account itself."""
REACHED = {ALICE: frozenset(NAMES), BOB: frozenset(NAMES), INBOXES: frozenset(NAMES[:2])}
NARROWED = frozenset(NAMES[:1])
"""What is left to `INBOXES` when its key loses one."""


class Client:
    """One client: its witness, and its connection, if it has one."""

    def __init__(self, number, history):
        self.key, self.account = SLOTS[number]
        self.name = f"client_{number}"
        self.witness = Witness(history, REACHED[self.key], own=self.key != INBOXES)
        self.stream = None
        self.selection = ()
        self.types = None
        """The filter of its last connection."""
        self.acked = None
        """The cursor that it acknowledged last, while its selection and its filter are what they were."""
        self.connections = 0
        self.address = None
        """Where it is connected."""
        self._parser = FrameParser()
        self._asked = 0

    async def open(self, address, selection, types, since):
        """Connect. ``since``: what the query says, and the cursor that this is."""
        self.selection, self.types = selection, types
        self.connections += 1
        query = f"inbox_ids={','.join(selection)}&client_id={self.name}"
        query += "" if since is None else f"&since={since[0]}"
        query += "" if types is None else f"&event_types={','.join(types)}"
        self.witness.opens(selection, types, None if since is None else since[1])
        self._parser = FrameParser()
        self.address = address
        self.stream = await open_socket(address, receive_buffer_bytes=4_096)
        await self.stream.send_all(head_of(query, key=self.key))
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
        if action in ("subscribe", "unsubscribe"):
            types = fields.get("event_types")
            types = None if types is None else tuple(types)
            self.witness.asks(request_id, action, fields["inbox_ids"], types, since)
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

    async def hear_the_rest(self):
        """Read what came before its broker was killed."""
        while await self._receive():
            pass
        await self.leave()

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

    async def say_goodbye(self):
        """Close for good, and wait until the broker has closed as well."""
        await self.catch_up()
        await self.stream.send_all(masked(CLOSE, (1000).to_bytes(2)))
        while await self._receive():
            pass
        await self.leave()
        self.witness.closed = None

    async def be_taken_over(self, address, selection, types):
        """Connect anew: the old connection hears all that it was sent, and 4409; then the new one goes on."""
        before, witness = (self.stream, self._parser), self.witness
        self.witness = Witness(witness.history, witness.everything, witness.own)
        self.witness.reach, self.witness.seen = witness.reach, set(witness.seen)
        await self.open(address, selection, types, None)
        after = self.stream, self._parser, self.witness
        (self.stream, self._parser), self.witness = before, witness
        await self.until_closed()
        assert witness.closed in (4409, 4408), witness.closed
        self.stream, self._parser, self.witness = after
        self.witness.seen |= witness.seen
        self.witness.seen_through = max(witness.seen, default=0)


def clients_of(histories: dict[str, History]) -> list[Client]:
    """All of them."""
    return [Client(number, histories[account]) for number, (_, account) in enumerate(SLOTS)]
