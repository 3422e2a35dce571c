"""`once`: one effect for each mail, whoever gives the command, and in whatever words (PROTOCOL section 4)."""

import json
import random
from collections import Counter
from functools import partial

import pytest
import trio
from commanding import ALICE, ALSO, BOB, INBOXES, Caller, configured, connected, key_of, post, serving
from trio.testing import wait_all_tasks_blocked as blocked

from broker import CommandContext, CommandError, RequestError, open_broker
from broker.commands.remembered import MAX_ANSWERS, ONCE_SECONDS
from broker.protocol.decoding import decode_command


class Mailer:
    """Does `send_email`, and knows what it was asked for. ``refuses``: what it raises the next times."""

    def __init__(self, broker):
        self.asked: list[tuple[CommandContext, dict]] = []
        self.refuses: list[Exception] = []
        broker.command("send_email")(self.send)
        broker.command("reply")(self.send)

    async def send(self, params: dict, context: CommandContext):
        self.asked.append((context, params))
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise self.refuses.pop(0)
        return {"sent": len(self.asked)}


def about(event, body="Dear Ada", inbox_id="in_1", **fields):
    return {"inbox_id": inbox_id, "once": event, "body": body, **fields}


async def test_two_workers_that_answer_one_mail_in_other_words_send_one_answer():
    async with open_broker(configured()) as opened:
        mailer = Mailer(opened)
        async with serving(opened) as address, connected(address, INBOXES) as one, connected(address) as two:
            await one.say("send_email", "r1", **about("evt_1", "Dear Ada"))
            first = await one.hear()
            assert (first["result"], "duplicate" in first) == ({"sent": 1}, False)
            await two.say("send_email", "r9", **about("evt_1", "Hello Ada,"))
            assert await two.hear() == {
                "type": "response",
                "request_id": "r9",
                "action": "send_email",
                "result": {"sent": 1},
                "duplicate": True,
            }
            answer = await post(address, {"action": "send_email", "params": about("evt_1", "Hi!")})
            assert answer.json() == {"result": {"sent": 1}, "duplicate": True}
        assert [params["body"] for _, params in mailer.asked] == ["Dear Ada"]


async def test_who_comes_while_the_first_is_under_way_waits_for_it(autojump_clock):
    async with open_broker(configured()) as opened:
        mailer = Mailer(opened)
        sent = [Caller(opened, secret).send("send_email", "r1", **about("evt_1", secret)) for secret in (ALICE, ALSO)]
        await blocked()
        assert [one.outcome for one in sent] == [{"sent": 1}] * 2
        assert [one.outcomes[0].duplicate for one in sent] == [False, True]
        assert len(mailer.asked) == 1


@pytest.mark.parametrize(
    ("other", "secret"),
    [
        (about("evt_2"), ALICE),
        (about("evt_1", inbox_id="in_2"), ALICE),
        ({**about("evt_1"), "action": "reply"}, ALICE),
        (about("evt_1"), BOB),
    ],
    ids=["event", "inbox", "action", "account"],
)
async def test_another_event_inbox_action_or_account_is_another_effect(other, secret, autojump_clock):
    async with open_broker(configured()) as opened:
        mailer = Mailer(opened)
        await Caller(opened).ask("send_email", "r1", **about("evt_1"))
        again = await Caller(opened, secret).ask(**{"action": "send_email", "request_id": "r1", **other})
        assert (again.outcome, again.outcomes[0].duplicate) == ({"sent": 2}, False)
        assert len({context.message_id for context, _ in mailer.asked}) == 2


async def test_the_request_id_only_ties_the_answer(autojump_clock):
    async with open_broker(configured()) as opened:
        Mailer(opened)
        caller = Caller(opened)
        await caller.ask("send_email", "r1", **about("evt_1"))
        assert (await caller.ask("send_email", "r1", **about("evt_1", "other words"))).outcome == {"sent": 1}
        assert (await caller.ask("send_email", "r1", **about("evt_2"))).outcome == {"sent": 2}
        assert (await caller.ask("send_email", "r1", body="without")).outcome == {"sent": 3}


async def test_a_refusal_that_the_handler_decided_is_the_answer_for_all(autojump_clock):
    async with open_broker(configured()) as opened:
        mailer = Mailer(opened)
        mailer.refuses = [CommandError("recipient_blocked", "Ada wants no mail")]
        async with serving(opened) as address, connected(address) as client:
            await client.say("send_email", "r1", **about("evt_1"))
            assert (await client.hear())["error"]["code"] == "recipient_blocked"
            answer = await post(address, {"action": "send_email", **about("evt_1", "please")})
            assert (answer.status_code, answer.json()) == (
                400,
                {"error": {"code": "recipient_blocked", "message": "Ada wants no mail"}, "duplicate": True},
            )


@pytest.mark.parametrize("code", ["unavailable", "timeout", "internal", "forbidden", "invalid_params", "rate_limited"])
async def test_what_may_pass_is_done_again_with_the_message_id_of_the_first(code, autojump_clock):
    async with open_broker(configured()) as opened:
        mailer = Mailer(opened)
        mailer.refuses = [RequestError(code, "not now")]
        first = await Caller(opened, ALICE).ask("send_email", "r1", **about("evt_1", "one"))
        assert (first.error.code, first.outcomes[0].duplicate) == (code, False)
        again = await Caller(opened, ALSO).ask("send_email", "r2", **about("evt_1", "other"))
        assert (again.outcome, again.outcomes[0].duplicate) == ({"sent": 2}, False)
        assert len({context.message_id for context, _ in mailer.asked}) == 1


