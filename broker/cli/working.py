"""`broker work`: take events from a queue, and run a command for each (PROTOCOL section 11).

Its exit code says what becomes of the event. While it runs its lease is held; where that is lost, another worker has
the event, and all that the command started is ended.
"""

import os
import random
import shutil
import signal
import ssl
import subprocess
from contextlib import suppress
from typing import Any, Final

import click
import httpx
import trio
from msgspec import Struct

from ..errors import BrokerError
from .exact import json_of, read_json
from .options import BrokerUrl, Seconds, UsageError, ca_file_option, key_option, say, url_option

WAIT_SECONDS: Final = 20
"""How long one request waits for an event."""
ANSWER_SECONDS: Final = 10.0
FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 5.0
END_SECONDS: Final = 5.0
"""Between SIGTERM and SIGKILL to a command whose lease is lost."""
LATER, DEAD = os.EX_TEMPFAIL, os.EX_DATAERR
"""Exit codes of a command: 75, not now; 65, nobody is to try again."""
NOT_STARTED: Final = 126
"""The exit code of a command that could not be started, as shells have it."""
_FOR_A_WHILE: Final = frozenset({408, 429, 500, 502, 503, 504})
"""After these the same may be asked again."""


class WorkRefusedError(BrokerError):
    """The broker will not have this worker."""


class _AwayError(Exception):
    """The broker gives no answer now, or none that helps."""


class Job(Struct, frozen=True):
    """What is to be done: the queue, the command, how many at once, how many in all (None: without end)."""

    queue_id: str
    command: tuple[str, ...]
    concurrency: int
    lease_seconds: float
    count: int | None


