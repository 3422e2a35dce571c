"""Other people's clients against the broker: `websockets` and `httpx-sse` (Python), `ws` (Node) and curl.

The Node client needs its package: `npm install ws` somewhere, and BROKER_TEST_NODE_MODULES=somewhere/node_modules.
"""

import json
import os
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice

import httpx
import pytest
import trio
import websockets.sync.client
from clients import ACCOUNT, ALICE, ask, configured, connected, event, numbers, serving, until
from httpx_sse import connect_sse
from processes import free_port
from trio.testing import wait_all_tasks_blocked as blocked
from websockets.exceptions import ConnectionClosed, InvalidStatus

from broker import LimitsConfig, ServerConfig, open_broker, serve

# Both do the same: say on standard output, one JSON a line, what they see; publish and ping once; come back with
# their last cursor whenever they are closed with 1012; leave after the event of number 99.

PYTHON_CLIENT = """
import asyncio, json, sys
from urllib.parse import urlencode
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

url, key = sys.argv[1:]

def say(**what):
    print(json.dumps(what), flush=True)

async def pong(websocket):
    await (await websocket.ping())
    say(pong=True)

async def main():
    query, first = {"inbox_ids": "in_1"}, True
    while True:
        try:
            headers = {"Authorization": f"Bearer {key}"}
            websocket = await connect(f"{url}?{urlencode(query)}", additional_headers=headers, open_timeout=60)
        except (OSError, InvalidHandshake):
            await asyncio.sleep(0.02)
            continue
        try:
            async with websocket:
                async for message in websocket:
                    frame = json.loads(message)
                    say(**frame)
                    query["since"] = frame.get("cursor", frame.get("to")) or query.get("since", "5m")
                    if first:
                        first = False
                        command = {"type": "test.event", "inbox_id": "in_1", "payload": {"number": 1}}
                        await websocket.send(json.dumps({"action": "publish", "request_id": "r", "events": [command]}))
                        task = asyncio.create_task(pong(websocket))
                    if frame.get("payload", {}).get("number") == 99:
                        return
        except ConnectionClosed:
            pass
        say(closed=websocket.close_code)

asyncio.run(main())
"""

NODE_CLIENT = """
const WebSocket = require('ws');
const [url, key] = process.argv.slice(1);
const say = (what) => console.log(JSON.stringify(what));
let since, first = true;

function open() {
  const query = new URLSearchParams({ inbox_ids: 'in_1', ...(since && { since }) });
  const ws = new WebSocket(`${url}?${query}`, { headers: { Authorization: `Bearer ${key}` } });
  let left = false;
  ws.on('error', () => {});
  ws.on('ping', () => { if (first !== 'pinged') { first = 'pinged'; say({ ping: true }); } });
  ws.on('pong', () => say({ pong: true }));
  ws.on('message', (data, isBinary) => {
    const frame = JSON.parse(data.toString());
    say(frame);
    since = frame.cursor || frame.to || since || '5m';
    if (first === true) {
      first = false;
      const event = { type: 'test.event', inbox_id: 'in_1', payload: { number: 1 } };
      ws.send(JSON.stringify({ action: 'publish', request_id: 'r', events: [event] }));
      ws.ping('hello');
    }
    if (frame.payload && frame.payload.number === 99) { left = true; ws.close(1000); }
  });
  ws.on('close', (code) => {
    if (left) return;
    if (code !== 1006) say({ closed: code });
    setTimeout(open, 20);
  });
}
open();
"""


def node_command() -> list[str]:
    """The start of the Node client's command line; skips where it cannot run."""
    if shutil.which("node") is None:
        pytest.skip("there is no node on this machine")
    modules = os.environ.get("BROKER_TEST_NODE_MODULES", "")
    if not os.path.isdir(os.path.join(modules, "ws")):
        pytest.skip("BROKER_TEST_NODE_MODULES names no node_modules with `ws` in it")
    return ["node", "-e", NODE_CLIENT, "--"]


def python_command() -> list[str]:
    return [sys.executable, "-c", PYTHON_CLIENT]


