"""The pages of the documentation, and the fenced blocks in them.

A block's first line says in which language it is, and in a second word how it is run:

    python, bash        a program that ends by itself; the bash blocks of a page are one session
    js client           a client that comes back by cursor; it runs until it is ended
    python client       a program of the client library, with `await` at its top (clients/python/tests/test_readme.py)
    ts client           the same in TypeScript (clients/typescript/tests/test_printed.py)
    go client           a program in Go, or what stands in its main (clients/go/tests/test_printed.py)
    html client         a page with a client library (clients/typescript/tests/test_browser.py)
    toml, json          is loaded
    nginx, caddyfile    is what a proxy runs with, before a broker (tests/transport/test_behind_proxies.py)
    … excerpt           a part of something, not run by itself
    text                a drawing, or what something prints
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLIENTS = [ROOT / "clients" / name / "README.md" for name in ("", "python", "typescript", "go")]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *CLIENTS]
MANNERS = {
    "bash": {"", "excerpt"},
    "python": {"", "client", "excerpt"},
    "js": {"client", "excerpt"},
    "ts": {"client", "excerpt"},
    "go": {"client", "excerpt"},
    "html": {"client"},
    "toml": {"", "excerpt"},
    "json": {"", "excerpt"},
    "nginx": {""},
    "caddyfile": {""},
    "text": {""},
}
_BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, in which language it is, and how it is run."""

    page: Path
    line: int
    language: str
    manner: str
    text: str

    def __str__(self):
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        language, _, manner = match["info"].strip().partition(" ")
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, language, manner, match["text"]))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def blocks(language: str, manner: str = "", page: Path | None = None) -> list[Block]:
    """All blocks of a language that are run in a manner, of one page or of all."""
    return [b for b in BLOCKS if (b.language, b.manner) == (language, manner) and page in (None, b.page)]
