"""Try each peer that is installed: ``python -m benchmarks.peers [NAME ...] [--cores 0,1]``.

Each is started, gets 10 subscribers on one channel and one on another, and 5 events on the first: all must come to
the 10, in order and once, and none to the other. Prints ``ok``, ``failed`` or ``skipped`` for each, with its version;
exits 1 if one failed. It measures nothing.
"""

import argparse
import sys
import time
from contextlib import ExitStack

from . import NAMES, PEERS
from .adapter import Peer, PeerMissingError
from .probe import Publisher, Subscriber

SUBSCRIBERS = 10
EVENTS = 5


def try_peer(peer: Peer, cores: set[int] | None) -> None:
    """Start a peer and see its events arrive. Raises what went wrong."""
    with ExitStack() as stack:
        running = stack.enter_context(peer.open(cores, channels=2))
        subscribers = [stack.enter_context(Subscriber(peer, running, 0)) for _ in range(SUBSCRIBERS)]
        other = stack.enter_context(Subscriber(peer, running, 1))
        publisher = stack.enter_context(Publisher(peer, running))
        markers = [time.monotonic_ns() + number for number in range(EVENTS)]
        for marker in markers:
            publisher.publish(0, marker)
        for subscriber in subscribers:
            _expect(subscriber.events(EVENTS), markers)
        # What comes first to the other is what was published to it.
        publisher.publish(1, markers[0] + EVENTS)
        _expect(other.events(1), [markers[0] + EVENTS])


def _expect(got: list[int], due: list[int]) -> None:
    if got != due:
        raise ValueError(f"{got} came where {due} was due")


def outcome(name: str, cores: set[int] | None) -> tuple[str, str]:
    """Try a peer by its name; return the word for it, and what there is to say."""
    try:
        peer = PEERS[name]
        version = peer.version()
        try_peer(peer, cores)
    except PeerMissingError as error:
        return "skipped", str(error)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    return "ok", f"{version}: {peer.does}"


def main() -> int:
    """Try the peers that were named, or all; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Try each peer that is installed.")
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--cores", help="the cores that servers run on, such as 0,1")
    arguments = parser.parse_args()
    cores = {int(core) for core in arguments.cores.split(",")} if arguments.cores else None
    words = []
    for name in arguments.names or NAMES:
        word, said = outcome(name, cores)
        words.append(word)
        print(f"{name:<12}{word:<9}{said}", flush=True)
    return int("failed" in words)


if __name__ == "__main__":
    sys.exit(main())
