"""Which work is in the next commit: each account's in its order, and nobody waits for all that another has brought."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from broker.log.shares import ALONE, GROUP_WEIGHT, LONG, SHARE, Shares, goes_on

LIST = 10_000
"""Events of the longest list."""


@dataclass(frozen=True)
class Work:
    number: int
    owners: tuple[str, ...]
    weight: int = 1


def commits(shares, waiting):
    """What is in each commit until nothing waits any more."""
    while waiting:
        chosen, waiting = shares.choose(waiting)
        assert chosen
        yield chosen


owners = st.lists(st.sampled_from("abc"), max_size=2, unique=True).map(tuple)
works = st.lists(st.tuples(owners, st.sampled_from([1, 1, 100, SHARE, GROUP_WEIGHT, LIST])), max_size=30)


@given(works=works, later=works)
def test_all_is_done_once_and_what_is_for_one_account_in_its_order(works, later):
    shares = Shares()
    waiting = [Work(number, *work) for number, work in enumerate(works)]
    done, waiting = shares.choose(waiting)
    more = [Work(len(works) + number, *work) for number, work in enumerate(later)]
    for chosen in commits(shares, [*waiting, *more]):
        done += chosen
    assert sorted(work.number for work in done) == list(range(len(works) + len(later)))
    for owner in "abc":
        numbers = [work.number for work in done if owner in work.owners]
        assert numbers == sorted(numbers)


@given(works=works)
def test_a_commit_has_no_more_than_its_rows_but_for_one_piece_of_work(works):
    for chosen in commits(Shares(), [Work(number, *work) for number, work in enumerate(works)]):
        assert sum(work.weight for work in chosen) - max(work.weight for work in chosen) < GROUP_WEIGHT


def test_others_are_looked_for_when_an_account_has_had_its_share_and_while_there_are_none_its_commit_goes_on():
    shares = Shares()
    chosen, waiting = shares.choose([Work(number, ("a",), 100) for number in range(40)])
    assert len(chosen) == -(-SHARE // 100)
    while goes_on(chosen):
        more, waiting = shares.choose(waiting, short=True)
        chosen += more
    assert len(chosen) >= ALONE // 100
    assert [work.number for work in [*chosen, *waiting]] == list(range(40))
    assert not goes_on([Work(0, ("a",)), Work(1, ("b",))])
    assert not goes_on([Work(0, ("a",)), Work(1, ())])
    assert not goes_on([Work(0, ())])


def test_who_brings_a_little_waits_for_one_of_anothers_lists_and_not_for_all_of_them():
    shares = Shares()
    lists = [Work(number, ("a",), LIST) for number in range(16)]
    found = list(commits(shares, [*lists, Work(99, ("b",))]))
    assert [work.number for work in found[0]] == [0]
    assert [work.number for work in found[1]] == [99]
    assert [work.number for chosen in found[2:] for work in chosen] == list(range(1, 16))


def test_while_others_go_on_a_list_waits_for_as_many_commits_as_the_last_one_was_worth():
    shares = Shares()
    waiting = [Work(number, ("a",), LIST) for number in range(2)]
    turns = []
    for number in range(10, 30):
        chosen, waiting = shares.choose([*waiting, Work(number, ("b",))])
        turns.append([work.number for work in chosen])
    assert [turn for turn, numbers in enumerate(turns) if 0 in numbers or 1 in numbers] == [0, -(-LIST // GROUP_WEIGHT)]
    assert turns[1] == [10, 11]
    assert turns[2] == [12]


def test_what_is_of_nobody_waits_for_nobody():
    shares = Shares()
    shares.choose([Work(0, ("a",), LIST)])
    chosen, rest = shares.choose([Work(1, ("a",), LIST), Work(2, ()), Work(3, ("a",))])
    assert [work.number for work in chosen] == [2]
    assert [work.number for work in rest] == [1, 3]


@given(works=works, accounts=owners)
def test_beside_what_is_long_goes_what_is_neither_long_nor_of_its_accounts_nor_behind_such(works, accounts):
    shares = Shares()
    waiting = [Work(number, *work) for number, work in enumerate(works)]
    stopped, may_go = set(accounts), []
    for work in waiting:
        if work.weight >= LONG or not stopped.isdisjoint(work.owners):
            stopped.update(work.owners)
        else:
            may_go.append(work)
    done = []
    while True:
        chosen, waiting = shares.choose(waiting, accounts, short=True)
        if not chosen:
            break
        done += chosen
    assert sorted(work.number for work in done) == [work.number for work in may_go]


def test_what_is_long_is_the_last_of_its_commit():
    chosen, rest = Shares().choose([Work(0, ("a",)), Work(1, ("b",), LONG), Work(2, ("c",)), Work(3, ())])
    assert [work.number for work in chosen] == [0, 1]
    assert [work.number for work in rest] == [2, 3]


def test_what_is_long_may_be_alone_and_waits_for_no_more_than_came_before_it():
    shares = Shares(long_alone=True)
    works = [Work(0, ("a",)), Work(1, ("b",), LONG), Work(2, ("c",)), Work(3, ("b",))]
    assert [[work.number for work in chosen] for chosen in commits(shares, works)] == [[0, 2], [1], [3]]


def test_of_what_may_not_be_done_now_nothing_is_chosen_and_what_is_long_only_where_it_may_be():
    shares = Shares()
    works = [Work(0, ("a",)), Work(1, ("b",), LONG), Work(2, ("a", "c")), Work(3, ("c",))]
    chosen, rest = shares.choose(works, ["a"])
    assert [work.number for work in chosen] == [1]
    assert shares.choose(rest, ["a"], short=True) == ([], rest)
