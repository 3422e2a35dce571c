"""Standard output that takes nothing: a full disk, a reader that has had enough. It is never taken for the network."""

import ast
import shlex
from pathlib import Path

import pytest
from processes import COMMAND, GUARD_SECONDS, KEY, process, serving

import broker.cli
from broker.keys import hash_key

CONFIG = f'[[accounts]]\nid = "acct_test"\n[[accounts.keys]]\nid = "key_test"\nsha256 = "{hash_key(KEY)}"\n'
MODULES = sorted(Path(broker.cli.__path__[0]).glob("*.py"))
FULL = Path("/dev/full")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("output") / "broker.toml"
    path.write_text(CONFIG)
    with serving("--config", path) as (_, url):
        yield url


def prints(call: ast.Call) -> bool:
    """Whether a call prints on standard output by itself: `click.echo` without `err=True`, `print`."""
    name = ast.unparse(call.func)
    return name in ("print", "click.echo") and not any(each.arg in ("err", "file") for each in call.keywords)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_all_that_is_printed_goes_one_way(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and prints(node)]
    assert len(calls) == (path.stem == "options"), [ast.unparse(call) for call in calls]


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "verb", ["completion bash", "publish --type job.done --payload {}", "tail --since 1h", "doctor --samples 0"]
)
def test_where_the_disk_is_full_that_is_one_line_and_exit_code_1(verb, url):
    broker = shlex.join([*COMMAND, *shlex.split(verb)])
    with process(command=["sh", "-c", f"exec {broker} > {FULL}"], BROKER_URL=url) as ended:
        assert ended.wait(GUARD_SECONDS) == 1
        assert ended.stderr.read().splitlines()[-1] == "Error: standard output: No space left on device"


def test_a_reader_that_has_enough_of_what_the_doctor_says_is_no_fault_of_the_network(url):
    with process("doctor", "--samples", "0", BROKER_URL=url) as doctor:
        doctor.stdout.close()
        assert doctor.wait(GUARD_SECONDS) == 0
        assert doctor.stderr.read() == ""
