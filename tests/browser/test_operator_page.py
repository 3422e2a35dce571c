"""The page of operators in a real browser: figures, any number of connections, one of them, tasks, and who gets in.

Rows are virtual: what is asserted are counters, and rows that are on the screen. No test waits by a function in the
page: that would need `eval`, which the page's policy forbids.
"""

import json
import os
import re
import signal
import struct
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest
from dashboards import GUARD_SECONDS, expect, in_few_colours, in_state, typed
from documents import ROOT
from processes import KEY, free_port, process, serving

from broker.cli.figures import quantile
from broker.keys import hash_key
from broker.observe.live import Buckets

OPERATOR = "dm_operator_of_the_browser"
CONFIG = f"""
[[accounts]]
id = "acct_test"
tier = "growth"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
"""
OPERATORS = f"""
[[operators]]
id = "op_test"
sha256 = "{hash_key(OPERATOR)}"
"""
PICTURE = ROOT / "docs" / "operators.png"
CROWD = 10_000
QUANTILE = "async asked => (await import('/dashboard/figures.js')).quantile(...asked)"
SCROLL = """async box => {
  for (let top = 0; top <= 270_000; top += 3_000) {
    box.scrollTop = top;
    await new Promise(resolve => requestAnimationFrame(resolve));
  }
}"""
CROWD_OPERATOR = "dm_operator_of_a_crowd"


