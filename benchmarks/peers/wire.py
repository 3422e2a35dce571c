"""Bytes that several peers are spoken to with: the WebSocket upgrade, an HTTP request, a line to publish."""

from collections.abc import Sequence

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""The key of each upgrade: the example of RFC 6455 section 1.3, so that a fixed answer can be a correct one."""


def upgrade(host: str, port: int, path: str, headers: Sequence[str] = ()) -> bytes:
    """Return the request of a WebSocket upgrade; no extension is offered, so no peer can compress."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def post(host: str, port: int, path: str, body: bytes) -> bytes:
    """Return an HTTP/1.1 request with a JSON body; its connection is kept open."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def line(channel: int, payload: bytes) -> bytes:
    """Return what the servers of this package take as an event: channel, space, payload, line feed."""
    return b"%d %s\n" % (channel, payload)
