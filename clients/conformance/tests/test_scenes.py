"""The Python client, on both event loops, in all scenes; and the scenes, with clients that are broken.

All that is to be played is played at once, a few at a time, before the first test looks at its own.
"""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
from breaking import FAULTS
from conformance.expecting import STEP_SECONDS
from conformance.playing import play_all
from conformance.scenes import SCENES

ROOT = Path(__file__).parents[3]
DRIVER = [sys.executable, str(ROOT / "clients" / "python" / "tests" / "driver.py")]
AT_ONCE = 10

HELD = [(name, ("--loop", loop)) for loop in ("asyncio", "trio") for name in SCENES]
BROKEN = [
    (scene, ("--loop", ("asyncio", "trio")[number % 2], "--break", name))
    for number, (name, fault) in enumerate(FAULTS.items())
    for scene in fault.scenes
]


@pytest.fixture(scope="session")
def outcomes(request):
    """What became of each scene that is asked for in this session."""
    here = [item for item in request.session.items if item.path.samefile(__file__)]
    cases = [item.callspec.params["case"] for item in here if "outcomes" in item.fixturenames]
    played = {}

    def play(case):
        name, options = case
        return SCENES[name], (*DRIVER, *options)

    def tell(outcome):
        played[outcome.scene.name, outcome.command[len(DRIVER) :]] = outcome

    trio.run(partial(play_all, [play(case) for case in cases], tell, AT_ONCE))
    return played


def name_of(case):
    return " ".join([case[0], *case[1][1::2]])


@pytest.mark.parametrize("case", HELD, ids=name_of)
def test_the_python_client_does_what_every_client_must(outcomes, case):
    assert outcomes[case].mismatch == ""


@pytest.mark.parametrize("case", BROKEN, ids=name_of)
def test_a_broken_client_is_noticed(outcomes, case):
    scene, options = case
    assert FAULTS[options[-1]].scenes[scene] in outcomes[case].mismatch.splitlines()[0]


def test_the_page_names_all_scenes_and_no_others():
    page = (ROOT / "clients" / "conformance" / "README.md").read_text()
    rows = page.partition("| scene | shows |")[2].splitlines()[2:]
    named = [name for row in rows for name in re.findall(r"`([a-z0-9-]+)`", row.split(" | ")[0])]
    assert sorted(named) == sorted(SCENES)


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        ("raise SystemExit('no such module')", "ended by itself"),
        ("print('Hello!'); input()", "no line of a trace"),
        ('print(\'{"on": "started"}\', flush=True); input(); raise SystemExit', "ended by itself"),
    ],
)
def test_a_driver_that_is_none_is_told_from_a_client_that_does_not_do_what_it_must(driver, said):
    outcomes = []
    trio.run(play_all, [(SCENES["events"], [sys.executable, "-c", driver])], outcomes.append)
    [outcome] = outcomes
    assert said in outcome.mismatch
    assert outcome.seconds < STEP_SECONDS


def test_what_a_driver_said_last_is_told_with_what_went_wrong():
    outcomes = []
    driver = [sys.executable, "-c", "raise SystemExit('no such module')"]
    trio.run(play_all, [(SCENES["events"], driver)], outcomes.append)
    assert "| no such module" in outcomes[0].mismatch


def test_the_runner_says_how_each_scene_went_and_fails_with_one():
    def run(*options):
        command = [sys.executable, "-m", "clients.conformance", "--scene", "events", "--", *DRIVER, *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    well, badly = run(), run("--break", "last-comes-first")
    assert (well.returncode, well.stdout.split()[:2]) == (0, ["ok", "events"])
    assert (badly.returncode, badly.stdout.split()[:2]) == (1, ["FAILED", "events"])
    assert "what handlers got" in badly.stdout
