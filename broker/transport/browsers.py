"""Which web pages may speak to the broker: `[browsers] origins`, and its own (PROTOCOL section 8; Fetch's CORS).

Pure. A browser names the page it acts for in `Origin`; who sends none is no browser. What is let in here is still to
show a credential: there are no cookies, so an origin alone opens nothing.
"""

from collections.abc import Collection
from typing import Final

from ..errors import RequestError
from .request import Request

PREFLIGHT_SECONDS: Final = 600
"""How long a browser may remember what a preflight answered."""
_REQUEST_HEADERS: Final = "Authorization, Content-Type, Last-Event-ID, Traceparent"
_EXPOSED_HEADERS: Final = "Retry-After"

Headers = tuple[tuple[str, str], ...]


def cross_origin_headers(request: Request, origins: Collection[str]) -> Headers:
    """Return what every answer to this request must carry; nothing if it comes from no browser, or from our own page.

    Raises `RequestError` (`forbidden`) for a page of an origin that is not listed.
    """
    header = request.header(b"origin")
    if header is None:
        return ()
    origin = header.decode("latin-1")
    if request.shows_pages and _is_own(origin, request):
        return ()
    if origin not in origins:
        raise RequestError("forbidden", "Pages of this Origin may not connect: [browsers] origins does not list it")
    return (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", _EXPOSED_HEADERS),
        ("Vary", "Origin"),
    )


def _is_own(origin: str, request: Request) -> bool:
    """Whether a page comes from where it asks. Who came by TLS was got by TLS; else a proxy may have ended it."""
    scheme, _, authority = origin.partition("://")
    host = request.header(b"host") or b""
    schemes = ("https",) if request.is_by_tls else ("http", "https")
    return scheme in schemes and authority.lower() == host.decode("latin-1").lower() != ""


def preflight_headers(request: Request, allowed: Collection[str]) -> Headers:
    """Return what an OPTIONS must be answered if it is a preflight, for a path with these methods."""
    if request.header(b"origin") is None or request.header(b"access-control-request-method") is None:
        return ()
    return (
        ("Access-Control-Allow-Methods", ", ".join(allowed)),
        ("Access-Control-Allow-Headers", _REQUEST_HEADERS),
        ("Access-Control-Max-Age", str(PREFLIGHT_SECONDS)),
    )
