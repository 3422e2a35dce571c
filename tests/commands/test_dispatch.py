"""Commands through the public face: handlers, side by side, sent twice and done once, rates, draining."""

import json
import logging
import math
import queue
import threading
from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Annotated, Any, NotRequired, TypedDict

import attrs
import httpx
import msgspec
import pytest
import trio
import trio_websocket
from clients import key_of
from commanding import (
    ACCOUNT,
    ALICE,
    ALSO,
    BOB,
    INBOXES,
    LISTENER,
    OPERATOR,
    TRACE,
    Caller,
    configured,
    connected,
    post,
    serving,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import Meta, Raw, Struct
from trio.testing import MockClock
from trio.testing import wait_all_tasks_blocked as blocked

from broker import (
    AccountConfig,
    CommandContext,
    CommandError,
    CommandsConfig,
    Config,
    KeyConfig,
    NewEvent,
    RateConfig,
    RatesConfig,
    ReplayConfig,
    RequestError,
    ServerConfig,
    TierRatesConfig,
    open_broker,
)
from broker.commands import dispatch
from broker.commands.dispatch import MAX_PROVING, MAX_WAITING_REPEATS, Commands
from broker.commands.remembered import ONCE_SECONDS
from broker.errors import BUSY_RETRY_MS
from broker.protocol import decoding
from broker.protocol.decoding import decode_command


class Mail(Struct):
    to: Annotated[list[str], Meta(min_length=1)]
    subject: Annotated[str, Meta(max_length=10)] = ""


class Desk:
    """A handler that counts how often it ran, and does each time what it is told, when it is told."""

    def __init__(self, broker, action="work", **declared):
        self.ran = []
        self.cancelled = 0
        self.ended = trio.Event()
        self._orders = []
        broker.command(action, **declared)(self.work)

    async def work(self, params: dict[str, Any], context: CommandContext):
        self.ran.append((context, params))
        send, receive = trio.open_memory_channel[Any](1)
        self._orders.append(send)
        try:
            order = await receive.receive()
        except trio.Cancelled:
            self.cancelled += 1
            self.ended.set()
            raise
        self.ended.set()
        if isinstance(order, BaseException):
            raise order
        return order

    async def do(self, order, index=-1):
        """Let the handler return or raise what it is given."""
        self._orders[index].send_nowait(order)
        await blocked()


# --- handlers in the library -------------------------------------------------


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({}, "to"),
        ({"to": "somebody"}, "$.to"),
        ({"to": []}, "$.to"),
        ({"params": {"to": ["a", 7]}}, "$.params.to[1]"),
        ({"to": ["a"], "params": {"subject": "x" * 11}}, "$.params.subject"),
        ({"to": ["a"], "params": {"to": ["a"]}}, "$.params.to"),
    ],
)
async def test_a_wrong_parameter_is_answered_with_its_path_before_the_handler_runs(params, path):
    async with open_broker(configured()) as opened:
        ran = []

        @opened.command("send_email")
        async def send_email(mail: Mail, context: CommandContext):
            ran.append(mail)

        async with serving(opened) as address, connected(address) as client:
            error = await client.ask("send_email", "r1", **params)
            assert error["code"] == "invalid_params"
            assert f"`{path}`" in error["message"]
            assert await client.ask("send_email", "r1", to=["a"]) == {}, "it is not remembered"
            assert ran == [Mail(["a"])]


async def test_a_handler_gets_its_struct_and_returns_the_result():
    async with open_broker(configured()) as opened:

        @opened.command("send_email")
        async def send_email(mail: Mail, context: CommandContext):
            return {"message_id": "msg_1", "to": mail.to, "subject": mail.subject}

        async with serving(opened) as address, connected(address) as client:
            await client.say("send_email", "r1", params={"to": ["a"]}, subject="hi")
            assert await client.answer("r1") == {
                "type": "response",
                "request_id": "r1",
                "action": "send_email",
                "result": {"message_id": "msg_1", "to": ["a"], "subject": "hi"},
            }


async def test_a_handler_gets_a_context(autojump_clock):
    async with open_broker(configured()) as opened:
        desk = Desk(opened, seconds=7)
        await Caller(opened).ask("work", "r1", inbox_id="in_9", traceparent=TRACE, n=1)
        await Caller(opened, INBOXES).ask("work", "r1", params={"inbox_id": "in_1", "n": 1})
        (one, params), (other, same) = desk.ran
        assert params == same == {"n": 1}
        assert (one.action, one.request_id, one.account_id, one.key_id) == ("work", "r1", ACCOUNT, "key_alice")
        assert (one.inbox_id, one.inbox_ids, one.traceparent) == ("in_9", None, TRACE)
        assert one.deadline == trio.current_time() + 7
        assert (other.key_id, other.inbox_id, other.inbox_ids) == ("key_inboxes", "in_1", {"in_1", "in_2"})
        assert other.traceparent is None
        assert one.message_id != other.message_id


@pytest.mark.parametrize("result", [{"a": [1, None]}, [1], "text", 7, False, None, Mail(["a"])], ids=repr)
async def test_whatever_json_a_handler_returns_is_the_result_and_nothing_is_an_empty_one(result, autojump_clock):
    async with open_broker(configured()) as opened:
        desk = Desk(opened)
        sent = await Caller(opened).ask("work")
        await desk.do(result)
        expected = {} if result is None else json.loads(msgspec.json.encode(result))
        assert json.loads(sent.outcomes[0].result) == expected


async def test_a_handler_refuses_with_code_and_message():
    async with open_broker(configured()) as opened:

        @opened.command("work")
        async def work(params, context):
            raise CommandError("no_such_message", "There is no message msg_1")

        async with serving(opened) as address:
            refusal = {"code": "no_such_message", "message": "There is no message msg_1"}
            async with connected(address) as client:
                assert await client.ask("work", "r1") == refusal
            answer = await post(address, {"action": "work"})
            assert (answer.status_code, answer.json()) == (400, {"error": refusal})


async def test_a_refusal_from_inside_a_nursery_of_the_handler_is_a_refusal(autojump_clock):
    async with open_broker(configured()) as opened:

        @opened.command("work")
        async def work(params, context):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                async with trio.open_nursery() as inner:
                    inner.start_soon(refuse)

        async def refuse():
            raise CommandError("no_such_message", "There is none")

        sent = await Caller(opened).ask("work")
        assert (sent.error.code, sent.error.message) == ("no_such_message", "There is none")


def logged(caplog):
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


async def fail_in_a_nursery():
    async def fail():
        raise ValueError("secret of the house")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(fail)


async def fail_beside_a_refusal():
    async def refuse():
        raise CommandError("no_such_message", "There is none")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        raise ValueError("secret of the house")


async def fail():
    raise ValueError("secret of the house")


