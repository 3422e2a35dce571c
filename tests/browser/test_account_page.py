"""The page of an account in a real browser: what its events, its connection and its commands look like.

Rows are virtual: what is asserted are counters, and rows that are on the screen. No test waits by a function in the
page: that would need `eval`, which the policy of the page forbids.
"""

import json
import os
import re
import struct

import pytest
from dashboards import Broker, broker_with, choose, expect, in_few_colours, in_state, log_in, mail, row
from documents import ROOT
from processes import KEY, process
from traffic import events_of_five_minutes

PICTURE = ROOT / "docs" / "dashboard.png"
PICTURE_SIZE = (1440, 900)


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    """A broker whose window has 50 events."""
    more = "[replay]\nmax_events_per_account = 50\n"
    with broker_with(tmp_path_factory.mktemp("broker"), more) as running:
        yield running


# --- what comes --------------------------------------------------------------


def test_who_logs_in_sees_what_the_window_has_and_then_what_comes(dashboard, broker):
    broker.publish(mail("from before"))
    log_in(dashboard, broker)
    row(dashboard, "from before").first.wait_for()
    broker.publish(mail("and from now"), {"type": "account.upgraded", "payload": {"tier": "growth"}})
    row(dashboard, "and from now").wait_for()
    row(dashboard, "account.upgraded").first.wait_for()
    expect(dashboard.locator("#account")).to_have_text("acct_test")


def test_an_event_is_opened_with_its_mail_and_its_payload(dashboard, broker):
    log_in(dashboard, broker)
    [published] = broker.publish(
        mail("Contract, second draft", body="Dear agent,\r\nsee below", labels=["inbox", "unread"])
    )
    choose(dashboard, "Contract, second draft")
    pane = dashboard.locator("#pane-event")
    expect(pane.locator(".body")).to_have_text("Dear agent,\nsee below")
    expect(pane.locator(".labels span")).to_have_text(["inbox", "unread"])
    expect(pane).to_contain_text(published["event_id"])
    expect(pane.locator("pre")).to_contain_text('"from": "Ada <ada@example.com>"')


def test_text_that_looks_like_markup_is_text(dashboard, broker):
    log_in(dashboard, broker)
    hostile = "<img src=x onerror=alert(1)>"
    broker.publish(mail(hostile, **{"from": "<b>Ada</b>", "body": "<script>alert(2)</script>", "labels": [hostile]}))
    choose(dashboard, hostile)
    pane = dashboard.locator("#pane-event")
    expect(pane.locator(".subject")).to_have_text(hostile)
    expect(pane.locator(".body")).to_have_text("<script>alert(2)</script>")
    assert dashboard.locator("#app :is(img, script, b:not(.answer b))").count() == 0


# --- pause, gap, replay ------------------------------------------------------


def test_what_comes_in_a_pause_follows_when_it_is_resumed(dashboard, broker):
    log_in(dashboard, broker)
    dashboard.get_by_role("button", name="Pause").click()
    in_state(dashboard, "paused")
    expect(dashboard.locator("#state-text")).to_contain_text("kept for up to")
    # The account's event comes in the pause, with a cursor that is ahead of the mail.
    broker.publish(mail("while it was paused"), {"type": "account.upgraded", "payload": {"tier": "in-a-pause"}})
    row(dashboard, "in-a-pause").wait_for()
    dashboard.get_by_role("button", name="Resume").click()
    in_state(dashboard, "live")
    expect(row(dashboard, "while it was paused")).to_have_count(1)
    row(dashboard, "resumed: 1 event that came meanwhile").wait_for()
    expect(row(dashboard, "in-a-pause")).to_have_count(1)
    expect(dashboard.locator("#missed")).to_be_hidden()


def test_a_row_of_the_pages_own_has_nothing_of_the_event_that_was_shown_there(dashboard, broker):
    log_in(dashboard, broker)
    broker.publish(mail("before a pause"))
    row(dashboard, "before a pause").wait_for()
    dashboard.get_by_role("button", name="Pause").click()
    row(dashboard, "paused: the broker keeps what comes").wait_for()
    expect(row(dashboard, "before a pause")).to_have_count(1)


def test_what_left_the_window_in_a_pause_is_said_and_counted(dashboard, broker):
    log_in(dashboard, broker)
    dashboard.get_by_role("button", name="Pause").click()
    in_state(dashboard, "paused")
    broker.publish({"type": "account.upgraded", "payload": {"tier": "growth"}})
    broker.publish(*[mail(f"number {number}") for number in range(80)])
    dashboard.get_by_role("button", name="Resume").click()
    row(dashboard, "number 79").wait_for()
    missed = dashboard.locator("#n-missed")
    expect(missed).to_have_text("30")  # of 81 events the window has 50, and the account's was here in the pause
    missed.click()
    dashboard.get_by_text("gap: 30 events left the window").wait_for()
    expect(dashboard.locator("#alerts")).to_contain_text("30 events missed")


def test_a_replay_shows_again_what_the_window_has(dashboard, broker):
    log_in(dashboard, broker)
    broker.publish(*[mail(f"again {number}") for number in range(60)])
    row(dashboard, "again 59").wait_for()
    dashboard.get_by_label("Replay from", exact=True).select_option("30 s ago")
    dashboard.get_by_role("button", name="Replay").click()
    row(dashboard, "again 59").wait_for()
    dashboard.get_by_label("Search the feed").fill("replay of")
    row(dashboard, "replay of 50 events").wait_for()
    dashboard.locator("#timeline").click(position={"x": 20, "y": 30})
    expect(row(dashboard, "the window starts here")).to_have_count(1)
    expect(dashboard.locator("#shown")).to_have_text("2 of 52 kept")
    dashboard.get_by_label("Replay from", exact=True).select_option("a time …")
    dashboard.get_by_label("Replay from this time").fill("2026-01-01T00:00:00")
    dashboard.get_by_role("button", name="Replay").click()
    expect(dashboard.locator("#missed")).to_be_hidden()


