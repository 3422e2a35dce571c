"""session.py: the rules that a client can see, one by one. (The state machine of test_hub.py mixes them.)"""

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import append, make_buffer, prepared, wall_at
from streams import TEXT, room, take_frames

import broker.transport.session
from broker.access.keys import Key, inbox_ids_of
from broker.access.opening import NAME_BYTES, USUAL_BYTES, check_opening
from broker.budget import Held, of_names
from broker.commands.requests import CommandRequest, PublishRequest
from broker.config import Config, LimitsConfig, ReplayConfig
from broker.errors import CloseCode, RequestError
from broker.fanout.acknowledged import Acknowledged
from broker.fanout.listeners import Listener
from broker.fanout.subscriptions import Subscriptions
from broker.log.archive import Kept, Page, Reach, Reached
from broker.protocol.decoding import prove_command
from broker.protocol.documents import at_once
from broker.protocol.messages import Command
from broker.protocol.selection import Selection
from broker.transport.session import MAX_BAD_FRAMES, MAX_REPLAYS, MAX_WAITING_ANSWER_BYTES, Session, SubscribeRequest

ALL_SCOPES = frozenset({"subscribe", "command", "publish"})
NOW = 1_000.0
MOST_HEARD = 10_000_000
NO_COMMANDS = ["", "no json", "[1]", "7", "null", "{}", '{"action":7}', '{"action":"ä"}', '{"action":null}', b"\x00"]


def key_of(*scopes: str, inbox_ids: set[str] | None = None) -> Key:
    reach = None if inbox_ids is None else frozenset(inbox_ids)
    return Key("key_a", "acct_a", frozenset(scopes) if scopes else ALL_SCOPES, reach)


@dataclass
class Talk:
    """One session over an empty account; what it says is decoded."""

    key: Key = field(default_factory=key_of)
    query: dict[str, str] = field(default_factory=dict)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    held: Held = field(default_factory=room)
    stored: str = ""
    """Inboxes of events that are there before; a space: an account event."""

    def __post_init__(self) -> None:
        self.buffer = make_buffer()
        self.subscriptions = Subscriptions(0)
        self.publish(self.stored)
        config = Config(limits=self.limits, replay=ReplayConfig(seconds=300))
        opening = check_opening(self.key, self.query, self.limits)
        self.listener = Listener(len, lambda: None)
        self.session = Session(
            self.key,
            config,
            self.buffer,
            self.subscriptions,
            self.listener,
            opening,
            "conn_1",
            Acknowledged(),
            self.held,
        )

    def publish(self, inboxes: str, event_type: str = "x") -> None:
        """Store and deliver events, one a second, up to now."""
        for inbox in inboxes:
            position = self.buffer.head + 1
            entry = append(
                self.buffer,
                prepared(f"e{position}", inbox.strip(), event_type=event_type),
                position,
                NOW - 100 + position,
            )
            self.buffer.delivered = position
            self.subscriptions.advance([entry])
            self.subscriptions.settle()

    def drop(self, number: int) -> None:
        for _ in range(number):
            self.buffer.drop_first(NOW)

    def cursor(self, position: int) -> str:
        return self.buffer.cursor_at(position)

    def heard(self) -> list[dict]:
        """Everything that waits to be written, up to where the client is live."""
        wire = bytearray()
        while (frames := self.session.take()) is not None:
            wire += frames
            assert len(wire) < MOST_HEARD, "it says the same again and again"
        found = [json.loads(payload) for opcode, payload in take_frames(wire) if opcode == TEXT]
        assert not wire
        return found

    def open(self) -> dict:
        """Open, and return `connection.ready` (what follows it waits)."""
        self.session.open(NOW)
        ready, *self.later = self.heard()
        return ready

    def say(self, message: str | bytes | dict):
        """Say something; return what is to be done elsewhere."""
        text = json.dumps(message) if isinstance(message, dict) else message
        return self.session.receive(text, NOW, wall_at(NOW))

    def ask(self, action: str, **params) -> dict:
        """Give a command and return its answer; what follows that is in ``later``."""
        assert self.say({"action": action, "request_id": "r1"} | params) is None
        answer, *self.later = self.heard()
        assert (answer["type"], answer["request_id"], answer["action"]) == ("response", "r1", action)
        return answer

    def error(self, action: str, **params) -> tuple[str, str]:
        error = self.ask(action, **params)["error"]
        return error["code"], error["message"]


def opened(**fields) -> Talk:
    talk = Talk(**fields)
    talk.open()
    return talk


def ids(frames: list[dict]) -> list[str]:
    return [frame["event_id"] for frame in frames]


# --- opening


def test_the_first_frame_says_who_and_where_the_client_is_and_what_the_limits_are():
    talk = Talk(stored="ab")
    assert talk.open() == {
        "type": "connection.ready",
        "connection_id": "conn_1",
        "account_id": "acct_a",
        "inbox_ids": [],
        "cursor": talk.cursor(2),
        "heartbeat_seconds": 30,
        "replay_seconds": 300,
        "limits": {
            "max_message_bytes": 1_048_576,
            "max_event_bytes": 262_144,
            "max_inboxes": 10_000,
            "max_event_types": 100,
            "max_events_per_request": 10_000,
            "commands_per_second": None,
        },
    }
    assert talk.later == []


@pytest.mark.parametrize(
    ("inbox_ids", "reach", "held"),
    [
        (None, None, []),
        ("b,a,b", None, ["a", "b"]),
        ("*", None, ["*"]),
        ("*,a", None, ["*"]),
        (None, {"b", "a"}, ["a", "b"]),
        ("*", {"b", "a"}, ["a", "b"]),
        ("b", {"b", "a"}, ["b"]),
    ],
)
def test_an_opening_holds_what_it_asks_for_and_an_inbox_key_all_its_inboxes(inbox_ids, reach, held):
    query = {} if inbox_ids is None else {"inbox_ids": inbox_ids}
    assert Talk(key=key_of(inbox_ids=reach), query=query).open()["inbox_ids"] == held


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"query": {"inbox_ids": "c"}, "key": key_of(inbox_ids={"a"})}, "forbidden", "`inbox_ids[0]`"),
        ({"query": {"inbox_ids": "a"}, "key": key_of("publish")}, "forbidden", "`subscribe`"),
        ({"query": {"since": "5m"}, "key": key_of("command")}, "forbidden", "`subscribe`"),
        ({"key": Key("op", None, frozenset({"publish"}))}, "forbidden", "operator"),
        ({"query": {"inbox_ids": ""}}, "bad_request", "inbox_ids[0]"),
        ({"query": {"inbox_ids": "a,b c"}}, "bad_request", "inbox_ids[1]"),
        (
            {"query": {"inbox_ids": "a,b,c"}, "limits": LimitsConfig(max_inboxes_per_connection=2)},
            "bad_request",
            "2 inb",
        ),
        ({"query": {"event_types": "a,.b"}}, "bad_request", "event_types[1]"),
        ({"query": {"event_types": "*"}}, "bad_request", "event_types[0]"),
        ({"query": {"event_types": "a" + ",a" * 100}}, "bad_request", "More than 100 event types - at `event_types`"),
    ],
)
def test_an_opening_that_may_not_be_is_refused_and_says_why(fields, code, said):
    with pytest.raises(RequestError) as refused:
        Talk(**fields)
    assert refused.value.code == code
    assert said in refused.value.message


