"""What is said in the log: a sentence to who formats sentences, fields to who wants them."""

import logging

import pytest

from broker.logline import LogLine


def test_it_is_a_sentence_with_its_fields_to_every_formatter():
    line = LogLine("connection ended", connection_id="conn_1", commands=12_345, seconds=0.25, client_id=None)
    record = logging.LogRecord("broker", logging.INFO, "", 0, line, None, None)
    said = logging.Formatter("%(levelname)s %(message)s").format(record)
    assert said == "INFO connection ended: connection_id conn_1, commands 12345, seconds 0.25"


def test_its_fields_are_there_for_who_wants_them_without_those_that_are_not_known():
    line = LogLine("connection ended", connection_id="conn_1", code=None, gaps=0)
    assert (line.what, dict(line.fields)) == ("connection ended", {"connection_id": "conn_1", "gaps": 0})


@pytest.mark.parametrize("words", ["a b", "x, admin yes", "x\nINFO all is well", "\x1b[2J", "é", ""])
def test_words_that_might_look_like_something_else_stand_in_quotes_on_one_line(words):
    said = str(LogLine("said", by=words))
    assert said == f"said: by {words!a}"
    assert said.isprintable()


def test_without_fields_it_is_what_happened():
    assert str(LogLine("nothing happened")) == "nothing happened"
