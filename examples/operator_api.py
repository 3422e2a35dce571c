"""An operator's API behind both callouts: it knows the keys ([access]), and does the commands ([commands]).

    pip install standardwebhooks
    CALLOUT_SECRET=whsec_… python operator_api.py

with, in broker.toml, the same secret for both (`broker secrets new` makes one):

    [access]
    url = "http://127.0.0.1:9000/access"
    secret = "whsec_…"
    [commands]
    url = "http://127.0.0.1:9000/commands"
    secret = "whsec_…"
"""

import json
import os
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

WEBHOOK = Webhook(os.environ["CALLOUT_SECRET"])
KEYS = {
    # Known by their SHA-256 alone, as your database should; the broker never sends a key.
    sha256(os.environ.get("AGENT_KEY", "dm_live_example").encode()).hexdigest(): {
        "account_id": "acct_demo",
        "tier": "growth",
        "key_id": "key_7",
        "scopes": ["subscribe", "command", "publish"],
        "inbox_ids": ["inbox_abc123"],
        "ttl_seconds": 300,
    },
}
DONE: dict[str, Any] = {}
"""What became of commands, by `webhook-id`: what is asked again after a timeout is not done again."""
ONE_AT_A_TIME = Lock()


class Api(BaseHTTPRequestHandler):
    """Answers `POST /access` and `POST /commands`, if the broker has signed them."""

    def do_POST(self) -> None:
        """Verify the signature over the body as it came, then answer."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            question = WEBHOOK.verify(body, dict(self.headers.items()))
        except WebhookVerificationError:
            return self._answer(403, {"error": {"code": "forbidden", "message": "This was not signed by our broker"}})
        if self.path == "/access":
            return self._answer(*who_is(question))
        return self._answer(*do(question, self.headers["webhook-id"]))

    def _answer(self, status: int, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def who_is(question: dict[str, Any]) -> tuple[int, Any]:
    """Say whose key it is: 200 and what it may, or 401."""
    known = KEYS.get(question["key_sha256"])
    return (200, known) if known else (401, {"error": {"code": "unauthorized", "message": "No such key"}})


def do(command: dict[str, Any], message_id: str) -> tuple[int, Any]:
    """Do a command, once: the answer is kept under the id that the broker gave it."""
    if command["action"] != "send_email":
        return 404, {"error": {"code": "unknown_action", "message": f"No action {command['action']!r}"}}
    if command["inbox_id"] is None or "to" not in command["params"]:
        return 400, {"error": {"code": "invalid_params", "message": "`inbox_id` and `to` are needed"}}
    with ONE_AT_A_TIME:
        if message_id not in DONE:
            print(f"mail from {command['inbox_id']} to {command['params']['to']}", flush=True)
            DONE[message_id] = {"result": {"message_id": f"sent_{len(DONE)}"}}
        return 200, DONE[message_id]


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Api)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
