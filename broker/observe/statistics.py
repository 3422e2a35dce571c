"""`BrokerStatistics`: what a broker holds and has done, with a part for each room of the house."""

from collections.abc import Mapping

from msgspec import Struct

from ..access.keyring import KeyringStatistics
from ..access.slots import SlotsStatistics
from ..callout import CalloutStatistics
from ..commands.dispatch import CommandsStatistics
from ..durations import DurationsStatistics
from ..fanout.acknowledged import AcknowledgedStatistics
from ..fanout.hub import HubStatistics
from ..log.engines import EngineStatistics
from ..log.kept import KeeperStatistics
from ..log.past import PastStatistics
from ..log.retention import ReplayStatistics
from ..log.storage import StorageStatistics
from ..queues.queues import QueuesStatistics
from ..webhooks.webhooks import WebhooksStatistics
from .connections import ConnectionsStatistics


class BrokerStatistics(Struct, frozen=True):
    """What the broker holds and has done."""

    hub: HubStatistics
    commands: CommandsStatistics
    replay: ReplayStatistics
    acknowledged: AcknowledgedStatistics
    published: int
    """Events stored since the start."""
    duplicates: int
    """Events that were there already."""
    bodies_bytes: int
    """What requests under way hold, in all."""
    names_bytes: int
    """What connections hold by what they name, beyond what is usual, in all."""
    slots: SlotsStatistics
    keyring: KeyringStatistics
    connections: ConnectionsStatistics
    callouts: Mapping[str, CalloutStatistics]
    """By the section of the configuration that asks."""
    loop_lag: DurationsStatistics
    """How late the event loop was, each half second."""
    log_lines_dropped: int
    """Of the log of `broker serve`: standard error took none, and too many waited."""
    storage: StorageStatistics | None
    """None: there is no log on disk."""
    past: PastStatistics | None
    """None: nothing is kept that memory has dropped."""
    webhooks: WebhooksStatistics | None
    """Without a log on disk there are none."""
    queues: QueuesStatistics | None
    """None: there is no log on disk."""
    engine: EngineStatistics | None
    """None: it shares no engine."""
    keeper: KeeperStatistics | None
    """None: it shares no engine, or has no log on disk."""
    draining: bool
    """Whether it refuses to publish and to open."""
