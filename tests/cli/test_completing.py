"""`broker completion`: a script that a shell takes, and that completes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from broker.cli.cli import main
from broker.cli.completing import SHELLS

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def script(shell):
    answer = CliRunner().invoke(main, ["completion", shell])
    assert answer.exit_code == 0, answer.output
    return answer.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_finds_no_fault_with_its_script(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    checked = subprocess.run([shell, "-n"], input=script(shell), text=True, capture_output=True, timeout=60)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_asks_the_program_by_its_name(shell):
    assert f"_BROKER_COMPLETE={shell}_complete" in script(shell)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["broker", "to"], {"token", "top"}),
        (["broker", "keys", ""], {"new", "check"}),
        (["broker", "completion", "z"], {"zsh"}),
        (["broker", "tail", "--no"], {"--no-retry"}),
        (["broker", "keys", "new", "--tier", "g"], {"growth"}),
    ],
)
def test_bash_completes_verbs_options_and_choices(words, completed, tmp_path):
    (tmp_path / "broker.bash").write_text(script("bash"))
    asked = " ".join(f"'{word}'" for word in words)
    program = f"""
        . ./broker.bash
        COMP_WORDS=({asked}); COMP_CWORD={len(words) - 1}
        _broker_completion broker
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": PATH}
    said = subprocess.run(["bash", "-c", program], cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert set(said.stdout.decode().split()) == completed, said.stderr


def test_a_shell_that_is_not_known_is_refused_with_those_that_are():
    answer = CliRunner().invoke(main, ["completion", "tcsh"])
    assert answer.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in answer.stderr
