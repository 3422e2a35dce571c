"""hub.py: the fan-out, with many sessions behind streams of every speed, against a client that believes nothing."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec
import pytest
import trio
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
from logs import ArchivingEngine, begin, memory_engine, prepared, wall_at
from streams import ACCOUNT, Asked, Client, FakeConnection, FakeStream, Held, History, Narrowed

from broker.access.keys import Key
from broker.access.opening import check_opening
from broker.commands.requests import PublishRequest
from broker.config import Config, LimitsConfig, ReplayConfig
from broker.errors import CloseCode, RequestError
from broker.fanout import follower, hub, listeners, subscriptions
from broker.fanout.hub import Hub
from broker.fanout.listeners import Listener, State
from broker.fanout.places import MAX_PLACES
from broker.log import replay
from broker.log.retention import ReplayBuffers
from broker.protocol.messages import Published, format_time
from broker.protocol.selection import EVERYTHING, NOTHING, Selection, TypeFilter

ACCOUNTS = ("acct_a", "acct_b")
INBOXES = ("i1", "i2", "i3", "i4")
UNIVERSE = (*INBOXES, ACCOUNT)
TYPES = ("message.new", "message.old", "x")
KEYS = {
    "account": (frozenset({"subscribe", "publish"}), None),
    "inbox": (frozenset({"subscribe", "publish"}), frozenset({"i1", "i2"})),
    "publisher": (frozenset({"publish"}), None),
}
SUBSCRIBES = frozenset({"subscribe", "publish"})
BECOMES = {
    "the whole account": Key("account", None, SUBSCRIBES),
    "two inboxes": Key("inbox", None, SUBSCRIBES, frozenset({"i1", "i2"})),
    "one inbox": Key("inbox", None, SUBSCRIBES, frozenset({"i1"})),
    "other inboxes": Key("inbox", None, SUBSCRIBES, frozenset({"i2", "i3", "i4"})),
    "without the scope": Key("publisher", None, frozenset({"publish"})),
    "of another account": None,
}
"""What a reload may make of a key."""
MAX_AGENTS = 7
SMALL_WINDOW = ReplayConfig(seconds=300, max_events_per_account=9, max_bytes_per_account=7_000, max_bytes_total=9_000)


# --- the state machine -------------------------------------------------------


@dataclass
class Agent:
    """A client with its connection, and what the broker must think that it holds."""

    account_id: str
    key: Key
    connection: FakeConnection
    client: Client
    everything: bool
    names: frozenset[str]
    requests: int = 0
    filter_patterns: list[str] | None = None
    bad_frames: int = 0
    came_back: bool = False

    @property
    def holds(self) -> frozenset[str]:
        """All of the universe that it is subscribed to."""
        if "subscribe" not in self.key.scopes:
            return frozenset()
        return self.universe_of(None if self.everything else self.names)

    def universe_of(self, names: frozenset[str] | None) -> frozenset[str]:
        """What names (None: ``*``) mean for the key, with the account's own events."""
        if self.key.inbox_ids is not None:
            return self.key.inbox_ids if names is None else names
        return frozenset(UNIVERSE) if names is None else names | {ACCOUNT}

    def answer(self) -> list[str]:
        return ["*"] if self.everything else sorted(self.names)


@dataclass(frozen=True)
class Since:
    """How a test says `since`: one of the cursors ever seen, or something that is none, or a duration."""

    kind: str
    number: int = 0


recent = st.builds(Since, st.just("recent"), st.integers(0, 12))
sinces = st.one_of(
    st.none(),
    recent,
    recent,
    st.builds(Since, st.just("seen"), st.integers(0, 200)),
    st.one_of(st.builds(Since, st.just("foreign"), st.integers(0, 200)), st.just(Since("garbage"))),
    st.builds(Since, st.sampled_from(["duration", "time"]), st.sampled_from([0, 1, 30, 200, 600])),
)
filters = st.sampled_from([None, None, ["message.*"], ["x"], ["message.new", "x"]])
rooms = st.one_of(st.just(math.inf), st.integers(0, 400), st.integers(0, 2_000))
which = st.integers(0, 20)
accounts = st.sampled_from([*ACCOUNTS, ACCOUNTS[0]])
some_inboxes = st.one_of(st.none(), st.frozensets(st.sampled_from(INBOXES), min_size=1, max_size=3))
reaches = st.sampled_from([*BECOMES, "the whole account", "the whole account", "two inboxes"])
events = st.lists(st.tuples(st.sampled_from(UNIVERSE), st.sampled_from(TYPES)), min_size=1, max_size=6)


