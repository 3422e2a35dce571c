"""Whom the inputs are sent to: a broker, its accounts, and whose keys a hostile client has."""

import atexit
import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryDirectory

from ..peers.shared import open_store

HOST = "127.0.0.1"
ANY = "dm_live_hostile_any_0123456789abcdef"
"""Has all scopes, in an account of the tier `enterprise`."""
LISTENER = "dm_live_hostile_listener_0123456789"
"""May only subscribe, in the same account."""
FREE = "dm_live_hostile_free_0123456789abcd"
"""Has all scopes, in an account of the tier `free`."""
OPERATOR = "dm_operator_hostile_0123456789abcdef"
NEIGHBOUR = "dm_live_neighbour_0123456789abcdef"
"""Of an account that has nothing to do with the others."""
STRANGER = "dm_live_outside_0123456789abcdef"
"""No configuration holds it: the operator's API knows it."""
ACCOUNT = "acct_hostile"
CALLOUT_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

_ALL_SCOPES = '["subscribe", "command", "publish", "webhooks"]'
_ACCOUNTS = {
    ACCOUNT: ("enterprise", {ANY: f"scopes = {_ALL_SCOPES}\n", LISTENER: 'scopes = ["subscribe"]\n'}),
    "acct_hostile_free": ("free", {FREE: ""}),
    "acct_neighbour": ("enterprise", {NEIGHBOUR: ""}),
}


FOLDER, VALKEY = "{folder}", "{valkey}"
_NEEDED = ExitStack()
"""What configurations need, for as long as this process lives."""
atexit.register(_NEEDED.close)


@dataclass(frozen=True)
class Target:
    """A broker that takes connections.

    Args:
        host, port: where it listens.
        api_port: where it asks the operator's API, if the row's configuration says so: the row answers there.
    """

    host: str
    port: int
    api_port: int = 0


def configuration(port: int, api_port: int, settings: str = "", *, asks: bool = False) -> str:
    """Return the TOML of a broker that the table's rows are sent to.

    Args:
        port: where it listens.
        api_port: of the operator's API.
        settings: sections of the row's own; `{folder}` in them is a new folder, `{valkey}` the URL of a new server that
            nodes share: both live as long as the process. Raises `PeerMissingError` where there is no such server.
        asks: whether keys and commands that it does not know are asked for at the API.
    """
    if FOLDER in settings:
        folder = _NEEDED.enter_context(TemporaryDirectory(prefix="broker-hostile-"))
        settings = settings.replace(FOLDER, folder)
    if VALKEY in settings:
        settings = settings.replace(VALKEY, _NEEDED.enter_context(open_store(None)).url)
    parts = [f"[server]\nport = {port}\n", settings]
    parts += [
        f'[{section}]\nurl = "http://{HOST}:{api_port}/{section}"\nsecret = "{CALLOUT_SECRET}"\n'
        for section in ("access", "commands")
        if asks
    ]
    parts.append(f'[[operators]]\nid = "op_hostile"\nsha256 = "{_digest(OPERATOR)}"\n')
    for account, (tier, keys) in _ACCOUNTS.items():
        parts.append(f'[[accounts]]\nid = "{account}"\ntier = "{tier}"\n')
        for number, (key, scopes) in enumerate(keys.items()):
            parts.append(f'[[accounts.keys]]\nid = "key_{number}"\nsha256 = "{_digest(key)}"\n{scopes}')
    return "\n".join(parts)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
