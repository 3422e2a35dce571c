"""The programs in examples/: each does what it says, run as a reader would run it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import pytest
import trio
from apis import SECRET
from clients import until
from conformance.packages import built_typescript
from documents import ROOT
from node import node_program
from reconnecting import ACCOUNT, INBOX, KEY, broker_on_a_road, comes_back_by_cursor, running
from standardwebhooks.webhooks import Webhook

from broker import (
    AccessConfig,
    AccountConfig,
    BrowsersConfig,
    CommandContext,
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
    "agent.py": "test_the_agent_answers_each_mail_in_its_thread_once",
    "agent.mjs": "test_the_agent_answers_each_mail_in_its_thread_once",
    "terminal_dashboard.py": "test_the_dashboard_counts_what_comes_into_each_inbox",
    "notifications.py": "test_urgent_mail_is_told_a_person_also_what_came_while_nobody_looked",
    "hybrid.py": "test_what_comes_by_the_stream_and_by_a_webhook_is_done_once",
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


# --- with a client library ---------------------------------------------------


@asynccontextmanager
async def of_the_library(url, name, *arguments, **environment):
    """One of the programs that use a client library, connected."""
    there = {"PYTHONPATH": str(ROOT / "clients" / "python"), "DAIMON_API_KEY": KEY, "DAIMON_WS_URL": url}
    with in_node(name) if name.endswith(".mjs") else nullcontext(python(name, *arguments)) as command:
        async with running(command, {**there, **environment}) as lines:
            yield lines


@contextmanager
def in_node(name):
    """The command that runs an example where the library for TypeScript is installed."""
    library = built_typescript()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "node_modules").mkdir()
        (Path(folder) / "node_modules" / "daimon-email").symlink_to(library)
        shutil.copy(EXAMPLES / name, folder)
        yield ["node", str(Path(folder) / name)]


def opened(broker):
    return broker.statistics().connections.opened.get("websocket", 0)


def a_mail(number, inbox_id=INBOX, **message):
    message = {"message_id": f"msg_{number}", "from": "ada@example.com", "labels": [], **message}
    event = {"type": "message.received", "event_id": f"evt_{number}", "inbox_id": inbox_id}
    return {**event, "payload": {"message": message}}


@pytest.mark.parametrize("agent", ["agent.py", "agent.mjs"])
async def test_the_agent_answers_each_mail_in_its_thread_once(agent):
    sent = []
    async with broker_on_a_road() as (broker, _, url):

        @broker.command("send_email")
        async def send_email(params: dict, context: CommandContext):
            sent.append((context.inbox_id, params["subject"], params["in_reply_to"], context.once))
            return {"message_id": "sent"}

        with trio.fail_after(GUARD_SECONDS):
            for number in (1, 2):  # the second program goes on where the first was ended
                async with of_the_library(url, agent) as lines:
                    await until(lambda n=number: opened(broker) == n)
                    await broker.publish(ACCOUNT, a_mail(number, subject=f"Question {number}", body="How are you?"))
                    await lines.until(f"answered evt_{number}: Question {number}")
    assert sent == [(INBOX, f"Re: Question {n}", f"msg_{n}", f"evt_{n}") for n in (1, 2)]


async def test_the_dashboard_counts_what_comes_into_each_inbox():
    async with (
        broker_on_a_road() as (broker, _, url),
        of_the_library(url, "terminal_dashboard.py", "in_1", "in_2") as lines,
    ):
        with trio.fail_after(GUARD_SECONDS):
            await until(lambda: opened(broker) == 1)
            bounced = {"message_id": "msg_9", "recipient": "nobody@example.com", "reason": "no such mailbox"}
            await broker.publish(
                ACCOUNT,
                [
                    a_mail(1, "in_1", subject="One\x1b[2J"),
                    a_mail(2, "in_3", subject="Elsewhere"),
                    a_mail(3, "in_2", subject="Two"),
                    {"type": "message.bounced", "inbox_id": "in_1", "payload": bounced},
                ],
            )
            await lines.until("no such mailbox")
    assert [line.split() for line in lines.seen] == [
        ["in_1", "1", "received", "0", "bounced", "One?[2J"],
        ["in_2", "1", "received", "0", "bounced", "Two"],
        ["in_1", "1", "received", "1", "bounced", "!", "nobody@example.com:", "no", "such", "mailbox"],
    ]


async def test_urgent_mail_is_told_a_person_also_what_came_while_nobody_looked(tmp_path):
    store = {"STORE": str(tmp_path / "cursor")}
    async with broker_on_a_road() as (broker, _, url):
        with trio.fail_after(GUARD_SECONDS):
            async with of_the_library(url, "notifications.py", **store) as lines:
                await until(lambda: opened(broker) == 1)
                await broker.publish(ACCOUNT, [a_mail(1, subject="Lunch?"), a_mail(2, subject="[URGENT] Fire")])
                assert await lines.until("Urgent") == "Urgent mail | From ada@example.com: [URGENT] Fire"
                await until(lambda: '"c' in (tmp_path / "cursor").read_text())
            await broker.publish(ACCOUNT, a_mail(3, subject="Water", labels=["priority"]))
            async with of_the_library(url, "notifications.py", NOTIFY="true", **store) as lines:
                await lines.until("From ada@example.com: Water")


async def test_what_comes_by_the_stream_and_by_a_webhook_is_done_once():
    async with (
        broker_on_a_road() as (broker, road, url),
        of_the_library(url, "hybrid.py", "0", WEBHOOK_SECRET=WEBHOOK_SECRET) as lines,
        httpx.AsyncClient() as client,
    ):

        async def post(event):
            body = json.dumps({**event, "created_at": "2026-11-23T10:00:00.000Z", "cursor": "c1"})
            now = datetime.now(tz=UTC)
            headers = {
                "webhook-id": event["event_id"],
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": Webhook(WEBHOOK_SECRET).sign(event["event_id"], now, body),
            }
            return (await client.post(f"http://127.0.0.1:{port}/", content=body, headers=headers)).status_code

        with trio.fail_after(GUARD_SECONDS):
            port = (await lines.until("listening")).split()[1]
            await until(lambda: opened(broker) == 1)
            first, second, third = (a_mail(number, subject=f"Mail {number}") for number in (1, 2, 3))
            await broker.publish(ACCOUNT, first)
            await lines.until("evt_1 by the stream: Mail 1")
            assert await post(first) == 204
            await lines.until("evt_1 was done already")
            road.cut()
            await broker.publish(ACCOUNT, second)
            assert await post(second) == 204
            await lines.until("evt_2 by the webhook: Mail 2")
            road.mend()
            await broker.publish(ACCOUNT, third)
            assert await lines.until("evt_3") == "evt_3 by the stream: Mail 3"
        assert (await client.post(f"http://127.0.0.1:{port}/", content=b"{}")).status_code == 403
        assert not [line for line in lines.seen if "evt_2 by the stream" in line]
