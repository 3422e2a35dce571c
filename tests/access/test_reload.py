"""Another configuration while connections live: who is dropped, who keeps less, who notices nothing."""

import json
import os
import re
import signal
import sys
from contextlib import contextmanager

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    BOB,
    OPERATOR,
    alices,
    ask,
    config_of,
    configured_key,
    connected,
    event,
    numbers,
    open_socket,
    opening,
    post_events,
    serving,
    take_all_places,
    token_of,
    until,
    upgrade_head,
)
from eventstreams import reading
from processes import GUARD_SECONDS, line_with, process
from trio.testing import MockClock

from broker import (
    Access,
    AccountConfig,
    CloseCode,
    Config,
    ConfigError,
    KeyConfig,
    LimitsConfig,
    RateConfig,
    RatesConfig,
    ServerConfig,
    TierRatesConfig,
)
from broker.access.keys import digest_of
from broker.access.slots import SlotsStatistics
from broker.transport.connection import Connection
from broker.transport.server import reload_configuration
from broker.transport.stream import ClientStream

UPDATED = "connection.updated"


def whole(tier="enterprise", **sections):
    """Alice's key reaches all of her account."""
    return config_of(alices(tier=tier), **sections)


def narrow(*inbox_ids, tier="enterprise", **fields):
    """Alice's key reaches these inboxes only."""
    return config_of(alices(configured_key(ALICE, inbox_ids=inbox_ids, **fields), tier=tier))


def bobs(*keys):
    return AccountConfig(id="acct_bob", tier="enterprise", keys=keys or (configured_key(BOB),))


GONE = {
    "the key is gone": config_of(alices(configured_key("dm_live_other"))),
    "the account is gone": config_of(),
    "everything is gone": Config(),
    "the key is of another account": config_of(AccountConfig(id=ACCOUNT), bobs(configured_key(ALICE))),
}

# --- keys that are gone


@pytest.mark.parametrize("config", GONE.values(), ids=GONE.keys())
async def test_connections_of_a_key_that_is_gone_are_closed_with_4401(config, quick_close):
    async with serving(whole()) as served, connected(served.address) as one, connected(served.address) as two:
        assert served.broker.reload(config) == []
        assert served.broker.statistics().slots == SlotsStatistics(0, 0)
        for client in (one, two):
            frames, closed = await client.rest()
            assert (frames, closed.code) == ([], CloseCode.REVOKED)
            assert await client.at_end()


async def test_a_key_that_is_gone_opens_nothing_any_more():
    async with serving(whole()) as served:
        token = await token_of(served.address)
        served.broker.reload(config_of(bobs()))
        assert (await opening(served.address)).status == 401
        assert (await opening(served.address, key=token)).status == 401
        assert (await post_events(served.address, [])).status == 401
        assert (await ask(served.address, "POST", "/v1/websocket/token", key=ALICE)).status == 401
        async with connected(served.address, key=BOB):
            pass


async def test_from_the_step_of_the_reload_on_no_event_comes():
    async with (
        serving(whole()) as served,
        connected(served.address, "inbox_ids=*") as live,
        connected(served.address, "inbox_ids=*", key=await token_of(served.address)) as with_token,
    ):
        await served.broker.publish(ACCOUNT, event(1))
        for client in (live, with_token):
            assert numbers([await client.next()]) == [1]
        served.broker.reload(config_of())
        await served.broker.publish(ACCOUNT, [event(2), event(3, inbox=None)])
        for client in (live, with_token):
            frames, closed = await client.rest()
            assert (frames, closed.code) == ([], CloseCode.REVOKED)


async def test_one_that_is_behind_gets_nothing_more_than_was_on_its_way():
    async with (
        serving(whole()) as served,
        connected(served.address, "inbox_ids=in_1", receive_buffer_bytes=4_096) as client,
    ):
        connection = served.connection(client)
        for number in range(100):
            await served.broker.publish(ACCOUNT, event(number, size=20_000))
        await until(lambda: not connection.statistics().live)
        served.broker.reload(config_of())
        frames, closed = await client.rest()
        assert numbers(frames) == list(range(len(frames)))
        assert len(frames) < 50
        assert closed.code == CloseCode.REVOKED


