"""Spans: in which trace, of what, and what they tell; made with OpenTelemetry's own SDK, as operators do."""

import json
import subprocess
import sys

import pytest
import trio
from apis import SECRET, Response, json_answer, running_api
from clients import ACCOUNT, ALICE, alices, ask, config_of, connected, event, post_events, serving, until
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from broker import CommandContext, CommandError, NewEvent
from broker.config import CalloutConfig, TracingConfig
from broker.tracing import MAX_LINKS, Tracing

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONFIG = config_of(alices(), tracing=TracingConfig(enabled=True))


@pytest.fixture
def spans(monkeypatch):
    """What was ended, by a provider of the test's own."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


def ended(spans, name):
    return [span for span in spans.get_finished_spans() if span.name == name]


def trace_of(span):
    return f"{span.context.trace_id:032x}"


def place_of(span):
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"


def parent_of(span):
    return span.parent and f"00-{span.parent.trace_id:032x}-{span.parent.span_id:016x}-01"


def links_of(span):
    return [f"00-{link.context.trace_id:032x}-{link.context.span_id:016x}-01" for link in span.links]


# --- publish and deliver -----------------------------------------------------


async def test_a_publish_is_a_span_of_its_publishers_trace(spans):
    async with serving(CONFIG) as served:
        await post_events(served.address, [event(1), event(2)], ("traceparent", TRACE))
    [span] = ended(spans, "publish")
    assert (parent_of(span), span.kind) == (TRACE, SpanKind.SERVER)
    assert span.attributes == {
        "messaging.system": "daimon-broker",
        "messaging.operation.name": "publish",
        "messaging.batch.message_count": 2,
        "broker.account_id": ACCOUNT,
    }


async def test_a_publish_over_the_stream_is_one_too_and_linked_to_the_traces_of_its_events(spans):
    async with serving(CONFIG) as served, connected(served.address) as client:
        events = [event(1), event(2, traceparent=OTHER)]
        await client.say(action="publish", request_id="r1", events=events, traceparent=TRACE)
        await client.answer("r1")
    [span] = ended(spans, "publish")
    assert (parent_of(span), links_of(span)) == (TRACE, [OTHER])


async def test_what_an_embedding_program_publishes_is_part_of_what_it_does(spans):
    async with serving(CONFIG) as served:
        with trace.get_tracer("program").start_as_current_span("work") as work:
            await served.broker.publish(ACCOUNT, NewEvent("a.b", {}))
        await served.broker.publish(ACCOUNT, NewEvent("a.b", {}))
    within, alone = ended(spans, "publish")
    assert within.parent.span_id == work.get_span_context().span_id
    assert (alone.parent, alone.kind) == (None, SpanKind.INTERNAL)


async def test_a_publish_that_is_refused_when_it_is_to_be_stored_tells_its_code(spans):
    async with serving(CONFIG) as served, connected(served.address) as client:
        batch = served.broker.intake.batch(served.connection(client).session.key, b'{"type":"a.b","payload":{}}')
        assert served.broker.intake.prepare_slice(batch)
        places = await served.broker.intake.places(batch)
        served.broker.start_draining()
        with pytest.raises(Exception, match="draining"):
            served.broker.intake.begin(batch, places, print)
    [span] = ended(spans, "publish")
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "draining")


async def test_a_batch_that_is_delivered_is_a_span_of_the_first_trace_in_it_and_linked_to_the_others(spans):
    async with serving(CONFIG) as served, connected(served.address, "inbox_ids=*") as client:
        await until(lambda: served.broker.statistics().hub.live == 1)
        events = [event(1), event(2, traceparent=TRACE), event(3, traceparent=OTHER), event(4, traceparent=OTHER)]
        await served.broker.publish(ACCOUNT, events)
        for _ in events:
            await client.next()
        await until(lambda: ended(spans, "deliver"))
    [span] = ended(spans, "deliver")
    assert (parent_of(span), links_of(span)) == (TRACE, [OTHER])
    assert span.start_time < span.end_time
    assert span.attributes == {
        "messaging.system": "daimon-broker",
        "messaging.operation.name": "deliver",
        "messaging.batch.message_count": 4,
        "broker.account_id": ACCOUNT,
        "broker.listeners": 1,
    }


async def test_of_what_is_not_traced_or_for_nobody_who_is_live_no_delivery_is_told(spans):
    async with serving(CONFIG) as served:
        await served.broker.publish(ACCOUNT, event(1, traceparent=TRACE))
        async with connected(served.address, "inbox_ids=*") as client:
            await until(lambda: served.broker.statistics().hub.live == 1)
            await served.broker.publish(ACCOUNT, event(2))
            await client.next()
    assert ended(spans, "deliver") == []


def test_links_are_bounded(spans):
    span = Tracing().begin("x", "internal", None, {})
    span.link(f"00-{number:032x}-00f067aa0ba902b7-01" for number in range(1, 10_000))
    span.end()
    [span] = ended(spans, "x")
    assert len(span.links) == MAX_LINKS


# --- commands and callouts ---------------------------------------------------


async def test_a_command_is_a_span_and_its_handler_works_in_it(spans):
    async with serving(CONFIG) as served, connected(served.address) as client:

        @served.broker.command("work")
        async def work(params: dict, context: CommandContext) -> dict:
            with trace.get_tracer("program").start_as_current_span("inside"):
                await trio.lowlevel.checkpoint()
            return {"traceparent": context.traceparent}

        await client.say(action="work", request_id="r1", traceparent=TRACE)
        answer = await client.answer("r1")
    [span], [inside] = ended(spans, "command"), ended(spans, "inside")
    assert (parent_of(span), span.kind, span.status.status_code) == (TRACE, SpanKind.SERVER, StatusCode.UNSET)
    assert span.attributes == {"broker.action": "work", "broker.account_id": ACCOUNT}
    assert answer["result"] == {"traceparent": place_of(span)}
    assert parent_of(inside) == place_of(span)


async def test_a_command_that_is_refused_tells_its_code_and_none_of_its_words(spans):
    async with serving(CONFIG) as served, connected(served.address) as client:

        @served.broker.command("work")
        async def work(params: dict, context: CommandContext) -> None:
            raise CommandError("nobody", "There is no S3CRET")

        await client.say(action="work", request_id="r1", to="S3CRET")
        await client.answer("r1")
    [span] = ended(spans, "command")
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "nobody")
    assert "S3CRET" not in span.to_json()


async def test_a_call_of_the_embedding_program_is_part_of_what_it_does(spans):
    async with serving(CONFIG) as served:

        @served.broker.command("work")
        async def work(params: dict, context: CommandContext) -> None:
            pass

        with trace.get_tracer("program").start_as_current_span("calling") as calling:
            await served.broker.call(ACCOUNT, "work")
    [span] = ended(spans, "command")
    assert (span.parent.span_id, span.kind) == (calling.get_span_context().span_id, SpanKind.INTERNAL)


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (json_answer({"result": {}}), 200, None),
        (json_answer({"error": {"code": "nobody", "message": "?"}}, 404), 404, None),
        (Response(500, b""), 500, "5xx"),
        (b"nonsense\r\n\r\n", None, "unavailable"),
    ],
)
async def test_a_question_to_the_operators_api_is_a_span_within_that_of_the_command(answer, status, error, spans):
    async with running_api() as api:
        api.answer = answer
        config = config_of(alices(), commands=CalloutConfig(url=api.url, secret=SECRET), tracing=CONFIG.tracing)
        async with serving(config) as served:
            body = json.dumps({"action": "send_email", "traceparent": TRACE}).encode()
            await ask(served.address, "POST", "/v1/commands", key=ALICE, body=body)
    [command], [span] = ended(spans, "command"), ended(spans, "callout")
    assert (trace_of(span), parent_of(span), span.kind) == (TRACE[3:35], place_of(command), SpanKind.CLIENT)
    assert api.asked[-1][0]["traceparent"] == place_of(span)
    expected = {"broker.section": "commands", "http.request.method": "POST"}
    expected |= {} if status is None else {"http.response.status_code": status}
    assert span.attributes == expected | ({} if error is None else {"error.type": error})


async def test_what_is_not_sampled_goes_on_as_not_sampled(monkeypatch):
    monkeypatch.setattr(trace, "get_tracer", TracerProvider(sampler=ALWAYS_OFF).get_tracer)
    span = Tracing().begin("x", "internal", TRACE, {})
    assert span.traceparent.startswith(TRACE[:35])
    assert span.traceparent.endswith("-00")


# --- off ---------------------------------------------------------------------


async def test_without_an_sdk_the_trace_goes_on_as_it_came():
    async with serving(CONFIG) as served, connected(served.address) as client:

        @served.broker.command("work")
        async def work(params: dict, context: CommandContext) -> dict:
            return {"traceparent": context.traceparent}

        for trace_given in (TRACE, None):
            await client.say(action="work", request_id=f"r{trace_given}", traceparent=trace_given)
            assert (await client.answer(f"r{trace_given}"))["result"] == {"traceparent": trace_given}


RUN = """
import sys, trio
from broker import Config, NewEvent, open_broker
from broker.config import TracingConfig
{before}

async def main():
    async with open_broker(Config(tracing=TracingConfig(enabled={enabled}))) as broker:
        await broker.publish("a", NewEvent("a.b", {{}}))

try:
    trio.run(main)
except BaseException as error:
    print(error)
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def run(**choices):
    command = [sys.executable, "-c", RUN.format(**choices)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_off_it_imports_nothing():
    assert run(before="", enabled=False) == "[]\n"


def test_on_without_opentelemetry_it_says_what_to_install():
    said = run(before="sys.modules['opentelemetry'] = None", enabled=True)
    assert "pip install 'daimon-broker[otel]'" in said
    assert "`$.tracing.enabled`" in said
