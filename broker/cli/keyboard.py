"""Single keys from a terminal, as they are pressed."""

import os
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import trio


@contextmanager
def single_keys() -> Iterator[bool]:
    """Have standard input give each key at once, unseen, until the block ends; False: it is no terminal.

    Ctrl-C interrupts as it does else; Ctrl-Z does nothing: the shell would come back to a screen that is not its own.
    """
    if not sys.stdin.isatty():
        yield False
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSANOW)
        now = termios.tcgetattr(descriptor)
        now[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(descriptor, termios.TCSANOW, now)
        yield True
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def keys_pressed() -> AsyncIterator[str]:
    """Yield each key, within `single_keys`, until there is no terminal any more."""
    descriptor = sys.stdin.fileno()
    while True:
        await trio.lowlevel.wait_readable(descriptor)
        pressed = os.read(descriptor, 64)
        if not pressed:
            return
        for key in pressed.decode(errors="replace"):
            yield key
