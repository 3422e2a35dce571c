"""What is written in a noisy hour of hostile clients holds no secret: none of a credential, a payload or a setting."""

import json
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial

import pytest
import trio
from apis import json_answer, running_api
from clients import BINARY, CLOSE, TEXT, ask, command, masked, open_socket, post_events, reset, until, upgrade_head

from broker.keys import hash_key

MARK = "XYZZY"
"""Is in every secret, and in nothing else."""
KEY = f"dm_live_{MARK}_good_key_good_key_good_key"
UNKNOWN = f"dm_live_{MARK}_bad_key"
OPERATOR = f"dm_operator_{MARK}_of_all"
WHSEC = f"whsec_{MARK}{'ABCDEFG' * 5}{MARK}AAA"
PAYLOAD = {"message": {"subject": f"{MARK} subject", "body": f"{MARK}\nINFO all is well", MARK: [f"{MARK}\x1b[2J"]}}
GUARD_SECONDS = 60

SERVE_WITH_BAD_HANDLERS = """
import contextlib
import broker
import broker.transport.refusals as refusals
import broker.transport.server as server
import broker.webhooks.sender as sender
from broker.cli.cli import main

@contextlib.asynccontextmanager
async def opened_with_bad_handlers(config):
    async with broker.open_broker(config) as opened:
        @opened.command("raise")
        async def failing(params: dict, context) -> dict:
            try:
                raise KeyError(params["message"])
            except KeyError as error:
                raise ExceptionGroup(f"two of {params}", [ValueError(str(params)), OSError(5, str(params))]) from error

        @opened.command("refuse")
        async def refusing(params: dict, context) -> dict:
            raise broker.CommandError("no_such_thing", f"There is no {params}")

        @opened.command("return")
        async def returning(params: dict, context) -> dict:
            return {"unserializable": type(str(params), (), {})()}

        yield opened

refusals.MOST = refusals.MOST_OF_ONE = 1_000_000  # each is told, and not ten a minute
sender.ATTEMPT_SECONDS = 3  # who is silent is not waited for longer
server.open_broker = opened_with_bad_handlers
main()
"""


def config_for(api_url, folder):
    return f"""
[storage]
path = "{folder}/broker.db"
[webhooks]
allow_http = true
allow_networks = ["127.0.0.0/8"]
[logs]
format = "FORMAT"
level = "debug"
[tokens]
secret = "{MARK} is a secret of more than thirty-two characters"
[limits]
heartbeat_seconds = 1
[commands]
url = "{api_url}?secret={MARK}"
secret = "{WHSEC}"
timeout_seconds = 0.2
[access]
url = "{api_url}?secret={MARK}"
secret = "{WHSEC}"
timeout_seconds = 0.2
[[accounts]]
id = "acct_test"
tier = "enterprise"
[[accounts.keys]]
id = "key_test"
sha256 = "{hash_key(KEY)}"
scopes = ["subscribe", "command", "publish", "webhooks"]
[[accounts.webhooks]]
id = "wh_configured"
url = "{api_url}?secret={MARK}"
secret = "{WHSEC}"
[[operators]]
id = "op_main"
sha256 = "{hash_key(OPERATOR)}"
"""


@contextmanager
def noisy_server(config_path, log_path):
    with log_path.open("wb") as log:
        arguments = ["serve", "--port", "0", "--config", str(config_path)]
        started = subprocess.Popen([sys.executable, "-c", SERVE_WITH_BAD_HANDLERS, *arguments], stdout=log, stderr=log)
        guard = threading.Timer(GUARD_SECONDS, started.kill)
        guard.start()
        try:
            yield started
        finally:
            guard.cancel()
            started.kill()
            started.wait()


async def address_in(log_path):
    await until(lambda: b"listening on http://127.0.0.1:" in log_path.read_bytes())
    text = log_path.read_text()
    return "127.0.0.1", int(text.partition("http://127.0.0.1:")[2].split()[0])