class Told:
    """What a client says, line by line."""

    def __init__(self, output: trio.abc.ReceiveStream) -> None:
        self._output = output
        self._data = b""

    async def next(self) -> dict:
        while b"\n" not in self._data:
            part = await self._output.receive_some()
            assert part, "the client ended"
            self._data += bytes(part)
        line, _, self._data = self._data.partition(b"\n")
        return json.loads(line)

    async def until(self, name: str, value: object = None) -> list[dict]:
        """All up to the first that has this field (of this value)."""
        told = []
        while True:
            told.append(await self.next())
            if name in told[-1] and value in (None, told[-1][name]):
                return told

    async def number(self, number: int) -> list[dict]:
        """All up to the event of this number."""
        told: list[dict] = []
        while numbers(told[-1:]) != [number]:
            told.append(await self.next())
        return told


@asynccontextmanager
async def started(command: list[str], address):
    """A client that runs; it must end by itself, and well."""
    environment = os.environ | {"NODE_PATH": os.environ.get("BROKER_TEST_NODE_MODULES", "")}
    process = await trio.lowlevel.open_process(
        [*command, f"ws://127.0.0.1:{address[1]}/v1/stream", ALICE], stdout=subprocess.PIPE, env=environment
    )
    try:
        yield Told(process.stdout)
        assert await process.wait() == 0
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.kill()
            await process.wait()
            await process.stdout.aclose()


@pytest.mark.parametrize("command", [python_command, node_command], ids=["websockets", "ws"])
async def test_a_foreign_client_connects_publishes_pings_and_survives_a_restart(command):
    line = command()
    config = configured(limits=LimitsConfig(heartbeat_seconds=0.1))
    with trio.fail_after(60):
        async with open_broker(config) as old, open_broker(config) as new, trio.open_nursery() as nursery:
            ended = trio.Event()

            async def serve_old(*, task_status: trio.TaskStatus[list]) -> None:
                await serve(old, host="127.0.0.1", port=free_port(), task_status=task_status)
                ended.set()

            (address,) = await nursery.start(serve_old)
            async with started(line, address) as told:
                ready = await told.next()
                assert ready["type"] == "connection.ready"
                seen = await told.number(1)
                if not any("pong" in item for item in seen):
                    seen += await told.until("pong")
                if not any("response" in item.values() for item in seen):
                    seen += await told.until("type", "response")
                if command is node_command and not any("ping" in item for item in seen):
                    await told.until("ping")
                answer = next(item for item in seen if item.get("type") == "response")
                delivered = next(item for item in seen if "payload" in item)
                assert answer["result"]["events"][0]["event_id"] == delivered["event_id"]
                assert delivered["payload"] == {"number": 1}

                await old.publish(ACCOUNT, event(2))
                await told.number(2)
                old.start_draining()
                seen = await told.until("closed")
                assert seen[-1] == {"closed": 1012}
                (draining,) = [item for item in seen if item.get("type") == "server.draining"]
                assert draining["reconnect_after_ms"] > 0
                await ended.wait()

                # Another broker on the same port: the old one's cursors mean nothing to it, and it says so.
                await new.publish(ACCOUNT, event(3))
                await nursery.start(partial(serve, new, host="127.0.0.1", port=address[1]))
                (ready,) = await told.until("type", "connection.ready")
                assert ready["replay"] == {"recovered": False, "count": 1}
                gap, _ = await told.number(3)
                assert (gap["type"], gap["from"], gap["count"]) == ("replay.gap", None, None)
                await new.publish(ACCOUNT, event(99))
                await told.number(99)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("command", [python_command, node_command], ids=["websockets", "ws"])
async def test_a_foreign_client_that_comes_back_with_its_cursor_has_every_event_once(command):
    line = command()
    with trio.fail_after(60):
        async with serving() as served, started(line, served.address) as told:
            seen = await told.number(1)
            for number in range(2, 30):
                if number % 9 == 0:
                    for connection in list(served.server.connections.values()):
                        connection.end(1012, "restart")
                await served.broker.publish(ACCOUNT, event(number))
            await served.broker.publish(ACCOUNT, event(99))
            seen += await told.number(99)
            assert numbers(seen) == [*range(1, 30), 99]
            assert not [item for item in seen if item.get("type") == "replay.gap"]


# --- the sync client of `websockets` -----------------------------------------


async def in_thread(served, act, query: str = "", key: str | None = ALICE, **options):
    """Run ``act(websocket)`` in a thread."""

    def run() -> object:
        url = f"ws://127.0.0.1:{served.address[1]}/v1/stream?{query}"
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        patience = {"open_timeout": 60, "close_timeout": 60, "ping_timeout": 60}
        with websockets.sync.client.connect(url, additional_headers=headers, **patience, **options) as websocket:
            return act(websocket)

    with trio.fail_after(60):
        return await trio.to_thread.run_sync(run)