@pytest.mark.parametrize(
    "failing",
    [
        fail,
        fail_in_a_nursery,
        fail_beside_a_refusal,
        lambda: fail(7),
        lambda: 7,
    ],
    ids=["an error", "in a nursery", "beside a refusal", "a wrong call", "not async"],
)
async def test_a_failing_handler_is_internal_logged_once_and_not_remembered(failing, caplog, autojump_clock):
    async with open_broker(configured()) as opened:

        @opened.command("work")
        async def work(params, context):
            await failing()

        caller = Caller(opened)
        for times in (1, 2):
            sent = await caller.ask("work", "r1")
            assert sent.outcome == "internal"
            assert "secret" not in sent.error.message
            [*_, record] = logged(caplog)
            assert len(logged(caplog)) == times
            assert record.exc_info is not None
            assert "work" in record.getMessage()


class Cyclic(dict):
    def __init__(self):
        super().__init__(self=self)


@pytest.mark.parametrize(
    "result",
    [
        object(),
        {"a": {1j}},
        "\ud800",
        {"\ud800": 1},
        Cyclic(),
        {"score": float("nan")},
        [1, float("-inf")],
        Raw(b"nope"),
        {"a": Raw(b"1, 2}")},
    ],
    ids=[
        "an object",
        "a complex number",
        "half a character",
        "half a character as a name",
        "a circle",
        "no number",
        "an infinity",
        "text as it is",
        "text as it is that ends too soon",
    ],
)
async def test_a_result_that_is_no_json_is_internal_and_logged_once(result, caplog, autojump_clock):
    async with open_broker(configured()) as opened:
        desk = Desk(opened)
        sent = await Caller(opened).ask("work", "r1")
        await desk.do(result)
        assert sent.outcome == "internal"
        assert len(logged(caplog)) == 1


async def test_the_log_says_where_in_a_result_a_number_stands_that_json_does_not_have(caplog, autojump_clock):
    async with open_broker(configured()) as opened:

        @opened.command("work")
        async def work(params, context):
            return {"mails": [{"score": 0.5}, {"score": float("nan")}]}

        assert (await Caller(opened).ask("work", "r1")).outcome == "internal"
        assert "nan is no number in JSON - at `$.mails[1].score`" in caplog.text


async def test_a_refusal_whose_delay_is_no_number_is_internal(caplog, autojump_clock):
    async with open_broker(configured()) as opened:

        @opened.command("work")
        async def work(params, context):
            raise RequestError("rate_limited", "later", retry_after_ms=float("nan"))

        assert (await Caller(opened).ask("work", "r1")).outcome == "internal"
        assert len(logged(caplog)) == 1


@pytest.mark.parametrize("code_and_message", [("no", ValueError("no")), (7, "no"), ("no", "\ud800"), ("\ud800", "no")])
async def test_a_refusal_in_no_words_is_internal_and_harms_nobody_else(code_and_message, caplog):
    async with open_broker(configured()) as opened:

        @opened.command("work")
        async def work(params, context):
            raise CommandError(*code_and_message)

        async with serving(opened) as address, connected(address) as client, connected(address, BOB) as bob:
            assert (await client.ask("work", "r1"))["code"] == "internal"
            assert len(logged(caplog)) == 1
            assert "server_time" in await client.ask("ping", "r2")
            assert "server_time" in await bob.ask("ping", "r1")


class Even(Struct):
    number: int

    def __post_init__(self):
        if self.number % 2:
            raise ValueError("The number must be even")


class Failing(Struct):
    def __post_init__(self):
        raise RuntimeError("raised on purpose")


async def test_a_struct_may_check_itself_and_what_it_says_is_the_answer():
    async with open_broker(configured()) as opened:

        @opened.command("halve")
        async def halve(params: Even, context: CommandContext):
            return params.number // 2

        async with serving(opened) as address, connected(address) as client:
            error = await client.ask("halve", "r1", number=7)
            assert error["code"] == "invalid_params"
            assert "must be even" in error["message"]
            assert await client.ask("halve", "r1", number=8) == 4


async def test_a_struct_that_fails_as_it_is_made_is_internal_and_the_connection_lives(caplog):
    async with open_broker(configured()) as opened:

        @opened.command("work")
        async def work(params: Failing, context: CommandContext): ...

        async with serving(opened) as address, connected(address) as client:
            for _ in range(2):
                assert (await client.ask("work", "r1"))["code"] == "internal"
            assert "server_time" in await client.ask("ping", "r2")
            assert len(logged(caplog)) == 2


async def test_only_the_first_parameter_says_what_the_parameters_are(autojump_clock):
    async with open_broker(configured()) as opened:
        got = []

        class Handlers:
            async def method(self, params: Mail, context: CommandContext):
                got.append(params)

        @opened.command("bare")
        async def bare(params, context: CommandContext):
            got.append(params)

        @opened.command("returning")
        async def returning(params, context) -> Mail:
            got.append(params)
            return Mail(["b"])

        opened.command("method")(Handlers().method)
        for action in ("bare", "returning", "method"):
            await Caller(opened).ask(action, to=["a"])
        assert got == [{"to": ["a"]}, {"to": ["a"]}, Mail(["a"])]


@dataclass
class Letter:
    to: list[str]
    subject: str = ""


class Note(TypedDict):
    to: list[str]
    subject: NotRequired[str]


@attrs.define
class Parcel:
    to: list[str]
    subject: str = ""


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Letter, Letter(["a"])),
        (Note, {"to": ["a"]}),
        (Parcel, Parcel(["a"])),
        (Mail | None, Mail(["a"])),
        (dict[str, list[str]], {"to": ["a"]}),
        (Mapping[str, Any], {"to": ["a"]}),
        (Any, {"to": ["a"]}),
    ],
)
async def test_parameters_may_be_of_any_type_that_msgspec_decodes(kind, given, autojump_clock):
    async with open_broker(configured()) as opened:
        got = []

        @opened.command("work")
        async def work(params: kind, context: CommandContext):
            got.append(params)

        caller = Caller(opened)
        await caller.ask("work", to=["a"])
        assert got == [given]
        if kind not in (Any, Mapping[str, Any]):
            error = (await caller.ask("work", params={"to": [7]})).error
            assert error.code == "invalid_params"
            assert "`$.params.to" in error.message


def not_async(params, context): ...


async def generator(params, context):
    yield


async def takes_one(params): ...


async def takes_three(params, context, more): ...


async def names_nothing(params: "Nowhere", context): ...  # noqa: F821


async def wants_a_list(params: list[str], context): ...


async def wants_what_no_json_is(params: Desk, context): ...


async def wants_what_cannot_be_told_apart(params: Mail | dict[str, int], context): ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (not_async, "async"),
        (generator, "async"),
        ("send_email", "async"),
        (takes_one, "two arguments"),
        (takes_three, "two arguments"),
        (names_nothing, "Nowhere"),
        (wants_a_list, "JSON object"),
        (wants_what_no_json_is, "JSON object"),
        (wants_what_cannot_be_told_apart, "decoded"),
    ],
)
async def test_what_cannot_be_a_handler_is_refused_when_it_is_registered(function, message):
    async with open_broker() as opened:
        with pytest.raises(TypeError, match=rf"'work' .*{message}"):
            opened.command("work")(function)


async def test_a_decorator_without_its_action_is_refused():
    async with open_broker() as opened:
        with pytest.raises(TypeError, match="name the action"):

            @opened.command
            async def work(params, context): ...


class Called:
    async def __call__(self, params: Mail, context: CommandContext):
        return params.to


