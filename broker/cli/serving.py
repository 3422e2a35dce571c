"""Verbs that run a broker or look at its configuration: `serve`, `check-config`, `demo`."""

import os
import sys
from functools import partial
from typing import get_args

import click
import trio
from msgspec import structs

from ..address import parse_address
from ..config import Config, LogFormat, LogLevel, LogsConfig, load_config
from ..config import check_config as checked
from ..disk import require_storage
from ..errors import ConfigError, StorageError, first_of
from ..log.lock import require_folder
from ..observe.log_writer import LogWriter
from ..observe.siblings import Siblings
from ..transport.files import raise_open_files_limit
from ..transport.listeners import Address, handed_over, naming, require_place, text_of
from ..transport.server import serve_until_signal
from ..transport.tls import certificate_of
from ..version import __version__
from ..webhooks.sender import tls_of
from ..workers.parent import run_workers
from ..workers.place import take_place
from .demo import run_demo
from .garbage import collect_what_is_young
from .logs import open_log
from .options import Seconds, config_option, found_config, json_option, load, print_json, print_out


@click.command()
@config_option
@click.option("--host", "hosts", multiple=True, help="Address to listen on (repeat it); overrides the configuration.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port to listen on, 0 for a free one.")
@click.option(
    "--workers", type=click.IntRange(1, 128), help="Processes that share the port, by an engine (see docs/cluster.md)."
)
@click.option(
    "--storage", type=click.Path(dir_okay=False), help="File of the log on disk; overrides the configuration."
)
@click.option(
    "--log-level",
    type=click.Choice(get_args(LogLevel)),
    envvar="BROKER_LOG_LEVEL",
    show_envvar=True,
    help="What is logged on standard error; overrides the configuration (info unless it says otherwise).",
)
@click.option(
    "--log-format",
    type=click.Choice(get_args(LogFormat)),
    envvar="BROKER_LOG_FORMAT",
    show_envvar=True,
    help="JSON, or lines for people; auto: for people at a terminal. Overrides the configuration.",
)
def serve(
    config_path: str | None,
    hosts: tuple[str, ...],
    port: int | None,
    workers: int | None,
    storage: str | None,
    log_level: LogLevel | None,
    log_format: LogFormat | None,
) -> None:
    """Run a broker.

    At SIGTERM or SIGINT it drains: every client gets what is stored, and is told to come back. At SIGHUP it reads its
    accounts, keys and rates again, and its certificate.
    """
    config_path = found_config(config_path)
    overriding = partial(_overridden, workers=workers, storage=storage)
    config = load(config_path)
    try:
        config = overriding(config)
        _require_servable(config)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    place = take_place(os.environ)
    logs = LogsConfig(format=log_format or config.logs.format, level=log_level or config.logs.level)
    raise_open_files_limit()

    def load_again() -> Config:
        loaded = overriding(load_config(config_path, os.environ))
        if config.accounts and not loaded.accounts and loaded.access.url is None:
            raise ConfigError(f"{config_path}: all accounts are gone from it; to serve none, restart the broker")
        return loaded

    try:
        with open_log(logs, None if place is None else place.number) as log:
            say_listening = partial(_say_listening, log, config, config_path)
            if place is None and config.server.workers > 1:
                arguments = _of_a_worker(config_path, config, logs)
                sys.exit(run_workers(config, hosts or None, port, arguments, say_listening))
            woken = collect_what_is_young()
            serving = partial(serve_until_signal, config, load_again, hosts or None, port, woken=woken)
            if place is None:
                trio.run(serving, say_listening)
            else:
                given = [handed_over(descriptor) for descriptor in place.descriptors]
                siblings = Siblings(place.directory, place.number, place.workers)
                trio.run(serving, _say_nothing, given, siblings)
    except* (OSError, ConfigError, StorageError) as group:
        raise click.ClickException(_told(first_of(group))) from None


def _require_servable(config: Config) -> None:
    """Raise `ConfigError` where a configuration that loads cannot be served, to `check-config` as to `serve`."""
    require_storage(config)
    certificate_of(config.server)
    if config.storage.path is not None and config.webhooks.ca_file is not None:
        tls_of(config.webhooks)


