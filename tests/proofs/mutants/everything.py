"""All mutants, wing by wing."""

from proofs.mutants import fanout
from proofs.mutants.mutant import Mutant

WINGS: dict[str, list[Mutant]] = {
    "fanout": fanout.MUTANTS,
}
"""Each in a module of its own."""

MUTANTS: list[Mutant] = [mutant for wing in WINGS.values() for mutant in wing]
