"""All proofs in their long form, two at a time, and a line for each that says what it has proved: `make prove`.

The exit code is 1 where one of them did not hold: what pytest said of it is printed. The longest begin first, so that
the two that run at once end at about the same time.
"""

import ast
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
AT_ONCE = 2
LONGEST_FIRST = ("Killed", "OnDisk", "fuzz", "hostile", "InMemory", "OfTwoNodes", "churn", "faults")
OF_STATEFUL = {"InMemory": "InMemory", "OnDisk": "OnDisk", "Killed": "Killed", "OfTwoNodes": "Joined"}
"""Variants of the state machine, which are run each by itself: the end of its test's name, and its class."""
COSTS = "what hostile clients cost"
_printing = threading.Lock()


def said_of(path: Path, class_name: str = "") -> str:
    """Return the first sentence of a module's docstring, or of a class in it."""
    tree: ast.Module | ast.ClassDef = ast.parse(path.read_text(encoding="utf-8"))
    if class_name:
        tree = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    return " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())


def parts() -> list[tuple[str, str]]:
    """Return what is run by itself, the longest first: what pytest is given, and what it proves."""
    found = []
    for path in sorted(FOLDER.glob("test_*.py")):
        if path.stem == "test_stateful":
            for name, class_name in OF_STATEFUL.items():
                found.append((f"{path}::TestPromises{name}", f"{said_of(path)} {said_of(path, class_name)}"))
        else:
            found.append((str(path), said_of(path)))

    def place(part: tuple[str, str]) -> int:
        return next((n for n, word in enumerate(LONGEST_FIRST) if word in part[0]), len(LONGEST_FIRST))

    return sorted(found, key=place)


def prove(part: tuple[str, str]) -> bool:
    """Run one, and print its line. Returns whether it held."""
    given, says = part
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", given],
        cwd=ROOT, env={**os.environ, "BROKER_PROVE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    held = ran.returncode == 0
    with _printing:
        counted = ran.stdout.rstrip().rpartition("\n")[2].partition(" in ")[0].strip("= ")
        print(f"{'held' if held else 'BROKE':5} {time.monotonic() - began:6.1f} s  {says} ({counted})", flush=True)
        for left_out in dict.fromkeys(line for line in ran.stdout.splitlines() if line.startswith("SKIPPED")):
            print(f"      left out: {left_out.partition(': ')[2]}", flush=True)
        if not held:
            print(ran.stdout + ran.stderr, flush=True)
        elif COSTS in ran.stdout:
            _, _, table = ran.stdout.partition(COSTS)
            print(COSTS + table.rpartition("\n")[0].strip(" ="), flush=True)
    return held


def main() -> int:
    """Return 1 if one did not hold."""
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as at_once:
        held = list(at_once.map(prove, parts()))
    print(f"{sum(held)} of {len(held)} held, {time.monotonic() - began:.0f} s in all")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
