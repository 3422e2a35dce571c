"""Answers as rows of a log on disk: what became of commands that may be sent again. For threads.

A publish's answer is written in its events' own transaction; a handler's before it is told.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from ...errors import RequestError
from ...protocol.messages import Published, encode
from ..database import Room
from ..engines import Answer, Stored

ANSWERS: Final = Room(
    "answers",
    (
        (
            "CREATE TABLE answers (number INTEGER PRIMARY KEY, account TEXT NOT NULL, kind TEXT NOT NULL,"
            " one TEXT NOT NULL, two TEXT NOT NULL, three TEXT NOT NULL, digest BLOB NOT NULL, ended_at REAL NOT NULL,"
            " result BLOB NOT NULL, code TEXT, message TEXT, retry_after_ms INTEGER) STRICT",
            "CREATE UNIQUE INDEX answers_by_identity ON answers (account, kind, one, two, three)",
        ),
    ),
)
PUBLISH: Final = ""
"""The kind of answers that are known by their `request_id`."""

_INSERT: Final = (
    "INSERT OR REPLACE INTO answers (account, kind, one, two, three, digest, ended_at, result, code, message,"
    " retry_after_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_DELETE: Final = "DELETE FROM answers WHERE account = ? AND kind = ? AND one = ? AND two = ? AND three = ?"


class AnswerKey(Struct, frozen=True):
    """Which answer it is: of an account, of a kind of identities, with this identity."""

    account_id: str
    kind: str
    identity: tuple[str, str, str]

    @property
    def columns(self) -> tuple[str, str, str, str, str]:
        """The same as the first columns of a row."""
        return (self.account_id, self.kind, *self.identity)


class KeptAnswer(Struct, frozen=True):
    """What became of a command: ``result`` is JSON, or there is an ``error``. ``ended_at`` is seconds since 1970."""

    key: AnswerKey
    digest: bytes
    ended_at: float
    result: bytes
    error: RequestError | None = None


def publish_answer(account_id: str, answer: Answer, stored: Sequence[Stored], now: float) -> KeptAnswer:
    """Return the answer to a publish, as its client gets it (PROTOCOL section 4)."""
    published = [Published(item.event_id, item.cursor, item.duplicate) for item in stored]
    key = AnswerKey(account_id, PUBLISH, answer.identity)
    return KeptAnswer(key, answer.digest, now, b'{"events":%b}' % encode(published))


def write_answers(connection: sqlite3.Connection, answers: Sequence[KeptAnswer]) -> list[None]:
    """Keep answers; one that is there already is replaced."""
    connection.executemany(_INSERT, map(_row, answers))
    return [None] * len(answers)


def _row(answer: KeptAnswer) -> tuple[object, ...]:
    error = answer.error
    refusal = (None, None, None) if error is None else (error.code, error.message, error.retry_after_ms)
    return (*answer.key.columns, answer.digest, answer.ended_at, answer.result, *refusal)


def forget_answers(connection: sqlite3.Connection, keys: Sequence[AnswerKey]) -> list[None]:
    """Keep some answers no longer."""
    connection.executemany(_DELETE, [key.columns for key in keys])
    return [None] * len(keys)


def read_answers(connection: sqlite3.Connection, after: int, most: int) -> list[tuple[int, KeptAnswer]]:
    """Return the next answers, each with its number, in the order in which they were kept."""
    rows = connection.execute(
        "SELECT number, account, kind, one, two, three, digest, ended_at, result, code, message, retry_after_ms"
        " FROM answers WHERE number > ? ORDER BY number LIMIT ?",
        (after, most),
    )
    return [(row[0], _answer(row)) for row in rows]


def _answer(row: tuple[object, ...]) -> KeptAnswer:
    _, account_id, kind, one, two, three, digest, ended_at, result, code, message, retry_after_ms = row
    error = None if code is None else RequestError(code, message, retry_after_ms=retry_after_ms)  # type: ignore[arg-type]
    return KeptAnswer(AnswerKey(account_id, kind, (one, two, three)), digest, ended_at, result, error)  # type: ignore[arg-type]
