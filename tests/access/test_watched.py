"""Keys of live connections: who is told what, when, and how many in one step; states that follow each other."""

from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from unittest.mock import patch

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    BOB,
    Outside,
    alices,
    config_of,
    configured_key,
    connected,
    event,
    numbers,
    said,
    serving,
    until,
)
from trio.testing import wait_all_tasks_blocked as blocked

import broker.access.watched
import broker.fanout.hub
from broker import AccountConfig, CloseCode, Config, RequestError
from broker.access.keyring import Keyring
from broker.access.keys import Access, Key, Narrowing, digest_of
from broker.access.lookup import RETRY_SECONDS, UNKNOWN_SECONDS, Lookup
from broker.access.tokens import Tokens
from broker.access.watched import LEAST_TOLD, SHORTEST_SECONDS, SLICE_SECONDS, WatchedKeys
from broker.schedule import Schedule
from broker.transport.connection import Connection

DIGEST = digest_of(ALICE)
ONE = "dm_live_one"
ONES = digest_of(ONE)


def whole(*more: AccountConfig) -> Config:
    return config_of(alices(tier="enterprise"), *more)


def narrow(*inbox_ids: str) -> Config:
    return config_of(alices(configured_key(ALICE, inbox_ids=inbox_ids), tier="enterprise"))


BOTH = whole(AccountConfig(id="acct_bob", keys=(configured_key(BOB),)))


class Client:
    """A connection without a network: keeps what it was told of its key."""

    def __init__(self) -> None:
        self.told: list[Key | None] = []
        self.then = self._nothing
        """What happens while it is told."""

    def _nothing(self) -> None:
        pass

    def changed(self, key: Key | None) -> None:
        self.told.append(key)
        self.then()

    @property
    def inboxes(self) -> list[list[str] | str | None]:
        """What it reached, each time that it was told: inboxes, "all", or None."""
        return [key and (sorted(key.inbox_ids) if key.inbox_ids is not None else "all") for key in self.told]


class Steps(trio.abc.Instrument):
    """Looks how many are told in one step of any task."""

    def __init__(self, clients: list[Client]) -> None:
        self._clients = clients
        self._before = 0
        self.most = 0

    def told(self) -> int:
        """How many were told until now."""
        return sum(len(client.told) for client in self._clients)

    def before_task_step(self, task: object) -> None:
        self._before = self.told()

    def after_task_step(self, task: object) -> None:
        self.most = max(self.most, self.told() - self._before)


@contextmanager
def watching_steps(clients: list[Client]):
    steps = Steps(clients)
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(steps)


class House:
    """A keyring and its tasks."""

    def __init__(self, config: Config, outside: Outside | None) -> None:
        self.schedule = Schedule()
        self.outside = outside
        self.lookup = None if outside is None else Lookup(outside, 10)
        self.keyring = Keyring(Access(config), Tokens("x" * 32, 60), self.lookup, self.schedule)

    async def open(self, stack: ExitStack, key: str = ALICE, client: Client | None = None, **narrowing):
        """Open a connection; gives the client and its watch."""
        client = client or Client()
        found = await self.keyring.authenticate(key, "192.0.2.1")
        found = found.narrowed(Narrowing(**narrowing) if narrowing else None)
        return client, stack.enter_context(self.keyring.watch(found, "192.0.2.1", client.changed))

    def reload(self, config: Config) -> None:
        self.keyring.reload(Access(config))

    @property
    def watched(self) -> int:
        return self.keyring.statistics().watched

    @property
    def times_asked(self) -> int:
        return len(self.outside.asked)


@asynccontextmanager
async def living(config: Config, outside: Outside | None = None):
    """A house in which connections may be opened, until the block ends."""
    house = House(config, outside)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.schedule.run)
        await nursery.start(house.keyring.run)
        with ExitStack() as stack:
            yield house, stack
        assert house.watched == 0
        assert house.schedule.statistics().waiting == 0
        nursery.cancel_scope.cancel()


# --- who is told what


async def test_at_a_reload_everybody_is_told_what_his_key_or_token_reaches_now(autojump_clock):
    async with living(BOTH) as (house, stack):
        one, _ = await house.open(stack)
        token, _ = await house.open(stack, inbox_ids=frozenset({"in_1", "in_9"}))
        bob, _ = await house.open(stack, BOB)
        house.reload(narrow("in_1", "in_2"))
        assert (one.inboxes, token.inboxes, bob.inboxes) == ([["in_1", "in_2"]], [["in_1"]], [None])
        house.reload(BOTH)
        assert (one.inboxes[1:], token.inboxes[1:], bob.inboxes[1:]) == (["all"], [["in_1", "in_9"]], ["all"])
        house.reload(BOTH)
        assert len(one.told) == len(bob.told) == 3, "rates may have changed"


