"""A broker at rest: what there is of it while it serves nobody, and that it is so again whatever was done to it."""

import trio
from clients import Served, open_descriptors, until
from trio.testing import wait_all_tasks_blocked as blocked

FILES_OF_READERS = 16
"""A log on disk is read by up to four threads, each with a connection of its own, which it keeps."""


FILES_OF_API = 110
"""Connections to the operator's API are kept open for the next question, a hundred at most."""


class Rest:
    """What there is of a broker that serves nobody."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._files = open_descriptors()
        self._tasks = _tasks()
        on_disk, asks = served.broker.statistics().storage is not None, served.broker.config.commands.url is not None
        self._more_files = FILES_OF_READERS * on_disk + FILES_OF_API * asks

    async def again(self) -> None:
        """Wait until nothing of any client is left; fail if something stays."""
        served = self._served
        with trio.fail_after(60):
            await until(lambda: not served.server.connections and not served.server.exchanges)
            await until(lambda: _tasks() <= self._tasks and open_descriptors() <= self._files + self._more_files)
        await blocked()
        statistics = served.broker.statistics()
        assert (statistics.slots.connections, statistics.slots.accounts) == (0, 0)
        assert (statistics.hub.live, statistics.bodies_bytes, statistics.names_bytes) == (0, 0, 0)
        assert (statistics.hub.queued_accounts, statistics.commands.under_way) == (0, 0)
        assert _tasks() == self._tasks
        assert open_descriptors() <= self._files + self._more_files


def _tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def at_rest(served: Served) -> Rest:
    """Wait until a broker has begun, and note what there is of it."""
    await blocked()
    return Rest(served)
