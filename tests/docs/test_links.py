"""What the documentation points to is there, for who reads it here and for who reads it on a package index."""

import re
import subprocess
import sys

import pytest
from documents import PAGES, ROOT

TEXTS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "llms.txt"]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)")


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_every_link_leads_to_something_that_is_there(page):
    for path, anchor in LINK.findall(page.read_text()):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        assert not anchor or anchor.removeprefix("#") in anchors(target), path + anchor


@pytest.mark.parametrize("text", [ROOT / "README.md", ROOT / "llms.txt"], ids=lambda page: page.name)
def test_every_page_is_linked(text):
    linked = {(ROOT / path).resolve() for path, _ in LINK.findall(text.read_text())}
    assert {page for page in PAGES if page.parent.name == "docs"} <= linked


def test_what_a_package_index_shows_has_no_link_that_leads_nowhere_there():
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata", "readme"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "docs/protocol.md" in done.stdout
    assert not LINK.findall(done.stdout)
