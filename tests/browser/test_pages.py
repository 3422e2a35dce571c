"""Pages that follow a broker, in a real browser: by `EventSource`, and by WebSocket with a token in its subprotocol."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from documents import ROOT, blocks
from processes import KEY, free_port, serving

from broker.keys import hash_key

CONFIG = f"""
[[accounts]]
id = "acct_test"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
"""
INBOX = "inbox_abc123"


class Broker:
    """A running broker, asked over HTTP with the account's key."""

    def __init__(self, url):
        self.url = url

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Authorization": f"Bearer {KEY}"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer).get("result")

    def publish(self, *subjects):
        for subject in subjects:
            message = {"type": "message.received", "inbox_id": INBOX, "payload": {"message": {"subject": subject}}}
            self.ask("POST", "/v1/events", message)

    def token(self, **narrowing):
        return self.ask("POST", "/v1/websocket/token", narrowing)["token"]

    def until_expired(self, token):
        """Open streams with a token until it opens none any more."""
        try:
            while True:
                urllib.request.urlopen(f"{self.url}/v1/events/stream?token={token}", timeout=60).close()
                time.sleep(0.1)
        except urllib.error.HTTPError as refused:
            refused.close()
            if refused.code != 401:
                raise

    def connections(self):
        return self.ask("GET", "/v1/connections")["connections"]

    def cut(self):
        """End every connection."""
        for connection in self.connections():
            self.ask("DELETE", f"/v1/connections/{connection['connection_id']}")


