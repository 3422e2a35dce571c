"""An event broker for AI agents with e-mail inboxes: the public names, and nothing else."""

from .broker import Broker, BrokerStatistics, open_broker
from .config import AccountConfig, Config, KeyConfig, LimitsConfig, OperatorConfig, ReplayConfig, ServerConfig
from .config import load_config as load_config
from .errors import BrokerClosedError, BrokerError, CloseCode, ConfigError, RequestError
from .messages import Event, Gap, NewEvent, Published, Replay
from .server import serve
from .subscriber import Subscriber

__all__ = [
    "AccountConfig",
    "Broker",
    "BrokerClosedError",
    "BrokerError",
    "BrokerStatistics",
    "CloseCode",
    "Config",
    "ConfigError",
    "Event",
    "Gap",
    "KeyConfig",
    "LimitsConfig",
    "NewEvent",
    "OperatorConfig",
    "Published",
    "Replay",
    "ReplayConfig",
    "RequestError",
    "ServerConfig",
    "Subscriber",
    "load_config",
    "open_broker",
    "serve",
]
