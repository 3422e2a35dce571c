"""`Broker.call`: a handler without a socket."""

import pytest
from clients import alices, config_of
from commanding import ACCOUNT, configured, post, serving

from broker import (
    BrokerClosedError,
    CommandContext,
    CommandError,
    RateConfig,
    RatesConfig,
    RequestError,
    TierRatesConfig,
    open_broker,
)


async def test_a_handler_is_called_without_a_socket_as_a_client_would():
    async with open_broker(configured()) as opened:

        @opened.command("send_email")
        async def send_email(params: dict, context: CommandContext):
            return [params, context.inbox_id, context.account_id, context.inbox_ids]

        result = await opened.call(ACCOUNT, "send_email", {"to": ["ada"]}, inbox_id="in_1")
        assert result == [{"to": ["ada"]}, "in_1", ACCOUNT, None]
        assert await opened.call("acct_of_nobody", "send_email") == [{}, None, "acct_of_nobody", None]


async def test_what_a_client_would_be_told_a_caller_is_told():
    async with open_broker(configured()) as opened:

        @opened.command("refuse")
        async def refuse(params: dict[str, int], context: CommandContext):
            raise CommandError("no_stamp", "There is no stamp on it")

        for action, params, code in (
            ("refuse", {}, "no_stamp"),
            ("refuse", {"n": "x"}, "invalid_params"),
            ("refuse", {"n": float("nan")}, "invalid_params"),
            ("refuse", {"n": object()}, "invalid_params"),
            ("nobody", {}, "unknown_action"),
            ("a b", {}, "invalid_params"),
        ):
            with pytest.raises(RequestError) as refused:
                await opened.call(ACCOUNT, action, params)
            assert refused.value.code == code


async def test_a_call_with_a_request_id_is_done_once():
    async with open_broker(configured()) as opened:
        ran = []

        @opened.command("count")
        async def count(params: dict, context: CommandContext):
            ran.append(context.request_id)
            return len(ran)

        assert [await opened.call(ACCOUNT, "count", request_id="r1") for _ in range(2)] == [1, 1]
        assert await opened.call(ACCOUNT, "count") == 2


async def test_no_rate_limits_a_call_and_a_call_leaves_the_rates_of_its_account_as_they_are():
    slow = TierRatesConfig(commands_per_account=RateConfig(per_second=1))
    config = config_of(alices(tier="growth"), rates=RatesConfig(growth=slow))
    async with open_broker(config) as opened, serving(opened) as address:

        @opened.command("work")
        async def work(params: dict, context: CommandContext): ...

        assert (await post(address, {"action": "work"})).status_code == 200
        for _ in range(3):
            await opened.call(ACCOUNT, "work")
        assert (await post(address, {"action": "work"})).status_code == 429


async def test_a_broker_that_drains_does_no_call():
    async with open_broker(configured()) as opened:
        opened.start_draining()
        with pytest.raises(BrokerClosedError):
            await opened.call(ACCOUNT, "work")
