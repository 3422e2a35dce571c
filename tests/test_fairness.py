"""fairness.py: whoever comes finds a place, however much another one wants; nothing is kept of who left."""

from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked as blocked

from broker.fairness import FairLimiter, FairLimiterStatistics


class Crowd:
    """Holders that want places, and who of them is in."""

    def __init__(self, limiter: FairLimiter, nursery: trio.Nursery) -> None:
        self._limiter = limiter
        self._nursery = nursery
        self.inside: list[str | None] = []
        self._leave: dict[str | None, list[trio.Event]] = {}

    async def want(self, holder: str | None, times: int = 1) -> list[trio.CancelScope]:
        """Want so many places; returns what makes each give up."""
        scopes = [trio.CancelScope() for _ in range(times)]
        for scope in scopes:
            self._nursery.start_soon(self._stay, holder, scope)
        await blocked()
        return scopes

    async def _stay(self, holder: str | None, scope: trio.CancelScope) -> None:
        with scope:
            async with self._limiter.place(holder):
                self.inside.append(holder)
                leave = trio.Event()
                self._leave.setdefault(holder, []).append(leave)
                try:
                    await leave.wait()
                finally:
                    self.inside.remove(holder)
                    self._leave[holder].remove(leave)

    async def leave(self, holder: str | None) -> None:
        """Let one who is in go."""
        self._leave[holder][0].set()
        await blocked()


@pytest.fixture
async def crowd(nursery):
    limiter = FairLimiter(12)
    made = Crowd(limiter, nursery)
    made.statistics = limiter.statistics
    return made


async def test_one_alone_has_three_quarters_and_leaves_the_rest_to_whoever_comes(crowd):
    await crowd.want("hog", 100)
    assert crowd.inside == ["hog"] * 9
    await crowd.want("small")
    assert crowd.inside.count("small") == 1
    assert crowd.statistics() == FairLimiterStatistics(free=2, holders=2, waiting=91)


async def test_one_who_wants_much_leaves_to_many_others_a_place_at_once_though_nobody_goes(nursery):
    limiter = FairLimiter(100)
    crowd = Crowd(limiter, nursery)
    await crowd.want("hog", 250)
    assert crowd.inside == ["hog"] * 75
    for number in range(4):
        await crowd.want(f"hog {number}", 250)
    for number in range(3):
        await crowd.want(f"newcomer {number}")
        assert f"newcomer {number}" in crowd.inside
    assert limiter.statistics().free > 0


async def test_two_who_want_everything_have_the_same_in_the_end(crowd):
    await crowd.want("early", 100)
    await crowd.want("late", 100)
    for number in range(40):
        await crowd.leave(crowd.inside[0])
        assert len(crowd.inside) >= 9, number
    assert abs(crowd.inside.count("early") - crowd.inside.count("late")) <= 1


async def test_a_place_that_is_given_back_may_let_two_in(nursery):
    """The one who waits first gets it, and the one who gave it back has less than before."""
    crowd = Crowd(FairLimiter(16), nursery)
    await crowd.want("much", 20)
    for holder in ("a", "b", "b", "a"):
        await crowd.want(holder)
    assert [crowd.inside.count(holder) for holder in ("much", "a", "b")] == [12, 1, 1]
    await crowd.leave("a")
    assert [crowd.inside.count(holder) for holder in ("much", "a", "b")] == [12, 1, 2]


async def test_nobody_in_particular_is_bounded_by_the_total_alone(crowd):
    await crowd.want(None, 100)
    assert crowd.inside == [None] * 12
    assert crowd.statistics() == FairLimiterStatistics(free=0, holders=1, waiting=88)


async def test_those_who_wait_have_their_turns_one_after_the_other(crowd):
    await crowd.want(None, 12)
    for holder in ("a", "b", "c"):
        await crowd.want(holder, 3)
    entered = []
    for _ in range(12):
        before = list(crowd.inside)
        await crowd.leave(None)
        entered += [holder for holder in crowd.inside if holder and crowd.inside.count(holder) > before.count(holder)]
    assert entered[:3] == ["a", "b", "c"]
    assert sorted(set(entered)) == ["a", "b", "c"]
    assert {holder: crowd.inside.count(holder) for holder in "abc"} == {"a": 3, "b": 3, "c": 3}


async def test_who_waits_behind_his_own_is_not_overtaken_by_his_own(crowd):
    await crowd.want("a", 11)
    assert not crowd._limiter.take_nowait("a")
    await crowd.leave("a")
    assert crowd.inside == ["a"] * 9
    assert crowd.statistics().waiting == 1


async def test_who_gives_up_while_he_waits_has_taken_nothing_and_nothing_is_kept_of_him(crowd):
    await crowd.want(None, 12)
    [waiting] = await crowd.want("a")
    [other] = await crowd.want("b")
    waiting.cancel()
    await blocked()
    assert crowd.statistics() == FairLimiterStatistics(free=0, holders=1, waiting=1)
    other.cancel()
    await crowd.leave(None)
    assert crowd.statistics() == FairLimiterStatistics(free=1, holders=1, waiting=0)


async def test_who_is_cancelled_in_the_step_in_which_he_got_his_place_gives_it_back(crowd):
    limiter = crowd._limiter
    async with AsyncExitStack() as stack:
        for _ in range(12):
            assert limiter.take_nowait(None)
            stack.callback(limiter.give_back, None)
        [waiting] = await crowd.want("a")
    waiting.cancel()
    await blocked()
    assert crowd.inside == []
    assert limiter.statistics() == FairLimiterStatistics(free=12, holders=0, waiting=0)


holders = st.none() | st.sampled_from("abcd")
steps = st.lists(
    st.tuples(st.sampled_from(["want", "want", "leave", "give up"]), holders, st.integers(1, 6)), max_size=40
)


@settings(max_examples=60)
@given(st.integers(1, 12), steps)
def test_whatever_happens_the_total_holds_and_nobody_waits_who_may_have_a_place(total, steps):
    trio.run(partial(play, total, steps))


async def play(total, steps) -> None:
    limiter = FairLimiter(total)
    async with trio.open_nursery() as nursery:
        crowd, scopes = Crowd(limiter, nursery), {}
        for action, holder, times in steps:
            if action == "want":
                scopes.setdefault(holder, []).extend(await crowd.want(holder, times))
            elif action == "leave" and holder in crowd.inside:
                await crowd.leave(holder)
            elif action == "give up" and scopes.get(holder):
                scopes[holder].pop().cancel()
                await blocked()
            free = total - len(crowd.inside)
            assert free >= 0
            assert limiter.statistics().free == free
            for waiting in limiter._waiting:
                assert free <= (0 if waiting is None else total // 4)
                assert free <= 2 * crowd.inside.count(waiting)
        nursery.cancel_scope.cancel()
    assert limiter.statistics() == FairLimiterStatistics(free=total, holders=0, waiting=0)