async def test_an_answer_is_kept_for_a_day_and_not_longer(autojump_clock):
    async with open_broker(configured()) as opened:
        mailer = Mailer(opened)
        await Caller(opened).ask("send_email", None, **about("evt_1"))
        await trio.sleep(ONCE_SECONDS - 1)
        assert (await Caller(opened).ask("send_email", None, **about("evt_1"))).outcome == {"sent": 1}
        await trio.sleep(2)
        assert (await Caller(opened).ask("send_email", None, **about("evt_1"))).outcome == {"sent": 2}
        assert len(mailer.asked) == 2


async def test_nothing_is_kept_of_an_account_after_a_day(autojump_clock):
    async with open_broker(configured()) as opened:
        Mailer(opened)
        caller = Caller(opened)
        await caller.ask("send_email", None, **about("evt_1"))
        await caller.leave()
        await trio.sleep(ONCE_SECONDS - 1)
        assert opened.statistics().commands.accounts == 1
        await trio.sleep(1000)
        assert opened.statistics().commands.accounts == 0


async def test_answers_with_once_have_room_of_their_own(autojump_clock):
    async with open_broker(configured()) as opened:
        mailer = Mailer(opened)
        caller = Caller(opened)
        await caller.ask("send_email", "kept", **about("evt_1"))
        for number in range(MAX_ANSWERS + 10):
            caller.send("send_email", f"r{number}", n=number)
            if number % 10 == 0:
                await blocked()
        await blocked()
        before = len(mailer.asked)
        assert (await caller.ask("send_email", None, **about("evt_1"))).outcome == {"sent": 1}
        assert len(mailer.asked) == before


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"once": "evt_1"}, "$.inbox_id"),
        ({"once": "evt_1", "inbox_id": None}, "$.inbox_id"),
        ({"params": {"once": "no name", "inbox_id": "in_1"}}, "$.params.once"),
        ({"once": "", "inbox_id": "in_1"}, "$.once"),
        ({"once": 7, "inbox_id": "in_1"}, "$.once"),
        ({"once": "x" * 129, "inbox_id": "in_1"}, "$.once"),
        ({"once": "a", "params": {"once": "a"}, "inbox_id": "in_1"}, "$.params.once"),
    ],
)
async def test_a_once_that_cannot_be_is_refused_with_its_path(params, path):
    async with open_broker(configured()) as opened:
        mailer = Mailer(opened)
        async with serving(opened) as address, connected(address) as client:
            await client.say("send_email", "r1", **params)
            error = (await client.hear())["error"]
        assert error["code"] == "invalid_params"
        assert path in error["message"]
        assert mailer.asked == []


async def test_who_does_not_reach_the_inbox_does_not_learn_the_answer(autojump_clock):
    async with open_broker(configured()) as opened:
        Mailer(opened)
        await Caller(opened).ask("send_email", None, **about("evt_1", inbox_id="in_3"))
        with pytest.raises(RequestError, match="in_3") as caught:
            Caller(opened, INBOXES).send("send_email", None, **about("evt_1", inbox_id="in_3"))
        assert caught.value.code == "forbidden"


async def test_a_once_that_is_null_is_none(autojump_clock):
    async with open_broker(configured()) as opened:
        mailer = Mailer(opened)
        caller = Caller(opened)
        for once in ({"once": None}, {}, {"once": None, "inbox_id": None}):
            assert (await caller.ask("send_email", "r1", body="Dear Ada", **once)).outcome == {"sent": 1}
        assert len(mailer.asked) == 1


async def test_the_handler_knows_it_and_it_is_no_parameter(autojump_clock):
    async with open_broker(configured()) as opened:
        mailer = Mailer(opened)
        await Caller(opened).ask("send_email", None, params=about("evt_1"))
        [(context, params)] = mailer.asked
        assert (context.once, context.inbox_id, params) == ("evt_1", "in_1", {"body": "Dear Ada"})


async def test_the_library_gives_commands_once_too(autojump_clock):
    async with open_broker(configured()) as opened:
        mailer = Mailer(opened)
        call = partial(opened.call, "acct_alice", "send_email", inbox_id="in_1", once="evt_1")
        assert await call({"body": "one"}) == await call({"body": "other"}) == {"sent": 1}
        assert (await Caller(opened).ask("send_email", None, **about("evt_1"))).outcomes[0].duplicate
        assert len(mailer.asked) == 1


async def test_four_workers_with_words_of_their_own_that_are_cut_at_random_have_one_effect_for_each_mail(
    autojump_clock,
):
    """Workers take the same mails in another order each, some leave in the middle and come back."""
    rng = random.Random(5)
    async with open_broker(configured()) as opened:
        mailer = Mailer(opened)
        key = key_of(opened, ALICE)

        async def work(seed):
            chance = random.Random(seed)
            for mail in chance.sample(range(500), 500):
                command = {"action": "send_email", **about(f"evt_{mail}", f"{seed} {chance.random()}")}
                while True:
                    with trio.CancelScope() as life:
                        if chance.random() < 0.2:
                            life.cancel()
                        outcome = await opened.do_command(key, decode_command(json.dumps(command)))
                    if not life.cancelled_caught and outcome.error is None:
                        break

        mailer.refuses = [RequestError(rng.choice(["unavailable", "timeout"]), "not now") for _ in range(100)]
        async with trio.open_nursery() as nursery:
            for seed in range(4):
                nursery.start_soon(work, seed)
        assert len({context.message_id for context, _ in mailer.asked}) == 500
        done = Counter(context.once for context, _ in mailer.asked)
        assert len(mailer.asked) == 600, "each once, and once more for each that was not done"
        assert len(done) == 500
