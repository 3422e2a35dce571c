"""scripts.py, storing.py: the steps of many nodes in any order, against plain lists; on both kinds of server.

Up to four long lists are under way. Their nodes die, are cut off and come back, so what one sent is done late, after
what it sent with its next link: any step of a list may be the next one, at any time, whatever became of the list.
"""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from valkeys import KINDS, Server, server
from valkeyscripts import MOST, MOST_BYTES, NAMES, OVERHEAD, Scripts, position_of

from broker.log.engines.valkey.scripts import INDEX, READ, READ_BACK

ACCOUNTS = ("a", "b", "c")
TAKEN_BACK = 4
"""In one step; few, so that others' steps come between."""

accounts = st.sampled_from(ACCOUNTS)
events = st.lists(
    st.tuples(st.sampled_from(["e1", "e2", "e3", "e4", "e5"]), st.sampled_from(["i1", "i2", "*"]), st.integers(0, 200)),
    min_size=1,
    max_size=9,
)
"""Id, inbox, and how long it is."""
batches = st.dictionaries(accounts, events, min_size=1, max_size=2)
MOST_LISTS = 4
WINDOW_MS, INDEX_MS, RENEWED_MS = 100_000, 300_000, 10_000
marks = st.none() | st.tuples(st.sampled_from(["m1", "m2"]), st.sampled_from(["x", "y"]))


@dataclass
class Event:
    position: int
    ms: int
    identity: str
    inbox: str
    size: int
    """Of its line."""


@dataclass
class Account:
    """What the server holds of an account."""

    name: str
    ms: int
    """When the last event was stored; it is later than the server's clock, so that no time passes by itself."""
    generation: str = ""
    head: int = 0
    birth: int = 0
    window: list[Event] = field(default_factory=list)
    """With what stands behind the head, as the index."""
    index: list[Event] = field(default_factory=list)
    owner: str | None = None
    """The list that it is of, which may be dead."""
    behind: int = 0
    renewed: int = 0
    """When it was last seen to that all of it goes by itself."""
    marks: dict[str, tuple[int, str]] = field(default_factory=dict)

    def key(self, kind: str) -> str:
        return NAMES.of_account(kind, self.name)

    def known(self) -> dict[str, int]:
        return {event.identity: event.position for event in self.window}

    def log(self) -> list[Event]:
        """The window without what stands behind the head."""
        return self.window[: max(0, len(self.window) - self.behind)]

    def bytes(self) -> int:
        return sum(event.size + OVERHEAD for event in self.log())

    def readable(self, held: list[Event]) -> list[Event]:
        return [event for event in held if self.birth < event.position <= self.head]

    def store(self, batch) -> list[str | int]:
        """Put events behind all that there is; return where each is, and whether it was there before."""
        flat: list[str | int] = []
        after = self.head + self.behind
        if not self.window or not self.index:
            self.renewed = 0
        for event_id, inbox, size in batch:
            identity, known = f"{event_id} {inbox}", self.known()
            position = known.get(identity)
            if position is None:
                after += 1
                line = f'{after} 1795720568204 {identity} t {{"cursor":"c.{after}","payload":""}}'
                self.window.append(Event(after, self.ms, identity, inbox, len(line) + size))
                self.index.append(self.window[-1])
            flat += [str(position or after), int(identity in known)]
        if 0 in flat[1::2] and self.ms - self.renewed > RENEWED_MS:
            self.renewed = self.ms
            self.index = [event for event in self.index if event.ms >= self.ms - INDEX_MS]
        return flat

    def is_reused(self, mark: tuple[str, str] | None) -> bool:
        """Whether a publish came with other content."""
        kept = self.marks.get(mark[0]) if mark else None
        return mark is not None and kept is not None and kept[0] >= self.ms - WINDOW_MS and kept[1] != mark[1]

    def take_back(self) -> int:
        some = min(self.behind, TAKEN_BACK)
        if some:
            del self.window[-some:], self.index[-some:]
        self.behind -= some
        if not self.behind:
            self.owner = None
        return some

    def trim(self, keep: int) -> None:
        while len(self.log()) > keep and self.is_over():
            del self.window[0]

    def is_over(self) -> bool:
        log = self.log()
        return log[0].ms < self.ms - WINDOW_MS or len(log) > MOST or self.bytes() > MOST_BYTES


