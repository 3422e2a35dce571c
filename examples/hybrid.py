"""Webhooks and the stream at once, each event dealt with once: for who comes from the one to the other.

    pip install ./clients/python        # from a checkout
    DAIMON_API_KEY=dm_live_… DAIMON_WS_URL=ws://127.0.0.1:8765 WEBHOOK_SECRET=whsec_… python hybrid.py 9001

The stream is the fast path. The webhook, at http://…:9001/, does what the stream has not done: best as a fallback
(docs/webhooks.md), which the broker posts only where this client has not acknowledged the event.
"""

import asyncio
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from daimon_email import BadSignatureError, DaimonWebSocket, Event, Message, is_processed, processed, verify

SECRET = os.environ["WEBHOOK_SECRET"]
client = DaimonWebSocket(client_id="hybrid")


async def process_message(message: Any, event: Event, way: str) -> None:
    """Do the work. Commands here should say `once=event.event_id`: then even two processes send one mail."""
    print(f"{event.event_id} by the {way}: {message.subject}", flush=True)


@client.on("message.received")
async def by_stream(message: Message, event: Event) -> None:
    """Take the fast path."""
    await process_message(message, event, "stream")


async def by_webhook(event: Event) -> None:
    """Do what no handler has done, or is doing."""
    if is_processed(event):
        print(f"{event.event_id} was done already", flush=True)
    elif event.type == "message.received":
        await process_message(event.subject, event, "webhook")
        processed(event)


class Receiver(BaseHTTPRequestHandler):
    """Takes posts in threads; the work is done in the client's loop, so that both ways take turns."""

    loop: asyncio.AbstractEventLoop

    def do_POST(self) -> None:
        """Verify the signature over the body as it came."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            event = verify(dict(self.headers.items()), body, SECRET)
        except BadSignatureError as error:
            return self.send_error(403, str(error))
        asyncio.run_coroutine_threadsafe(by_webhook(event), self.loop).result(20)
        self.send_response(204)
        return self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing of each request."""


async def main(port: int) -> None:
    """Take both until the client cannot go on."""
    Receiver.loop = asyncio.get_running_loop()
    server = ThreadingHTTPServer(("127.0.0.1", port), Receiver)
    Thread(target=server.serve_forever, daemon=True).start()
    print(f"listening {server.server_address[1]}", flush=True)
    try:
        await client.connect()
    finally:
        server.shutdown()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9001))
