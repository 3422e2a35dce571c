"""A real browser: Debian's `chromium-headless-shell`, driven by playwright (`pip install --group browser`).

Where either is missing, what needs it is skipped, and says so; where `BROKER_TEST_BROWSER_REQUIRED` is set, it fails.
"""

import importlib.util
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

# Not /usr/bin/…: that is a shell script, which ends before its child does.
PLACES = ("/usr/lib/chromium/chromium-headless-shell", "/usr/lib/chromium/chromium")
REQUIRED = "BROKER_TEST_BROWSER_REQUIRED"
PATIENCE_MS = 60_000
"""A machine that has much to do takes its time to show a page."""


def _chromium() -> str:
    found = next((place for place in PLACES if Path(place).exists()), None)
    missing = []
    if found is None:
        missing.append("there is no Chromium on this machine (apt-get install chromium-headless-shell)")
    if importlib.util.find_spec("playwright") is None:
        missing.append("there is no playwright in this environment (pip install --group browser)")
    if missing:
        message = f"{', and '.join(missing)}: no page is opened in a browser"
        if os.environ.get(REQUIRED):
            pytest.fail(message)
        pytest.skip(message)
    return found or ""


@contextmanager
def opened_browser():
    executable = _chromium()
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def barriers():
    """Returns what keeps people from using a page as it is now, as axe finds it: the rule, and where."""

    def found_in(page):
        from axe_playwright_python.sync_playwright import Axe

        violations = Axe().run(page).response["violations"]
        return [(found["id"], node["html"][:120]) for found in violations for node in found["nodes"]]

    return found_in


@pytest.fixture(scope="module")
def browser():
    with opened_browser() as opened:
        yield opened


@pytest.fixture
def in_browser():
    """Runs a function with a page, in a thread: for async tests."""
    _chromium()

    def run(function):
        with opened_browser() as opened:
            return function(opened.new_context(ignore_https_errors=True).new_page())

    return lambda function: trio.to_thread.run_sync(run, function)


@pytest.fixture
def page(browser):
    """A page of its own, with nothing kept from others; ``page.said`` has what it wrote to its console."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    opened = context.new_page()
    opened.said = []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    yield opened
    context.close()


@pytest.fixture
def dashboard(page):
    """A page as wide as a desk; at the end nothing was refused by its policy, and nothing has failed."""
    page.set_viewport_size({"width": 1440, "height": 900})
    page.emulate_media(reduced_motion="reduce")
    yield page
    assert page.said == []
