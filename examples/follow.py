"""Follow inboxes from Python, and miss nothing: come back by cursor, with a fresh token for each attempt.

    pip install websockets
    BROKER_KEY=dm_live_… python follow.py inbox_abc123

A token dies after a minute, so it is asked for each time. Here it is made of the key; an agent that must not have the
key asks your own backend for one.
"""

import asyncio
import json
import os
import random
import sys
import urllib.request
from urllib.parse import quote

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

URL = os.environ.get("BROKER_URL", "http://127.0.0.1:8765")
STAY_AWAY = {1002, 1007, 1008, 4401, 4409}
"""Close codes after which coming back is of no use (docs/protocol.md)."""
TRY_AGAIN = {429, 500, 502, 503, 504}
"""The same for refusals of HTTP: all others stay as they are."""


def token(inbox_ids: list[str]) -> str:
    """Ask for a token that reaches these inboxes, and may only subscribe."""
    asked = json.dumps({"inbox_ids": inbox_ids, "scopes": ["subscribe"]}).encode()
    headers = {"Authorization": f"Bearer {os.environ['BROKER_KEY']}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}/v1/websocket/token", asked, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        made: str = json.load(answer)["result"]["token"]
        return made


async def follow(inbox_ids: list[str]) -> None:
    """Print every event of the inboxes, for as long as the broker lets us."""
    cursor, failures = None, 0
    while True:
        pause = min(5.0, 0.25 * 2**failures) * random.uniform(0.5, 1)
        failures += 1
        try:
            headers = {"Authorization": f"Bearer {await asyncio.to_thread(token, inbox_ids)}"}
            query = "inbox_ids=" + quote(",".join(inbox_ids)) + (f"&since={cursor}" if cursor else "")
            stream = f"ws{URL.removeprefix('http')}/v1/stream?{query}"
            async with connect(stream, additional_headers=headers, max_size=2**24) as websocket:
                async for message in websocket:
                    frame = json.loads(message)
                    failures = 0
                    if "event_id" in frame:
                        print(frame["type"], frame.get("inbox_id"), json.dumps(frame["payload"]), flush=True)
                    elif frame["type"] == "replay.gap":
                        print(f"missed for good: {frame['count']}", flush=True)
                    elif frame["type"] == "server.draining":
                        pause = frame["reconnect_after_ms"] / 1000
                    # Only what was dealt with counts as seen: so the cursor moves last.
                    cursor = frame.get("to") or frame.get("cursor") or cursor
        except ConnectionClosed as closed:
            if closed.rcvd and closed.rcvd.code in STAY_AWAY:
                sys.exit(f"closed for good: {closed}")
        except InvalidStatus as refused:
            if refused.response.status_code not in TRY_AGAIN:
                sys.exit(f"refused: {refused.response.status_code} {refused.response.body.decode()}")
        except urllib.error.HTTPError as refused:
            if refused.code not in TRY_AGAIN:
                sys.exit(f"no token: {refused.code} {refused.read().decode()}")
        except (OSError, InvalidHandshake) as error:
            print(f"no connection: {error}", file=sys.stderr)
        await asyncio.sleep(pause)


if __name__ == "__main__":
    asyncio.run(follow(sys.argv[1:] or ["*"]))
