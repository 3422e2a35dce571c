"""What the broker says of itself to machines is complete, valid, and true of what really travels."""

import json
import re
from contextlib import asynccontextmanager

import msgspec
import pytest
from clients import (
    ALICE,
    INBOXES,
    LISTENER,
    OPERATOR,
    PUBLISHER,
    alices,
    ask,
    config_of,
    configured,
    configured_key,
    connected,
    event,
    masked,
    opening,
    post_events,
    serving,
)
from described import ASYNCAPI, OPENAPI, faults_of_answer, messages, which_of
from documents import ROOT, blocks
from jsonschema import Draft202012Validator
from msgspec import Struct
from node import node_program, run_in_node

from broker import CommandError, LimitsConfig, ReplayConfig
from broker.commands.dispatch import BUILT_IN_ACTIONS
from broker.errors import HTTP_STATUS, CloseCode
from broker.protocol import messages as protocol_messages
from broker.protocol.messages import NewEvent, SubscribeParams
from broker.transport.endpoints import ROUTES
from broker.version import __version__

DOCUMENTS = {"/asyncapi.json": ASYNCAPI, "/openapi.json": OPENAPI}
each_document = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS.keys())
INSIDE = {"PreparedEvent", "Entry", "Proof", "Command", "ManyToSubscribe", "ManyToUnsubscribe", "_Stored"}
"""Structs of the protocol that are never written to a client, nor read from one as they are."""


def endpoints(paths):
    return {(path, method.upper()) for path, methods in paths.items() for method in methods}


# --- complete: what is not here yet is to be added ---------------------------


@pytest.mark.parametrize(("path", "method"), sorted(endpoints(ROUTES)))
def test_every_route_is_described(path, method):
    described = endpoints(OPENAPI["paths"])
    assert (path, method) in described, "add it to OPERATIONS in broker/transport/specs/openapi.py"


def test_nothing_is_described_that_is_no_route():
    assert endpoints(OPENAPI["paths"]) <= endpoints(ROUTES)


def structs():
    return [
        thing for thing in vars(protocol_messages).values() if isinstance(thing, type) and issubclass(thing, Struct)
    ]


@pytest.mark.parametrize("name", sorted({struct.__name__ for struct in structs()} - INSIDE - {"Struct"}))
def test_everything_that_travels_is_described(name):
    described = ASYNCAPI["components"]["schemas"].keys() | OPENAPI["components"]["schemas"].keys()
    assert name in described, "let a frame, an action or a route of broker/transport/specs speak of it"


@pytest.mark.parametrize("frame", [s.__name__ for s in structs() if s.__struct_config__.tag is not None])
def test_every_frame_of_the_broker_is_a_message(frame):
    assert frame in messages("send"), "add it to FRAMES in broker/transport/specs/asyncapi.py"


@pytest.mark.parametrize("action", sorted(BUILT_IN_ACTIONS))
def test_every_action_of_the_broker_is_an_operation(action):
    assert action in ASYNCAPI["operations"], "add it to ACTIONS in broker/transport/specs/asyncapi.py"
    assert ASYNCAPI["operations"][action]["action"] == "receive"


@each_document
@pytest.mark.parametrize("code", HTTP_STATUS)
def test_every_error_code_is_explained_with_its_status(document, code):
    schema = document["components"]["schemas"]["Error"]["properties"]["code"]
    assert f"* `{code}` ({HTTP_STATUS[code]}): " in schema["description"]
    assert code in schema["anyOf"][0]["enum"]


def test_an_answer_bears_only_codes_of_its_status():
    for path, method in endpoints(OPENAPI["paths"]):
        for status, response in OPENAPI["paths"][path][method.lower()]["responses"].items():
            if "400" <= status < "600":
                codes = re.findall(r"`(\w+)`: ", response["description"])
                assert {HTTP_STATUS[code] for code in codes} == {int(status)}


@pytest.mark.parametrize("code", CloseCode)
def test_every_close_code_is_explained(code):
    said = ASYNCAPI["channels"]["stream"]["x-close-codes"][str(int(code))]
    assert said["description"]
    assert said["come-back"] is code.come_back


