"""A broker, and both event loops."""

import anyio
import pytest
from daimon_email.testing import local_broker

__all__ = ["local_broker", "run"]


@pytest.fixture(params=["asyncio", "trio"])
def run(request):
    """Run an async function on an event loop, for a minute at most."""

    def run(function, *args):
        async def bounded():
            with anyio.fail_after(60):
                return await function(*args)

        return anyio.run(bounded, backend=request.param)

    return run
