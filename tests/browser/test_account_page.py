"""The page of an account in a real browser: what its events, its connection and its commands look like.

Rows are virtual: what is asserted are counters, and rows that are on the screen. No test waits by a function in the
page: that would need `eval`, which the policy of the page forbids.
"""

import io
import json
import os
import re
import struct
import urllib.request
from contextlib import contextmanager

import pytest
from documents import ROOT
from processes import KEY, process, serving
from traffic import events_of_five_minutes

from broker.keys import hash_key

PICTURE = ROOT / "docs" / "dashboard.png"
PICTURE_SIZE = (1440, 900)
CONFIG = f"""
[[accounts]]
id = "acct_test"
tier = "growth"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
"""
INBOX = "inbox_sales"


def expect(locator):
    from playwright.sync_api import expect

    return expect(locator)


class Broker:
    """A running broker, asked over HTTP with the account's key."""

    def __init__(self, url):
        self.url = url

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Authorization": f"Bearer {KEY}"}, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
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
def broker_with(tmp_path, more=""):
    path = tmp_path / "broker.toml"
    path.write_text(CONFIG + more)
    with serving("--config", path) as (_, url):
        yield Broker(url)


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """A broker whose window has 50 events."""
    more = "[replay]\nmax_events_per_account = 50\n"
    with broker_with(tmp_path_factory.mktemp("broker"), more) as running:
        yield running


@pytest.fixture
def page(page):
    page.set_viewport_size({"width": 1440, "height": 900})
    page.set_default_timeout(10_000)
    page.emulate_media(reduced_motion="reduce")
    yield page
    assert page.said == []  # nothing was refused by the policy, nothing failed, no token stands in the console


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


# --- what comes --------------------------------------------------------------


def test_who_logs_in_sees_what_the_window_has_and_then_what_comes(page, broker):
    broker.publish(mail("from before"))
    log_in(page, broker)
    row(page, "from before").first.wait_for()
    broker.publish(mail("and from now"), {"type": "account.upgraded", "payload": {"tier": "growth"}})
    row(page, "and from now").wait_for()
    row(page, "account.upgraded").first.wait_for()
    expect(page.locator("#account")).to_have_text("acct_test")


def test_an_event_is_opened_with_its_mail_and_its_payload(page, broker):
    log_in(page, broker)
    [published] = broker.publish(
        mail("Contract, second draft", body="Dear agent,\r\nsee below", labels=["inbox", "unread"])
    )
    row(page, "Contract, second draft").first.click()
    pane = page.locator("#pane-event")
    expect(pane.locator(".body")).to_have_text("Dear agent,\nsee below")
    expect(pane.locator(".labels span")).to_have_text(["inbox", "unread"])
    expect(pane).to_contain_text(published["event_id"])
    expect(pane.locator("pre")).to_contain_text('"from": "Ada <ada@example.com>"')


def test_text_that_looks_like_markup_is_text(page, broker):
    log_in(page, broker)
    hostile = "<img src=x onerror=alert(1)>"
    broker.publish(mail(hostile, **{"from": "<b>Ada</b>", "body": "<script>alert(2)</script>", "labels": [hostile]}))
    row(page, hostile).first.click()
    pane = page.locator("#pane-event")
    expect(pane.locator(".subject")).to_have_text(hostile)
    expect(pane.locator(".body")).to_have_text("<script>alert(2)</script>")
    assert page.locator("#app :is(img, script, b:not(.answer b))").count() == 0


# --- pause, gap, replay ------------------------------------------------------


def test_what_comes_in_a_pause_follows_when_it_is_resumed(page, broker):
    log_in(page, broker)
    page.get_by_role("button", name="Pause").click()
    in_state(page, "paused")
    expect(page.locator("#state-text")).to_contain_text("kept for up to")
    broker.publish(mail("while it was paused"))
    page.get_by_role("button", name="Resume").click()
    in_state(page, "live")
    expect(row(page, "while it was paused")).to_have_count(1)
    row(page, "resumed: 1 event that came meanwhile").wait_for()
    expect(page.locator("#missed")).to_be_hidden()


def test_what_left_the_window_in_a_pause_is_said_and_counted(page, broker):
    log_in(page, broker)
    page.get_by_role("button", name="Pause").click()
    in_state(page, "paused")
    # An event of the account comes in the pause, with a cursor ahead of what the inboxes owe.
    broker.publish({"type": "account.upgraded", "payload": {"tier": "growth"}})
    broker.publish(*[mail(f"number {number}") for number in range(80)])
    page.get_by_role("button", name="Resume").click()
    row(page, "number 79").wait_for()
    missed = page.locator("#n-missed")
    expect(missed).to_have_text("30")  # of 81 events the window has 50, and the account's was here in the pause
    missed.click()
    page.get_by_text("gap: 30 events left the window").wait_for()
    expect(page.locator("#alerts")).to_contain_text("30 events missed")