@pytest.fixture
def site():
    """An empty page of an origin of its own."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><link rel=icon href=data:,><title>empty</title>")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def broker_for(tmp_path, *origins):
    path = tmp_path / "broker.toml"
    path.write_text(f"{CONFIG}\n[browsers]\norigins = {list(origins)}\n")
    with serving("--config", path) as (_, url):
        yield Broker(url)


FOLLOW = """([url, token]) => {
  window.heard = [];
  window.cursors = [];
  %s
  window.events = events;
  events.addEventListener("message", ({ data, lastEventId }) => {
    const frame = JSON.parse(data);
    window.heard.push(frame.payload?.message.subject ?? frame.type);
    window.cursors.push(lastEventId);
  });
}"""


def follow(page, broker, token):
    """Run what docs/fallbacks.md shows, with this broker."""
    [block] = blocks("js", "excerpt", page=ROOT / "docs" / "fallbacks.md")
    assert "https://broker.example/" in block.text
    page.evaluate(FOLLOW % block.text.replace("https://broker.example/", "${url}/"), [broker.url, token])


def hears(page, *expected):
    """Wait until the page has heard so much, and no more."""
    page.wait_for_function("count => heard.length >= count", arg=len(expected))
    assert page.evaluate("heard") == list(expected)


def test_an_event_source_reads_the_stream_and_comes_back_by_its_last_event_id(page, site, tmp_path):
    with broker_for(tmp_path, site) as broker:
        page.goto(site)
        follow(page, broker, broker.token())
        hears(page, "connection.ready")
        broker.publish("one", "two")
        hears(page, "connection.ready", "one", "two")
        broker.cut()
        broker.publish("missed")
        hears(page, "connection.ready", "one", "two", "connection.ready", "missed")
        broker.publish("last")
        hears(page, "connection.ready", "one", "two", "connection.ready", "missed", "last")
        [connection] = broker.connections()
        assert connection["transport"] == "sse"
        assert [line[:6] for line in page.said] == ["{type:"] * 6  # the example's own, and no complaint


def test_a_page_of_an_origin_that_is_not_listed_hears_nothing(page, site, tmp_path):
    with broker_for(tmp_path, "https://app.example") as broker:
        page.goto(site)
        follow(page, broker, broker.token())
        page.wait_for_function("events.readyState === EventSource.CLOSED")
        assert broker.connections() == []
        assert page.evaluate("heard") == []


def test_an_event_source_whose_token_has_expired_gives_up_and_another_goes_on_from_its_last_event(page, site, tmp_path):
    with broker_for(tmp_path, site) as broker:
        page.goto(site)
        token = broker.token(ttl_seconds=5)
        follow(page, broker, token)
        hears(page, "connection.ready")
        broker.publish("one")
        hears(page, "connection.ready", "one")
        broker.until_expired(token)
        broker.cut()  # the browser comes back in a second
        broker.publish("missed")
        page.wait_for_function("events.readyState === EventSource.CLOSED")
        cursor = page.evaluate("cursors.at(-1)")
        assert cursor
        follow(page, broker, f"{broker.token()}&since={cursor}")
        hears(page, "connection.ready", "missed")


def test_a_page_may_fetch_with_a_key_and_read_why_it_is_refused(page, site, tmp_path):
    """A preflight is asked for; what is answered may be read."""
    with broker_for(tmp_path, site) as broker:
        page.goto(site)
        asked = """async ([url, key]) => {
            const answer = await fetch(`${url}/v1/events?inbox_ids=*`, { headers: { Authorization: `Bearer ${key}` } });
            return [answer.status, await answer.json()];
        }"""
        assert page.evaluate(asked, [broker.url, KEY])[0] == 200
        status, answer = page.evaluate(asked, [broker.url, "dm_live_nobody"])
        assert (status, answer["error"]["code"]) == (401, "unauthorized")


# --- by WebSocket ----------------------------------------------------------------


@contextmanager
def example_site(broker_url, port):
    """examples/browser/server.py, which has the key and makes tokens."""
    program = [sys.executable, str(ROOT / "examples" / "browser" / "server.py")]
    environment = {**os.environ, "BROKER_URL": broker_url, "BROKER_KEY": KEY, "PORT": str(port)}
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def test_the_example_shows_each_event_once_over_a_cut_and_never_as_markup(page, tmp_path):
    port = free_port()
    with (
        broker_for(tmp_path, f"http://127.0.0.1:{port}") as broker,
        example_site(broker.url, port) as site,
    ):
        sockets = []
        page.on("websocket", lambda socket: sockets.append(socket.url))
        page.goto(site)
        page.get_by_text("connected", exact=True).wait_for()
        broker.publish("<img src=x onerror=alert(1)>")
        page.get_by_role("listitem").filter(has_text="<img").wait_for()
        assert page.locator("li img").count() == 0
        broker.cut()
        broker.publish("missed")
        page.get_by_role("listitem").filter(has_text="missed").wait_for()
        broker.publish("last")
        page.get_by_role("listitem").filter(has_text="last").wait_for()
        shown = [re.sub(r".*inbox_abc123 ", "", line) for line in page.get_by_role("listitem").all_inner_texts()]
        assert shown == ["last", "missed", "<img src=x onerror=alert(1)>"]
        assert len(sockets) == 2
        assert not [url for url in sockets if "wst_" in url]
        assert broker.connections()[0]["transport"] == "websocket"


def test_what_the_page_on_access_shows_opens_a_stream_and_its_protocol_is_chosen(page, site, tmp_path):
    shown = '`new WebSocket(url, ["daimon.v1", "bearer.wst_…"])`'
    assert shown in (ROOT / "docs" / "access.md").read_text(encoding="utf-8")
    opened = shown.strip("`").replace('"bearer.wst_…"', "`bearer.${token}`")
    with broker_for(tmp_path, site) as broker:
        page.goto(site)
        found = page.evaluate(
            f"""([url, token]) => new Promise((resolve, reject) => {{
                const ws = {opened};
                ws.onmessage = ({{ data }}) => resolve([ws.protocol, JSON.parse(data).type]);
                ws.onclose = ({{ code }}) => reject(new Error(code));
            }})""",
            [f"{broker.url.replace('http', 'ws')}/v1/stream", broker.token()],
        )
        assert found == ["daimon.v1", "connection.ready"]
    assert page.said == []
