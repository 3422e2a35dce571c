"""The programs in examples/: each does what it says, run as a reader would run it."""

import json
import os
import signal
import subprocess
import sys

import httpx
import msgspec
import pytest
import trio
from apis import SECRET
from clients import until
from documents import ROOT
from node import node_program
from reconnecting import INBOX, KEY, broker_on_a_road, comes_back_by_cursor, running

from broker import (
    AccessConfig,
    AccountConfig,
    BrowsersConfig,
    CommandsConfig,
    Config,
    KeyConfig,
    RequestError,
    open_broker,
)
from broker.access.keys import Key
from broker.config import StorageConfig, WebhooksConfig
from broker.keys import hash_key
from broker.testing import connect
from broker.webhooks.endpoint import NewEndpoint

EXAMPLES = ROOT / "examples"
GUARD_SECONDS = 60
RUN = {
    "follow.py": "test_the_client_in_python_comes_back_by_cursor_with_a_fresh_token",
    "follow.mjs": "test_the_client_in_node_comes_back_by_cursor",
    "browser/index.html": "test_the_page_comes_back_by_cursor_with_a_fresh_token",
    "browser/server.py": "test_the_page_comes_back_by_cursor_with_a_fresh_token",
    "operator_api.py": "test_the_operators_api_knows_keys_and_does_commands_once",
    "receiver.py": "test_the_receivers_in_python_and_node_share_a_store_and_do_each_event_once",
    "receiver.mjs": "test_the_receivers_in_python_and_node_share_a_store_and_do_each_event_once",
    "embedding.py": "test_the_embedding_program_serves_and_ends_well",
}


def test_every_example_is_run():
    there = [path.relative_to(EXAMPLES) for path in EXAMPLES.rglob("*.*") if "__pycache__" not in path.parts]
    assert {str(path) for path in there} == set(RUN)
    assert set(RUN.values()) <= set(globals())


def python(name, *arguments):
    return [sys.executable, "-u", "-W", "error", str(EXAMPLES / name), *arguments]


# --- clients -----------------------------------------------------------------


async def test_the_client_in_python_comes_back_by_cursor_with_a_fresh_token():
    async with (
        broker_on_a_road() as (broker, road, url),
        running(python("follow.py", INBOX), {"BROKER_KEY": KEY, "BROKER_URL": url}) as lines,
    ):
        await comes_back_by_cursor(lines, broker, road)


async def test_the_client_in_node_comes_back_by_cursor():
    async with broker_on_a_road() as (broker, road, url):
        with node_program((EXAMPLES / "follow.mjs").read_text()) as command:
            async with running([*command, INBOX], {"BROKER_KEY": KEY, "BROKER_URL": url}) as lines:
                await comes_back_by_cursor(lines, broker, road)


@pytest.mark.parametrize("client", ["follow.py", "follow.mjs"])
async def test_a_client_that_is_refused_for_good_ends_and_says_why(client):
    async with broker_on_a_road() as (_, _, url):
        with node_program((EXAMPLES / "follow.mjs").read_text()) as node:
            command = python(client) if client.endswith(".py") else node
            environment = {**os.environ, "BROKER_KEY": "dm_live_unknown", "BROKER_URL": url}
            with trio.fail_after(GUARD_SECONDS):
                done = await trio.run_process(command, env=environment, capture_stderr=True, check=False)
    assert done.returncode == 1
    assert b"401" in done.stderr


BROWSER = """
import { readFileSync } from "node:fs";
import WebSocket from "ws";

// What the page needs of a browser, and no more.
const made = () => ({ set textContent(text) { console.log(text); }, prepend() {} });
globalThis.WebSocket = class extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols, { origin: process.env.PAGE });
    this.onerror = () => {}; // where a browser only writes to its console
  }
};
globalThis.document = { getElementById: made, createElement: made };
const fetched = globalThis.fetch;
globalThis.fetch = (path, options) => fetched(new URL(path, process.env.PAGE), options);

const page = await (await fetch("/")).text();
const [, script] = page.match(/<script type="module">([^]*)<\\/script>/);
await import("data:text/javascript," + encodeURIComponent(script));
"""


async def test_the_page_comes_back_by_cursor_with_a_fresh_token():
    async with broker_on_a_road() as (broker, road, url):
        environment = {"BROKER_KEY": KEY, "BROKER_URL": url, "PORT": "0"}
        async with running(python("browser/server.py"), environment) as server:
            page = await server.until("http://")
            broker.reload(msgspec.structs.replace(broker.config, browsers=BrowsersConfig(origins=(page,))))
            with node_program(BROWSER) as command:
                async with running(command, {"PAGE": page}) as lines:
                    await comes_back_by_cursor(lines, broker, road)


# --- servers -----------------------------------------------------------------


