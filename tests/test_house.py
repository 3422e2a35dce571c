"""The structure of docs/architecture.md, held by reading the source: floors, purity, sizes, names, words."""

import ast
import importlib
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "broker"

HOUSE_PLAN = [
    # wing, its floor, its rooms: a room stands on those to its left (a tuple is side by side), and on lower wings
    ("", 0, [("errors", "logline", "schedule", "turns", "accounts", "fairness", "durations", "version", "nodes",
             "address"),
             ("tracing", "budget")]),
    (
        "protocol",
        1,
        [
            ("framing", "selection", "wording", "faithful"),
            ("names", "documents"),
            ("proving", "canonical", "messages"),
            ("events", "decoding"),
        ],
    ),
    ("", 2, [("config", "piecemeal"), "calling", "callout"]),
    ("access", 3, [("keys", "slots", "rates"), ("tokens", "lookup", "opening", "claims"), ("watched", "admission"),
                   "keyring"]),
    (
        "log",
        3,
        ["lock", ("shares", "statements"), "database", ("upkeep", "writing", "kept", "owed"),
         ("storage", "letters", "jobs"),
         ("letterbook", "letters_acked", "positions", "jobbook", "owing"), ("outbox", "backlog"),
         ("costs", "dropped"), "replay", ("retention", "archive"), "engines",
         ("engines.memory", "engines.rows", "engines.answers", "past"), ("engines.pages", "engines.lists"),
         ("engines.sqlite", "engines.valkey", "engines.valkey.scripts"),
         ("engines.valkey.storing", "engines.valkey.link"), "engines.valkey.calls", "engines.valkey.lists",
         "engines.valkey.appending", ("engines.valkey.tail", "engines.valkey.wire"),
         "engines.valkey.reaching", "engines.valkey.engine"],
    ),
    ("fanout", 4, [("replays", "listeners", "places", "acknowledged"), "subscriptions", "follower",
                   ("hub", "covered", "recorded"), ("shared", "handed", "settling"), "acknowledging", "subscriber"]),
    ("commands", 4, [("remembered", "requests"), ("keeping", "context", "sharing"), "dispatch", "forward"]),
    ("", 4, ["keys"]),
    ("webhooks", 4, [("guard", "attempts", "breaker", "signing"), "connecting", "sender", ("apart", "endpoint"), "live",
                     ("posting", "endpoints"), "webhooks"]),
    ("queues", 4, ["asked", "queue", ("live", "looking"), "giving", "queues", "working"]),
    ("intake", 5, ["batch", "intake", "publishing"]),
    ("keeper", 5, [("lease", "following"), "settling", "keeper"]),
    ("waiting", 5, ["addresses", "conditions", ("asked", "extraction", "filed"), "watch", "waits"]),
    ("observe", 5, [("connections", "lag", "log_writer"),
                    ("statistics", "tasks", "looks"), ("census", "grouped"),
                    ("metrics", "choosing", "live", "siblings"), "merging"]),
    ("", 5, [("expiry", "holding")]),
    ("", 6, [("disk", "sharing", "joined", "callouts"), "keeping", "broker"]),
    ("transport", 7, [("tls", "link", "poller", "supervisor", "files"),
                      ("ending", "stream", "request", "response", "refusals", "naming"),
                      ("pacing", "parsing", "upgrade", "session", "browsers", "polling", "proxies", "hooking",
                       "queueing", "pages", "specs"),
                      "asking",
                      ("reading", "life", "specs.schemas"), "specs.parameters",
                      "specs.operations", ("specs.queues", "specs.webhooks"), ("specs.asyncapi", "specs.openapi"),
                      ("http11", "connection", "sse"), ("operating", "listeners"), "together", "endpoints", "server"]),
    ("", 8, ["testing"]),
    ("workers", 8, [("sockets", "tether", "place"), ("private", "child"), "parent"]),
    ("cli", 9, ["exact", ("client", "lines", "options", "garbage"), ("demo", "keys", "health", "logs"),
                ("figures", "keyboard", "operating"), "picture", "screen", "storage", "top",
                "findings", "probing", "examining", "doctor", "completing",
                ("serving", "asking", "tailing", "starting"), ("webhooks", "queues", "working"), "cli"]),
]  # fmt: skip
"""The one table of who may import from whom; wings on one floor do not know each other."""

Storey = tuple[int, str, int]
"""Floor of the wing, the wing, and the room's place in it."""


