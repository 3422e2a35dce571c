"""`python -m clients.conformance [--scene NAME] -- DRIVER COMMAND…`: 1 if a scene fails."""

import argparse
import sys
from functools import partial

import trio

from .playing import AT_ONCE, Outcome, play_all
from .scenes import SCENES


def main() -> int:
    """Play the scenes and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m clients.conformance", description="Hold a client to its scenes.")
    parser.add_argument("--scene", action="append", choices=SCENES, metavar="NAME", help="only this one (repeatable)")
    parser.add_argument("--list", action="store_true", help="print the scenes and what they show")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="how many are played at the same time")
    parser.add_argument("command", nargs="*", help="what starts the driver, behind --")
    options = parser.parse_args()
    if options.list:
        for scene in SCENES.values():
            print(f"{scene.name:24} {scene.shows}")
        return 0
    if not options.command:
        parser.error("say what starts the driver: … -- node driver.mjs")
    failed = []

    def tell(outcome: Outcome) -> None:
        print(f"{'FAILED' if outcome.mismatch else 'ok':8}{outcome.scene.name:24}{outcome.seconds:5.1f} s  ", end="")
        print(outcome.mismatch or outcome.scene.shows, flush=True)
        if outcome.mismatch:
            failed.append(outcome.scene.name)

    scenes = [(SCENES[name], options.command) for name in options.scene or SCENES]
    trio.run(partial(play_all, scenes, tell, options.at_once))
    print(f"{len(scenes) - len(failed)} of {len(scenes)} scenes: the client did what it must")
    return 1 if failed else 0


sys.exit(main())