def test_without_the_scope_subscribe_a_stream_opens_and_gets_no_event():
    talk = Talk(key=key_of("publish", "command"), stored="a")
    assert talk.open()["inbox_ids"] == []
    talk.publish("a b")
    assert talk.heard() == []


def test_the_accounts_own_events_come_to_all_but_inbox_keys_whatever_is_subscribed():
    anybody, inbox_key = Talk(), Talk(key=key_of(inbox_ids={"a"}))
    for talk in (anybody, inbox_key):
        talk.session.open(NOW)
        talk.publish(" ")
    assert ids(anybody.heard()[1:]) == ["e1"]
    assert inbox_key.heard()[1:] == []


def test_a_client_gets_what_is_published_from_its_opening_on_even_before_ready_is_written():
    talk = Talk(query={"inbox_ids": "a"}, stored="a")
    talk.session.open(NOW)
    talk.publish("ab")
    ready, *events = talk.heard()
    assert ready["cursor"] == talk.cursor(1)
    assert ids(events) == ["e2"]


def test_with_since_ready_says_where_the_replay_starts_and_how_many_events_come():
    talk = Talk(query={"inbox_ids": "a"}, stored="abaa")
    talk.query["since"] = talk.cursor(1)
    talk = Talk(query=talk.query, stored="abaa")
    ready = talk.open()
    assert ready["cursor"] == talk.cursor(1)
    assert ready["replay"] == {"recovered": True, "count": 2}
    assert ids(talk.later) == ["e3", "e4"]
    assert [frame["cursor"] for frame in talk.later] == [talk.cursor(3), talk.cursor(4)]


@pytest.mark.parametrize(("since", "count"), [("100s", 4), ("98s", 3), ("97500ms", 2), ("0s", 0)])
def test_since_a_duration_replays_what_is_not_older(since, count):
    talk = Talk(query={"inbox_ids": "a", "since": since}, stored="aaaa")  # stored 99 to 96 seconds ago
    assert talk.open()["replay"] == {"recovered": True, "count": count}
    assert len(talk.later) == count


def test_the_count_is_made_before_the_filter_which_holds_for_replayed_events_too():
    talk = Talk(query={"inbox_ids": "a", "since": "5m", "event_types": "y,z.*"}, stored="aa")
    talk.publish("a", "y")
    talk.publish("a", "z.z")
    talk = Talk(query=talk.query, stored="aa")
    assert talk.open()["replay"]["count"] == 2
    assert talk.later == []


@pytest.mark.parametrize("since", ["cnothing.1", "nonsense", "-5m", " "])
def test_an_unknown_cursor_is_not_recovered_and_a_gap_from_nowhere_is_the_very_next_frame(since):
    talk = Talk(query={"inbox_ids": "a", "since": since}, stored="aab")
    talk.drop(1)
    ready = talk.open()
    assert ready["replay"] == {"recovered": False, "count": 1}
    gap, *events = talk.later
    assert gap == {"type": "replay.gap", "from": None, "to": talk.cursor(1), "count": None}
    assert ids(events) == ["e2"]


def test_a_cursor_beyond_the_window_is_not_recovered_and_the_gap_is_counted():
    talk = Talk(query={"inbox_ids": "a", "since": "cursor"}, stored="abaaa")
    talk.drop(4)
    talk.session._since = talk.cursor(1)
    ready = talk.open()
    assert ready["replay"] == {"recovered": False, "count": 1}
    assert talk.later[0] == {"type": "replay.gap", "from": talk.cursor(1), "to": talk.cursor(4), "count": 2}
    assert ids(talk.later[1:]) == ["e5"]


def test_a_duration_is_recovered_unless_an_event_younger_than_that_was_dropped():
    query = {"inbox_ids": "a", "since": "98s"}
    for dropped, recovered in ((1, True), (2, False)):  # stored 99 and 98 seconds ago
        talk = Talk(query=query, stored="aaa")
        talk.drop(dropped)
        assert talk.open()["replay"]["recovered"] is recovered


# --- subscribe and unsubscribe


def test_subscribing_takes_effect_at_the_answers_cursor():
    talk = opened(stored="aa")
    assert talk.ask("subscribe", inbox_ids=["a"])["result"] == {"inbox_ids": ["a"], "cursor": talk.cursor(2)}
    assert talk.later == []
    talk.session.follower.pause()
    talk.publish("ab")
    assert ids(talk.heard()) == ["e3"]


def test_each_answer_says_the_whole_set_that_is_held_sorted():
    talk = opened()
    for asked, held in ((["b"], ["b"]), (["a", "b"], ["a", "b"]), ("*", ["*"]), (["c"], ["*"])):
        assert talk.ask("subscribe", inbox_ids=asked)["result"]["inbox_ids"] == held
    assert talk.ask("unsubscribe", inbox_ids="*")["result"]["inbox_ids"] == []


def test_a_bare_subscribe_is_for_all_that_the_key_reaches():
    talk = opened(query={"inbox_ids": "a"})
    assert talk.ask("subscribe")["result"]["inbox_ids"] == ["*"]
    talk = opened(key=key_of(inbox_ids={"a", "b"}), query={"inbox_ids": "a"})
    assert talk.ask("subscribe")["result"]["inbox_ids"] == ["a", "b"]


