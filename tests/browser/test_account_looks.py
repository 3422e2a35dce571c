"""What people see and do on the page of an account: sides, alerts, keys, small screens, and who does not see at all."""

import json

import pytest
from dashboards import INBOX, broker_with, choose, expect, in_state, log_in, mail, row, typed
from processes import KEY

BOUNCED = {
    "type": "message.bounced",
    "inbox_id": INBOX,
    "payload": {"recipient": "ines@litware.example", "reason": "no box"},
}
COMPLAINT = {
    "type": "message.complaint",
    "inbox_id": INBOX,
    "payload": {"recipient": "olu@x.example", "feedback_type": "abuse"},
}
UPGRADED = {"type": "account.upgraded", "payload": {"tier": "growth", "previous_tier": "free"}}
AGENT = {"type": "agent.replied", "inbox_id": "inbox_press", "payload": {"message_id": "msg_1"}}
ALL = [mail("a mail", body="Hello", labels=["inbox"]), BOUNCED, COMPLAINT, UPGRADED, AGENT, mail("[URGENT] look here")]
NOTIFICATIONS = """
globalThis.notified = [];
globalThis.Notification = class {
  static async requestPermission() { return "granted"; }
  constructor(title, { body }) { notified.push([title, body]); }
};
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broker")
    with broker_with(folder, "", "--storage", folder / "broker.db") as running:
        running.ask("POST", "/v1/webhooks", {"webhook_id": "wh_away", "url": "https://hooks.invalid/hook"})
        running.publish(*ALL)
        yield running


# --- sides and alerts --------------------------------------------------------


def test_the_feed_shows_one_inbox_some_types_or_what_has_a_text_in_it(dashboard, broker):
    log_in(dashboard, broker)
    side = dashboard.locator("#side")
    row(dashboard, "a mail").first.wait_for()
    side.get_by_role("button", name="inbox_press").click()
    expect(row(dashboard, "a mail")).to_have_count(0)
    row(dashboard, "agent.replied").first.wait_for()
    dashboard.get_by_role("button", name="Clear filters").click()
    side.get_by_role("button", name="message.received").click()
    expect(row(dashboard, "a mail")).to_have_count(0)
    row(dashboard, "ines@litware.example").first.wait_for()
    side.get_by_role("button", name="message.received").click()
    dashboard.get_by_label("Search the feed").fill("OLU@X")
    row(dashboard, "olu@x.example").first.wait_for()
    expect(row(dashboard, "ines@litware.example")).to_have_count(0)
    dashboard.get_by_label("Find an inbox").fill("press")
    expect(dashboard.locator("#inboxes li")).to_have_count(2)


def test_bounces_and_complaints_are_told_by_recipient_and_lead_to_their_events(dashboard, broker):
    log_in(dashboard, broker)
    alerts = dashboard.locator("#alerts")
    expect(alerts).to_contain_text("Complained: abuse")
    broker.publish(BOUNCED)
    bounced = alerts.get_by_role("button").filter(has_text="ines@litware.example")
    expect(bounced).to_have_count(1)
    expect(bounced).to_contain_text("2 \N{MULTIPLICATION SIGN}")
    expect(dashboard.locator("#n-alerts")).to_have_text("2")
    bounced.click()
    expect(dashboard.locator("#pane-event")).to_contain_text("message.bounced")


def test_mail_with_a_word_that_is_watched_for_is_told_and_notified(dashboard, broker):
    dashboard.add_init_script(NOTIFICATIONS)
    log_in(dashboard, broker)
    expect(dashboard.locator("#alerts")).to_contain_text("[URGENT] look here")
    dashboard.get_by_label("Watch for").fill("invoice, Priority")
    dashboard.get_by_label("Notify this desktop").check()
    broker.publish(mail("nothing much"), mail("by its label", labels=["priority"], **{"from": "ada@example.com"}))
    expect(dashboard.locator("#alerts")).to_contain_text("by its label")
    assert dashboard.evaluate("notified") == [["by its label", f"ada@example.com · {INBOX}"]]
    dashboard.reload()
    log_in(dashboard, broker)
    expect(dashboard.get_by_label("Watch for")).to_have_value("invoice, Priority")


def test_a_mail_is_answered_with_a_command_that_is_written_out(dashboard, broker):
    log_in(dashboard, broker)
    choose(dashboard, "a mail")
    dashboard.get_by_role("button", name="Answer").click()
    command = json.loads(dashboard.get_by_label("Command", exact=True).input_value())
    assert command == {
        "action": "send_email",
        "inbox_id": INBOX,
        "to": "Ada <ada@example.com>",
        "subject": "Re: a mail",
        "body": "",
        "in_reply_to": "msg_1",
    }


def test_a_click_chooses_what_was_there_when_the_pointer_went_down(dashboard, broker):
    log_in(dashboard, broker)
    broker.publish(mail("under the pointer"))
    choose(dashboard, "under the pointer")
    dashboard.get_by_role("tab", name="Send").click()
    row(dashboard, "under the pointer").first.locator(".what").hover()
    dashboard.mouse.down()
    broker.publish(mail("came between"))
    row(dashboard, "came between").first.wait_for()
    dashboard.mouse.up()
    expect(dashboard.locator("#pane-event .subject")).to_have_text("under the pointer")


def test_what_is_no_command_is_said_and_not_sent(dashboard, broker):
    log_in(dashboard, broker)
    dashboard.get_by_role("tab", name="Send").click()
    command = dashboard.get_by_label("Command", exact=True)
    for text in ('{"action": ', "[]", "7", '{"inbox_id": "inbox_sales"}'):
        command.fill(text)
        expect(dashboard.locator("#command-error")).not_to_be_empty()
        command.press("Control+Enter")
    command.fill('{"action": "ping"}')
    command.press("Control+Enter")
    expect(dashboard.locator(".answer")).to_have_count(1)
    expect(dashboard.locator(".answer")).to_contain_text("server_time")


# --- keys, screens, colours --------------------------------------------------


def test_all_of_it_is_done_by_keyboard_alone(dashboard, broker):
    dashboard.goto(f"{broker.url}/dashboard")
    typed(dashboard, "Account key", KEY)
    in_state(dashboard, "live")
    row(dashboard, "a mail").first.wait_for()
    dashboard.keyboard.press("j")
    dashboard.keyboard.press("j")
    dashboard.keyboard.press("Enter")
    expect(dashboard.locator("#pane-event")).to_be_focused()
    dashboard.keyboard.press("Escape")
    expect(dashboard.locator("#feed")).to_be_focused()
    dashboard.keyboard.press("/")
    expect(dashboard.get_by_label("Search the feed")).to_be_focused()
    dashboard.keyboard.type("p")
    in_state(dashboard, "live")
    dashboard.keyboard.press("Escape")
    dashboard.keyboard.press("p")
    in_state(dashboard, "paused")
    dashboard.keyboard.press("p")
    in_state(dashboard, "live")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_who_sees_little_or_nothing_finds_all_of_it(dashboard, broker, scheme):
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()

    def violations():
        found = axe.run(dashboard).response["violations"]
        return [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"]) for each in found]

    dashboard.emulate_media(color_scheme=scheme)
    dashboard.goto(f"{broker.url}/dashboard")
    assert violations() == []
    log_in(dashboard, broker)
    choose(dashboard, "a mail")
    for tab in ("Alerts", "Event", "Send", "Webhooks"):
        dashboard.get_by_role("tab", name=tab).click()
        dashboard.locator(f"#pane-{tab.lower()} *").first.wait_for()
        assert violations() == [], tab


def test_light_or_dark_is_remembered_and_nothing_else_but_the_words(dashboard, broker):
    log_in(dashboard, broker)
    dashboard.get_by_label("Dark or light").click()
    dashboard.reload()
    assert dashboard.evaluate("document.documentElement.dataset.theme") == "dark"
    assert dashboard.evaluate("Object.keys(localStorage)") == ["daimon.theme"]
    assert dashboard.evaluate("sessionStorage.length") == 0


def test_on_a_phone_there_is_one_column_and_a_way_to_the_others(dashboard, broker):
    dashboard.set_viewport_size({"width": 390, "height": 844})
    log_in(dashboard, broker)
    row(dashboard, "a mail").first.wait_for()
    assert row(dashboard, "a mail").first.bounding_box()["height"] == 56
    for name, shown in (("Inboxes", "#side"), ("Details", "#details"), ("Feed", "#middle")):
        dashboard.locator(".bottom").get_by_role("button", name=name).click()
        expect(dashboard.locator(shown)).to_be_visible()
        assert dashboard.evaluate("document.documentElement.scrollWidth") == 390
    choose(dashboard, "a mail")
    expect(dashboard.locator("#pane-event .subject")).to_be_visible()
    expect(dashboard.locator("#middle")).to_be_hidden()