async def test_what_a_key_that_is_gone_still_asks_for_is_not_done():
    async with serving(whole()) as served, connected(served.address) as client:
        served.broker.reload(config_of())
        await client.say(action="publish", request_id="p", events=event(1))
        frames, closed = await client.rest()
        assert (frames, closed.code) == ([], CloseCode.REVOKED)
        assert served.broker.statistics().published == 0


async def test_other_keys_notice_nothing():
    other = configured_key("dm_live_other")
    before = config_of(alices(configured_key(ALICE), other, tier="enterprise"), bobs())
    async with (
        serving(before) as served,
        connected(served.address, "inbox_ids=*") as gone,
        connected(served.address, "inbox_ids=*", key="dm_live_other") as client,
        connected(served.address, "inbox_ids=*", key=BOB) as bob,
    ):
        served.broker.reload(config_of(alices(other, tier="enterprise"), bobs()))
        await served.broker.publish(ACCOUNT, event(1))
        await served.broker.publish("acct_bob", event(2))
        assert await gone.until_closed() == CloseCode.REVOKED
        assert numbers([await client.next(), await bob.next()]) == [1, 2]


async def test_one_in_the_middle_of_its_handshake_is_closed_too(monkeypatch):
    gate, shake = trio.Event(), Connection._handshake

    async def wait_and_shake(self, nursery):
        await gate.wait()
        return await shake(self, nursery)

    monkeypatch.setattr(Connection, "_handshake", wait_and_shake)
    async with serving(whole("free")) as served, await open_socket(served.address) as stream:
        await stream.send_all(upgrade_head("inbox_ids=*"))
        await until(lambda: served.server.connections)
        served.broker.reload(config_of())
        assert served.broker.statistics().slots == SlotsStatistics(0, 0)
        await served.broker.publish(ACCOUNT, event(1))
        gate.set()
        with trio.fail_after(60):
            data = bytearray()
            while CloseCode.REVOKED.to_bytes(2) not in data:
                data += await stream.receive_some(65_536)
        assert b"test.event" not in data


# --- keys that reach less


async def test_a_key_that_reaches_less_keeps_the_rest_and_its_connections_are_told():
    async with serving(whole()) as served, connected(served.address, "inbox_ids=in_3,in_2,in_1") as client:
        served.broker.reload(narrow("in_3", "in_1", "in_9"))
        assert await client.next() == {"type": UPDATED, "inbox_ids": ["in_1", "in_3"]}
        events = [event(1, inbox="in_2"), event(2, inbox=None), event(3, inbox="in_9"), event(4, inbox="in_1")]
        await served.broker.publish(ACCOUNT, events)
        assert numbers([await client.next()]) == [4]
        await client.ping()


async def test_who_had_everything_has_all_that_is_left():
    async with serving(whole()) as served, connected(served.address, "inbox_ids=*") as client:
        served.broker.reload(narrow("in_2", "in_1"))
        assert await client.next() == {"type": UPDATED, "inbox_ids": ["in_1", "in_2"]}
        await served.broker.publish(ACCOUNT, [event(1, inbox="in_3"), event(2, inbox=None), event(3, inbox="in_2")])
        assert numbers([await client.next()]) == [3]


async def test_what_was_published_before_and_not_yet_delivered_does_not_come_either():
    """To one that is behind, of inboxes that it has lost; what it keeps comes whole, in its order."""
    async with (
        serving(whole()) as served,
        connected(served.address, "inbox_ids=in_1,in_2", receive_buffer_bytes=4_096) as client,
    ):
        connection = served.connection(client)
        for number in range(100):
            inbox = ("in_1", "in_2", None)[number % 3]
            await served.broker.publish(ACCOUNT, event(number, size=20_000, inbox=inbox))
        await until(lambda: not connection.statistics().live)
        served.broker.reload(narrow("in_2"))
        frames = [await client.next()]
        while frames[-1].get("payload", {}).get("number") != 97:
            frames.append(await client.next())
        told = next(index for index, frame in enumerate(frames) if frame["type"] == UPDATED)
        assert {frame.get("inbox_id") for frame in frames[told + 1 :]} == {"in_2"}
        assert told < 60
        kept = [number for number in numbers(frames) if number % 3 == 1]
        assert kept == list(range(1, 98, 3))
        assert numbers(frames) == sorted(numbers(frames))


