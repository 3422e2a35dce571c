"""What only `make prove` runs: the same proofs, longer."""

import os

import pytest

PROVING = os.environ.get("BROKER_PROVE") == "1"
only_in_make_prove = pytest.mark.skipif(not PROVING, reason="takes long: `make prove` runs it")


def more(usually: int, when_proving: int) -> int:
    """How many times a proof is tried."""
    return when_proving if PROVING else usually
