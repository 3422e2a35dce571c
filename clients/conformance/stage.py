"""What a scene plays on: a broker, a proxy before it, and drivers."""

import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .brokers import KEY, Brokers, mail, open_brokers
from .drivers import Driver, open_driver
from .expecting import Changes
from .proxy import Proxy, open_proxy
from .tokens import TokenServer, open_token_server

RECONNECT_DELAY: Final = 0.2
START_SECONDS: Final = 60.0
"""For a driver's process to be there, on a busy machine."""


class Stage:
    """Made by `open_stage`."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        brokers: Brokers,
        proxy: Proxy,
        tokens: TokenServer,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        self.brokers = brokers
        self.proxy = proxy
        self.tokens = tokens
        self.changes = proxy.changes
        self.cursor_file = str(folder / "cursor")
        self.drivers: list[Driver] = []
        self._command = command
        self._stack = stack

    async def driver(self) -> Driver:
        """Start one more driver."""
        name = f"driver {len(self.drivers) + 1}"
        driver = await self._stack.enter_async_context(open_driver(name, self._command, self.changes))
        self.drivers.append(driver)
        await driver.until("started", seconds=START_SECONDS)
        return driver

    async def connecting(self, **fields: Any) -> Driver:
        """Start a driver and tell it to connect, through the proxy."""
        driver = await self.driver()
        await self.connect(driver, **fields)
        return driver

    async def connect(self, driver: Driver, **fields: Any) -> None:
        """Tell a driver to connect, through the proxy."""
        usual = {"url": f"ws://127.0.0.1:{self.proxy.port}", "reconnect_delay": RECONNECT_DELAY}
        usual |= {} if "token_url" in fields else {"api_key": KEY}
        await driver.tell("connect", **(usual | fields))

    async def connected(self, **fields: Any) -> Driver:
        """Start a driver, and wait until it is connected."""
        driver = await self.connecting(**fields)
        await driver.until("connected")
        return driver

    async def publish(self, *numbers: int, **fields: Any) -> None:
        """Publish mails with these numbers."""
        await self.brokers.publish(*(mail(number, **fields) for number in numbers))

    async def restart(self) -> None:
        """Start the broker again, after it has ended."""
        await self.brokers.start()
        self.proxy.upstream = self.brokers.address

    async def end(self) -> None:
        """Close what is still open, in order. Raises `MismatchError` if a driver does not end as it should."""
        for driver in self.drivers:
            if not driver.was_killed:
                await driver.close()
                await driver.end()
        self.changes.check()


Play = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True)
class Scene:
    """A scene: what it shows, in a sentence, and how it is played."""

    name: str
    shows: str
    play: Play
    sections: dict[str, Any] = field(default_factory=dict)
    """Of the broker's configuration."""
    stored: bool = False


SCENES: Final[dict[str, Scene]] = {}
"""All scenes by their names, in the order of the page."""


def scene(*, stored: bool = False, **sections: Any) -> Callable[[Play], Play]:
    """Register a function as the scene of its name; its docstring is what it shows."""

    def register(play: Play) -> Play:
        name = getattr(play, "__name__", "").replace("_", "-")
        SCENES[name] = Scene(name, (play.__doc__ or "").strip(), play, sections, stored)
        return play

    return register


@contextlib.asynccontextmanager
async def open_stage(scene: Scene, command: Sequence[str]) -> AsyncIterator[Stage]:
    """Make what a scene needs, for as long as the block lasts."""
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="conformance-"))
        brokers = await stack.enter_async_context(open_brokers(scene.sections, stored=scene.stored))
        proxy = await stack.enter_async_context(open_proxy(Changes()))
        proxy.upstream = brokers.address
        tokens = await stack.enter_async_context(open_token_server(brokers))
        yield Stage(command, Path(folder), brokers, proxy, tokens, stack)