def _require_places(config: Config) -> None:
    """Raise `ConfigError` where a file that is to be made has no place. `serve` finds that out by making it."""
    unix, path = config.server.unix, config.storage.path
    try:
        if unix is not None:
            with naming(unix):
                require_place(unix)
    except OSError as error:
        raise ConfigError(f"`server.unix`: {error.strerror}") from None
    try:
        if path is not None:
            require_folder(path)
    except StorageError as error:
        raise ConfigError(f"`storage.path`: {error}") from None


def _of_a_worker(config_path: str | None, config: Config, logs: LogsConfig) -> list[str]:
    """Return what a worker of this configuration is given: what flags have overridden, they override in it, too."""
    flags = {
        "--config": config_path,
        "--workers": config.server.workers,
        "--log-level": logs.level,
        "--log-format": logs.format,
    }
    return [f"{flag}={value}" for flag, value in flags.items() if value is not None]


def _say_nothing(addresses: list[Address]) -> None:
    """Leave it to the parent, who says it for all workers."""


def _overridden(config: Config, workers: int | None, storage: str | None) -> Config:
    """Return a configuration with another number of workers, or file of the log, if one is given.

    Raises `ConfigError`.
    """
    if workers is not None:
        config = structs.replace(config, server=structs.replace(config.server, workers=workers))
    if storage is not None:
        config = structs.replace(config, storage=structs.replace(config.storage, path=storage))
    return config if workers is None and storage is None else checked(config)


def _told(error: BaseException) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _say_listening(log: LogWriter, config: Config, config_path: str | None, addresses: list[Address]) -> None:
    """Say in one line what serves, what it was given, where events are kept, and, last, where it listens."""
    scheme = "http" if config.server.tls_certificate is None else "https"
    where = " and ".join(_url_of(scheme, address) for address in addresses)
    settings = config_path or "no file"
    kept = _where_kept(config)
    if config.server.workers > 1:
        kept += f", {config.server.workers} workers"
    said = f"{__version__}, {_counted(len(config.accounts), 'account')} ({settings}), {kept}, listening on {where}"
    log.put(f"broker: {said}\n".encode("utf-8", "backslashreplace"))
    if not (config.accounts or config.access.url):
        nobody = "no accounts are configured: nobody can connect (see `broker init`, `broker keys new`)"
        log.put(f"broker: {nobody}\n".encode())


def _where_kept(config: Config) -> str:
    """Say where events are kept, and for how long; no password is in it."""
    path, window = config.storage.path, f"the window of {config.replay.seconds:g} s"
    if config.engine.url is not None:
        beside = "" if path is None else f", and {path} webhooks and queues"
        return f"the engine at {parse_address(config.engine.url)}: it keeps {window}{beside}"
    if path is not None:
        return f"the log in {path}"
    if config.server.workers > 1:
        return f"a private server of the workers: a restart forgets {window}"
    return f"memory only: a restart forgets {window}"


def _url_of(scheme: str, address: Address) -> str:
    text = text_of(address)
    return text if text.startswith("unix:") else f"{scheme}://{text}"


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


@click.command("check-config")
@config_option
@json_option
def check_config(config_path: str | None, *, as_json: bool) -> None:
    """Say whether the configuration can be served, with the environment and the certificate that it names."""
    config_path = found_config(config_path)
    config = load(config_path)
    try:
        _require_servable(config)
        _require_places(config)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    keys = sum(len(account.keys) for account in config.accounts)
    counts = (len(config.accounts), "account"), (keys, "key"), (len(config.operators), "operator")
    if as_json:
        print_json({"config": config_path, **{f"{thing}s": number for number, thing in counts}})
        return
    print_out(f"ok: {', '.join(_counted(*count) for count in counts)} ({config_path or 'no file'})")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8765,
    show_default=True,
    help="Port to listen on; a free one if it is taken.",
)
@click.option("--seconds", type=Seconds(min=0), help="End by itself after so many seconds.")
def demo(host: str, port: int, seconds: float | None) -> None:
    """Show a broker at work.

    Runs a broker, an agent and a publisher in one process, and prints what arrives with its latency.
    """
    try:
        trio.run(partial(run_demo, host=host, port=port, seconds=seconds, say=print_out))
    except* OSError as group:
        raise click.ClickException(_told(first_of(group))) from None