# --- valid -------------------------------------------------------------------


def everything_called(name, node):
    """The texts that stand in a document under a name, wherever."""
    if isinstance(node, dict):
        yield from ([node[name]] if isinstance(node.get(name), str) else [])
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from everything_called(name, item)


@each_document
def test_every_schema_is_one_and_every_reference_leads_somewhere(document):
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in everything_called("$ref", document):
        found = document
        for name in reference.removeprefix("#/").split("/"):
            found = found[name]


@each_document
def test_what_it_says_is_for_readers_who_have_no_python(document):
    for text in everything_called("description", document):
        assert not re.search(r"\(PROTOCOL|\bNone\b|``|_`", text)
    for pattern in everything_called("pattern", document):
        assert "(?" not in pattern, "a pattern that not every language reads: see _LOOKING_AHEAD"


@pytest.mark.parametrize("name", list(ASYNCAPI["components"]["messages"]))
def test_an_example_is_what_it_is_an_example_of(name):
    direction = "send" if name in messages("send") else "receive"
    for example in ASYNCAPI["components"]["messages"][name].get("examples", []):
        assert which_of(direction, example["payload"]) == [name]


NAMES = ["in_1", "ada+tag@example.com", "*", "", "a b", "\u00e9", "a.b", "a..b", "a.*", "A", "x" * 128, "x" * 129]
NAMES += ["x" * 254, "x" * 255, "x" * 128 + ".*", "x" * 129 + ".*"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kind", "frame"),
    [
        (NewEvent, {"type": "a.b", "payload": {}, "inbox_id": ...}),
        (NewEvent, {"type": ..., "payload": {}}),
        (NewEvent, {"type": "a.b", "payload": {}, "event_id": ...}),
        (SubscribeParams, {"inbox_ids": [...]}),
        (SubscribeParams, {"event_types": [...]}),
    ],
)
def test_a_name_is_good_by_the_schema_if_it_is_for_the_broker(kind, frame, name):
    named = json.loads(json.dumps(frame, default=lambda _: name))
    try:
        msgspec.convert(named, kind)
    except msgspec.ValidationError:
        good = False
    else:
        good = True
    command = {"action": "publish", "events": named} if kind is NewEvent else {"action": "subscribe", **named}
    assert bool(which_of("receive", command)) is good


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"action": "subscribe"}, "SubscribeCommand"),
        ({"action": "subscribe", "request_id": None, "params": {"since": "5m"}}, "SubscribeCommand"),
        ({"action": "unsubscribe", "params": {"inbox_ids": "*"}}, "UnsubscribeCommand"),
        ({"action": "publish", "events": []}, "PublishCommand"),
        ({"action": "mark_as_read", "inbox_id": "in_1", "message_ids": ["m1"]}, "HandlerCommand"),
        ({"action": "unsubscribe"}, None),
        ({"action": "publish", "events": {"type": "a"}}, None),
        ({"action": "publish", "events": {"type": "a", "payload": []}}, None),
        ({"request_id": "r1"}, None),
    ],
)
def test_a_command_may_be_given_in_each_of_its_forms(frame, message):
    assert which_of("receive", frame) == ([message] if message else [])


# --- true --------------------------------------------------------------------


def shown_in_the_documentation():
    decoder = json.JSONDecoder()
    for block in blocks("json", page=ROOT / "docs/protocol.md"):
        text = block.text.strip()
        while text:
            frame, end = decoder.raw_decode(text)
            text = text[end:].lstrip()
            yield frame


@pytest.mark.parametrize("frame", list(shown_in_the_documentation()), ids=lambda f: f.get("type") or f["action"])
def test_what_the_documentation_shows_is_described(frame):
    assert len(which_of("receive" if "type" not in frame else "send", frame)) == 1


