"""What the tests of the dashboard have in common: a broker to look at, and what people do with the page."""

import io
import json
import urllib.request
from contextlib import contextmanager

from processes import KEY, serving

from broker.keys import hash_key

SMALL = "dm_live_small"
"""Of an account that may have one connection."""
CONFIG = f"""
[[accounts]]
id = "acct_test"
tier = "growth"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
scopes = ["subscribe", "command", "publish", "webhooks"]
[[accounts]]
id = "acct_small"
tier = "free"
[[accounts.keys]]
id = "key_small"
sha256 = "{hash_key(SMALL)}"
"""
INBOX = "inbox_sales"
GUARD_SECONDS = 600
"""How long one broker may be needed: all tests of a module look at the same."""


def expect(locator):
    """Playwright's, imported only where there is one."""
    from playwright.sync_api import expect

    return expect(locator)


class Broker:
    """A running broker, asked over HTTP with the account's key."""

    def __init__(self, url, process=None):
        self.url = url
        self.process = process

    def ask(self, method, path, body=None, *, key=KEY):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Authorization": f"Bearer {key}"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer).get("result")

    def publish(self, *events):
        return self.ask("POST", "/v1/events", list(events))["events"]

    def connections(self):
        return self.ask("GET", "/v1/connections")["connections"]

    def cut(self):
        """End every connection."""
        for connection in self.connections():
            self.ask("DELETE", f"/v1/connections/{connection['connection_id']}")


def mail(subject, *, inbox=INBOX, **fields):
    message = {"message_id": "msg_1", "from": "Ada <ada@example.com>", "to": ["sales@example.com"], "subject": subject}
    return {"type": "message.received", "inbox_id": inbox, "payload": {"message": message | fields}}


@contextmanager
def broker_with(tmp_path, more="", *arguments):
    """A running broker with the account above."""
    path = tmp_path / "broker.toml"
    path.write_text(CONFIG + more)
    with serving("--config", path, *arguments, guard_seconds=GUARD_SECONDS) as (process, url):
        yield Broker(url, process)


def in_few_colours(png):
    """A picture in a third of its bytes."""
    from PIL import Image

    smaller = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture = picture.quantize(200, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    picture.save(smaller, "PNG", optimize=True)
    return smaller.getvalue()


def log_in(page, broker, *, key=KEY, look_only=False):
    page.goto(f"{broker.url}/dashboard")
    page.get_by_label("Account key").fill(key)
    if look_only:
        page.get_by_label("Look only").check()
    page.get_by_role("button", name="Connect").click()
    in_state(page, "live")


def in_state(page, state):
    page.locator(f"#state[data-state={state}]").wait_for()


def row(page, text):
    return page.get_by_role("option").filter(has_text=text)


def choose(page, text):
    """Click the newest event with a text in it: again, if others came and it went from under the pointer."""
    chosen = page.locator("[role=option][aria-selected=true]").filter(has_text=text)
    row(page, text).first.click()
    while not chosen.count():
        row(page, text).first.click()


def typed(page, label, key):
    """Log in by keyboard alone: the page's first field takes what is typed once it has the focus."""
    expect(page.get_by_label(label)).to_be_focused()
    page.keyboard.type(key)
    page.keyboard.press("Enter")