class FanOut(RuleBasedStateMachine):
    """Publishers, a fan-out that is stopped anywhere, and clients of every speed.

    ``archived``: what memory drops is kept elsewhere, until it is let go there.
    """

    def __init__(self, clock: trio.testing.MockClock, ticks: "Ticks", *, archived: bool = False) -> None:
        super().__init__()
        self.clock = clock
        self.ticks = ticks
        self.buffers = ReplayBuffers(SMALL_WINDOW, b"sixteen bytes...")
        self.hub = Hub(self.buffers)
        self.engine = (ArchivingEngine if archived else memory_engine)(self.buffers, self.hub)
        self.archive = self.engine.archive
        if self.archive is not None:
            self.buffers.archived(self.archive.keep_seconds)
        self.config = Config(replay=SMALL_WINDOW)
        self.histories = {name: History(name, UNIVERSE) for name in ACCOUNTS}
        self.cursors: dict[str, list[tuple[int, str]]] = {name: [] for name in ACCOUNTS}
        self.agents: list[Agent] = []
        self.ids = 0

    @initialize(first=st.lists(st.tuples(st.sampled_from(["account", "inbox"]), st.just(math.inf) | rooms), max_size=4))
    def some_are_there(self, first):
        for kind, room in first:
            self._connect(ACCOUNTS[0], kind, None, None, None, room)
        self.everything_runs_to_its_end()

    # --- publishing

    def _publish(self, account_id: str, batch: list[tuple[str, str]], again: list[str] = ()) -> list[Published] | None:
        """Do what `Intake` does, once it has judged the events."""
        account = self.hub.account(account_id)
        place = account.places.take_nowait(1)
        if place is None:
            return None
        prepared_events = [prepared(event_id) for event_id in again]
        for inbox, event_type in batch:
            self.ids += 1
            prepared_events.append(prepared(f"evt_{self.ids}", inbox, event_type=event_type))
        with place:
            stored = begin(self.engine, account_id, prepared_events)
            assert [item.duplicate for item in stored] == [True] * len(again) + [False] * len(batch)
            if batch:
                place.hand_on(stored[-1].position)
        for item, event in zip(stored[len(again) :], prepared_events[len(again) :], strict=True):
            entry = account.buffer.find(event.inbox_id or ACCOUNT, item.event_id)
            self.histories[account_id].add(entry, item.cursor)
            self.cursors[account_id].append((entry.position, item.cursor))
        return [Published(item.event_id, item.cursor, item.duplicate) for item in stored]

    @rule(account_id=accounts, batch=events, again=st.booleans(), cancelled=st.sampled_from([False] * 5 + [True]))
    def publish(self, account_id, batch, again, cancelled):
        place = self.hub.account(account_id).places.take_nowait(1) if cancelled else None
        if place is not None:
            with place:
                return
        ids = []
        if again:
            known = [entry.event_id for entry in self.histories[account_id].entries if entry.inbox == "i1"]
            ids = [i for i in known if self.hub.account(account_id).buffer.find("i1", i)][:1]
        self._publish(account_id, batch, ids)

    @rule(account_id=accounts, inbox=st.sampled_from(UNIVERSE), number=st.integers(3, 15))
    def publish_many(self, account_id, inbox, number):
        self._publish(account_id, [(inbox, TYPES[i % 3]) for i in range(number)])

    def _publish_of_client(self, agent: Agent, request: PublishRequest):
        batch = [(event.get("inbox_id", ACCOUNT), event["type"]) for event in json.loads(request.raw)]
        published = self._publish(agent.account_id, batch)
        return RequestError("rate_limited", "no place") if published is None else {"events": published}

    # --- the fan-out

    @rule(steps=st.one_of(st.integers(0, 6), st.just(math.inf)))
    def fan_out_runs(self, steps):
        self.hub.take_turns(self.ticks.now + steps)

    @rule(
        batch=events,
        steps=st.integers(0, 3),
        which=which,
        what=st.sampled_from(["filter", "replay", "pong", "beat", "leave"]),
        rounds=st.sampled_from([0, 3, 30]),
        room=st.one_of(st.just(math.inf), rooms),
    )
    def something_happens_in_the_middle_of_a_broadcast(self, batch, steps, which, what, rounds, room):
        agent = self._pick(which)
        self._publish(agent.account_id, batch)
        self.hub.take_turns(self.ticks.now + steps)
        if what == "filter":
            self.subscribe(which, frozenset({"i1"}), None, ["message.*"])
        elif what == "replay":
            self.subscribe(which, frozenset({"i2"}), Since("recent", 3), None)
        elif what == "leave":
            self.unsubscribe(which, frozenset({"i1"}))
        else:
            if what == "pong":
                agent.connection.pong()
                agent.connection.step(len(agent.connection.tasks) - 1)
            agent.connection.beat()
        agent.connection.stream.room = room
        for number in range(rounds):
            if agent.connection.tasks:
                agent.connection.step(number)

    @rule(
        batch=events,
        steps=st.integers(0, 3),
        which=which,
        becomes=reaches,
        everybody=st.booleans(),
        ends=st.sampled_from(["", "", "before", "after"]),
        rests=st.booleans(),
    )
    def a_reload_in_the_middle_of_a_broadcast(self, batch, steps, which, becomes, everybody, ends, rests):
        """One or all of an account have another key, and one may end in that very tick."""
        agent = self._pick(which)
        self._publish(agent.account_id, batch)
        self.hub.take_turns(self.ticks.now + steps)
        reloaded = [a for a in self._talkers() if a.account_id == agent.account_id] if everybody else [agent]
        if ends == "before":
            agent.connection.kill()
        for one in reloaded:
            self._change_key(one, BECOMES[becomes])
        if ends == "after":
            agent.connection.kill()
        if rests:
            self.everything_runs_to_its_end()

    @rule(which=which, becomes=reaches)
    def a_key_changes(self, which, becomes):
        self._change_key(self._pick(which), BECOMES[becomes])

    def _change_key(self, agent: Agent, becomes: Key | None) -> None:
        if becomes is None:
            agent.connection.change_key(Key("moved", "acct_elsewhere", SUBSCRIBES))
            return
        before, held, follower = agent.key, agent.holds, agent.connection.session.follower
        key = msgspec.structs.replace(becomes, account_id=agent.account_id)
        progress, through = self.histories[agent.account_id].position_of(follower.cursor), follower.position
        agent.connection.change_key(key)
        if not agent.connection.alive:
            return
        agent.key = key
        if key.reach.inboxes is not None:
            agent.names = key.reach.inboxes if agent.everything else agent.names & key.reach.inboxes
            agent.everything = False
        narrowed = None
        if before.reach.minus(key.reach) != NOTHING:
            narrowed = Narrowed(agent.answer(), agent.holds)
        agent.client.key_changed(narrowed, Held(agent.holds - held, progress, through))

    @rule(account_id=accounts, batch=events, room=rooms)
    def resume_at_a_cursor_that_the_fan_out_has_not_reached(self, account_id, batch, room):
        self._publish(account_id, batch)
        if len(self._talkers()) < MAX_AGENTS:
            self._connect(account_id, "account", None, Since("recent", 0), None, room)

    # --- opening

    def _resolve(self, account_id: str, since: Since) -> tuple[str, int | None]:
        """Return a since's text, and the position that it means."""
        other = ACCOUNTS[account_id == ACCOUNTS[0]]
        cursors = self.cursors[account_id if since.kind != "foreign" else other]
        now = trio.current_time()
        if since.kind in ("duration", "time"):
            position = self.histories[account_id].position_before(now - since.number)
            if since.kind == "duration":
                return f"{since.number}s", position
            return format_time(wall_at(now - since.number)), position
        if since.kind == "garbage" or not cursors:
            return "cnothing.7", None
        position, cursor = cursors[-1 - min(since.number, len(cursors) - 1)]
        if since.kind == "seen":
            position, cursor = cursors[since.number % len(cursors)]
        return cursor, None if since.kind == "foreign" else position

    def _open(self, agent_of, key: Key, query: dict[str, str], since: Since | None, room: float, seen=None, again=0):
        """Open a connection; ``agent_of(connection, client)`` makes its agent. A cursor may be the since, too."""
        account = self.hub.account(key.account_id)
        history = self.histories[key.account_id]
        if isinstance(since, Since):
            query["since"], position = self._resolve(key.account_id, since)
        elif since is not None:
            query["since"], position = account.buffer.cursor_at(since), since
        opening = check_opening(key, query, LimitsConfig())
        number = len(self.agents)
        connection = FakeConnection(
            key, self.config, opening, account, f"conn_{number}", FakeStream(room),
            lambda request: self._publish_of_client(agent, request), self.archive,
        )  # fmt: skip
        everything = opening.selection.inboxes is None
        names = frozenset(opening.selection.inboxes or ()) - {ACCOUNT}
        through = connection.session.follower.position
        asked = Asked(
            "open", frozenset(), opening.event_filter, False,
            position if since is not None else None, since is not None, through, through, [],
        )  # fmt: skip
        client = Client(history, asked, set() if seen is None else seen, again)
        agent = agent_of(connection, client)
        agent.everything, agent.names = everything, names
        reach = agent.universe_of(None if everything else names)
        asked.inboxes = reach if "subscribe" in key.scopes else frozenset()
        asked.answer = agent.answer()
        connection.open(trio.current_time())
        self.agents.append(agent)

    @rule(
        account_id=accounts,
        kind=st.sampled_from(["account", "account", "account", "inbox", "inbox", "publisher"]),
        inboxes=st.one_of(st.just("default"), some_inboxes),
        since=sinces,
        types=filters,
        room=rooms,
    )
    @precondition(lambda self: sum(not agent.connection.ended for agent in self.agents) < MAX_AGENTS)
    def connect(self, account_id, kind, inboxes, since, types, room):
        self._connect(account_id, kind, inboxes, since, types, room)

    def _connect(self, account_id, kind, inboxes, since, types, room):
        scopes, reach = KEYS[kind]
        key = Key(kind, account_id, scopes, reach)
        query = {}
        if kind != "publisher" and inboxes != "default":
            names = inboxes if inboxes is None or reach is None else (inboxes & reach or reach)
            query["inbox_ids"] = "*" if names is None else ",".join(names)
        if types:
            query["event_types"] = ",".join(types)
        if kind == "publisher":
            since = None

        def agent_of(connection, client):
            return Agent(account_id, key, connection, client, False, frozenset(), filter_patterns=types)

        self._open(agent_of, key, query, since, room)

    @rule(which=which, room=rooms)
    @precondition(lambda self: any(agent.connection.ended and not agent.came_back for agent in self.agents))
    def reconnect_at_the_last_cursor(self, which, room):
        gone = [agent for agent in self.agents if agent.connection.ended and not agent.came_back]
        old = gone[which % len(gone)]
        old.came_back = True
        held = frozenset(old.client.reached) & old.holds - {ACCOUNT}
        if "subscribe" not in old.key.scopes or old.client.waits_for_ready or not (held or old.key.inbox_ids is None):
            return
        query = {}
        if held == set(INBOXES):
            query["inbox_ids"] = "*"
        elif held:
            query["inbox_ids"] = ",".join(held)
        if old.client.filter is not None:
            query["event_types"] = ",".join(old.client.filter.patterns)

        def agent_of(connection, client):
            return Agent(old.account_id, old.key, connection, client, False, frozenset())

        self._open(agent_of, old.key, query, old.client.last, room, old.client.seen, old.client.again_through)

    # --- what clients say

    def _talkers(self) -> list[Agent]:
        return [a for a in self.agents if a.connection.alive and a.connection.close_code is None]

    def _pick(self, which: int) -> Agent:
        talkers = [agent for agent in self._talkers() if not agent.connection.session.congested]
        if not talkers:
            self._connect(ACCOUNTS[0], "account", None, None, None, 300)
            talkers = self.agents[-1:]
        return talkers[which % len(talkers)]

    def _say(self, agent: Agent, command: dict) -> None:
        agent.connection.receive(json.dumps(command), trio.current_time())

    def _asked(self, agent: Agent, action: str, inboxes: frozenset[str], answer, position=None, patterns=None, **more):
        session = agent.connection.session
        history = self.histories[agent.account_id]
        through = session.follower.position
        progress = history.position_of(session.follower.cursor)
        assert progress <= through
        agent.requests += 1
        request_id = f"r{agent.requests}"
        asked = Asked(
            action, inboxes, None if patterns is None else TypeFilter(patterns), patterns is None,
            position, "since" in more, through, progress, answer,
        )  # fmt: skip
        agent.client.ask(request_id, asked)
        command = {"action": action, "request_id": request_id, **more}
        if patterns is not None:
            command["event_types"] = patterns
        self._say(agent, command)

    @rule(which=which, inboxes=some_inboxes, since=sinces, types=filters)
    def subscribe(self, which, inboxes, since, types):
        self._subscribe(self._pick(which), inboxes, since, types)

    def _subscribe(self, agent: Agent, inboxes, since, types):
        more = {"inbox_ids": "*" if inboxes is None else sorted(inboxes)}
        position = None
        if since is not None:
            more["since"], position = self._resolve(agent.account_id, since)
        reach = agent.key.inbox_ids
        allowed = "subscribe" in agent.key.scopes and (reach is None or inboxes is None or inboxes <= reach)
        asked = frozenset()
        if allowed:
            agent.everything = agent.everything or (inboxes is None and reach is None)
            agent.names |= reach if inboxes is None and reach is not None else inboxes or frozenset()
            asked = agent.universe_of(inboxes)
        answer = agent.answer() if allowed else None
        self._asked(agent, "subscribe", asked, answer, position, types, **more)

    @rule(which=which, inboxes=some_inboxes)
    def unsubscribe(self, which, inboxes):
        self._unsubscribe(self._pick(which), inboxes)

    def _unsubscribe(self, agent: Agent, inboxes):
        allowed = "subscribe" in agent.key.scopes and (inboxes is None or not agent.everything)
        if allowed:
            agent.everything = False
            agent.names = frozenset() if inboxes is None else agent.names - inboxes
        answer = agent.answer() if allowed else None
        gone = frozenset(INBOXES) if inboxes is None else inboxes
        more = {"inbox_ids": "*" if inboxes is None else sorted(inboxes)}
        self._asked(agent, "unsubscribe", gone, answer, **more)

    @rule(
        which=which,
        inbox=st.sampled_from(INBOXES),
        first=recent,
        crowd=st.sampled_from([0, 0, 5, 12]),
        other=some_inboxes,
        second=sinces,
    )
    def replays_meet(self, which, inbox, first, crowd, other, second):
        """Two inboxes are added one after the other; between them, events may be dropped."""
        agent = self._pick(which)
        self.unsubscribe(which, None if agent.everything else frozenset({inbox}) | (other or frozenset()))
        self.subscribe(which, frozenset({inbox}), first, None)
        if crowd:
            self._publish(agent.account_id, [(INBOXES[i % 3], "x") for i in range(crowd)])
            self.hub.take_turns(math.inf)
        self.subscribe(which, other, second, None)

    @rule(
        which=which,
        batch=st.lists(st.sampled_from(UNIVERSE), min_size=4, max_size=8),
        order=st.permutations(INBOXES),
        starts=st.lists(
            st.one_of(st.integers(1, 8), st.integers(1, 8), st.none()), min_size=3, max_size=4, unique=True
        ),
        rounds=st.lists(st.sampled_from([0, 0, 1, 2]), min_size=4, max_size=4),
        gone=st.sampled_from([None, None, *INBOXES]),
        crowd=st.sampled_from([0, 0, 5, 12]),
    )
    def three_replays_and_more_meet(self, which, batch, order, starts, rounds, gone, crowd):
        """Each begins anywhere, or joins those under way; between them some is sent, and one may be given up again.

        At the end, events may be dropped that all of them wait for.
        """
        agent = self._pick(which)
        self._change_key(agent, BECOMES["the whole account"])
        self._unsubscribe(agent, None)
        self._publish(agent.account_id, [(inbox, TYPES[i % 3]) for i, inbox in enumerate(batch)])
        self.everything_runs_to_its_end()
        for inbox, start, steps in zip(order, starts, rounds, strict=False):
            self._subscribe(agent, frozenset({inbox}), None if start is None else Since("recent", start), None)
            for number in range(steps):
                if agent.connection.tasks:
                    agent.connection.step(number)
            if agent not in self._talkers():
                return
        if gone and not agent.everything:
            self._unsubscribe(agent, frozenset({gone}))
        if crowd:
            self._publish(agent.account_id, [(INBOXES[i % 3], "x") for i in range(crowd)])
            self.hub.take_turns(math.inf)

    @rule(which=which, said=st.one_of(events, st.sampled_from(["no json", '{"action":"ping"}', '{"action":"x"}'])))
    def say_something_else(self, which, said):
        if isinstance(said, list):
            items = [{"type": kind, **({"inbox_id": inbox} if inbox else {})} for inbox, kind in said]
            said = json.dumps({"action": "publish", "events": items})
        self._pick(which).connection.receive(said, trio.current_time())

    # --- bytes

    @rule(which=which, room=rooms)
    def read_some(self, which, room):
        if self.agents:
            stream = self.agents[which % len(self.agents)].connection.stream
            stream.room = max(stream.room if stream.room != math.inf else 0, room)

    @rule(order=st.lists(st.integers(0, 100), min_size=1, max_size=12))
    def tasks_run_for_a_while(self, order):
        for number in order:
            tasks = [(a.connection, i) for a in self.agents for i in range(len(a.connection.tasks))]
            if tasks:
                connection, index = tasks[number % len(tasks)]
                connection.step(index)

    @rule(which=which, rounds=st.integers(1, 12))
    def one_connection_runs(self, which, rounds):
        if self.agents:
            connection = self.agents[which % len(self.agents)].connection
            for number in range(rounds):
                if connection.tasks:
                    connection.step(number)

    @rule(which=which, kind=st.sampled_from(["heartbeat", "pong", "pong"]))
    def control_frames(self, which, kind):
        connection = self._pick(which).connection
        connection.beat() if kind == "heartbeat" else connection.pong()

    # --- ends and time

    @rule(which=which, how=st.sampled_from(["gone", "closed"]))
    def end(self, which, how):
        connection = self._pick(which).connection
        connection.kill() if how == "gone" else connection.end(CloseCode.RESTART)

    @rule(seconds=st.sampled_from([1, 1, 1, 30, 30, 200, 301, 4_000]), slices=st.integers(0, 4))
    def time_passes(self, seconds, slices):
        self.clock.jump(seconds)
        now = trio.current_time()
        for _ in range(slices):
            if not self.buffers.expire(now, most=3):
                break
        while self.buffers.forget(now):
            pass
        while self.hub.forget(now, most=2):
            pass

    @rule(account_id=accounts, number=st.integers(1, 12))
    @precondition(lambda self: self.archive is not None)
    def the_archive_lets_go(self, account_id, number):
        self.archive.let_go_first(account_id, number, self.hub.account(account_id).buffer.dropped_through)

    # --- what must hold

    @invariant()
    def clients_read_what_they_may(self):
        for account in self.hub.accounts():
            account_id, gone_through = account.buffer.account_id, account.buffer.dropped_through
            if self.archive is not None:
                gone_through = self.archive.gone_through(account_id, gone_through)
            self.histories[account_id].note_drops(trio.current_time(), gone_through)
        for agent in self.agents:
            agent.client.read(agent.connection.stream.wire)

    @invariant()
    def the_live_are_counted(self):
        live = sum(agent.connection.listener.state is State.LIVE for agent in self.agents)
        assert self.hub.statistics().live == live

    @rule()
    def everything_runs_to_its_end(self):
        connections = [agent.connection for agent in self.agents]
        rooms = [connection.stream.room for connection in connections]
        for connection in connections:
            connection.stream.room = math.inf
        self._run_all()
        self.clients_read_what_they_may()
        for agent in self._talkers():
            assert agent.connection.session.follower.live
            head = self.hub.account(agent.account_id).buffer.head
            agent.client.has_everything(head)
            agent.connection.beat()
            self._run_all()
            agent.client.read(agent.connection.stream.wire)
            assert agent.client.last == head, "a quiet client's cursor stays good"
        for connection, room in zip(connections, rooms, strict=True):
            connection.stream.room = room

    def _run_all(self) -> None:
        for _ in range(10_000):
            self.hub.take_turns(math.inf)
            running = [agent.connection for agent in self.agents if agent.connection.tasks]
            if not running:
                return
            for connection in running:
                for number in range(len(connection.tasks)):
                    if connection.tasks:
                        connection.step(number)
        raise AssertionError("somebody never ends")

    def teardown(self):
        self.everything_runs_to_its_end()
        for account in self.hub.accounts():
            assert all(account.places.take_nowait(1) for _ in range(MAX_PLACES)), "a place was lost"
            assert account.places.take_nowait(1) is None