def test_a_replay_shows_again_what_the_window_has(page, broker):
    log_in(page, broker)
    broker.publish(*[mail(f"again {number}") for number in range(60)])
    row(page, "again 59").wait_for()
    page.get_by_label("Replay from", exact=True).select_option("30 s ago")
    page.get_by_role("button", name="Replay").click()
    row(page, "again 59").wait_for()
    page.get_by_label("Search the feed").fill("replay of")
    row(page, "replay of 50 events").wait_for()
    expect(page.locator("#missed")).to_be_hidden()


# --- commands ----------------------------------------------------------------


def test_a_command_is_given_and_answered_with_its_time(page, broker):
    log_in(page, broker)
    page.get_by_role("tab", name="Send").click()
    page.get_by_role("button", name="Send").click()
    answer = page.locator(".answer").first
    expect(answer).to_contain_text(re.compile(r"publish done after (<1|\d+) ms"))
    row(page, "A test from the dashboard").first.wait_for()
    page.get_by_label("Do", exact=True).select_option("send_email")
    page.get_by_label("Command", exact=True).press("Control+Enter")
    expect(page.locator(".answer").first).to_contain_text("send_email unknown_action")


def test_an_event_is_published_again(page, broker):
    log_in(page, broker)
    broker.publish(mail("once more", body=12345678901234567890))
    row(page, "once more").first.click()
    page.get_by_role("button", name="Publish again").click()
    expect(page.get_by_label("Command", exact=True)).to_have_value(re.compile("12345678901234567890"))
    page.get_by_role("button", name="Send").click()
    expect(row(page, "once more")).to_have_count(2)


# --- the connection ----------------------------------------------------------


def test_a_connection_that_is_lost_comes_back_with_what_was_missed(page, broker):
    log_in(page, broker)
    broker.cut()
    broker.publish(mail("while it was away"))
    row(page, "back again: 1 event that came meanwhile").wait_for()
    row(page, "while it was away").wait_for()
    in_state(page, "live")
    expect(page.locator("#missed")).to_be_hidden()


def test_a_key_that_is_none_is_refused_in_the_brokers_words(page, broker):
    page.goto(f"{broker.url}/dashboard")
    page.get_by_label("Account key").fill("dm_live_nobody")
    page.get_by_role("button", name="Connect").click()
    expect(page.locator("#login-error")).not_to_be_empty()
    expect(page.locator("#app")).to_be_hidden()
    page.get_by_label("Account key").fill(KEY)
    page.get_by_role("button", name="Connect").click()
    in_state(page, "live")
    page.said[:] = [line for line in page.said if "401" not in line]  # the browser's own word for it


def test_the_key_is_kept_in_no_storage_and_stands_in_no_url(page, broker):
    sockets = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    log_in(page, broker)
    kept = (
        "[{...localStorage}, {...sessionStorage}, document.cookie, location.href, document.documentElement.outerHTML]"
    )
    urls = "performance.getEntries().map(entry => entry.name)"
    said = json.dumps([page.evaluate(kept), page.evaluate(urls), sockets])
    assert KEY not in said
    assert not re.search(r"wst_\w", said)
    assert len(sockets) == 1
    expect(page.get_by_label("Account key")).to_have_value("")


# --- first sight -------------------------------------------------------------


def test_what_the_demo_prints_opens_a_page_that_shows_its_agent_at_work(page):
    with process("demo", "--port", "0") as demo:
        lines = iter(demo.stdout.readline, "")
        url = next(line.strip() for line in lines if "/dashboard" in line)
        key = next(lines).strip()
        log_in(page, Broker(url.removesuffix("/dashboard")), key=key)
        row(page, "Question number 0").wait_for()
        row(page, "agent.replied").first.wait_for()
        row(page, "nobody@example.com").first.wait_for()
        page.get_by_role("button", name="Log out").click()
        page.locator("#login").wait_for()


def test_the_readmes_picture_is_one_of_this_page(page, tmp_path):
    """With BROKER_PICTURES (`make pictures`) it is taken again."""
    with broker_with(tmp_path) as broker:
        broker.publish(*events_of_five_minutes())
        log_in(page, broker)
        expect(page.locator("#n-seen")).to_have_text("420")
        if os.environ.get("BROKER_PICTURES"):
            quick = re.compile("live · (<1|[1-9]) ms")
            expect(page.locator("#state-text")).to_have_text(quick, timeout=60_000)  # on a machine that has time
        for number, event in enumerate(events_of_five_minutes(count=12, seed=11)):
            event.pop("created_at")
            broker.publish(event | {"event_id": f"evt_now_{number}"})
        expect(page.locator("#n-seen")).to_have_text("432")
        page.locator(".row.watched").filter(has_text=re.compile(r" ms$")).first.click()
        page.get_by_role("tab", name="Event").focus()
        expect(page.locator("#n-rate")).not_to_have_text("0.0")
        taken = page.screenshot()
    if os.environ.get("BROKER_PICTURES"):
        PICTURE.write_bytes(in_few_colours(taken))
    for png in (taken, PICTURE.read_bytes()):
        assert struct.unpack(">II", png[16:24]) == PICTURE_SIZE