async def test_who_comes_after_a_reload_is_not_told_what_he_knows(autojump_clock):
    async with living(whole()) as (house, stack):
        await house.open(stack)
        house.reload(narrow("in_1"))
        late, watch = await house.open(stack)
        watch.settle()
        assert late.told == []


async def test_who_left_is_told_nothing(autojump_clock):
    async with living(whole()) as (house, stack):
        stays, _ = await house.open(stack)
        with ExitStack() as inner:
            gone, _ = await house.open(inner)
        house.reload(config_of())
        assert (stays.inboxes, gone.told) == ([None], [])


async def test_who_is_ended_by_what_another_is_told_is_told_nothing_and_harms_nobody(autojump_clock):
    """A connection that ends may end others of its account: of a takeover, or all of them."""
    async with living(whole()) as (house, stack):
        others = [ExitStack() for _ in range(5)]
        clients = []

        def end_the_others() -> None:
            for other in others:
                other.close()

        for other in others:
            clients.append((await house.open(other))[0])
            clients[-1].then = end_the_others
        last, _ = await house.open(stack)
        house.reload(narrow("in_1"))
        await blocked()
        assert sum(len(client.told) for client in clients) <= 1
        assert last.inboxes == [["in_1"]]
        assert house.watched == 1


async def test_a_key_that_moves_to_another_account_is_told_of_to_the_old_connections(autojump_clock):
    moved = config_of(AccountConfig(id="acct_bob", keys=(configured_key(ALICE),)))
    async with living(whole()) as (house, stack):
        old, _ = await house.open(stack)
        house.reload(moved)
        assert old.told[-1].account_id == "acct_bob"
        new, _ = await house.open(stack)
        house.reload(whole())
        assert (old.told[-1].account_id, new.told[-1].account_id) == (ACCOUNT, ACCOUNT)


# --- how many in one step


@pytest.fixture
def short_slices(monkeypatch):
    """As few are told in one step as it bears at least."""
    monkeypatch.setattr(broker.access.watched, "SLICE_SECONDS", 0.0)


async def test_a_reload_tells_thousands_in_short_steps_and_everybody_once(autojump_clock, short_slices):
    async with living(BOTH) as (house, stack):
        clients = [(await house.open(stack, (ALICE, BOB)[number % 2]))[0] for number in range(1_000)]
        with watching_steps(clients) as steps:
            await trio.lowlevel.checkpoint()
            house.reload(narrow("in_1"))
            assert steps.told() == LEAST_TOLD
            await blocked()
            assert steps.told() == 1_000
            assert steps.most == LEAST_TOLD
        assert {tuple(client.told) for client in clients[1::2]} == {(None,)}
        assert {str(client.inboxes) for client in clients[::2]} == {"[['in_1']]"}


async def test_what_an_answer_changes_is_told_in_short_steps_and_what_it_does_not_is_no_news(
    autojump_clock, short_slices
):
    outside = Outside(one=said(ttl_seconds=20))
    async with living(config_of(), outside) as (house, stack):
        clients = [(await house.open(stack, ONE))[0] for _ in range(100)]
        outside.knows(ONES, said(ttl_seconds=20, inbox_ids=["in_1"]))
        with watching_steps(clients) as steps:
            await trio.sleep(99)
            assert steps.most == LEAST_TOLD
        assert house.times_asked == 5
        assert {str(client.inboxes) for client in clients} == {"[['in_1']]"}


