"""`healthcheck`: whether the broker of a configuration lives, asked on its own machine (a container's health check)."""

import http.client
import socket
import ssl
from typing import Final

import click

from ..config import ServerConfig
from .options import config_option, found_config, json_option, load, print_json, print_out

ANSWER_SECONDS: Final = 4.0
_OWN_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where who listens at all addresses is asked."""


class _BySocketFile(http.client.HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(ANSWER_SECONDS)
        self.sock.connect(self._path)


@click.command()
@config_option
@click.option("--ready", is_flag=True, help="Whether it takes connections, too: not while it drains.")
@json_option
def healthcheck(config_path: str | None, *, ready: bool, as_json: bool) -> None:
    """Say by the exit code whether the broker on this machine lives.

    It is asked where its configuration says that it listens; its certificate is not looked at.
    """
    connection = _connection_to(load(found_config(config_path)).server)
    try:
        connection.request("GET", "/readyz" if ready else "/healthz")
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise click.ClickException(f"no answer: {getattr(error, 'strerror', None) or error}") from None
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise click.ClickException(f"the answer is {answer.status} {answer.reason}")
    if as_json:
        print_json({"status": "ready" if ready else "ok"})
    else:
        print_out("ok")


def _connection_to(server: ServerConfig) -> http.client.HTTPConnection:
    """Return a connection to the first place where a broker with these settings listens; it is not opened yet."""
    host = _OWN_ADDRESS.get(server.hosts[0], server.hosts[0])
    if not server.port:
        if server.unix is None:
            raise click.ClickException("`server.port` is 0, any that is free: nobody knows where it listens")
        return _BySocketFile(server.unix)
    if server.tls_certificate is None:
        return http.client.HTTPConnection(host, server.port, timeout=ANSWER_SECONDS)
    # The certificate is for the name that clients use, which is not that of a machine's own address.
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection(host, server.port, timeout=ANSWER_SECONDS, context=unverified)
