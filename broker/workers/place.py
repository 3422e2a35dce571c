"""What a worker is told by its parent when it is started: which one it is, and what it was given."""

import os
from collections.abc import MutableMapping
from typing import Final

from msgspec import Struct, json

VARIABLE: Final = "BROKER_WORKER"


class Place(Struct, frozen=True):
    """One worker's place among those of its broker."""

    number: int
    """From 0 on."""
    workers: int
    directory: str
    """Where they find each other: a folder that nobody else may enter."""
    descriptors: list[int]
    """Of the sockets that it listens at."""
    parent: int
    """The process that started it."""


def told_to(place: Place) -> dict[str, str]:
    """Return the variables that tell a worker of its place."""
    return {VARIABLE: json.encode(place).decode()}


def take_place(environment: MutableMapping[str, str]) -> Place | None:
    """Return what this process was told as a worker; None: it is none. A process that it starts shall be none."""
    said = environment.pop(VARIABLE, None)
    place = None if said is None else json.decode(said, type=Place)
    return place if place is not None and place.parent == os.getppid() else None
