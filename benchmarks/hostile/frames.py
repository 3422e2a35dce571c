"""What a client with any key may do with the frames of one WebSocket: here a key that may only subscribe."""

from functools import partial

import trio

from ..generator.frames import BINARY, CLOSE, PING, PONG, TEXT, masked_frame
from .client import UnexpectedError, command, fragment, opened, send
from .row import MEBIBYTE, MESSAGE_BYTES, Row
from .target import LISTENER, Target

FLOOD_BYTES = MEBIBYTE
PIECE_BYTES = 60_000
BAD_FRAMES = 20
"""So many frames that are no commands end a connection."""
WIDE = "\u0101".encode()
"""A character of two bytes, of which Python keeps no copy of its own."""
HALVES = fragment(0, WIDE[:1]) + fragment(0, WIDE[1:])
BEGIN, EMPTY = fragment(TEXT), fragment(0)


async def flood(begin: bytes, unit: bytes, target: Target, total_bytes: int = FLOOD_BYTES) -> None:
    """Send ``begin``, then a frame again and again, as fast as they are taken."""
    piece = unit * max(1, min(PIECE_BYTES, total_bytes) // len(unit))
    async with opened(target, LISTENER) as websocket:
        await send(websocket.stream, begin)
        await websocket.flood(piece, max(1, total_bytes // len(piece)))


async def many_fragments(target: Target, messages: int = 5) -> None:
    """Send a message of 10,000 fragments again and again."""
    whole = fragment(TEXT, b"{") + fragment(0, b" ") * 9_998 + fragment(0, b"}", last=True)
    async with opened(target, LISTENER) as websocket:
        await websocket.flood(whole, messages)


async def after_close(target: Target) -> None:
    """Have the connection closed for bad frames, then send empty fragments on."""
    bad = masked_frame(TEXT, b"?") * BAD_FRAMES
    async with opened(target, LISTENER) as websocket:
        await send(websocket.stream, bad + BEGIN)
        for _ in range(FLOOD_BYTES // PIECE_BYTES):
            if not await send(websocket.stream, EMPTY * (PIECE_BYTES // len(EMPTY))):
                return
        code = await websocket.until_closed()
        if code not in (0, 1008):
            raise UnexpectedError(f"closed with {code}")


async def pings_unread(target: Target) -> None:
    """Ping, and read no answer."""
    async with opened(target, LISTENER) as websocket:
        with trio.move_on_after(1):
            await send(websocket.stream, masked_frame(PING, b"x" * 125) * 400, 40)


async def commands_unread(target: Target) -> None:
    """Give commands, and read no answer."""
    async with opened(target, LISTENER) as websocket:
        with trio.move_on_after(1):
            await send(websocket.stream, command(action="ping", request_id="r" * 128) * 400, 40)


async def broken(target: Target, connections: int = 200) -> None:
    """Break the framing on one connection after the other."""
    for _ in range(connections):
        async with opened(target, LISTENER) as websocket:
            await websocket.flood(b"\xff" * 1_000, 1)


def _message(payload: bytes, opcode: int = TEXT) -> bytes:
    return masked_frame(opcode, payload)


def _flooding(name: str, does: str, unit: bytes, begin: bytes = b"", total_bytes: int = FLOOD_BYTES) -> Row:
    attack = partial(flood, begin, unit, total_bytes=total_bytes)
    return Row(name, f"any key: {does}", attack, MESSAGE_BYTES if begin else len(unit), may_hold_bytes=PIECE_BYTES)


def _great(name: str, does: str, message: bytes) -> Row:
    return _flooding(name, f"messages of 1 MiB: {does}", message, total_bytes=16 * MEBIBYTE)


_ENDLESS = b"\x81\xff" + (2**60).to_bytes(8) + b"\0" * 4
_NUMBERS = b'{"action":"x","n":[' + b"1," * 524_200 + b"1]}"
_NAMES = b'{"action":"x"' + b"".join(b',"%05d":1' % number for number in range(100_000)) + b"}"

ROWS = [
    _flooding("empty-fragments", "a message is begun, then come empty fragments", EMPTY, BEGIN),
    _flooding("one-byte-fragments", "the same with fragments of one byte", fragment(0, b" "), BEGIN),
    _flooding("wide-fragments", "the same with characters of two bytes", fragment(0, WIDE), BEGIN, 4 * MEBIBYTE),
    _flooding("half-characters", "the same with halves of such characters", HALVES, BEGIN),
    _flooding("binary-fragments", "the same, binary", EMPTY, fragment(BINARY)),
    Row("many-fragments", "any key: a message of 10,000 fragments again and again", many_fragments, MESSAGE_BYTES),
    _flooding("pongs", "Pongs that nobody asked for", masked_frame(PONG, b"")),
    _flooding("pings", "empty Pings", masked_frame(PING, b""), total_bytes=FLOOD_BYTES // 128),
    _flooding("long-pings", "Pings of 125 bytes", masked_frame(PING, b"x" * 125), total_bytes=FLOOD_BYTES // 8),
    Row("broken-frames", "any key: 200 connections whose framing is broken", broken),
    _flooding(
        "endless-frame", "a frame of 2^60 bytes", b" " * PIECE_BYTES, b"\x81\xff" + (2**60).to_bytes(8) + b"\0" * 4
    ),
    _flooding("closes", "Closes", masked_frame(CLOSE, b"\x03\xe8")),
    Row("pings-unread", "any key: Pings, and no answer is read", pings_unread, MESSAGE_BYTES),
    Row("after-close", "any key: closed for bad frames, it sends empty fragments on", after_close, MESSAGE_BYTES),
    _flooding("empty-messages", "empty messages", masked_frame(TEXT, b"")),
    _flooding("ping-commands", "`ping` commands", command(action="ping"), total_bytes=FLOOD_BYTES // 32),
    Row("commands-unread", "any key: `ping` commands, and no answer is read", commands_unread, MESSAGE_BYTES),
    _flooding("unscoped-commands", "commands that it may not give", command(action="x"), total_bytes=FLOOD_BYTES // 32),
    _great("great-rubbish", "no JSON", _message(b"?" * MESSAGE_BYTES)),
    _great("great-lists", "lists in lists", _message(b"[" * MESSAGE_BYTES)),
    _great("great-binary", "binary", _message(b"\0" * MESSAGE_BYTES, BINARY)),
    _great("great-numbers", "commands of numbers, which it may not give", _message(_NUMBERS)),
    _great("great-names", "commands of 100,000 names, which it may not give", _message(_NAMES)),
]
