"""Makes the broker wrong on purpose, one small mistake at a time, and looks whether the tests find out.

`python -m proofs.mutating [--only WORD] [--shard 1/2] [--list]`, from the root: in a copy of the tree each mutation of
`mutations` is made, the tests that are named for it are run, and it is taken back. A mutation that its tests do not
find *survives*; the exit code says whether one did. One whose place is not in the source any more is told, too.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from proofs.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parent.parent.parent
PARTS = ("broker", "tests", "clients", "benchmarks", "docs", "examples", "contrib", "pyproject.toml", "Makefile",
         "README.md", "CHANGELOG.md", "llms.txt", "hatch_build.py")  # fmt: skip
SECONDS = 240
"""For the tests of one mutation: one that makes them hang is found by that."""
KILLED, SURVIVED, MISPLACED = "killed", "SURVIVED", "MISPLACED"


def misplaced(mutation: Mutation, root: Path = ROOT) -> bool:
    """Whether what a mutation changes is not there, or more than once."""
    return (root / mutation.file).read_text().count(mutation.old) != 1


def copy_of_the_tree(folder: Path) -> None:
    """Copy what tests need."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / part)


def outcome_of(mutation: Mutation, folder: Path) -> str:
    """Make it, run its tests, and take it back."""
    if misplaced(mutation, folder):
        return MISPLACED
    path = folder / mutation.file
    before = path.read_text()
    path.write_text(before.replace(mutation.old, mutation.new))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=no"]
        ran = subprocess.run(
            [*command, *mutation.tests.split()], cwd=folder, timeout=SECONDS, capture_output=True, check=False,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "BROKER_MUTATING": "1",
                 "BROKER_PROVE": "1"},
        )  # fmt: skip
        found = ran.returncode == 1 or (ran.returncode == 2 and b"error" in ran.stdout)
        return (
            KILLED if found else SURVIVED if ran.returncode == 0 else f"{SURVIVED} (pytest ended with {ran.returncode})"
        )
    except subprocess.TimeoutExpired:
        return KILLED
    finally:
        path.write_text(before)


def main() -> int:
    """Return 1 if a mutation survived, or has no place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutations whose file, promise or tests have this word in them")
    parser.add_argument("--shard", default="1/1", help="the first of two halves is 1/2")
    parser.add_argument("--list", action="store_true", help="print them, and do nothing")
    asked = parser.parse_args()
    number, of = map(int, asked.shard.split("/"))
    chosen = [m for m in MUTATIONS if asked.only in f"{m.file} {m.promise} {m.tests}"][number - 1 :: of]
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        if not asked.list:
            copy_of_the_tree(Path(name))
        for mutation in chosen:
            began = time.monotonic()
            said = "" if asked.list else outcome_of(mutation, Path(name))
            bad += said not in ("", KILLED)
            print(f"{said:9} {time.monotonic() - began:6.1f} s  {mutation.file}: {mutation.promise}", flush=True)
    print(f"{len(chosen)} mutations, {bad} not found")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
