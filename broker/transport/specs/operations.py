"""What is said of a method of a route: the form of it, and what most of them may be refused with."""

from typing import Final, Literal

from msgspec import Struct

from .parameters import Parameter
from .schemas import Json

Who = Literal["all", "key", "key or token", "operator"]


class Operation(Struct, frozen=True):
    """What a method of a route is for, and all that it takes, answers and refuses.

    ``result`` is the schema of what stands in `result`; ``answers`` are answers of another form, by their status.
    """

    id: str
    summary: str
    who: Who
    scope: str = ""
    parameters: dict[str, Parameter] = {}
    bodies: dict[str, Json] = {}
    """By content type."""
    needs_body: bool = True
    result: Json | None = None
    answers: dict[int, Json] = {}
    errors: tuple[str, ...] = ()
    """Codes, beside those of every operation."""
    by_handler: bool = False
    """Whether a handler may do it: errors have codes of its own, and what it did once it answers again."""
    """Whether a command's handler may refuse it, with any code and its status."""


ALWAYS: Final = ("bad_request", "forbidden", "timeout_reading", "head_too_large", "internal", "version_not_supported")
"""What any request may be refused with: for its head, for the page it comes from, for a fault of ours."""
KEYED: Final = ("unauthorized", "rate_limited", "unavailable", "draining")
BODIED: Final = ("invalid_json", "invalid_params", "too_large", "unsupported_media_type")