async def test_the_sync_client_receives_publishes_and_pings():
    def act(websocket) -> None:
        assert json.loads(websocket.recv(timeout=60))["type"] == "connection.ready"
        assert websocket.ping().wait(60)
        websocket.send(json.dumps({"action": "publish", "request_id": "r", "events": event(1)}))
        frames = [json.loads(websocket.recv(timeout=60)) for _ in range(2)]
        assert {frame["type"] for frame in frames} == {"response", "test.event"}

    async with serving() as served:
        await in_thread(served, act, "inbox_ids=in_1")
        with trio.fail_after(60):
            await served.until_gone()


async def test_the_sync_client_may_send_fragments():
    def act(websocket) -> str:
        websocket.recv(timeout=60)
        websocket.send(iter(['{"action":', '"ping","request_id"', ':"é"}'.replace("é", "r")]))
        return json.loads(websocket.recv(timeout=60))["request_id"]

    async with serving() as served:
        assert await in_thread(served, act) == "r"


@pytest.mark.parametrize(
    ("sent", "code"),
    [("x" * 1_100_000, 1009), ("é" * 600_000, 1009), (["[]"] * 20, 1008)],
    ids=["characters", "bytes", "bad frames"],
)
async def test_the_sync_client_understands_our_close(sent, code):
    def act(websocket) -> int:
        websocket.recv(timeout=60)
        try:
            for message in sent if isinstance(sent, list) else [sent]:
                websocket.send(message)
            while True:
                websocket.recv(timeout=60)
        except ConnectionClosed as closed:
            return closed.rcvd.code

    async with serving() as served:
        assert await in_thread(served, act) == code


async def test_the_sync_client_is_refused_with_a_body_it_can_read():
    async with serving() as served:
        with pytest.raises(InvalidStatus) as refused:
            await in_thread(served, lambda _: None, key="dm_live_nobody")
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body)["error"]["code"] == "unauthorized"


async def test_the_sync_client_is_given_our_subprotocol_and_may_carry_a_token_beside_it():
    def act(websocket) -> str | None:
        assert json.loads(websocket.recv(timeout=60))["type"] == "connection.ready"
        return websocket.subprotocol

    async with serving() as served:
        assert await in_thread(served, act) is None
        assert await in_thread(served, act, subprotocols=["daimon.v1"]) == "daimon.v1"
        token = (await ask(served.address, "POST", "/v1/websocket/token", key=ALICE, body=b"")).result["token"]
        assert await in_thread(served, act, key=None, subprotocols=["daimon.v1", f"bearer.{token}"]) == "daimon.v1"


# --- httpx-sse ---------------------------------------------------------------


async def test_httpx_sse_reads_the_event_stream_and_goes_on_from_its_last_event_id():
    async with serving() as served:

        def read(query: str, count: int, **headers: str) -> list[tuple[str, int]]:
            """So many events as they come, each with its id; whatever comes has JSON."""
            url = f"http://{served.address[0]}:{served.address[1]}/v1/events/stream?inbox_ids=in_1{query}"
            headers["Authorization"] = f"Bearer {ALICE}"
            heard = []
            with (
                httpx.Client(timeout=60, trust_env=False) as client,
                connect_sse(client, "GET", url, headers=headers) as source,
            ):
                for said in source.iter_sse():
                    heard += [(said.id, number) for number in numbers([said.json()])]
                    if len(heard) == count:
                        break
            return heard

        await served.broker.publish(ACCOUNT, [event(1), event(2)])
        heard = await trio.to_thread.run_sync(read, "&since=5m", 2)
        assert [number for _, number in heard] == [1, 2]
        await served.broker.publish(ACCOUNT, event(3))
        again = await trio.to_thread.run_sync(lambda: read("", 1, **{"Last-Event-ID": heard[-1][0]}))
        assert [number for _, number in again] == [3]