def storeys() -> dict[str, Storey]:
    found = {}
    for wing, floor, rooms in HOUSE_PLAN:
        for place, side_by_side in enumerate(rooms):
            for room in (side_by_side,) if isinstance(side_by_side, str) else side_by_side:
                found[f"{wing}.{room}".removeprefix(".")] = (floor, wing, place)
    return found


STOREYS = storeys()
WINGS = {wing for wing, _, _ in HOUSE_PLAN} - {""}
PURE = {
    "waiting.addresses", "waiting.conditions", "waiting.asked", "waiting.extraction", "waiting.filed",
    "queues.asked",
    "fanout.replays", "fanout.listeners", "fanout.acknowledged", "fanout.covered",
    "logline", "errors", "address", "accounts", "durations", "config",
    "log.engines.valkey", "log.engines.valkey.scripts", "log.engines.valkey.storing", "protocol.framing",
    "protocol.selection", "protocol.wording", "protocol.faithful",
    "protocol.names",
    "protocol.documents", "protocol.proving", "protocol.canonical", "protocol.messages", "protocol.events",
    "protocol.decoding",
    "access.keys", "access.tokens", "access.slots", "access.rates", "access.opening",
    "log.dropped", "log.costs", "log.replay", "log.retention", "log.archive", "log.shares", "log.statements",
    "fanout.subscriptions", "fanout.follower",
    "commands.remembered", "commands.requests", "budget", "transport.parsing", "transport.request",
    "transport.response", "transport.refusals", "transport.browsers", "transport.session", "transport.ending",
    "transport.pacing", "transport.proxies", "transport.specs", "transport.specs.schemas", "transport.specs.parameters",
    "transport.specs.asyncapi", "transport.naming", "cli.lines", "cli.exact",
    "cli.findings",
    "webhooks.guard", "webhooks.attempts", "webhooks.breaker", "webhooks.signing",
}  # fmt: skip
IMPURE = {
    "trio", "trio_websocket", "time", "socket", "os", "random", "secrets", "asyncio", "threading", "logging",
}  # fmt: skip
SPEAKS_WEBSOCKET = {"transport.connection", "cli.client", "testing"}
NAMES_THAT_COULD_HOLD_ANYTHING = {"manager", "service", "utils", "helpers", "base", "core", "plugin"}
MOST_LINES_OF_A_MODULE = 500
MOST_CODE_LINES_OF_A_FUNCTION = 60

FACE = ""  # broker/__init__.py
FILES = {
    ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(HOUSE.rglob("*.py"))
}
MODULES = sorted(FILES.keys() - {FACE, "__main__", *WINGS})

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef
each_module = pytest.mark.parametrize("module", MODULES)
each_pure_module = pytest.mark.parametrize("module", sorted(PURE & FILES.keys()))
each_file = pytest.mark.parametrize("module", sorted(FILES))


def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imported(module: str) -> set[str]:
    """Return the full dotted names of all that the module imports, wherever in it the import stands."""
    package = ["broker", *module.split(".")]
    if FILES[module].name != "__init__.py":
        package.pop()
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def inner_imports(module: str) -> set[str]:
    """Return which modules of the house the module imports; FACE stands for the package itself."""
    found = set()
    for name in imported(module):
        if name.split(".")[0] == "broker":
            inner = name.removeprefix("broker").removeprefix(".")
            found.add(inner if inner in FILES else inner.rpartition(".")[0])
    return found


def functions(module: str) -> Iterator[Function]:
    return (node for node in ast.walk(tree(module)) if isinstance(node, Function))