# --- commands ----------------------------------------------------------------


def test_a_command_is_given_and_answered_with_its_time(dashboard, broker):
    log_in(dashboard, broker)
    dashboard.get_by_role("tab", name="Send").click()
    dashboard.get_by_role("button", name="Send").click()
    answer = dashboard.locator(".answer").first
    expect(answer).to_contain_text(re.compile(r"publish done after (<1|\d+) ms"))
    row(dashboard, "A test from the dashboard").first.wait_for()
    dashboard.get_by_label("Do", exact=True).select_option("send_email")
    dashboard.get_by_label("Command", exact=True).press("Control+Enter")
    expect(dashboard.locator(".answer").first).to_contain_text("send_email unknown_action")


def test_an_event_is_published_again(dashboard, broker):
    log_in(dashboard, broker)
    broker.publish(mail("once more", body=12345678901234567890))
    choose(dashboard, "once more")
    dashboard.get_by_role("button", name="Publish again").click()
    expect(dashboard.get_by_label("Command", exact=True)).to_have_value(re.compile("12345678901234567890"))
    dashboard.get_by_role("button", name="Send").click()
    expect(row(dashboard, "once more")).to_have_count(2)


# --- the connection ----------------------------------------------------------


def test_a_connection_that_is_lost_comes_back_with_what_was_missed(dashboard, broker):
    log_in(dashboard, broker)
    broker.cut()
    broker.publish(mail("while it was away"))
    row(dashboard, "back again: 1 event that came meanwhile").wait_for()
    row(dashboard, "while it was away").wait_for()
    in_state(dashboard, "live")
    expect(dashboard.locator("#missed")).to_be_hidden()


def test_a_key_that_is_none_is_refused_in_the_brokers_words(dashboard, broker):
    dashboard.goto(f"{broker.url}/dashboard")
    dashboard.get_by_label("Account key").fill("dm_live_nobody")
    dashboard.get_by_role("button", name="Connect").click()
    expect(dashboard.locator("#login-error")).not_to_be_empty()
    expect(dashboard.locator("#app")).to_be_hidden()
    dashboard.get_by_label("Account key").fill(KEY)
    dashboard.get_by_role("button", name="Connect").click()
    in_state(dashboard, "live")
    dashboard.said[:] = [line for line in dashboard.said if "401" not in line]  # the browser's own word for it


def test_the_key_is_kept_in_no_storage_and_stands_in_no_url(dashboard, broker):
    sockets = []
    dashboard.on("websocket", lambda socket: sockets.append(socket.url))
    log_in(dashboard, broker)
    kept = (
        "[{...localStorage}, {...sessionStorage}, document.cookie, location.href, document.documentElement.outerHTML]"
    )
    urls = "performance.getEntries().map(entry => entry.name)"
    said = json.dumps([dashboard.evaluate(kept), dashboard.evaluate(urls), sockets])
    assert KEY not in said
    assert not re.search(r"wst_\w", said)
    assert len(sockets) == 1
    expect(dashboard.get_by_label("Account key")).to_have_value("")


# --- first sight -------------------------------------------------------------


def test_what_the_demo_prints_opens_a_page_that_shows_its_agent_at_work(dashboard):
    with process("demo", "--port", "0") as demo:
        lines = iter(demo.stdout.readline, "")
        url, key = next(line.split() for line in lines if "/dashboard" in line)
        operators_url, operator_key = next(lines).split()
        log_in(dashboard, Broker(url.removesuffix("/dashboard")), key=key)
        row(dashboard, "Question number 0").wait_for()
        row(dashboard, "agent.replied").first.wait_for()
        row(dashboard, "nobody@example.com").first.wait_for()
        dashboard.get_by_role("button", name="Log out").click()
        dashboard.goto(operators_url)
        dashboard.get_by_label("Operator key").fill(operator_key)
        dashboard.get_by_role("button", name="Watch").click()
        in_state(dashboard, "live")


def test_the_readmes_picture_is_one_of_this_page(dashboard, tmp_path):
    """With BROKER_PICTURES (`make pictures`) it is taken again."""
    with broker_with(tmp_path) as broker:
        broker.publish(*events_of_five_minutes())
        log_in(dashboard, broker)
        expect(dashboard.locator("#n-seen")).to_have_text("420")
        if os.environ.get("BROKER_PICTURES"):
            quick = re.compile("live · (<1|[1-9]) ms")
            expect(dashboard.locator("#state-text")).to_have_text(quick, timeout=60_000)  # on a machine that has time
        for number, event in enumerate(events_of_five_minutes(count=12, seed=11)):
            event.pop("created_at")
            broker.publish(event | {"event_id": f"evt_now_{number}"})
        expect(dashboard.locator("#n-seen")).to_have_text("432")
        dashboard.locator(".row.watched").filter(has_text=re.compile(r" ms$")).first.click()
        dashboard.get_by_role("tab", name="Event").focus()
        expect(dashboard.locator("#n-rate")).not_to_have_text("0.0")
        taken = dashboard.screenshot()
    if os.environ.get("BROKER_PICTURES"):
        PICTURE.write_bytes(in_few_colours(taken))
    for png in (taken, PICTURE.read_bytes()):
        assert struct.unpack(">II", png[16:24]) == PICTURE_SIZE
