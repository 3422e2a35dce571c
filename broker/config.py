"""The configuration: frozen structs, read from TOML, the environment and flags, in this order of precedence.

Every setting is a key of PROTOCOL section 7, with its unit in its name. An unknown key or a bad value is a
`ConfigError` that names it.
"""

import tomllib
from collections import Counter
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from .address import parse_address
from .errors import ConfigError
from .protocol.names import Identifier, InboxId, Scope, Tier, TypePattern
from .protocol.wording import any_of, located, spelled, told

Positive = Annotated[int, Meta(gt=0)]
FilePath = Annotated[str, spelled(r"^[^\x00]+$", "the path of a file")]
PositiveSeconds = Annotated[int, Meta(gt=0, le=86_400)] | Annotated[float, Meta(gt=0, le=86_400)]
Sha256 = Annotated[
    str, spelled(r"^[0-9a-f]{64}$(?!\n)", "the SHA-256 of a key, 64 of `0-9` and `a-f`, and not the key itself")
]
Url = Annotated[str, spelled(r"^https?://[^\s]+$(?!\n)", "a URL, `http://…` or `https://…`")]
Origin = Annotated[
    str, spelled(r"^https?://[^\s/?#@,]+$(?!\n)", "an origin: `https://` (or `http://`), host and port, no path")
]
"""A web page's origin as browsers name it: scheme, host and port, no path."""
WebhookSecret = Annotated[
    str,
    spelled(
        r"^whsec_([A-Za-z0-9+/]{4}){8,}([A-Za-z0-9+/]{3}=?|[A-Za-z0-9+/]{2}(==)?)?$(?!\n)",
        "`whsec_` and the base64 of 24 bytes or more, as `broker secrets new` makes it",
    ),
]
"""`whsec_` and the base64 of 24 bytes or more, as Standard Webhooks has it; its padding there or not."""

QueueOrder = Annotated[str, spelled(r"^(thread|inbox|none)$(?!\n)", "`thread`, `inbox` or `none`")]
"""Of which events of a queue one is given at a time: those of a thread, of an inbox, or of none."""

T = TypeVar("T")

_ENVIRONMENT_PREFIX = "BROKER_"
_TOGETHER = (("commands", "url", "secret"), ("access", "url", "secret"), ("server", "tls_certificate", "tls_key"))
"""Sections with two settings of which neither is there without the other."""
_NETWORKS = (("server", "trusted_proxies"), ("webhooks", "allow_networks"), ("webhooks", "deny_networks"))
"""Settings that are lists of networks."""