@dataclass
class LongList:
    """A list as its node knows it."""

    generation: str
    mark: tuple[str, str] | None
    told: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """Where its node was told that events of it are, by account."""


class Machine(RuleBasedStateMachine):
    at: Server

    @initialize()
    def begin(self) -> None:
        self.at.command("FLUSHALL")
        self.scripts = Scripts(self.at, TAKEN_BACK)
        self.histories = 0
        self.scripts.hello("history_0")
        self.scripts.limits[0], self.scripts.limits[4] = WINDOW_MS, INDEX_MS
        later = 1_000 * int(self.at.command("TIME")[0]) + 10**8
        self.accounts = {name: Account(name, later) for name in ACCOUNTS}
        for account in self.accounts.values():
            self.at.command("HSET", account.key("m"), "l", account.ms)
        self.lists: dict[str, LongList] = {}
        self.begun = 0
        self.alive: set[str] = set()

    # --- nodes store

    @rule(by_account=batches, mark=marks)
    def append(self, by_account, mark) -> None:
        self.store(by_account, mark, self.scripts.generation)

    @rule(by_account=batches, mark=marks)
    def begin_list(self, by_account, mark) -> None:
        """Store the first part of a list. It may be done late, when the list was given up."""
        self.begun += 1
        name = f"list_{self.begun}"
        self.lists[name] = LongList(self.scripts.generation, mark)
        if len(self.lists) > MOST_LISTS:
            del self.lists[next(iter(self.lists))]
        self.put_behind(name, by_account, begin=True)

    @precondition(lambda self: self.lists)
    @rule(data=st.data(), by_account=batches)
    def go_on(self, data, by_account) -> None:
        """Store another part of a list, whatever became of it."""
        self.put_behind(self.any_list(data), by_account)

    def any_list(self, data) -> str:
        return data.draw(st.sampled_from(sorted(self.lists)))

    def put_behind(self, name, by_account, *, begin=False) -> None:
        one = self.lists[name]
        outcome = self.store(by_account, one.mark, one.generation, name, begin=begin)
        if outcome[0] not in ("stale", "lost", "busy", "reused"):
            for (account_id, batch), flat in zip(by_account.items(), outcome, strict=True):
                places = zip(batch, flat[::2], flat[1::2], strict=True)
                fresh = [(f"{event_id} {inbox}", int(at)) for (event_id, inbox, _), at, known in places if not known]
                one.told.setdefault(account_id, []).extend(fresh)

    def store(self, by_account, mark, generation, name="", *, begin=False):
        """Store, as a node does, and see that the answer is as it must be; return it."""
        words = [(1, 99, *mark)] if mark else []
        outcome = self.scripts.append(by_account, generation, words, name, begin=begin)
        assert outcome == self.expected(by_account, mark, generation, name, begin=begin)
        return outcome

    def expected(self, by_account, mark, generation, name, *, begin):
        if generation != self.scripts.generation:
            return ["stale", self.scripts.generation]
        if begin:
            self.alive.add(name)
        elif name and name not in self.alive:
            return ["lost"]
        busy = self.busy([self.accounts[account_id] for account_id in by_account], name)
        if busy:
            return ["busy", *busy]
        outcome = []
        for account_id, batch in by_account.items():
            account = self.accounts[account_id]
            is_reused = account.is_reused(mark)
            if name and is_reused:
                return ["reused"]
            self.be_born(account)
            if is_reused:
                outcome.append(["0", 2] * len(batch))
                continue
            flat = account.store(batch)
            fresh = flat[1::2].count(0)
            outcome.append(flat)
            if name:
                account.owner, account.behind = name, account.behind + fresh
                continue
            account.head += fresh
            if fresh:
                account.trim(fresh)
            if mark:
                account.marks[mark[0]] = (account.ms, mark[1])
        return outcome

    def busy(self, of: list[Account], name: str) -> list[str]:
        """Take back what dead lists have left; return the numbers of accounts that are still others'."""
        freed, busy = 0, []
        for number, account in enumerate(of, start=1):
            if account.owner not in (None, name):
                if freed < TAKEN_BACK and account.owner not in self.alive:
                    freed += account.take_back() + 1
                if account.owner is not None:
                    busy.append(str(number))
        return busy

    def be_born(self, account: Account) -> None:
        if account.generation != self.scripts.generation:
            generation, birth = self.at.command("HMGET", account.key("m"), "g", "b")
            assert generation == self.scripts.generation
            assert int(birth) > account.head
            account.generation, account.head, account.birth = generation, int(birth), int(birth)

    @precondition(lambda self: self.lists)
    @rule(data=st.data(), miscounted=st.integers(0, 4))
    def finish(self, data, miscounted) -> None:
        """Make a list the log's, or try to, whatever became of it, and also though it was done."""
        name = self.any_list(data)
        one = self.lists[name]
        behind = {account_id: len(told) for account_id, told in one.told.items()}
        if behind and miscounted == 0:
            behind[min(behind)] += 1
        outcome = self.scripts.finish(name, behind, one.mark or ("", ""), one.generation)
        if one.generation != self.scripts.generation:
            assert outcome == ["stale", self.scripts.generation]
            return
        mine = [self.accounts[account_id] for account_id in behind]
        is_there = all(
            account.owner == name
            and account.behind == behind[account.name]
            and len(account.window) >= account.behind
            and account.generation == self.scripts.generation
            for account in mine
        )
        if name not in self.alive or not is_there:
            assert outcome == ["lost"]
            return
        assert outcome == ["stored"]
        self.alive.discard(name)
        for account in mine:
            account.head += account.behind
            account.owner, account.behind = None, 0
            if one.mark:
                account.marks[one.mark[0]] = (account.ms, one.mark[1])
            positions = {event.identity: event.position for event in account.window}
            told = one.told[account.name]
            assert [(identity, positions.get(identity, at)) for identity, at in told] == told
            assert [at for _, at in told] == list(range(account.head - len(told) + 1, account.head + 1))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def die(self, data) -> None:
        """A node is away for too long. What its list has left is taken back by whoever stores next."""
        name = data.draw(st.sampled_from(sorted(self.alive)))
        self.at.command("DEL", NAMES.long_list(name))
        self.alive.discard(name)

    @precondition(lambda self: self.lists)
    @rule(data=st.data(), of=st.lists(accounts, unique=True, min_size=1))
    def take_back(self, data, of) -> None:
        """End a list, unless it is the log's, and take back some of it."""
        name, left, freed = self.any_list(data), 0, 0
        self.alive.discard(name)
        for account in (self.accounts[account_id] for account_id in of):
            if account.owner == name:
                if freed < TAKEN_BACK:
                    freed += account.take_back() + 4
                left += account.owner == name
        assert self.scripts.take_back(name, *of) == left

    @rule(keep=st.dictionaries(accounts, st.integers(0, 9), min_size=1))
    def trim(self, keep) -> None:
        while self.scripts.trim(keep):
            pass
        for account_id, number in keep.items():
            self.accounts[account_id].trim(number)

    # --- what befalls the server

    @rule(account_id=accounts, ms=st.sampled_from([5_000, 40_000, 70_000, 110_000, 310_000]))
    def let_time_pass(self, account_id, ms) -> None:
        account = self.accounts[account_id]
        account.ms += ms
        self.at.command("HSET", account.key("m"), "l", account.ms)

    @rule(account_id=accounts)
    def expire(self, account_id) -> None:
        """All that is held of an account goes, also what stands behind its head."""
        account = self.accounts[account_id]
        self.at.command("DEL", *(account.key(kind) for kind in "sdx"))
        account.window.clear()
        account.index.clear()

    @rule(is_so=st.sampled_from([False] * 5 + [True]))
    def be_another_history(self, is_so) -> None:
        if not is_so:
            return
        self.at.command("HSET", NAMES.generation, "replid", "0" * 40, "run", "another")
        self.histories += 1
        assert self.scripts.hello(f"history_{self.histories}") == f"history_{self.histories}"

    @rule(seen=st.dictionaries(accounts, st.integers(-2, 3), min_size=1))
    def look_at_heads(self, seen) -> None:
        """A node asks where accounts are, of which it may have seen more than there is."""
        of = [self.accounts[account_id] for account_id in seen]
        floors = [max(0, account.head + more) for account, more in zip(of, seen.values(), strict=True)]
        numbers = list(map(int, self.scripts.heads(*floors, of=list(seen))))
        for account, floor, head, birth in zip(of, floors, numbers[::2], numbers[1::2], strict=True):
            if account.generation != self.scripts.generation or floor > account.head:
                assert head == birth >= floor
                assert head > account.head or not account.generation
                account.generation, account.head, account.birth = self.scripts.generation, head, birth
                account.owner = account.owner and "-"
            assert (head, birth) == (account.head, account.birth)

    # --- nodes read

    def read_of(self, script, kinds, account, *arguments):
        """Return what a script that reads says; None if the account was not born yet."""
        told = self.scripts.of(script, kinds, account.name, *arguments)
        if account.generation == self.scripts.generation:
            return told
        assert told == ["stale", account.generation]
        return None

    @rule(account_id=accounts, back=st.integers(-3, 20), most=st.integers(1, 5), room=st.integers(1, 500))
    def read(self, account_id, back, most, room) -> None:
        account = self.accounts[account_id]
        after = account.head - back
        told = self.read_of(READ, "ms", account, after, most, room)
        if told is not None:
            readable = account.readable(account.window)
            oldest = readable[0].position - 1 if readable else account.head
            assert tuple(map(int, told[:3])) == (account.head, account.birth, max(after, oldest))
            self.are(told[3], [event for event in readable if event.position > after], most, room)

    @rule(account_id=accounts, back=st.integers(-3, 20), most=st.integers(1, 5), room=st.integers(1, 500))
    def read_back(self, account_id, back, most, room) -> None:
        account = self.accounts[account_id]
        through = account.head - back
        told = self.read_of(READ_BACK, "ms", account, through, most, room)
        if told is not None:
            readable = account.readable(account.window)
            oldest = readable[0].position - 1 if readable else account.head
            assert tuple(map(int, told[:3])) == (account.head, account.birth, oldest)
            self.are(told[3][::-1], [event for event in readable[::-1] if event.position <= through], most, room)

    def are(self, page: list[str], expected: list[Event], most: int, room: int) -> None:
        """See that a page is what comes next, as far as was asked for, and one event at least."""
        found = [(position_of(line), " ".join(line.split(" ")[2:4])) for line in page]
        assert found == [(event.position, event.identity) for event in expected[: len(found)]]
        assert min(len(expected), 1) <= len(found) <= min(len(expected), most)
        assert sum(map(len, page)) <= room or len(found) == 1
        if len(found) < min(len(expected), most):
            assert sum(event.size for event in expected[: len(found) + 1]) > room

    @rule(account_id=accounts, back=st.integers(-3, 40), length=st.integers(0, 30), most=st.integers(1, 9))
    def index(self, account_id, back, length, most) -> None:
        account = self.accounts[account_id]
        through = account.head - back
        told = self.read_of(INDEX, "mx", account, through, through - length, most)
        if told is not None:
            readable = account.readable(account.index)
            known = readable[0].position - 1 if readable else account.head
            end = min(through, account.head)
            start = max(known, through - length, end - most)
            assert tuple(map(int, told[:3])) == (account.head, account.birth, start)
            inboxes = [event.inbox for event in readable if start < event.position <= end]
            assert [item.split(" ", 1)[1] for item in told[3]] == inboxes

    # --- what is so after each step

    @invariant()
    def the_server_holds_what_it_is_to_hold_and_nothing_for_ever(self) -> None:
        for account in self.accounts.values():
            lines = self.at.command("LRANGE", account.key("s"), 0, -1)
            assert [position_of(line) for line in lines] == [event.position for event in account.window]
            assert list(map(len, lines)) == [event.size for event in account.window]
            known = self.at.command("HGETALL", account.key("d"))
            told = dict(zip(known[::2], known[1::2], strict=True))
            assert {one: int(at) for one, at in told.items() if " " in one} == account.known()
            if account.log():
                assert int(told["#y"]) == account.bytes()
            for kind in "msdxqp" if account.generation else "sdxqp":
                assert self.at.command("PTTL", account.key(kind)) != -1, kind


@pytest.fixture(scope="module", params=KINDS)
def at(request):
    with server(request.param) as running:
        yield running


def test_the_scripts_do_what_lists_do(at):
    machine = type("OfThis", (Machine,), {"at": at})
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))
