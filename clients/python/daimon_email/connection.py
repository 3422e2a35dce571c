"""One WebSocket: bytes to frames and back, on asyncio and on trio alike.

The protocol is `websockets`' own, without I/O; here is the stream below it, its deadlines, and how it ends.
"""

import json
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import anyio
from anyio.abc import ByteStream
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from .ending import Ending, closed, not_opened, refused
from .opening import Target, default_trust

OPEN_SECONDS: Final = 20.0
"""To connect, to agree on TLS, and to be answered."""
CLOSE_SECONDS: Final = 5.0
SEND_SECONDS: Final = 30.0
"""A frame is written whole, whatever happens to who wrote it: half a frame would break the connection."""
MAX_MESSAGE_BYTES: Final = 67_108_864
_READ_BYTES: Final = 65_536


class EndedError(Exception):
    """The connection has ended."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


_ENDED: Final = (
    EndedError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError
)  # fmt: skip


class Connection:
    """An open WebSocket. One task receives; any may send. Made by `open_connection`."""

    def __init__(self, stream: ByteStream, protocol: ClientProtocol) -> None:
        self._stream = stream
        self._protocol = protocol
        self._sending = anyio.Lock()
        self._parts: list[bytes] = []
        self._waiting: list[tuple[str, int]] = []
        self._closing = self._take_in(protocol.events_received())  # what came with the answer to the opening

    async def send(self, text: str) -> None:
        """Send one text. Raises `EndedError`."""
        if self._protocol.state is not State.OPEN:
            raise EndedError(self._ending())
        self._protocol.send_text(text.encode())
        await self._flush()

    async def receive(self, patience_seconds: float) -> list[tuple[str, int]]:
        """Return the next texts, each with its size in bytes. Raises `EndedError`: it ended, or is silent too long."""
        while not self._waiting:
            if self._closing:
                raise EndedError(self._ending())
            try:
                with anyio.fail_after(patience_seconds):
                    data = await self._stream.receive(_READ_BYTES)
            except TimeoutError:
                raise EndedError(closed(None, "nothing was heard")) from None
            except anyio.EndOfStream:
                self._protocol.receive_eof()
                raise EndedError(self._ending()) from None
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                raise EndedError(self._ending()) from None
            self._protocol.receive_data(data)
            self._closing = self._take_in(self._protocol.events_received())
            try:
                await self._flush()
            except EndedError:
                if not self._waiting:
                    raise
        texts, self._waiting = self._waiting, []
        return texts

    def _take_in(self, events: Sequence[object]) -> bool:
        """Take frames in; return whether one of them was a Close."""
        ended = self._protocol.parser_exc is not None
        for event in events:
            if not isinstance(event, Frame):
                continue
            if event.opcode is Opcode.CLOSE:
                ended = True
            elif event.opcode in (Opcode.TEXT, Opcode.CONT, Opcode.BINARY):
                self._parts.append(bytes(event.data))
                if event.fin:
                    data, self._parts = b"".join(self._parts), []
                    self._waiting.append((data.decode("utf-8", "replace"), len(data)))
        return ended

    async def _flush(self) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(SEND_SECONDS):
            async with self._sending:
                for data in self._protocol.data_to_send():
                    try:
                        if data:
                            await self._stream.send(data)
                    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                        raise EndedError(self._ending()) from None
            return
        await anyio.aclose_forcefully(self._stream)
        raise EndedError(closed(None, "nothing could be sent"))

    def _ending(self) -> Ending:
        received = self._protocol.close_rcvd
        if received is not None:
            return closed(received.code, received.reason)
        if self._protocol.parser_exc is not None:
            return closed(None, "the other side does not speak WebSocket as it should")
        return closed(None)

    async def aclose(self, *, lost: bool = False) -> None:
        """End it, in order unless it is lost. No task may receive any more."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(CLOSE_SECONDS), suppress(*_ENDED):
            if not lost and self._protocol.state is State.OPEN:
                self._protocol.send_close(1000)
                await self._flush()
                while self._protocol.close_rcvd is None:
                    self._protocol.receive_data(await self._stream.receive(_READ_BYTES))
        await anyio.aclose_forcefully(self._stream)


async def open_connection(url: str, target: Target, credential: str, agent: str, trust: Any = None) -> Connection:
    """Open a WebSocket. Raises `EndedError` with why it was refused, or could not be reached."""
    stream: ByteStream | None = None
    try:
        with anyio.fail_after(OPEN_SECONDS):
            stream = await _connect(target, trust)
            protocol = ClientProtocol(parse_uri(url), max_size=MAX_MESSAGE_BYTES)
            await _shake_hands(stream, protocol, credential, agent)
            return Connection(stream, protocol)
    except TimeoutError:
        ending = not_opened(f"{target.host}:{target.port} did not answer in time")
    except EndedError as ended:
        ending = ended.ending
    except (OSError, anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
        ending = not_opened(f"{target.host}:{target.port} cannot be reached: {_words(error)}")
    except BaseException:
        if stream is not None:
            await anyio.aclose_forcefully(stream)
        raise
    if stream is not None:
        await anyio.aclose_forcefully(stream)
    raise EndedError(ending)


def _words(error: BaseException) -> str:
    cause = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"no TLS is spoken there: {cause.reason}"
    return str(error) or ("it hung up" if isinstance(error, anyio.EndOfStream) else "the connection broke")


async def _connect(target: Target, trust: Any) -> ByteStream:
    if not target.tls:
        return await anyio.connect_tcp(target.host, target.port)
    context = trust or default_trust(target)
    return await anyio.connect_tcp(
        target.host, target.port, ssl_context=context, tls_hostname=target.host, tls_standard_compatible=False
    )


async def _shake_hands(stream: ByteStream, protocol: ClientProtocol, credential: str, agent: str) -> None:
    request = protocol.connect()
    request.headers["Authorization"] = f"Bearer {credential}"
    request.headers["User-Agent"] = agent
    protocol.send_request(request)
    for data in protocol.data_to_send():
        await stream.send(data)
    while protocol.state is State.CONNECTING and protocol.handshake_exc is None:
        try:
            protocol.receive_data(await stream.receive(_READ_BYTES))
        except anyio.EndOfStream:
            protocol.receive_eof()
    error = protocol.handshake_exc
    if isinstance(error, InvalidStatus):
        raise EndedError(_refusal(error.response))
    if isinstance(error, InvalidHandshake) or error is not None:
        raise EndedError(not_opened(f"the other side is no broker: {error}"))


def _refusal(response: Response) -> Ending:
    code = message = None
    try:
        said = json.loads(response.body or b"{}")["error"]
        code, message = str(said["code"]), str(said["message"])
    except (ValueError, KeyError, TypeError):
        pass
    return refused(response.status_code, code, message, response.headers.get("Retry-After"), time.time())
