"""Processes that do not outlive the one that started them, however that ends, where there is prctl(2) (Linux)."""

import os
import sys
from collections.abc import Sequence
from typing import Final

_TETHER: Final = """
import ctypes, os, signal, sys
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl:
    prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Asks the kernel for SIGTERM at the end of its parent, looks whether that has ended, and becomes the program."""


def tethered(program: Sequence[str]) -> list[str]:
    """Return a command that runs a program (its path, and what it is given), which ends when this process does."""
    return [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *program]
