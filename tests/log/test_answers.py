"""Answers of commands as rows: kept, replaced, forgotten, read in the order in which they were kept."""

import json
from contextlib import closing

import pytest

from broker.errors import RequestError
from broker.log.database import open_database
from broker.log.engines import Answer, Stored
from broker.log.engines.answers import (
    ANSWERS,
    PUBLISH,
    AnswerKey,
    KeptAnswer,
    forget_answers,
    publish_answer,
    read_answers,
    write_answers,
)


@pytest.fixture
def connection(tmp_path):
    with closing(open_database(str(tmp_path / "broker.db"), "normal", (ANSWERS,)).connection) as connection:
        yield connection


def answer(name, account_id="a", kind="", result=b"{}", error=None):
    return KeptAnswer(AnswerKey(account_id, kind, ("key", "agent", name)), b"digest", 7.5, result, error)


def kept(connection, after=0, most=9):
    return [each for _, each in read_answers(connection, after, most)]


def test_answers_are_read_as_they_were_kept_page_by_page_in_their_order(connection):
    refused = RequestError("no_such_message", "There is none", retry_after_ms=5)
    answers = [answer("c"), answer("a", result=b'{"sent":true}'), answer("b", error=refused), answer("a", "other")]
    write_answers(connection, answers[:3])
    write_answers(connection, answers[3:])
    first = read_answers(connection, 0, 2)
    assert [each for _, each in first] == answers[:2]
    third, last = kept(connection, first[-1][0])
    assert last == answers[3]
    error = third.error
    assert (error.code, error.message, error.retry_after_ms) == ("no_such_message", "There is none", 5)
    assert kept(connection, read_answers(connection, 0, 9)[-1][0]) == []


def test_the_answer_of_a_publish_says_of_each_event_whether_it_was_there_before():
    stored = [Stored("e1", 7, "c.", duplicate=True), Stored("e2", 9, "c.", duplicate=False)]
    made = publish_answer("a", Answer(("key", "agent", "r1"), b"digest"), stored, 7.5)
    assert made.key == AnswerKey("a", PUBLISH, ("key", "agent", "r1"))
    assert (made.digest, made.ended_at, made.error) == (b"digest", 7.5, None)
    assert json.loads(made.result) == {
        "events": [
            {"event_id": "e1", "cursor": "c.7", "duplicate": True},
            {"event_id": "e2", "cursor": "c.9"},
        ]
    }


def test_an_answer_that_is_kept_anew_takes_the_place_of_the_old_one_and_no_others(connection):
    write_answers(connection, [answer("a"), answer("a", kind="once"), answer("a", "other"), answer("b")])
    write_answers(connection, [answer("a", result=b'"new"')])
    expected = [answer("a", kind="once"), answer("a", "other"), answer("b"), answer("a", result=b'"new"')]
    assert kept(connection) == expected


def test_answers_are_forgotten_by_all_that_they_are_known_by(connection):
    others = [answer("a", kind="once"), answer("a", "other"), answer("b")]
    write_answers(connection, [answer("a"), *others])
    forget_answers(connection, [answer("a").key, answer("none").key])
    assert kept(connection) == others
