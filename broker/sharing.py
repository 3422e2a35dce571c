"""The engine that a broker shares with others, if its configuration names one."""

import secrets
from collections.abc import Callable

from .address import parse_address
from .config import Config
from .errors import ConfigError
from .log.engines import Engine, Log
from .log.retention import ReplayBuffers

MakeEngine = Callable[[ReplayBuffers, Log], Engine]


def shared_engine(config: Config) -> MakeEngine | None:
    """Return what makes the engine at ``engine.url``; None: there is no such. Raises `ConfigError` if it cannot."""
    section = config.engine
    if section.url is None:
        return None
    try:
        from .log.engines.valkey.engine import ValkeyEngine
    except ModuleNotFoundError as error:
        missing = f"`engine.url` needs {error.name}: install `daimon-broker[cluster]`"
        raise ConfigError(missing) from None
    address, node = parse_address(section.url), secrets.token_hex(8)
    return lambda buffers, log: ValkeyEngine(buffers, log, address, node, config.replay, section.wait_replicas)
