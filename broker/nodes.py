"""How a node speaks to the server that it shares with others, and by it to them: what those who do so ask of an engine.

A node is one process. Its lease at the server ends when it does not renew it for some seconds: what it held there is
then nobody's.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

Argument = str | bytes | int
KEEPER: Final = "keeper"
"""The kind of key that says which node keeps webhooks and queues for all; it is of no account."""


class Wire(Protocol):
    """A node's way to the shared server."""

    @property
    def node(self) -> str:
        """The name of this node: no other process has had it, or will have."""
        ...

    @property
    def leases(self) -> str:
        """What stands before a node's name in the key of its lease."""
        ...

    @property
    def channels(self) -> str:
        """What stands before a node's name in the channel of messages to it."""
        ...

    def key(self, kind: str, account_id: str) -> str:
        """Return the key of a kind (`k`, `c`, …) of an account."""
        ...

    async def call(self, script: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run a script at the server and return its answer. Raises `RequestError` (`unavailable`)."""
        ...

    async def tell(self, node: str, message: bytes) -> None:
        """Tell a node something, if it is there. Raises `RequestError` (`unavailable`)."""
        ...

    def follow(self, heard: Callable[[bytes], None], renewed: Callable[[], None]) -> None:
        """Have ``heard`` called with each message to this node, from now on, and ``renewed`` when it is back.

        That is: when it reaches the server again after it did not, or when that has lost what it held.
        """
        ...
