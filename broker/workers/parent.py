"""The parent of the workers of one broker: it starts them, keeps what they listen at, and stands for them outside.

It serves nobody by itself: it waits for signals and for what its children say, and does each thing at once. To whoever
started it, and to its clients, it is one broker: one line when all take clients, one drain, one exit code.
"""

import logging
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from ..config import Config
from ..errors import ConfigError
from ..transport.listeners import Address, take_handed_over, text_of
from ..transport.supervisor import (
    AGAIN_SECONDS,
    ALIVE,
    SAY_SECONDS,
    STOP_GRACE_SECONDS,
    Asked,
    ready_with,
    reloading_now,
    stopping_within,
    take_asked,
)
from ..transport.tls import certificate_of
from .child import LAST_AGAIN_SECONDS, Child, Worker, how_it_ended
from .place import Place, told_to
from .private import answers, find_server, server_command, socket_path
from .sockets import WorkerSockets, open_sockets
from .tether import tethered

logger = logging.getLogger(__name__)

SERVER_START_SECONDS: Final = 10.0
"""How long the private server may take until it answers."""
SERVER_END_SECONDS: Final = 5.0
SERVER_BYTES_PER_WINDOW_BYTE: Final = 2
"""What the private server may take, for each byte of `replay.max_bytes_total`: its lists and indexes, too."""
_LOOK_AGAIN_SECONDS: Final = 0.01
_ENDS: Final = (signal.SIGTERM, signal.SIGINT)


class Plan(Struct, frozen=True):
    """What the parent keeps running."""

    workers: int
    command: Sequence[str]
    """What runs a worker."""
    environment: Mapping[str, str]
    """What the workers are told beside their places."""
    drain_seconds: float
    directory: str
    """Nobody else may enter it."""
    server: Sequence[str] | None
    """What runs the private server; None: there is none."""


def run_workers(
    config: Config,
    hosts: Sequence[str] | None,
    port: int | None,
    arguments: Sequence[str],
    say_listening: Callable[[list[Address]], None],
) -> int:
    """Run the workers of a broker until SIGTERM or SIGINT, and return its exit code.

    ``arguments`` are of `broker serve` for each worker. Raises `ConfigError` and `OSError` if it cannot begin.
    """
    certificate_of(config.server)
    asked, handed = take_asked(os.environ), take_handed_over(os.environ)
    with ExitStack() as stack:
        directory = tempfile.mkdtemp(prefix="broker-")
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        server, environment = None, dict[str, str]()
        if config.engine.url is None:
            max_bytes = SERVER_BYTES_PER_WINDOW_BYTE * config.replay.max_bytes_total
            server = server_command(find_server(), directory, max_bytes)
            environment["BROKER_ENGINE__URL"] = f"unix://{socket_path(directory)}"
        if config.tokens.secret is None:
            environment["BROKER_TOKENS__SECRET"] = secrets.token_urlsafe(32)
        hosts = config.server.hosts if hosts is None else hosts
        port = config.server.port if port is None else port
        sockets = stack.enter_context(open_sockets(hosts, port, config.server.unix, config.server.workers, handed))
        plan = Plan(
            config.server.workers,
            _worker_command(arguments),
            environment,
            config.server.drain_seconds,
            directory,
            server,
        )

        def begun() -> None:
            say_listening(sockets.addresses)
            if config.tokens.secret is None:
                logger.warning("[tokens] has no `secret`: connection tokens are of no use after a restart")

        return Parent(plan, sockets, asked, begun).run()


def _worker_command(arguments: Sequence[str]) -> list[str]:
    """Return what runs `broker serve` as this process is run: the same interpreter, the same package."""
    here = Path(__file__).parents[2] == Path.cwd()
    return tethered([sys.executable, *([] if here else ["-P"]), "-m", "broker", "serve", *arguments])


