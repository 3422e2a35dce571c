"""nchan as a peer: nginx with the nchan module, WebSocket subscribers, events published by HTTP POST."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit
from tempfile import TemporaryDirectory

from .adapter import PeerMissingError, Publication, Running, Subscription
from .cache import place
from .process import HOST, children_of, core_count, free_ports, started
from .wire import post, upgrade

SYSTEM = Path("/")
"""Where Debian's packages are installed by root."""


class Nchan:
    """nginx with nchan, its message buffer on: a subscriber that comes back can ask for what it missed."""

    name = "nchan"
    does = "history of 300 s, asked for by message id"

    def version(self) -> str:
        """Return nchan's version, by its package, and nginx's."""
        root = _root()
        said = subprocess.run([_nginx(root), "-v"], capture_output=True, text=True, check=False)
        if said.returncode != 0:
            raise PeerMissingError(f"nginx does not run ({said.stderr.strip()}): apt-get install libnginx-mod-nchan.")
        return f"{_package_version(root)}, nginx {said.stderr.split('/')[-1].split()[0]}"

    def where(self) -> str:
        """Return where the module is."""
        return str(_module(_root()))

    @contextmanager
    def open(self, cores: set[int] | None, channels: int) -> Iterator[Running]:
        """Start nginx with a worker for each core; channels come into being by themselves."""
        root = _root()
        [port] = free_ports(1)
        workers = core_count(cores)
        with TemporaryDirectory(prefix="bench-nchan-") as directory:
            settings = Path(directory) / "nginx.conf"
            settings.write_text(_settings(_module(root), directory, port, workers), encoding="utf-8")
            command = [_nginx(root), "-p", directory, "-e", "stderr", "-c", settings]
            with started(command, [port], cores) as process_id:
                processes = [process_id, *children_of(process_id, workers)]
                publication = Publication(port, acknowledged=b"HTTP/1.1 20")
                notes = {
                    "history": "300 s, 100,000 events a channel, in memory",
                    "server": f"{workers} worker(s), access log off, backlog 4096, no TCP_NODELAY (it has none)",
                    "publish": "HTTP/1.1 POST, keep-alive",
                    "acknowledged": "yes",
                }
                yield Running(HOST, port, processes, publication, notes)

    def subscribe(self, running: Running, channel: int) -> Subscription:
        """Return a subscription; the answer to nchan's client heartbeat says that the connection is at work."""
        head = upgrade(running.host, running.port, f"/subscribe?channel={channel}")
        return Subscription(head, [b"ready?"], ready=b"ready!")

    def publish(self, running: Running, channel: int, payload: bytes) -> bytes:
        """Return a POST."""
        return post(running.host, running.port, f"/publish?channel={channel}", payload)

    def ping(self, message: bytes) -> bytes | None:
        """Return None: its pings are the WebSocket's."""
        return None


PEER = Nchan()

_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
"""What nginx makes a directory for, by default one of root's."""


def _root() -> Path:
    for root in (place("nchan"), SYSTEM):
        if _nginx(root).is_file() and _module(root).is_file():
            return root
    raise PeerMissingError("nginx with nchan is not installed: run `make bench-peers`.")


def _nginx(root: Path) -> Path:
    return root / "usr/sbin/nginx"


def _module(root: Path) -> Path:
    return root / "usr/lib/nginx/modules/ngx_nchan_module.so"


def _package_version(root: Path) -> str:
    """Return the version of the package that was unpacked, or that the system has installed."""
    unpacked = [package.name.split("_")[1] for package in root.glob("libnginx-mod-nchan_*.deb")]
    # Debian's version is EPOCH:VERSION+WHAT_DEBIAN_DID; a file's name has the colon escaped.
    return (unpacked or [_installed_version()])[0].replace("%3a", ":").split(":")[-1].split("+")[0]


def _installed_version() -> str:
    command = ["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout or "unknown"


def _settings(module: Path, directory: str, port: int, workers: int) -> str:
    # Started by root, the workers must still be able to write here.
    user = "user root root;" if os.geteuid() == 0 else ""
    temporary = "\n".join(f"    {what}_temp_path {directory}/{what};" for what in _TEMPORARY)
    return f"""\
load_module {module};
{user}
daemon off;
pid {directory}/nginx.pid;
worker_processes {workers};
worker_rlimit_nofile {getrlimit(RLIMIT_NOFILE)[1]};
events {{ worker_connections 65536; }}
http {{
{temporary}
    access_log off;
    gzip off;
    # By default nginx closes a connection after 1000 requests.
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    nchan_shared_memory_size 1G;
    server {{
        listen {HOST}:{port} backlog=4096;
        location = /subscribe {{
            # Not nchan_subscriber: only a connection that may publish has its heartbeat answered.
            nchan_pubsub websocket;
            nchan_channel_id $arg_channel;
            nchan_subscriber_first_message newest;
            nchan_websocket_client_heartbeat ready? ready!;
        }}
        location = /publish {{
            nchan_publisher http;
            nchan_channel_id $arg_channel;
            nchan_message_timeout 300s;
            nchan_message_buffer_length 100000;
        }}
    }}
}}
"""
