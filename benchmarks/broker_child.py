"""The broker as a child process: the whole product in the path, spoken to in lines as the floor is.

It says ``port P`` and then obeys: ``go NAME`` publishes one event to the account of that name, ``when NAME`` says
the CLOCK_MONOTONIC nanoseconds taken immediately before the last publish call. The start is not said
unasked, because writing it would wake the parent, and take from both cores, in the middle of the fan-out.
``flood NAME`` publishes without any pause until ``calm``, which says how many were published.
"""

import argparse
import functools
import hashlib
import os
import resource
import time
from collections.abc import AsyncIterator
from typing import Any

import trio

from broker import Config, open_broker, serve
from broker.config import AccountConfig, KeyConfig

from .accounts import NAMES, event_for, key_of
from .children import answer, end_in_time


def configuration() -> Config:
    """Return the accounts of the benchmark, all else as the broker has it by default."""
    return Config(
        accounts=tuple(
            AccountConfig(
                id=f"acct_{name}",
                tier="enterprise",
                keys=(KeyConfig(id=f"key_{name}", sha256=hashlib.sha256(key_of(name).encode()).hexdigest()),),
            )
            for name in NAMES
        )
    )


class Publisher:
    """Does what the lines say."""

    def __init__(self, broker: Any, payload_bytes: int) -> None:
        self._broker = broker
        self._events = {name: event_for(name, payload_bytes) for name in NAMES}
        self._started = dict.fromkeys(NAMES, 0)
        self._flood = trio.CancelScope()
        self._flooded = 0

    async def obey(self, lines: AsyncIterator[str], nursery: trio.Nursery) -> None:
        """Obey until the lines end."""
        async for line in lines:
            verb, _, name = line.partition(" ")
            if verb == "go":
                self._started[name] = time.monotonic_ns()
                await self._broker.publish(f"acct_{name}", self._events[name])
            elif verb == "when":
                answer(f"when {self._started[name]}")
            elif verb == "flood":
                self._flood = trio.CancelScope()
                nursery.start_soon(self._publish_without_pause, name, self._flood)
            elif verb == "calm":
                self._flood.cancel()
                answer(f"calm {self._flooded}")

    async def _publish_without_pause(self, name: str, scope: trio.CancelScope) -> None:
        self._flooded = 0
        with scope:
            while True:
                await self._broker.publish(f"acct_{name}", self._events[name])
                self._flooded += 1


async def lines_of_input() -> AsyncIterator[str]:
    """Yield the lines of standard input."""
    pending = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        async for data in stream:
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                yield line.decode()


async def run(payload_bytes: int) -> None:
    """Serve, and obey, until standard input ends."""
    async with open_broker(configuration()) as broker, trio.open_nursery() as nursery:
        addresses = await nursery.start(functools.partial(serve, broker, host="127.0.0.1", port=0))
        answer(f"port {addresses[0][1]}")
        await Publisher(broker, payload_bytes).obey(lines_of_input(), nursery)
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broker_child", description=__doc__)
    parser.add_argument("--payload-bytes", type=int, default=200)
    options = parser.parse_args()
    end_in_time()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    trio.run(run, options.payload_bytes)


if __name__ == "__main__":
    main()