async def test_httpx_sse_takes_no_heartbeat_for_an_event():
    async with (
        serving(configured(limits=LimitsConfig(heartbeat_seconds=0.05))) as served,
        trio.open_nursery() as nursery,
    ):

        def read() -> list[str]:
            url = f"http://{served.address[0]}:{served.address[1]}/v1/events/stream?inbox_ids=in_1&since=5m&key={ALICE}"
            with httpx.Client(timeout=60, trust_env=False) as client, connect_sse(client, "GET", url) as source:
                return [said.json()["type"] for said in islice(source.iter_sse(), 3)]

        async def publish_after_heartbeats() -> None:
            await served.broker.publish(ACCOUNT, event(1))
            await until(lambda: served.server.connections)
            [stream] = served.server.connections.values()
            for _ in range(3):
                stream.ask_for_life()
                await blocked(0.01)
            await served.broker.publish(ACCOUNT, event(2))

        nursery.start_soon(publish_after_heartbeats)
        assert await trio.to_thread.run_sync(read) == ["connection.ready", "test.event", "test.event"]


# --- curl --------------------------------------------------------------------


async def curl(served, path: str, *arguments: str, body: bytes = b"", key: str = ALICE) -> tuple[int, dict]:
    """Status and JSON of a request by curl; skips where there is none."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    url = f"http://127.0.0.1:{served.address[1]}{path}"
    command = ["curl", "--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"]
    done = await trio.run_process(
        [*command, "--header", f"Authorization: Bearer {key}", *arguments, url], stdin=body, capture_stdout=True
    )
    text, _, status = done.stdout.rpartition(b"\n")
    return int(status), json.loads(text)


async def test_curl_publishes_one_a_list_and_lines():
    async with serving() as served, connected(served.address, "inbox_ids=in_1") as client:
        one = json.dumps(event(1))
        status, answer = await curl(served, "/v1/events", "--json", one)
        assert (status, len(answer["result"]["events"])) == (200, 1)
        several = json.dumps([event(2), event(3)])
        status, answer = await curl(served, "/v1/events", "--data", several)
        assert (status, len(answer["result"]["events"])) == (200, 2)
        lines = b"\n".join(json.dumps(event(n)).encode() for n in (4, 5)) + b"\n"
        ndjson = ("--header", "Content-Type: application/x-ndjson", "--data-binary", "@-")
        status, answer = await curl(served, "/v1/events", *ndjson, body=lines)
        assert (status, len(answer["result"]["events"])) == (200, 2)
        assert numbers([await client.next() for _ in range(5)]) == [1, 2, 3, 4, 5]


async def test_curl_sends_a_large_body_after_100_continue_and_a_chunked_one():
    body = json.dumps([event(n, size=10_000) for n in range(200)]).encode()
    async with serving() as served:
        status, answer = await curl(served, "/v1/events", "--data-binary", "@-", body=body)
        assert (status, len(answer["result"]["events"])) == (200, 200)
        chunked = ("--header", "Transfer-Encoding: chunked", "--data-binary", "@-")
        status, answer = await curl(served, "/v1/events", *chunked, body=body)
        assert (status, len(answer["result"]["events"])) == (200, 200)


async def test_curl_reads_a_refusal_of_a_body_that_is_too_large():
    async with serving(configured(limits=LimitsConfig(max_body_bytes=1_000))) as served:
        status, answer = await curl(served, "/v1/events", "--data-binary", "@-", body=b" " * 3_000_000)
        assert (status, answer["error"]["code"]) == (413, "too_large")
        status, answer = await curl(served, "/v1/events", "--data-binary", "@-", body=b"[]", key="dm_live_nobody")
        assert (status, answer["error"]["code"]) == (401, "unauthorized")


async def test_curl_that_offers_http2_is_answered_in_http_1():
    async with serving() as served:
        status, answer = await curl(served, "/readyz", "--http2")
        assert (status, answer) == (200, {"result": {"status": "ready"}})
        status, answer = await curl(served, "/v1/events", "--http2", "--data-binary", "[]")
        assert (status, answer) == (200, {"result": {"events": []}})


async def test_curl_that_takes_us_for_a_proxy_is_answered():
    async with serving() as served:
        proxy = ("--proxy", f"http://127.0.0.1:{served.address[1]}", "--noproxy", "")
        status, answer = await curl(served, "/healthz", *proxy)
        assert (status, answer) == (200, {"result": {"status": "ok"}})


async def test_curl_asks_over_a_socket_file(tmp_path):
    path = tmp_path / "broker.sock"
    async with serving(configured(server=ServerConfig(unix=str(path)))) as served:
        status, answer = await curl(served, "/readyz", "--unix-socket", str(path))
        assert (status, answer) == (200, {"result": {"status": "ready"}})