class Ticks:
    """A performance counter that goes on by one each time that somebody looks."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def small_steps(monkeypatch):
    """Everything that is bounded is bounded tightly, so that a few events go over each edge."""
    ticks = Ticks()
    monkeypatch.setattr(hub, "perf_counter", ticks)
    monkeypatch.setattr(subscriptions, "STEPS_PER_PAUSE", 1)
    monkeypatch.setattr(hub, "BATCH_EVENTS", 4)
    monkeypatch.setattr(hub, "BATCH_BYTES", 600)
    monkeypatch.setattr(subscriptions, "MAX_MATCHES", 5)
    monkeypatch.setattr(follower, "READ_EVENTS", 3)
    monkeypatch.setattr(follower, "READ_BYTES", 500)
    monkeypatch.setattr(replay, "_WALK_STEPS", 4)
    monkeypatch.setattr(replay, "_WALK_FACTOR", 1)
    return ticks


async def test_every_client_gets_everything_in_order_once_or_a_counted_gap(mock_clock, small_steps):
    machine = partial(FanOut, mock_clock, small_steps)
    run_state_machine_as_test(machine, settings=settings(max_examples=250, stateful_step_count=60))


async def test_every_client_gets_what_memory_has_dropped_too_where_an_archive_keeps_it(mock_clock, small_steps):
    machine = partial(FanOut, mock_clock, small_steps, archived=True)
    run_state_machine_as_test(machine, settings=settings(max_examples=100, stateful_step_count=60))


# --- single promises ---------------------------------------------------------


class House:
    """A hub with listeners that note what they are given; its clock goes on with each look."""

    def __init__(self, tell: Callable[[str], bool] = lambda _: True) -> None:
        self.hub = Hub(ReplayBuffers(ReplayConfig(), b"sixteen bytes..."), tell)
        self.engine = memory_engine(self.hub._buffers, self.hub)
        self.written: list[tuple[str, bytes]] = []
        self.woken: list[str] = []
        self.listeners: dict[str, Listener] = {}

    def listen(self, name: str, account_id: str = "acct_a", takes=len) -> Listener:
        """Make a live listener to everything; ``takes(data)`` says how many bytes it takes."""

        def write(data: bytes) -> int:
            self.written.append((name, data))
            return takes(data)

        subscriptions = self.hub.account(account_id).subscriptions
        listener = self.listeners[name] = Listener(write, lambda: self.woken.append(name))
        subscriptions.enter(listener, EVERYTHING, None)
        subscriptions.join(listener)
        assert listener.state is State.LIVE
        return listener

    def publish(self, account_id: str = "acct_a", number: int = 1) -> bool:
        """Do what `Intake` does; False if there is no place."""
        account = self.hub.account(account_id)
        place = account.places.take_nowait(1)
        if place is None:
            return False
        with place:
            first = account.buffer.head + 1
            begin(self.engine, account_id, [prepared(f"e{first + i}") for i in range(number)])
            place.hand_on(account.buffer.head)
        return True

    def run(self) -> None:
        self.hub.take_turns(math.inf)

    def frames(self, account_id: str = "acct_a") -> list[bytes]:
        buffer = self.hub.account(account_id).buffer
        return [e.frame for e in buffer.read(EVERYTHING, 0, buffer.head, max_events=1_000, max_bytes=10**9)[0]]


async def test_what_was_published_meanwhile_is_joined_into_one_write_that_all_of_a_group_share():
    house = House()
    for name in "ab":
        house.listen(name)
    house.publish()
    house.publish(number=3)
    house.run()
    (_, first), (_, second) = house.written
    assert first == b"".join(house.frames())
    assert second is first


async def test_an_account_has_its_turn_when_its_listeners_know_what_they_may_hear():
    told: list[str] = []

    def tell(account_id: str) -> bool:
        told.append(account_id)
        return len(told) > 2

    house = House(tell)
    house.listen("a")
    house.publish()
    for _ in range(2):
        house.hub.take_turns(0.0)
        assert house.written == []
    house.run()
    assert [data for _, data in house.written] == house.frames()
    assert told == ["acct_a"] * 3


async def test_one_write_is_bounded_in_events_and_bytes(monkeypatch):
    house = House()
    house.listen("a")
    house.publish(number=600)
    house.run()
    sizes = [len(data) for _, data in house.written]
    assert len(sizes) == math.ceil(600 / hub.BATCH_EVENTS)
    assert b"".join(data for _, data in house.written) == b"".join(house.frames())
    house.written.clear()
    monkeypatch.setattr(hub, "BATCH_BYTES", 500)
    house.publish(number=10)
    house.run()
    assert all(len(data) <= 500 for _, data in house.written)


async def test_an_account_with_a_long_broadcast_delays_another_by_no_more_than_a_turn(monkeypatch):
    ticks = Ticks()
    monkeypatch.setattr(hub, "perf_counter", ticks)
    house = House()
    for number in range(1_000):
        house.listen(f"a{number}", "acct_a")
    house.listen("b", "acct_b")
    house.publish("acct_a", 5)
    house.publish("acct_b")
    house.hub.take_turns(ticks.now + 1)
    assert len(house.written) == subscriptions.STEPS_PER_PAUSE, "a turn is as long as its time, not as its broadcast"
    house.hub.take_turns(ticks.now + 1)
    assert house.written[subscriptions.STEPS_PER_PAUSE][0] == "b"
    house.run()
    assert len(house.written) == 1_001


async def test_each_account_has_its_turn_when_many_have_long_broadcasts(monkeypatch):
    ticks = Ticks()
    monkeypatch.setattr(hub, "perf_counter", ticks)
    house = House()
    names = [f"acct_{letter}" for letter in "abcd"]
    for name in names:
        for number in range(200):
            house.listen(f"{name}.{number}", name)
        house.publish(name)
    for _ in names:
        house.hub.take_turns(ticks.now + 1)
    assert [house.written[i][0].partition(".")[0] for i in range(0, 4 * 32, 32)] == names


async def test_a_step_is_as_long_as_its_time_however_many_accounts_have_little_to_send(monkeypatch):
    ticks = Ticks()
    monkeypatch.setattr(hub, "perf_counter", ticks)
    house = House()
    for number in range(100):
        house.listen(str(number), f"acct_{number}")
        house.publish(f"acct_{number}")
    house.hub.take_turns(ticks.now + 10)
    assert len(house.written) < 10
    assert house.hub.statistics().queued_accounts == 100 - len(house.written)
    house.run()
    assert [name for name, _ in house.written] == [str(number) for number in range(100)]


async def test_an_account_that_just_got_something_waits_for_no_broadcast_and_starves_none(monkeypatch):
    ticks = Ticks()
    monkeypatch.setattr(hub, "perf_counter", ticks)
    house = House()
    for number in range(200):
        house.listen(f"long{number}", "acct_long")
    for name in ("new_a", "new_b", "new_c", "new_d"):
        house.listen(name, name)
    house.publish("acct_long")
    house.hub.take_turns(ticks.now + 1)
    begun = len(house.written)
    for name in ("new_a", "new_b", "new_c", "new_d"):
        house.publish(name)
    house.hub.take_turns(ticks.now + 6)
    names = [name for name, _ in house.written[begun:]]
    assert names[0] == "new_a"
    assert any(name.startswith("long") for name in names), "the second half of the time is for those that wait"
    house.run()
    assert len(house.written) == 204


async def test_new_accounts_without_end_leave_half_of_each_turn_to_those_that_wait(monkeypatch):
    ticks = Ticks()
    monkeypatch.setattr(hub, "perf_counter", ticks)
    house = House()
    for number in range(2 * subscriptions.STEPS_PER_PAUSE):
        house.listen(f"long{number}", "acct_long")
    house.publish("acct_long")
    house.hub.take_turns(ticks.now + 1)
    for number in range(40):
        house.listen(f"new{number}", f"acct_{number}")
        house.publish(f"acct_{number}")
    begun = len(house.written)
    house.hub.take_turns(ticks.now + 20)
    names = [name for name, _ in house.written[begun:]]
    assert names[0] == "new0"
    assert sum(name.startswith("long") for name in names) == subscriptions.STEPS_PER_PAUSE


@pytest.mark.parametrize("live", [True, False], ids=["live", "behind"])
async def test_one_event_for_very_many_groups_is_gone_through_in_short_steps(monkeypatch, live):
    """However few of them it is anything for: what is bounded is how many are looked at before the clock is."""
    ticks = Ticks()
    monkeypatch.setattr(hub, "perf_counter", ticks)
    house, looked, most = House(), [], 0
    subscribed = house.hub.account("acct_a").subscriptions

    class Watched(listeners.Group):
        def wants(self, entry):
            looked.append(1)
            return super().wants(entry)

    monkeypatch.setattr(listeners, "Group", Watched)
    for number in range(5_000):
        listener = Listener(lambda data: house.written.append(data) or len(data), lambda: None)
        subscribed.enter(listener, Selection(frozenset({"i1", f"own{number}"})), None)
        if live:
            subscribed.join(listener)
    house.publish(number=2)
    while house.hub.statistics().queued_accounts:
        before = len(looked)
        house.hub.take_turns(ticks.now + 1)
        most = max(most, len(looked) - before)
    assert most <= 2 * subscriptions.STEPS_PER_PAUSE
    assert len(looked) == 10_000
    assert len(house.written) == (10_000 if live else 0)


async def test_a_listener_that_takes_nothing_falls_behind_and_hurts_nobody():
    house = House()
    house.listen("a")
    stuck = house.listen("stuck", takes=lambda _: 0)
    house.listen("b")
    house.publish(number=2)
    house.run()
    house.publish()
    house.run()
    assert [name for name, _ in house.written] == ["a", "stuck", "b", "a", "b"]
    assert (stuck.state, stuck.position, house.woken) == (State.BEHIND, 0, ["stuck"])
    assert house.hub.statistics().fell_behind == 1


async def test_a_listener_that_takes_a_part_is_behind_from_the_end_of_the_batch_on():
    house = House()
    listener = house.listen("a", takes=lambda data: len(data) - 1)
    house.publish(number=3)
    house.run()
    assert (listener.state, listener.position, listener.told) == (State.BEHIND, 3, 3)


async def test_who_leaves_in_the_middle_of_a_broadcast_is_written_to_no_more(small_steps):
    house = House()
    for name in "abc":
        house.listen(name)
    house.publish()
    house.hub.take_turns(small_steps.now + 1)
    assert len(house.written) == 1
    subscriptions = house.hub.account("acct_a").subscriptions
    subscriptions.leave(house.listeners["b"])
    house.run()
    assert [name for name, _ in house.written] == ["a", "c"]
    assert house.hub.statistics().delivered == 2
    assert house.listeners["b"].position == 0


async def test_who_caught_up_in_the_middle_of_a_broadcast_does_not_get_it_twice(small_steps):
    house = House()
    for name in "abc":
        house.listen(name)
    house.publish()
    house.hub.take_turns(small_steps.now + 1)
    subscriptions = house.hub.account("acct_a").subscriptions
    listener = house.listeners["b"]
    subscriptions.leave(listener)
    listener.position = 1  # fed from the log
    subscriptions.join(listener)
    assert listener.state is State.LIVE
    house.run()
    assert [name for name, _ in house.written] == ["a", "c"]


async def test_what_the_window_has_no_room_for_stays_until_it_is_delivered():
    house = House()
    house.hub = Hub(ReplayBuffers(ReplayConfig(max_events_per_account=1), b"sixteen bytes..."))
    house.engine = memory_engine(house.hub._buffers, house.hub)
    house.listen("a")
    house.publish(number=700)
    frames = house.frames()
    house.run()
    assert b"".join(data for _, data in house.written) == b"".join(frames)
    assert len(house.frames()) == 1


# --- places ------------------------------------------------------------------


async def test_publishers_wait_when_the_fan_out_is_behind_and_go_on_when_it_has_delivered(autojump_clock):
    house = House()
    assert [house.publish() for _ in range(MAX_PLACES + 1)] == [True] * MAX_PLACES + [False]
    order = []

    async def publish(number):
        with await house.hub.account("acct_a").places.take(1):
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(publish, number)
            await trio.testing.wait_all_tasks_blocked()
        assert order == []
        assert not house.publish(), "nobody goes before those who wait"
        house.run()
    assert sorted(order) == [0, 1, 2]
    assert all(house.publish() for _ in range(MAX_PLACES))


async def test_a_publisher_that_is_cancelled_while_it_waits_takes_no_place():
    house = House()
    for _ in range(MAX_PLACES):
        house.publish()
    account = house.hub.account("acct_a")
    with trio.CancelScope() as scope:
        scope.cancel()
        await account.places.take(1)
    assert scope.cancelled_caught
    house.run()
    assert all(account.places.take_nowait(1) for _ in range(MAX_PLACES))
    assert account.places.take_nowait(1) is None


async def test_a_place_is_given_back_when_nothing_was_stored_even_by_a_failure():
    account = House().hub.account("acct_a")
    for _ in range(3 * MAX_PLACES):
        with pytest.raises(ValueError, match="no"), await account.places.take(1):
            raise ValueError("no")


async def test_a_place_is_held_until_the_last_of_its_events_is_delivered(small_steps):
    house = House()
    for _ in range(MAX_PLACES):
        house.publish(number=4)
    house.listen("a")
    assert house.hub.account("acct_a").places.take_nowait(1) is None
    house.hub.take_turns(small_steps.now)
    house.hub.take_turns(small_steps.now)
    assert house.hub.account("acct_a").places.take_nowait(1) is not None


# --- the task, and what is kept ----------------------------------------------


async def test_the_task_delivers_whenever_it_is_woken_and_rests_else(autojump_clock, nursery):
    house = House()
    house.listen("a")
    nursery.start_soon(house.hub.deliver)
    for number in range(3):
        await trio.testing.wait_all_tasks_blocked()
        assert len(house.written) == number
        house.publish()
    await trio.testing.wait_all_tasks_blocked()
    assert len(house.written) == 3


async def test_one_can_wait_until_everybody_has_been_written_to(autojump_clock, nursery, small_steps):
    house = House()
    for name in "abc":
        house.listen(name)
    house.publish(number=2)
    account = house.hub.account("acct_a")
    passed = []

    async def wait():
        await account.passed(2)
        passed.append(len(house.written))

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    house.hub.take_turns(small_steps.now + 1)
    await trio.testing.wait_all_tasks_blocked()
    assert passed == [], "a broadcast that is under way has not passed"
    house.run()
    await trio.testing.wait_all_tasks_blocked()
    assert passed == [3]
    await account.passed(2)


async def test_nothing_is_kept_of_an_account_that_nobody_uses_and_whose_events_are_long_gone(mock_clock):
    house = House()
    house.publish()
    account = house.hub.account("acct_a")

    def forget() -> bool:
        while house.hub._buffers.forget(trio.current_time()):
            pass
        house.hub.forget(trio.current_time(), most=10)
        return not house.hub.accounts()

    assert not forget(), "its events wait to be delivered"
    house.run()
    assert not forget(), "the window holds an event"
    mock_clock.jump(301)
    house.hub._buffers.expire(trio.current_time(), most=10)
    mock_clock.jump(3_000)
    assert not forget(), "positions are known for an hour"
    mock_clock.jump(1_000)
    account.uses += 1
    assert not forget(), "a connection uses it"
    account.uses -= 1
    group = account.subscriptions.groups.hold(EVERYTHING, None)
    assert not forget(), "somebody listens"
    account.subscriptions.groups.release(group)
    assert forget()
    again = house.hub.account("acct_a")
    assert again is not account
    assert again.buffer.head == again.subscriptions.position == 1


async def test_statistics_say_what_was_done_and_what_waits(small_steps):
    house = House()
    for name in "ab":
        house.listen(name)
    house.listen("c", "acct_b")
    house.publish()
    statistics = house.hub.statistics()
    assert (statistics.accounts, statistics.live, statistics.queued_accounts, statistics.delivered) == (2, 3, 1, 0)
    house.run()
    statistics = house.hub.statistics()
    assert (statistics.queued_accounts, statistics.delivered, statistics.fell_behind) == (0, 2, 0)