async def test_a_replay_that_waits_brings_nothing_that_is_lost():
    async with serving(whole()) as served:
        for number in range(90):
            inbox = ("in_1", "in_2", None)[number % 3]
            await served.broker.publish(ACCOUNT, event(number, size=20_000, inbox=inbox))
        async with connected(served.address, receive_buffer_bytes=4_096) as client:
            await client.say(action="subscribe", request_id="s", inbox_ids=["in_1", "in_2"], since="5m")
            assert (await client.answer("s"))["result"]["replay"] == {"recovered": True, "count": 60}
            served.broker.reload(narrow("in_2"))
            frames = [await client.next()]
            while frames[-1].get("payload", {}).get("number") != 88:
                frames.append(await client.next())
            told = next(index for index, frame in enumerate(frames) if frame["type"] == UPDATED)
            assert {frame.get("inbox_id") for frame in frames[told + 1 :]} == {"in_2"}
            assert told < 60
            assert [n for n in numbers(frames) if n % 3 == 1] == list(range(1, 90, 3))


async def test_without_the_scope_subscribe_nothing_is_left():
    config = config_of(alices(configured_key(ALICE, scopes=("publish", "command")), tier="enterprise"))
    async with serving(whole()) as served, connected(served.address, "inbox_ids=*") as client:
        served.broker.reload(config)
        assert await client.next() == {"type": UPDATED, "inbox_ids": []}
        await served.broker.publish(ACCOUNT, [event(1), event(2, inbox=None)])
        await client.say(action="subscribe", request_id="s", inbox_ids="*")
        assert (await client.next())["error"]["code"] == "forbidden"
        await client.say(action="publish", request_id="p", events=event(3))
        assert "result" in await client.answer("p")


async def test_publishing_and_commanding_are_bounded_by_what_the_key_reaches_now():
    async with serving(whole()) as served:

        @served.broker.command("work")
        async def work(params, context):
            return sorted(context.inbox_ids)

        async with connected(served.address) as client:
            served.broker.reload(narrow("in_1", "in_2"))
            await client.say(action="publish", request_id="p3", events=event(inbox="in_3"))
            assert (await client.answer("p3"))["error"]["code"] == "forbidden"
            await client.say(action="work", request_id="w3", inbox_id="in_3")
            assert (await client.answer("w3"))["error"]["code"] == "forbidden"
            await client.say(action="work", request_id="w1", inbox_id="in_1")
            assert (await client.answer("w1"))["result"] == ["in_1", "in_2"]
            served.broker.reload(narrow("in_1", scopes=("subscribe",)))
            await client.say(action="work", request_id="w", inbox_id="in_1")
            assert (await client.answer("w"))["error"]["code"] == "forbidden"


async def test_connections_of_a_token_keep_what_it_and_its_key_now_have_in_common():
    async with serving(whole()) as served:
        token = await token_of(served.address, inbox_ids=["in_1", "in_2"])
        async with connected(served.address, key=token) as client, connected(served.address, key=token) as other:
            await other.say(action="unsubscribe", request_id="u", inbox_ids=["in_2"])
            await other.answer("u")
            served.broker.reload(narrow("in_2", "in_3"))
            assert await client.next() == {"type": UPDATED, "inbox_ids": ["in_2"]}
            assert await other.next() == {"type": UPDATED, "inbox_ids": []}
            served.broker.reload(whole())
            for inbox, code in (("in_1", None), ("in_3", "forbidden")):
                await client.say(action="subscribe", request_id=inbox, inbox_ids=[inbox])
                assert (await client.answer(inbox)).get("error", {}).get("code") == code


