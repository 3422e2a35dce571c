"""scripts.py, storing.py: what the server does in one step; on both kinds of server. See `test_valkey_steps`, too."""

import pytest
from processes import free_port
from valkeys import KINDS, Server, read, server
from valkeyscripts import LONG_MS, NAMES, OVERHEAD, Scripts, position_of

from broker.log.engines.valkey import TAG
from broker.log.engines.valkey.scripts import INDEX, READ, READ_BACK, Script
from broker.log.engines.valkey.storing import TAKEN_BACK


@pytest.fixture(scope="module", params=KINDS)
def at(request):
    with server(request.param) as running:
        yield running


def test_a_page_is_no_longer_than_was_asked_for_but_one_event_is_read_however_large(scripts):
    scripts.limits[1:3] = [5, 10**6]
    for n in range(8):
        [[head, _]] = scripts.append({"a": [(f"e{n}", "i1", 100)]})
    end, oldest = int(head), int(head) - 5

    def found(script: Script, *asked: int) -> tuple[int, list[int]]:
        _, _, start, page = scripts.of(script, "ms", "a", *asked)
        return int(start), [position_of(line) for line in page]

    assert found(READ, oldest, 10, 1) == (oldest, [oldest + 1])
    assert found(READ, oldest, 2, 10**6) == (oldest, [oldest + 1, oldest + 2])
    assert found(READ, oldest - 2, 1, 10**6) == (oldest, [oldest + 1])
    assert found(READ_BACK, end, 10, 1) == (oldest, [end])
    assert found(READ_BACK, end, 2, 10**6) == (oldest, [end - 1, end])
    assert found(READ_BACK, end + 3, 2, 10**6) == (oldest, [end - 1, end])
    assert found(READ_BACK, oldest + 1, 10, 10**6) == (oldest, [oldest + 1])
    for after, most, start in ((end - 1, 10, end - 1), (end - 4, 2, end - 2), (0, 100, end - 8)):
        _, _, told, items = scripts.of(INDEX, "mx", "a", end, after, most)
        assert (int(told), len(items)) == (start, end - start)


@pytest.fixture
def scripts(at):
    at.command("FLUSHALL")
    made = Scripts(at)
    made.hello("first")
    return made


def test_a_list_longer_than_lua_unpacks_is_stored_whole(scripts):
    batch = [(f"e{n}", "i1", 1) for n in range(10_000)]
    scripts.page = 256
    scripts.limits[1:3] = [10**6, 10**9]
    for known in (0, 1):
        [flat] = scripts.append({"a": batch})
        assert flat[1::2] == [known] * 10_000
    assert scripts.at.command("LLEN", NAMES.of_account("s", "a")) == 10_000


def test_what_stands_behind_the_head_is_not_read(scripts):
    [flat] = scripts.append({"a": [(f"e{n}", f"i{n}", 1) for n in range(5)]})
    positions = [int(position) for position in flat[::2]]
    scripts.append({"a": [(f"f{n}", "behind", 1) for n in range(3)]}, of_list="mine", begin=True)
    head, start = positions[-1], positions[0] - 1
    told = scripts.of(READ, "ms", "a", 0, 100, 10_000)
    assert (int(told[0]), int(told[2]), list(map(position_of, told[3]))) == (head, start, positions)
    told = scripts.of(READ_BACK, "ms", "a", head + 9, 2, 10_000)
    assert (int(told[0]), int(told[2]), list(map(position_of, told[3]))) == (head, start, positions[-2:])
    for known in (5, 3):
        told = scripts.of(INDEX, "mx", "a", head + 9, 0, 100)
        assert int(told[2]) == head - known
        assert [item.split(" ")[1] for item in told[3]] == [f"i{n}" for n in range(5)][-known:]
        scripts.at.command("LTRIM", NAMES.of_account("x", "a"), 2, -1)