async def test_whatever_is_called_and_awaited_may_be_a_handler(autojump_clock):
    async with open_broker(configured()) as opened:

        async def work(more, params, context):
            return more

        opened.command("object")(Called())
        opened.command("part")(partial(work, 7))
        caller = Caller(opened)
        assert (await caller.ask("object", to=["a"])).outcome == ["a"]
        assert (await caller.ask("part")).outcome == 7


async def test_an_action_without_a_handler_is_unknown_and_is_asked_again_when_it_has_one():
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address) as client:
        error = await client.ask("work", "r1")
        assert error["code"] == "unknown_action"
        for what_would_make_one in ("'work'", "@broker.command", "`[commands] url`"):
            assert what_would_make_one in error["message"]

        @opened.command("work")
        async def work(params, context):
            return "done"

        assert await client.ask("work", "r1") == "done"


@pytest.mark.parametrize("action", ["subscribe", "unsubscribe", "publish", "ping"])
async def test_the_brokers_own_actions_have_no_handlers(action):
    async with open_broker(configured()) as opened:
        with pytest.raises(ValueError, match=action):
            opened.command(action)


async def test_an_action_has_one_handler():
    async with open_broker() as broker:

        @broker.command("send_email")
        async def first(params: dict, context: CommandContext) -> None: ...

        with pytest.raises(ValueError, match="send_email"):
            broker.command("send_email")(first)


async def test_a_name_that_is_no_action_has_no_handler():
    async with open_broker(configured()) as opened:
        with pytest.raises(RequestError, match="action"):
            opened.command("send email")


async def test_a_key_without_the_scope_or_the_inbox_is_forbidden_and_the_handler_does_not_run():
    async with open_broker(configured()) as opened:
        desk = Desk(opened)
        async with (
            serving(opened) as address,
            connected(address, LISTENER) as listener,
            connected(address, INBOXES) as agent,
        ):
            assert (await listener.ask("work", "r1"))["code"] == "forbidden"
            error = await agent.ask("work", "r1", inbox_id="in_9")
            assert error["code"] == "forbidden"
            assert "`$.inbox_id`" in error["message"]
        assert desk.ran == []


# --- side by side ------------------------------------------------------------


async def test_a_slow_handler_delays_neither_events_nor_pings_nor_other_commands_nor_other_clients():
    async with open_broker(configured()) as opened:
        desk = Desk(opened)

        @opened.command("quick")
        async def quick(params, context):
            return "quick"

        async with (
            serving(opened) as address,
            connected(address, query="?inbox_ids=in_1") as client,
            connected(address) as other,
        ):
            await client.say("work", "slow")
            assert await client.ask("quick", "r2") == "quick"
            assert "server_time" in await client.ask("ping", "r3")
            with trio.fail_after(60):
                await client.websocket.ping()
            await opened.publish(ACCOUNT, NewEvent("test.event", {"n": 1}, inbox_id="in_1"))
            assert (await client.hear())["payload"] == {"n": 1}
            assert await other.ask("quick", "r2") == "quick"
            assert client.frames == []
            await desk.do("slow")
            assert (await client.answer("slow"))["result"] == "slow"


async def test_a_handler_that_is_too_slow_is_cancelled_and_answered_with_timeout(autojump_clock):
    async with open_broker(configured(commands=CommandsConfig(timeout_seconds=3))) as opened:
        usual, patient = Desk(opened), Desk(opened, "patient", seconds=60)
        caller = Caller(opened)
        start = trio.current_time()
        sent, waiting = caller.send("work", "r1"), caller.send("patient")
        with trio.fail_after(100):
            await usual.ended.wait()
        await blocked()
        assert trio.current_time() == start + 3
        assert sent.outcome == "timeout"
        assert usual.cancelled == 1
        assert waiting.outcome is None
        await caller.ask("work", "r1")
        assert len(usual.ran) == 2, "it is not remembered"
        await patient.ended.wait()
        assert trio.current_time() == start + 60


async def test_a_handler_may_tidy_up_when_its_time_is_over_and_may_not_hide_that_it_is(autojump_clock):
    async with open_broker(configured()) as opened:

        @opened.command("work", seconds=1)
        async def work(params, context):
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(1)

        sent = Caller(opened).send("work", "r1")
        await trio.sleep(3)
        assert sent.outcome == "timeout"


async def test_no_more_than_so_many_commands_of_one_connection_are_under_way(autojump_clock):
    async with open_broker(configured(commands=CommandsConfig(max_per_connection=2))) as opened:
        desk = Desk(opened)
        caller, other = Caller(opened), Caller(opened)
        first, _, third = [await caller.ask("work", f"r{number}") for number in range(3)]
        assert third.outcome == "rate_limited"
        assert third.error.retry_after_ms == BUSY_RETRY_MS
        assert (await other.ask("work", "r9")).outcome is None, "another connection has its own"
        await desk.do("done", 0)
        assert first.outcome == "done"
        again = await caller.ask("work", "r2")
        assert again.outcome is None, "there is room again, and the refusal is not remembered"
        assert len(desk.ran) == 4


async def test_no_more_than_so_many_commands_of_one_account_are_under_way(autojump_clock):
    async with open_broker(configured(commands=CommandsConfig(max_per_account=2))) as opened:
        desk = Desk(opened)
        callers = [Caller(opened), Caller(opened, ALSO), Caller(opened)]
        sent = [await caller.ask("work") for caller in callers]
        assert [item.outcome for item in sent] == [None, None, "rate_limited"]
        assert (await Caller(opened, BOB).ask("work")).outcome is None, "another account has its own"
        await callers[0].leave()
        assert (await callers[2].ask("work")).outcome == "rate_limited", "who left still has it under way"
        await desk.do("done", 0)
        assert (await callers[2].ask("work")).outcome is None


async def test_repeats_that_wait_are_bounded_too(autojump_clock):
    async with open_broker(configured(commands=CommandsConfig(max_per_connection=2))) as opened:
        desk = Desk(opened)
        caller = Caller(opened)
        sent = [caller.send("work", "r1", n=1) for _ in range(2 + MAX_WAITING_REPEATS + 10)]
        await blocked()
        assert [item.outcome for item in sent] == [None] * (2 + MAX_WAITING_REPEATS) + ["rate_limited"] * 10
        assert sent[-1].error.retry_after_ms == BUSY_RETRY_MS
        await desk.do("done")
        assert {item.outcome for item in sent[:-10]} == {"done"}
        assert (await caller.ask("work", "r1", n=1)).outcome == "done"
        assert len(desk.ran) == 1