async def test_updated_never_comes_before_ready(monkeypatch):
    gate, shake = trio.Event(), Connection._handshake

    async def wait_and_shake(self, nursery):
        await gate.wait()
        return await shake(self, nursery)

    monkeypatch.setattr(Connection, "_handshake", wait_and_shake)
    async with serving(whole()) as served, trio.open_nursery() as nursery:

        async def reload_meanwhile():
            await until(lambda: served.server.connections)
            served.broker.reload(narrow("in_1"))
            await served.broker.publish(ACCOUNT, [event(1, inbox="in_2"), event(2, inbox=None), event(3)])
            gate.set()

        nursery.start_soon(reload_meanwhile)
        async with connected(served.address, "inbox_ids=*") as client:
            assert client.ready["inbox_ids"] == ["in_1"]
            assert numbers([await client.next()]) == [3]


# --- keys that reach the same, or more


async def test_a_key_that_reaches_the_same_or_more_loses_nothing_and_nothing_is_said():
    async with serving(narrow("in_1", "in_2")) as served, connected(served.address) as client:
        served.broker.reload(narrow("in_2", "in_1"))
        served.broker.reload(narrow("in_1", "in_2", "in_3"))
        served.broker.reload(whole())
        await served.broker.publish(ACCOUNT, [event(1), event(2, inbox="in_3"), event(3, inbox="in_2")])
        assert numbers([await client.next(), await client.next()]) == [1, 3]
        await client.say(action="subscribe", request_id="s", inbox_ids=["in_3"])
        assert (await client.next())["result"]["inbox_ids"] == ["in_1", "in_2", "in_3"]


async def test_new_accounts_keys_and_operators_are_known_at_once():
    async with serving(config_of(bobs())) as served, connected(served.address, key=BOB) as bob:
        assert (await opening(served.address)).status == 401
        served.broker.reload(whole())
        async with connected(served.address):
            pass
        assert await bob.until_closed() == CloseCode.REVOKED
        served.broker.reload(Config(accounts=(alices(),)))
        assert (await post_events(served.address, [], key=OPERATOR)).status == 401
        served.broker.reload(whole())
        assert (await post_events(served.address, [event(account_id=ACCOUNT)], key=OPERATOR)).status == 200


async def test_a_connection_keeps_its_place_in_the_stream():
    async with serving(whole()) as served, connected(served.address, "inbox_ids=*") as client:
        for number in range(50):
            await served.broker.publish(ACCOUNT, event(number))
            served.broker.reload(whole(rates=RatesConfig(free=TierRatesConfig(events_per_account=rate(number + 1)))))
        assert numbers([await client.next() for _ in range(50)]) == list(range(50))


# --- tiers and rates


def rate(per_second: float) -> RateConfig:
    return RateConfig(per_second=per_second, burst=1)


@pytest.fixture
def clock():
    """It stands almost still: no deadline passes because the machine has much to do."""
    return MockClock(rate=0.01, autojump_threshold=0.002)


async def test_a_lower_tier_drops_nobody_and_lets_nobody_in(clock):
    async with (
        serving(whole("developer")) as served,
        connected(served.address) as one,
        connected(served.address, "client_id=agent") as two,
    ):
        served.broker.reload(whole("free"))
        for client in (one, two):
            await client.ping()
        assert (await opening(served.address)).status == 429
        async with connected(served.address, "client_id=agent") as three:
            assert await two.until_closed() == CloseCode.REPLACED
            await one.say_close()
            await until(lambda: served.broker.statistics().slots.connections == 1)
            assert (await opening(served.address)).status == 429
            served.broker.reload(whole("developer"))
            async with connected(served.address):
                await three.ping()


