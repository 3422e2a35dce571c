"""Profiles of a server while it is measured: collapsed stacks, by py-spy where it is Python, else by perf."""

import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .options import Options
from .peers.adapter import Running
from .results import Hot, Row

HOTTEST = 12
_STOP_SECONDS = 30
_SAMPLES_PER_SECOND = 200


@dataclass
class Profile:
    """What was found, once the measurement is over."""

    file: str = ""
    hot: list[Hot] = field(default_factory=list)

    def into(self, row: Row) -> Row:
        """Put it into a row; nothing if there was none."""
        row.profile, row.hot = self.file, self.hot
        return row


@contextmanager
def profiled(options: Options, name: str, running: Running) -> Iterator[Profile]:
    """Profile the server meanwhile, if that was chosen and a profiler is here; it costs the server some percent."""
    profile = Profile()
    if not options.profile or not running.process_ids:
        yield profile
        return
    options.out.mkdir(parents=True, exist_ok=True)
    collapsed = options.out / f"profile-{name}.txt"
    process_id = running.process_ids[-1]  # of a master and its workers, a worker
    record = _py_spy if _is_python(process_id) else _perf
    with record(process_id, collapsed):
        yield profile
    if collapsed.exists():
        profile.file, profile.hot = collapsed.name, hottest(collapsed.read_text(encoding="utf-8").splitlines())


def hottest(stacks: Sequence[str], count: int = HOTTEST) -> list[Hot]:
    """Return the innermost functions of collapsed stacks (``a;b;c SAMPLES``), the most frequent first."""
    samples: Counter[str] = Counter()
    for stack in stacks:
        frames, _, number = stack.rpartition(" ")
        # A stack that was read while it changed may have no name.
        samples[frames.rpartition(";")[2] or "[unknown]"] += int(number)
    whole = samples.total()
    return [Hot(function, number / whole) for function, number in samples.most_common(count)]


def _is_python(process_id: int) -> bool:
    return "python" in Path(f"/proc/{process_id}/exe").resolve().name


@contextmanager
def _py_spy(process_id: int, collapsed: Path) -> Iterator[None]:
    program = shutil.which("py-spy", path=Path(sys.executable).parent) or shutil.which("py-spy")
    if program is None:
        print("profile: py-spy is not here (dependency group bench)", file=sys.stderr)
        yield
        return
    arguments = ["record", "--pid", str(process_id), "--rate", str(_SAMPLES_PER_SECOND), "--nonblocking", "--function"]
    with _until_left([program, *arguments, "--format", "raw", "--output", str(collapsed)]):
        yield


@contextmanager
def _perf(process_id: int, collapsed: Path) -> Iterator[None]:
    program = shutil.which("perf")
    if program is None:
        print("profile: perf is not here", file=sys.stderr)
        yield
        return
    data = collapsed.with_suffix(".perf")
    arguments = ["record", "--quiet", "--freq", str(_SAMPLES_PER_SECOND), "-g", "--pid", str(process_id)]
    try:
        with _until_left([program, *arguments, "--output", str(data)]):
            yield
        script = [program, "script", "--input", str(data), "--fields", "ip,sym"]
        listing = subprocess.run(script, capture_output=True, text=True, check=False).stdout
        stacks = collapse(listing)
        if stacks:
            collapsed.write_text("\n".join(stacks) + "\n", encoding="utf-8")
    finally:
        data.unlink(missing_ok=True)


def collapse(listing: str) -> list[str]:
    """Return the collapsed stacks of what `perf script` lists: a paragraph a sample, the innermost frame first."""
    samples: Counter[str] = Counter()
    for paragraph in listing.split("\n\n"):
        frames = [words[1] for line in paragraph.splitlines() if len(words := line.split(maxsplit=1)) == 2]
        if frames:
            samples[";".join(reversed(frames))] += 1
    return [f"{stack} {number}" for stack, number in samples.most_common()]


@contextmanager
def _until_left(command: Sequence[str]) -> Iterator[None]:
    """Run a profiler meanwhile, and let it write what it has."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
