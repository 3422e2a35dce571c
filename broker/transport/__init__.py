"""Bytes and sockets: one port for HTTP and WebSocket."""
