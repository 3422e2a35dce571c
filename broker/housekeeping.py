"""What is done by the clock for all accounts: the expiry of the window, forgetting the idle.

One task, however many accounts; it works in slices and yields between them.
"""

from typing import Final

import trio

from .commands import Commands
from .hub import Hub
from .retention import ReplayBuffers

_SLICE: Final = 64
_EXPIRE_SLICE: Final = 512
MAX_EXPIRY_SECONDS: Final = 1.0
FORGET_SECONDS: Final = 30.0


async def expire_and_forget(hub: Hub, buffers: ReplayBuffers, commands: Commands, window_seconds: float) -> None:
    """Drop what is too old, and forget accounts of which nothing is left, for ever."""
    interval = min(MAX_EXPIRY_SECONDS, window_seconds / 4)
    forget_at = trio.current_time() + FORGET_SECONDS
    while True:
        await trio.sleep(interval)
        while buffers.expire(trio.current_time(), most=_EXPIRE_SLICE):
            await trio.lowlevel.checkpoint()
        if trio.current_time() >= forget_at:
            forget_at = trio.current_time() + FORGET_SECONDS
            commands.forget_idle(trio.current_time())
            for number, account in enumerate(hub.accounts()):
                hub.forget_idle(account, trio.current_time())
                if number % _SLICE == 0:
                    await trio.lowlevel.checkpoint()