async def test_new_rates_hold_for_the_connections_that_are_open():
    """Of their tier, and of another tier that they now have."""
    slow = TierRatesConfig(events_per_connection=rate(0.001), commands_per_account=rate(0.001))
    async with serving(whole()) as served:

        @served.broker.command("work")
        async def work(params, context):
            return 1

        async with connected(served.address) as client:

            async def codes() -> list[str | None]:
                found = []
                for number in range(3):
                    await client.say(action="publish", request_id=None, events=event(number))
                    found.append((await next_response(client)).get("error", {}).get("code"))
                    await client.say(action="work", request_id=None)
                    found.append((await next_response(client)).get("error", {}).get("code"))
                return found

            assert await codes() == [None] * 6
            served.broker.reload(whole(rates=RatesConfig(enterprise=slow)))
            assert await codes() == [None, None] + ["rate_limited"] * 4
            served.broker.reload(whole("developer", rates=RatesConfig(enterprise=slow)))
            assert await codes() == [None] * 6
            served.broker.reload(whole(rates=RatesConfig(developer=slow)))
            assert await codes() == [None] * 6
            served.broker.reload(whole("developer", rates=RatesConfig(developer=slow)))
            assert await codes() == [None, None] + ["rate_limited"] * 4


async def next_response(client):
    while (frame := await client.next())["type"] != "response":
        pass
    return frame


async def test_who_opens_after_the_reload_is_told_the_new_rates():
    async with serving(whole()) as served:
        async with connected(served.address) as client:
            assert client.ready["limits"]["commands_per_second"] is None
        served.broker.reload(whole(rates=RatesConfig(enterprise=TierRatesConfig(commands_per_connection=rate(7)))))
        async with connected(served.address) as client:
            assert client.ready["limits"]["commands_per_second"] == 7


# --- between the credential and the slot


async def opened_while(served, gate, config, query="") -> bytes:
    """The first bytes of the answer to an opening that waited while a configuration was loaded."""
    async with await open_socket(served.address) as stream:
        await stream.send_all(upgrade_head(f"since=5m{query}"))
        await until(lambda: served.server.exchanges)
        served.broker.reload(config)
        gate.set()
        with trio.fail_after(60):
            return bytes(await stream.receive_some(65_536))


@pytest.mark.parametrize("config", list(GONE.values())[:3], ids=list(GONE)[:3])
async def test_a_key_that_goes_while_its_opening_waits_for_a_cursor_is_refused_and_no_slot_is_lost(config, held_cursor):
    async with serving(whole("free")) as served:
        answer = await opened_while(served, held_cursor, config)
        assert answer.startswith(b"HTTP/1.1 401 ")
        await until(lambda: not served.server.exchanges)
        assert served.broker.statistics().slots == SlotsStatistics(0, 0)
        assert served.broker.statistics().keyring.watched == 0


async def test_an_opening_that_asks_for_what_its_key_has_lost_meanwhile_is_refused_and_no_slot_is_lost(held_cursor):
    async with serving(whole("free")) as served:
        answer = await opened_while(served, held_cursor, narrow("in_1", tier="free"), "&inbox_ids=in_2")
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert served.broker.statistics().slots == SlotsStatistics(0, 0)


async def test_a_key_that_goes_while_its_opening_waits_for_a_ghost_is_refused_and_ends_nobody(clock, monkeypatch):
    monkeypatch.setattr(ClientStream, "unacknowledged_seconds", lambda _: None)
    keys = configured_key(ALICE), configured_key("dm_live_other")
    async with (
        serving(config_of(alices(*keys, tier="free"))) as served,
        connected(served.address, key="dm_live_other") as ghost,
        trio.open_nursery() as nursery,
    ):
        answers = []

        async def come():
            answers.append(await opening(served.address))

        nursery.start_soon(come)
        await until(lambda: served.server.exchanges)
        served.broker.reload(config_of(alices(keys[1], tier="free")))
        await until(lambda: answers)
        assert answers[0].status == 401
        assert served.broker.statistics().slots == SlotsStatistics(1, 1)
        await ghost.ping()


# --- a key that reaches more


async def test_a_connection_whose_key_comes_to_reach_the_whole_account_gets_the_accounts_own_events():
    async with serving(narrow("in_1")) as served, connected(served.address) as client:
        await served.broker.publish(ACCOUNT, event(1, inbox=None))
        await client.ping()
        served.broker.reload(whole())
        await served.broker.publish(ACCOUNT, [event(2, inbox=None), event(3), event(4, inbox="in_2")])
        assert numbers([await client.next(), await client.next()]) == [2, 3]
        await client.ping()


