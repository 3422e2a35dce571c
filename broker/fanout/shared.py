"""What clients have acknowledged, at the server that nodes share: so that a client comes back where it was, anywhere.

Each move of a position is written, the last one of each client, and whoever asks hears when it is there. A client that
comes to this node is looked up first: what the server says of it is newer than what this node knew.
"""

from itertools import chain, islice
from typing import Final

import trio

from ..errors import RequestError, part_from_frames
from ..nodes import Wire
from .acknowledged import MAX_CLIENTS_OF_ACCOUNT, SOMEBODY, Acknowledged, Client
from .recorded import Told, until_told

MOVE: Final = """
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
local over = redis.call('HLEN', KEYS[1]) - tonumber(ARGV[1])
if over > 0 then
  for _, field in ipairs(redis.call('HRANDFIELD', KEYS[1], math.min(over, 1000))) do
    redis.call('HDEL', KEYS[1], field)
  end
  redis.call('HSET', KEYS[1], '', '0')
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
"""KEYS: an account's positions. ARGV: how many there may be, for how many ms they are kept; each client, its position.
Of too many some are forgotten, and the field without a name says so."""
LOOK: Final = "return redis.call('HMGET', KEYS[1], ARGV[1], '')"
KEPT_MS: Final = 604_800_000
MOVED_AT_ONCE: Final = 256
AGAIN_SECONDS: Final = 0.5


class SharedPositions:
    """The positions of all clients, kept at a server beside those of this node."""

    def __init__(self, acknowledged: Acknowledged, wire: Wire) -> None:
        self._acknowledged = acknowledged
        self._wire = wire
        self._moved_to: dict[str, dict[bytes, int]] = {}
        """What is still to be written, by account and client."""
        self._told: dict[tuple[str, bytes], list[Told]] = {}
        self._under_way: dict[tuple[str, bytes], list[Told]] = {}
        """Who is to be told of what is being written now."""
        self._something = trio.Event()
        self._looking = False
        """Whether a position is being taken from the server."""
        acknowledged.moved = self._moved

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what has moved, for ever."""
        task_status.started()
        while True:
            await self._something.wait()
            self._something = trio.Event()
            while self._moved_to:
                await self._write(next(iter(self._moved_to)))

    async def _write(self, account_id: str) -> None:
        """Write some moves of one account. Those that cannot be written now are tried again."""
        moved = self._moved_to.pop(account_id)
        now = dict(islice(moved.items(), MOVED_AT_ONCE))
        if len(now) < len(moved):
            self._moved_to[account_id] = {client: moved[client] for client in moved.keys() - now.keys()}
        self._under_way = {(account_id, client): self._told.pop((account_id, client), []) for client in now}
        pairs = [part for client, position in now.items() for part in (client, position)]
        error = None
        try:
            keys = [self._wire.key("a", account_id)]
            await self._wire.call(MOVE, keys, (MAX_CLIENTS_OF_ACCOUNT, KEPT_MS, *pairs))
        except RequestError as unavailable:
            error = part_from_frames(unavailable)
            self._moved_to[account_id] = {**now, **self._moved_to.get(account_id, {})}
        waiting, self._under_way = self._under_way, {}
        for told in chain.from_iterable(waiting.values()):
            told(error)
        if error is not None:
            await trio.sleep(AGAIN_SECONDS)

    async def look_up(self, client: Client) -> None:
        """Let this node know what the server does of a client. Raises `RequestError` (`unavailable`)."""
        keys = [self._wire.key("a", client.account_id)]
        position, somebody_forgotten = await self._wire.call(LOOK, keys, (client.digest,))
        if client.digest in self._moved_to.get(client.account_id, {}):
            return  # it has just moved here
        if somebody_forgotten is not None:
            self._acknowledged.forgot_one(client.account_id)
        if position is not None:
            self._looking = True
            self._acknowledged.put(client.account_id, client.digest, int(position))
            self._looking = False

    def when_recorded(self, client: Client, told: Told) -> None:
        """Call ``told`` when a client's position is at the server, at once if it is; or with why it is not yet."""
        who = client.account_id, client.digest
        if client.digest in self._moved_to.get(client.account_id, {}):
            self._told.setdefault(who, []).append(told)
        elif who in self._under_way:
            self._under_way[who].append(told)
        else:
            told(None)

    async def until_recorded_or_forgotten(self, client: Client) -> None:
        """Wait until a new client's position is at the server. Raises `RequestError`: it will be there later."""
        await until_told(self.when_recorded, client)

    def _moved(self, account_id: str, client: bytes, position: int | None) -> None:
        """Have written where a client is now. What only this node forgets, others know."""
        if client != SOMEBODY and position is not None and not self._looking:
            self._moved_to.setdefault(account_id, {})[client] = position
            self._something.set()
