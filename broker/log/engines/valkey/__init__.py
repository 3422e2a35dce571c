"""The logs of many nodes in one Valkey or Redis 7 that they share: what its keys and channels are called and hold.

Pure. One hash tag, so that all keys of an account are in one place; A is an account, N a node:

| key | what |
|---|---|
| `gen` | the *generation*: which history of the server this is, by its replication id and its run |
| `m:A` | the generation, the head, the birth, when the last event was stored; whose long list stands behind the head |
| `s:A` | the window: a line for each event, in order |
| `d:A` | the position of each event of the window by its id and inbox, and counts for trimming |
| `q:A`, `p:A` | what stands for the content of publishes with a `request_id`, the latest and those before them |
| `x:A` | when each event was stored and for which inbox, for an hour longer: so gaps are counted |
| `k:A`, `w:A` | who has the account's slots, and its look: node and connection (`access.claims`) |
| `c:A`, `o:A`; `C:A`, `O:A` | commands by `request_id`, and their order; the same by `once` (`commands.sharing`) |
| `a:A` | what clients have acknowledged (`fanout.shared`) |
| `f:A`, `l:A` | clients for whom webhooks wait, and what they acknowledged, for the keeper (`fanout.handed`) |
| `keeper:` | the node that has webhooks and queues (`keeper.lease`) |
| `n:N` | a lease: while it is there, the node lives |
| `u:L` | the same of a long list that is being written (`storing`) |

`e:A` is the channel in which an account's new events travel, `t:N` one for messages to a node; channels know no
databases, so their names have the database's number. Positions of a generation are dense from the account's birth on,
which is the server's time in microseconds, and later than all that was there before: none is ever used twice.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from ....protocol.framing import text_frame
from ....protocol.messages import Entry, PreparedEvent, encode_event
from ....protocol.selection import ACCOUNT_EVENTS
from ...dropped import Dropped

TAG: Final = "{daimon}"
FAR: Final = 1 << 53
"""Beyond all positions: where accounts stand that are not attached."""
_NO_INBOX: Final = "*"
"""In the place of an inbox in an account's own events; no inbox is called so."""
_HERE: Final = "\0"
_PAGE_EVENTS: Final = 256
"""Of one page that is appended, which is made in one step, and whose ids the script unpacks at once."""
_PAGE_BYTES: Final = 65_536
"""Of its payloads, about."""
_packed: Final = msgspec.msgpack.Encoder().encode

Moment = Callable[[float], float]
"""Returns the monotonic time of a time of day (seconds since 1970), by the server's clock."""


class Names:
    """The names of keys and channels in one database."""

    def __init__(self, database: int) -> None:
        self._channels = f"{TAG}{database}:"
        self.generation = f"{TAG}gen"

    def of_account(self, kind: str, account_id: str) -> str:
        """Return the key of a kind (`m`, `s`, …) of an account."""
        return f"{TAG}{kind}:{account_id}"

    def lease(self, node: str) -> str:
        """Return the key of a node's lease."""
        return f"{TAG}n:{node}"

    def long_list(self, name: str) -> str:
        """Return the key of a long list that is being written."""
        return f"{TAG}u:{name}"

    def events(self, account_id: str) -> str:
        """Return the channel of an account's events."""
        return f"{self._channels}e:{account_id}"

    def node(self, node: str) -> str:
        """Return the channel of messages to a node."""
        return f"{self._channels}t:{node}"


def pages_of(events: Iterable[PreparedEvent], cursor_prefix: str) -> Iterator[bytes]:
    """Yield events as the script that appends takes them: pages, each one word of the call and made in one step.

    A page is a list in MessagePack, four texts an event: its identity, its inbox, and its line before and after.
    Between the two comes its position, with which its cursor ends. So neither end takes ten thousand words one by one.
    """
    texts: list[str] = []
    size = 0
    for event in events:
        inbox = event.inbox_id or _NO_INBOX
        before, _, after = encode_event(event, f"{cursor_prefix}{_HERE}").decode().partition(_HERE)
        texts += (f"{event.event_id} {inbox}", inbox, f"{event.type} {before}", after)
        size += len(event.payload)
        if len(texts) >= 4 * _PAGE_EVENTS or size >= _PAGE_BYTES:
            yield _packed(texts)
            texts.clear()
            size = 0
    if texts:
        yield _packed(texts)


def entry_of(line: bytes, moment: Moment) -> Entry:
    """Return the entry of a line of the window: position, milliseconds, id, inbox, type, JSON."""
    position, ms, event_id, inbox, kind, text = line.split(b" ", 5)
    wall = int(ms) / 1_000
    return Entry(
        int(position), moment(wall), kind.decode(), _inbox(inbox), event_id.decode(), text_frame(text), wall, None
    )


def dropped_of(item: bytes, position: int, moment: Moment) -> Dropped:
    """Return what an item of the index says: milliseconds, inbox."""
    ms, _, inbox = item.partition(b" ")
    wall = int(ms) / 1_000
    return Dropped(position, _inbox(inbox), moment(wall), wall)


def _inbox(text: bytes) -> str:
    inbox = text.decode()
    return ACCOUNT_EVENTS if inbox == _NO_INBOX else inbox