async def test_a_step_is_longer_while_its_time_lasts(autojump_clock, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(broker.access.watched, "perf_counter", lambda: clock[0])

    def take_time() -> None:
        clock[0] += SLICE_SECONDS / 50

    async with living(whole()) as (house, stack):
        clients = [(await house.open(stack))[0] for _ in range(1_000)]
        for client in clients:
            client.then = take_time
        house.reload(narrow("in_1"))
        assert sum(len(client.told) for client in clients) == 50


async def test_one_that_takes_long_to_be_told_is_told_alone(autojump_clock, monkeypatch):
    """Who has 10,000 inboxes to take apart takes some milliseconds: eight of these were a step of 60."""
    clock = [0.0]
    monkeypatch.setattr(broker.access.watched, "perf_counter", lambda: clock[0])

    def take_time() -> None:
        clock[0] += 5 * SLICE_SECONDS

    async with living(whole()) as (house, stack):
        clients = [(await house.open(stack))[0] for _ in range(20)]
        for client in clients:
            client.then = take_time
        with watching_steps(clients) as steps:
            await trio.lowlevel.checkpoint()
            house.reload(narrow("in_1"))
            assert steps.told() == 1
            await blocked()
            assert (steps.told(), steps.most) == (20, 1)


async def test_another_reload_before_all_are_told_leaves_each_with_the_last_word(autojump_clock, short_slices):
    async with living(whole()) as (house, stack):
        clients = [(await house.open(stack))[0] for _ in range(100)]
        for config in (narrow("in_1"), config_of(), narrow("in_2"), narrow("in_3")):
            house.reload(config)
        await blocked()
        assert {str(client.inboxes[-1]) for client in clients} == {"['in_3']"}


async def test_whoever_uses_his_key_before_it_is_his_turn_is_told_at_once_and_once(autojump_clock, short_slices):
    async with living(whole()) as (house, stack):
        clients = [await house.open(stack) for _ in range(100)]
        house.reload(narrow("in_1"))
        untold = [(client, watch) for client, watch in clients if not client.told]
        assert len(untold) == 100 - LEAST_TOLD
        for client, watch in untold[::7]:
            watch.settle()
            watch.settle()
            assert client.inboxes == [["in_1"]]
        await blocked()
        assert {len(client.told) for client, _ in clients} == {1}


async def test_an_account_is_told_before_its_turn_and_others_need_not_wait_for_it(autojump_clock, short_slices):
    async with living(BOTH) as (house, stack):
        alices_ = [(await house.open(stack))[0] for _ in range(100)]
        bobs = [(await house.open(stack, BOB))[0] for _ in range(20)]
        assert house.keyring.settle(ACCOUNT)
        assert house.keyring.settle("acct_nobody")
        house.reload(config_of())
        before = sum(len(client.told) for client in alices_)
        steps = 1
        while not house.keyring.settle("acct_bob"):
            steps += 1
        assert steps <= 1 + 20 // LEAST_TOLD
        assert {tuple(client.told) for client in bobs} == {(None,)}
        assert sum(len(client.told) for client in alices_) == before
        while not house.keyring.settle(ACCOUNT):
            pass
        assert {tuple(client.told) for client in alices_} == {(None,)}


async def test_a_reload_of_many_keys_takes_no_longer_in_its_step_than_one_of_few(autojump_clock, short_slices):
    """Of each key nothing is done in that step, but of those whose connections are told."""
    names = [f"dm_live_{number}" for number in range(500)]
    config = config_of(alices(*map(configured_key, names), tier="enterprise"))
    asked = []

    class Counting(Access):
        def account_key(self, digest: str) -> Key | None:
            asked.append(digest)
            return super().account_key(digest)

    async with living(config) as (house, stack):
        for name in names:
            await house.open(stack, name)
        house.keyring.reload(Counting(config))
        assert len(asked) == LEAST_TOLD
        await blocked()
        assert len(asked) == 500


# --- judged in the step in which it is used: nobody is told but by who is about to use it


@pytest.fixture
def tell_nobody():
    """Let nobody be told but who is about to use his key, or to be written to."""
    with patch.object(WatchedKeys, "_tell_all", lambda _: None):
        yield


GONE = config_of()


async def test_no_event_goes_to_who_was_not_told_yet_that_his_key_is_gone(tell_nobody, short_slices):
    async with serving(whole()) as served, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(served.address, "inbox_ids=*")) for _ in range(30)]
        await served.broker.publish(ACCOUNT, event(1))
        for client in clients:
            assert numbers([await client.next()]) == [1]
        served.broker.reload(GONE)
        await served.broker.publish(ACCOUNT, [event(2), event(3, inbox=None)])
        for client in clients:
            frames, closed = await client.rest()
            assert (frames, closed.code) == ([], CloseCode.REVOKED)


async def test_who_is_told_in_the_middle_of_a_broadcast_hears_nothing_more_of_it(tell_nobody, monkeypatch):
    """The fan-out pauses as often as it can, and the key goes in its first pause."""
    monkeypatch.setattr(broker.fanout.hub, "TURN_SECONDS", 0.0)
    async with serving(whole()) as served, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(served.address, "inbox_ids=*")) for _ in range(100)]
        await until(lambda: served.broker.statistics().hub.live == 100)
        await served.broker.publish(ACCOUNT, event(1))
        while not (heard := served.broker.statistics().hub.delivered):
            await trio.lowlevel.checkpoint()
        served.broker.reload(GONE)
        found = [numbers((await client.rest())[0]) for client in clients]
        assert found.count([1]) == heard < 100
        assert found.count([]) == 100 - heard


