"""What the kernel knows of the way to a client: Linux's `struct tcp_info`, read for whoever looks at one connection."""

import socket
import struct
from typing import Final

from ..observe.connections import Link

_TCP_INFO: Final = struct.Struct("=68xI48xQQ64xQ")
"""Of `struct tcp_info`: ``tcpi_rtt`` (microseconds), ``tcpi_bytes_acked``, ``_received``, ``_sent``."""
_RTT_ONLY: Final = struct.Struct("=68xI")
"""The part that older kernels have, too."""


def link_of(connected: socket.socket) -> Link:
    """Return what is known of a socket's connection; what is not known, or not there, is None."""
    if not hasattr(socket, "TCP_INFO") or connected.family not in (socket.AF_INET, socket.AF_INET6):
        return Link()
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return Link()
    if len(info) == _TCP_INFO.size:
        rtt_us, bytes_acked, bytes_received, bytes_sent = _TCP_INFO.unpack(info)
        return Link(rtt_us / 1_000_000, bytes_sent, bytes_acked, bytes_received)
    if len(info) >= _RTT_ONLY.size:
        return Link(_RTT_ONLY.unpack_from(info)[0] / 1_000_000)
    return Link()
