"""The Go client's programs, built."""

import os
import signal
import subprocess
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from conformance.programs import missing, need
from daimon_email.testing import local_broker

__all__ = ["built", "local_broker"]

FOLDER = Path(__file__).parents[1]
AT_LEAST = "1.25"
FETCH_SECONDS = 300
BUILD_SECONDS = 300
SECONDS = 60


def go(*arguments, cwd=FOLDER, seconds=BUILD_SECONDS):
    """Run the go command; return how it ended."""
    return subprocess.run(["go", *arguments], cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A function that builds a package of the module, or one in another folder, and returns its program."""
    need("go", AT_LEAST)
    try:
        fetched = go("mod", "download", seconds=FETCH_SECONDS)
    except subprocess.TimeoutExpired:
        missing(f"go mod download did not end within {FETCH_SECONDS} s: the Go client is not tried")
    if fetched.returncode:
        missing(f"go mod download failed, so the Go client is not tried: {fetched.stderr.strip()}")

    def build(package, cwd=FOLDER):
        program = tmp_path_factory.mktemp("built") / "program"
        done = go("build", "-o", str(program), package, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return program

    return build


INTERRUPTED = """
package main

import (
	"context"
	"os"
	"os/signal"
)

func interrupted() (context.Context, func()) { return signal.NotifyContext(context.Background(), os.Interrupt) }
"""
"""Beside each program: a context that ends when it is to."""


@pytest.fixture(scope="session")
def program(built, tmp_path_factory):
    """A function that builds a program of these files in a module of its own."""

    def build(*texts):
        folder = tmp_path_factory.mktemp("printed")
        of_client = (FOLDER / "go.mod").read_text()
        name = "github.com/daimon-email/go-sdk"
        (folder / "go.mod").write_text(
            of_client.replace(f"module {name}", "module printed")
            + f"\nrequire {name} v0.0.0\n\nreplace {name} => {FOLDER}\n"
        )
        (folder / "go.sum").write_bytes((FOLDER / "go.sum").read_bytes())
        for number, text in enumerate((*texts, INTERRUPTED)):
            (folder / f"file{number}.go").write_text(text)
        return built(".", cwd=folder)

    return build


@pytest.fixture
def running(tmp_path):
    """A function that runs a program beside a block; at its end it is interrupted, and may not have failed."""
    return partial(_running, tmp_path)


@contextmanager
def _running(folder, program, url, key):
    environment = {"PATH": os.environ["PATH"], "DAIMON_WS_URL": url, "DAIMON_API_KEY": key, "HOME": str(folder)}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background it is ignored, by children, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [str(program)], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                _, said = process.communicate(timeout=SECONDS)
            finally:
                process.kill()
        assert process.returncode in {0, -signal.SIGINT}, said