async def test_who_was_not_told_yet_that_he_reaches_more_misses_nothing_of_that(tell_nobody):
    async with serving(narrow("in_1")) as served, connected(served.address) as client:
        served.broker.reload(whole())
        await served.broker.publish(ACCOUNT, [event(1, inbox=None), event(2)])
        assert numbers([await client.next(), await client.next()]) == [1, 2]


async def test_one_that_is_behind_hears_of_it_before_it_is_fed(tell_nobody):
    async with (
        serving(whole()) as served,
        connected(served.address, "inbox_ids=in_1,in_2", receive_buffer_bytes=4_096) as client,
    ):
        connection = served.connection(client)
        for number in range(100):
            await served.broker.publish(ACCOUNT, event(number, size=20_000, inbox=f"in_{1 + number % 2}"))
        await until(lambda: not connection.statistics().live)
        served.broker.reload(narrow("in_2"))
        frames = [await client.next()]
        while numbers(frames)[-1:] != [99]:
            frames.append(await client.next())
        told = next(index for index, frame in enumerate(frames) if frame["type"] == "connection.updated")
        assert {frame["inbox_id"] for frame in frames[told + 1 :]} == {"in_2"}
        assert told < 60


@pytest.mark.parametrize("config", [GONE, narrow("in_2")])
async def test_what_is_asked_for_is_judged_by_what_the_key_reaches_then(tell_nobody, config):
    async with serving(whole()) as served, connected(served.address) as client:
        served.broker.reload(config)
        await client.say(action="publish", request_id="p", events=event(1))
        await client.say(action="subscribe", request_id="s", inbox_ids=["in_1"])
        if config is GONE:
            assert await client.until_closed() == CloseCode.REVOKED
        else:
            assert (await client.answer("p"))["error"]["code"] == "forbidden"
            assert (await client.answer("s"))["error"]["code"] == "forbidden"
        assert served.broker.statistics().published == 0


async def test_ready_says_what_the_key_reaches_then(tell_nobody, monkeypatch):
    gate, shake = trio.Event(), Connection._handshake

    async def wait_and_shake(self, nursery):
        await gate.wait()
        return await shake(self, nursery)

    monkeypatch.setattr(Connection, "_handshake", wait_and_shake)
    async with serving(whole()) as served, trio.open_nursery() as nursery:

        async def reload_meanwhile() -> None:
            await until(lambda: served.server.connections)
            served.broker.reload(narrow("in_7"))
            gate.set()

        nursery.start_soon(reload_meanwhile)
        async with connected(served.address, "inbox_ids=*") as client:
            assert client.ready["inbox_ids"] == ["in_7"]
            await client.ping()


# --- asked again

AWAY = RequestError("unavailable", "later")


@pytest.mark.parametrize("answer", [None, said(), AWAY], ids=["it is not known", "it is known", "none"])
async def test_who_leaves_while_his_key_is_asked_for_leaves_nothing_and_harms_nobody(answer, autojump_clock):
    outside = Outside(one=said(ttl_seconds=5))
    async with living(config_of(), outside) as (house, stack):
        inner = ExitStack()
        client, _ = await house.open(inner, ONE)
        outside.hold()
        await trio.sleep(6)
        assert house.times_asked == 2
        inner.close()
        assert house.watched == 0
        outside.knows(ONES, answer)
        outside.let_go()
        await trio.sleep(100)
        assert client.told == []
        assert house.times_asked == 2
        if answer != AWAY:
            outside.knows(ONES, said(ttl_seconds=5))
            await trio.sleep(UNKNOWN_SECONDS)
            await house.open(stack, ONE)


async def test_who_leaves_while_his_key_waits_to_be_asked_for_is_not_asked_for(autojump_clock):
    names = [str(number) for number in range(20)]
    outside = Outside(**{name: said(ttl_seconds=5) for name in names})
    async with living(config_of(), outside) as (house, stack):
        inner = ExitStack()
        for name in names:
            await house.open(inner, f"dm_live_{name}")
        stays, _ = await house.open(stack, "dm_live_0")
        outside.hold()
        await trio.sleep(6)
        assert house.times_asked == 20 + 16
        inner.close()
        assert house.watched == 1
        outside.let_go()
        await blocked()
        assert house.times_asked == 36
        assert stays.told == []


