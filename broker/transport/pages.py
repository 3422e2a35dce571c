"""`/dashboard`: the broker's own pages, as they lie in `broker/dashboard/` (docs/dashboard.md).

They are read once, at import, and found by their whole names, so no path of a client's ever meets a file. They hold
nothing that is anybody's: what they show they ask for with a key that somebody types. What they may do in a browser is
said with each of them: scripts and styles of our own only, connections to us only, in nobody's frame, and text that
comes over the network cannot become markup.
"""

from pathlib import Path
from typing import Final

from ..broker import Broker
from ..errors import RequestError
from .request import Request
from .response import Headers, Response

_FOLDER: Final = Path(__file__).parent.parent / "dashboard"
_CONTENT_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final[Headers] = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
"""What a browser is told with each page, and with each part of one."""

_PAGES: Final = {"account.html": "/dashboard", "operator.html": "/dashboard/operator"}
_ANSWERS: Final = {
    _PAGES.get(file.name, f"/dashboard/{file.name}"): Response(
        200, file.read_bytes(), HEADERS, _CONTENT_TYPES[file.suffix]
    )
    for file in sorted(_FOLDER.iterdir())
    if file.suffix in _CONTENT_TYPES
} | {"/dashboard/": Response(308, headers=(("Location", "../dashboard"),))}
"""By the whole path that asks for it."""
PAGE_PATHS: Final = ("/dashboard", "/dashboard/{id}")


async def show_page(broker: Broker, request: Request) -> Response:
    """`GET /dashboard` and what belongs to it (PROTOCOL section 6). Raises `RequestError` (`not_found`)."""
    answer = _ANSWERS.get(request.path) if request.shows_pages else None
    if answer is None:
        raise RequestError("not_found", "There is no page here, or the dashboard is off: see [dashboard] enabled")
    return answer
