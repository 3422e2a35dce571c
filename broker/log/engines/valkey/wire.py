"""A node's link as those see it who share more than logs: slots, and what becomes of commands."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from ....nodes import Argument
from .link import Link, LinkLostError, RefusedError, unavailable
from .scripts import Script

_MAX_SCRIPTS: Final = 256


class LinkWire:
    """A `nodes.Wire` on a link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._scripts: dict[str, Script] = {}
        self.node = link.node
        self.leases = link.names.lease("")
        self.channels = link.names.node("")

    def key(self, kind: str, account_id: str) -> str:
        """Return the key of a kind of an account."""
        return self._link.names.of_account(kind, account_id)

    async def call(self, script: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run a script and return its answer. Raises `RequestError` (`unavailable`)."""
        known = self._scripts.get(script)
        if known is None:
            if len(self._scripts) >= _MAX_SCRIPTS:
                self._scripts.clear()
            known = self._scripts[script] = Script(script)
        try:
            return await self._link.run(known, keys, arguments)
        except (LinkLostError, RefusedError):
            raise unavailable() from None

    async def tell(self, node: str, message: bytes) -> None:
        """Tell a node something, if it is there. Raises `RequestError` (`unavailable`)."""
        try:
            await self._link.tell(node, message)
        except (LinkLostError, RefusedError):
            raise unavailable() from None

    def follow(self, heard: Callable[[bytes], None], renewed: Callable[[], None]) -> None:
        """Have each message to this node, and hear whenever the link is there again, whatever was lost meanwhile."""
        self._link.followers.append(heard)

        async def tell_of_it() -> None:
            renewed()

        self._link.tasks.append(tell_of_it)
