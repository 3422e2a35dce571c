"""The list of mutants does not rot: each can still be made, and names tests that there are."""

from pathlib import Path

import pytest
from proofs.mutants.everything import MUTANTS, WINGS
from proofs.mutants.mutant import Mutant
from proofs.mutants.running import ROOT, applies
from proofs.mutating import misplaced
from proofs.mutations import MUTATIONS

each_wing = pytest.mark.parametrize("wing", sorted(WINGS))


@each_wing
def test_each_mutant_changes_what_stands_in_the_source_once(wing: str) -> None:
    assert [mutant.promise for mutant in WINGS[wing] if not applies(mutant)] == []


@each_wing
def test_each_mutant_is_still_python(wing: str) -> None:
    for mutant in WINGS[wing]:
        compile((ROOT / mutant.file).read_text().replace(mutant.old, mutant.new), mutant.file, "exec")


@each_wing
def test_each_mutant_names_tests_that_there_are(wing: str) -> None:
    for mutant in WINGS[wing]:
        assert mutant.tests, mutant.promise
        for path, _, test in (named.partition("::") for named in mutant.tests.split()):
            source = (ROOT / path).read_text()
            assert f"def {test.partition('[')[0]}(" in source if test else "def test_" in source, mutant.promise


@each_wing
def test_each_mutant_is_named_by_a_promise_of_its_own(wing: str) -> None:
    promises = [mutant.promise for mutant in WINGS[wing]]
    assert sorted(promises) == sorted(set(promises))
    assert [promise for promise in promises if len(promise.split()) < 4 or promise.endswith(".")] == []


def test_every_wing_is_in_the_list_and_there_are_many_mutants() -> None:
    modules = {path.stem for path in (Path(__file__).parent / "mutants").glob("*.py")}
    assert modules - set(WINGS) == {"mutant", "everything", "running"}
    assert len(MUTANTS) == sum(map(len, WINGS.values()))


def test_two_mutants_are_never_the_same() -> None:
    made: set[tuple[str, str]] = set()
    for mutant in MUTANTS:
        source = (ROOT / mutant.file).read_text().replace(mutant.old, mutant.new)
        assert (mutant.file, source) not in made, mutant.promise
        made.add((mutant.file, source))


def test_a_mutant_that_nobody_can_tell_says_why() -> None:
    equivalent: list[Mutant] = [mutant for mutant in MUTANTS if mutant.same]
    assert [mutant.promise for mutant in equivalent if len(mutant.same.split()) < 5] == []


def test_each_mutation_that_is_for_the_state_machine_changes_what_stands_in_the_source_once() -> None:
    assert [mutation.promise for mutation in MUTATIONS if misplaced(mutation)] == []