HEADS = [
    f"GET /v1/stream?key={UNKNOWN} HTTP/1.1\r\nHost: x\r\n\r\n",
    f"GET /v1/stream?key={KEY}&key={KEY} HTTP/1.1\r\nHost: x\r\n\r\n",
    f"GET /v1/events?key={KEY}&limit={KEY} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    f"GET /v1/events?key={KEY}&limit={MARK} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    f"GET /v1/events?key={KEY}&inbox_ids={MARK}%20{MARK} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    f"GET /v1/events?key={KEY}&since={MARK}%20 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    f"GET /v1/events?key={KEY}&{MARK}=%ff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    f"GET /{KEY} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    f"{MARK} /?key={KEY} HTTP/1.1\r\nHost: x\r\n\r\n",
    f"GET /?key={KEY} HTTP/9.9\r\nHost: x\r\n\r\n",
    f"GET /?key={KEY} {MARK}\r\n\r\n",
    f"GET / HTTP/1.1\r\nHost: {MARK} {KEY}\r\n\r\n",
    f"GET / HTTP/1.1\r\nHost: x\r\n{MARK} : {KEY}\r\n\r\n",
    f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {UNKNOWN}\r\nContent-Length: {MARK}\r\n\r\n",
    "GET / HTTP/1.1\r\n" + f"Cookie: {KEY}\r\n" * 200 + "\r\n",
    f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wst_{MARK}.{MARK}\r\nConnection: close\r\n\r\n",
    f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {MARK}\r\nCookie: {KEY}\r\nConnection: close\r\n\r\n",
    f"\x16\x03\x01{MARK}\r\n\r\n",
]
BODIES = [
    {"type": MARK, "payload": PAYLOAD},
    {"type": "a.b", "payload": MARK},
    {"type": "a.b", "payload": PAYLOAD, "event_id": f"{MARK} {MARK}"},
    {"type": "a.b", "payload": PAYLOAD, "inbox_id": f"{MARK} {MARK}"},
    {"type": "a.b", "payload": PAYLOAD, "created_at": MARK},
    {"type": "a.b", "payload": PAYLOAD, "account_id": f"{MARK}_not_ours"},
    {"type": "a.b", "payload": PAYLOAD, "inbox_ids": [MARK]},
    f'{{"type":"a.b","payload":{{"{MARK}":1e999}}}}'.encode(),
    f'{{"type":"a.b","payload":{{"{MARK}": {MARK}}}}}'.encode(),
    json.dumps(PAYLOAD).encode() + b"\xff",
]
FRAMES = [
    masked(TEXT, f"{MARK}".encode()) * 20,
    masked(TEXT, f'["{MARK}"]'.encode()),
    masked(BINARY, MARK.encode()),
    masked(TEXT, MARK.encode(), mask=False),
    masked(TEXT, MARK.encode() + b"\xff"),
    masked(TEXT, MARK.encode() * 300_000),
    masked(CLOSE, (4000).to_bytes(2) + f"{MARK} is why".encode()),
    masked(CLOSE, (1005).to_bytes(2) + MARK.encode()),
    masked(CLOSE, (1000).to_bytes(2) + b"\xff" + MARK.encode()),
    command(action=MARK, params=PAYLOAD),
    command(action=f"{MARK} {MARK}", params=PAYLOAD),
    command(action="subscribe", inbox_ids=[f"{MARK} {MARK}"]),
    command(action="subscribe", inbox_ids=["*"], since=f"{MARK} "),
    command(action="publish", events=[{"type": MARK, "payload": PAYLOAD}]),
    command(action="publish", events=[{"type": "a.b", "payload": PAYLOAD}]),
    command(action="raise", request_id=MARK, **PAYLOAD),
    command(action="refuse", **PAYLOAD),
    command(action="return", **PAYLOAD),
    command(action="send_email", **PAYLOAD),
]
GONE = json_answer({MARK: MARK}, 410)
ANSWERS = [
    json_answer({"result": MARK}),
    json_answer({MARK: MARK}),
    json_answer({"error": {"code": "nobody", "message": MARK}}),
    json_answer({"error": {"code": "nobody", "message": MARK}}, 400),
    json_answer({MARK: MARK}, 500),
    GONE,
    json_answer({"account_id": MARK + " ", "tier": MARK, "key_id": "k", "scopes": [MARK], "ttl_seconds": MARK}),
    f"HTTP/1.1 200 {MARK}\r\nContent-Length: 9\r\n\r\n{MARK}".encode(),
    f"HTTP/1.1 200 OK\r\n{MARK} : {MARK}\r\n\r\n".encode(),
    f"{MARK}\r\n\r\n".encode(),
    None,
]