@pytest.mark.parametrize("with_request_id", [True, False])
async def test_when_the_connection_ends_what_runs_is_finished_or_cancelled_as_declared(with_request_id):
    async with open_broker(configured()) as opened:
        finishing = Desk(opened, "finish", seconds=600, when_client_leaves="finish")
        cancelling = Desk(opened, "cancel", seconds=600, when_client_leaves="cancel")
        async with serving(opened) as address:
            async with connected(address) as client:
                await client.say("finish", "r1" if with_request_id else None)
                await client.say("cancel", "r2" if with_request_id else None)
                await client.ask("ping", "r3")
                await blocked()
                assert len(finishing.ran) == len(cancelling.ran) == 1
            with trio.fail_after(60):
                await cancelling.ended.wait()
            assert cancelling.cancelled == 1
            assert not finishing.ended.is_set()
            assert opened.statistics().commands.under_way == 1
            await finishing.do("done")
            assert finishing.cancelled == 0
            assert opened.statistics().commands.under_way == 0
            if with_request_id:
                async with connected(address) as client:
                    assert await client.ask("finish", "r1") == "done"
                    await client.say("cancel", "r2")
                    await client.ask("ping", "r3")
                    await blocked()
                    assert (len(finishing.ran), len(cancelling.ran)) == (1, 2)


async def test_a_handler_that_cancels_when_its_client_leaves_goes_on_while_another_waits_for_it(autojump_clock):
    async with open_broker(configured()) as opened:
        desk = Desk(opened, when_client_leaves="cancel")
        first, second, third = (Caller(opened) for _ in range(3))
        unheard, heard = await first.ask("work", "r1"), await second.ask("work", "r1")
        await first.leave()
        assert desk.cancelled == 0
        await third.ask("work", "r1")
        await third.leave()
        assert desk.cancelled == 0
        await desk.do("done")
        assert (unheard.outcome, heard.outcome) == (None, "done")
        await first.ask("work", "r2")
        assert len(desk.ran) == 2


async def test_the_last_of_those_who_wait_takes_the_handler_with_it(autojump_clock):
    async with open_broker(configured()) as opened:
        desk = Desk(opened, when_client_leaves="cancel")
        first, second = Caller(opened), Caller(opened)
        await first.ask("work", "r1")
        await second.ask("work", "r1")
        await first.leave()
        await second.leave()
        assert desk.cancelled == 1
        assert opened.statistics().commands.under_way == 0


async def test_when_the_broker_ends_everything_that_runs_is_cancelled(autojump_clock):
    async with open_broker(configured()) as opened:
        desk = Desk(opened)
        sent = await Caller(opened).ask("work", "r1")
    assert desk.cancelled == 1
    assert sent.outcome == "unavailable"


async def test_a_drain_waits_for_the_answers_of_running_commands():
    async with open_broker(configured(server=ServerConfig(drain_seconds=600))) as opened:
        desk = Desk(opened)
        async with serving(opened) as address, connected(address) as client, trio.open_nursery() as nursery:
            answers = []

            async def ask_over_http():
                answers.append(await post(address, {"action": "work"}))

            nursery.start_soon(ask_over_http)
            await client.say("work", "r1")
            await client.ask("ping", "r2")
            with trio.fail_after(60):
                while len(desk.ran) < 2:
                    await blocked(0.001)
            opened.start_draining()
            assert (await client.hear())["type"] == "server.draining"
            for index in (0, 1):
                await desk.do("done", index)
            assert (await client.hear())["result"] == "done"
            with pytest.raises(trio_websocket.ConnectionClosed) as closed:
                await client.hear()
            assert closed.value.reason.code == 1012
    assert (answers[0].status_code, answers[0].json()) == (200, {"result": "done"})


# --- sent twice, done once ---------------------------------------------------

REFUSALS = {
    "no_such_message": True,
    "not_found": True,
    "bad_request": True,
    "too_large": True,
    "forbidden": False,
    "invalid_params": False,
    "invalid_json": False,
    "invalid_recipient": False,
    "rate_limited": False,
    "unavailable": False,
    "timeout": False,
    "internal": False,
}
"""Error codes, and whether the answer is remembered (PROTOCOL section 4)."""


@pytest.mark.parametrize(("code", "lasting"), REFUSALS.items())
@pytest.mark.parametrize("make", [CommandError, RequestError])
async def test_an_error_that_the_handler_decided_is_remembered_and_one_that_may_pass_is_asked_again(
    make, code, lasting, autojump_clock
):
    async with open_broker(configured()) as opened:
        desk = Desk(opened)
        caller = Caller(opened)
        first = await caller.ask("work", "r1", n=1)
        joined = await Caller(opened).ask("work", "r1", n=1)
        await desk.do(make(code, "because"))
        assert (first.error.code, first.error.message) == (code, "because")
        assert joined.outcome == code
        again = await Caller(opened).ask("work", "r1", n=1)
        assert again.outcome == (code if lasting else None)
        assert len(desk.ran) == (1 if lasting else 2)
        other = await caller.ask("work", "r1", n=2)
        assert other.outcome == "request_id_reused"