@asynccontextmanager
async def busy_broker():
    """A broker with little room, a short heartbeat, and somebody who sends e-mails."""
    limits, replay = LimitsConfig(heartbeat_seconds=0.02), ReplayConfig(max_events_per_account=3)
    async with serving(configured(limits=limits, replay=replay)) as served:

        @served.broker.command("send_email")
        async def send_email(params, context):
            if "to" not in params:
                raise CommandError(params.get("refuse", "no_recipient"), "To whom?")
            return {"message_id": "msg_1"}

        yield served


async def all_that_a_client_is_told(served):
    """Have the broker say everything that it can say; return all frames."""
    first = (await post_events(served.address, event(0))).result["events"][0]["cursor"]
    await post_events(served.address, [event(n) for n in range(1, 6)] + [event(6, inbox=None)])
    told = []
    async with connected(served.address, f"inbox_ids=in_1&since={first}&client_id=agent") as client:

        async def until(wanted):
            while wanted not in (told[-1].get("type"), told[-1].get("request_id")):
                told.append(await client.next())

        told.append(client.ready)
        await client.send(masked(1, b"{"))
        await client.say(action="subscribe", request_id="r1", inbox_ids=["in_2"], since="5m")
        await client.say(action="subscribe", request_id="r2", inbox_ids=[""])
        await client.say(action="unsubscribe", request_id="r3", params={"inbox_ids": ["in_2"]})
        await client.say(
            action="publish", request_id="r4", events=[event(7), event(7, event_id="e"), event(event_id="e")]
        )
        await client.say(action="ping", request_id="r5")
        await client.say(action="send_email", request_id="r6", to="ada@example.com")
        await client.say(action="send_email", request_id="r7")
        await client.say(action="ack", request_id="r8", cursor=first, event_ids=["e"])
        await client.say(action="hold", request_id="r9", event_ids=["e"], seconds=60)
        await client.say(action="lease", request_id="r12", queue_id="support")
        await client.say(action="nack", request_id="r13", lease_ids=["lse_1"])
        await client.say(
            action="wait_for", request_id="r10", since="5m", event_types=[event(1)["type"]], extract=["code", "link"]
        )
        await client.say(action="wait_for", request_id="r11", timeout_seconds=0)
        for wanted in ("r5", "r6", "r11"):
            await until(wanted)
        await post_events(served.address, event(8, inbox="in_9"))
        await until("connection.cursor")
        served.broker.reload(config_of(alices(configured_key(ALICE, inbox_ids=("in_1",)))))
        await until("connection.updated")
        served.broker.start_draining()
        told += (await client.rest())[0]
    return told


async def test_every_frame_that_a_client_is_told_is_described_to_its_last_field():
    async with busy_broker() as served:
        told = await all_that_a_client_is_told(served)
    described = [which_of("send", frame) for frame in told]
    assert [frame for frame, names in zip(told, described, strict=True) if len(names) != 1] == []
    assert {name for (name,) in described} == set(messages("send"))


