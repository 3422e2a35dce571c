"""The list of mistakes that `make mutants-end-to-end` makes: each has its place in the source, and leaves it Python.

Not in `make test`: who changes a line that a mistake is made in is not to be stopped by it.
"""

import ast

import pytest
from proofs.mutating import ROOT, misplaced
from proofs.mutations import MUTATIONS
from proofs.proving import only_in_make_prove

MOST_MISPLACED = 2


@only_in_make_prove
def test_nearly_every_mistake_has_its_place():
    lost = [f"{mutation.file}: {mutation.promise}" for mutation in MUTATIONS if misplaced(mutation)]
    assert len(lost) <= MOST_MISPLACED, lost


@pytest.mark.parametrize("file", sorted({mutation.file for mutation in MUTATIONS}))
def test_a_mistake_leaves_python_and_names_tests_that_are_there(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    for mutation in MUTATIONS:
        if mutation.file == file:
            ast.parse(text.replace(mutation.old, mutation.new))
            assert all((ROOT / path.partition("::")[0]).exists() for path in mutation.tests.split())
