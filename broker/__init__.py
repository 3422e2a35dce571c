"""An event broker for AI agents with e-mail inboxes: the public names, and nothing else."""

from . import keys
from .access.keys import Access
from .access.lookup import AccessAnswer
from .broker import Broker, open_broker
from .commands.context import CommandContext
from .config import (
    AccessConfig,
    AccountConfig,
    BrowsersConfig,
    CommandsConfig,
    Config,
    EngineConfig,
    KeyConfig,
    LimitsConfig,
    OperatorConfig,
    RateConfig,
    RatesConfig,
    ReplayConfig,
    ServerConfig,
    StorageConfig,
    TierRatesConfig,
    TokensConfig,
    TracingConfig,
)
from .config import load_config as load_config
from .errors import BrokerClosedError, BrokerError, CloseCode, CommandError, ConfigError, RequestError, StorageError
from .fanout.subscriber import Subscriber
from .observe.statistics import BrokerStatistics
from .protocol.messages import Acked, Event, Gap, Held, NewEvent, Published, Replay
from .transport.server import serve
from .version import __version__
from .waiting.extraction import Extracted, Link
from .waiting.waits import Waited

__all__ = [
    "Access",
    "AccessAnswer",
    "AccessConfig",
    "AccountConfig",
    "Acked",
    "Broker",
    "BrokerClosedError",
    "BrokerError",
    "BrokerStatistics",
    "BrowsersConfig",
    "CloseCode",
    "CommandContext",
    "CommandError",
    "CommandsConfig",
    "Config",
    "ConfigError",
    "EngineConfig",
    "Event",
    "Extracted",
    "Gap",
    "Held",
    "KeyConfig",
    "LimitsConfig",
    "Link",
    "NewEvent",
    "OperatorConfig",
    "Published",
    "RateConfig",
    "RatesConfig",
    "Replay",
    "ReplayConfig",
    "RequestError",
    "ServerConfig",
    "StorageConfig",
    "StorageError",
    "Subscriber",
    "TierRatesConfig",
    "TokensConfig",
    "TracingConfig",
    "Waited",
    "__version__",
    "keys",
    "load_config",
    "open_broker",
    "serve",
]