def test_what_a_dead_list_has_left_is_taken_back_little_by_little_before_anything_is_stored(scripts):
    scripts.page, scripts.limits[1:3] = 256, [10**6, 10**9]
    first, second = ([(f"e{n}", "i1", 1) for n in range(start, start + 450)] for start in (0, 450))
    scripts.append({"a": first}, of_list="dead", begin=True)
    scripts.append({"a": second}, of_list="dead")
    assert scripts.append({"b": first, "a": first}) == ["busy", "2"]
    scripts.at.command("DEL", NAMES.long_list("dead"))
    assert scripts.append({"b": first, "a": first}) == ["busy", "2"]  # a part of it is taken back with each
    assert scripts.at.command("LLEN", NAMES.of_account("s", "a")) == 900 - TAKEN_BACK
    assert scripts.at.command("LLEN", NAMES.of_account("s", "b")) == 0
    [_, flat] = scripts.append({"b": first, "a": first})
    assert flat[1::2] == [0] * 450
    for kind in "sx":
        assert scripts.at.command("LLEN", NAMES.of_account(kind, "a")) == 450


def test_a_list_that_is_given_up_leaves_nothing_though_the_server_is_full(scripts):
    [[before, _]] = scripts.append({"a": [("e0", "i1", 1)]})
    scripts.page, scripts.limits[1:3] = 256, [10**6, 10**9]
    for start in (0, 400, 800):
        batch = [(f"f{n}", "i1", 1) for n in range(start, start + 400)]
        scripts.append({"a": batch}, of_list="mine", begin=not start)
    scripts.at.command("CONFIG", "SET", "maxmemory", 1)
    try:
        assert "OOM" in scripts.append({"a": [("f", "i1", 1)]}, of_list="mine")
        assert scripts.finish("mine", {"a": 1_201}) == ["lost"]
        assert [scripts.take_back("mine", "a", "b") for _ in range(3)] == [1, 1, 0]
    finally:
        scripts.at.command("CONFIG", "SET", "maxmemory", 0)
    assert scripts.finish("mine", {"a": 1_200}) == ["lost"]
    for kind in "sx":
        assert scripts.at.command("LLEN", NAMES.of_account(kind, "a")) == 1
    [[after, known]] = scripts.append({"a": [("f0", "i1", 1)]})
    assert (int(after), known) == (int(before) + 1, 0)


def test_a_list_whose_account_was_born_again_meanwhile_is_lost_and_none_of_it_is_read(scripts):
    scripts.append({"a": [("e1", "i1", 1)]}, of_list="mine", begin=True)
    [_, birth] = scripts.heads(2**52, of=["a"])
    assert int(birth) == 2**52
    assert scripts.finish("mine", {"a": 1}) == ["lost"]
    assert scripts.of(READ, "ms", "a", birth, 10, 10_000)[3] == []
    [[first, known]] = scripts.append({"a": [("e1", "i1", 1)]})
    assert (int(first), known) == (2**52 + 1, 0)


def test_a_list_that_came_with_other_content_is_not_stored_and_its_own_content_is_kept(scripts):
    scripts.append({"a": [("e1", "i1", 1)]}, of_list="mine", begin=True, marks=[(1, 1, "me", "x")])
    assert scripts.finish("mine", {"a": 1}, ("me", "x")) == ["stored"]
    assert scripts.append({"a": [("e2", "i1", 1)]}, marks=[(1, 1, "me", "y")]) == [["0", 2]]
    other = {"b": [("e2", "i1", 1)], "a": [("e2", "i1", 1)]}
    assert scripts.append(other, of_list="other", begin=True, marks=[(1, 1, "me", "y")]) == ["reused"]
    assert scripts.take_back("other", "a", "b") == 0
    again = scripts.append({"a": [("e1", "i1", 1)]}, of_list="again", begin=True, marks=[(1, 1, "me", "x")])
    assert [known for _, known in again] == [1]


