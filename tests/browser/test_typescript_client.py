"""The client library for TypeScript in a page: its modules as they are, with no build step."""

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browser.test_pages import INBOX, broker_for
from conformance.packages import built_typescript
from conformance.scenes.hooks import BODY, SECRET, signed
from documents import ROOT, blocks

EMPTY = "<!doctype html><link rel=icon href=data:,><title>empty</title>"


@pytest.fixture(scope="module")
def modules():
    """The folder of what a page loads."""
    return built_typescript() / "dist"


@contextmanager
def site(modules):
    """A page's own server: the page, the client's modules, and tokens of a broker."""

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            if name:
                self._answer("text/javascript", (modules / name).read_bytes())
            else:
                self._answer("text/html", self.server.text.encode())

        def do_POST(self):
            self.server.tokens += 1
            self._answer("text/plain", self.server.broker.token().encode())

        def _answer(self, kind, body):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Security-Policy", self.server.policy)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def serving(modules, tmp_path_factory):
    """A page's server and a broker that lets it in."""
    with site(modules) as server, broker_for(tmp_path_factory.mktemp("broker"), server.url) as server.broker:
        server.stream = f"{server.broker.url.replace('http', 'ws')}/v1/stream"
        yield server


@pytest.fixture
def served(serving):
    """The same, as if it had just begun."""
    serving.text, serving.tokens, serving.policy = EMPTY, 0, "script-src 'self'; object-src 'none'"
    return serving


OPENED = """async ([url, options]) => {
    const library = await import('/daimon-email/browser.js');
    const token = async () => (await fetch('/token', { method: 'POST' })).text();
    Object.assign(window, library, { told: [], heard: [] });
    window.client = new DaimonWebSocket({ url, token, reconnectDelay: 10, ...options });
    client.on('message.received', ({ subject }) => { heard.push(subject); });
    for (const name of ['connected', 'disconnected', 'error']) client.on(name, (said) => { told.push([name, said]); });
    await client.connect();
}"""


def opened(page, served, **options):
    """Let a page open a client: `client`; what it hears is in `heard`, what else happens in `told`."""
    page.goto(served.url)
    page.evaluate(OPENED, [served.stream, options])


def hears(page, *subjects):
    """Wait until the page has heard so much, and no more."""
    page.wait_for_function("count => heard.length >= count", arg=len(subjects))
    assert page.evaluate("heard") == list(subjects)


def has_left(page, broker):
    """Wait until the broker has no connection."""
    while broker.connections():
        page.wait_for_timeout(10)


def test_the_page_that_the_library_shows_works_as_it_is_printed(page, served):
    [block] = blocks("html", "client", page=ROOT / "clients" / "typescript" / "README.md")
    assert "wss://broker.example/v1/stream" in block.text
    served.policy = ""  # its script stands in the page
    served.text = EMPTY + "<body>" + block.text.replace("wss://broker.example/v1/stream", served.stream)
    frames = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(frame)))
    page.goto(served.url)
    while not frames:
        page.wait_for_timeout(10)  # lets it tell what happens
    served.broker.publish("<b>Hello</b>")
    page.get_by_text("<b>Hello</b>").wait_for()
    assert page.said == []


def test_each_event_comes_once_over_a_lost_connection_with_a_fresh_token_in_no_url(page, served):
    sockets = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    opened(page, served)
    served.broker.publish("one")
    hears(page, "one")
    served.broker.cut()
    served.broker.publish("missed")
    hears(page, "one", "missed")
    assert page.evaluate("told.map(([name]) => name)") == ["connected", "disconnected", "connected"]
    assert len(sockets) == served.tokens == 2
    assert not [url for url in sockets if "wst_" in url]
    page.evaluate("client.close()")
    has_left(page, served.broker)
    assert page.said == []


def test_commands_waits_and_webhooks_work_in_a_page(page, served):
    opened(page, served)
    assert "server_time" in page.evaluate("client.ping()")
    served.broker.publish("Your code is 493201")
    found = page.evaluate(
        "client.waitFor('message.received', { where: { subject: 'code' }, since: '5m', extract: ['code'] })"
    )
    assert found["codes"] == ["493201"]
    verified = page.evaluate(
        "([headers, body, secret]) => verify(headers, body, secret).then(({ message }) => message.subject)",
        [signed(SECRET), BODY, SECRET],
    )
    assert verified == "Grüße"
    refused = page.evaluate("client.command('nobody_does_this').catch(({ name, code }) => [name, code])")
    assert refused == ["CommandError", "unknown_action"]


def test_a_page_that_hands_nothing_on_lets_go_of_what_it_cannot_keep_and_gets_it_later(page, served):
    opened(page, served)
    page.evaluate("client.pause()")
    count = 60
    for number in range(count):
        message = {"message_id": f"msg_{number}", "subject": str(number), "body": "x" * 250_000}
        event = {"type": "message.received", "inbox_id": INBOX, "payload": {"message": message}}
        served.broker.ask("POST", "/v1/events", event)
    page.wait_for_function("told.some(([name]) => name === 'disconnected')")
    assert page.evaluate("told") == [["connected", None], ["disconnected", "what came waits for its handlers"]]
    page.evaluate("client.resume()")
    hears(page, *map(str, range(count)))


def test_a_store_of_the_page_keeps_its_place_over_a_reload(page, served):
    shown = (ROOT / "clients" / "typescript" / "README.md").read_text()
    [store] = re.findall(r"`cursorStore: (\{.*?\})`", shown)
    script = OPENED.replace("...options", f"cursorStore: {store}, ...options")
    for subjects in (["one"], ["missed", "two"]):
        page.goto(served.url)
        page.evaluate(script, [served.stream, {}])
        served.broker.publish(subjects[-1])
        hears(page, *subjects)
        page.goto("about:blank")
        served.broker.publish("missed")


def test_a_handler_may_close_the_client(page, served):
    opened(page, served)
    page.evaluate("client.on('message.received', async () => { await client.ping(); await client.close(); }) && 0")
    served.broker.publish("last")
    page.evaluate("client.closed")
    has_left(page, served.broker)


def test_a_key_is_not_taken_in_a_page(page, served):
    page.goto(served.url)
    said = page.evaluate(
        """async () => {
            const { DaimonWebSocket } = await import('/daimon-email/browser.js');
            try { new DaimonWebSocket({ apiKey: 'dm_live_test' }); } catch ({ message }) { return message; }
        }"""
    )
    assert said == "token: a browser sends no key; give a function that fetches tokens"


def test_an_address_without_a_host_is_below_the_pages_own(page, served):
    page.goto(served.url)
    with page.expect_event("websocket") as opening:
        page.evaluate(
            """async () => {
                const { DaimonWebSocket } = await import('/daimon-email/browser.js');
                void new DaimonWebSocket({ url: '/v1/stream?watch=1', token: () => 'wst_x' }).connect().catch(() => {});
            }"""
        )
    assert opening.value.url.startswith(f"{served.url.replace('http', 'ws')}/v1/stream?watch=1&inbox_ids=*&client_id=")