def code_lines(module: str) -> set[int]:
    """Return the numbers of the lines that hold more than space and comments."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    with FILES[module].open("rb") as file:
        return {
            line
            for token in tokenize.tokenize(file.readline)
            if token.type not in silent
            for line in range(token.start[0], token.end[0] + 1)
        }


def docstring_lines(node: Function) -> set[int]:
    if ast.get_docstring(node, clean=False) is None:
        return set()
    return set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))


def prose(module: str) -> Iterator[tuple[int, str]]:
    """Return the comments and docstrings (those of attributes too), each with its line."""
    text = FILES[module].read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


# --- floors ------------------------------------------------------------------


@each_module
def test_every_module_has_its_place_in_the_plan(module):
    assert module in STOREYS


def test_the_plan_has_no_room_that_is_not_there():
    assert STOREYS.keys() <= FILES.keys()


def stands_on(upper: Storey, lower: Storey) -> bool:
    """Whether a room may import from another: of a lower wing, or further left in its own."""
    if upper[1] == lower[1] and upper[0] == lower[0]:
        return upper[2] > lower[2]
    return upper[0] > lower[0]


@each_module
def test_a_module_imports_only_downward(module):
    upward = {
        name for name in inner_imports(module) if name not in STOREYS or not stands_on(STOREYS[module], STOREYS[name])
    }
    assert not upward, f"{module} {STOREYS[module]} imports {sorted(upward)}"


@pytest.mark.parametrize("wing", sorted(WINGS))
def test_a_wing_says_in_a_sentence_what_stands_in_it_and_nothing_else(wing):
    assert len(tree(wing).body) == 1


@each_pure_module
def test_pure_modules_have_no_clock_no_chance_and_no_io(module):
    impure = {name.split(".")[0] for name in imported(module)} & IMPURE
    assert not impure, f"{module} imports {sorted(impure)}"
    clocks = [
        node.lineno
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and node.attr in {"now", "utcnow", "today"}
        and isinstance(node.value, ast.Name) and node.value.id in {"datetime", "date"}
    ]  # fmt: skip
    assert not clocks, f"{module} reads a clock in lines {clocks}"


@each_pure_module
def test_pure_modules_stand_on_pure_modules_only(module):
    assert inner_imports(module) <= PURE


@each_pure_module
def test_of_the_pure_modules_only_the_configuration_reads_a_file(module):
    if module == "config":
        return
    assert not {name.split(".")[0] for name in imported(module)} & {"pathlib", "io"}
    assert not [n.lineno for n in ast.walk(tree(module)) if isinstance(n, ast.Name) and n.id == "open"]


@each_module
def test_only_three_modules_speak_trio_websocket(module):
    if "trio_websocket" in {name.split(".")[0] for name in imported(module)}:
        assert module in SPEAKS_WEBSOCKET


# --- sizes -------------------------------------------------------------------


@each_file
def test_no_module_is_over_500_lines(module):
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES_OF_A_MODULE, f"{FILES[module]}: {lines} lines"


@each_file
def test_no_function_is_over_60_code_lines(module):
    code = code_lines(module)
    sizes = {
        f"{FILES[module]}:{node.lineno} {node.name}": len(
            code & set(range(node.lineno, (node.end_lineno or 0) + 1)) - docstring_lines(node)
        )
        for node in functions(module)
    }
    assert not {name: size for name, size in sizes.items() if size > MOST_CODE_LINES_OF_A_FUNCTION}


# --- the face ----------------------------------------------------------------


def test_the_package_itself_only_imports_and_lists_its_names():
    for node in tree(FACE).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]
        assert isinstance(node, ast.Import | ast.ImportFrom) or docstring or names, f"line {node.lineno}"


def test_every_public_name_is_there_once_and_documented():
    broker = importlib.import_module("broker")
    public = getattr(broker, "__all__", [])
    assert len(public) == len(set(public))
    for name in public:
        thing = getattr(broker, name)
        if isinstance(thing, type | FunctionType):
            assert (vars(thing) if isinstance(thing, type) else {"__doc__": thing.__doc__}).get("__doc__"), name


@each_file
def test_every_module_and_its_public_classes_and_functions_have_docstrings(module):
    if FILES[module].stat().st_size:
        assert ast.get_docstring(tree(module)), f"{FILES[module]} has no docstring"
    bare = [
        f"{FILES[module]}:{node.lineno} {node.name}"
        for node in tree(module).body
        if isinstance(node, Documented) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not bare


# --- names and words ---------------------------------------------------------


@each_file
def test_no_module_has_a_name_that_could_hold_anything(module):
    assert not set(module.split(".")) & NAMES_THAT_COULD_HOLD_ANYTHING


@each_file
def test_comments_and_docstrings_speak_of_the_code_as_it_is(module):
    found = [
        f"{FILES[module]}:{line} {match[0]}"
        for line, text in prose(module)
        for match in re.finditer(r"\b(issues?|TODO|FIXME)\b", text, re.IGNORECASE)
    ]
    assert not found


def test_the_changelog_knows_this_version():
    changelog = ROOT / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("no CHANGELOG.md")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert re.search(rf"(?<![\w.]){re.escape(version)}(?![\w.])", changelog.read_text(encoding="utf-8"))


# --- the tests themselves ----------------------------------------------------


@pytest.mark.xfail(raises=ValueError, reason="raised on purpose")
async def test_the_exception_of_an_async_test_arrives_bare():
    raise ValueError


def test_each_group_that_the_makefile_installs_is_in_pyproject() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    installed = set(re.findall(r"--group (\S+)", (ROOT / "Makefile").read_text()))
    assert installed == groups.keys()
