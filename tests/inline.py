"""A log's storage without a disk or a thread, for tests whose clock jumps."""

import sqlite3

import trio

from broker.errors import RequestError


class InlineStorage:
    """A storage of some rooms that does everything at once, in memory. ``refuses``: it is full."""

    def __init__(self, *rooms):
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        for room in rooms:
            for step in room.steps:
                for statement in step:
                    self.connection.execute(statement)
        self.refuses = False
        self.writes = 0

    def begin_write(self, work, done):
        if self.refuses:
            done(RequestError("unavailable", "The disk is full"))
            return
        self.writes += 1
        done(work(self.connection))

    async def write(self, work):
        outcomes = []
        self.begin_write(work, outcomes.append)
        await trio.lowlevel.checkpoint()
        if isinstance(outcomes[0], RequestError):
            raise outcomes[0]
        return outcomes[0]

    async def read(self, work):
        await trio.lowlevel.checkpoint()
        return work(self.connection)
