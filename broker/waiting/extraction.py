"""The codes and links of a sign-up mail: candidates, the likeliest first (PROTOCOL section 11).

Pure. A stranger wrote the mail: what is looked at is bounded, every pattern is linear, and what comes out is a guess
for whoever asked, never a promise. Of HTML the tags are left out, but for where links lead to.
"""

import re
from collections.abc import Iterator
from html import unescape
from itertools import islice
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from .addresses import address_of
from .conditions import Mail

MAX_CANDIDATES: Final = 3
MAX_MATCHES: Final = 64
"""Of one text that are weighed."""
TEXT_CHARACTERS: Final = 4_096
"""Of a body that codes are looked for in."""
SOURCE_CHARACTERS: Final = 32_768
"""Of a body as it came, with its tags, that links are looked for in."""
MAX_LINK_CHARACTERS: Final = 2_048
_MAX_HIDDEN: Final = 16
_MAX_ENDING: Final = 8

_WORD: Final = re.compile(r"[\w.,:/@#%&=+-]+")
_CODE: Final = re.compile(r"(?:[A-Z]{1,3}-)?(\d{4,8}|\d{3}-\d{3}|(?=[A-Z]*\d)[A-Z0-9]{6,8})")
_HALF: Final = re.compile(r"\d{3}")
_NEAR_CODE: Final = re.compile(
    r"\b(?:code|codes|otp|pin|passcode|one-time|verification|verify|verifizierungscode|bestätigungscode|sicherheitscode"
    r"|código|codigo|codice|kode|token|confirm)\b"
)
_FAR_FROM_CODE: Final = re.compile(
    r"\b(?:order|invoice|phone|tel|zip|ticket|case|ref|reference|street|suite|box|account|copyright|year|total|amount)\b|[$€£©]"
)
_NEAR_CHARACTERS: Final = 64
_YEAR: Final = re.compile(r"(?:19|20)\d\d")
_LINK: Final = re.compile(rf"https?://[^\s\"'<>\\^`{{|}}]{{1,{MAX_LINK_CHARACTERS}}}", re.IGNORECASE)
_LIKELY_LINK: Final = re.compile(
    r"verif|confirm|activat|magic|sign-?in|log-?in|token|reset|invit|auth|validate|code=|welcome"
)
_UNLIKELY_LINK: Final = re.compile(
    r"unsubscribe|optout|opt-out|preferences|privacy|terms|support|help|facebook\.|twitter\.|linkedin\.|instagram\.|youtube\."
)
_OPENING: Final = {")": "(", "]": "["}
_ENDING: Final = frozenset(".,;:!?")
_EMPHASIS: Final = frozenset("*_")
_PICTURE: Final = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".css", ".woff", ".woff2", ".webp", ".ico", ".dtd")
_TAG: Final = re.compile(r"<[^<>]{0,4096}>")
_BLOCK: Final = re.compile(r"<(?:br|/p|/div|/td|/tr|/h[1-6]|/li)\b", re.IGNORECASE)


class Link(Struct, frozen=True):
    """Where a mail leads. ``same_site``: to the domain of its sender, or one below or above that."""

    url: str
    same_site: bool


class Extracted(Struct, frozen=True, omit_defaults=True):
    """What was asked for; of each at most three, the likeliest first."""

    code: list[str] | None = None
    link: list[Link] | None = None


def extract(mail: Mail, *, code: bool, link: bool) -> Extracted:
    """Return the codes, the links, or both that a mail may have been written for."""
    return Extracted(codes_of(mail) if code else None, links_of(mail) if link else None)


# --- codes -------------------------------------------------------------------


def codes_of(mail: Mail) -> list[str]:
    """Return what may be the code in a mail, the likeliest first; digits that are written in groups are joined."""
    scores: dict[str, int] = {}
    for text, bonus in ((mail.subject[:TEXT_CHARACTERS], 2), (_visible(mail.body), 0)):
        lowered = text.lower()
        if len(lowered) != len(text):  # a letter that is two in lower case: places would not fit
            lowered = text
        for start, end, found in islice(_codes_in(text), MAX_MATCHES):
            score = bonus + _likelihood(text, lowered, start, end, found)
            scores[found] = max(score, scores.get(found, -99))
    likely = sorted(scores, key=lambda found: -scores[found])
    return [found for found in likely if scores[found] > 0][:MAX_CANDIDATES]


