"""What is too old is dropped, and what is idle forgotten: for all accounts, for ever, in short steps."""

from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from .commands.dispatch import Commands
from .fanout.hub import Hub
from .log.retention import ReplayBuffers

MAX_EXPIRY_SECONDS: Final = 1.0
FORGET_SECONDS: Final = 30.0
_EXPIRE_SLICE: Final = 512
"""Events that are dropped in one step."""
_FORGET_SLICE: Final = 256
"""Accounts that are looked at in one step, and answers that are forgotten."""


async def expire_and_forget(hub: Hub, buffers: ReplayBuffers, commands: Commands, window_seconds: float) -> None:
    """Drop what is too old, and forget accounts of which nothing is left, for ever and in short steps."""
    interval = min(MAX_EXPIRY_SECONDS, window_seconds / 4)
    forget_at = trio.current_time() + FORGET_SECONDS
    while True:
        await trio.sleep(interval)
        await _in_steps(partial(buffers.expire, most=_EXPIRE_SLICE))
        if trio.current_time() >= forget_at:
            forget_at = trio.current_time() + FORGET_SECONDS
            await _in_steps(buffers.forget)
            await _in_steps(partial(commands.forget, most=_FORGET_SLICE))
            await _in_steps(partial(hub.forget, most=_FORGET_SLICE))


async def _in_steps(step: Callable[[float], bool]) -> None:
    """Take a step, and others as long as it says that there is more to do; others have their turn between."""
    while step(trio.current_time()):
        await trio.lowlevel.checkpoint()
