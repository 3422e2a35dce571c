"""Clients in other languages, as they are installed: made of their sources as these are now."""

import fcntl
import subprocess
from pathlib import Path
from typing import Final

from .programs import missing, need

TYPESCRIPT: Final = Path(__file__).parents[1] / "typescript"
_LOCK: Final = TYPESCRIPT.parents[1] / ".cache" / "typescript.lock"
_INSTALL_SECONDS: Final = 300.0


def built_typescript() -> Path:
    """Return the folder of the TypeScript client, with its packages and its modules; one process at a time makes them.

    Skips the test that asks where this machine cannot; fails it where clients are required.
    """
    need("node", "20.19")  # for what it is made with; it runs from 20 on
    need("npm", "9")
    made = TYPESCRIPT / "dist"
    _LOCK.parent.mkdir(exist_ok=True)
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_older(TYPESCRIPT / "node_modules" / ".package-lock.json", TYPESCRIPT / "package-lock.json"):
            _npm("ci", "--ignore-scripts")
        if _is_older(made / "node.js", *(TYPESCRIPT / "src").glob("*.ts"), *TYPESCRIPT.glob("tsconfig*.json")):
            _npm("run", "build")
    return TYPESCRIPT


def _is_older(made: Path, *sources: Path) -> bool:
    return not made.exists() or made.stat().st_mtime < max(source.stat().st_mtime for source in sources)


def _npm(*arguments: str) -> None:
    command = ["npm", *arguments, "--silent"]
    try:
        done = subprocess.run(
            command, cwd=TYPESCRIPT, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        missing(f"npm {arguments[0]} did not end within {_INSTALL_SECONDS:g} s: the TypeScript client is not tried")
    if done.returncode and arguments[0] == "ci":
        missing(f"npm ci failed, so the TypeScript client is not tried: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