class Broker:
    """A running broker, and its clients."""

    def __init__(self, url):
        self.url = url

    def publish(self, count):
        events = [{"type": "a.b", "inbox_id": "in_1", "payload": {}}] * count
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/events", json.dumps(events).encode(), headers)
        urllib.request.urlopen(request, timeout=60).close()

    @contextmanager
    def client(self, name, agent="a client"):
        """An event stream that is open, and gone after the block: no page is shown it any more."""
        headers = {"Authorization": f"Bearer {KEY}", "User-Agent": agent}
        url = f"{self.url}/v1/events/stream?inbox_ids=in_1&client_id={name}"
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as stream:
            assert any(line.startswith(b"data:") for line in iter(stream.readline, b""))
            yield stream
        while name in self._clients():
            time.sleep(0.05)

    def _clients(self):
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        request = urllib.request.Request(f"{self.url}/v1/operator/connections", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return [connection["client_id"] for connection in json.load(answer)["result"]["connections"]]


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    path = tmp_path_factory.mktemp("broker") / "broker.toml"
    path.write_text(CONFIG + OPERATORS)
    with serving("--config", path, guard_seconds=GUARD_SECONDS) as (_, url):
        yield Broker(url)


@pytest.fixture(scope="module")
def crowd():
    """The URL of a broker with ten thousand connections."""
    program = [sys.executable, str(Path(__file__).with_name("crowded.py"))]
    with process(CROWD, command=program, guard_seconds=GUARD_SECONDS) as started:
        yield started.stdout.readline().strip()


@pytest.fixture
def page(page):
    page.set_viewport_size({"width": 1440, "height": 900})
    page.emulate_media(reduced_motion="reduce")
    yield page
    assert page.said == []  # nothing was refused by the policy, nothing failed, no key stands in the console


def log_in(page, url, key=OPERATOR):
    page.goto(f"{url}/dashboard/operator")
    page.get_by_label("Operator key").fill(key)
    page.get_by_role("button", name="Watch").click()


def watched(page, url, key=OPERATOR):
    log_in(page, url, key)
    in_state(page, "live")


def row(page, text):
    return page.locator("#rows [role=row]:not([hidden])").filter(has_text=text)


def clients_of(page):
    return [text for text in page.locator("#rows [role=row]:not([hidden]) .client").all_inner_texts() if text]


# --- figures -----------------------------------------------------------------


def test_who_logs_in_sees_the_brokers_figures_and_then_what_changes(page, broker):
    with broker.client("reader"):
        watched(page, broker.url)
        expect(page.locator("#n-total")).to_have_text("1")
        expect(page.locator("#c-in")).to_have_text("0/s")
        broker.publish(50)
        expect(page.locator("#c-in")).to_have_text(re.compile("[1-9]"))
        expect(page.locator("#c-delay")).to_have_text(re.compile("p50 .* ms"))
        expect(page.locator("#c-window")).to_have_text("50 events")
        assert page.locator("#g-in path").get_attribute("d").count("L") >= 1
        account = page.locator("#accounts li")
        expect(account).to_contain_text("acct_test")
        expect(account).to_contain_text("1 of 100")
        expect(account).to_contain_text("300 s kept")


DELAYS = [((0, 0, 0), (5, 3, 1)), ((5, 3, 1), (5, 3, 1)), ((2, 2, 0), (2, 2, 40)), ((1, 0, 0), (2, 199, 0))]


def test_its_quantiles_are_those_of_broker_top(page, broker):
    page.goto(f"{broker.url}/dashboard/operator")
    for counts in DELAYS:
        for share in (0.5, 0.99):
            buckets = [Buckets((0.001, 0.05), each) for each in counts]
            asked = [*map(msgspec.to_builtins, buckets), share]
            assert page.evaluate(QUANTILE, asked) == pytest.approx(quantile(*buckets, share)), (counts, share)


def test_a_broker_that_goes_is_lost_and_comes_back_by_itself(page, tmp_path):
    path, port = tmp_path / "broker.toml", free_port()
    path.write_text(CONFIG + OPERATORS)
    with serving("--config", path, "--port", port) as (_, url):
        watched(page, url)
    in_state(page, "lost")
    with serving("--config", path, "--port", port):
        in_state(page, "live")
    page.said[:] = [line for line in page.said if "ERR_" not in line]  # the browser's own words for it


def test_a_key_that_is_taken_away_closes_the_page(page, tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(CONFIG + OPERATORS)
    with serving("--config", path) as (started, url):
        watched(page, url)
        path.write_text(CONFIG)
        started.send_signal(signal.SIGHUP)
        in_state(page, "closed")
        expect(page.locator("#state-text")).to_contain_text("not known")
    page.said[:] = [line for line in page.said if "401" not in line]


@pytest.mark.parametrize(("key", "words"), [("dm_operator_nobody", "not known"), (KEY, "no operator's key")])
def test_a_key_that_is_no_operators_is_refused_and_another_may_be_typed(page, broker, key, words):
    log_in(page, broker.url, key)
    expect(page.locator("#login-error")).to_contain_text(words)
    expect(page.locator("#app")).to_be_hidden()
    page.get_by_label("Operator key").fill(OPERATOR)
    page.get_by_role("button", name="Watch").click()
    in_state(page, "live")
    page.said[:] = [line for line in page.said if "401" not in line]


def test_the_key_is_kept_in_no_storage_and_stands_in_no_url(page, broker):
    watched(page, broker.url)
    kept = (
        "[{...localStorage}, {...sessionStorage}, document.cookie, location.href, document.documentElement.outerHTML]"
    )
    said = json.dumps([page.evaluate(kept), page.evaluate("performance.getEntries().map(entry => entry.name)")])
    assert OPERATOR not in said
    expect(page.get_by_label("Operator key")).to_have_value("")


# --- connections -------------------------------------------------------------


def test_connections_are_searched_sorted_and_told_apart_by_state(page, broker):
    with ExitStack() as stack:
        for name in ("one", "two", "three"):
            stack.enter_context(broker.client(name, f"agent-{name}/1.0"))
        watched(page, broker.url)
        expect(page.locator("#shown")).to_have_text("3 of 3")
        page.get_by_role("columnheader", name="client").get_by_role("button").click()
        row(page, "agent-three").wait_for()
        expect(page.locator("#rows .client").first).to_have_text("one")
        assert clients_of(page) == ["one", "three", "two"]
        page.get_by_role("columnheader", name="client ↑").get_by_role("button").click()
        expect(page.locator("#rows .client").first).to_have_text("two")
        assert clients_of(page) == ["two", "three", "one"]
        page.get_by_label("Search connections").fill("AGENT-T")
        expect(page.locator("#shown")).to_have_text("2 of 3")
        page.get_by_role("button", name="paused").click()
        expect(page.locator("#shown")).to_have_text("0 of 3")
        expect(page.locator("#empty")).to_have_text("No connection is like this.")
        page.get_by_role("button", name="all").click()
        expect(page.locator("#shown")).to_have_text("2 of 3")


def test_one_connection_is_looked_at_and_ended_after_a_second_word(page, broker):
    with broker.client("victim") as stream:
        watched(page, broker.url)
        row(page, "victim").click()
        facts = page.locator("#one-facts")
        expect(facts).to_contain_text("in_1")
        expect(facts).to_contain_text("key_test")
        page.get_by_role("button", name="Its tasks").click()
        expect(page.locator("#one-tree")).to_contain_text("EventStream")
        page.get_by_role("button", name="Disconnect").click()
        page.get_by_role("button", name="Keep it").click()
        page.get_by_role("button", name="Disconnect").click()
        expect(page.locator("#one-state")).to_be_empty()
        page.get_by_role("button", name="Yes, disconnect it").click()
        expect(page.locator("#one-state")).to_contain_text("1001")
        assert stream.read().endswith(b"\n")
        expect(page.locator("#closed")).to_contain_text("victim of acct_test")
        expect(page.locator("#closed")).to_contain_text("closed on request")
        expect(page.locator("#shown")).to_have_text("0 of 0")
        expect(page.locator("#empty")).to_have_text("Nobody is connected.")


def test_a_connection_that_leaves_while_it_is_looked_at_is_said_to_have_ended(page, broker):
    with broker.client("leaver"):
        watched(page, broker.url)
        row(page, "leaver").click()
        expect(page.locator("#one-facts")).to_contain_text("key_test")
    expect(page.locator("#one-state")).to_have_text("It has ended.")
    expect(page.get_by_role("button", name="Disconnect")).to_be_disabled()
    page.said[:] = [line for line in page.said if "404" not in line]


def test_text_that_looks_like_markup_or_turns_text_round_is_shown_as_it_is(page, broker):
    hostile = "<img src=x onerror=alert(1)><b>bold</b>"
    with broker.client("hostile", hostile):
        watched(page, broker.url)
        row(page, hostile).click()
        expect(page.locator("#one-facts")).to_contain_text(hostile)
        page.get_by_label("Search connections").fill("<b>")
        expect(page.locator("#shown")).to_have_text("1 of 1")
        assert page.locator("#rows :is(img, b), #one :is(img, b)").count() == 0


def test_it_is_used_by_keyboard_alone(page, broker):
    with broker.client("one"), broker.client("two"):
        page.goto(f"{broker.url}/dashboard/operator")
        typed(page, "Operator key", OPERATOR)
        in_state(page, "live")
        row(page, "two").wait_for()
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        expect(page.locator("#one-title")).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator("#one")).to_be_hidden()
        page.keyboard.press("/")
        page.keyboard.type("two")
        expect(page.locator("#shown")).to_have_text("1 of 2")


# --- tasks -------------------------------------------------------------------


def test_tasks_are_told_by_what_they_do_and_one_of_them_is_opened(page, broker):
    with broker.client("one"), broker.client("two"):
        watched(page, broker.url)
        group = page.locator("#tasks li").filter(has_text="sse: idle")
        expect(group).to_contain_text("one of 2")
        expect(page.locator("#tasks")).to_contain_text("Hub.deliver")
        group.get_by_role("button").click()
        expect(page.locator("#one-facts")).to_contain_text("acct_test")


# --- a crowd -----------------------------------------------------------------


def test_ten_thousand_connections_are_scrolled_with_a_screens_worth_of_elements(page, crowd):
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "operator/connections" in request.url else None)
    watched(page, crowd, CROWD_OPERATOR)
    expect(page.locator("#shown")).to_have_text("10\u202f000 of 10\u202f000")
    row(page, "agent-09950").wait_for()
    page.get_by_role("columnheader", name="client").get_by_role("button").click()
    row(page, "agent-00000").wait_for()
    elements = page.locator("#rows *").count()
    asked.clear()
    page.locator("#table").evaluate(SCROLL)
    row(page, "agent-09000").wait_for()
    expect(row(page, "…")).to_have_count(0)
    assert page.locator("#rows *").count() <= elements + 40
    assert len(set(asked)) < 10, "pages that one scrolls over are not asked for"
    page.locator("#table").press("End")
    row(page, "agent-09999").wait_for()
    page.locator("#table").press("Home")
    row(page, "agent-00000").wait_for()


