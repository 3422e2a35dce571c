"""Connections of httpcore's that are read in small pieces: whatever comes, it is parsed piece by piece."""

from typing import Any, Final

import httpcore

STEP_BYTES: Final = 4_096
"""What is taken from the network in one step: whatever stands in it, it costs a few milliseconds at most."""


class Piecemeal(httpcore.AsyncNetworkStream):
    """A connection of which a little is read at a time; all else is left to the ``stream`` below."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  (httpcore's)
        """Read a little."""
        return await self._stream.read(min(max_bytes, STEP_BYTES), timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write all of it."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore wants to know of the connection."""
        return self._stream.get_extra_info(info)
