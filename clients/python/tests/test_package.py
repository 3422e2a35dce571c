"""The package: what is in it, what it needs, and that a type checker sees what a user writes."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from documents import ROOT

FOLDER = ROOT / "clients" / "python"
GUARD_SECONDS = 120


def test_the_wheel_has_all_modules_and_says_that_it_is_typed(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path]
    subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, timeout=GUARD_SECONDS)
    [wheel] = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("daimon_email-")}
    assert packed == {str(path.relative_to(FOLDER)) for path in FOLDER.glob("daimon_email/*.*")}
    assert "daimon_email/py.typed" in packed


def test_it_imports_what_it_says_that_it_needs_and_nothing_of_the_broker():
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    needed = {line.split(">")[0] for line in project["dependencies"]}
    imported = set()
    for path in FOLDER.glob("daimon_email/*.py"):
        if path.name != "testing.py":
            imported |= set(_imported(path))
    assert imported - sys.stdlib_module_names == needed


def _imported(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


USER = """
from daimon_email import DaimonWebSocket, Event, Message

client = DaimonWebSocket("dm_live_x", cursor_store=None)

@client.on("message.received")
async def answer(message: Message, event: Event) -> None:
    sent = await client.send_email(inbox_id=message.inbox_id, to=message.from_, subject=message.subject)
    reveal_type(message.labels)
    reveal_type(event.inbox_id)
    reveal_type(sent)

reveal_type(answer)

async def main() -> None:
    async with client as entered:
        reveal_type(entered)
        found = await entered.wait_for(where=lambda m: m.subject == "x")
        reveal_type(found)
    client.on("connected", print)
    await client.send_email(to="nobody says from which inbox")
"""


def test_a_type_checker_knows_what_a_handler_gets(tmp_path):
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file=", tmp_path / "user.py"]
    environment = {"MYPYPATH": str(FOLDER), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=GUARD_SECONDS)
    said = [line.partition(": ")[2] for line in done.stdout.splitlines() if "user.py" in line]
    assert [line.partition('"')[2].rstrip('"') for line in said if "Revealed" in line] == [
        "typing.Sequence[str]",
        "str | None",
        "daimon_email.events.Fields",
        "def (message: daimon_email.events.Message, event: daimon_email.events.Event) -> "
        "typing.Coroutine[Any, Any, None]",
        "daimon_email.client.DaimonWebSocket",
        "daimon_email.waiting.Found | None",
    ]
    assert [line for line in said if line.startswith("error")] == [
        'error: Missing named argument "inbox_id" for "send_email" of "Calls"  [call-arg]'
    ]
