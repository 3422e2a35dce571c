"""The container file keeps its promises as far as they can be read, and what it runs needs no more than it is given."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from documents import ROOT
from processes import GUARD_SECONDS, free_port, process, shut_in

from broker.cli.cli import main
from broker.config import Config

FOLDER = ROOT / "contrib" / "container"
USER = "10001"


def instructions():
    """What the file says, in order: (stage, instruction, the rest of its line). Stage 0 is before the first FROM."""
    text = re.sub(r"^\s*#.*\n", "", (FOLDER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    stage = 0
    for line in text.replace("\\\n", " ").splitlines():
        name, _, rest = line.strip().partition(" ")
        if name:
            stage += name == "FROM"
            yield stage, name, " ".join(rest.split())


SAID = list(instructions())
IMAGE = max(stage for stage, _, _ in SAID)
"""The last stage."""


def of(name):
    """What the image says by an instruction."""
    return [rest for stage, found, rest in SAID if (stage, found) == (IMAGE, name)]


def words(text):
    """A list of words, which needs no shell."""
    assert re.fullmatch(r'\["[^"]*"(, "[^"]*")*\]', text), text
    return re.findall(r'"([^"]*)"', text)


def environment():
    """The image's settings of the environment that are the broker's."""
    return dict(setting.split("=", 1) for rest in of("ENV") for setting in rest.split())


def copied():
    """The checkout's files that are copied, each with where it goes in the stage that builds."""
    return [rest.split() for _, name, rest in SAID if name == "COPY" and not rest.startswith("--from=")]


def test_every_image_that_it_starts_from_is_pinned():
    variables = dict(rest.split("=", 1) for stage, name, rest in SAID if (stage, name) == (0, "ARG"))
    bases = [rest.split(" AS ")[0] for _, name, rest in SAID if name == "FROM"]
    assert len(bases) == 2
    for base in bases:
        found = re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], base)
        assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", found)
    assert variables["PYTHON_IMAGE"] >= "python:3.11"


def test_what_is_copied_from_a_stage_is_made_there():
    stages = {rest.split(" AS ")[1]: stage for stage, name, rest in SAID if name == "FROM" and " AS " in rest}
    [(origin, folder)] = re.findall(r"--from=(\w+) (\S+) \2", " ".join(of("COPY")))
    made = " ".join(rest for stage, name, rest in SAID if (stage, name) == (stages[origin], "RUN"))
    assert f"venv {folder} " in made
    assert environment()["PATH"] == f"{folder}/bin:$PATH"


def test_it_is_not_root_and_owns_its_volume_only():
    [user] = of("USER")
    assert user == f"{USER}:{USER}"
    [volume] = of("VOLUME")
    [made] = of("RUN")
    assert f"useradd --uid {USER}" in made
    assert f"install -d -o broker -g broker -m 0700 {words(volume)[0]}" in made
    assert made.count("-o broker") == 1
    order = [name for stage, name, _ in SAID if stage == IMAGE]
    assert order.index("USER") > max(place for place, name in enumerate(order) if name in ("RUN", "COPY"))


def test_what_it_runs_and_how_it_is_asked_for_its_health_are_verbs_of_the_program():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    [entry], [command], [health] = of("ENTRYPOINT"), of("CMD"), of("HEALTHCHECK")
    program, *arguments = words(entry) + words(command)
    assert program in scripts
    assert arguments[0] in main.commands
    options, _, asked = health.partition(" CMD ")
    assert {option.split("=")[0] for option in options.split()} == {
        "--interval", "--timeout", "--start-period", "--retries"
    }  # fmt: skip
    program, *arguments = words(asked)
    assert program in scripts
    assert arguments[0] in main.commands


def test_it_may_drain_before_it_is_killed():
    assert of("STOPSIGNAL") == ["SIGTERM"]
    compose = (FOLDER / "compose.yaml").read_text(encoding="utf-8")
    assert int(re.search(r"stop_grace_period: (\d+)s", compose)[1]) > Config().server.drain_seconds
    for said in ("read_only: true", "cap_drop: [ALL]", "no-new-privileges:true"):
        assert said in compose


def test_a_package_can_be_built_of_the_files_that_are_copied_and_of_those_that_are_let_through(tmp_path):
    *_, kept = zip(*(line.split("!") for line in ignored() if line.startswith("!")), strict=True)
    for *files, _ in copied():
        for name in files:
            assert name in kept, f"{name} does not get to the builder"
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path / "out"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=GUARD_SECONDS)
    [wheel] = (tmp_path / "out").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    needed = {str(file.relative_to(ROOT)) for file in (ROOT / "broker").rglob("*") if file.is_file()}
    assert {name for name in needed if not fnmatch.fnmatch(name, "*__pycache__*")} <= packed


def ignored():
    lines = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_log_on_disk_is_in_the_volume():
    [volume] = of("VOLUME")
    assert Path(environment()["BROKER_STORAGE__PATH"]).parent == Path(words(volume)[0])


def test_it_runs_as_nobody_with_a_root_that_is_read_only_and_is_found_healthy():
    shutting = [*shut_in(USER), "--tmpfs", "/mnt", "--chdir", "/etc"]
    settings = {name: value for name, value in environment().items() if name != "PATH"}
    assert settings["BROKER_SERVER__HOST"] == "0.0.0.0"
    settings["BROKER_STORAGE__PATH"] = "/mnt/broker.db"  # as in the volume, which is not here
    settings |= {"BROKER_SERVER__PORT": str(free_port()), "HOME": "/nonexistent"}
    program = [*shutting, sys.executable, "-m", "broker"]
    with process(*words(of("CMD")[0]), command=program, **settings) as started:
        assert "listening on http://0.0.0.0:" in started.stderr.readline()
        asked = words(of("HEALTHCHECK")[0].partition(" CMD ")[2])[1:]
        done = subprocess.run(
            [*program, *asked],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=GUARD_SECONDS,
        )
        assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