@pytest.mark.parametrize("said", [{"inbox_ids": []}, {"event_types": ["x.*"]}, {"since": "5m"}])
def test_a_subscribe_that_says_anything_adds_only_the_inboxes_it_names(said):
    assert opened(query={"inbox_ids": "a"}).ask("subscribe", **said)["result"]["inbox_ids"] == ["a"]


@pytest.mark.parametrize("name", ["inbox_id", "inbox", "inboxes", "inboxId", "inboxIds"])
@pytest.mark.parametrize("said", [{}, {"since": "5m"}])
def test_a_subscribe_that_misspells_its_inboxes_is_not_taken_for_one_of_all(name, said):
    talk = opened(query={"inbox_ids": "a"})
    code, message = talk.error("subscribe", **said, **{name: "b"})
    assert code == "invalid_params"
    assert "`inbox_ids`" in message
    assert f"`$.{name}`" in message
    assert talk.ask("subscribe", inbox_ids=[])["result"]["inbox_ids"] == ["a"]


@pytest.mark.parametrize(("name", "right"), [("event_type", "event_types"), ("cursor", "since"), ("after", "since")])
def test_a_subscribe_that_misspells_what_narrows_it_is_not_taken_for_a_bare_one(name, right):
    talk = opened(query={"inbox_ids": "a"})
    code, message = talk.error("subscribe", **{name: "c1"})
    assert (code, f"`{right}`" in message, f"`$.{name}`" in message) == ("invalid_params", True, True)
    assert talk.ask("subscribe", inbox_ids=[])["result"]["inbox_ids"] == ["a"]


@pytest.mark.parametrize("nested", [False, True])
def test_an_answers_result_with_since_is_a_subscribe(nested):
    """A client that comes back says what it holds: `{...result, since: result.cursor}`."""
    talk = opened(query={"inbox_ids": "a"})
    result = talk.ask("subscribe", inbox_ids=["b"])["result"]
    said = {**result, "since": result["cursor"], "types": ["x"], "event_types": ["y"], "inbox": "c"}
    answer = talk.ask("subscribe", **({"params": said} if nested else said))
    assert answer["result"]["inbox_ids"] == ["a", "b"]


@pytest.mark.parametrize(("name", "right"), [("cursor", "since"), ("types", "event_types")])
def test_a_right_name_that_is_null_makes_no_other_one_right(name, right):
    code, message = opened().error("subscribe", inbox_ids=["a"], **{right: None, name: "c1"})
    assert (code, message) == ("invalid_params", f"The name is `{right}` - at `$.{name}`")


def test_the_inboxes_of_an_answer_are_sorted_once_for_each_selection(monkeypatch):
    """An empty subscribe may come as often as one likes, on a connection with 9,999 inboxes."""
    sorted_for = []

    def noted(selection):
        sorted_for.append(selection)
        return inbox_ids_of(selection)

    monkeypatch.setattr(broker.transport.session, "inbox_ids_of", noted)
    talk = opened(query={"inbox_ids": "b,a"})
    for _ in range(3):
        assert talk.ask("subscribe", inbox_ids=[])["result"]["inbox_ids"] == ["a", "b"]
        assert talk.ask("subscribe", inbox_ids=["a"], event_types=["x"])["result"]["inbox_ids"] == ["a", "b"]
        assert talk.ask("unsubscribe", inbox_ids=[])["result"]["inbox_ids"] == ["a", "b"]
    assert len(sorted_for) <= 2
    assert talk.ask("subscribe", inbox_ids=["c"])["result"]["inbox_ids"] == ["a", "b", "c"]


def test_everything_that_an_inbox_key_reaches_is_its_own_inboxes_by_name():
    talk = opened(key=key_of(inbox_ids={"a", "b"}), query={"inbox_ids": "a"})
    assert talk.ask("subscribe", inbox_ids=["*"])["result"]["inbox_ids"] == ["a", "b"]
    assert talk.ask("unsubscribe", inbox_ids=["b"])["result"]["inbox_ids"] == ["a"]
    assert talk.ask("unsubscribe", inbox_ids=["*"])["result"]["inbox_ids"] == []


def test_after_unsubscribing_no_event_of_that_inbox_comes_though_it_was_published_before():
    talk = opened(query={"inbox_ids": "a,b"})
    talk.session.follower.pause()
    talk.publish("ab a")
    assert talk.ask("unsubscribe", inbox_ids=["a", "never_held"])["result"]["inbox_ids"] == ["b"]
    assert ids(talk.later) == ["e2", "e3"]


def test_a_since_without_a_value_is_no_since_and_is_named():
    talk = Talk(stored="a")
    talk.open()
    for command in ({"since": ""}, {"params": {"since": ""}}):
        code, message = talk.error("subscribe", inbox_ids=["a"], **command)
        assert code == "invalid_params"
        assert "since`" in message
    assert talk.ask("subscribe", inbox_ids=["a"], since=None)["result"]["inbox_ids"] == ["a"]


def test_under_everything_a_single_inbox_cannot_be_unsubscribed():
    talk = opened(query={"inbox_ids": "*"})
    code, message = talk.error("unsubscribe", inbox_ids=["a"])
    assert code == "invalid_params"
    assert "`$.inbox_ids`" in message
    assert talk.ask("subscribe")["result"]["inbox_ids"] == ["*"]


def test_the_answer_comes_before_what_it_replays_and_only_what_is_added_is_replayed():
    talk = opened(query={"inbox_ids": "a"}, stored="abab")
    result = talk.ask("subscribe", inbox_ids=["a", "b"], since=talk.cursor(1))["result"]
    assert result == {
        "inbox_ids": ["a", "b"],
        "cursor": talk.cursor(1),
        "replay": {"recovered": True, "count": 2},
    }
    assert ids(talk.later) == ["e2", "e4"]


def test_newer_events_wait_until_a_replay_is_through():
    talk = opened(query={"inbox_ids": "a"}, stored="bb")
    talk.say({"action": "subscribe", "inbox_ids": ["b"], "since": "5m"})
    talk.publish("ab")
    _, *events = talk.heard()
    assert ids(events) == ["e1", "e2", "e3", "e4"]


def test_a_replay_beyond_the_window_is_followed_by_its_gap():
    talk = opened(stored="bab")
    talk.drop(2)
    result = talk.ask("subscribe", inbox_ids=["b"], since=talk.cursor(0))["result"]
    assert result["replay"] == {"recovered": False, "count": 1}
    assert talk.later[0] == {"type": "replay.gap", "from": talk.cursor(0), "to": talk.cursor(2), "count": 1}
    assert ids(talk.later[1:]) == ["e3"]


