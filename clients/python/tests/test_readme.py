"""What the client's page shows, runs as it is printed, on both event loops."""

import ast
import inspect
import re
import types

import daimon_email
import pytest
from daimon_email import DaimonWebSocket
from documents import ROOT, blocks

PAGE = ROOT / "clients" / "python" / "README.md"
BLOCKS = blocks("python", "client", page=PAGE)


@pytest.fixture
def printed(local_broker, run, monkeypatch, tmp_path, capsys):
    """Run a block: a mail is there, another comes when it has connected, and what would run for ever ends then."""
    monkeypatch.setenv("DAIMON_WS_URL", local_broker.url)
    monkeypatch.setenv("DAIMON_API_KEY", local_broker.key)
    monkeypatch.chdir(tmp_path)
    connect = DaimonWebSocket.connect

    async def until_a_mail_is_handled(client):
        client.on("connected", lambda: local_broker.receive_mail(subject="Hello"))
        client.on("message.received", lambda message: client.close())
        await connect(client)

    monkeypatch.setattr(DaimonWebSocket, "connect", until_a_mail_is_handled)
    local_broker.receive_mail(subject="Your code is 493201")

    def run_block(text):
        code = compile(text, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

        async def main():
            made = types.FunctionType(code, {"inbox_api_key": local_broker.key})()
            if inspect.isawaitable(made):
                await made

        run(main)
        return capsys.readouterr().out.splitlines()

    return run_block


PLAN = """
from daimon_email import DaimonWebSocket

client = DaimonWebSocket(
    api_key=inbox_api_key,
    auto_reconnect=True,
    reconnect_delay=5
)

@client.on('message.received')
def handle_message(message):
    print(f"New message: {message.subject}")

@client.on('connected')
def handle_connected():
    print('WebSocket connected')

@client.on('disconnected')
def handle_disconnected(reason):
    print(f"WebSocket disconnected: {reason}")

await client.connect()
"""
"""The plan's snippet, to the letter."""


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_runs(block, printed):
    printed(block.text)


@pytest.mark.parametrize("text", [PLAN, BLOCKS[0].text], ids=["plan", "page"])
def test_the_plans_snippet_does_what_it_says(printed, text):
    assert printed(text) == ["WebSocket connected", "New message: Hello"]


def test_a_wait_prints_the_code(printed):
    [block] = [block for block in BLOCKS if "wait_for" in block.text]
    assert printed(block.text) == ["Your code is 493201 ('493201',) ()"]


def test_every_option_has_its_row():
    table = PAGE.read_text().partition("## Options")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(rows) == sorted(inspect.signature(DaimonWebSocket).parameters)


@pytest.mark.parametrize("name", daimon_email.__all__)
def test_every_public_name_is_documented(name):
    assert re.search(rf"\b{name}\b", PAGE.read_text())