async def test_a_repeat_is_answered_once_for_each_time_it_was_sent_and_to_who_sent_it():
    async with open_broker(configured()) as opened:
        desk = Desk(opened)
        async with serving(opened) as address, connected(address) as one, connected(address) as two:
            await one.say("work", "r1", n=1, m=[1, {"a": 1, "b": 2}])
            await one.say("work", "r1", m=[1, {"b": 2, "a": 1}], params={"n": 1})
            await one.ask("ping", "r2")
            await two.say("work", "r1", params={"n": 1, "m": [1, {"a": 1, "b": 2}]})
            await two.ask("ping", "r2")
            assert len(desk.ran) == 1
            await desk.do({"id": 1})
            for client in (one, one, two):
                assert (await client.hear())["result"] == {"id": 1}
            answer = await post(address, {"action": "work", "request_id": "r1", "n": 1, "m": [1, {"a": 1, "b": 2}]})
            assert answer.json() == {"result": {"id": 1}}
            answer = await post(address, {"action": "work", "request_id": "r1"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "request_id_reused")
            assert "server_time" in await one.ask("ping", "r3")
            assert one.frames == two.frames == []
            assert len(desk.ran) == 1


async def test_another_key_and_another_account_have_request_ids_of_their_own(autojump_clock):
    async with open_broker(configured()) as opened:
        desk = Desk(opened)
        for secret in (ALICE, ALSO, BOB):
            await Caller(opened, secret).ask("work", "r1", n=secret)
        assert [context.key_id for context, _ in desk.ran] == ["key_alice", "key_also", "key_bob"]
        assert len({context.message_id for context, _ in desk.ran}) == 3


async def test_a_key_of_the_same_name_in_another_account_has_message_ids_of_its_own(autojump_clock):
    keys = [KeyConfig(id="key", sha256=sha256(secret.encode()).hexdigest()) for secret in (ALICE, BOB)]
    accounts = tuple(AccountConfig(id=name, keys=(key,)) for name, key in zip(("acct_1", "acct_2"), keys, strict=True))
    async with open_broker(Config(accounts=accounts)) as opened:
        desk = Desk(opened)
        for secret in (ALICE, BOB):
            await Caller(opened, secret).ask("work", "r1", n=1)
        (one, _), (other, _) = desk.ran
        assert (one.key_id, one.account_id) == ("key", "acct_1")
        assert (other.key_id, other.account_id) == ("key", "acct_2")
        assert one.message_id != other.message_id


async def test_the_message_id_is_the_same_when_the_same_is_asked_again_and_else_another(autojump_clock):
    async with open_broker(configured()) as opened:
        desk = Desk(opened)
        caller = Caller(opened)
        for request_id, n in (("r1", 1), ("r1", 1), ("r1", 2), ("r2", 1), (None, 1), (None, 1)):
            await caller.ask("work", request_id, n=n)
            await desk.do(CommandError("unavailable", "not now"))
        ids = [context.message_id for context, _ in desk.ran]
        assert ids[0] == ids[1]
        assert len(set(ids)) == 5


async def test_after_the_replay_window_a_repeat_is_a_new_command(autojump_clock):
    async with open_broker(configured(replay=ReplayConfig(seconds=300))) as opened:
        desk = Desk(opened)
        caller = Caller(opened)
        await caller.ask("work", "r1")
        await trio.sleep(9)
        await desk.do("first")
        await trio.sleep(300)
        assert (await caller.ask("work", "r1")).outcome == "first"
        await trio.sleep(0.5)
        assert (await caller.ask("work", "r1")).outcome is None
        assert len(desk.ran) == 2


async def test_nothing_is_kept_of_an_account_whose_commands_are_forgotten(autojump_clock):
    async with open_broker(configured()) as opened:
        desk = Desk(opened)
        caller = Caller(opened)
        await caller.ask("work", "r1")
        await desk.do("done")
        await trio.sleep(1000)
        assert opened.statistics().commands.accounts == 1, "its connection is there"
        await caller.leave()
        await trio.sleep(100)
        assert opened.statistics().commands.accounts == 0


async def test_nothing_is_kept_of_an_account_whose_commands_came_over_http(autojump_clock):
    async with open_broker(configured()) as opened:

        @opened.command("work")
        async def work(params, context):
            return "done"

        key = key_of(opened, ALICE)
        for request_id in ("r1", "r1", None):
            command = decode_command(json.dumps({"action": "work", "request_id": request_id}))
            assert (await opened.do_command(key, command)).result == b'"done"'
        with trio.move_on_after(0):
            await opened.do_command(key, decode_command('{"action":"work","request_id":"r2"}'))
        assert opened.statistics().commands.accounts == 1
        await trio.sleep(1000)
        assert opened.statistics().commands.accounts == 0


class Loop:
    """A broker in a trio loop of its own, in a thread, so that the rules of a state machine can hop in."""

    def __init__(self, config):
        self.clock = MockClock()
        started = queue.Queue()
        self._thread = threading.Thread(
            target=trio.run, args=(self._run, config, started), kwargs={"clock": self.clock}
        )
        self._thread.start()
        self.broker, self._token, self._end = started.get(timeout=60)

    async def _run(self, config, started):
        async with open_broker(config) as opened:
            end = trio.Event()
            started.put((opened, trio.lowlevel.current_trio_token(), end))
            await end.wait()

    def call(self, function, *args):
        """Call in the loop, and return when nothing moves there any more."""

        async def call():
            result = function(*args)
            await blocked()
            return result

        return trio.from_thread.run(call, trio_token=self._token)

    def close(self):
        trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join(60)


class ModelRun:
    def __init__(self, identity, content, number, deadline, once):
        self.identity = identity
        self.once = once
        self.content = content
        self.number = number
        self.deadline = deadline
        self.waiting = []  # (lane, index into what was sent)


class SentTwiceDoneOnce(RuleBasedStateMachine):
    """Callers of two keys over several connections, against a model that says when the handler runs."""

    WINDOW, SECONDS = 30, 10
    PER_CONNECTION, PER_ACCOUNT = 2, 4

    def __init__(self):
        super().__init__()
        logging.getLogger("broker.commands.dispatch").disabled = True  # of handlers that fail on purpose
        commands = CommandsConfig(max_per_connection=self.PER_CONNECTION, max_per_account=self.PER_ACCOUNT)
        self.loop = Loop(configured(commands=commands, replay=ReplayConfig(seconds=self.WINDOW)))
        self.now = 0
        self.orders = []
        self.ran = []
        self.sent = []
        self.lanes = {}
        self.lane_numbers = 0
        self.model_ran = []
        self.model_expected = []
        self.model_under_way = []
        self.model_ended = {}
        self.model_duplicates = set()
        for action in ("finish", "cancel"):
            self.loop.broker.command(action, seconds=self.SECONDS, when_client_leaves=action)(self.handle)

    async def handle(self, params: dict[str, Any], context: CommandContext):
        send, receive = trio.open_memory_channel[Any](1)
        self.orders.append(send)
        self.ran.append((context.key_id, context.action, params["n"]))
        order = await receive.receive()
        if isinstance(order, Exception):
            raise order
        return order

    def teardown(self):
        self.loop.close()
        logging.getLogger("broker.commands.dispatch").disabled = False

    @precondition(lambda self: len(self.lanes) < 4)
    @rule(secret=st.sampled_from([ALICE, ALSO]))
    def connect(self, secret):
        self.lane_numbers += 1
        self.lanes[self.lane_numbers] = (self.loop.call(Caller, self.loop.broker, secret), secret)

    @precondition(lambda self: self.lanes)
    @rule(
        data=st.data(),
        request_id=st.sampled_from(["r1", "r1", "r2", "r3", None]),
        action=st.sampled_from(["finish", "finish", "cancel"]),
        n=st.sampled_from([1, 1, 1, 2]),
        once=st.sampled_from([None, None, None, "evt_1", "evt_2"]),
        inbox_id=st.sampled_from(["in_1", "in_1", "in_2"]),
        nested=st.booleans(),
    )
    def send(self, data, request_id, action, n, once, inbox_id, nested):
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        caller, secret = self.lanes[lane]
        params = {"n": n} if once is None else {"n": n, "once": once, "inbox_id": inbox_id}
        if nested:
            params = {"params": params}
        self.sent.append(self.loop.call(lambda: caller.send(action, request_id, **params)))
        same = None if once is None else (inbox_id, action, once)
        self.model_expected.append(self.model_send(lane, secret, request_id, (action, n), same))

    def model_send(self, lane, secret, request_id, content, once):
        """Return the outcome that is expected at once, None if there is none yet."""
        identity = once or ((secret, request_id) if request_id else None)
        run = next((run for run in self.model_under_way if identity and run.identity == identity), None)
        if identity in self.model_ended:
            known, outcome, _ = self.model_ended[identity]
            if once:
                self.model_duplicates.add(len(self.model_expected))
                return outcome
            return outcome if known == content else "request_id_reused"
        if run is not None and not once and run.content != content:
            return "request_id_reused"
        if run is None:
            mine = sum(waiter == lane for other in self.model_under_way for waiter, _ in other.waiting)
            if mine >= self.PER_CONNECTION or len(self.model_under_way) >= self.PER_ACCOUNT:
                return "rate_limited"
            run = ModelRun(identity, content, len(self.model_ran), self.now + self.SECONDS, once)
            run.first = len(self.model_expected)
            self.model_under_way.append(run)
            self.model_ran.append((secret.replace("dm_live_", "key_"), *content))
        run.waiting.append((lane, len(self.model_expected)))
        return None

    def model_end(self, run, outcome, lasting):
        self.model_under_way.remove(run)
        for _, index in run.waiting:
            self.model_expected[index] = outcome
            if run.once and lasting and index != run.first:
                self.model_duplicates.add(index)
        if lasting and run.identity is not None:
            self.model_ended[run.identity] = (run.content, outcome, self.now)

    @precondition(lambda self: self.model_under_way)
    @rule(data=st.data(), how=st.one_of(st.sampled_from(sorted(REFUSALS)), st.sampled_from(["crash", "done", "done"])))
    def the_handler_ends(self, data, how):
        run = data.draw(st.sampled_from(self.model_under_way))
        if how == "done":
            order, outcome, lasting = {"run": run.number}, {"run": run.number}, True
        elif how == "crash":
            order, outcome, lasting = ValueError("on purpose"), "internal", False
        else:
            order, outcome, lasting = CommandError(how, "because"), how, REFUSALS[how]
        self.loop.call(self.orders[run.number].send_nowait, order)
        self.model_end(run, outcome, lasting)

    @rule(seconds=st.sampled_from([1, 4, 9, 10, 29, 31, ONCE_SECONDS - 100, ONCE_SECONDS + 1]))
    def pass_time(self, seconds):
        self.loop.call(self.loop.clock.jump, seconds)
        self.now += seconds
        for run in list(self.model_under_way):
            if run.deadline <= self.now:
                self.model_end(run, "timeout", lasting=False)
        self.model_ended = {
            identity: item
            for identity, item in self.model_ended.items()
            if item[2] >= self.now - (ONCE_SECONDS if len(identity) == 3 else self.WINDOW)
        }

    @precondition(lambda self: self.lanes)
    @rule(data=st.data())
    def leave(self, data):
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        caller, _ = self.lanes.pop(lane)
        self.loop.call(self.loop.broker.commands.leave, caller.lane)
        for run in list(self.model_under_way):
            stayed = [item for item in run.waiting if item[0] != lane]
            if len(stayed) < len(run.waiting):
                run.waiting = stayed
                if not stayed and run.content[0] == "cancel":
                    self.model_end(run, None, lasting=False)

    @invariant()
    def each_heard_what_it_should_and_the_handler_ran_as_often_as_it_should(self):
        assert [sent.outcome for sent in self.sent] == self.model_expected
        duplicates = {index for index, sent in enumerate(self.sent) if sent.outcomes and sent.outcomes[0].duplicate}
        assert duplicates == self.model_duplicates
        assert self.ran == self.model_ran
        assert self.loop.broker.statistics().commands.under_way == len(self.model_under_way)
        waiting = [lane for run in self.model_under_way for lane, _ in run.waiting]
        assert {lane: len(caller.lane.waiting) for lane, (caller, _) in self.lanes.items()} == {
            lane: waiting.count(lane) for lane in self.lanes
        }


TestSentTwiceDoneOnce = SentTwiceDoneOnce.TestCase
TestSentTwiceDoneOnce.settings = settings(max_examples=150, stateful_step_count=40)


# --- publish, sent twice -----------------------------------------------------


def event(n, **fields):
    return {"type": "test.event", "payload": {"n": n}, "inbox_id": "in_1", **fields}


async def published(broker):
    """All that the window holds."""
    [marker] = await broker.publish(ACCOUNT, NewEvent("test.marker", {}))
    got = []
    async with broker.subscribe(ACCOUNT, since="1h") as subscriber:
        while (item := await anext(subscriber)).event_id != marker.event_id:
            got.append(item)
    return [item.payload["n"] for item in got if item.payload]


async def test_a_publish_with_the_same_request_id_is_done_once_whoever_asks_again():
    async with open_broker(configured()) as opened, serving(opened) as address:
        async with connected(address) as client:
            first = await client.ask("publish", "r1", events=[event(1), event(2)])
            assert len(first["events"]) == 2
            assert await client.ask("publish", "r1", params={"events": [event(1), event(2)]}) == first
        async with connected(address) as client, connected(address, ALSO) as other:
            assert await client.ask("publish", "r1", events=[event(1), event(2)]) == first
            assert (await client.ask("publish", "r1", events=[event(1)]))["code"] == "request_id_reused"
            assert (await client.ask("work", "r1", events=[event(1), event(2)]))["code"] == "request_id_reused"
            assert await published(opened) == [1, 2]
            second = await other.ask("publish", "r1", events=[event(3)])
            assert second["events"] != first["events"]
            for _ in range(2):
                await other.say("publish", None, events=event(4))
                await other.ask("ping", "r9")
        assert await published(opened) == [1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ({"events": [event(1), {"type": "x"}]}, "invalid_params"),
        ({"events": [event(1), event(2, account_id="acct_bob")]}, "forbidden"),
        ({"events": event("x" * 300_000)}, "too_large"),
        ({}, "invalid_params"),
    ],
)
async def test_a_publish_that_was_refused_is_not_remembered(bad, code):
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address) as client:
        assert (await client.ask("publish", "r1", **bad))["code"] == code
        assert "events" in await client.ask("publish", "r1", events=event(1))
        assert await published(opened) == [1]