async def test_one_that_may_subscribe_again_gets_the_accounts_own_events_again():
    async with serving(whole()) as served, connected(served.address, "inbox_ids=in_1") as client:
        served.broker.reload(config_of(alices(configured_key(ALICE, scopes=("publish",)))))
        assert await client.next() == {"type": UPDATED, "inbox_ids": []}
        served.broker.reload(whole())
        await served.broker.publish(ACCOUNT, [event(1), event(2, inbox=None)])
        assert numbers([await client.next()]) == [2]


async def test_what_waits_to_be_published_when_its_key_goes_is_not_published():
    async with serving(whole()) as served:
        places = take_all_places(served)
        async with connected(served.address) as client:
            await client.say(action="publish", request_id="p", events=event(1))
            await client.ping()
            served.broker.reload(config_of())
            for place in places:
                place.__exit__()
            assert await client.until_closed() == CloseCode.REVOKED
            assert served.broker.statistics().published == 0


# --- a configuration that does not load, or not all of it


async def test_a_configuration_that_does_not_load_changes_nothing():
    twice = KeyConfig(id="key_twice", sha256=digest_of(ALICE))
    bad = [
        config_of(alices(), alices()),
        config_of(alices(configured_key(ALICE), twice)),
        config_of(AccountConfig(id="a b")),
        config_of(rates=RatesConfig(free=TierRatesConfig(commands_per_account=RateConfig(per_second=0)))),
    ]
    async with serving(whole()) as served, connected(served.address, "inbox_ids=*") as client:
        before = served.broker.config
        for config in bad:
            with pytest.raises(ConfigError):
                served.broker.reload(config)
            assert served.broker.config is before
        await served.broker.publish(ACCOUNT, event(1))
        assert numbers([await client.next()]) == [1]
        async with connected(served.address):
            pass


async def test_the_sections_that_need_a_restart_are_named_and_stay_as_they_were():
    async with serving(whole()) as served:
        config = whole(server=ServerConfig(port=1), limits=LimitsConfig(max_event_bytes=1_000), rates=RatesConfig())
        assert served.broker.reload(config) == ["server", "limits"]
        assert served.broker.config.limits.max_event_bytes == LimitsConfig().max_event_bytes
        assert (await post_events(served.address, event(size=5_000))).status == 200
        assert served.broker.reload(whole()) == []


async def test_of_a_configuration_that_was_made_ready_beforehand_nothing_is_left_to_do_in_the_step(monkeypatch):
    """It was loaded, checked, and its keys were sorted, in a thread: that takes long where there are many."""
    ready = Access(config_of(alices(), bobs(configured_key("dm_live_new")), limits=LimitsConfig(max_event_bytes=1_000)))
    async with serving(whole()) as served, connected(served.address) as client:
        monkeypatch.setattr("broker.broker.check_config", lambda _: 1 / 0)
        monkeypatch.setattr("broker.broker.Access.__init__", lambda *_: 1 / 0)
        assert served.broker.reload(ready) == ["limits"]
        await client.ping()
        async with connected(served.address, key="dm_live_new") as new:
            assert new.ready["account_id"] == "acct_bob"


async def test_a_connection_keeps_no_account_of_a_configuration_that_was_replaced():
    """It lives for weeks, and there may be a reload each minute."""
    async with serving(whole()) as served:
        served.broker.reload(whole())
        accounts = served.broker.config.accounts
        async with connected(served.address) as client, reading(served.address):
            served.broker.reload(whole())
            assert sys.getrefcount(accounts) == 2, "this test's alone"
            await client.ping()


async def test_what_serves_lets_the_keys_go_that_it_has_replaced():
    async with serving(whole()) as served:
        before = served.broker.keyring.access
        await reload_configuration(served.broker, whole)
        assert before.account_key(digest_of(ALICE)) is None
        async with connected(served.address) as client:
            await client.ping()


# --- a real process


def toml(*keys: str, more: str = "") -> str:
    text = f'{more}\n[[accounts]]\nid = "{ACCOUNT}"\n'
    return text + "".join(f'[[accounts.keys]]\nid = "key_{n}"\nsha256 = "{digest_of(k)}"\n' for n, k in enumerate(keys))


