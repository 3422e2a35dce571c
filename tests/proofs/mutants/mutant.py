"""One small mistake in the broker, named by the promise that it breaks."""

from dataclasses import dataclass

from proofs.mutations import Mutation


@dataclass(frozen=True)
class Mutant(Mutation):
    """A mistake that tests from near are to find.

    Args:
        same: why nobody could tell it from the broker; "" where somebody must.
    """

    same: str = ""


def of(file: str, tests: str, *made: tuple[str, str, str]) -> list[Mutant]:
    """Return mistakes in one file: of each the promise, what stands there, and what is wrong."""
    return [Mutant(file, old, new, promise, tests) for promise, old, new in made]