def test_a_window_that_was_gone_for_longer_than_its_list_is_read_as_empty(scripts):
    [[_, _]] = scripts.append({"a": [("e1", "i1", 1)]})
    [[last, _]] = scripts.append({"a": [("e2", "i1", 1)]}, of_list="mine", begin=True)
    scripts.at.command("DEL", *(NAMES.of_account(kind, "a") for kind in "sdx"))
    head, _, start, page = scripts.of(READ, "ms", "a", 0, 10, 10_000)
    assert (int(head), int(start), page) == (int(last) - 1, int(head), [])
    assert scripts.of(READ_BACK, "ms", "a", last, 10, 10_000)[2:] == [head, []]
    assert scripts.of(INDEX, "mx", "a", last, 0, 10)[2:] == [head, []]


@pytest.mark.parametrize("part_of_list", [{}, {"of_list": "next", "begin": True}], ids=["an event", "a list"])
@pytest.mark.parametrize("gone", ["", "s", "x"], ids=["all was of the list", "the window is gone", "the index is gone"])
def test_what_is_stored_where_nothing_was_left_goes_by_itself_too(scripts, gone, part_of_list):
    if gone:
        scripts.append({"a": [("e0", "i1", 1)]})
    scripts.append({"a": [("e1", "i1", 1)]}, of_list="dead", begin=True)
    assert scripts.take_back("dead", "a") == 0
    scripts.at.command("DEL", *(NAMES.of_account(kind, "a") for kind in gone or "-"))
    scripts.append({"a": [("e1", "i1", 1)]}, **part_of_list)
    assert all(scripts.at.command("PTTL", NAMES.of_account(kind, "a")) > 0 for kind in "msdx")


@pytest.mark.parametrize("more", [0, 1], ids=["at its end", "before its last part"])
def test_a_list_whose_events_went_with_the_window_in_its_middle_is_lost(scripts, more):
    scripts.append({"b": [("e1", "i1", 1)], "a": [("e1", "i1", 1)]}, of_list="mine", begin=True)
    scripts.at.command("DEL", *(NAMES.of_account(kind, "a") for kind in "sdx"))
    for _ in range(more):
        scripts.append({"a": [("e2", "i1", 1)]}, of_list="mine")
    assert scripts.finish("mine", {"b": 1, "a": 1 + more}) == ["lost"]
    assert scripts.take_back("mine", "a", "b") == 0
    assert [known for _, known in scripts.append({"b": [("e1", "i1", 1)], "a": [("e2", "i1", 1)]})] == [0, 0]


def test_a_list_that_lives_no_more_is_not_gone_on_with_and_not_the_logs_and_its_ids_are_free(scripts):
    scripts.append({"a": [("e1", "i1", 1)]}, of_list="mine", begin=True)
    scripts.at.command("DEL", NAMES.long_list("mine"))
    assert scripts.append({"a": [("e2", "i1", 1)]}, of_list="mine") == ["lost"]
    assert scripts.finish("mine", {"a": 1}) == ["lost"]
    [[_, known]] = scripts.append({"a": [("e1", "i1", 1)]}, of_list="next", begin=True)
    assert known == 0
    assert [scripts.finish("next", {"a": 1}) for _ in range(2)] == [["stored"], ["lost"]]
    assert scripts.append({"a": [("e1", "i1", 1)]}, of_list="late", begin=True)[0][1] == 1
    assert scripts.append({"a": [("e1", "i1", 1)]}) == ["busy", "1"]


def test_who_thinks_of_another_history_stores_nothing(scripts):
    scripts.append({"a": [("e1", "i1", 1)]}, of_list="mine", begin=True)
    for of_list in ("", "mine", "another"):
        told = scripts.append({"a": [("e2", "i1", 1)]}, "older", of_list=of_list, begin=of_list == "another")
        assert told == ["stale", "first"]
    assert scripts.finish("mine", {"a": 1}, generation="older") == ["stale", "first"]
    assert scripts.finish("mine", {"a": 1}) == ["stored"]
    assert scripts.at.command("KEYS", NAMES.long_list("*")) == []