async def test_who_comes_back_while_his_key_is_asked_for_has_a_life_of_his_own(autojump_clock):
    outside = Outside(one=said(ttl_seconds=5))
    async with living(config_of(), outside) as (house, stack):
        inner = ExitStack()
        first, _ = await house.open(inner, ONE)
        found = await house.keyring.authenticate(ONE, None)
        outside.hold()
        await trio.sleep(6)
        inner.close()
        client = Client()
        stack.enter_context(house.keyring.watch(found, None, client.changed))
        outside.knows(ONES, None)
        outside.let_go()
        await trio.sleep(SHORTEST_SECONDS + 1)
        assert (first.told, client.told) == ([], [None])


async def test_nothing_is_kept_of_who_left_however_long_his_key_was_to_be_believed(autojump_clock):
    outside = Outside(**{str(number): said(ttl_seconds=31_536_000) for number in range(100)})
    async with living(config_of(), outside) as (house, _):
        for number in range(100):
            with ExitStack() as inner:
                await house.open(inner, f"dm_live_{number}")
                assert (house.watched, house.schedule.statistics().waiting) == (1, 1)
        assert (house.watched, house.schedule.statistics().waiting) == (0, 0)


@pytest.mark.parametrize("ttl_seconds", [0.001, 0.5, 1])
async def test_a_key_is_asked_for_once_a_second_at_most_whatever_happens(ttl_seconds, autojump_clock):
    """However short an answer is to be believed, and however often the configuration is loaded."""
    outside = Outside(one=said(ttl_seconds=ttl_seconds))
    async with living(config_of(), outside) as (house, stack):
        await house.open(stack, ONE)
        for _ in range(300):
            await trio.sleep(0.1)
            house.reload(config_of())
        assert 29 <= house.times_asked <= 1 + 30 / SHORTEST_SECONDS


async def test_while_no_answer_comes_a_key_is_asked_for_every_ten_seconds_and_not_at_a_reload(autojump_clock):
    outside = Outside(one=said(ttl_seconds=5))
    async with living(config_of(), outside) as (house, stack):
        client, _ = await house.open(stack, ONE)
        outside.knows(ONES, AWAY)
        for _ in range(100):
            await trio.sleep(1)
            house.reload(config_of())
        assert house.times_asked == 1 + 1 + (100 - 5) // RETRY_SECONDS
        assert set(client.inboxes) == {"all"}


async def test_a_key_that_somebody_else_asked_for_meanwhile_is_not_asked_for_again(autojump_clock):
    """Somebody who wanted to come in, and left before the answer: nobody told the connections."""
    outside = Outside(one=said(ttl_seconds=5))
    async with living(config_of(), outside) as (house, stack):
        client, _ = await house.open(stack, ONE)
        outside.knows(ONES, AWAY)
        await trio.sleep(6)
        outside.knows(ONES, said(ttl_seconds=100, inbox_ids=["in_1"]))
        outside.hold()
        with trio.move_on_after(1):
            await house.keyring.authenticate(ONE, None)
        outside.let_go()
        await trio.sleep(20)
        assert (client.inboxes, house.times_asked) == ([["in_1"]], 3)


# --- keys that move out of the configuration and into it


async def asked_for(house: House, times: int) -> None:
    await blocked()
    assert house.times_asked == times


@pytest.mark.parametrize("answer", [None, AWAY], ids=["it is not known", "none"])
async def test_another_reload_while_a_key_is_asked_for_does_not_save_it(answer, autojump_clock):
    outside = Outside(alice=answer)
    async with living(whole(), outside) as (house, stack):
        client, _ = await house.open(stack)
        outside.hold()
        for _ in range(3):
            house.reload(config_of())
            await asked_for(house, 1)
        outside.let_go()
        await blocked()
        assert client.inboxes[-1] is None
        await trio.sleep(100)
        assert house.times_asked == 1


async def test_a_key_that_leaves_the_configuration_and_comes_back_while_it_is_asked_for_is_what_that_says(
    autojump_clock,
):
    outside = Outside(alice=None)
    async with living(whole(), outside) as (house, stack):
        client, _ = await house.open(stack)
        outside.hold()
        house.reload(config_of())
        await asked_for(house, 1)
        house.reload(narrow("in_1"))
        outside.let_go()
        await trio.sleep(100)
        assert client.inboxes[-1] == ["in_1"]
        assert None not in client.told
        assert house.times_asked == 1


