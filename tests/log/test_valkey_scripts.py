"""scripts.py: what the server does in one step, against plain lists; on both kinds of server."""

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from processes import free_port
from valkeys import KINDS, Server, read, server

from broker.log.engines.valkey import TAG, Names
from broker.log.engines.valkey.scripts import APPEND, HEADS, HELLO, INDEX, READ, READ_BACK, Script

ACCOUNTS = ("a", "b")
MOST, MOST_BYTES, OVERHEAD, LONG_MS = 7, 1_100, 40, 10_000_000
NAMES = Names(0)

accounts = st.sampled_from(ACCOUNTS)
events = st.lists(
    st.tuples(st.sampled_from(["e1", "e2", "e3", "e4", "e5"]), st.sampled_from(["i1", "i2", "*"]), st.integers(0, 200)),
    max_size=9,
)
"""Id, inbox, and how long it is."""


def page_of(batch) -> bytes:
    words = []
    for event_id, inbox, size in batch:
        words += [f"{event_id} {inbox}", inbox, 't {"cursor":"c.', f'","payload":"{"p" * size}"}}']
    return msgspec.msgpack.encode(words)


class Scripts:
    """A server, and its scripts as a node runs them."""

    def __init__(self, at: Server) -> None:
        self.at = at
        self.generation = ""
        self.page = 3
        """Events of one page."""
        self.limits = [LONG_MS, MOST, MOST_BYTES, LONG_MS, LONG_MS, 65_536, OVERHEAD]

    def run(self, script: Script, keys, *arguments):
        return self.at.command("EVAL", script.text, len(keys), *keys, *arguments)

    def hello(self, candidate: str) -> str:
        self.generation = self.run(HELLO, [NAMES.generation], candidate)[0]
        return self.generation

    def append(self, by_account, generation: str | None = None, marks=()):
        keys, arguments = [NAMES.generation], []
        for account_id, batch in by_account.items():
            keys += [NAMES.of_account(kind, account_id) for kind in "msdxqp"]
            pages = [page_of(batch[start : start + self.page]) for start in range(0, len(batch), self.page)]
            words = [word for mark in marks for word in mark]
            arguments += [NAMES.events(account_id), len(pages), len(marks), *words, *pages]
        answer = self.run(APPEND, keys, generation or self.generation, "candidate", *self.limits, *arguments)
        if answer[0] == "stale":
            return answer
        told = [text.split() for text in answer]
        return [[int(word) if at % 2 else word for at, word in enumerate(words)] for words in told]

    def heads(self, *floors: int, of=ACCOUNTS):
        keys = [NAMES.generation, *(NAMES.of_account("m", account_id) for account_id in of)]
        return self.run(HEADS, keys, self.generation, "candidate", LONG_MS, *floors)

    def of(self, script: Script, kinds: str, account_id: str, *arguments):
        keys = [NAMES.of_account(kind, account_id) for kind in kinds]
        return self.run(script, keys, self.generation, *arguments)


@dataclass
class Log:
    """An account as it must be: all that was ever stored since its birth, and how many of that are held."""

    birth: int
    all: list[tuple[str, str, int]] = field(default_factory=list)
    """Identity, inbox, and how long its line is."""
    held: int = 0

    @property
    def head(self) -> int:
        return self.birth + len(self.all)

    def window(self) -> list[int]:
        return list(range(self.head - self.held + 1, self.head + 1))

    def identity(self, position: int) -> str:
        return self.all[position - self.birth - 1][0]

    def bytes(self) -> int:
        return sum(size + OVERHEAD for _, _, size in self.all[len(self.all) - self.held :])


def position_of(line: str) -> int:
    return int(line.split(" ", 1)[0])