def test_what_is_too_much_after_a_list_leaves_the_window_little_by_little_but_not_the_list(scripts):
    scripts.page, scripts.limits[1:3] = 256, [10**6, 10**9]
    scripts.append({"a": [(f"e{n}", "i1", 1) for n in range(700)]})
    scripts.append({"a": [(f"f{n}", "i1", 1) for n in range(20)]}, of_list="mine", begin=True)
    scripts.finish("mine", {"a": 20})
    scripts.append({"a": [("g", "i1", 1)]}, of_list="next", begin=True)
    scripts.limits[1] = 10
    assert [scripts.trim({"a": 20}) for _ in range(2)] == [1, 0]
    assert scripts.at.command("LLEN", NAMES.of_account("s", "a")) == 20 + 1
    assert scripts.at.command("HLEN", NAMES.of_account("d", "a")) == 20 + 1 + len("yot")
    lines = scripts.at.command("LRANGE", NAMES.of_account("s", "a"), 0, 19)
    told = scripts.at.command("HGET", NAMES.of_account("d", "a"), "#y")
    assert int(told) == sum(map(len, lines)) + OVERHEAD * 20


def test_what_is_too_old_leaves_the_window_with_its_id_and_stays_in_the_index(scripts):
    scripts.append({"a": [("e1", "i1", 1)]})
    scripts.limits[0] = 0
    now = int(scripts.at.command("TIME")[1]) // 1_000
    while int(scripts.at.command("TIME")[1]) // 1_000 == now:
        pass
    [[second, _]] = scripts.append({"a": [("e2", "i1", 1)]})
    _, _, oldest, page = scripts.of(READ_BACK, "ms", "a", second, 10, 10_000)
    assert (int(oldest), len(page)) == (int(second) - 1, 1)
    assert len(scripts.of(INDEX, "mx", "a", second, 0, 10)[3]) == 2
    [[_, known]] = scripts.append({"a": [("e1", "i1", 1)]})
    assert known == 0


def test_times_never_go_back_though_the_servers_clock_does(scripts):
    scripts.append({"a": [("e1", "i1", 1)]})
    later = int(scripts.at.command("HGET", NAMES.of_account("m", "a"), "l")) + 3_600_000
    scripts.at.command("HSET", NAMES.of_account("m", "a"), "l", later)
    [[second, _]] = scripts.append({"a": [("e2", "i1", 1)]})
    [line] = scripts.of(READ_BACK, "ms", "a", second, 1, 10_000)[3]
    assert line.split(" ")[1] == str(later)


def test_an_account_is_born_after_all_that_was_before_it_and_after_what_a_node_has_seen(scripts):
    [[before, _]] = scripts.append({"a": [("e1", "i1", 1)]})
    scripts.at.command("HSET", NAMES.of_account("m", "a"), "n", int(before) + 10**12, "g", "older")
    head, birth = map(int, scripts.heads(0, of=["a"]))
    assert head == birth > int(before) + 10**12
    seen = 2**52
    assert int(scripts.heads(seen, of=["new"])[0]) == seen
    scripts.at.command("HSET", NAMES.of_account("m", "b"), "n", seen, "g", "older")
    [[first, _]] = scripts.append({"b": [("e1", "i1", 1)]})
    assert int(first) > seen + 1


def test_an_account_whose_node_has_seen_more_is_born_again(scripts):
    """What it had on this server is not what the node had."""
    [[before, _]] = scripts.append({"a": [("e1", "i1", 1)]})
    head, birth = map(int, scripts.heads(int(before), of=["a"]))
    assert (head, birth) == (int(before), int(before) - 1)
    head, birth = map(int, scripts.heads(int(before) + 10**12, of=["a"]))
    assert head == birth == int(before) + 10**12


def test_a_server_that_was_a_replica_meanwhile_has_another_history(at, scripts):
    """It is the same process, and what it had stored last is gone all the same."""
    with server("valkey" if "valkey" in at._binary else "redis", port=free_port()) as other:
        at.port = at.port or free_port()
        assert at.command("CONFIG", "SET", "port", at.port) == "OK"
        other.command("REPLICAOF", "127.0.0.1", at.port)
        wait_for_link(other)
        scripts.append({"a": [("e1", "i1", 1)]})
        other.command("REPLICAOF", "NO", "ONE")
        at.command("REPLICAOF", "127.0.0.1", other.port)
        wait_for_link(at)
        at.command("REPLICAOF", "NO", "ONE")
        assert scripts.hello("second") == "second"


