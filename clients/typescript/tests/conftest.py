"""The client as it is installed: its packages, and its modules as Node and browsers load them."""

import fcntl
import subprocess
from pathlib import Path

import pytest
from conformance.programs import missing, need
from daimon_email.testing import local_broker

__all__ = ["built", "local_broker"]

FOLDER = Path(__file__).parents[1]
INSTALL_SECONDS = 300


@pytest.fixture(scope="session")
def built():
    """The folder of the package, built from its sources as they are; one process at a time."""
    need("node", "20.19")  # for what it is made with; it runs from 20 on
    need("npm", "9")
    (FOLDER / "dist").mkdir(exist_ok=True)
    with (FOLDER / "dist" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_older(FOLDER / "node_modules" / ".package-lock.json", FOLDER / "package-lock.json"):
            _npm("ci", "--ignore-scripts", "--no-audit", "--no-fund")
        if _is_older(FOLDER / "dist" / "node.js", *(FOLDER / "src").glob("*.ts"), FOLDER / "tsconfig.build.json"):
            _npm("run", "--silent", "build")
    return FOLDER


def _is_older(made, *sources):
    return not made.exists() or made.stat().st_mtime < max(source.stat().st_mtime for source in sources)


def _npm(*arguments):
    try:
        done = subprocess.run(
            ["npm", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        missing(f"npm {arguments[0]} did not end within {INSTALL_SECONDS} s: the TypeScript client is not tried")
    if done.returncode and arguments[0] == "ci":
        missing(f"npm ci failed, so the TypeScript client is not tried: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
