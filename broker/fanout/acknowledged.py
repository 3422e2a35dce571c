"""What clients have acknowledged: how far each has come, and what of its selection a cursor acknowledges.

Pure. A client is a key (as a token narrows it) and a `client_id`. Its *position* is where `since=acked` begins: all up
to there is acknowledged. An acknowledgement by cursor moves it on; a replay that begins before it takes it back there,
because what is sent again is not acknowledged yet. What it may cost is bounded by numbers: a position costs the same
whatever its client is called.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Final, NamedTuple
from weakref import ReferenceType, ref

from msgspec import Struct

from ..protocol.messages import AckParams, HoldParams
from ..protocol.selection import NOTHING, Selection

MAX_CLIENTS_OF_ACCOUNT: Final = 10_000
MAX_CLIENTS: Final = 200_000
"""Positions of all accounts together: some 250 bytes each, 50 MB."""
SOMEBODY: Final = b""
"""Stands for a client that was forgotten: whom is not known."""
MAX_PARTS: Final = 16
"""Parts of a selection that took effect at different positions; more are not told apart."""
MAX_FORGETFUL: Final = 100_000
"""Accounts of which it is known that one of their clients was forgotten; beyond that it may be one of any."""


_Positions = OrderedDict[bytes, int]
"""Of one account's clients; those that were moved longest ago first."""


class AcknowledgedStatistics(Struct, frozen=True):
    """What is known of what clients acknowledged."""

    clients: int
    """Clients whose position is known."""
    forgotten: int
    """Positions that were forgotten since the start, for want of room."""


class Acknowledged:
    """The positions of all clients. Beyond either bound the one that was moved longest ago is forgotten.

    Of all accounts together that is one of the account that has moved none for longest. From then on a client of that
    account that is not known may be the forgotten one, and is told of a gap. ``moved`` hears of each change: an
    account, a client (`SOMEBODY`: one was forgotten), and where that is now; None: nowhere any more.
    """

    def __init__(self, *, max_of_account: int = MAX_CLIENTS_OF_ACCOUNT, max_clients: int = MAX_CLIENTS) -> None:
        self._max_of_account = max_of_account
        self._max_clients = max_clients
        self._by_account: OrderedDict[str, _Positions] = OrderedDict()
        """Of accounts that have any; that which has moved none for longest first."""
        self._forgetful: set[str] = set()
        """Accounts of which one was forgotten."""
        self._clients = 0
        self._forgotten = 0
        self.moved: Callable[[str, bytes, int | None], None] = _ignore

    def client(self, account_id: str, key_identity: str, client_id: str) -> "Client":
        """Return the client of a key (`Key.identity`) and a `client_id`."""
        name = f"{key_identity}\0{client_id}".encode()
        return Client(self, account_id, client_id, blake2b(name, digest_size=16).digest())

    def position_of(self, account_id: str, client: bytes) -> int | None:
        """Return a client's position; None if it is not known."""
        positions = self._by_account.get(account_id)
        return None if positions is None else positions.get(client)

    def may_have_forgotten(self, account_id: str) -> bool:
        """Whether a client of this account that is not known may have been forgotten."""
        return account_id in self._forgetful or len(self._forgetful) > MAX_FORGETFUL

    def put(self, account_id: str, client: bytes, position: int) -> None:
        """Let this be a client's position."""
        positions = self._by_account.setdefault(account_id, OrderedDict())
        self._by_account.move_to_end(account_id)
        self._clients += client not in positions
        positions[client] = position
        positions.move_to_end(client)
        self.moved(account_id, client, position)
        if len(positions) > self._max_of_account:
            self._forget_one(account_id)
        if self._clients > self._max_clients:
            self._forget_one(next(iter(self._by_account)))

    def _forget_one(self, account_id: str) -> None:
        client = next(iter(self._by_account[account_id]))
        self._drop(account_id, client)
        self.forgot_one(account_id)
        self._forgotten += 1
        self.moved(account_id, client, None)
        self.moved(account_id, SOMEBODY, 0)

    def forgot_one(self, account_id: str) -> None:
        """Know of an account that one of its clients was forgotten."""
        if len(self._forgetful) <= MAX_FORGETFUL:
            self._forgetful.add(account_id)

    def expired(self, account_id: str, client: bytes, position: int | None) -> None:
        """Forget a client whose time is over, unless it has moved on from there; or that one was forgotten."""
        if client == SOMEBODY:
            self._forgetful.discard(account_id)
        elif position is not None and self.position_of(account_id, client) == position:
            self._drop(account_id, client)

    def _drop(self, account_id: str, client: bytes) -> None:
        positions = self._by_account[account_id]
        del positions[client]
        self._clients -= 1
        if not positions:
            del self._by_account[account_id]

    def statistics(self) -> AcknowledgedStatistics:
        """Return what is known now."""
        return AcknowledgedStatistics(self._clients, self._forgotten)


