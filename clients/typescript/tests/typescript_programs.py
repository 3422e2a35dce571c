"""Programs that are printed somewhere, run as they are printed: a folder for them, and one of them at work."""

import json
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

from conformance.packages import TYPESCRIPT
from documents import ROOT, blocks

PRINTED = Path(__file__).parent / "printed"
PLAN = {path.stem: path for path in (PRINTED / "plan").glob("*.ts")}
"""The plan's snippets, to the letter."""
PAGE = ROOT / "clients" / "typescript" / "README.md"
BLOCKS = {f"page-{block.line}": block for block in blocks("ts", "client", page=PAGE)}
SECONDS = 60


def fill_workshop(folder):
    """Make a folder one in which the package is installed, with all snippets in it, also as JavaScript."""
    (folder / "node_modules" / "ws").mkdir(parents=True)
    (folder / "node_modules" / "daimon-email").symlink_to(TYPESCRIPT)
    shutil.copy(PRINTED / "ws.mjs", folder / "node_modules" / "ws" / "index.mjs")
    (folder / "node_modules" / "ws" / "package.json").write_text('{"exports": "./index.mjs"}')
    (folder / "package.json").write_text('{"type": "module"}')
    for name in ("globals.d.ts", "tsconfig.json", "run.mjs"):
        shutil.copy(PRINTED / name, folder)
    for snippet in PLAN.values():
        shutil.copy(snippet, folder)
    for name, block in BLOCKS.items():
        (folder / f"{name}.ts").write_text(block.text)
    tsc = subprocess.run(
        [TYPESCRIPT / "node_modules" / ".bin" / "tsc", "-p", folder],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert tsc.returncode == 0, tsc.stdout


class Program:
    """A snippet at work."""

    def __init__(self, process):
        self._process = process

    def says(self, *expected):
        """Read on to this line, and return what was said before it."""
        before = []
        while (said := json.loads(self._process.stdout.readline())) != list(expected):
            before.append(said)
        return before

    def tell(self, said):
        """Write it a line."""
        self._process.stdin.write(json.dumps(said) + "\n")
        self._process.stdin.flush()


@contextmanager
def running(folder, name, broker, **environment):
    """Run a snippet of the workshop, for as long as the block lasts; it must end well, and have said no more."""
    snippet = folder / name if name.endswith(".mjs") else folder / "js" / f"{name}.js"
    where = {"PATH": str(Path(shutil.which("node")).parent), "PACKAGE": str(TYPESCRIPT / "package.json")}
    as_whom = {"DAIMON_WS_URL": broker.url, "KEY": broker.key, "SNIPPET": str(snippet)}
    with subprocess.Popen(
        ["node", str(folder / "run.mjs")],
        env=where | as_whom | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Program(process)
        process.stdin.close()
        assert process.wait(SECONDS) == 0
        assert process.stdout.read() == ""
