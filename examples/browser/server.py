"""The page's own server: it has the key, and gives the page short-lived tokens that may only subscribe.

    BROKER_KEY=dm_live_… python examples/browser/server.py

The broker's configuration lists the origin that this prints: `[browsers] origins = ["http://127.0.0.1:8000"]`.
In yours, /token asks first who is logged in, and which inboxes are theirs.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BROKER = os.environ.get("BROKER_URL", "http://127.0.0.1:8765")
PAGE = Path(__file__).with_name("index.html")


class Server(BaseHTTPRequestHandler):
    """Answers `GET /` with the page, and `POST /token` with a token and where to use it."""

    def do_GET(self) -> None:
        """Answer with the page."""
        self._answer(200, "text/html; charset=utf-8", PAGE.read_bytes())

    def do_POST(self) -> None:
        """Ask the broker for a token of the key."""
        if self.path != "/token":
            self.send_error(404)
            return
        try:
            made = {"url": f"ws{BROKER.removeprefix('http')}", "token": token()}
            self._answer(200, "application/json", json.dumps(made).encode())
        except OSError as error:  # refusals too: urllib.error.HTTPError is one
            print(f"no token: {error}", file=sys.stderr)
            self.send_error(503)

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


def token() -> str:
    """Return a new token of the key."""
    headers = {"Authorization": f"Bearer {os.environ['BROKER_KEY']}", "Content-Type": "application/json"}
    asked = json.dumps({"scopes": ["subscribe"]}).encode()
    request = urllib.request.Request(f"{BROKER}/v1/websocket/token", asked, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        made: str = json.load(answer)["result"]["token"]
        return made


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8000"))), Server)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