MISTAKES = [
    f'sha256 = "{KEY}"',
    f'secret = "{MARK}',
    f"[[accounts]]\nid = '{MARK} {MARK}'",
    f'[tokens]\nsecret = "{MARK}"',
]
"""In a configuration that is read again."""


async def send(address, data, *, moment=0.3):
    """Send it, and look at whatever comes until the end, or until nothing came for a moment."""
    async with await open_socket(address) as stream:
        with trio.move_on_after(GUARD_SECONDS) as patience:
            try:
                await stream.send_all(data)
                async for _ in stream:
                    patience.deadline = trio.current_time() + moment
            except trio.BrokenResourceError:
                pass


async def ask_for(address, path, body):
    """Send a request, and wait for the end of its answer."""
    await send(address, _post(path, body), moment=GUARD_SECONDS)


async def hostile_client(address, frames):
    head = upgrade_head(f"inbox_ids=*&client_id=c{abs(hash(frames))}&key={KEY}", key=None)
    await send(address, head + frames)


async def make_noise(address, api, log_path):
    async with trio.open_nursery() as nursery:
        for head in HEADS:
            nursery.start_soon(send, address, head.encode("latin-1"))
        for body in BODIES:
            nursery.start_soon(partial(post_events, address, body, key=KEY))
        for frames in FRAMES:
            nursery.start_soon(hostile_client, address, frames)
    for number, answer in enumerate(ANSWERS):
        api.answer = answer
        endpoint = {"webhook_id": f"wh_{number}", "url": f"{api.url}/{MARK}?secret={MARK}", "secret": WHSEC}
        for body in (endpoint, {**endpoint, "url": f"{MARK}://{MARK}"}, {**endpoint, "secret": MARK}):
            await ask(address, "POST", "/v1/webhooks", key=KEY, body=json.dumps(body).encode())
        await post_events(address, {"type": "a.b", "payload": PAYLOAD}, key=KEY)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_for, address, f"/v1/webhooks/wh_{number}/test", b"{}")
            nursery.start_soon(hostile_client, address, command(action="send_email", **PAYLOAD))
            nursery.start_soon(send, address, upgrade_head(key=f"{UNKNOWN}_{number}"))
            body = json.dumps({"action": "send_email", **PAYLOAD}).encode()
            nursery.start_soon(ask_for, address, "/v1/commands", body)
            for action in ("raise", "refuse", "return"):
                body = json.dumps({"action": action, **PAYLOAD}).encode()
                nursery.start_soon(ask_for, address, "/v1/commands", body)
        if answer is GONE:
            await until(lambda: b"is disabled" in log_path.read_bytes())
    for _ in range(3):
        stream = await open_socket(address)
        await stream.send_all(upgrade_head("inbox_ids=*", key=KEY))
        reset(stream)


def _post(path, body):
    head = f"POST {path}?key={KEY} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_a_noisy_hour_of_hostile_clients_writes_no_secret(tmp_path, log_format):
    config_path, log_path = tmp_path / "broker.toml", tmp_path / "log"
    async with running_api() as api:
        config = config_for(api.url, tmp_path).replace("FORMAT", log_format)
        config_path.write_text(config)
        with noisy_server(config_path, log_path) as started:
            address = await address_in(log_path)
            answer = await ask(address, "POST", "/v1/websocket/token", key=KEY, body=b"{}")
            token = answer.result["token"]
            await send(address, upgrade_head(f"token={token}", key=None))
            await send(address, upgrade_head(f"token={token}x", key=None))
            await make_noise(address, api, log_path)
            for mistake in MISTAKES:
                config_path.write_text(f"{config}\n{mistake}\n")
                started.send_signal(signal.SIGHUP)
                await trio.sleep(0.05)
            await until(lambda: b"was not reloaded" in log_path.read_bytes())
            started.send_signal(signal.SIGTERM)
            await until(lambda: started.poll() is not None)
            assert started.returncode == 0
    written = log_path.read_text()
    happened = ("connection opened", "connection ended", "request refused", "handler of raise failed", "ExceptionGroup")
    for words in (
        *happened,
        "a head that was not understood",
        "operator's API",
        "not reloaded",
        "1002",
        "1008",
        "is disabled",
    ):
        assert words in written, "it was not noisy"
    assert MARK not in written, [line for line in written.splitlines() if MARK in line][:3]
    assert token[4:] not in written
    if log_format == "json":
        assert all(json.loads(line)["event"] for line in written.splitlines()[1:])