def test_with_a_replay_under_way_no_answer_tells_a_cursor_ahead_of_it():
    talk = opened(stored="bbbb")
    talk.say({"action": "subscribe", "inbox_ids": ["b"], "since": talk.cursor(1), "request_id": "r0"})
    talk.say({"action": "subscribe", "inbox_ids": ["c"], "request_id": "r1"})
    talk.say({"action": "unsubscribe", "inbox_ids": ["c"], "request_id": "r2"})
    talk.say({"action": "subscribe", "inbox_ids": ["d"], "since": talk.cursor(3), "request_id": "r3"})
    frames = talk.heard()
    assert [frame["result"]["cursor"] for frame in frames[:4]] == [talk.cursor(1)] * 4
    assert ids(frames[4:]) == ["e2", "e3", "e4"]


def test_what_a_replay_lost_meanwhile_is_said_before_a_newer_answer():
    talk = opened(stored="bbbc")
    talk.say({"action": "subscribe", "inbox_ids": ["b"], "since": talk.cursor(0)})
    talk.drop(2)
    talk.say({"action": "subscribe", "inbox_ids": ["c"], "since": "nonsense"})
    kinds = [(frame["type"], frame.get("count")) for frame in talk.heard()]
    assert kinds == [
        ("response", None),
        ("replay.gap", 2),
        ("response", None),
        ("replay.gap", None),
        ("x", None),
        ("x", None),
    ]


def test_event_types_replace_the_filter_for_everything_that_comes_after_the_answer():
    talk = opened(query={"inbox_ids": "a", "event_types": "x"})
    talk.session.follower.pause()
    talk.publish("a", "x")
    talk.publish("a", "y")
    talk.ask("subscribe", event_types=["y"])
    assert ids(talk.later) == ["e2"]
    talk.session.follower.pause()
    talk.publish("a", "y")
    talk.ask("subscribe", inbox_ids=["b"])
    assert ids(talk.later) == ["e3"], "without event_types the filter stays"
    talk.session.follower.pause()
    talk.publish("a", "x")
    assert talk.heard() == []


def events_among(frames: list[dict]) -> list[str]:
    return [frame["event_id"] for frame in frames if "event_id" in frame]


def test_a_replay_under_way_brings_nothing_more_of_what_is_unsubscribed():
    talk = opened(stored="bcbc")
    talk.say({"action": "subscribe", "inbox_ids": ["b", "c"], "since": talk.cursor(0)})
    talk.say({"action": "unsubscribe", "inbox_ids": ["c"]})
    assert events_among(talk.heard()) == ["e1", "e3"]


def test_a_replay_under_way_brings_nothing_more_of_what_the_key_does_not_reach():
    talk = opened(stored="bcbc")
    talk.say({"action": "subscribe", "inbox_ids": ["b", "c"], "since": talk.cursor(0)})
    talk.session.change_key(key_of(inbox_ids={"b"}))
    assert events_among(talk.heard()) == ["e1", "e3"]


def test_an_inbox_that_is_added_while_a_replay_is_under_way_comes_from_the_cursor_of_its_answer():
    talk = opened(stored="bcbc")
    talk.say({"action": "subscribe", "inbox_ids": ["b"], "since": talk.cursor(1)})
    talk.say({"action": "subscribe", "inbox_ids": ["c"]})
    frames = talk.heard()
    assert frames[1]["result"]["cursor"] == talk.cursor(1)
    assert events_among(frames) == ["e2", "e3", "e4"]


def test_who_unsubscribes_from_everything_still_gets_the_accounts_own_events():
    talk = opened(query={"inbox_ids": "a"})
    talk.ask("unsubscribe", inbox_ids="*")
    talk.session.follower.pause()
    talk.publish("a ")
    assert ids(talk.heard()) == ["e2"]


def test_acked_needs_a_client_id():
    code, message = opened().error("subscribe", inbox_ids=["a"], since="acked")
    assert code == "invalid_params"
    assert "`client_id`" in message
    assert "`$.since`" in message


def test_answers_and_gaps_that_are_said_are_counted():
    talk = opened(stored="bb")
    talk.drop(1)
    talk.ask("subscribe", inbox_ids=["b"], since=talk.cursor(0))
    talk.ask("ping")
    assert (talk.session.answered, talk.session.gaps) == (2, 1)


def test_a_key_that_reaches_less_is_said_and_one_that_reaches_more_is_not():
    talk = opened(key=key_of(inbox_ids={"a", "b"}))
    talk.session.change_key(key_of(inbox_ids={"a"}))
    assert [(frame["type"], frame["inbox_ids"]) for frame in talk.heard()] == [("connection.updated", ["a"])]
    talk.session.change_key(key_of(inbox_ids={"a", "b", "c"}))
    assert talk.heard() == []


@pytest.mark.parametrize(
    ("fields", "params", "code", "said"),
    [
        ({"key": key_of("publish", "command")}, {"inbox_ids": ["a"]}, "forbidden", "`subscribe`"),
        ({"key": key_of(inbox_ids={"a"})}, {"inbox_ids": ["a", "b"]}, "forbidden", "`$.inbox_ids[1]`"),
        ({"key": key_of(inbox_ids={"a"})}, {"params": {"inbox_ids": ["b"]}}, "forbidden", "`$.params.inbox_ids[0]`"),
        ({}, {"inbox_ids": [""]}, "invalid_params", "`$.inbox_ids[0]`"),
        ({}, {"inbox_ids": "a"}, "invalid_params", "`$.inbox_ids`"),
        ({}, {"inbox_ids": ["a", 7]}, "invalid_params", "`$.inbox_ids[1]`"),
        ({}, {"since": 7}, "invalid_params", "`$.since`"),
        ({}, {"event_types": []}, "invalid_params", "`$.event_types`"),
        ({}, {"event_types": ["A"]}, "invalid_params", "`$.event_types[0]`"),
        ({"limits": LimitsConfig(max_inboxes_per_connection=2)}, {"inbox_ids": list("abc")}, "invalid_params", "2 inb"),
        ({}, {"event_types": ["a"] * 101}, "invalid_params", "100 event types - at `$.event_types`"),
        ({}, {"params": {"event_types": ["A"] * 101}}, "invalid_params", "100 event types - at `$.params.event_types`"),
    ],
)
def test_a_subscribe_that_may_not_be_changes_nothing_and_names_what_is_wrong(fields, params, code, said):
    talk = opened(**fields)
    before = talk.session.follower.selection
    found, message = talk.error("subscribe", **params)
    assert found == code
    assert said in message
    assert talk.session.follower.selection == before