def wait_for_link(replica: Server) -> None:
    while "master_link_status:up" not in replica.command("INFO", "replication"):
        pass


def test_what_was_stored_before_another_history_is_not_read_and_its_ids_are_known(scripts):
    [[before, _]] = scripts.append({"a": [("e1", "i1", 1)]})
    scripts.at.command("HSET", NAMES.generation, "replid", "0" * 40, "run", "another")
    assert scripts.hello("second") == "second"
    [[again, known, fresh, _]] = scripts.append({"a": [("e1", "i1", 1), ("e2", "i1", 1)]})
    assert (again, known) == (before, 1)
    _, birth, oldest, page = scripts.of(READ_BACK, "ms", "a", fresh, 10, 10_000)
    assert int(birth) == int(oldest) == int(fresh) - 1
    assert [position_of(line) for line in page] == [int(fresh)]


def test_a_publish_that_came_with_other_content_is_not_stored_and_all_beside_it_are(scripts):
    [[where, _]] = scripts.append({"a": [("e1", "i1", 1)]}, marks=[(1, 1, "mine", "x")])
    four = [(name, "i1", 1) for name in ("e0", "e1", "e2", "e3")]
    [flat] = scripts.append({"a": four}, marks=[(2, 3, "mine", "y"), (4, 4, "theirs", "y")])
    assert flat == [str(int(where) + 1), 0, "0", 2, "0", 2, str(int(where) + 2), 0]
    assert scripts.append({"a": [("e1", "i1", 1)]}, marks=[(1, 1, "mine", "x")]) == [[where, 1]]
    [[_, known]] = scripts.append({"b": [("e9", "i1", 1)]}, marks=[(1, 1, "mine", "y")])
    assert known == 0  # of another account it is another


def test_what_stands_for_the_content_of_a_publish_is_kept_for_the_window_and_not_for_ever(scripts):
    def known(content: str, name: str = "mine") -> int:
        [[_, told]] = scripts.append({"a": [(f"e{content}", "i1", 1)]}, marks=[(1, 1, name, content)])
        return told

    at, young, old = scripts.at, NAMES.of_account("q", "a"), NAMES.of_account("p", "a")
    assert (known("x"), known("y")) == (0, 2)
    at.command("HSET", young, "#", 1)  # as if the first of them had come long ago
    assert (known("a", "other"), known("y")) == (0, 2)
    assert (at.command("HLEN", young), at.command("HLEN", old)) == (2, 2)
    at.command("HSET", old, "mine", "1000000000000 x")
    assert known("y") == 0
    assert 0 < at.command("PTTL", young) <= 2 * LONG_MS + 1
    at.command("HSET", young, *(word for n in range(10_000) for word in (f"m{n}", "1")))
    assert known("z", "last") == 0
    assert at.command("HLEN", young) == 2  # what came before them is forgotten


@pytest.mark.parametrize("size", [10, 40_000])
def test_what_is_published_is_the_events_or_only_their_head_if_they_are_large(at, scripts, size):
    listener = Listening(at, NAMES.events("a"))
    [flat] = scripts.append({"a": [("e1", "i1", size), ("e2", "i1", size)]})
    message = listener.next()
    assert (
        message == f"h{flat[2]}"
        if size > 10_000
        else [position_of(line) for line in message.split("\n")]
        == [
            int(flat[0]),
            int(flat[2]),
        ]
    )
    assert TAG in NAMES.events("a")


class Listening:
    """A connection that hears a channel."""

    def __init__(self, at: Server, channel: str) -> None:
        import socket

        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(60)
        self.connection.connect(at.path)
        self.connection.sendall(b"SUBSCRIBE %b\r\n" % channel.encode())
        self.answers = self.connection.makefile("rb")
        read(self.answers)

    def next(self) -> str:
        message = read(self.answers)[2]
        self.answers.close()
        self.connection.close()
        return str(message)