@asynccontextmanager
async def fan_out_behind(broker):
    """Hold all the places of publishes, until the block ends."""
    async with broker.hold(ACCOUNT) as account:
        places = list(iter(partial(account.places.take_nowait, 1), None))
        yield
        for place in places:
            place.give_back()


async def test_a_publish_sent_again_while_the_first_waits_waits_with_it():
    async with (
        open_broker(configured()) as opened,
        serving(opened) as address,
        connected(address) as one,
        connected(address) as two,
    ):
        async with fan_out_behind(opened):
            await one.say("publish", "r1", events=event(1))
            await one.say("publish", "r1", events=event(1))
            assert (await one.ask("publish", "r1", events=event(2)))["code"] == "request_id_reused"
            await two.say("publish", "r1", events=event(1))
            await two.ask("ping", "r9")
            assert one.frames == two.frames == []
        answers = [await one.hear(), await one.hear(), await two.hear()]
        assert answers == [answers[0]] * 3
        assert "result" in answers[0]
        assert await published(opened) == [1]


async def test_a_publish_that_waits_when_its_client_leaves_is_not_done_and_may_be_sent_again():
    async with open_broker(configured()) as opened, serving(opened) as address:
        async with fan_out_behind(opened), connected(address) as two:
            async with connected(address) as one:
                await one.say("publish", "r1", events=event(1))
                await one.ask("ping", "r9")
                await two.say("publish", "r1", events=event(1))
                await two.ask("ping", "r9")
            assert (await two.answer("r1"))["error"]["code"] == "unavailable"
        assert await published(opened) == []
        async with connected(address) as one:
            assert "events" in await one.ask("publish", "r1", events=event(1))
        assert await published(opened) == [1]


# --- rates -------------------------------------------------------------------


def developer(**rates):
    return configured(rates=RatesConfig(developer=TierRatesConfig(**rates)))


async def test_without_rates_nothing_is_limited_and_clients_are_told_so():
    async with open_broker(configured()) as opened:

        @opened.command("work")
        async def work(params, context):
            return "done"

        async with serving(opened) as address, connected(address) as client:
            assert client.ready["limits"]["commands_per_second"] is None
            assert [await client.ask("work", f"r{n}") for n in range(200)] == ["done"] * 200


