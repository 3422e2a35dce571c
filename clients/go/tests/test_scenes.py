"""The Go client in all scenes: each that is asked for is played before the first test looks at its own."""

from functools import partial

import pytest
import trio
from conformance.playing import play_all
from conformance.scenes import SCENES

AT_ONCE = 10


@pytest.fixture(scope="session")
def outcomes(built, request):
    """What became of each scene that is asked for in this session."""
    here = [item for item in request.session.items if item.path.samefile(__file__)]
    names = [item.callspec.params["name"] for item in here]
    command = [str(built("./internal/driver"))]
    played = {}

    def tell(outcome):
        played[outcome.scene.name] = outcome

    trio.run(partial(play_all, [(SCENES[name], command) for name in names], tell, AT_ONCE))
    return played


@pytest.mark.parametrize("name", SCENES)
def test_the_go_client_does_what_every_client_must(outcomes, name):
    assert outcomes[name].mismatch == ""
