"""Proxies before a broker: nginx and Caddy, with the very configuration that docs/proxies.md shows.

Where one is not installed, its tests say so and are skipped; where `BROKER_TEST_PROXIES_REQUIRED` is set, they fail.
"""

import os
import shutil
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from certificates import Authority
from clients import until
from documents import ROOT, blocks
from processes import free_port

PAGE = ROOT / "docs" / "proxies.md"
REQUIRED = "BROKER_TEST_PROXIES_REQUIRED"


class Proxy:
    """A proxy that runs, at a port of loopback, for the name `localhost`."""

    def __init__(self, port: int, trust: ssl.SSLContext, folder: Path, reload: Callable[[], Awaitable[None]]) -> None:
        self.address = ("127.0.0.1", port)
        self.url = f"https://localhost:{port}"
        self.trust = trust
        self.reload = reload
        """Have it read its configuration again, and return when it works by that."""
        self._folder = folder

    def written(self) -> str:
        """All that it has written into files: logs."""
        return "\n".join(path.read_text(encoding="utf-8") for path in self._folder.glob("*.log"))


def _required(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        message = f"there is no {program} on this machine: the broker is not run behind it"
        if os.environ.get(REQUIRED):
            pytest.fail(message)
        pytest.skip(message)
    return found


def _adapted(language: str, replaced: Mapping[str, str]) -> str:
    """The page's one block in a language, with other names, paths and times. Each must stand in it."""
    [block] = blocks(language, page=PAGE)
    text = block.text
    for old, new in replaced.items():
        assert old in text, f"{old!r} is not in {block}"
        text = text.replace(old, new)
    return text


async def _taken(port: int) -> None:
    """Wait until somebody listens."""
    with trio.fail_after(60):
        while True:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.01)
            else:
                await stream.aclose()
                return


def _children(pid: int) -> set[str]:
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())


async def _kill(process: trio.Process) -> None:
    process.kill()


@asynccontextmanager
async def _running(command: list[str], port: int, **options: Any) -> AsyncIterator[Any]:
    """A process that listens at a port, ended with the block."""
    said = Path(command[-1]).parent / "said.log"
    async with trio.open_nursery() as nursery:
        with said.open("w") as output:
            run = partial(trio.run_process, command, stdout=output, stderr=output, check=False, **options)
            process = await nursery.start(run)
            await _taken(port)
            yield process
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def nginx(folder: Path, upstream: str, *, seconds: float = 90, without: str = "") -> AsyncIterator[Proxy]:
    """nginx before a broker at `unix:PATH` or `HOST:PORT`; it waits so long for the next byte.

    ``without``: what stands in lines that somebody forgot.
    """
    program, port, authority = _required("nginx"), free_port(), Authority(folder)
    signed = authority.sign("proxy")
    site = _adapted(
        "nginx",
        {
            "unix:/run/broker/broker.sock;": f"{upstream};",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
            "    listen [::]:443 ssl http2;\n": "",
            "broker.example;": "localhost;",
            "/etc/ssl/broker.example/cert.pem": str(signed.tls_certificate),
            "/etc/ssl/broker.example/key.pem": str(signed.tls_key),
            "/var/log/nginx": str(folder),
            "proxy_read_timeout 90s": f"proxy_read_timeout {int(seconds * 1_000)}ms",
            "proxy_send_timeout 90s": f"proxy_send_timeout {int(seconds * 1_000)}ms",
        },
    )
    site = "\n".join(line for line in site.split("\n") if not without or without not in line)
    kept = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    user = "user root;" if os.getuid() == 0 else ""
    paths = " ".join(f"{name}_temp_path {folder}/{name};" for name in kept)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log info; {user}\n"
        f"events {{ worker_connections 512; }}\nhttp {{\n{paths}\n{site}}}\n"
    )
    async with _running([program, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"], port) as process:

        async def reload() -> None:
            before = _children(process.pid)
            process.send_signal(signal.SIGHUP)
            await until(lambda: _children(process.pid) - before)
            await _taken(port)

        yield Proxy(port, authority.trust(), folder, reload)


@asynccontextmanager
async def caddy(folder: Path, upstream: str, *, seconds: float = 90) -> AsyncIterator[Proxy]:
    """Caddy before a broker at `unix:PATH` or `HOST:PORT`; it waits for ever for the next byte."""
    program, port, authority = _required("caddy"), free_port(), Authority(folder)
    signed, operated_at = authority.sign("proxy"), f"127.0.0.1:{free_port()}"
    site = _adapted(
        "caddyfile",
        {
            "unix//run/broker/broker.sock": upstream.replace("unix:", "unix/"),
            "broker.example {": f"https://localhost:{port}, https://broker.example:{port} {{\n\tbind 127.0.0.1",
            "/etc/ssl/broker.example/cert.pem": str(signed.tls_certificate),
            "/etc/ssl/broker.example/key.pem": str(signed.tls_key),
        },
    )
    file = folder / "Caddyfile"
    file.write_text(f"{{\n\tadmin {operated_at}\n\tauto_https off\n\tskip_install_trust\n}}\n{site}")
    home = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    adapter = ["--adapter", "caddyfile", "--config", str(file)]
    # Asked to end, it waits for its clients.
    async with _running([program, "run", *adapter], port, env=home, deliver_cancel=_kill):

        async def reload() -> None:
            command = [program, "reload", "--force", "--address", operated_at, *adapter]
            await trio.run_process(command, capture_stdout=True, capture_stderr=True, env=home)

        yield Proxy(port, authority.trust(), folder, reload)