def test_unsubscribing_needs_inbox_ids_and_the_scope():
    assert opened().error("unsubscribe")[0] == "invalid_params"
    assert opened(key=key_of("publish")).error("unsubscribe", inbox_ids=["a"])[0] == "forbidden"


def test_an_inbox_key_of_more_inboxes_than_a_connection_may_hold_can_still_change_its_filter():
    limits = LimitsConfig(max_inboxes_per_connection=1)
    talk = opened(key=key_of(inbox_ids={"a", "b"}), limits=limits)
    assert talk.ask("subscribe", event_types=["x"])["result"]["inbox_ids"] == ["a", "b"]
    assert talk.ask("unsubscribe", inbox_ids=["a"])["result"]["inbox_ids"] == ["b"]
    assert talk.error("subscribe", inbox_ids=["a"])[0] == "invalid_params"


def test_a_filter_of_as_many_types_as_it_may_have_is_taken():
    limits = LimitsConfig(max_event_types=3)
    types = ["a", "b.*", "c"]
    talk = opened(limits=limits, query={"event_types": ",".join(types)})
    assert talk.ask("subscribe", inbox_ids=["a"], event_types=types)["result"]["inbox_ids"] == ["a"]
    assert talk.error("subscribe", event_types=[*types, "d"])[0] == "invalid_params"


def test_a_list_that_is_too_long_is_refused_before_its_names_are_looked_at(monkeypatch):
    decoded = []
    monkeypatch.setattr("broker.transport.session.decode_params", lambda *given: decoded.append(given))
    talk = opened(limits=LimitsConfig(max_inboxes_per_connection=10))
    for action, name in (("subscribe", "inbox_ids"), ("subscribe", "event_types"), ("unsubscribe", "inbox_ids")):
        code, message = talk.error(action, **{name: ["x"] * 1_000})
        assert (code, f"`$.{name}`" in message) == ("invalid_params", True)
    assert not decoded


def test_who_holds_more_inboxes_than_a_connection_may_add_can_name_them_all():
    talk = opened(key=key_of(inbox_ids={"a", "b", "c"}), limits=LimitsConfig(max_inboxes_per_connection=1))
    assert talk.ask("subscribe", inbox_ids=["a", "b", "c"])["result"]["inbox_ids"] == ["a", "b", "c"]
    assert talk.ask("unsubscribe", inbox_ids=["a", "b", "c"])["result"]["inbox_ids"] == []


@given(since=st.text(min_size=1, max_size=300))
def test_whatever_since_is_it_is_answered(since):
    talk = opened(stored="aab")
    for text in (since, talk.cursor(0)[:-1] + since):
        talk.ask("unsubscribe", inbox_ids=["a"])
        answer = talk.ask("subscribe", inbox_ids=["a"], since=text)
        assert answer["result"]["replay"]["recovered"] in (True, False)


# --- frames and commands


def test_parameters_stand_at_the_top_level_or_in_params():
    for command in ({"inbox_ids": ["a"]}, {"params": {"inbox_ids": ["a"]}}, {"inbox_ids": ["a"], "params": None}):
        assert opened().ask("subscribe", **command)["result"]["inbox_ids"] == ["a"]
    mixed = {"inbox_ids": ["a"], "params": {"since": "5m"}}
    assert "replay" in opened().ask("subscribe", **mixed)["result"]


def test_a_name_in_both_places_is_refused():
    code, message = opened().error("subscribe", inbox_ids=["a"], params={"inbox_ids": ["b"]})
    assert code == "invalid_params"
    assert "`$.params.inbox_ids`" in message


def test_unknown_fields_are_ignored():
    assert "result" in opened().ask("subscribe", inbox_ids=["a"], colour="blue")


def test_a_command_without_a_request_id_gets_one_each():
    talk = opened()
    for said in ({"action": "ping"}, {"action": "ping", "request_id": None}, {"action": "ping", "params": 7}):
        talk.say(said)
    made = [frame["request_id"] for frame in talk.heard()]
    assert len(set(made)) == 3
    assert all(request_id.startswith("conn_1.") for request_id in made)


def test_a_ping_is_answered_with_the_time_whatever_the_key_may():
    assert opened(key=key_of("publish")).ask("ping")["result"] == {"server_time": "2026-11-23T10:16:40.000Z"}


@pytest.mark.parametrize("message", NO_COMMANDS)
def test_a_frame_that_is_no_command_is_answered_and_the_connection_lives(message):
    talk = opened()
    assert talk.say(message) is None
    (frame,) = talk.heard()
    assert frame["type"] == "error"
    assert frame["error"]["code"] in ("invalid_json", "invalid_params")
    assert "result" in talk.ask("ping")


def test_after_20_frames_in_a_row_that_are_no_commands_the_connection_is_closed():
    talk = opened()
    assert MAX_BAD_FRAMES == 20
    assert [talk.say("no json") for _ in range(20)] == [None] * 19 + [CloseCode.TOO_MANY_BAD_FRAMES]
    assert len(talk.heard()) == 20


@pytest.mark.parametrize("good", ['{"action":"ping"}', '{"action":"subscribe"}', '{"action":"ping","request_id":7}'])
def test_any_command_starts_the_count_of_bad_frames_anew_even_one_that_is_refused(good):
    talk = opened()
    for _ in range(3):
        assert [talk.say("no json") for _ in range(19)] == [None] * 19
        assert talk.say(good) is None


@given(message=st.one_of(st.text(max_size=60), st.binary(max_size=60), st.dictionaries(st.text(), st.text())))
def test_whatever_a_client_says_is_answered(message):
    talk = opened()
    talk.say(message)
    (frame,) = talk.heard()
    assert frame["type"] in ("error", "response")


def test_an_action_of_the_deployment_is_handed_on_for_those_who_may_command():
    request = opened().say({"action": "send_email", "request_id": "r1", "inbox_id": "a", "to": ["x"]})
    assert isinstance(request, CommandRequest)
    assert (request.command.action, request.request_id, request.inbox_id) == ("send_email", "r1", "a")
    assert [*request.command.params] == ["to"]
    assert opened(key=key_of("subscribe", "publish")).error("send_email")[0] == "forbidden"


