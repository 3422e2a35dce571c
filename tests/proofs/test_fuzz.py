"""Any bytes are refused with a reason, or understood, in one way only: heads, commands, publishes, tokens, frames.

The corpus holds what something was learned by: it is tried, and it is what hypothesis begins with to make others.
`make prove` lets atheris look on, led by the lines that it reaches, with what its group of dependencies brings.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proofs.fuzzing import TARGETS, corpus_of
from proofs.proving import more, only_in_make_prove

SECONDS = 10
each_target = pytest.mark.parametrize("target", sorted(TARGETS))


@st.composite
def nearly(draw, target):
    """Bytes like some of the corpus: parts of two of them, with some bytes changed; or any."""
    known = st.sampled_from(corpus_of(target)) | st.binary(max_size=80)
    begin, end = draw(known), draw(known)
    data = bytearray(begin[: draw(st.integers(0, len(begin)))] + end[draw(st.integers(0, len(end))) :])
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), max_size=4)):
        if data:
            data[place % len(data)] = byte
    return bytes(data)


@each_target
def test_what_something_was_learned_by_is_read_as_it_should_be(target):
    for data in corpus_of(target):
        TARGETS[target](data)


@each_target
def test_what_is_nearly_like_that_is_refused_or_understood(target):
    @settings(max_examples=more(150, 3_000))
    @given(nearly(target))
    def holds(data):
        TARGETS[target](data)

    holds()


@only_in_make_prove
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not there: it has no wheel here")
@each_target
def test_who_is_led_by_the_lines_that_it_reaches_finds_no_fault(target, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "proofs.looking", target, str(SECONDS), str(tmp_path)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    found = [path.read_bytes() for path in tmp_path.glob("crash-*")]
    assert ran.returncode == 0, f"{found}\n{ran.stderr[-3000:]}"
    assert "Done " in ran.stderr