def test_of_a_crowd_one_account_is_shown_and_all_again(page, crowd):
    watched(page, crowd, CROWD_OPERATOR)
    page.locator("#accounts").get_by_role("button", name="acct_contoso").click()
    expect(page.locator("#shown")).to_have_text("4\u202f960 of 10\u202f000")
    page.locator("#account").click()
    expect(page.locator("#shown")).to_have_text("10\u202f000 of 10\u202f000")
    expect(page.locator("#tasks")).to_contain_text("websocket: catching up")


def test_the_pages_picture_in_the_docs_is_one_of_it(page, crowd):
    """With BROKER_PICTURES (`make pictures`) it is taken again, when the charts are full."""
    watched(page, crowd, CROWD_OPERATOR)
    row(page, "agent-09950").wait_for()
    expect(page.locator("#tasks")).to_contain_text("websocket: catching up")
    if os.environ.get("BROKER_PICTURES"):
        page.wait_for_timeout(105_000)
        PICTURE.write_bytes(in_few_colours(page.screenshot()))
    for png in (page.screenshot(), PICTURE.read_bytes()):
        assert struct.unpack(">II", png[16:24]) == (1440, 900)


# --- for everybody -----------------------------------------------------------


def test_nothing_on_it_keeps_anybody_out_light_or_dark(page, crowd, barriers):
    page.goto(f"{crowd}/dashboard/operator")
    assert barriers(page) == []
    watched(page, crowd, CROWD_OPERATOR)
    row(page, "agent-09950").click()
    page.get_by_role("button", name="Its tasks").click()
    expect(page.locator("#one-tree")).not_to_be_empty()
    expect(page.locator("#tasks")).to_contain_text("websocket: idle")
    assert barriers(page) == []
    page.emulate_media(color_scheme="dark")
    page.get_by_role("button", name="Disconnect").click()
    assert barriers(page) == []


def test_on_a_narrow_screen_it_is_one_column_with_its_parts_below(page, crowd, barriers):
    watched(page, crowd, CROWD_OPERATOR)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    bottom = page.locator(".bottom")
    for width, views in [(1000, ("Broker", "Connections")), (360, ("Charts", "Broker", "Connections"))]:
        page.set_viewport_size({"width": width, "height": 740})
        for name in views:
            bottom.get_by_role("button", name=name).click()
            assert page.evaluate(wide) <= 0, (width, name)
        row(page, "agent-09950").wait_for()
        assert barriers(page) == [], width
    row(page, "agent-09950").click()
    expect(page.locator("#one-facts")).to_contain_text("agent-09950")
    assert barriers(page) == []