@pytest.mark.parametrize(("nested", "path"), [(False, "$.events"), (True, "$.params.events")])
def test_a_publish_is_handed_on_as_it_stands(nested, path):
    events = '[{"type": "x",  "payload": {"n": 1.0}}]'
    params = f'"params":{{"events":{events}}}' if nested else f'"events":{events}'
    talk = opened()
    request = talk.say(f'{{"action":"publish","request_id":"r1",{params}}}')
    assert isinstance(request, PublishRequest)
    assert (request.request.request_id, request.raw, request.path) == ("r1", events.encode(), path)
    assert talk.heard() == [], "it is answered when it is done"


def test_publishing_needs_the_scope_and_events():
    assert opened(key=key_of("subscribe")).error("publish", events=[])[0] == "forbidden"
    code, message = opened().error("publish")
    assert code == "invalid_params"
    assert "`events`" in message


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", ["inbox_id", "inbox_ids", "inbox", "inboxId"])
def test_an_inbox_beside_the_events_of_a_publish_does_not_make_them_the_accounts(name, nested):
    said = {"events": [{"type": "x", "payload": {}}], name: "a"}
    code, message = opened().error("publish", **({"params": said} if nested else said))
    assert code == "invalid_params"
    assert f"`$.{'params.' if nested else ''}{name}`" in message


def test_a_publish_that_names_no_inbox_beside_its_events_by_null_is_taken():
    request = opened().say('{"action":"publish","events":[],"inbox_id":null}')
    assert isinstance(request, PublishRequest)


def test_a_publish_whose_request_id_is_misspelt_is_not_taken_for_one_without():
    talk, said = opened(), {"action": "publish", "events": [], "requestId": "r2"}
    assert talk.say(said) is None
    [answer] = talk.heard()
    error = {"code": "invalid_params", "message": "The name is `request_id` - at `$.requestId`"}
    assert answer["error"] == error
    assert talk.say(said | {"request_id": "r1"}).request.request_id == "r1"


def test_a_publish_without_a_request_id_is_handed_on_with_one():
    assert opened().say('{"action":"publish","events":[]}').request.request_id == "conn_1.1"


# --- what waits to be written


def test_answers_are_written_before_events_and_in_their_order():
    talk = opened(query={"inbox_ids": "a"})
    talk.session.follower.pause()
    talk.publish("a")
    talk.say({"action": "ping", "request_id": "1"})
    talk.say({"action": "ping", "request_id": "2"})
    assert [frame.get("request_id", frame["type"]) for frame in talk.heard()] == ["1", "2", "x"]


def test_answers_that_could_not_be_written_come_again_before_newer_ones():
    talk = opened()
    talk.say({"action": "ping", "request_id": "1"})
    taken = talk.session.take_answers()
    assert talk.session.take_answers() == b""
    talk.say({"action": "ping", "request_id": "2"})
    talk.session.put_back(taken)
    assert [frame["request_id"] for frame in talk.heard()] == ["1", "2"]
    talk.session.put_back(b"")
    assert talk.session.take() is None


def test_answers_of_a_live_client_are_written_at_once_and_it_stays_live():
    talk = opened()
    talk.say({"action": "ping", "request_id": "1"})
    written: list[bytes] = []
    talk.session.flush(lambda data: written.append(data) or len(data))
    assert [json.loads(payload)["request_id"] for _, payload in take_frames(bytearray(b"".join(written)))] == ["1"]
    assert (talk.session.waiting_bytes, talk.session.follower.live) == (0, True)
    assert talk.heard() == []


def test_answers_that_a_live_client_does_not_take_wait_and_come_before_the_events_that_follow():
    talk = opened(query={"inbox_ids": "a"})
    talk.say({"action": "ping", "request_id": "1"})
    talk.session.flush(lambda _: 0)
    assert talk.session.waiting_bytes
    talk.publish("a")
    assert [frame.get("request_id", frame["type"]) for frame in talk.heard()] == ["1", "x"]


def test_answers_of_which_a_live_client_takes_a_part_do_not_come_twice_and_events_wait_behind_their_rest():
    talk = opened(query={"inbox_ids": "a"})
    talk.say({"action": "ping", "request_id": "1"})
    talk.session.flush(lambda data: len(data) - 1)
    assert (talk.session.waiting_bytes, talk.session.follower.live) == (0, False)
    talk.publish("a")
    assert ids(talk.heard()) == ["e1"]


def test_answers_of_a_client_that_is_behind_are_left_to_who_writes_to_it():
    talk = opened(query={"inbox_ids": "a"})
    talk.session.follower.pause()
    talk.say({"action": "ping", "request_id": "1"})
    written: list[bytes] = []
    talk.session.flush(lambda data: written.append(data) or len(data))
    assert written == []
    assert [frame["request_id"] for frame in talk.heard()] == ["1"]


def test_what_a_client_has_missed_while_it_was_behind_is_said_before_what_is_left_and_counted():
    talk = opened(query={"inbox_ids": "a"})
    talk.session.follower.pause()
    talk.publish("aaa")
    talk.drop(2)
    gap, event = talk.heard()
    assert (gap["type"], gap["count"], event["event_id"]) == ("replay.gap", 2, "e3")
    assert talk.session.gaps == 1


def test_a_client_that_takes_no_answers_is_not_read_from_until_it_does():
    talk = opened()
    said = 0
    while not talk.session.congested:
        talk.say("no json")
        talk.say({"action": "ping"})
        said += 1
        assert talk.session.waiting_bytes < 2 * MAX_WAITING_ANSWER_BYTES
    taken = talk.session.take_answers()
    assert len(taken) > MAX_WAITING_ANSWER_BYTES
    assert not talk.session.congested
    talk.session.put_back(taken)
    assert talk.session.congested
    assert len(talk.heard()) == 2 * said
    assert not talk.session.congested


def test_a_client_with_many_replays_under_way_is_not_read_from_until_some_have_met():
    talk = opened(stored="a" * 200)
    said = 0
    while not talk.session.congested:
        inbox = f"inbox_{said}"
        talk.say({"action": "subscribe", "request_id": "r", "inbox_ids": [inbox], "since": talk.cursor(said)})
        talk.session.take_answers()
        said += 1
        assert said <= MAX_REPLAYS + 1
    assert said == MAX_REPLAYS + 1
    talk.session.take()
    assert not talk.session.congested


