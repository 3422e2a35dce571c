"""What clients in other languages need of a machine: found, or what needs it is skipped, aloud.

`python -m clients.conformance.programs NAME VERSION …` exits with 1 and says why where one is missing, or too old.
"""

import os
import re
import shutil
import subprocess
import sys
from typing import Final, NoReturn

REQUIRED: Final = "REQUIRE_CLIENTS"
"""In the environment: with 1 what is missing is a failure."""
_SAYS_VERSION: Final = {"go": "version"}
"""What makes a program say its version, if not --version."""
_SECONDS: Final = 60.0


def lacking(name: str, at_least: str) -> str | None:
    """Return what is wrong with the program of this name, None if it is there and not older."""
    found = shutil.which(name)
    if found is None:
        return f"{name} is not installed, {at_least} or newer is needed"
    command = [found, _SAYS_VERSION.get(name, "--version")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False).stdout.strip()
    number = re.search(r"\d+(\.\d+)*", said)
    if number is None or _numbers(number[0]) < _numbers(at_least):
        return f"{name} {at_least} or newer is needed, this is {said or 'none'}"
    return None


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def need(name: str, at_least: str) -> None:
    """Skip the test that needs this program where it is missing; fail it where clients are required."""
    if wrong := lacking(name, at_least):
        missing(wrong)


def missing(what: str) -> NoReturn:
    """Skip a test for want of something; fail it where clients are required."""
    import pytest

    if os.environ.get(REQUIRED) == "1":
        pytest.fail(what)
    pytest.skip(what)


def main(wanted: list[str]) -> int:
    """Say which of these names, each with its version, are missing."""
    wrong = [
        said for name, at_least in zip(wanted[::2], wanted[1::2], strict=True) if (said := lacking(name, at_least))
    ]
    for said in wrong:
        print(f"the client that needs it is not tried: {said}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
