"""A webhook receiver: verifies what the broker posts, and does each event once, whatever brings it.

    pip install standardwebhooks
    WEBHOOK_SECRET=whsec_… STORE=./seen python receiver.py 9001

`STORE` is where the ids of events stand that were dealt with: a folder here, a table of your database elsewhere. Who
else gets the same events, a WebSocket client or `receiver.mjs`, asks the same store first: so none is done twice.
"""

import json
import os
import sys
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

WEBHOOK = Webhook(os.environ["WEBHOOK_SECRET"])
STORE = Path(os.environ.get("STORE", "seen"))


def first_time(event: dict[str, Any]) -> bool:
    """Whether nobody has dealt with this event yet; from here on somebody has. An id is unique in its inbox."""
    name = sha256(f"{event.get('inbox_id', '')}\n{event['event_id']}".encode()).hexdigest()
    try:
        (STORE / name).open("x").close()
    except FileExistsError:
        return False
    return True


class Receiver(BaseHTTPRequestHandler):
    """Takes posts that the broker has signed."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Verify the signature over the body as it came; answer soon, or the broker posts it again."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            WEBHOOK.verify(body, dict(self.headers.items()), json_parse=False)
        except WebhookVerificationError as error:
            return self._answer(403, str(error))
        event = json.loads(body)
        if event["type"] != "webhook.test" and first_time(event):
            # Your work, or a queue for it. One write: requests are taken in threads, whose lines would mix.
            print(f"done {event['event_id']} {event['type']}\n", end="", flush=True)
        return self._answer(200, "taken")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing of each request."""


if __name__ == "__main__":
    STORE.mkdir(exist_ok=True)
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 9001), Receiver)
    print(f"listening {server.server_address[1]}", flush=True)
    server.serve_forever()
