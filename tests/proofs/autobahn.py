"""Runs cases of Autobahn against a WebSocket server: `python autobahn.py URL PARALLEL CASE…`; prints JSON.

A process of its own: the cases' runner lives on asyncio, and works as hard as the broker does.
"""

import asyncio
import json
import os
import sys

from kosoku import FailureError, run_fuzzingclient


async def run(url: str, parallel: int, cases: list[str]) -> dict[str, tuple[str, str, bool]]:
    """Return for each case its verdict, that on its closing, and whether that was clean."""
    try:
        results = await run_fuzzingclient(url, cases, concurrency=parallel)
    except FailureError as failure:
        results = failure.results
    return {each.case_id: (each.behavior.value, each.behavior_close.value, each.was_clean) for each in results}


if __name__ == "__main__":
    json.dump(asyncio.run(run(sys.argv[1], int(sys.argv[2]), sys.argv[3:])), sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # the runner's own threads abort a process that is finalised under them
