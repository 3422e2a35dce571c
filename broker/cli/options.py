"""What the verbs of the command line have in common: options, the configuration they read, how they speak and end."""

import math
import os
import shlex
import shutil
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, get_args
from urllib.parse import urlsplit

import click
from msgspec import Struct

from ..config import Config, load_config, mistaken_variables
from ..errors import BrokerError, ConfigError, first_of
from ..protocol.names import Scope, Tier
from .exact import json_of

CONFIG_NAME: Final = "broker.toml"
CONFIG_VARIABLE: Final = "BROKER_CONFIG"
DEFAULT_URL: Final = "http://127.0.0.1:8765"
INTERRUPTED: Final = 130
"""The exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""
_SCHEMES: Final = {"http": False, "ws": False, "https": True, "wss": True}
"""Which of them are TLS."""


class UsageError(click.ClickException):
    """What was given is wrong: one line, and click's exit code for it."""

    exit_code = 2


class OutputError(BrokerError):
    """Standard output takes nothing, a full disk's. It is no `OSError`: nobody is to take it for the network's."""


class ReaderGoneError(Exception):
    """Who reads our standard output has had enough: an ordinary end."""


class BrokerUrl(Struct, frozen=True):
    """Where a broker is, as both protocols write it; no path of the protocol is in it."""

    http: str
    websocket: str


def parse_url(text: str) -> BrokerUrl:
    """Return where ``text`` points: `host:port`, or a URL of HTTP or WebSocket. Raises ValueError in words."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"{text!r}: a broker's URL starts with http://, https://, ws:// or wss://")
    if not parts.hostname or any(not character.isprintable() or character.isspace() for character in text):
        raise ValueError(f"{text!r}: this names no host; it is host:port, or http://host:port")
    if parts.username is not None or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise ValueError(f"{shown!r}: only host, port and path belong here; the key goes into BROKER_KEY")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(f"{text!r}: the port is not a number up to 65535") from None
    where = f"{parts.netloc.removesuffix(':')}{parts.path.rstrip('/').removesuffix('/v1/stream')}"
    tls = "s" if _SCHEMES[parts.scheme] else ""
    return BrokerUrl(f"http{tls}://{where}", f"ws{tls}://{where}")


def _url(context: click.Context, parameter: click.Parameter, text: str) -> BrokerUrl:
    try:
        return parse_url(text)
    except ValueError as error:
        raise UsageError(f"--url {error}") from None


def _key(context: click.Context, parameter: click.Parameter, text: str) -> str:
    if not text:
        raise UsageError("--key is empty")
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise UsageError("--key has characters in it that no key has")
    return text


class Seconds(click.FloatRange):
    """A time in seconds, within bounds: a number, and an end to it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds that a text says."""
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return seconds


def none_empty(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a name that is empty, as of a variable that is not set: in a query that would mean none, or all."""
    if "" in names:
        raise UsageError(f"{parameter.opts[0]} is empty")
    return names


config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False),
    envvar=CONFIG_VARIABLE,
    show_envvar=True,
    help=f"TOML file with the settings and the keys; left out: {CONFIG_NAME} in the current folder, if it is there.",
)
url_option = click.option(
    "--url",
    default=DEFAULT_URL,
    show_default=True,
    envvar="BROKER_URL",
    show_envvar=True,
    callback=_url,
    help="The broker: host:port, http(s)://… or ws(s)://…",
)
key_option = click.option(
    "--key",
    required=True,
    envvar="BROKER_KEY",
    show_envvar=True,
    callback=_key,
    help="The key; better given by the environment.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, in one line.")
operator_key_option = click.option(
    "--key",
    required=True,
    envvar=["BROKER_OPERATOR_KEY", "BROKER_KEY"],
    show_envvar=True,
    callback=_key,
    help="An operator's key; better given by the environment.",
)
tier_option = click.option("--tier", type=click.Choice(get_args(Tier)), help="The account's tier; left out: developer.")


def _trust(context: click.Context, parameter: click.Parameter, path: str | None) -> ssl.SSLContext | None:
    if path is None:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise UsageError(f"--ca-file {path}: there is no certificate in PEM form") from None
    except OSError as error:
        raise UsageError(f"--ca-file {path}: {error.strerror}") from None


ca_file_option = click.option(
    "--ca-file",
    "trust",
    envvar="BROKER_CA_FILE",
    show_envvar=True,
    callback=_trust,
    help="PEM file of the authority that signed the certificate of an https:// broker; left out: the system's.",
)


def inbox_option(meaning: str) -> Callable[..., Any]:
    """Return the option that names inboxes; each verb says what leaving it out means."""
    return click.option("--inbox", "inbox_ids", multiple=True, callback=none_empty, help=meaning)


def scope_option(meaning: str) -> Callable[..., Any]:
    """Return the option that names scopes."""
    return click.option("--scope", "scopes", multiple=True, type=click.Choice(get_args(Scope)), help=meaning)


def print_out(text: str | bytes) -> None:
    """Print what was asked for, on standard output. Raises `ReaderGoneError` and `OutputError`."""
    try:
        click.echo(text)
    except BrokenPipeError:
        _give_up_output()
        raise ReaderGoneError from None
    except OSError as error:
        _give_up_output()
        raise OutputError(f"standard output: {error.strerror}") from None


def _give_up_output() -> None:
    """Let what is still in the buffer go nowhere: it must not be written when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(value: Any) -> None:
    """Print a value as JSON in one line, on standard output."""
    print_out(json_of(value).decode())


def say(text: str) -> None:
    """Say something to the person, on standard error: standard output is for what was asked for."""
    click.echo(f"broker: {text}", err=True)


def program_name() -> str:
    """Return how this program is called from the current folder: `broker` where the PATH finds it, else its path."""
    started, on_path = Path(sys.argv[0]), shutil.which("broker")
    if started.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m broker"
    if on_path and started.exists() and started.samefile(on_path):
        return "broker"
    return shlex.quote(str(started.relative_to(Path.cwd()) if started.is_relative_to(Path.cwd()) else started))


def found_config(path: str | None) -> str | None:
    """Return the configuration that is meant: ``path`` if it was given, else the one in the current folder."""
    return CONFIG_NAME if path is None and Path(CONFIG_NAME).is_file() else path


def load(path: str | None) -> Config:
    """Load a configuration with the environment; say which variables are none. Raises `click.ClickException`."""
    for given, meant in mistaken_variables(os.environ):
        say(f"{given} is no setting; {meant} is, with two underscores")
    try:
        return load_config(path, os.environ)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def ended_by_people() -> Iterator[None]:
    """Let Ctrl-C and a reader of our output that has enough be ordinary ends; an error of ours is one line."""
    try:
        yield
    except* BrokerError as group:
        raise click.ClickException(str(first_of(group))) from None
    except* KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except* ReaderGoneError:
        pass
