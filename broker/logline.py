"""What is said in the log: what happened, and its fields. Whoever formats it, has either a sentence or the fields.

Pure. Messages of `logging` may be any object: a `LogLine` is a sentence to every formatter (`str`), and `fields` to one
that wants them (``record.msg.fields``). No key, token or payload is ever a field.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:@/+-]+")


class LogLine:
    """``what`` happened, always in the same words, and what is known of it; a field that is None is left out."""

    __slots__ = ("fields", "what")

    def __init__(self, what: str, **fields: str | float | None) -> None:
        self.what = what
        self.fields: Mapping[str, Any] = {name: value for name, value in fields.items() if value is not None}

    def __str__(self) -> str:
        named = ", ".join(f"{name} {_shown(value)}" for name, value in self.fields.items())
        return f"{self.what}: {named}" if named else self.what


def _shown(value: str | float) -> str:
    """Return a value on one line: what a client may have chosen looks like nothing else."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else ascii(value)
    return str(value)