class _Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ServerConfig(_Section, frozen=True):
    """Where the server listens, by how many processes, its drain, its TLS (PEM files), the networks of proxies."""

    host: str | Annotated[tuple[str, ...], Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8765
    unix: FilePath | None = None
    workers: Annotated[int, Meta(ge=1, le=128)] = 1
    drain_seconds: PositiveSeconds = 8
    tls_certificate: FilePath | None = None
    tls_key: FilePath | None = None
    trusted_proxies: tuple[str, ...] = ()

    @property
    def hosts(self) -> tuple[str, ...]:
        """Each of ``host``, be it one or a list."""
        return (self.host,) if isinstance(self.host, str) else self.host


class ReplayConfig(_Section, frozen=True):
    """The replay window: bounded by age, events and bytes, whichever comes first."""

    seconds: PositiveSeconds = 300
    max_events_per_account: Positive = 100_000
    max_bytes_per_account: Positive = 67_108_864
    max_bytes_total: Positive = 1_073_741_824


Synchronous = Literal["full", "normal"]
told("synchronous", any_of(Synchronous))


class StorageConfig(_Section, frozen=True):
    """A log on disk, if ``path`` says where: what is kept there, how surely, and how much of it.

    Beside an engine it holds webhooks and queues, and what they are owed.
    """

    path: FilePath | None = None
    synchronous: Synchronous = "full"
    keep_seconds: Annotated[int, Meta(gt=0, le=31_536_000)] | Annotated[float, Meta(gt=0, le=31_536_000)] = 86_400
    max_bytes: Annotated[int, Meta(ge=16_777_216)] = 10_737_418_240
    min_free_bytes: Annotated[int, Meta(ge=0)] = 67_108_864


class EngineConfig(_Section, frozen=True):
    """A Valkey or Redis 7 that many nodes share, if ``url`` says where.

    ``wait_replicas``: how many replicas of it have an event before its publisher is told.
    """

    url: Annotated[str, Meta(min_length=1)] | None = None
    wait_replicas: Annotated[int, Meta(ge=0, le=100)] = 0


class LimitsConfig(_Section, frozen=True):
    """What one request, message or connection may cost."""

    max_event_bytes: Positive = 262_144
    max_events_per_request: Positive = 10_000
    max_body_bytes: Positive = 8_388_608
    max_bodies_bytes: Positive = 134_217_728
    max_names_bytes: Positive = 134_217_728
    max_message_bytes: Positive = 1_048_576
    max_inboxes_per_connection: Positive = 10_000
    max_event_types: Positive = 100
    heartbeat_seconds: PositiveSeconds = 30


class CalloutConfig(_Section, frozen=True):
    """Where the operator's own API is asked, if anywhere, signed with ``secret`` (``whsec_…``)."""

    url: Url | None = None
    secret: WebhookSecret | None = None
    timeout_seconds: PositiveSeconds = 10


class AccessConfig(CalloutConfig, frozen=True):
    """Who knows the keys that the configuration does not hold: with ``url``, their SHA-256 is POSTed there."""


class TokensConfig(_Section, frozen=True):
    """What connection tokens are signed with, and how long they live at most. Left out: a secret of the process."""

    secret: Annotated[str, Meta(min_length=32)] | None = None
    ttl_seconds: PositiveSeconds = 60


class BrowsersConfig(_Section, frozen=True):
    """Which web pages may connect, by their origin. None unless listed."""

    origins: tuple[Origin, ...] = ()


class DashboardConfig(_Section, frozen=True):
    """Whether the broker shows its own pages. Left out: only where nobody reaches it from another machine."""

    enabled: bool | None = None


class CommandsConfig(CalloutConfig, frozen=True):
    """Who does the commands that the broker does not know itself, and how many at once.

    With ``url``, an action without a handler of the library is POSTed there.
    """

    max_per_connection: Positive = 16
    max_per_account: Positive = 256


class WebhooksConfig(_Section, frozen=True):
    """What accounts' webhooks may be posted to.

    Networks (`10.0.0.0/8`) that are allowed though they are not public, and those that never are; ``allow_http``:
    whether plain HTTP is; ``ca_file`` (PEM): authorities that are believed beside the system's.
    """

    allow_networks: tuple[str, ...] = ()
    deny_networks: tuple[str, ...] = ("168.63.129.16/32",)
    allow_http: bool = False
    ca_file: FilePath | None = None


class RateConfig(_Section, frozen=True):
    """How often something may be done. ``burst`` left out: what comes in within a second, at least one."""

    per_second: Annotated[int, Meta(gt=0, le=1_000_000)] | Annotated[float, Meta(ge=0.000_001, le=1_000_000)]
    burst: Positive | None = None


class TierRatesConfig(_Section, frozen=True):
    """The rates of a tier; what is left out is not limited."""

    commands_per_connection: RateConfig | None = None
    commands_per_account: RateConfig | None = None
    events_per_connection: RateConfig | None = None
    events_per_account: RateConfig | None = None

    @property
    def commands_per_second(self) -> float | None:
        """How many commands a second one connection may give at most; None: not limited."""
        rates = [rate.per_second for rate in (self.commands_per_connection, self.commands_per_account) if rate]
        return min(rates, default=None)


class RatesConfig(_Section, frozen=True):
    """The rates of each tier."""

    free: TierRatesConfig = TierRatesConfig()
    developer: TierRatesConfig = TierRatesConfig()
    growth: TierRatesConfig = TierRatesConfig()
    enterprise: TierRatesConfig = TierRatesConfig()

    def of(self, tier: Tier) -> TierRatesConfig:
        """Return the rates of a tier."""
        rates: TierRatesConfig = getattr(self, tier)
        return rates


class KeyConfig(_Section, frozen=True):
    """A key of an account. ``inbox_ids`` left out: it reaches the whole account."""

    id: Identifier
    sha256: Sha256
    scopes: tuple[Scope, ...] = ("subscribe", "command", "publish")
    inbox_ids: Annotated[tuple[InboxId, ...], Meta(min_length=1)] | None = None


class AccountWebhookConfig(_Section, frozen=True):
    """An endpoint that an account's events are posted to (PROTOCOL section 9). Left out: all inboxes, all types."""

    id: Identifier
    url: Url
    secret: WebhookSecret
    inbox_ids: Annotated[tuple[InboxId, ...], Meta(min_length=1)] | None = None
    event_types: Annotated[tuple[TypePattern, ...], Meta(min_length=1)] | None = None
    mode: Literal["always", "fallback"] = "always"
    client_ids: tuple[Identifier, ...] = ()
    fallback_seconds: Annotated[int, Meta(ge=0, le=86_400)] | Annotated[float, Meta(ge=0, le=86_400)] = 30
    order: Literal["none", "inbox"] = "none"


DeadAfter = Literal["continue", "stop"]
told("dead_after", any_of(DeadAfter))


class AccountQueueConfig(_Section, frozen=True):
    """A queue that an account's workers take events from (PROTOCOL section 11). Left out: all inboxes, all types."""

    id: Identifier
    inbox_ids: Annotated[tuple[InboxId, ...], Meta(min_length=1)] | None = None
    event_types: Annotated[tuple[TypePattern, ...], Meta(min_length=1)] | None = None
    order: QueueOrder = "thread"
    lease_seconds: Annotated[int, Meta(ge=1, le=3_600)] | Annotated[float, Meta(ge=1, le=3_600)] = 60
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 5
    max_age_seconds: Annotated[int, Meta(ge=60, le=604_800)] | Annotated[float, Meta(ge=60, le=604_800)] = 259_200
    dead_after: DeadAfter = "continue"


class AccountConfig(_Section, frozen=True):
    """An account: a tenant, with its keys, its webhooks and its queues."""

    id: Identifier
    tier: Tier = "developer"
    keys: tuple[KeyConfig, ...] = ()
    webhooks: Annotated[tuple[AccountWebhookConfig, ...], Meta(max_length=16)] = ()
    queues: Annotated[tuple[AccountQueueConfig, ...], Meta(max_length=16)] = ()


class OperatorConfig(_Section, frozen=True):
    """An operator's key: publishes for any account."""

    id: Identifier
    sha256: Sha256


class TracingConfig(_Section, frozen=True):
    """Whether spans are made, by OpenTelemetry's API; where they go is for its SDK."""

    enabled: bool = False


LogFormat = Literal["auto", "json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]
told("format", any_of(LogFormat))
told("level", any_of(LogLevel))


class LogsConfig(_Section, frozen=True):
    """What `broker serve` writes to standard error: from which level on, and for whom; auto: people at a terminal."""

    format: LogFormat = "auto"
    level: LogLevel = "info"


class Config(_Section, frozen=True):
    """The whole configuration."""

    server: ServerConfig = ServerConfig()
    replay: ReplayConfig = ReplayConfig()
    storage: StorageConfig = StorageConfig()
    engine: EngineConfig = EngineConfig()
    limits: LimitsConfig = LimitsConfig()
    access: AccessConfig = AccessConfig()
    tokens: TokensConfig = TokensConfig()
    browsers: BrowsersConfig = BrowsersConfig()
    dashboard: DashboardConfig = DashboardConfig()
    commands: CommandsConfig = CommandsConfig()
    logs: LogsConfig = LogsConfig()
    tracing: TracingConfig = TracingConfig()
    rates: RatesConfig = RatesConfig()
    webhooks: WebhooksConfig = WebhooksConfig()
    accounts: tuple[AccountConfig, ...] = ()
    operators: tuple[OperatorConfig, ...] = ()


def load_config(path: str | Path | None, environment: Mapping[str, str]) -> Config:
    """Read the TOML file at ``path`` (None: no file) and let ``environment`` override it. Raises `ConfigError`."""
    text = ""
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8-sig")  # some editors put a mark before it
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 (byte {error.start})") from None
    return parse_config(text, environment, source=str(path or "the configuration"))


def parse_config(text: str, environment: Mapping[str, str], *, source: str = "the configuration") -> Config:
    """Return the `Config` of a TOML ``text``, overridden by ``BROKER_SECTION__NAME`` of ``environment``."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not TOML: {error}") from None
    variables = {}
    for variable, value in environment.items():
        if variable.startswith(_ENVIRONMENT_PREFIX) and "__" in variable:
            section, _, name = variable[len(_ENVIRONMENT_PREFIX) :].lower().partition("__")
            setting = _override(section, name, variable, value)
            table = raw.setdefault(section, {})
            if isinstance(table, dict):
                table[name] = setting
                variables[f" - at `$.{section}.{name}`"] = variable
    try:
        return _checked(raw, source)
    except ConfigError as error:
        said, at, where = str(error).rpartition(" - at ")
        culprit = variables.get(at + where)
        if culprit is None:
            raise
        raise ConfigError(f"{said.removeprefix(f'{source}: ')}{at}`{culprit}`") from None


def check_config(config: Config) -> Config:
    """Return a `Config` that was made by hand, checked as one from a file is. Raises `ConfigError`."""
    return _checked(msgspec.to_builtins(config), "the configuration")


def settings_of(config: Config) -> Config:
    """Return a configuration without its accounts and operators: whoever lives long keeps no more of it."""
    return msgspec.structs.replace(config, accounts=(), operators=())


def mistaken_variables(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return variables that name a setting with one underscore instead of two, each with what it should be."""
    names = {
        f"{_ENVIRONMENT_PREFIX}{section.name}_{setting.name}".upper(): (section.name, setting.name)
        for section in msgspec.structs.fields(Config)
        if isinstance(section.type, type) and issubclass(section.type, Struct)
        for setting in msgspec.structs.fields(section.type)
    }
    mistaken = {variable: names[variable] for variable in sorted(environment.keys() & names.keys())}
    return [(name, f"{_ENVIRONMENT_PREFIX}{'__'.join(meant)}".upper()) for name, meant in mistaken.items()]


def _override(section: str, name: str, variable: str, value: str) -> Any:
    """Return a variable's text as the type of its setting."""
    sections = {field.name: field.type for field in msgspec.structs.fields(Config)}
    section_type = sections.get(section)
    if not (isinstance(section_type, type) and issubclass(section_type, Struct)):
        raise ConfigError(f"{variable}: there is no section [{section}] of single settings")
    kinds = {field.name: field.type for field in msgspec.structs.fields(section_type)}
    if name not in kinds:
        raise ConfigError(f"{variable}: [{section}] has no setting `{name}`")
    try:
        if _is_list(kinds[name], value):
            return msgspec.convert([item.strip() for item in value.split(",")], kinds[name])
        return msgspec.convert(value, kinds[name], strict=False)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise ConfigError(located(str(error), variable)) from None


def _is_list(kind: Any, value: str) -> bool:
    """Whether a variable's text is a list: always, or, where one value alone may stand, if it has commas."""
    if get_origin(kind) is tuple:
        return True
    several = (get_args(each)[0] for each in get_args(kind) if get_origin(each) is Annotated)
    return "," in value and any(get_origin(each) is tuple for each in several)


def _checked(raw: Any, source: str) -> Config:
    try:
        config = _converted(raw)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {located(str(error), '$')}") from None
    _check_unique(config, source)
    for section, name in _NETWORKS:
        for index, network in enumerate(getattr(getattr(config, section), name)):
            _check_network(network, f"$.{section}.{name}[{index}]", source)
    _check_webhooks(config, source)
    for section, one, other in _TOGETHER:
        table = getattr(config, section)
        if (getattr(table, one) is None) != (getattr(table, other) is None):
            raise ConfigError(f"{source}: `{one}` and `{other}` go together - at `$.{section}`")
    if config.storage.path is not None and config.storage.keep_seconds < config.replay.seconds:
        least = f"Expected at least `replay.seconds`, {config.replay.seconds:g}"
        raise ConfigError(f"{source}: {least} - at `$.storage.keep_seconds`")
    if config.engine.url is not None:
        try:
            parse_address(config.engine.url)
        except ValueError as error:
            raise ConfigError(f"{source}: {error} - at `$.engine.url`") from None
    if config.server.workers > 1:
        _check_workers(config, source)
    return config


def _check_workers(config: Config, source: str) -> None:
    """Check that nothing is asked for that one process has alone."""
    by = "several `server.workers`"
    if config.storage.path is not None:
        raise ConfigError(f"{source}: A log on disk does not go together with {by} - at `$.storage.path`")
    if config.engine.url is not None:
        return  # another node of the cluster may have them
    for number, account in enumerate(config.accounts):
        for name, there in (("webhooks", account.webhooks), ("queues", account.queues)):
            if there:
                message = f"{name.capitalize()} do not go together with {by}"
                raise ConfigError(f"{source}: {message} - at `$.accounts[{number}].{name}`")


def _check_webhooks(config: Config, source: str) -> None:
    """Check what the type of an endpoint does not say."""
    for number, account in enumerate(config.accounts):
        for index, webhook in enumerate(account.webhooks):
            path = f"$.accounts[{number}].webhooks[{index}]"
            if webhook.mode == "fallback" and not webhook.client_ids:
                raise ConfigError(f"{source}: A `fallback` names the clients it waits for - at `{path}.client_ids`")
            if webhook.url.startswith("http:") and not config.webhooks.allow_http:
                raise ConfigError(f"{source}: `http://` needs `webhooks.allow_http` - at `{path}.url`")


def _check_network(network: str, path: str, source: str) -> None:
    try:
        ip_network(network)
    except ValueError as error:
        raise ConfigError(f"{source}: Expected a network, `10.0.0.0/8`, or an address: {error} - at `{path}`") from None


def _converted(raw: Any) -> Config:
    """Convert account by account and key by key: no thread but this one runs in the middle of a conversion."""
    accounts = raw.get("accounts") if isinstance(raw, dict) else None
    if not isinstance(accounts, (list, tuple)):
        return msgspec.convert(raw, Config)
    config = msgspec.convert({**raw, "accounts": []}, Config)
    converted = [_account(account, f"$.accounts[{index}]") for index, account in enumerate(accounts)]
    return msgspec.structs.replace(config, accounts=tuple(converted))


def _account(raw: Any, path: str) -> AccountConfig:
    keys = raw.get("keys") if isinstance(raw, dict) else None
    if not isinstance(keys, (list, tuple)):
        return _converted_at(raw, AccountConfig, path)
    account = _converted_at({**raw, "keys": []}, AccountConfig, path)
    converted = [_converted_at(key, KeyConfig, f"{path}.keys[{index}]") for index, key in enumerate(keys)]
    return msgspec.structs.replace(account, keys=tuple(converted))


def _converted_at(raw: Any, kind: type[T], path: str) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(located(str(error), path)) from None


def _check_unique(config: Config, source: str) -> None:
    keys = [(account, key) for account in config.accounts for key in account.keys]
    names = [f"account `{account.id}`" for account in config.accounts]
    names += [f"key `{key.id}` of account `{account.id}`" for account, key in keys]
    webhooks = [(account, webhook) for account in config.accounts for webhook in account.webhooks]
    names += [f"webhook `{webhook.id}` of account `{account.id}`" for account, webhook in webhooks]
    queues = [(account, queue) for account in config.accounts for queue in account.queues]
    names += [f"queue `{queue.id}` of account `{account.id}`" for account, queue in queues]
    names += [f"operator `{operator.id}`" for operator in config.operators]
    for name, times in Counter(names).items():
        if times > 1:
            raise ConfigError(f"{source}: {name} is there twice")
    owners: dict[str, str] = {}
    digests = [(key.sha256, f"key `{key.id}`") for _, key in keys]
    for digest, owner in [*digests, *((o.sha256, f"operator `{o.id}`") for o in config.operators)]:
        if digest in owners:
            raise ConfigError(f"{source}: {owner} has the same `sha256` as {owners[digest]}")
        owners[digest] = owner
