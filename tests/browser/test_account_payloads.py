"""What events may hold, and how many there may be: all of it is text, and the page stays what it was."""

import re

import pytest
from dashboards import INBOX, broker_with, choose, expect, in_state, log_in, mail, row

from broker.config import LimitsConfig

KIB = 1_024
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"
TURNED = "invoice\u202egnp.exe"
CONTROLS = "one\u0000\u0007\u001b[31mtwo\u200b\u2028three\U000e0041"
DEEP = {"level": 1}
for _ in range(50):
    DEEP = {"deeper": [DEEP]}
LARGE = "x" * (LimitsConfig().max_event_bytes - 600)
STRANGE = [
    ["a", "list"], "a text", 7, None, True, {}, {"subject": {"an": "object"}, "from": ["a", "list"], "labels": "none"},
    {"subject": "labels", "labels": [MARKUP] * 200 + [None, 7, {}], "to": [None, {"a": 1}, MARKUP], "body": 12},
    {"subject": "names", "__proto__": {"polluted": True}, "constructor": {"prototype": {"polluted": True}}},
]  # fmt: skip

CROWDED = """
let elapsed = 0;
const now = performance.now.bind(performance);
performance.now = () => now() + elapsed * 1_000;
globalThis.WebSocket = class {
  constructor() {
    setTimeout(() => this.#say({
      type: "connection.ready", connection_id: "conn_1", account_id: "acct_test", inbox_ids: ["*"], cursor: "0",
      replay_seconds: 300, replay: { recovered: true, count: %(crowd)d },
    }));
  }
  #say(frame) {
    this.onmessage({ data: JSON.stringify(frame) });
  }
  #event(event_id, subject) {
    const payload = { message: { subject } };
    this.#say({ type: "message.received", event_id, created_at: new Date().toISOString(), cursor: "1", payload });
  }
  close() {}
  async send(text) {
    const { action, request_id, since } = JSON.parse(text);
    if (action === "ping") return;
    const reach = Number.parseInt(since) - elapsed;
    if (action === "subscribe") elapsed += %(late)d;
    const crowd = reach >= 20 ? %(crowd)d : 0, last = reach >= 0 ? %(last)d : 0;
    const replay = { recovered: true, count: crowd + last };
    this.#say({ type: "response", action, request_id, result: { cursor: "0", replay } });
    await new Promise(setTimeout);
    if (crowd) this.#event("evt_1", "one of the crowd");
    if (last) this.#event("evt_2", "the last one");
  }
};
"""
"""A broker that got all its events at once, 20 s before the page was opened, and ``last`` more of them then.

Of them one each is sent, and the answer to each subscribe comes ``late`` seconds later, by the page's clock.
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with broker_with(tmp_path_factory.mktemp("broker")) as running:
        yield running


def opened(dashboard, text):
    choose(dashboard, text)
    return dashboard.locator("#pane-event")


def test_markup_stays_text_wherever_it_stands(dashboard, broker):
    log_in(dashboard, broker)
    broker.publish(
        mail(MARKUP, **{"from": MARKUP, "to": [MARKUP], "body": MARKUP, "labels": [MARKUP], MARKUP: MARKUP}),
        {"type": "message.bounced", "inbox_id": INBOX, "payload": {"recipient": MARKUP, "reason": MARKUP}},
        {"type": "a.b", "inbox_id": INBOX, "payload": {MARKUP: MARKUP}},
    )
    for subject in ("a.b", "bounced", "received"):
        pane = opened(dashboard, subject)
        expect(pane.locator("pre")).to_contain_text("onerror=alert(1)")
    expect(pane.locator(".subject")).to_have_text(MARKUP)
    dashboard.get_by_role("tab", name="Alerts").click()
    expect(dashboard.locator("#alerts")).to_contain_text(MARKUP)
    assert dashboard.locator("#app :is(img, script)").count() == 0


def test_what_would_not_be_seen_or_turns_text_round_is_shown(dashboard, broker):
    log_in(dashboard, broker)
    broker.publish(mail(TURNED, body=CONTROLS))
    pane = opened(dashboard, "invoice")
    expect(row(dashboard, "invoice").locator(".what")).to_have_text(r"invoice\u202egnp.exe")
    expect(pane.locator(".subject")).to_have_text(r"invoice\u202egnp.exe")
    expect(pane.locator(".body")).to_have_text(r"one\u0000\u0007\u001b[31mtwo\u200b\u2028three\udb40\udc41")
    expect(pane.locator("pre")).to_contain_text(r"three\udb40\udc41")


def test_the_largest_event_is_shown_shortened_and_can_be_had_whole(dashboard, broker):
    log_in(dashboard, broker)
    broker.publish(mail(LARGE), mail("large body", body=LARGE), {"type": "a.deep", "inbox_id": INBOX, "payload": DEEP})
    assert len(row(dashboard, "xxx").first.locator(".what").inner_text()) < 1_000
    pane = opened(dashboard, "large body")
    expect(pane).to_contain_text("more characters: copy to see all")
    assert len(pane.inner_text()) < 100 * KIB
    pane.get_by_role("button", name="Publish again").click()
    assert len(dashboard.get_by_label("Command", exact=True).input_value()) > len(LARGE)
    expect(opened(dashboard, "a.deep").locator("pre")).to_contain_text('"level": 1')


def test_a_message_may_be_anything(dashboard, broker):
    log_in(dashboard, broker)
    for number, message in enumerate(STRANGE):
        event = {"type": "message.received", "inbox_id": f"inbox_{number}", "payload": {"message": message}}
        broker.publish(event | {"created_at": ["1971-01-01T00:00:00Z", "2200-01-01T00:00:00Z"][number % 2]})
        expect(opened(dashboard, f"inbox_{number}").locator("pre")).to_contain_text("message")
    assert dashboard.evaluate("({}).polluted") is None
    broker.publish(mail("and after that"))
    row(dashboard, "and after that").wait_for()


def test_of_twenty_thousand_events_and_more_the_newest_are_kept_with_few_elements(dashboard, broker):
    log_in(dashboard, broker)
    for start in range(0, 21_300, 7_100):
        broker.publish(*[mail(f"number {number}") for number in range(start, start + 7_100)])
    expect(dashboard.locator("#n-seen")).to_have_text(re.compile(r"^21\s[3-9]"), timeout=60_000)
    row(dashboard, "number 21299").wait_for()
    kept = dashboard.locator("#shown").inner_text().replace("\u202f", "")
    assert 20_000 <= int(kept.split(" of ")[0]) <= 21_000
    dashboard.locator("#feed").press("End")
    row(dashboard, "number 21299").wait_for(state="detached")
    broker.publish(mail("newer"), mail("newest"))
    dashboard.get_by_role("button", name="2 newer").click()
    row(dashboard, "newest").wait_for()
    assert dashboard.locator(".row").count() < 80
    dashboard.get_by_label("Search the feed").fill("number 2012")
    expect(row(dashboard, "number 2012")).to_have_count(11)


def test_where_there_is_far_more_than_is_kept_it_begins_with_the_end_and_a_replay_pauses(dashboard, tmp_path):
    with broker_with(tmp_path) as broker:
        for start in range(0, 42_000, 7_000):
            broker.publish(*[mail(f"number {number}") for number in range(start, start + 7_000)])
        log_in(dashboard, broker)
        broker.publish(mail("the last one"))
        row(dashboard, "the last one").wait_for(timeout=180_000)  # there may be much to take in
        in_state(dashboard, "live")
        expect(dashboard.locator("#missed")).to_be_hidden()
        dashboard.get_by_label("Replay from", exact=True).select_option("5 min ago")
        dashboard.get_by_role("button", name="Replay").click()
        in_state(dashboard, "paused")
        expect(row(dashboard, "the last one")).to_have_count(0)
        dashboard.get_by_role("button", name="Resume").click()
        row(dashboard, "the last one").wait_for()


def test_a_page_that_is_slow_to_find_its_beginning_has_what_came_since_it_was_opened(dashboard, broker):
    dashboard.add_init_script(CROWDED % {"crowd": 42_000, "last": 1, "late": 5})
    log_in(dashboard, broker)
    row(dashboard, "the window: 1 event").wait_for()
    row(dashboard, "the last one").wait_for()


def test_where_all_of_far_more_than_is_kept_came_at_once_it_begins_with_all(dashboard, broker):
    dashboard.add_init_script(CROWDED % {"crowd": 42_000, "last": 0, "late": 0})
    log_in(dashboard, broker)
    row(dashboard, re.compile("the window: 42.000 events")).wait_for()
    row(dashboard, "one of the crowd").wait_for()


def test_of_large_events_no_more_than_32_mb_are_kept(dashboard, tmp_path):
    with broker_with(tmp_path) as broker:
        log_in(dashboard, broker)
        for _ in range(5):
            broker.publish(*[mail("large", body=LARGE)] * 30)
        broker.publish(mail("the last one"))
        row(dashboard, "the last one").wait_for()
        expect(dashboard.locator("#n-seen")).to_have_text("151")
        kept = int(dashboard.locator("#shown").inner_text().split(" of ")[0])
        assert 0.9 * 32_000_000 < kept * len(LARGE) < 32_000_000 + 2 * len(LARGE)
