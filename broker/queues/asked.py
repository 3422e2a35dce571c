"""What a worker says: `lease`, `nack`, and `ack` and `hold` of leases (PROTOCOL section 11), checked against its key.

Pure.
"""

from typing import Annotated, Final

from msgspec import Meta, Raw, Struct

from ..access.keys import Key
from ..errors import RequestError
from ..protocol.decoding import decode_params, require_few
from ..protocol.messages import Command
from ..protocol.names import Identifier, Spelled, check_spelling

MAX_LEASES: Final = 100
"""That one command asks for, or names."""
MAX_WAIT_SECONDS: Final = 60
MAX_HOLD_SECONDS: Final = 3_600
MAX_RETRY_AFTER_MS: Final = 86_400_000

LeaseIds = Annotated[list[Identifier], Meta(min_length=1, max_length=MAX_LEASES)]
_Seconds = Annotated[float, Meta(ge=1, le=MAX_HOLD_SECONDS)] | Annotated[int, Meta(ge=1, le=MAX_HOLD_SECONDS)]


class LeaseParams(Struct, frozen=True):
    """Parameters of `lease`: so many events of a queue, for so long; left out: for as long as the queue says."""

    queue_id: Identifier
    max: Annotated[int, Meta(ge=1, le=MAX_LEASES)] = 1
    wait_seconds: (
        Annotated[float, Meta(ge=0, le=MAX_WAIT_SECONDS)] | Annotated[int, Meta(ge=0, le=MAX_WAIT_SECONDS)]
    ) = 0
    seconds: _Seconds | None = None


class AckLeases(Struct, frozen=True):
    """Parameters of `ack` of leases: these events are done."""

    lease_ids: LeaseIds


class HoldLeases(Struct, frozen=True):
    """Parameters of `hold` of leases: they last so long from now."""

    lease_ids: LeaseIds
    seconds: _Seconds


class NackParams(Struct, frozen=True):
    """Parameters of `nack`: these events were not done. `dead`: nobody is to try again."""

    lease_ids: LeaseIds
    retry_after_ms: Annotated[int, Meta(ge=0, le=MAX_RETRY_AFTER_MS)] | None = None
    dead: bool = False
    reason: Annotated[str, Meta(max_length=256)] | None = None


class Leased(Struct, frozen=True):
    """An event that a worker has, until then."""

    lease_id: str
    event: Raw
    attempt: int
    expires_at: str


class LeaseResult(Struct, frozen=True):
    """The result of `lease`: nothing in time is no error. `waiting`: how many events of the queue still wait."""

    leases: list[Leased]
    waiting: int


class AckedLeases(Struct, frozen=True):
    """The result of `ack` of leases. `lost`: those that were not current any more."""

    acked: int
    lost: list[str]


class HeldLeases(Struct, frozen=True):
    """The result of `hold` of leases."""

    held: int
    lost: list[str]
    expires_at: str


class NackedLeases(Struct, frozen=True):
    """The result of `nack`."""

    nacked: int
    lost: list[str]


WorkParams = LeaseParams | AckLeases | HoldLeases | NackParams
WorkResult = LeaseResult | AckedLeases | HeldLeases | NackedLeases


class WorkAsked(Struct, frozen=True):
    """What a worker asks for, whose key may."""

    request_id: str
    action: str
    params: WorkParams


_PARAMS: Final[dict[str, type[WorkParams]]] = {
    "lease": LeaseParams,
    "ack": AckLeases,
    "hold": HoldLeases,
    "nack": NackParams,
}


_KNOWN_OTHERWISE: Final[dict[str, tuple[Spelled, ...]]] = {
    "lease": ("wait_seconds", "seconds"),
    "hold": ("seconds",),
    "nack": ("retry_after_ms",),
}
"""Of which parameters another spelling is refused: ignored, a worker would ask again and again, or too soon."""


def is_work(command: Command) -> bool:
    """Whether a command of the broker's own is about leases."""
    return command.action in ("lease", "nack") or (command.action in ("ack", "hold") and "lease_ids" in command.params)


def check_work(key: Key, command: Command, request_id: str) -> WorkAsked:
    """Return what a worker asks for. Raises `RequestError` with the field's path."""
    key.require("subscribe")
    require_few(command, "lease_ids", MAX_LEASES)
    for name in ("cursor", "event_ids"):
        if "lease_ids" in command.params and name in command.params:
            message = f"`lease_ids` or `{name}`, not both - at `{command.paths[name]}`"
            raise RequestError("invalid_params", message)
    check_spelling(command.paths, *_KNOWN_OTHERWISE.get(command.action, ()), values=command.params)
    params = decode_params(command, _PARAMS[command.action])
    if isinstance(params, NackParams) and params.dead and params.retry_after_ms is not None:
        message = f"`retry_after_ms` or `dead`, not both - at `{command.paths['retry_after_ms']}`"
        raise RequestError("invalid_params", message)
    return WorkAsked(request_id, command.action, params)
