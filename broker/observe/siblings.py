"""The other workers of a broker: each answers for itself what it is asked by one of them, at a socket file of its own.

Whoever is asked for all of the broker asks them at once, and waits for a second at most: who does not answer by then is
left out. The folder of the files is the parent's, and nobody else may enter it: who comes there is a sibling.
"""

import os
from collections.abc import Mapping
from typing import Final, Literal

import trio
from msgspec import Struct, json

ANSWER_SECONDS: Final = 1.0
MAX_ANSWER_BYTES: Final = 16_777_216
_READ_BYTES: Final = 65_536
_LENGTH_BYTES: Final = 8

About = Literal["metrics", "connections", "close", "live", "chosen", "connection", "tasks"]


class Question(Struct, frozen=True):
    """What a worker asks another: about what, of which account (None: of any), and what its own client asked for."""

    about: About
    account_id: str | None = None
    query: Mapping[str, str] = {}


class Siblings:
    """The workers beside one, by the folder in which they are found."""

    def __init__(self, directory: str, number: int, workers: int) -> None:
        self._directory = directory
        self._number = number
        self._workers = workers

    @property
    def path(self) -> str:
        """Where this worker is asked."""
        return self._path_of(self._number)

    def _path_of(self, number: int) -> str:
        return os.path.join(self._directory, f"worker-{number}.sock")

    async def ask(self, question: Question) -> list[bytes]:
        """Return what the others answer, in no order; those who do not in time are left out."""
        answers: list[bytes] = []
        said = json.encode(question)

        async def ask_one(path: str) -> None:
            answer = await _ask(path, said)
            if answer is not None:
                answers.append(answer)

        with trio.move_on_after(ANSWER_SECONDS):
            async with trio.open_nursery() as nursery:
                for number in range(self._workers):
                    if number != self._number:
                        nursery.start_soon(ask_one, self._path_of(number))
        return answers


async def _ask(path: str, said: bytes) -> bytes | None:
    """Return one's answer; None: there is none."""
    try:
        stream = await trio.open_unix_socket(path)
        async with stream:
            await stream.send_all(said)
            await stream.send_eof()
            received = await read_to_end(stream, MAX_ANSWER_BYTES)
    except (OSError, trio.BrokenResourceError):
        return None
    whole = len(received) >= _LENGTH_BYTES and int.from_bytes(received[:_LENGTH_BYTES]) == len(received) - _LENGTH_BYTES
    return bytes(received[_LENGTH_BYTES:]) if whole else None


async def read_to_end(stream: trio.abc.ReceiveStream, max_bytes: int) -> bytearray:
    """Return what comes, up to so many bytes and one read."""
    received = bytearray()
    while len(received) <= max_bytes and (data := await stream.receive_some(_READ_BYTES)):
        received += data
    return received


def framed(answer: bytes) -> bytes:
    """Return an answer as it is sent: with its length, so that a part is not taken for the whole."""
    return len(answer).to_bytes(_LENGTH_BYTES) + answer