async def test_a_client_is_told_its_rate_when_it_connects_and_when_to_come_back():
    config = developer(commands_per_connection=RateConfig(0.01, burst=2), commands_per_account=RateConfig(5))
    async with open_broker(config) as opened:

        @opened.command("work")
        async def work(params, context):
            return "done"

        async with serving(opened) as address, connected(address) as client:
            assert client.ready["limits"]["commands_per_second"] == 0.01
            assert [await client.ask("work", f"r{n}") for n in range(2)] == ["done"] * 2
            error = await client.ask("work", "r2")
            assert error["code"] == "rate_limited"
            assert 90_000 < error["retry_after_ms"] <= 100_000
            assert await client.ask("work", "r1") == "done", "a repeat costs nothing"
            assert "server_time" in await client.ask("ping", "r3"), "the broker's own actions cost nothing"
            async with connected(address) as other:
                assert await other.ask("work", "r1") == "done"
                assert await other.ask("work", "r4") == "done", "another connection has its own"


async def test_commands_of_one_account_share_a_rate_whatever_way_they_come():
    config = developer(commands_per_account=RateConfig(0.01, burst=3))
    async with open_broker(config) as opened:

        @opened.command("work")
        async def work(params, context):
            return "done"

        async with serving(opened) as address, connected(address) as one, connected(address, ALSO) as two:
            assert await one.ask("work", "r1") == "done"
            assert await two.ask("work", "r2") == "done"
            assert (await post(address, {"action": "work"})).status_code == 200
            assert (await one.ask("work", "r3"))["code"] == "rate_limited"
            assert (await two.ask("work", "r3"))["code"] == "rate_limited"
            answer = await post(address, {"action": "work"})
            assert answer.status_code == 429
            error = answer.json()["error"]
            assert error["code"] == "rate_limited"
            assert int(answer.headers["retry-after"]) == math.ceil(error["retry_after_ms"] / 1000)
            assert (await post(address, {"action": "work"}, BOB)).status_code == 200, "another account has its own"


async def test_who_comes_back_when_told_is_let_in(autojump_clock):
    async with open_broker(developer(commands_per_connection=RateConfig(3))) as opened:
        desk = Desk(opened)
        caller = Caller(opened)
        start = trio.current_time()
        for number in range(30):
            sent = await caller.ask("work", f"r{number}")
            if sent.outcome == "rate_limited":
                await trio.sleep(sent.error.retry_after_ms / 1000)
                sent = await caller.ask("work", f"r{number}")
            assert sent.outcome is None
            await desk.do("done")
        assert trio.current_time() == pytest.approx(start + 9, abs=0.05)


async def test_a_refused_command_costs_nothing(autojump_clock):
    async with open_broker(developer(commands_per_connection=RateConfig(0.01, burst=1))) as opened:

        @opened.command("send_email")
        async def send_email(mail: Mail, context: CommandContext):
            return "done"

        caller = Caller(opened)
        assert (await caller.ask("nothing")).outcome == "unknown_action"
        assert (await caller.ask("send_email")).outcome == "invalid_params"
        assert (await caller.ask("send_email", to=["a"])).outcome == "done"
        assert (await caller.ask("send_email", to=["a"])).outcome == "rate_limited"


async def test_every_event_of_a_publish_counts_over_the_stream_and_over_http():
    tier = TierRatesConfig(
        events_per_connection=RateConfig(0.01, burst=5), events_per_account=RateConfig(0.01, burst=8)
    )
    config = configured(rates=RatesConfig(free=tier, developer=tier, growth=tier, enterprise=tier))
    async with open_broker(config) as opened, serving(opened) as address:
        async with connected(address) as one, connected(address) as two:
            assert "events" in await one.ask("publish", "r1", events=[event(n) for n in range(4)])
            error = await one.ask("publish", "r2", events=[event(4), event(5)])
            assert error["code"] == "rate_limited"
            assert 90_000 < error["retry_after_ms"] <= 100_000
            assert "events" in await one.ask("publish", "r1", events=[event(n) for n in range(4)]), "a repeat"
            assert "events" in await one.ask("publish", "r2", events=event(4)), "it is not remembered"
            assert "events" in await two.ask("publish", "r3", events=[event(5), event(6)])
            assert (await two.ask("publish", "r4", events=[event(7), event(8)]))["code"] == "rate_limited"
            async with httpx.AsyncClient(trust_env=False) as http:
                url = f"http://{address}/v1/events"
                answers = [
                    await http.post(url, json=body, headers={"Authorization": f"Bearer {secret}"})
                    for secret, body in [
                        (ALICE, event(7)),
                        (ALICE, event(8)),
                        (OPERATOR, [event(n, account_id=ACCOUNT) for n in range(9, 20)]),
                        (OPERATOR, [event(n, account_id=ACCOUNT) for n in range(20, 30)]),
                    ]
                ]
            assert [answer.status_code for answer in answers] == [200, 429, 200, 200]
            assert 90 <= int(answers[1].headers["retry-after"]) <= 100
        assert await published(opened) == [0, 1, 2, 3, 4, 5, 6, 7, *range(9, 30)]


async def test_waiting_for_the_fan_out_does_not_cost_twice():
    config = developer(events_per_connection=RateConfig(0.01, burst=3))
    async with open_broker(config) as opened, serving(opened) as address, connected(address) as client:
        async with fan_out_behind(opened):
            await client.say("publish", "r1", events=[event(1), event(2)])
            await client.ask("ping", "r9")
        assert "result" in await client.answer("r1")
        assert "events" in await client.ask("publish", "r2", events=event(3))
        assert (await client.ask("publish", "r3", events=event(4)))["code"] == "rate_limited"


# --- over HTTP ---------------------------------------------------------------


async def test_a_command_over_http_from_end_to_end():
    async with open_broker(configured()) as opened:

        @opened.command("send_email")
        async def send_email(mail: Mail, context: CommandContext):
            return [mail.to, context.inbox_id, context.request_id, context.key_id, context.traceparent]

        async with serving(opened) as address:
            body = {"action": "send_email", "request_id": "r1", "inbox_id": "in_1", "params": {"to": ["a"]}}
            answer = await post(address, body, INBOXES, traceparent=TRACE)
            assert answer.json() == {"result": [["a"], "in_1", "r1", "key_inboxes", TRACE]}
            del body["request_id"]
            ids = {(await post(address, body)).json()["result"][2] for _ in range(3)}
            assert len(ids) == 3
            assert "server_time" in (await post(address, {"action": "ping"})).json()["result"]


