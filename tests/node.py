"""Node with packages of npm: `ws` for what the documentation shows in JavaScript, and others' readers of our documents.

The packages go into a directory of the checkout that is not under version control. Where there is no Node, the tests
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
WS = "ws@8"
WITHOUT_TALK = {"SCARF_ANALYTICS": "false", "REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
"""Nothing is told to the packages' makers."""
INSTALL_SECONDS = 120
RUN_SECONDS = 60


def _install(package: str) -> str | None:
    """What is missing, or None."""
    if not (shutil.which("node") and shutil.which("npm")):
        return "Node.js and npm are not installed"
    name, _, version = package.rpartition("@")
    installed = CACHE / "node_modules" / name / "package.json"
    if not (installed.is_file() and f'"version": "{version}' in installed.read_text(encoding="utf-8")):
        CACHE.mkdir(parents=True, exist_ok=True)
        quietly = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        command = ["npm", "install", *quietly, "--prefix", str(CACHE), package]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"`npm install {package}` did not end within {INSTALL_SECONDS} s"
        if done.returncode:
            return f"`npm install {package}` failed: {done.stderr.strip()}"
    return None


@contextmanager
def node_program(text: str, package: str = WS) -> Iterator[list[str]]:
    """The command that runs a module, which may import a package."""
    if missing := _install(package):
        message = f"{missing}: what needs it is not run"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        program = Path(folder) / "program.mjs"
        program.write_text(text, encoding="utf-8")
        yield ["node", str(program)]


def run_in_node(command: list[str], text: str) -> str:
    """Run a program to its end with a text to read, and return what it said."""
    done = subprocess.run(
        command,
        input=text,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
        env={**os.environ, **WITHOUT_TALK},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