async def test_the_operators_api_knows_keys_and_does_commands_once():
    environment = {"CALLOUT_SECRET": SECRET, "AGENT_KEY": "dm_live_agent", "PORT": "0"}
    async with running(python("operator_api.py"), environment) as api:
        with trio.fail_after(GUARD_SECONDS):
            url = await api.until("http://")
            config = Config(
                access=AccessConfig(url=f"{url}/access", secret=SECRET),
                commands=CommandsConfig(url=f"{url}/commands", secret=SECRET),
            )
            async with open_broker(config) as broker:
                async with connect(broker, "dm_live_agent") as client:
                    assert client.ready["account_id"] == "acct_demo"
                    sent = await client.ask("send_email", {"to": "ada@example.com"}, inbox_id="inbox_abc123")
                    assert sent == {"message_id": "sent_0"}
                    for action, code in (("send_email", "invalid_params"), ("fly", "unknown_action")):
                        with pytest.raises(RequestError) as refused:
                            await client.ask(action)
                        assert refused.value.code == code
                with pytest.raises(RequestError, match="unauthorized"):
                    async with connect(broker, "dm_live_other"):
                        pass
            async with httpx.AsyncClient(trust_env=False) as stranger:
                answer = await stranger.post(f"{url}/access", json={"key_sha256": "0" * 64})
                assert answer.status_code == 403


def test_the_embedding_program_serves_and_ends_well():
    with subprocess.Popen(
        python("embedding.py"), stdout=subprocess.PIPE, text=True, env={**os.environ, "PORT": "0"}
    ) as program:
        try:
            url, key = program.stdout.readline().split()
            environment = {**os.environ, "BROKER_KEY": key, "BROKER_URL": url}
            ask = [sys.executable, "-m", "broker"]
            tail = [*ask, "tail", "--since", "5m", "--count", "1"]
            send = [*ask, "send", "send_email", "--inbox", "inbox_abc123", "--param", "to=ada@example.com"]
            run = {"env": environment, "stdout": subprocess.PIPE, "check": True, "timeout": GUARD_SECONDS, "text": True}
            assert '"subject":"Hello"' in subprocess.run(tail, **run).stdout
            assert json.loads(subprocess.run(send, **run).stdout)["to"] == "ada@example.com"
            program.send_signal(signal.SIGTERM)
            assert program.wait(GUARD_SECONDS) == 0
        finally:
            program.kill()


# --- receivers of webhooks


WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def taken_by(lines, ids):
    """Note which events a receiver does, for ever."""
    while True:
        ids.append((await lines.until("done")).split()[1])


async def test_the_receivers_in_python_and_node_share_a_store_and_do_each_event_once(tmp_path):
    environment = {"WEBHOOK_SECRET": WEBHOOK_SECRET, "STORE": str(tmp_path / "seen")}
    key = KeyConfig(id="key", sha256=hash_key(KEY), scopes=("publish", "webhooks"))
    config = Config(
        accounts=(AccountConfig(id="acct", keys=(key,)),),
        storage=StorageConfig(path=str(tmp_path / "broker.db"), min_free_bytes=0),
        webhooks=WebhooksConfig(allow_networks=("127.0.0.0/8",), allow_http=True),
    )
    with node_program((EXAMPLES / "receiver.mjs").read_text()) as node:
        async with (
            open_broker(config) as broker,
            running(python("receiver.py", "0"), environment) as of_python,
            running([*node, "0"], environment) as of_node,
        ):
            library = Key("library", "acct", frozenset({"webhooks"}))
            made = []
            for lines in (of_python, of_node):
                port = (await lines.until("listening")).split()[1]
                asked = NewEndpoint(url=f"http://127.0.0.1:{port}/", secret=WEBHOOK_SECRET)
                made.append(await broker.webhooks.endpoints.make(library, asked))
            for endpoint in made:
                tested = await broker.webhooks.try_out(library, endpoint.webhook_id)
                assert (tested.status, tested.error) == (200, None)
            event = {"type": "message.received", "inbox_id": INBOX, "payload": {"subject": "Grüße"}}
            published = [each.event_id for each in await broker.publish("acct", [event] * 20)]
            done: list[str] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(taken_by, of_python, done)
                nursery.start_soon(taken_by, of_node, done)
                with trio.fail_after(GUARD_SECONDS):
                    for endpoint in made:
                        await delivered(broker, library, endpoint.webhook_id, len(published))
                    await until(lambda: len(done) >= len(published))
                nursery.cancel_scope.cancel()
            assert sorted(done) == sorted(published)


async def delivered(broker, key, webhook_id, count):
    while True:
        page = await broker.webhooks.deliveries(key, webhook_id, {"state": "delivered"})
        if len(page.deliveries) == count:
            return
        await trio.sleep(0.02)


async def test_the_receivers_refuse_what_is_not_signed(tmp_path):
    environment = {"WEBHOOK_SECRET": WEBHOOK_SECRET, "STORE": str(tmp_path / "seen")}
    with node_program((EXAMPLES / "receiver.mjs").read_text()) as node:
        for command in (python("receiver.py", "0"), [*node, "0"]):
            async with running(command, environment) as lines, httpx.AsyncClient() as client:
                url = f"http://127.0.0.1:{(await lines.until('listening')).split()[1]}/"
                headers = {"webhook-id": "evt_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
                assert (await client.post(url, content=b"{}", headers=headers)).status_code == 403
                assert (await client.post(url, content=b"{}")).status_code == 403
