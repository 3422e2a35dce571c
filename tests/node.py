"""Node with the package `ws`, for what the documentation shows in JavaScript.

The package goes into a directory of the checkout that is not under version control. Where there is no Node, the tests
say so and are skipped; under CI they fail.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from documents import ROOT

CACHE = ROOT / ".cache/node"
PACKAGE = "ws@8"
INSTALL_SECONDS = 120


def _installed() -> str | None:
    """What is missing, or None."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "Node.js and npm are not installed"
    if not (CACHE / "node_modules/ws/package.json").is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(CACHE), PACKAGE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"`npm install {PACKAGE}` did not end within {INSTALL_SECONDS} s"
        if done.returncode:
            return f"`npm install {PACKAGE}` failed: {done.stderr.strip()}"
    return None


@contextmanager
def node_program(text: str) -> Iterator[list[str]]:
    """The command that runs a module, which may import `ws`."""
    if missing := _installed():
        message = f"{missing}: what is shown in JavaScript is not run"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        program = Path(folder) / "program.mjs"
        program.write_text(text, encoding="utf-8")
        yield ["node", str(program)]