REQUESTS = {
    "a page": ("GET", "/v1/events", "?since=5m", ALICE, None),
    "a page of nobody": ("GET", "/v1/events", "", None, None),
    "a page without the scope": ("GET", "/v1/events", "", PUBLISHER, None),
    "a page of no limit": ("GET", "/v1/events", "?limit=0", ALICE, None),
    "events": ("POST", "/v1/events", "", ALICE, json.dumps([event(1), event(2, event_id="e")])),
    "the same event": ("POST", "/v1/events", "", ALICE, json.dumps([event(2, event_id="e")] * 2)),
    "events for nobody": ("POST", "/v1/events", "", OPERATOR, json.dumps(event(1, account_id="acct_none"))),
    "events without the scope": ("POST", "/v1/events", "", LISTENER, json.dumps(event(1))),
    "no JSON": ("POST", "/v1/events", "", ALICE, "{"),
    "no event": ("POST", "/v1/events", "", ALICE, "{}"),
    "a large event": ("POST", "/v1/events", "", ALICE, json.dumps(event(1, size=300_000))),
    "an event stream of nobody": ("GET", "/v1/events/stream", "", None, None),
    "a command": ("POST", "/v1/commands", "", ALICE, '{"action":"send_email","to":"ada@example.com"}'),
    "a command that its handler refuses": ("POST", "/v1/commands", "", ALICE, '{"action":"send_email"}'),
    "a command that is not found": ("POST", "/v1/commands", "", ALICE, '{"action":"send_email","refuse":"not_found"}'),
    "a command that is too late": ("POST", "/v1/commands", "", ALICE, '{"action":"send_email","refuse":"timeout"}'),
    "a command in conflict": ("POST", "/v1/commands", "", ALICE, '{"action":"send_email","refuse":"conflict"}'),
    "a command of nobody": ("POST", "/v1/commands", "", ALICE, '{"action":"dance"}'),
    "a token": ("POST", "/v1/websocket/token", "", ALICE, ""),
    "a token for more": ("POST", "/v1/websocket/token", "", INBOXES, '{"inbox_ids":["in_9"]}'),
    "a token of a token": ("POST", "/v1/websocket/token", "", "wst_none", "{}"),
    "no WebSocket": ("GET", "/v1/stream", "", ALICE, None),
    "connections": ("GET", "/v1/connections", "", ALICE, None),
    "connections behind none": ("GET", "/v1/connections", "?after=x", OPERATOR, None),
    "connections of an inbox": ("GET", "/v1/connections", "", INBOXES, None),
    "the end of none": ("DELETE", "/v1/connections/conn_none", "", ALICE, None),
    "the metrics for an account": ("GET", "/metrics", "", ALICE, None),
    "an operator's connections": ("GET", "/v1/operator/connections", "?limit=5", OPERATOR, None),
    "an operator's connections for an account": ("GET", "/v1/operator/connections", "", ALICE, None),
    "no connection": ("GET", "/v1/operator/connections/conn_none", "", OPERATOR, None),
    "the end of no connection": ("DELETE", "/v1/operator/connections/conn_none", "", OPERATOR, None),
    "what is live for an account": ("GET", "/v1/operator/live", "", ALICE, None),
    "what is live, too often": ("GET", "/v1/operator/live", "?every=0", OPERATOR, None),
    "the tasks": ("GET", "/debug/tasks", "", OPERATOR, None),
    "the tasks of no connection": ("GET", "/debug/tasks", "?under=conn_none", OPERATOR, None),
    "life": ("GET", "/healthz", "", None, None),
    "readiness": ("GET", "/readyz", "", None, None),
    "the stream's document": ("GET", "/asyncapi.json", "", None, None),
    "this document": ("GET", "/openapi.json", "", None, None),
}  # fmt: skip


@pytest.mark.parametrize(("method", "path", "query", "key", "body"), REQUESTS.values(), ids=REQUESTS.keys())
async def test_every_answer_is_described_to_its_last_field(method, path, query, key, body):
    async with busy_broker() as served:
        data = None if body is None else body.encode()
        answer = await ask(served.address, method, path + query, key=key, body=data)
        assert faults_of_answer(method, path, answer.status, answer.json) == []


async def test_what_is_said_of_connections_and_of_the_end_of_one_is_described():
    async with serving() as served, connected(served.address, "client_id=c") as client:
        page = await ask(served.address, "GET", "/v1/connections", key=OPERATOR)
        assert len(page.result["connections"]) == 1
        assert faults_of_answer("GET", "/v1/connections", page.status, page.json) == []
        tasks = await ask(served.address, "GET", "/debug/tasks", key=OPERATOR)
        assert client.ready["connection_id"] in tasks.body.decode()
        assert faults_of_answer("GET", "/debug/tasks", tasks.status, tasks.json) == []
        page = await ask(served.address, "GET", "/v1/operator/connections", key=OPERATOR)
        assert len(page.result["connections"]) == 1
        assert faults_of_answer("GET", "/v1/operator/connections", page.status, page.json) == []
        path = f"/v1/operator/connections/{client.ready['connection_id']}"
        one = await ask(served.address, "GET", path, key=OPERATOR)
        assert one.result["inbox_ids"] == []
        assert faults_of_answer("GET", path, one.status, one.json) == []
        path = f"/v1/connections/{client.ready['connection_id']}"
        ended = await ask(served.address, "DELETE", path, key=ALICE)
        assert faults_of_answer("DELETE", path, ended.status, ended.json) == []


