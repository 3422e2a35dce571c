"""acknowledged.py: how far clients have come, what a cursor acknowledges of a selection, and what both may cost."""

import tracemalloc

import pytest

from broker.fanout.acknowledged import MAX_PARTS, Acknowledged, Part, Sent
from broker.protocol.selection import EVERYTHING, NOTHING, Selection


def only(*inboxes: str) -> Selection:
    return Selection(frozenset(inboxes))


def client_of(acknowledged: Acknowledged, name: str = "agent", *, account: str = "acct_a", key: str = "key"):
    return acknowledged.client(account, key, name)


def test_a_position_moves_on_only_unless_it_is_taken_back():
    client = client_of(Acknowledged())
    assert client.position is None
    assert [client.advance(7), client.advance(3), client.position] == [7, 7, 7]
    client.take_back(9)
    assert client.position == 7
    client.take_back(5)
    assert client.position == 5


def test_who_acknowledged_nothing_has_nothing_to_be_taken_back():
    client = client_of(Acknowledged())
    client.take_back(5)
    assert client.position is None


def test_account_key_and_name_make_a_client():
    acknowledged = Acknowledged()
    client_of(acknowledged).advance(7)
    assert client_of(acknowledged).position == 7
    for other in ({"name": "agent2"}, {"account": "acct_b"}, {"key": "key/narrowed"}):
        assert client_of(acknowledged, **other).position is None


def test_no_name_can_be_taken_for_a_key_and_another_name():
    acknowledged = Acknowledged()
    client_of(acknowledged, "b", key="a").advance(7)
    assert client_of(acknowledged, "", key="ab").position is None


def test_of_too_many_clients_of_an_account_the_one_that_moved_longest_ago_is_forgotten():
    acknowledged = Acknowledged(max_of_account=2)
    one, two, three = (client_of(acknowledged, name) for name in ("one", "two", "three"))
    one.advance(1)
    two.advance(2)
    one.advance(3)
    three.advance(4)
    assert [one.position, two.position, three.position] == [3, None, 4]
    assert acknowledged.statistics().clients == 2
    assert acknowledged.statistics().forgotten == 1


def test_who_may_have_been_forgotten_is_not_taken_for_a_newcomer():
    acknowledged = Acknowledged(max_of_account=1)

    def resumes(head: int, name: str, account: str = "acct_a") -> int | None:
        return Sent(client_of(acknowledged, name, account=account), EVERYTHING, head).resume()

    assert resumes(1, "one") == 1
    assert resumes(2, "two") == 2
    assert resumes(3, "one") is None
    assert resumes(3, "two") == 2
    assert resumes(4, "one", "acct_b") == 4


def test_of_too_many_clients_in_all_one_of_the_account_that_moved_none_for_longest_is_forgotten():
    acknowledged = Acknowledged(max_clients=3)
    for account, name in (("acct_a", "one"), ("acct_b", "one"), ("acct_a", "two"), ("acct_a", "three")):
        client_of(acknowledged, name, account=account).advance(1)
    assert client_of(acknowledged, "one", account="acct_b").position is None
    assert [client_of(acknowledged, name).position for name in ("one", "two", "three")] == [1, 1, 1]
    assert acknowledged.statistics().clients == 3


@pytest.mark.parametrize("length", [1, 128])
def test_a_position_costs_the_same_whatever_its_client_is_called(length):
    acknowledged = Acknowledged(max_of_account=1_000)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(3_000):
            client_of(acknowledged, f"{number}".rjust(length, "x"), key="k" * 64).advance(10**9 + number)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1_000 * 300


# --- what a cursor acknowledges


def sent(selection: Selection, after: int) -> Sent:
    return Sent(client_of(Acknowledged()), selection, after)


def test_each_part_is_acknowledged_from_where_it_took_effect():
    parts = sent(only("a"), 10)
    parts.change(only("a"), only("a", "b"), 20, same_types=True)
    assert parts.acknowledge(15) == [Part(10, only("a"))]
    assert sorted(part.after for part in parts.acknowledge(30)) == [15, 20]
    assert parts.acknowledge(30) == []
    assert parts.acknowledge(31) == [Part(30, only("a", "b"))]


def test_what_is_removed_is_acknowledged_no_more_and_what_is_left_still_is():
    parts = sent(EVERYTHING, 10)
    parts.change(EVERYTHING, only("a"), 20, same_types=True)
    [part] = parts.acknowledge(30)
    assert part.after == 10
    assert "a" in part.selection
    assert "b" not in part.selection


def test_other_types_take_effect_anew():
    parts = sent(only("a"), 10)
    parts.change(only("a"), only("a"), 20, same_types=False)
    assert parts.acknowledge(20) == []
    assert parts.acknowledge(21) == [Part(20, only("a"))]


def test_a_replay_lets_a_part_take_effect_earlier():
    parts = sent(only("a"), 10)
    parts.client.advance(10)
    parts.change(only("a"), only("a", "b"), 20, same_types=True)
    parts.replay(only("b"), 5)
    assert parts.client.position == 5
    assert parts.acknowledge(7) == [Part(5, only("b"))]


def test_what_is_gone_before_it_was_sent_is_not_acknowledged():
    parts = sent(only("a"), 10)
    parts.skip(20)
    assert parts.acknowledge(20) == []


def test_nothing_is_added_or_removed_by_nothing():
    parts = sent(NOTHING, 10)
    parts.change(NOTHING, NOTHING, 20, same_types=True)
    parts.replay(NOTHING, 5)
    assert parts.acknowledge(30) == [Part(10, NOTHING)]


def test_of_too_many_parts_the_newest_are_one_and_no_event_is_acknowledged_that_was_not_sent():
    held = only("i0")
    parts = sent(held, 0)
    for number in range(1, 3 * MAX_PARTS):
        wanted = held.union(only(f"i{number}"))
        parts.change(held, wanted, number, same_types=True)
        held = wanted
    acknowledged = parts.acknowledge(1_000)
    assert len(acknowledged) <= MAX_PARTS
    for part in acknowledged:
        assert all(part.after >= int(inbox[1:]) for inbox in part.selection.inboxes)
    assert {inbox for part in acknowledged for inbox in part.selection.inboxes} == held.inboxes


def test_a_client_that_may_have_been_forgotten_is_not_at_the_head_because_it_comes():
    acknowledged = Acknowledged(max_of_account=1)
    for number, name in enumerate(("one", "two"), start=1):
        client_of(acknowledged, name).advance(number)
    client_of(acknowledged, "one").come(9)
    assert client_of(acknowledged, "one").position is None
    client_of(acknowledged, "new", account="acct_b").come(9)
    assert client_of(acknowledged, "new", account="acct_b").position == 9


def test_a_client_whose_time_is_over_is_forgotten_unless_it_has_moved_on():
    acknowledged = Acknowledged()
    client = client_of(acknowledged, "one")
    client.advance(1)
    client.advance(2)
    acknowledged.expired(client.account_id, client.digest, 1)
    assert client.position == 2
    acknowledged.expired(client.account_id, client.digest, 2)
    assert client.position is None
    assert acknowledged.statistics().clients == 0
