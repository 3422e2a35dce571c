"""The broker as a process of its own, as its users start it."""

import os
import subprocess
import sys
from contextlib import contextmanager

KEY = "dm_live_test_of_the_command_line"
GUARD_SECONDS = 30
COMMAND = [sys.executable, "-m", "broker"]


@contextmanager
def process(*arguments, **options):
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "BROKER_KEY": KEY, **options},
    ) as started:
        try:
            yield started
        finally:
            started.kill()
