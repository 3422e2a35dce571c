"""Where a program's place in the stream is kept over its restarts: a file, or whatever else does the same."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Kept:
    """What is kept: the name of this client, and the cursor of the last event that it has dealt with."""

    client_id: str
    cursor: str | None = None


class CursorStore(Protocol):
    """Keeps it. Both are called in the program's own loop, so they are to be quick."""

    def load(self) -> Kept | None:
        """Return what was saved last; None: nothing yet."""
        ...

    def save(self, kept: Kept) -> None:
        """Keep this instead."""
        ...


class FileStore:
    """A small JSON file, replaced in one step: whoever is killed while it is written finds the one before."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def load(self) -> Kept | None:
        """Return what the file holds; None if there is none. Raises ValueError if it holds something else."""
        try:
            said = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            said = None
        if not isinstance(said, dict) or not isinstance(said.get("client_id"), str):
            raise ValueError(f"{self._path} is no cursor store")
        return Kept(said["client_id"], said.get("cursor"))

    def save(self, kept: Kept) -> None:
        """Write the file anew."""
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        beside.write_text(json.dumps({"client_id": kept.client_id, "cursor": kept.cursor}), encoding="utf-8")
        beside.replace(self._path)
