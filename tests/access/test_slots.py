"""Slots: never more than the account may have, exact after any interleaving, in a model and against real clients."""

import contextlib
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import trio
from clients import (
    ACCOUNT,
    BOB,
    Closed,
    FrameParser,
    WebSocket,
    alices,
    config_of,
    configured_key,
    open_socket,
    opening,
    reset,
    serving,
    until,
    upgrade_head,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from trio.testing import MockClock

from broker import AccountConfig, CloseCode
from broker.access.keys import MAX_CONNECTIONS
from broker.access.slots import Slots, SlotsStatistics

NOTHING = SlotsStatistics(0, 0)

# --- one by one


def test_no_more_slots_are_given_than_the_limit_and_a_released_one_is_given_again():
    slots = Slots()
    first, second = slots.take("a", 2)[0], slots.take("a", 2)[0]
    assert slots.take("a", 2) == (None, None)
    assert slots.take("b", 2)[0] is not None
    first.release()
    assert slots.take("a", 2)[0] is not None
    assert slots.take("a", 2) == (None, None)
    second.release()
    assert slots.statistics() == SlotsStatistics(accounts=2, connections=2)


def test_a_name_takes_its_own_slot_over_also_at_the_limit():
    slots = Slots()
    old, nobody = slots.take("a", 1, ("key", "agent"))
    new, replaced = slots.take("a", 1, ("key", "agent"))
    assert nobody is None
    assert replaced is old
    assert slots.statistics().connections == 1
    assert slots.take("a", 1, ("key", "other")) == (None, None)
    assert slots.take("a", 1, ("other key", "agent")) == (None, None)
    assert slots.take("a", 1) == (None, None)
    assert slots.take("b", 1, ("key", "agent"))[1] is None
    old.release()
    assert slots.take("a", 1) == (None, None)
    new.release()
    new.release()
    assert slots.take("a", 1)[0] is not None


def test_nothing_is_kept_of_an_account_without_slots_nor_of_one_that_was_refused():
    slots = Slots()
    assert slots.take("a", 0) == (None, None)
    assert slots.statistics() == NOTHING
    slot, _ = slots.take("a", None)
    slot.release()
    assert slots.statistics() == NOTHING


def test_only_those_who_have_a_slot_are_its_holders():
    slots = Slots()
    old, _ = slots.take("a", 2, ("key", "agent"))
    old.holder = object()
    new, _ = slots.take("a", 2, ("key", "agent"))
    assert slots.holders("a") == []
    new.holder = object()
    assert slots.holders("a") == [new.holder]
    assert slots.holders("b") == []


# --- any interleaving, against a model


class SlotsMachine(RuleBasedStateMachine):
    """Take and release in any order. The model is a list of who has a slot, and by what name."""

    taken: Any = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots()
        self.model: dict[str, list[tuple[Any, Any]]] = {}

    @rule(
        target=taken,
        account=st.sampled_from("ab"),
        limit=st.sampled_from([None, 1, 2, 10]),
        name=st.none() | st.tuples(st.sampled_from(["k1", "k2"]), st.sampled_from("xy")),
    )
    def take(self, account, limit, name):
        has = self.model.get(account, [])
        own = [slot for slot, its_name in has if name is not None and its_name == name]
        slot, replaced = self.slots.take(account, limit, name)
        if own:
            assert replaced is own[0]
            assert slot is not None
        else:
            assert replaced is None
            assert (slot is None) == (limit is not None and len(has) >= limit)
        if slot is not None:
            kept = [(other, its_name) for other, its_name in has if other is not replaced]
            self.model[account] = [*kept, (slot, name)]
            assert limit is None or len(self.model[account]) <= max(limit, len(has))
        return slot

    @rule(slot=taken)
    def release(self, slot):
        """Of one that is held, that was taken over, or that was released before."""
        if slot is not None:
            slot.release()
            for account, has in list(self.model.items()):
                self.model[account] = [(other, name) for other, name in has if other is not slot]

    @invariant()
    def the_count_is_exact_and_nothing_is_kept_without_need(self):
        counts = [len(has) for has in self.model.values() if has]
        assert self.slots.statistics() == SlotsStatistics(len(counts), sum(counts))

    def teardown(self):
        for has in self.model.values():
            for slot, _ in has:
                slot.release()
        assert self.slots.statistics() == NOTHING


TestAnyInterleavingOfTakesAndReleases = SlotsMachine.TestCase
TestAnyInterleavingOfTakesAndReleases.settings = settings(max_examples=60, stateful_step_count=40)

# --- any interleaving of real clients

FREE, DEVELOPER = "dm_live_free", "dm_live_developer"
ACCOUNTS = {FREE: "acct_free", DEVELOPER: ACCOUNT}
LIMITS = {FREE: MAX_CONNECTIONS["free"], DEVELOPER: MAX_CONNECTIONS["developer"]}
CONFIG = config_of(
    AccountConfig(id="acct_free", tier="free", keys=(configured_key(FREE),)),
    alices(configured_key(DEVELOPER), configured_key("dm_live_second")),
    AccountConfig(id="acct_bob", keys=(configured_key(BOB),)),
)


class Client:
    """One that opens a stream and reads it to its end, whatever that is."""

    def __init__(self, key: str, *, fleeting: bool = False) -> None:
        self.key = key
        self.fleeting = fleeting
        """Whether it breaks off without having read a word."""
        self.state = "opening"
        self.code: int | None = None
        self.stream: Any = None
        self.websocket: Any = None

    async def run(self, address, query: str) -> None:
        self.stream = await open_socket(address)
        try:
            await self.stream.send_all(upgrade_head(query, key=self.key))
            if self.fleeting:
                reset(self.stream)
            parser = FrameParser()
            while b"\r\n\r\n" not in parser.buffer:
                data = await self.stream.receive_some(65_536)
                if not data:
                    break
                parser.buffer += data
            status, _, rest = bytes(parser.buffer).partition(b"\r\n\r\n")
            if not status.startswith(b"HTTP/1.1 101 "):
                self.state = status[9:12].decode()
                return
            parser.buffer = bytearray(rest)
            self.websocket = WebSocket(self.stream, parser)
            ready = await self.websocket.next()
            assert ready["type"] == "connection.ready"
            assert ready["account_id"] == ACCOUNTS[self.key]
            self.state = "open"
            _, closed = await self.websocket.rest()
            self.state, self.code = "closed", closed.code
        except (trio.BrokenResourceError, trio.ClosedResourceError, Closed):
            self.state = "cut"
        finally:
            await trio.aclose_forcefully(self.stream)

    def cut(self) -> None:
        """Break off without a word."""
        if self.state == "open":
            self.state = "cut"
            reset(self.stream)

    async def close(self) -> None:
        """Close as RFC 6455 wants it."""
        if self.state == "open":
            self.state = "closing"
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.websocket.say_close()


def impatient_clock(rate: float) -> MockClock:
    """Nobody here is a ghost, and a newcomer need not wait to learn that."""
    return MockClock(rate=rate, autojump_threshold=0.01)


@pytest.fixture
def clock() -> MockClock:
    """It stands almost still: no deadline passes because the machine has much to do."""
    return impatient_clock(rate=0.01)


names = st.none() | st.sampled_from(["one", "two"])
openings = st.tuples(st.sampled_from(["open", "open", "open and cut"]), st.sampled_from([FREE, DEVELOPER]), names)
refusals = st.tuples(st.just("refused"), st.sampled_from(["401", "400", "403"]), st.none())
endings = st.tuples(st.sampled_from(["cut", "close"]), st.integers(0, 30), st.none())
steps = st.lists(st.lists(openings | openings | refusals | endings, min_size=1, max_size=12), max_size=8)
BAD = {
    "401": ("", "dm_live_nobody"),
    "400": ("client_id=a%20b", FREE),
    "403": ("inbox_ids=*", "dm_operator_main"),
}


@settings(max_examples=25)
@given(steps)
def test_real_clients_never_have_more_than_their_tier_and_everything_is_given_back(steps):
    """Each step's actions happen together; after it all is still, and what the clients know is what is counted."""
    with patch("broker.transport.stream.LINGER_SECONDS", 0.02):
        trio.run(partial(play, steps), clock=impatient_clock(rate=1))


async def play(steps) -> None:
    async with serving(CONFIG) as served, trio.open_nursery() as nursery:
        clients: list[Client] = []

        def living(key: str) -> list[Client]:
            return [client for client in clients if client.key == key and client.state == "open"]

        async def refuse(kind: str) -> None:
            query, key = BAD[kind]
            assert (await opening(served.address, query, key=key)).status == int(kind)

        for step in steps:
            ends = any(action not in ("open", "refused") for action, *_ in step)
            before = len(clients)
            async with trio.open_nursery() as together:
                for action, what, name in step:
                    if action.startswith("open"):
                        client = Client(what, fleeting=action == "open and cut")
                        clients.append(client)
                        nursery.start_soon(client.run, served.address, f"client_id={name}" if name else "")
                    elif action == "refused":
                        together.start_soon(refuse, what)
                    elif clients:
                        client = clients[what % len(clients)]
                        if action == "cut":
                            client.cut()
                        else:
                            together.start_soon(client.close)
            await until(lambda: not any(client.state in ("opening", "closing") for client in clients))
            await until(lambda: not served.server.exchanges)
            await until(
                lambda: (
                    served.broker.statistics().slots.connections
                    == len(served.server.connections)
                    == sum(client.state == "open" for client in clients)
                )
            )
            for key, limit in LIMITS.items():
                assert len(living(key)) <= limit
                if any(client.key == key and client.state == "429" for client in clients[before:]) and not ends:
                    assert len(living(key)) == limit
            assert {client.state for client in clients} <= {"open", "closed", "cut", "429"}
            assert {client.code for client in clients} <= {None, 1000, CloseCode.REPLACED}
        for client in clients:
            if client.state == "open":
                client.cut()
        await served.until_gone()
        assert served.broker.statistics().slots == NOTHING


async def test_of_many_that_come_at_once_exactly_as_many_as_the_tier_has_are_let_in(clock):
    async with serving(CONFIG) as served, trio.open_nursery() as nursery:
        clients = [Client(key) for key in (FREE, DEVELOPER) for _ in range(30)]
        for client in clients:
            nursery.start_soon(client.run, served.address, "")
        await until(lambda: not any(client.state == "opening" for client in clients))
        for key, limit in LIMITS.items():
            states = [client.state for client in clients if client.key == key]
            assert states.count("open") == limit
            assert states.count("429") == 30 - limit
        nursery.cancel_scope.cancel()


async def test_of_many_of_one_name_that_come_at_once_one_stays_and_no_slot_is_lost(clock):
    async with serving(CONFIG) as served, trio.open_nursery() as nursery:
        clients = [Client(FREE) for _ in range(30)]
        for client in clients:
            nursery.start_soon(client.run, served.address, "client_id=agent")
        await until(lambda: sum(client.state == "open" for client in clients) == 1)
        await until(lambda: len(served.server.connections) == 1)
        await until(lambda: not any(client.state == "opening" for client in clients))
        assert [client.code for client in clients].count(CloseCode.REPLACED) == 29
        [last] = [client for client in clients if client.state == "open"]
        last.cut()
        await served.until_gone()
        assert served.broker.statistics().slots == NOTHING


async def test_a_slot_is_given_back_whatever_ends_the_opening_after_it(clock, monkeypatch):
    """Also if the connection cannot even be made."""
    monkeypatch.setattr("broker.transport.endpoints.Connection", lambda *_, **__: 1 / 0)
    async with serving(CONFIG) as served:
        for _ in range(3):
            async with await open_socket(served.address) as stream:
                await stream.send_all(upgrade_head("", key=FREE))
                assert await stream.receive_some(100) == b""
        assert served.broker.statistics().slots == NOTHING


async def test_one_that_breaks_off_before_it_has_read_the_101_is_gone_at_once(caplog, monkeypatch):
    """Nothing can be said to it: nothing is to be waited for."""
    monkeypatch.setattr("broker.transport.connection.CLOSE_SECONDS", 1_000)
    monkeypatch.setattr("broker.transport.stream.LINGER_SECONDS", 1_000)
    caplog.set_level("INFO", "broker")
    async with serving(CONFIG) as served:
        stream = await open_socket(served.address)
        await stream.send_all(upgrade_head("", key=FREE))
        reset(stream)
        await until(lambda: "ended" in caplog.text)


def test_what_goes_with_a_slot_elsewhere_is_given_back_with_it_and_nobody_holds_it_then():
    class Claim:
        released = 0

        def release(self) -> None:
            self.released += 1

    slot, _ = Slots().take("acct_1", 1, ("key", "client"))
    slot.claim, slot.holder = Claim(), object()
    slot.release()
    assert (slot.claim.released, slot.holder) == (1, None)