def test_draining_is_said_before_the_rest():
    talk = opened(query={"inbox_ids": "a"})
    talk.session.follower.pause()
    talk.publish("a")
    talk.session.drain(1_500)
    said, event = talk.heard()
    assert said == {"type": "server.draining", "reconnect_after_ms": 1_500}
    assert event["event_id"] == "e1"


# --- heartbeats


def test_a_quiet_client_is_pinged_and_told_its_cursor_when_that_has_moved():
    talk = opened(query={"inbox_ids": "a"})
    talk.session.heartbeat()
    assert talk.session.take_answers() == b"\x89\x00"
    talk.publish("bb")
    talk.session.heartbeat()
    wire = bytearray(talk.session.take_answers())
    (ping, _), (_, payload) = take_frames(wire)
    assert ping == 0x89
    assert json.loads(payload) == {"type": "connection.cursor", "cursor": talk.cursor(2)}
    talk.session.heartbeat()
    assert talk.session.take_answers() == b"\x89\x00"


def test_a_client_that_is_being_fed_gets_no_ping():
    talk = opened(query={"inbox_ids": "a"})
    talk.session.follower.pause()
    talk.publish("b")
    talk.session.heartbeat()
    assert talk.session.take_answers() == b""


@pytest.mark.parametrize(
    ("silent", "unacknowledged", "overdue"),
    [
        (39, 39, False),
        (41, 41, True),
        (41, 1, False),  # it pauses while it thinks; its kernel still answers
        (1, 41, False),
        (339, 1, False),
        (341, 1, True),  # whatever its kernel says: its events are gone
        (41, None, True),  # where the kernel does not tell, reading decides
        (39, None, False),
    ],
)
def test_a_client_is_dead_when_neither_it_nor_its_kernel_was_heard_or_it_was_not_for_very_long(
    silent, unacknowledged, overdue
):
    session = Talk().session
    assert session.patience_seconds == 40
    assert session.overdue(silent, unacknowledged) is overdue


def test_a_closed_session_leaves_nothing_behind():
    talk = opened(query={"inbox_ids": "a", "event_types": "x"})
    assert talk.subscriptions.live == 1
    talk.session.close()
    assert talk.subscriptions.live == 0
    assert not talk.subscriptions.in_use


# --- long messages


def test_a_long_command_is_handed_out_to_be_proved_and_obeyed_then():
    talk = opened()
    for message in (
        {"action": "send_email", "request_id": "r1", "inbox_id": "a", "body": "x" * 20_000},
        {"action": "publish", "request_id": "r1", "events": [{"type": "a", "payload": {"a": "x" * 20_000}}]},
    ):
        command = talk.say(message)
        assert isinstance(command, Command)
        assert command.proof is None
        doing = talk.session.obey(at_once(prove_command(command)), NOW, wall_at(NOW))
        request = doing if isinstance(doing, CommandRequest) else doing.request
        assert (request.command.action, request.request_id) == (message["action"], "r1")
        assert request.digest
    assert talk.heard() == []


def test_what_is_wrong_with_a_long_command_is_its_answer():
    talk = opened()
    command = talk.say(f'{{"action":"send_email","request_id":"r1","n":1e999,"body":"{"x" * 20_000}"}}')
    assert talk.session.obey(at_once(prove_command(command)), NOW, wall_at(NOW)) is None
    [answer] = talk.heard()
    assert (answer["request_id"], answer["error"]["code"]) == ("r1", "invalid_params")
    assert "`$.n`" in answer["error"]["message"]


def test_what_the_session_does_itself_it_does_at_once_however_long():
    talk = opened(key=key_of("subscribe"))
    inboxes = sorted(f"inbox_{number}_{'x' * 20}" for number in range(2_000))
    assert talk.ask("subscribe", inbox_ids=inboxes)["result"]["inbox_ids"] == inboxes
    assert talk.ask("unsubscribe", inbox_ids=inboxes)["result"]["inbox_ids"] == []
    assert "server_time" in talk.ask("ping", padding="x" * 20_000)["result"]


@pytest.mark.parametrize("padding", [0, 20_000])
def test_what_is_wrong_with_an_event_is_found_where_events_are_taken_in(padding):
    talk = opened()
    doing = talk.say(f'{{"action":"publish","request_id":"r1","events":[{{"n":1e999}}],"padding":"{"x" * padding}"}}')
    if padding:
        doing = talk.session.obey(at_once(prove_command(doing)), NOW, wall_at(NOW))
    assert isinstance(doing, PublishRequest)
    assert doing.raw == b'[{"n":1e999}]'


def test_a_long_publish_holds_its_events_once():
    talk = opened()
    request = talk.say(f'{{"action":"publish","request_id":"r1","events":[{{"text":"{"x" * 20_000}"}}]}}')
    request = talk.session.obey(at_once(prove_command(request)), NOW, wall_at(NOW))
    assert len(request.raw) > 20_000
    assert not request.request.command.params


def test_a_closed_session_says_nothing_whatever_becomes_of_its_key():
    talk = opened(query={"inbox_ids": "a,b"})
    talk.session.close()
    talk.session.change_key(key_of(inbox_ids={"a"}))
    assert talk.session.take_answers() == b""
    assert not talk.subscriptions.in_use


# --- where an archive keeps what memory drops


def archived(**fields) -> Talk:
    """A session over a log that has an archive. The first position of every log of `make_buffer` has one cursor."""
    talk = Talk(**fields)
    talk.buffer._shared.archive_seconds = 86_400.0
    return talk


def kept(reach: Reach, count: int) -> Reached:
    return Reached(reach, reach.position, Kept(count))


def test_an_opening_that_reaches_back_says_nothing_until_it_knows_what_there_is():
    talk = archived(stored="abab", query={"inbox_ids": "a", "since": make_buffer().cursor_at(0)})
    talk.drop(3)
    reach = talk.session.open(NOW)
    assert (reach.selection, reach.position, reach.through) == (Selection(frozenset({"a", ""})), 0, 3)
    assert talk.session.take_answers() == b""
    assert talk.session.open(NOW, kept(reach, 2)) is None
    ready, *rest = talk.heard()
    assert (ready["replay"], ready["cursor"]) == ({"recovered": True, "count": 2}, talk.cursor(0))
    assert (ready["replay_seconds"], rest) == (86_400, [])


