"""A broker as a process with a log on disk, as plain clients meet it that we did not write."""

import json
import urllib.request

from processes import GUARD_SECONDS, KEY
from websockets.sync.client import connect


def publish(url, names, size=200):
    """Publish events, and return what became of each."""
    events = [{"type": "x.y", "inbox_id": "i1", "event_id": name, "payload": {"x": "y" * size}} for name in names]
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/events", json.dumps(events).encode(), headers)
    with urllib.request.urlopen(request, timeout=GUARD_SECONDS) as response:
        return json.load(response)["result"]["events"]


def stream(url, since):
    query = f"inbox_ids=*&since={since}" if since else "inbox_ids=*"
    headers = {"Authorization": f"Bearer {KEY}"}
    return connect(
        f"ws{url.removeprefix('http')}/v1/stream?{query}",
        additional_headers=headers,
        max_size=None,
        open_timeout=GUARD_SECONDS,
    )