class Parent:
    """Keeps the processes of a plan. ``begun`` is called once, when all workers take clients."""

    def __init__(self, plan: Plan, sockets: WorkerSockets, asked: Asked, begun: Callable[[], None]) -> None:
        self._plan = plan
        self._sockets = sockets
        self._asked = asked
        self._begun = begun
        self._state: Literal["starting", "serving", "reloading", "draining"] = "starting"
        self._code = 0
        self._drained_by = 0.0
        """When who still drains is killed."""
        self._reload_asked = 0.0
        self._fed = 0.0
        self._unheard = False
        """Whether the supervisor could not be told last."""
        self._how_it_is: tuple[str, ...] = ()
        """What the supervisor was told last, or could not be, beside that this lives."""
        self._tell_again = inf
        """When it is told that again, because it could not be."""
        self._workers = [Worker(number, plan.directory, self._launch) for number in range(plan.workers)]
        self._server = None if plan.server is None else Child("the private server", self._launch_server)

    def run(self) -> int:
        """Keep them until the end; return the exit code."""
        with selectors.DefaultSelector() as selector, _signals() as signals:
            selector.register(signals, selectors.EVENT_READ, partial(self._hear_signals, signals))
            for worker in self._workers:
                selector.register(worker.notices, selectors.EVENT_READ, partial(self._hear, worker))
            try:
                self._start()
                while any(worker.state != "over" for worker in self._workers):
                    for key, _ in selector.select(self._seconds_to_wait()):
                        key.data()
                    self._tend(time.monotonic())
            finally:
                for worker in self._workers:
                    worker.end(0)
                    worker.notices.close()
                if self._server is not None:
                    self._server.end(SERVER_END_SECONDS)
        return self._code

    # --- starting

    def _start(self) -> None:
        """Start what the workers need, and the first of them: what is wrong with the settings, one alone says."""
        now = time.monotonic()
        if self._server is not None:
            self._start_server(self._server, now)
        self._workers[0].start(now)

    def _start_server(self, server: Child, now: float) -> None:
        """Start the private server, and wait until it answers. Raises `ConfigError` if it does not."""
        server.start(now)
        until = now + SERVER_START_SECONDS
        while not answers(socket_path(self._plan.directory)):
            code = server.reap(time.monotonic())
            if code is not None or time.monotonic() > until:
                why = "does not answer" if code is None else f"ended {how_it_ended(code)}"
                raise ConfigError(f"the workers' private server {why}: name another one by `engine.url`")
            time.sleep(_LOOK_AGAIN_SECONDS)
        server.is_ready(time.monotonic())

    def _launch(self, worker: Worker) -> subprocess.Popen[bytes]:
        descriptors = [each.fileno() for each in self._sockets.of(worker.number)]
        place = Place(worker.number, self._plan.workers, self._plan.directory, descriptors, os.getpid())
        environment = {**os.environ, **self._plan.environment, **told_to(place), "NOTIFY_SOCKET": worker.address}
        if self._asked.watchdog_seconds is not None:
            environment["WATCHDOG_USEC"] = str(int(self._asked.watchdog_seconds * 1_000_000))
        # In a group of its own: what a terminal's Ctrl-C means to the workers, their parent says.
        return subprocess.Popen(
            self._plan.command, env=environment, stdin=subprocess.DEVNULL, pass_fds=descriptors, process_group=0
        )

    def _launch_server(self) -> subprocess.Popen[bytes]:
        assert self._plan.server is not None
        quiet = subprocess.DEVNULL
        return subprocess.Popen(self._plan.server, stdin=quiet, stdout=quiet, process_group=0)

    # --- what it hears

    def _hear(self, worker: Worker) -> None:
        while (notice := worker.next_notice()) is not None:
            now = time.monotonic()
            worker.heard = now
            if notice.get("READY") != "1":
                continue
            worker.status = notice.get("STATUS", "")
            if worker.configured < self._reload_asked:  # it had read the settings before
                self._reload(worker)
                continue
            worker.is_ready(now)
            worker.answered = now

    def _hear_signals(self, signals: socket.socket) -> None:
        for number in signals.recv(4_096):
            if number in _ENDS:
                self._drain(0)
            elif number == signal.SIGHUP and self._state != "draining":
                self._reload_all()

    def _reload_all(self) -> None:
        self._reload_asked = time.monotonic()
        if self._state == "serving":
            self._state = "reloading"
            self._say(reloading_now())
        for worker in self._workers:
            if worker.state == "ready":
                self._reload(worker)

    def _reload(self, worker: Worker) -> None:
        worker.configured = time.monotonic()
        worker.signal(signal.SIGHUP)

    def _drain(self, code: int) -> None:
        """Have all workers drain, once."""
        if self._state == "draining":
            return
        seconds = self._plan.drain_seconds
        self._state, self._code = "draining", code
        self._drained_by = time.monotonic() + seconds + STOP_GRACE_SECONDS
        self._say(stopping_within(f"draining for at most {seconds:g} s", seconds))
        for worker in self._workers:
            worker.signal(signal.SIGTERM)
            worker.leave()

    # --- what is to be done

    def _tend(self, now: float) -> None:
        """Look after everybody, at this moment."""
        if self._tell_again <= now:
            self._say(self._how_it_is, 0)
        for worker in self._workers:
            code = worker.reap(now)
            if code is not None:
                self._worker_ended(worker, code)
        if self._server is not None:
            self._tend_server(self._server, now)
        if self._state == "draining":
            if now >= self._drained_by:
                self._kill_late()
            return
        for worker in self._workers:
            if worker.due <= now:
                self._start_again(worker, now)
        if self._state != "serving":
            self._look_whether_all_are_ready(now)
        self._watch(now)

    def _worker_ended(self, worker: Worker, code: int) -> None:
        how = how_it_ended(code)
        if self._state == "draining":
            worker.leave()
            self._sockets.close_of(worker.number)
            if code not in (0, -signal.SIGTERM):  # by the signal: it had not begun yet
                logger.error("%s ended %s while it drained", worker.name, how)
                self._code = 1
        elif self._state == "starting":
            worker.leave()
            self._drain(1 if code <= 0 else code)
        else:
            logger.error("%s ended %s: it is started again", worker.name, how)

    def _tend_server(self, server: Child, now: float) -> None:
        code = server.reap(now)
        if code is not None:
            what = "what it held is lost" if self._state != "draining" else "while the workers drained"
            logger.error("%s ended %s: %s", server.name, how_it_ended(code), what)
        if server.due <= now:
            self._start_again(server, now)
            server.is_ready(now)

    def _start_again(self, child: Child, now: float) -> None:
        try:
            child.start(now)
        except OSError as error:
            logger.error("%s cannot be started: %s", child.name, error.strerror)
            child.due = now + LAST_AGAIN_SECONDS

    def _look_whether_all_are_ready(self, now: float) -> None:
        """Go on from a start or a reload when all workers are through it."""
        if self._state == "starting" and self._workers[0].state == "ready":
            for worker in self._workers:
                if worker.state == "waiting" and worker.configured == 0:
                    worker.due = now
        if not all(worker.state == "ready" and worker.answered > worker.configured for worker in self._workers):
            return
        starting, self._state = self._state == "starting", "serving"
        if starting:
            self._begun()
            where = " and ".join(map(text_of, self._sockets.addresses))
            self._say(ready_with(f"listening on {where}, {len(self._workers)} workers"))
        else:
            statuses = {worker.status: None for worker in self._workers}
            self._say(ready_with("; ".join(statuses)))

    def _kill_late(self) -> None:
        for worker in self._workers:
            if worker.pid is not None:
                logger.error("%s has not ended in time: it is killed", worker.name)
                worker.signal(signal.SIGKILL)
        self._drained_by = inf

    def _watch(self, now: float) -> None:
        """Feed the supervisor's watchdog, and be the workers'."""
        seconds = self._asked.watchdog_seconds
        if seconds is None:
            return
        if self._state != "starting" and now >= self._fed + seconds / 2:
            self._fed = now
            self._say(ALIVE)
        for worker in self._workers:
            if worker.state == "ready" and now > worker.heard + seconds:
                logger.error("%s hangs: it is killed", worker.name)
                worker.signal(signal.SIGKILL)

    def _seconds_to_wait(self) -> float | None:
        """Return after how long something is to be done though nothing was heard; None: there is nothing."""
        moments = [child.due for child in (*self._workers, self._server) if child is not None]
        moments.append(self._tell_again)
        if self._state == "draining":
            moments.append(self._drained_by)
        elif self._asked.watchdog_seconds is not None:
            moments.append(self._fed + self._asked.watchdog_seconds / 2)
        first = min(moments)
        return None if first == inf else max(first - time.monotonic(), 0)

    def _say(self, assignments: tuple[str, ...], patience: float = SAY_SECONDS) -> None:
        """Tell the supervisor, if there is one. What cannot be sent is logged once; how this is, is told again."""
        if not self._asked.address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
                sending.settimeout(patience)
                sending.connect(self._asked.address)
                sending.send("\n".join(assignments).encode())
        except OSError as error:
            if not self._unheard:
                logger.warning("the supervisor was not told %s: %s", assignments[0], error)
            self._unheard = True
        else:
            self._unheard = False
        if assignments != ALIVE:
            self._how_it_is = assignments
            self._tell_again = time.monotonic() + AGAIN_SECONDS if self._unheard else inf


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Yield a socket at which the number of each signal comes, a byte each. Afterwards those that end are ignored."""
    heard, waking = socket.socketpair()
    with heard, waking:
        heard.setblocking(False)
        waking.setblocking(False)
        for number in (*_ENDS, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        before = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
        try:
            yield heard
        finally:
            signal.set_wakeup_fd(before)
            for number in (*_ENDS, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # a late one must not end who has drained
