"""A broker, and both event loops."""

import anyio
import pytest
from demonstrating import Served


@pytest.fixture
def served():
    served = Served()
    yield served
    served.close()


@pytest.fixture(params=["asyncio", "trio"])
def run(request):
    """Run an async function on an event loop, for 30 seconds at most."""

    def run(function, *args):
        async def bounded():
            with anyio.fail_after(30):
                return await function(*args)

        return anyio.run(bounded, backend=request.param)

    return run