@pytest.mark.parametrize("path", ["/v1/events", "/v1/events/stream", "/v1/commands", "/readyz"])
async def test_what_is_answered_while_the_broker_drains_is_described(path):
    async with serving() as served, connected(served.address):
        served.broker.start_draining()
        method = "POST" if path == "/v1/commands" else "GET"
        answer = await ask(served.address, method, path, key=ALICE)
        assert (answer.status, answer.code) == (503, "draining")
        assert faults_of_answer(method, path, answer.status, answer.json) == []


BAD = {"after": "x", "q": "x" * 129}
"""A value that its parameter does not take; of all others that is none."""


def queries():
    for path, method in sorted(endpoints(OPENAPI["paths"])):
        if path.startswith(("/v1/webhooks", "/v1/queues")):
            continue  # they need a log on disk, and an endpoint: test_webhooks and test_queues have them
        for parameter in OPENAPI["paths"][path][method.lower()].get("parameters", []):
            if parameter["in"] == "query":
                yield path, method, parameter["name"]


@pytest.mark.parametrize(("path", "method", "name"), list(queries()))
async def test_every_parameter_that_is_described_is_read(path, method, name):
    async with serving() as served:
        if path == "/v1/stream":
            answer = await opening(served.address, f"{name}=")
        else:
            key = OPERATOR if path.startswith(("/debug", "/v1/operator")) else ALICE
            answer = await ask(served.address, method, f"{path}?{name}={BAD.get(name, '')}", key=key)
        if name == "under":
            assert (answer.status, answer.message) == (404, "There is no such connection")
        else:
            assert (answer.status, answer.code) == (400, "bad_request")
            assert name in answer.message


def test_what_is_asked_of_the_stream_is_the_same_in_both():
    described = {name for path, _, name in queries() if path == "/v1/stream"}
    assert described == ASYNCAPI["channels"]["stream"]["bindings"]["ws"]["query"]["properties"].keys()


# --- served, and read by others ----------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS)
async def test_everybody_is_given_the_documents(path):
    async with serving() as served:
        answer = await ask(served.address, "GET", path)
        head = await ask(served.address, "HEAD", path)
    assert answer.json == DOCUMENTS[path]
    assert answer.json["info"]["version"] == __version__
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.body))


ASYNCAPI_PARSER = """
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";
const { document, diagnostics } = await new Parser().parse(readFileSync(0, "utf8"));
for (const { severity, message, path } of diagnostics) if (severity < 2) console.log(path.join("."), message);
if (!document) process.exit(1);
console.log(document.allOperations().length);
"""


def test_asyncapis_own_parser_finds_no_fault_with_the_stream():
    with node_program(ASYNCAPI_PARSER, "@asyncapi/parser@3.6.6") as command:
        said = run_in_node(command, json.dumps(ASYNCAPI))
    assert said.split() == [str(len(ASYNCAPI["operations"]))]


REDOCLY = """
import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
const file = join(dirname(fileURLToPath(import.meta.url)), "openapi.json");
writeFileSync(file, readFileSync(0, "utf8"));
const cli = join(dirname(createRequire(import.meta.url).resolve("@redocly/cli/package.json")), "bin/cli.js");
const done = spawnSync("node", [cli, "lint", "--format=json", file], { encoding: "utf8" });
const { totals, problems } = JSON.parse(done.stdout);
for (const { severity, message } of problems) if (severity === "error") console.log(message);
console.log(totals.errors);
"""


def test_redocly_finds_no_fault_with_the_http_side():
    with node_program(REDOCLY, "@redocly/cli@2.77.0") as command:
        assert run_in_node(command, json.dumps(OPENAPI)).split() == ["0"]