class Worker:
    """Takes events and runs the command, until it is told to stop. ``client`` speaks to the broker."""

    def __init__(self, job: Job, client: httpx.AsyncClient) -> None:
        self._job = job
        self._client = client
        self._left = job.count
        """Events that are still to be taken; None: without end."""
        self._waiting: set[trio.CancelScope] = set()
        """Around all who wait for an event."""
        self._running = trio.CancelScope()

    async def run(self) -> None:
        """Work until the count is reached, or somebody ends it. Raises, in a group, `WorkRefusedError`."""
        async with trio.open_nursery() as watching:
            await watching.start(self._heed_signals)
            with self._running:
                async with trio.open_nursery() as nursery:
                    for _ in range(self._job.concurrency):
                        nursery.start_soon(self._work)
            watching.cancel_scope.cancel()

    async def _heed_signals(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """At the first signal take no more, at the second end what runs, too."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            was_told = False
            async for _ in signals:
                if was_told:
                    self._running.cancel()
                else:
                    say("taking no more events; once more ends what runs, too")
                was_told, self._left = True, 0
                for scope in self._waiting:
                    scope.cancel()

    async def _work(self) -> None:
        """Take one event after the other."""
        while self._left != 0:
            if self._left is not None:
                self._left -= 1
            leased = None
            with trio.CancelScope() as scope:
                self._waiting.add(scope)
                try:
                    leased = await self._lease()
                finally:
                    self._waiting.discard(scope)
            if leased is not None:
                await self._do(leased)

    # --- what is asked of the broker

    async def _ask(self, action: str, *, lasts_seconds: float = 0.0, **params: Any) -> dict[str, Any]:
        """Return the result of a command. Raises `_AwayError`; `WorkRefusedError` where to ask again is of no use."""
        try:
            answer = await self._client.post(
                "/v1/commands", json={"action": action, **params}, timeout=lasts_seconds + ANSWER_SECONDS
            )
            said: dict[str, Any] = read_json(answer.content)
            if "result" in said:
                result: dict[str, Any] = said["result"]
                return result
            words = f"{answer.status_code} {said['error']['code']}: {said['error']['message']}"
        except (httpx.HTTPError, OSError) as error:
            raise _AwayError(str(error) or type(error).__name__) from None
        except (ValueError, KeyError, TypeError):
            raise _AwayError("what answers there is no broker") from None
        raise _AwayError(words) if answer.status_code in _FOR_A_WHILE else WorkRefusedError(words)

    async def _lease(self) -> dict[str, Any]:
        """Return an event with its lease, however long that takes."""
        failures = 0
        params: dict[str, Any] = {"queue_id": self._job.queue_id, "seconds": self._job.lease_seconds}
        while True:
            try:
                found = await self._ask("lease", lasts_seconds=WAIT_SECONDS, wait_seconds=WAIT_SECONDS, **params)
            except _AwayError as away:
                failures += 1
                longest = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures, 30))
                seconds = random.uniform(FIRST_PAUSE_SECONDS, longest)
                say(f"{away}; the next try is in {seconds:.1f} s")
                await trio.sleep(seconds)
                continue
            failures = 0
            if found["leases"]:
                lease: dict[str, Any] = found["leases"][0]
                return lease

    async def _settle(self, action: str, lease_id: str, until: float, **params: Any) -> None:
        """Say what became of an event, again and again until its lease is over."""
        with trio.move_on_at(until):
            while True:
                try:
                    settled = await self._ask(action, lease_ids=[lease_id], **params)
                except _AwayError as away:
                    say(f"{away}; again in {FIRST_PAUSE_SECONDS} s")
                    await trio.sleep(FIRST_PAUSE_SECONDS)
                else:
                    if settled["lost"]:
                        say(f"{lease_id} was over before it was done: the event comes again")
                    return

    # --- one event

    async def _do(self, lease: dict[str, Any]) -> None:
        """Run the command for an event, and say what became of that."""
        held = _Held(lease["lease_id"], trio.current_time() + self._job.lease_seconds)
        event_id = lease["event"]["event_id"]
        code = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hold, held, nursery.cancel_scope)
                code = await self._run(lease)
                nursery.cancel_scope.cancel()
        finally:
            if code is None and not held.is_lost:  # it was ended by people: somebody else may have the event at once
                with trio.move_on_after(END_SECONDS, shield=True):
                    await self._settle("nack", held.lease_id, held.until, retry_after_ms=0, reason="ended")
        if held.is_lost:
            say(f"{event_id}: its lease is lost, and the command was ended")
        elif code == 0:
            await self._settle("ack", held.lease_id, held.until)
        elif code is not None:
            say(f"{event_id}: exit code {code}")
            dead = {"dead": True} if code == DEAD else {}
            await self._settle("nack", held.lease_id, held.until, reason=f"exit code {code}", **dead)

    async def _hold(self, held: "_Held", running: trio.CancelScope) -> None:
        """Let a lease last for as long as the command runs; cancel that where the lease is over."""
        while not held.is_lost:
            await trio.sleep(self._job.lease_seconds / 3)
            with trio.move_on_at(held.until):
                await self._hold_once(held)
            held.is_lost = held.is_lost or trio.current_time() >= held.until
        running.cancel()

    async def _hold_once(self, held: "_Held") -> None:
        asked_at = trio.current_time()
        try:
            answer = await self._ask("hold", lease_ids=[held.lease_id], seconds=self._job.lease_seconds)
        except _AwayError as away:
            say(f"{away}; the lease is not held")
            return
        held.is_lost = bool(answer["lost"])
        held.until = asked_at + self._job.lease_seconds

    async def _run(self, lease: dict[str, Any]) -> int:
        """Run the command with the event on its standard input; return its exit code. Cancelled, it ends all of it."""
        event = lease["event"]
        variables = {
            "BROKER_LEASE_ID": lease["lease_id"],
            "BROKER_ONCE": event["event_id"],
            "BROKER_INBOX_ID": event.get("inbox_id", ""),
            "BROKER_ATTEMPT": str(lease["attempt"]),
        }
        try:
            process = await trio.lowlevel.open_process(
                self._job.command, stdin=subprocess.PIPE, start_new_session=True, env={**os.environ, **variables}
            )
        except OSError as error:  # for this event alone: what was moved away may be there for the next
            say(f"{event['event_id']}: {self._job.command[0]} cannot be started: {error.strerror or error}")
            return NOT_STARTED
        try:
            assert process.stdin is not None
            with suppress(trio.BrokenResourceError):  # it does not read it
                await process.stdin.send_all(json_of(event) + b"\n")
            await process.stdin.aclose()
            return await process.wait()
        finally:
            if process.returncode is None:
                with trio.CancelScope(shield=True):
                    await _end(process)


class _Held:
    """A lease, and until when it lasts at least (trio's clock)."""

    def __init__(self, lease_id: str, until: float) -> None:
        self.lease_id = lease_id
        self.until = until
        self.is_lost = False


async def _end(process: trio.Process) -> None:
    """End a command with all that it started: with SIGTERM, and what is left of it with SIGKILL."""
    _signal(process, signal.SIGTERM)
    with trio.move_on_after(END_SECONDS):
        await process.wait()
    _signal(process, signal.SIGKILL)
    await process.wait()


def _signal(process: trio.Process, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@click.command(context_settings={"ignore_unknown_options": True})
@url_option
@ca_file_option
@key_option
@click.option("--queue", "queue_id", required=True, metavar="ID", help="The queue.")
@click.option("--concurrency", type=click.IntRange(1, 1_000), default=1, show_default=True, help="So many at once.")
@click.option(
    "--lease-seconds",
    type=Seconds(1, 3_600),
    default=60.0,
    show_default=True,
    help="How long an event is kept from others when this worker is gone without a word.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
def work(
    url: BrokerUrl,
    trust: ssl.SSLContext | None,
    key: str,
    queue_id: str,
    concurrency: int,
    lease_seconds: float,
    count: int | None,
    command: tuple[str, ...],
) -> None:
    """Take events from a queue, and run a command for each.

    The command gets the event as JSON on its standard input. Exit code 0: done; 75: again later; 65: never again; any
    other: again later. While it runs the lease is held; where that is lost, the command and all that it started ends.
    """
    if shutil.which(command[0]) is None:
        raise UsageError(f"there is no program {command[0]!r} that can be run")
    trio.run(_work, url, trust, key, Job(queue_id, command, concurrency, lease_seconds, count))


async def _work(url: BrokerUrl, trust: ssl.SSLContext | None, key: str, job: Job) -> None:
    say(f"working at {job.queue_id} of {url.http}")
    client = httpx.AsyncClient(
        base_url=url.http,
        headers={"Authorization": f"Bearer {key}"},
        verify=True if trust is None else trust,
        trust_env=False,
        limits=httpx.Limits(max_connections=None),
    )
    async with client:
        await Worker(job, client).run()
