"""What the proofs share: a table of what hostile clients cost, at the end of `make prove`."""

import pytest
from proofs.proving import PROVING

HEAD = ("peak KiB", "work ms", "wait ms", "left KiB")
_lines: list[tuple[str, list[float]]] = []


@pytest.fixture
def costs():
    """Call it with what was done, bytes at the peak, seconds of work, seconds that a neighbour waited, bytes left."""

    def note(does, peak, work, wait, left):
        _lines.append((does, [peak / 1024, work * 1000, wait * 1000, left / 1024]))

    return note


def pytest_terminal_summary(terminalreporter):
    """Print the table."""
    if PROVING and _lines:
        terminalreporter.section("what hostile clients cost")
        terminalreporter.write_line(f"{'':80}" + "".join(f"{name:>10}" for name in HEAD))
        for does, figures in _lines:
            terminalreporter.write_line(f"{does[:80]:80}" + "".join(f"{figure:10,.1f}" for figure in figures))
