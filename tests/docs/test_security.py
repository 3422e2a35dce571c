"""What `SECURITY.md` promises is held by tests that are there, and each promise by one."""

import re

import pytest
from documents import ROOT

PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
ROWS = list(re.findall(r"^\| (.+) \|$", PAGE.partition("## What is promised")[2], re.MULTILINE))


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_test_that_is_named_is_there(path, name):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^(?:(?:async )?def {name}\(|{name} = |class {name}\b)", text, re.MULTILINE)


def test_every_promise_is_held_by_a_test():
    promises = [row for row in ROWS if not row.startswith(("promise |", "--"))]
    assert len(promises) > 25
    assert not [row for row in promises if "::" not in row.rpartition(" | ")[2]]