@pytest.mark.parametrize(
    ("secret", "body", "status", "code"),
    [
        (None, {"action": "work"}, 401, "unauthorized"),
        ("dm_live_nobody", {"action": "work"}, 401, "unauthorized"),
        (OPERATOR, {"action": "work"}, 403, "forbidden"),
        (LISTENER, {"action": "work"}, 403, "forbidden"),
        (INBOXES, {"action": "work", "inbox_id": "in_9"}, 403, "forbidden"),
        (ALICE, {"action": "nothing"}, 404, "unknown_action"),
        (ALICE, {"action": "subscribe", "inbox_ids": ["in_1"]}, 404, "unknown_action"),
        (ALICE, {"action": "publish", "events": []}, 404, "unknown_action"),
        (ALICE, b"nonsense", 400, "invalid_json"),
        (ALICE, b'{"action":"work","a":"\xff"}', 400, "invalid_json"),
        (ALICE, b"[1]", 400, "invalid_params"),
        (ALICE, b"", 400, "invalid_json"),
        (ALICE, {}, 400, "invalid_params"),
        (ALICE, {"action": "work", "request_id": "a b"}, 400, "invalid_params"),
        (ALICE, {"action": "send_email", "to": 7}, 400, "invalid_params"),
        (ALICE, {"action": "fail"}, 500, "internal"),
        (ALICE, {"action": "slow"}, 504, "timeout"),
        (ALICE, {"action": "away"}, 503, "unavailable"),
    ],
)
async def test_what_is_refused_over_http_has_its_status(secret, body, status, code):
    async with open_broker(configured()) as opened:

        @opened.command("send_email")
        async def send_email(mail: Mail, context: CommandContext): ...

        @opened.command("work")
        async def work(params, context): ...

        @opened.command("fail")
        async def fail(params, context):
            raise ValueError

        @opened.command("slow", seconds=0.001)
        async def slow(params, context):
            await trio.sleep_forever()

        @opened.command("away")
        async def away(params, context):
            raise CommandError("unavailable", "away")

        async with serving(opened) as address:
            answer = await post(address, body, secret)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert opened.statistics().commands.under_way == 0


async def test_no_key_and_no_parameter_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    async with open_broker(configured()) as opened:

        @opened.command("fail")
        async def fail(params, context):
            raise ValueError

        async with serving(opened) as address:
            async with connected(address, query="?inbox_ids=in_1") as client:
                await client.ask("fail", "r1", password="swordfish")
            await post(address, {"action": "fail", "password": "swordfish"})
    text = "\n".join(logging.Formatter().format(r) for r in caplog.records if r.name.startswith("broker"))
    assert "the handler of fail failed" in text
    assert ALICE not in text
    assert "swordfish" not in text


# --- long commands -----------------------------------------------------------

LONG = json.dumps({"action": "work", "request_id": "r1", "to": [{"name": f"n{n}"} for n in range(5_000)]})
"""It takes many steps to prove."""


async def waits_for_others(act) -> bool:
    """Whether others have a turn before the act ends."""
    turns = []

    async def other():
        while True:
            turns.append(None)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await act()
        nursery.cancel_scope.cancel()
    return len(turns) > 10


async def test_a_long_command_is_proved_in_turns_with_others_and_is_the_same_command_when_it_is_sent_again():
    done = []
    async with open_broker(configured()) as opened:

        @opened.command("work")
        async def work(params: dict[str, Any], context: CommandContext) -> dict[str, Any]:
            done.append(params)
            return {"number": len(done)}

        async def give(text: str) -> Any:
            outcome = await opened.do_command(key_of(opened, ALICE), decode_command(text))
            if outcome.error is not None:
                raise outcome.error
            return json.loads(outcome.result)

        assert await waits_for_others(partial(give, LONG))
        assert done == [{"to": [{"name": f"n{n}"} for n in range(5_000)]}]
        assert await give(json.dumps(json.loads(LONG), indent=3)) == {"number": 1}
        with pytest.raises(RequestError, match="request_id_reused"):
            await give(LONG.replace('"n7"', '"n8"'))


async def test_few_long_commands_are_proved_side_by_side_however_many_there_are(monkeypatch):
    proving, most = [], []

    def prove_slowly(command):
        proving.append(command)
        most.append(len(proving))
        for _ in range(10):
            yield
        proving.remove(command)
        return command

    monkeypatch.setattr(dispatch, "prove_command", prove_slowly)
    async with open_broker(configured()) as opened:
        Desk(opened)
        async with trio.open_nursery() as nursery:
            for secret in (ALICE, BOB):
                for number in range(10):
                    command = decode_command(LONG.replace("r1", f"r{number}"))
                    nursery.start_soon(opened.commands.prove, key_of(opened, secret), command)
        assert len(most) == 20
        assert 1 < max(most) <= MAX_PROVING


async def test_whether_a_long_command_may_be_given_and_is_done_by_anybody_comes_before_its_proof():
    broken = LONG.replace('"n0"', "1e999")
    async with open_broker(configured()) as opened:
        for secret, code in ((LISTENER, "forbidden"), (ALICE, "unknown_action")):

            async def give(secret=secret, code=code) -> None:
                command = await opened.commands.prove(key_of(opened, secret), decode_command(broken))
                assert command.proof.fault.code == code

            assert not await waits_for_others(give)


async def test_what_is_wrong_with_a_long_command_is_told_to_its_client():
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address) as client:

        @opened.command("work")
        async def work(params: dict[str, Any], context: CommandContext) -> dict[str, Any]:
            return {}

        await client.websocket.send_message(LONG.replace('"n4999"', "1e999"))
        error = (await client.answer("r1"))["error"]
        assert error["code"] == "invalid_params"
        assert "`$.to`" in error["message"]
        await client.websocket.send_message(LONG)
        assert (await client.answer("r1"))["result"] == {}


async def test_a_long_command_that_came_over_a_stream_is_proved_once(monkeypatch):
    def prove_at_once(command):
        raise AssertionError(f"{command.action} was not proved in turns with others")

    monkeypatch.setattr(decoding, "prove_command", prove_at_once)
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address) as client:

        @opened.command("work")
        async def work(params: dict[str, Any], context: CommandContext) -> dict[str, Any]:
            return {}

        await client.websocket.send_message(LONG)
        assert (await client.answer("r1"))["result"] == {}
        await client.say("publish", "r2", events=[{"type": "a.b", "payload": {}}] * 1_000)
        assert len((await client.answer("r2"))["result"]["events"]) == 1_000


async def test_a_long_command_whose_key_is_revoked_while_it_is_proved_is_not_begun(monkeypatch):
    proving, begun = trio.Event(), []

    async def prove_for_ever(self, key, command):
        proving.set()
        await trio.sleep_forever()

    monkeypatch.setattr(Commands, "prove", prove_for_ever)
    async with open_broker(configured()) as opened, serving(opened) as address, connected(address) as client:
        monkeypatch.setattr(opened.commands, "submit", lambda *args: begun.append(args))
        await client.websocket.send_message(LONG)
        await proving.wait()
        opened.reload(Config())
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await client.hear()
        assert closed.value.reason.code == 4401
        await blocked()
        assert not begun


async def test_a_key_that_is_revoked_while_its_command_is_proved_gives_none_over_http(monkeypatch):
    async with open_broker(configured()) as opened:
        prove = opened.commands.prove

        async def prove_meanwhile(key, command):
            opened.reload(Config())
            return await prove(key, command)

        monkeypatch.setattr(opened.commands, "prove", prove_meanwhile)
        desk = Desk(opened)
        with pytest.raises(RequestError, match="unauthorized"):
            await opened.do_command(key_of(opened, ALICE), decode_command(LONG))
        assert not desk.ran
