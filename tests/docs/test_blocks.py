"""What the documentation shows is run: every fenced block, in its language, or it says that it is an excerpt."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from documents import MANNERS, PAGES, blocks, blocks_of
from node import node_program
from processes import free_port, serving
from reconnecting import ACCOUNT, KEY, PORT, broker_on_a_road, comes_back_by_cursor, running

from broker.config import parse_config
from broker.keys import hash_key

GUARD_SECONDS = 60
OPERATOR = "dm_operator_docs"
CONFIG = f"""
[[accounts]]
id = "{ACCOUNT}"
[[accounts.keys]]
id = "key_agent"
sha256 = "{hash_key(KEY)}"
[[operators]]
id = "op_main"
sha256 = "{hash_key(OPERATOR)}"
"""


def each(language, manner=""):
    return pytest.mark.parametrize("block", blocks(language, manner), ids=str)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_in_which_language_it_is_and_how_it_is_run(page):
    found = blocks_of(page)
    for block in found:
        assert block.language in MANNERS, f"{block}: {block.language!r}"
        assert block.manner in MANNERS[block.language], f"{block}: {block.manner!r}"
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(found), "a fence that is no block"


@each("toml")
def test_toml_loads_as_a_configuration(block):
    parse_config(block.text, {}, source=str(block))


@each("json")
def test_json_is_json(block):
    decoder, text = json.JSONDecoder(), block.text.strip()
    while text:
        _, end = decoder.raw_decode(text)
        text = text[end:].lstrip()


# --- programs that end by themselves -----------------------------------------


def environment(port, folder):
    """What a reader has in a terminal: the program on the PATH, a key, and a folder of one's own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    where = {"BROKER_URL": f"http://127.0.0.1:{port}", "BROKER_SERVER__PORT": port, "BROKER_KEY": KEY}
    return {**os.environ, "PATH": path, "HOME": str(folder), "BROKER_OPERATOR_KEY": OPERATOR, **where}


def run(command, port, folder):
    """Run a program to its end, end what it left in the background, and return what they said."""
    said = folder / "said.txt"
    with (
        said.open("w") as output,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment(port, folder),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as program,
    ):
        try:
            program.wait(GUARD_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
    assert program.returncode == 0, said.read_text()
    return said.read_text()


@contextmanager
def broker_there(folder):
    """A broker like the one that the pages speak of, and its port."""
    path = folder / "there.toml"
    path.write_text(CONFIG)
    with serving("--config", path) as (_, url):
        yield url.rpartition(":")[2]


@each("python")
def test_a_python_program_runs_to_its_end(block, tmp_path):
    program = tmp_path / "program.py"
    with broker_there(tmp_path) as port:
        program.write_text(block.text.replace(PORT, port))
        run([sys.executable, "-W", "error", program], port, tmp_path)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks("bash", page=page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_work_one_after_the_other(page, tmp_path):
    texts = [block.text for block in blocks("bash", page=page)]
    starts_its_own = any("broker serve" in text for text in texts)
    with nullcontext(str(free_port())) if starts_its_own else broker_there(tmp_path) as port:
        ready = f"curl -s -o ready --retry 50 --retry-delay 1 --retry-connrefused http://127.0.0.1:{port}/readyz"
        session = f"\n{ready}\n".join(texts).replace(PORT, port)
        run(["bash", "-euo", "pipefail", "-c", session], port, tmp_path)


# --- clients -----------------------------------------------------------------


@each("js", "client")
async def test_a_client_in_javascript_comes_back_by_cursor(block):
    async with broker_on_a_road() as (broker, road, url):
        with node_program(block.text.replace(f"localhost:{PORT}", url.removeprefix("http://"))) as command:
            async with running(command, {"BROKER_KEY": KEY, "BROKER_URL": url}) as lines:
                await comes_back_by_cursor(lines, broker, road)
