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
from documents import ROOT
from node import node_program
from reconnecting import INBOX, KEY, broker_on_a_road, comes_back_by_cursor, running

from broker import AccessConfig, BrowsersConfig, CommandsConfig, Config, RequestError, open_broker
from broker.testing import connect

EXAMPLES = ROOT / "examples"
GUARD_SECONDS = 60
RUN = {
    "follow.py": "test_the_client_in_python_comes_back_by_cursor_with_a_fresh_token",
    "follow.mjs": "test_the_client_in_node_comes_back_by_cursor",
    "browser/index.html": "test_the_page_comes_back_by_cursor_with_a_fresh_token",
    "browser/server.py": "test_the_page_comes_back_by_cursor_with_a_fresh_token",
    "operator_api.py": "test_the_operators_api_knows_keys_and_does_commands_once",
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