def test_what_comes_next_is_wanted_and_comes_after_it_was_handed_in_while_answers_do_not_wait_for_it():
    talk = archived(stored="aab", query={"inbox_ids": "a", "since": make_buffer().cursor_at(0)})
    first = talk.buffer.first()
    talk.session.open(NOW)
    talk.session.take_answers()
    talk.drop(2)
    assert talk.heard() == []
    wanted = talk.session.wanted
    assert (wanted.after, wanted.through) == (0, 2)
    assert "server_time" in talk.ask("ping")["result"]
    assert talk.session.wanted == wanted, "it is wanted still"
    talk.session.take_in(wanted, Page([first], 2))
    assert ids(talk.heard()) == ["e1"]
    assert talk.session.wanted is None


def test_a_subscribe_that_reaches_back_is_handed_on_changes_nothing_and_is_obeyed_with_the_answer():
    talk = archived(stored="abab")
    talk.open()
    talk.drop(4)
    asked = talk.say({"action": "subscribe", "request_id": "r1", "inbox_ids": ["a"], "since": talk.cursor(0)})
    assert isinstance(asked, SubscribeRequest)
    assert (talk.heard(), talk.session.follower.selection) == ([], Selection(frozenset({""})))
    assert talk.session.obey(asked.command, NOW, wall_at(NOW), kept(asked.reach, 2)) is None
    [answer] = talk.heard()
    assert answer["result"]["replay"] == {"recovered": True, "count": 2}
    assert answer["request_id"] == "r1"
    assert talk.session.wanted.selection == Selection(frozenset({"a"}))


def test_a_subscribe_whose_answer_is_for_something_else_by_the_time_is_handed_on_again():
    talk = archived(stored="abab")
    talk.open()
    talk.drop(4)
    asked = talk.say({"action": "subscribe", "inbox_ids": ["a", "b"], "since": talk.cursor(0)})
    talk.ask("subscribe", inbox_ids=["b"])
    again = talk.session.obey(asked.command, NOW, wall_at(NOW), kept(asked.reach, 4))
    assert again.reach.selection == Selection(frozenset({"a"}))
    assert again.command.request_id == asked.command.request_id


# --- what it names -----------------------------------------------------------


def names(of: str) -> list[str]:
    return [f"{of}_{number}_".ljust(100, "x") for number in range(200)]


COST = 200 * (100 + NAME_BYTES) + NAME_BYTES - USUAL_BYTES
"""Of so many, and of the account's own events."""


def counted(**fields) -> Talk:
    """A session that follows 200 inboxes; there is room for 200 more."""
    talk = opened(held=of_names(4 * (2 * COST + USUAL_BYTES)).hold("acct_a"), **fields)
    talk.ask("subscribe", inbox_ids=names("a"))
    assert talk.held.size == COST
    return talk


CHUNKS = [[f"{chunk}_{number}_".ljust(254, "x") for number in range(10)] for chunk in range(12)]
chunks = st.sets(st.sampled_from(range(len(CHUNKS))), max_size=4)


@given(steps=st.lists(st.tuples(st.sampled_from(["subscribe", "unsubscribe"]), chunks | st.none()), max_size=20))
def test_whatever_is_subscribed_and_unsubscribed_what_is_held_is_what_is_named(steps):
    talk = opened()
    for action, some in steps:
        talk.ask(action, inbox_ids=["*"] if some is None else [name for chunk in some for name in CHUNKS[chunk]])
        named = talk.session.follower.selection.names
        assert talk.held.size == max(0, sum(map(len, named)) + NAME_BYTES * len(named) - USUAL_BYTES)


def test_what_a_replay_of_all_is_to_leave_out_is_counted_until_it_has_come():
    talk = counted(stored="z")
    talk.say({"action": "subscribe", "inbox_ids": ["*"], "since": talk.cursor(0)})
    talk.session.heartbeat()
    assert talk.held.size == COST
    assert ids(talk.heard()[1:]) == ["e1"]
    talk.session.heartbeat()
    assert talk.held.size == 0


def test_what_is_followed_no_more_is_counted_as_long_as_a_cursor_tells_it_from_the_rest():
    talk = counted(query={"client_id": "agent"})
    talk.ask("subscribe", inbox_ids=["*"])
    talk.publish("z")
    talk.session.heartbeat()
    assert talk.held.size == COST
    talk.session.follower.sent.acknowledge(1)
    talk.session.heartbeat()
    assert talk.held.size == 0


def test_what_was_acknowledged_is_counted_until_that_is_settled_however_often_it_is_named_anew():
    talk = counted(query={"client_id": "agent"})
    talk.publish("z")
    under_way = talk.session.follower.sent.acknowledge(1)
    for name in ("a", "b"):
        talk.ask("unsubscribe", inbox_ids=names("a"))
        assert COST <= talk.held.size < 1.1 * COST
        assert talk.ask("subscribe", inbox_ids=names(name))["result"]
        assert talk.held.size == 2 * COST + USUAL_BYTES
    assert talk.error("subscribe", inbox_ids=names("c"))[0] == "unavailable"
    under_way.clear()
    talk.session.heartbeat()
    assert talk.held.size == COST
    talk.heard()
    assert talk.ask("subscribe", inbox_ids=names("c"))["result"]


def test_what_was_acknowledged_and_is_followed_still_is_counted_once():
    talk = counted(query={"client_id": "agent"})
    talk.publish("zzzz")
    acknowledged = [talk.session.follower.sent.acknowledge(position) for position in range(1, 5)]
    del acknowledged[0]  # of two parts that are one from there on
    talk.ask("subscribe", inbox_ids=["one"])
    assert (len(acknowledged), talk.held.size) == (3, COST + len("one") + NAME_BYTES)


def test_a_key_that_changes_takes_no_room():
    reach = names("a")
    talk = opened(key=key_of(inbox_ids=set(reach)), query={"client_id": "agent"})
    talk.ask("unsubscribe", inbox_ids=reach[:1])
    talk.publish("z")
    under_way = talk.session.follower.sent.acknowledge(1)
    talk.ask("unsubscribe", inbox_ids=reach[:2])
    talk.ask("subscribe", inbox_ids=["*"])
    held = talk.held.size
    assert (len(talk.session.follower.selection.names), under_way != [], held > 0) == (200, True, True)
    talk.session.change_key(key_of(inbox_ids={*reach[:150], "else"}))
    assert (len(talk.session.follower.selection.names), talk.held.size) == (150, held)