def _codes_in(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield where something that looks like a code begins and ends, and what it is."""
    half = None
    for word in _WORD.finditer(text):
        bare = word[0].rstrip(".,:")
        start, end = word.start(), word.start() + len(bare)
        whole = _CODE.fullmatch(bare)
        if whole is not None:
            yield start, end, whole[1].replace("-", "")
        elif half is not None and half.end() + 1 == start and text[start - 1] == " " and _HALF.fullmatch(bare):
            yield half.start(), end, half[0] + bare
        half = word if _HALF.fullmatch(word[0]) else None


def _likelihood(text: str, lowered: str, start: int, end: int, found: str) -> int:
    before, after = lowered[max(0, start - _NEAR_CHARACTERS) : start], lowered[end : end + _NEAR_CHARACTERS]
    score = 1 + 3 * bool(_NEAR_CODE.search(before)) + 2 * bool(_NEAR_CODE.search(after))
    line_start, line_end = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    line = text[line_start : line_end if line_end >= 0 else len(text)]
    score += 3 * (len(line.strip()) <= end - start + 2)
    score += found.isdigit() and len(found) == 6
    score -= 3 * bool(_FAR_FROM_CODE.search(before[-24:]))
    score -= 4 * bool(_YEAR.fullmatch(found))
    return score


def _visible(source: str) -> str:
    """Return the start of what a reader of the mail sees."""
    source = source[:SOURCE_CHARACTERS]
    if "<" not in source or ">" not in source:
        return source[:TEXT_CHARACTERS]
    for tag in ("style", "script", "head"):
        source = _without(source, f"<{tag}", f"</{tag}>")
    return unescape(_TAG.sub(" ", _BLOCK.sub(lambda match: "\n" + match[0], source)))[:TEXT_CHARACTERS]


def _without(source: str, opening: str, closing: str) -> str:
    kept, position, lowered = [], 0, source.lower()
    for _ in range(_MAX_HIDDEN):
        start = lowered.find(opening, position)
        end = lowered.find(closing, start) if start >= 0 else -1
        if end < 0:
            break
        kept.append(source[position:start])
        position = end + len(closing)
    return "".join([*kept, source[position:]])


# --- links -------------------------------------------------------------------


def links_of(mail: Mail) -> list[Link]:
    """Return where a mail may want its reader to go, the likeliest first."""
    sender = address_of(mail.from_)
    site = "" if sender is None else sender.domain
    scores: dict[Link, int] = {}
    for match in islice(_LINK.finditer(mail.body[:SOURCE_CHARACTERS]), MAX_MATCHES):
        if match.end() == SOURCE_CHARACTERS < len(mail.body):
            break  # it was cut
        url = _ended(unescape(match[0]), mail.body[max(0, match.start() - 1) : match.start()])
        host = _host_of(url)
        if host is None or urlsplit(url).path.lower().endswith(_PICTURE):
            continue
        link, lowered = Link(url, _is_same_site(host, site)), url.lower()
        score = 2 * link.same_site + 3 * bool(_LIKELY_LINK.search(lowered)) - 6 * bool(_UNLIKELY_LINK.search(lowered))
        scores.setdefault(link, score + (len(urlsplit(url).query) > 8))
    likely = sorted(scores, key=lambda link: -scores[link])
    return [link for link in likely if scores[link] >= 0][:MAX_CANDIDATES]


def _ended(text: str, before: str) -> str:
    """Return a link without what ends its sentence, or closes what was opened before it: a bracket, an emphasis."""
    unopened = {closing: text.count(closing) - text.count(_OPENING[closing]) for closing in _OPENING}
    for _ in range(_MAX_ENDING):
        last = text[-1]
        if unopened.get(last, 0) > 0:
            unopened[last] -= 1
        elif last not in _ENDING and not (last == before and last in _EMPHASIS):
            break
        text = text[:-1]
    return text


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_same_site(host: str, site: str) -> bool:
    shorter, longer = sorted((host, site), key=len)
    return "." in shorter and (longer == shorter or longer.endswith(f".{shorter}"))
