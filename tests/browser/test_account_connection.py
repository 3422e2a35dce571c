"""How the page of an account is connected: looks, tokens, event streams, restarts, refusals."""

import re
import signal
import urllib.request

import pytest
from dashboards import SMALL, broker_with, choose, expect, in_state, log_in, mail, row
from processes import KEY, free_port

NO_WEB_SOCKETS = """
globalThis.WebSocket = class {
  constructor() { setTimeout(() => this.onclose({ code: 1006, reason: "" })); }
  close() {}
};
"""
"""As where a proxy lets none through."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with broker_with(tmp_path_factory.mktemp("broker")) as running:
        yield running


def refused_by(dashboard, how):
    """Forget what the browser itself says of the refusals that a test is about."""
    dashboard.said[:] = [line for line in dashboard.said if str(how) not in line]


def test_where_no_websocket_gets_through_an_event_stream_brings_all_of_it(dashboard, broker):
    dashboard.add_init_script(NO_WEB_SOCKETS)
    log_in(dashboard, broker)
    expect(dashboard.locator("#state-text")).to_contain_text("event stream")
    broker.publish(mail("by event stream"))
    row(dashboard, "by event stream").wait_for()
    assert [connection["transport"] for connection in broker.connections()] == ["sse"]
    dashboard.get_by_role("button", name="Pause").click()
    in_state(dashboard, "paused")
    broker.publish(mail("in the pause of an event stream"))
    dashboard.get_by_role("button", name="Resume").click()
    row(dashboard, "in the pause of an event stream").wait_for()
    dashboard.get_by_role("tab", name="Send").click()
    dashboard.get_by_role("button", name="Send").click()
    expect(dashboard.locator(".answer").first).to_contain_text("publish done")
    dashboard.get_by_role("button", name="Replay").click()
    row(dashboard, re.compile(r"replay of \d+ events")).wait_for()
    broker.cut()
    broker.publish(mail("after the cut of an event stream"))
    row(dashboard, "after the cut of an event stream").wait_for()


def test_a_look_takes_no_agents_place_and_may_do_nothing(dashboard, broker):
    stream = urllib.request.Request(f"{broker.url}/v1/events/stream", headers={"Authorization": f"Bearer {SMALL}"})
    with urllib.request.urlopen(stream, timeout=60) as agent:
        assert agent.status == 200
        dashboard.goto(f"{broker.url}/dashboard")
        dashboard.get_by_label("Account key").fill(SMALL)
        dashboard.get_by_role("button", name="Connect").click()
        expect(dashboard.locator("#login-error")).to_contain_text("“Look only” needs no place of an agent")
        refused_by(dashboard, 429)
        log_in(dashboard, broker, key=SMALL, look_only=True)
        broker.ask("POST", "/v1/events", [mail("seen by a look")], key=SMALL)
        choose(dashboard, "seen by a look")
        expect(dashboard.get_by_role("button", name="Copy JSON")).to_be_visible()
        expect(dashboard.get_by_role("button", name="Publish again")).to_have_count(0)
        dashboard.get_by_role("tab", name="Send").click()
        expect(dashboard.get_by_role("button", name="Send")).to_be_disabled()
        looks = broker.ask("GET", "/v1/connections", key=SMALL)["connections"]
        assert [look.get("watch", False) for look in looks] == [False, True]


def test_a_newer_look_ends_the_older_and_says_so(dashboard, broker, browser):
    log_in(dashboard, broker, look_only=True)
    context = browser.new_context()
    log_in(context.new_page(), broker, look_only=True)
    in_state(dashboard, "closed")
    expect(dashboard.locator("#state-text")).not_to_have_text("closed")
    context.close()


def test_a_connection_token_opens_the_page_for_as_long_as_it_lasts(dashboard, broker):
    token = broker.ask("POST", "/v1/websocket/token", {"inbox_ids": ["inbox_sales"]})["token"]
    log_in(dashboard, broker, key=token)
    broker.publish(mail("elsewhere", inbox="inbox_press"), mail("for the token"))
    row(dashboard, "for the token").wait_for()
    dashboard.get_by_role("button", name="Pause").click()
    in_state(dashboard, "paused")
    broker.publish(mail("elsewhere in the pause", inbox="inbox_press"), mail("in its pause"))
    dashboard.get_by_role("button", name="Resume").click()
    row(dashboard, "in its pause").wait_for()
    expect(row(dashboard, "elsewhere")).to_have_count(0)


def test_a_token_that_is_good_no_more_ends_it_in_the_brokers_words(dashboard, tmp_path):
    where = ("--port", free_port())
    with broker_with(tmp_path, "", *where) as broker:
        log_in(dashboard, broker, key=broker.ask("POST", "/v1/websocket/token")["token"])
    in_state(dashboard, "lost")
    with broker_with(tmp_path, "", *where):  # which has another secret
        in_state(dashboard, "closed")
        expect(dashboard.locator("#state-text")).to_contain_text("token")
    for how in (401, "ERR_CONNECTION_REFUSED", "HTTP Authentication failed"):
        refused_by(dashboard, how)


def test_an_operators_key_is_shown_to_its_own_page(dashboard, broker):
    dashboard.goto(f"{broker.url}/dashboard")
    dashboard.get_by_label("Account key").fill("dm_operator_somebody")
    dashboard.get_by_role("button", name="Connect").click()
    expect(dashboard.locator("#login-error")).to_contain_text("page for operators")


def test_a_restart_of_the_broker_is_told_and_nothing_is_missed(dashboard, tmp_path):
    where = ("--port", free_port(), "--storage", tmp_path / "broker.db")
    with broker_with(tmp_path, "", *where) as broker:
        log_in(dashboard, broker)
        broker.publish(mail("before the restart"))
        row(dashboard, "before the restart").wait_for()
    in_state(dashboard, "lost")
    expect(dashboard.locator("#state-text")).to_have_text(re.compile(r"again in \d"))
    with broker_with(tmp_path, "", *where) as broker:
        broker.publish(mail("after the restart"))
        row(dashboard, "after the restart").wait_for()
        in_state(dashboard, "live")
        expect(row(dashboard, "before the restart")).to_have_count(1)
        expect(dashboard.locator("#missed")).to_be_hidden()
    refused_by(dashboard, "ERR_CONNECTION_REFUSED")
    assert KEY not in "".join(dashboard.said)


def test_a_broker_that_is_away_when_somebody_logs_in_is_told_and_tried_again(dashboard, tmp_path):
    where = ("--port", free_port())
    with broker_with(tmp_path, "", *where) as broker:
        dashboard.goto(f"{broker.url}/dashboard")
    dashboard.get_by_label("Account key").fill(KEY)
    dashboard.get_by_role("button", name="Connect").click()
    expect(dashboard.locator("#login-error")).to_have_text(re.compile("the broker does not answer, again in"))
    with broker_with(tmp_path, "", *where):
        in_state(dashboard, "live")
    refused_by(dashboard, "ERR_CONNECTION_REFUSED")


def test_a_key_that_is_revoked_ends_it(dashboard, tmp_path):
    with broker_with(tmp_path) as broker:
        log_in(dashboard, broker)
        path = tmp_path / "broker.toml"
        path.write_text(path.read_text().replace("acct_test", "acct_other"))
        broker.process.send_signal(signal.SIGHUP)
        in_state(dashboard, "closed")
