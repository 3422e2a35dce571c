"""What keeps an account's log and listeners in this process."""

from contextlib import AbstractAsyncContextManager

from .fanout.hub import Account, Hub
from .log.engines import Engine


class Hold:
    """An account's log and listeners, kept from when the block is entered until `aclose`, which its end calls.

    There is one for each connection for as long as it lives, so it is small.
    """

    __slots__ = ("_account_id", "_attached", "_engine", "_hub")

    def __init__(self, hub: Hub, engine: Engine, account_id: str) -> None:
        self._hub = hub
        self._engine = engine
        self._account_id = account_id
        self._attached: AbstractAsyncContextManager[None] | None = None

    async def __aenter__(self) -> Account:
        attached = self._engine.attach(self._account_id)
        await attached.__aenter__()
        self._attached = attached
        account = self._hub.account(self._account_id)
        account.uses += 1
        return account

    async def aclose(self) -> None:
        """Keep the account no longer. May be called again."""
        attached, self._attached = self._attached, None
        if attached is not None:
            self._hub.account(self._account_id).uses -= 1
            await attached.__aexit__(None, None, None)

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