class Machine(RuleBasedStateMachine):
    at: Server

    @initialize()
    def begin(self) -> None:
        self.at.command("FLUSHALL")
        self.scripts = Scripts(self.at)
        self.scripts.hello("first")
        numbers = self.scripts.heads(0, 0)
        self.logs = {name: Log(int(head)) for name, head in zip(ACCOUNTS, numbers[::2], strict=True)}

    @rule(by_account=st.dictionaries(accounts, events.filter(bool), min_size=1))
    def append(self, by_account) -> None:
        outcome = self.scripts.append(by_account)
        for (account_id, batch), flat in zip(by_account.items(), outcome, strict=True):
            log = self.logs[account_id]
            held = {log.identity(position): position for position in log.window()}
            fresh = 0
            for (event_id, inbox, size), position, known in zip(batch, flat[::2], flat[1::2], strict=True):
                identity = f"{event_id} {inbox}"
                assert bool(known) == (identity in held)
                if not known:
                    fresh += 1
                    ms = len("1795720568204 ")
                    line = (
                        len(f"{position} ") + ms + len(f'{identity} t {{"cursor":"c.{position}","payload":""}}') + size
                    )
                    log.all.append((identity, inbox, line))
                    log.held += 1
                    held[identity] = log.head
                assert int(position) == held[identity]
            while fresh and log.held > fresh and (log.held > MOST or log.bytes() > MOST_BYTES):
                log.held -= 1

    @rule(account_id=accounts, back=st.integers(-3, 20), most=st.integers(1, 5), room=st.integers(1, 500))
    def read(self, account_id, back, most, room) -> None:
        log = self.logs[account_id]
        after = log.head - back
        head, birth, start, page = self.scripts.of(READ, "ms", account_id, after, most, room)
        assert (int(head), int(birth)) == (log.head, log.birth)
        oldest = log.head - log.held
        assert int(start) == max(after, oldest)
        found = [position_of(line) for line in page]
        assert found == list(range(int(start) + 1, int(start) + 1 + len(found)))
        left = max(0, log.head - int(start))
        assert min(left, 1) <= len(found) <= min(left, most)
        assert sum(map(len, page[:-1])) <= room or len(found) == 1

    @rule(account_id=accounts, back=st.integers(-3, 20), most=st.integers(1, 5), room=st.integers(1, 500))
    def read_back(self, account_id, back, most, room) -> None:
        log = self.logs[account_id]
        through = log.head - back
        _, _, oldest, page = self.scripts.of(READ_BACK, "ms", account_id, through, most, room)
        assert int(oldest) == log.head - log.held
        found = [position_of(line) for line in page]
        end = min(through, log.head)
        assert found == list(range(end - len(found) + 1, end + 1))
        left = max(0, end - int(oldest))
        assert min(left, 1) <= len(found) <= min(left, most)

    @rule(account_id=accounts, back=st.integers(-3, 40), length=st.integers(0, 30), most=st.integers(1, 9))
    def index(self, account_id, back, length, most) -> None:
        log = self.logs[account_id]
        through = log.head - back
        _, _, start, page = self.scripts.of(INDEX, "mx", account_id, through, through - length, most)
        end = min(through, log.head)
        assert int(start) == max(log.birth, through - length, end - most)
        inboxes = [inbox for _, inbox, _ in log.all[int(start) - log.birth : max(0, end - log.birth)]]
        assert [item.split(" ", 1)[1] for item in page] == (inboxes if int(start) < end else [])

    @rule(account_id=accounts)
    def who_thinks_of_another_history_writes_nothing(self, account_id) -> None:
        before = self.everything()
        assert self.scripts.append({account_id: [("new", "i1", 3)]}, "another") == ["stale", self.scripts.generation]
        assert self.everything() == before

    def everything(self) -> object:
        return [
            self.at.command("LRANGE", NAMES.of_account("s", name), 0, -1)
            + self.at.command("HGETALL", NAMES.of_account("m", name))
            for name in ACCOUNTS
        ]

    @invariant()
    def the_ids_that_are_known_are_those_of_the_window(self) -> None:
        for name, log in self.logs.items():
            known = self.at.command("HKEYS", NAMES.of_account("d", name))
            assert sorted(one for one in known if " " in one) == sorted(map(log.identity, log.window()))

    @invariant()
    def heads_are_where_the_logs_end(self) -> None:
        expected = [number for log in self.logs.values() for number in (log.head, log.birth)]
        assert list(map(int, self.scripts.heads(0, 0))) == expected


@pytest.fixture(scope="module", params=KINDS)
def at(request):
    with server(request.param) as running:
        yield running


def test_the_scripts_do_what_lists_do(at):
    machine = type("OfThis", (Machine,), {"at": at})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=15, deadline=None))


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
        self.connection.settimeout(10)
        self.connection.connect(at.path)
        self.connection.sendall(b"SUBSCRIBE %b\r\n" % channel.encode())
        self.answers = self.connection.makefile("rb")
        read(self.answers)

    def next(self) -> str:
        message = read(self.answers)[2]
        self.answers.close()
        self.connection.close()
        return str(message)