@contextmanager
def running(path):
    """A running `broker serve` of a configuration, and its URL."""
    with process("serve", "--config", path, "--port", "0") as serving:
        yield serving, re.search(r"http://127\.0\.0\.1:\d+", line_with(serving.stderr, "listening"))[0]


def test_sighup_loads_the_file_again_and_drops_only_those_whose_key_is_gone(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(toml(ALICE, BOB))
    with (
        running(path) as (serving, url),
        process("tail", "--url", url, BROKER_KEY=ALICE) as gone,
        process("tail", "--url", url, BROKER_KEY=BOB) as stays,
    ):
        for tailing in (gone, stays):
            assert "connection.ready" in tailing.stdout.readline()
        path.write_text(toml(BOB, "dm_live_new"))
        serving.send_signal(signal.SIGHUP)
        line_with(serving.stderr, "reloaded")
        assert gone.wait(GUARD_SECONDS) != 0
        with process("publish", "--url", url, "--type", "a.b", "--payload", "{}", BROKER_KEY="dm_live_new") as new:
            assert new.wait(GUARD_SECONDS) == 0
        assert json.loads(stays.stdout.readline())["type"] == "a.b"
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(GUARD_SECONDS) == 0


def test_sighup_with_a_file_that_does_not_load_changes_nothing_and_says_why_in_one_line(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(toml(ALICE))
    bad = {
        "not TOML": "[[accounts",
        "porrt": toml(ALICE, more="[server]\nporrt = 1"),
        "same `sha256`": toml(ALICE, ALICE),
        "No such file": None,
    }
    with running(path) as (serving, url), process("tail", "--url", url, BROKER_KEY=ALICE) as tailing:
        assert "connection.ready" in tailing.stdout.readline()
        for why, text in bad.items():
            if text is None:
                os.unlink(path)
            else:
                path.write_text(text)
            serving.send_signal(signal.SIGHUP)
            line = line_with(serving.stderr, "reloaded", "Traceback")
            assert '"level":"error"' in line
            assert "nothing has changed" in line
            assert why in line
        path.write_text(toml(ALICE, more="[limits]\nmax_inboxes_per_connection = 1"))
        serving.send_signal(signal.SIGHUP)
        assert "reloaded" in line_with(serving.stderr, "reloaded", "Traceback")
        assert "limits" in line_with(serving.stderr, "restart", "Traceback")
        with process("publish", "--url", url, "--type", "a.b", "--payload", "{}", BROKER_KEY=ALICE) as publishing:
            assert publishing.wait(GUARD_SECONDS) == 0
        assert json.loads(tailing.stdout.readline())["type"] == "a.b"


async def test_a_key_that_moves_to_another_account_while_its_opening_waits_takes_no_slot_of_the_old_one(held_cursor):
    moved = config_of(AccountConfig(id=ACCOUNT), bobs(configured_key(ALICE)))
    async with serving(whole("free")) as served, await open_socket(served.address) as stream:
        await stream.send_all(upgrade_head("since=5m"))
        await until(lambda: served.server.exchanges)
        served.broker.reload(moved)
        held_cursor.set()
        answer = bytes(await stream.receive_some(65_536))
        if answer.startswith(b"HTTP/1.1 101 "):
            assert served.broker.slots.holders("acct_bob")
        assert not served.broker.slots.holders(ACCOUNT)


async def test_a_tier_that_was_lowered_while_an_opening_waited_bounds_it(held_cursor):
    async with serving(whole("developer")) as served, connected(served.address) as client:
        answer = await opened_while(served, held_cursor, whole("free"))
        assert answer.startswith(b"HTTP/1.1 429 ")
        await client.ping()


async def test_an_opening_that_is_refused_in_the_end_has_replaced_nobody(held_cursor):
    async with serving(whole()) as served, connected(served.address, "client_id=agent") as old:
        answer = await opened_while(served, held_cursor, narrow("in_1"), "&client_id=agent&inbox_ids=in_2")
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert (await old.next())["type"] == UPDATED
        await old.ping()
