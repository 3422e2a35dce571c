"""One worker at its queues: how much it may ask for at once, and what it leaves when it goes."""

from typing import Final

from msgspec import Struct

from ..access.keys import Key
from ..errors import BUSY_RETRY_MS, NEED_A_LOG_ON_DISK, RequestError, part_from_frames
from ..protocol.messages import Command
from .asked import AckLeases, LeaseParams, NackParams, WorkAsked, WorkResult, check_work
from .queues import Judge, Queues

MAX_UNDER_WAY: Final = 64
"""Commands about leases of one connection, beside those that wait for events."""
_MAX_KEPT: Final = 1_024
"""Leases of which is known that this connection has them, until those that are over are forgotten."""


class Working:
    """What one connection asks of queues. ``queues`` None: there is no log on disk."""

    def __init__(self, queues: Queues | None, client_id: str) -> None:
        self._queues = queues
        self._client_id = client_id
        self._under_way = 0
        self._waiting: set[str] = set()
        """Queues at which it waits."""
        self._leases: dict[str, None] = {}
        """What it was given here and has not ended."""

    def __len__(self) -> int:
        """Return how many commands have no answer yet."""
        return self._under_way + len(self._waiting)

    def admit(self, asked: WorkAsked) -> Queues:
        """Let a command begin that `do` is to do; both in one step. Raises `RequestError`."""
        queues = require_queues(self._queues)
        params = asked.params
        if isinstance(params, LeaseParams):
            if params.queue_id in self._waiting:
                message = "This connection waits at this queue already - at `$.queue_id`"
                raise RequestError("rate_limited", message, retry_after_ms=BUSY_RETRY_MS)
            self._waiting.add(params.queue_id)
        elif self._under_way >= MAX_UNDER_WAY:
            raise RequestError("rate_limited", "Too much about leases is under way", retry_after_ms=BUSY_RETRY_MS)
        else:
            self._under_way += 1
        return queues

    async def do(self, queues: Queues, asked: WorkAsked, judge: Judge) -> Struct | RequestError:
        """Do a command that was admitted; return its outcome. ``judge`` says what its key reaches by then."""
        try:
            result, lease_ids = await queues.work(asked, self._client_id, judge)
        except RequestError as error:
            return part_from_frames(error)
        finally:
            self._end(asked)
        self._note(queues, asked, result, lease_ids, judge)
        return result

    def _end(self, asked: WorkAsked) -> None:
        if isinstance(asked.params, LeaseParams):
            self._waiting.discard(asked.params.queue_id)
        else:
            self._under_way -= 1

    def _note(self, queues: Queues, asked: WorkAsked, result: WorkResult, lease_ids: list[str], judge: Judge) -> None:
        self._leases |= dict.fromkeys(lease_ids)
        if isinstance(asked.params, AckLeases | NackParams):
            for lease_id in asked.params.lease_ids:
                self._leases.pop(lease_id, None)
        if len(self._leases) > _MAX_KEPT:
            account_id = str(judge().account_id)
            current = [each for each in self._leases if queues.giving.is_current(account_id, each)]
            self._leases = dict.fromkeys(current)

    def leave(self) -> None:
        """Give back what it has: it goes for good, and said so."""
        if self._queues is not None:
            self._queues.giving.free(self._leases)
            self._leases = {}


async def do_at_once(queues: Queues | None, key: Key, command: Command, judge: Judge) -> WorkResult:
    """Do what a worker asks for by a single request. Raises `RequestError`."""
    asked = check_work(key, command, "")
    result, _ = await require_queues(queues).work(asked, "", judge)
    return result


def leased_elsewhere(account_id: str, lease_id: str) -> bool:
    """Say of a lease that it is known to another node. Raises `RequestError` (`unavailable`), always."""
    raise RequestError("unavailable", f"Queues {NEED_A_LOG_ON_DISK}")


def require_queues(queues: Queues | None) -> Queues:
    """Return the queues. Raises `RequestError` (`unavailable`) if there is no log on disk."""
    if queues is None:
        raise RequestError("unavailable", f"Queues {NEED_A_LOG_ON_DISK}")
    return queues
