"""What the keeper takes of acknowledgements, when it ends in the middle."""

import pytest
import trio

from broker.keeper.settling import FIRST, Taking
from broker.log.outbox import Outbox


class Server:
    """A server that nodes share; what it is asked for an account's acknowledgements it answers when it is told to."""

    node = "n"

    def __init__(self):
        self.answering = trio.Event()

    def follow(self, hear, lost):
        """Nothing is told here."""

    def key(self, *names):
        return ":".join(names)

    async def call(self, script, keys, args):
        if script == FIRST:
            await self.answering.wait()
        return []


@pytest.mark.parametrize("attempt", range(20))
async def test_whatever_is_answered_while_it_ends_nothing_is_settled_then(attempt):
    """In which order tasks go on that are woken at once is chance."""
    server = Server()
    taking = Taking(Outbox(None), server, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taking.run)
        taking.changed("acct")
        await trio.testing.wait_all_tasks_blocked()
        server.answering.set()
        nursery.cancel_scope.cancel()
    assert not taking.is_settled("acct")