class Client:
    """One client's position. There is one for each connection that names a `client_id`."""

    __slots__ = ("_acknowledged", "account_id", "client_id", "digest")

    def __init__(self, acknowledged: Acknowledged, account_id: str, client_id: str, digest: bytes) -> None:
        self._acknowledged = acknowledged
        self.digest = digest
        self.account_id = account_id
        self.client_id = client_id

    @property
    def position(self) -> int | None:
        """Up to where all is acknowledged; None if that is not known."""
        return self._acknowledged.position_of(self.account_id, self.digest)

    @property
    def may_be_forgotten(self) -> bool:
        """Whether its position is not known, and may have been."""
        return self.position is None and self._acknowledged.may_have_forgotten(self.account_id)

    def come(self, position: int) -> None:
        """Be at a position, if none is known nor was. One that is known counts as moved: its client is still there."""
        known = self.position
        if known is not None or not self.may_be_forgotten:
            self._put(position if known is None else known)

    def advance(self, position: int) -> int:
        """Move on to a position, unless it is further already; return where it is then."""
        known = self.position
        if known is not None and position <= known:
            return known
        self._put(position)
        return position

    def take_back(self, position: int) -> None:
        """Go back to a position if it is further: what came after it is sent again."""
        known = self.position
        if known is not None and position < known:
            self._put(position)

    def _put(self, position: int) -> None:
        self._acknowledged.put(self.account_id, self.digest, position)


class Part(NamedTuple):
    """A part of a selection: all of it after a position was sent, and is not acknowledged by a cursor yet."""

    after: int
    selection: Selection


class Sent:
    """What a client was sent on one connection of its present selection, by where each part of it took effect.

    Two parts have no inbox in common. Where there are more than `MAX_PARTS` the newest are one, which counts from where
    the later took effect: what came to the other before is not acknowledged by a cursor.
    """

    __slots__ = ("_acknowledged", "_parts", "client")

    def __init__(self, client: Client, selection: Selection, after: int) -> None:
        self.client = client
        self._parts = [Part(after, selection)]
        self._acknowledged: list[ReferenceType[Selection]] = []
        """What cursors have acknowledged, as long as somebody has it."""

    @property
    def selections(self) -> list[Selection]:
        """What its parts are of."""
        return [part.selection for part in self._parts]

    @property
    def acknowledged(self) -> list[Selection]:
        """What cursors have acknowledged and is not settled yet, but for what its parts are of."""
        if not self._acknowledged:
            return []
        parts = set(map(id, self.selections))
        return [selection for selection in self._had() if id(selection) not in parts]

    def _had(self) -> list[Selection]:
        return [selection for each in self._acknowledged if (selection := each()) is not None]

    def start(self, selection: Selection, after: int) -> None:
        """Let all of a selection take effect after a position, from which it is sent, perhaps again."""
        self._parts = [Part(after, selection)]
        self.client.take_back(after)

    def change(self, held: Selection, wanted: Selection, after: int, *, same_types: bool) -> None:
        """Let another selection, or other types, take effect after a position."""
        if same_types:
            self._remove(held.minus(wanted))
            self._add(wanted.minus(held), after)
        else:
            self._parts = [Part(after, wanted)]

    def replay(self, added: Selection, after: int) -> None:
        """Let a part of the selection take effect after an earlier position: it is sent from there, perhaps again."""
        if added != NOTHING:
            self._remove(added)
            self._add(added, after)
            self.client.take_back(after)

    def skip(self, through: int) -> None:
        """Say that events up to a position were not sent, because they are gone: no cursor acknowledges them."""
        self._parts = [Part(max(part.after, through), part.selection) for part in self._parts]

    def acknowledge(self, through: int) -> list[Part]:
        """Return what a cursor of this position acknowledges: of each part what comes after where it was."""
        acknowledged = [part for part in self._parts if part.after < through]
        if acknowledged:
            had = {id(each): each for each in (*self._had(), *(part.selection for part in acknowledged))}
            self._acknowledged = list(map(ref, had.values()))
            rest = [part for part in self._parts if part.after >= through]
            self._parts = [Part(through, _union(part.selection for part in acknowledged)), *rest]
        return acknowledged

    def resume(self) -> int | None:
        """Return where `since=acked` begins; None: the client may have been known once, and was forgotten."""
        return None if self.client.may_be_forgotten else self.begin()

    def begin(self) -> int:
        """Return the client's position; one that is not known is where the first part took effect, from now on."""
        position = self.client.position
        return position if position is not None else self.client.advance(min(part.after for part in self._parts))

    def _add(self, selection: Selection, after: int) -> None:
        if selection == NOTHING:
            return
        self._parts.append(Part(after, selection))
        if len(self._parts) > MAX_PARTS:
            newest, before = self._parts.pop(), self._parts.pop()
            self._parts.append(Part(max(newest.after, before.after), before.selection.union(newest.selection)))

    def _remove(self, selection: Selection) -> None:
        if selection != NOTHING:
            parts = [Part(part.after, part.selection.minus(selection)) for part in self._parts]
            self._parts = [part for part in parts if part.selection != NOTHING] or parts[:1]


class AckRequest(Struct, frozen=True):
    """An `ack` or `hold` that the key may give. ``reach``: of which inboxes the events are that it names."""

    request_id: str
    action: str
    params: AckParams | HoldParams
    reach: Selection
    cursor_path: str = "$.cursor"
    """Where its cursor stood, for messages."""


def _ignore(*_: object) -> None:
    """Nothing is kept beyond this process."""


def _union(selections: Iterable[Selection]) -> Selection:
    together = NOTHING
    for selection in selections:
        together = selection.union(together)
    return together