@pytest.mark.parametrize(
    ("answer", "told"), [(None, None), (AWAY, None), (said(inbox_ids=["in_2"], ttl_seconds=1000), ["in_2"])]
)
async def test_a_key_that_leaves_comes_back_and_leaves_again_while_it_is_asked_for_is_gone_unless_it_is_known(
    answer, told, autojump_clock
):
    outside = Outside(alice=answer)
    async with living(whole(), outside) as (house, stack):
        client, _ = await house.open(stack)
        outside.hold()
        for config in (config_of(), narrow("in_1"), config_of()):
            house.reload(config)
            await asked_for(house, 1)
        outside.let_go()
        await trio.sleep(RETRY_SECONDS / 2)
        assert client.inboxes[-1] == told
        assert house.times_asked == 1


async def test_that_a_key_was_not_known_long_ago_does_not_end_it_when_it_leaves_the_configuration(autojump_clock):
    outside = Outside(alice=None)
    async with living(config_of(), outside) as (house, stack):
        with pytest.raises(RequestError, match="unauthorized"):
            await house.keyring.authenticate(ALICE, None)
        house.reload(whole())
        client, _ = await house.open(stack)
        await trio.sleep(UNKNOWN_SECONDS + 1)
        outside.knows(DIGEST, said(ttl_seconds=1000, inbox_ids=["in_1"]))
        house.reload(config_of())
        await blocked()
        assert client.inboxes[-1] == ["in_1"]
        assert None not in client.told


async def test_a_key_that_entered_the_configuration_is_asked_for_no_more_though_nobody_was_told_yet(
    tell_nobody, autojump_clock
):
    outside = Outside(one=said(ttl_seconds=20))
    async with living(config_of(), outside) as (house, stack):
        client, watch = await house.open(stack, ONE)
        outside.knows(ONES, None)
        house.reload(config_of(alices(configured_key(ONE, inbox_ids=("in_1",)))))
        await trio.sleep(100)
        watch.settle()
        assert (client.inboxes, house.times_asked) == ([["in_1"]], 1)


async def test_a_key_of_which_an_answer_is_kept_need_not_be_asked_for_when_it_leaves_the_configuration(autojump_clock):
    outside = Outside(alice=said(ttl_seconds=30, inbox_ids=["in_1"]))
    async with living(config_of(), outside) as (house, stack):
        client, _ = await house.open(stack)
        house.reload(whole())
        outside.knows(DIGEST, AWAY)
        await trio.sleep(40)
        house.reload(config_of())
        assert client.inboxes == ["all", ["in_1"]]
        await trio.sleep(SHORTEST_SECONDS + 1)
        assert house.times_asked == 2
        assert client.inboxes == ["all", ["in_1"]], "no answer leaves what was said before"


async def test_a_key_that_is_gone_and_enters_the_configuration_is_what_that_says(autojump_clock):
    """Its connections may not have ended yet."""
    outside = Outside(alice=None)
    async with living(whole(), outside) as (house, stack):
        client, _ = await house.open(stack)
        house.reload(config_of())
        await blocked()
        house.reload(narrow("in_1"))
        assert client.inboxes[-2:] == [None, ["in_1"]]


async def test_a_key_that_is_gone_and_is_known_again_to_who_opens_is_asked_for_at_its_time(autojump_clock):
    outside = Outside(one=said(ttl_seconds=5))
    async with living(config_of(), outside) as (house, stack):
        old, _ = await house.open(stack, ONE)
        outside.knows(ONES, None)
        await trio.sleep(6 + UNKNOWN_SECONDS)
        assert old.inboxes == [None]
        outside.knows(ONES, said(ttl_seconds=5))
        new, _ = await house.open(stack, ONE)
        asked = house.times_asked
        outside.knows(ONES, None)
        await trio.sleep(6)
        assert house.times_asked == asked + 1
        assert new.inboxes == [None]


async def test_a_key_that_enters_the_configuration_while_an_opening_asks_for_it_is_what_the_configuration_says(
    autojump_clock,
):
    outside = Outside(alice=said(ttl_seconds=1000))
    async with living(config_of(), outside) as (house, stack):
        outside.hold()
        found = []

        async def come() -> None:
            found.append(await house.keyring.authenticate(ALICE, None))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            await asked_for(house, 1)
            house.reload(narrow("in_1"))
            client, _ = await house.open(stack)
            outside.let_go()
        assert found[0].inbox_ids == {"in_1"}
        assert client.told == []
