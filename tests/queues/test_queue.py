"""A queue and what is said at it, by themselves: what may be asked for, what is kept and shown, who reaches it."""

import json

import pytest

from broker.access.keys import Key
from broker.config import AccountQueueConfig, LimitsConfig
from broker.errors import RequestError
from broker.protocol.decoding import decode_command
from broker.protocol.selection import EVERYTHING, Selection, TypeFilter
from broker.queues.asked import AckLeases, HoldLeases, LeaseParams, NackParams, check_work, is_work
from broker.queues.queue import MAX_INBOX_IDS, NewQueue, Queue, QueueChange, changed, configured, made, seen

NOW = 1_800_000_000.0
KEY = Key("key", "acct", frozenset({"subscribe", "webhooks"}))
NARROW = Key("narrow", "acct", frozenset({"subscribe", "webhooks"}), frozenset({"b", "a"}))
LIMITS = LimitsConfig(max_inboxes_per_connection=3, max_event_types=2)
WORKER = Key("worker", "acct", frozenset({"subscribe"}))


def said(action, key=WORKER, **params):
    return check_work(key, decode_command(json.dumps({"action": action, **params})), "r1").params


def refusal(call, *arguments, **fields):
    with pytest.raises(RequestError) as refused:
        call(*arguments, **fields)
    return refused.value.code, refused.value.message


# --- what a worker says


@pytest.mark.parametrize(
    ("command", "about_leases"),
    [
        ({"action": "lease"}, True),
        ({"action": "nack"}, True),
        ({"action": "ack", "lease_ids": ["l"]}, True),
        ({"action": "hold", "params": {"lease_ids": ["l"]}}, True),
        ({"action": "ack", "cursor": "c"}, False),
        ({"action": "hold", "event_ids": ["e"]}, False),
        ({"action": "send_email", "lease_ids": ["l"]}, False),
    ],
)
def test_an_acknowledgement_is_of_leases_where_it_names_some(command, about_leases):
    assert is_work(decode_command(json.dumps(command))) is about_leases


def test_what_is_left_out_is_one_event_without_waiting_for_as_long_as_the_queue_says():
    assert said("lease", queue_id="q") == LeaseParams("q", 1, 0, None)
    assert said("nack", lease_ids=["l"]) == NackParams(["l"], None, False, None)


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        ("lease", {"queue_id": "q", "max": 1, "wait_seconds": 0, "seconds": 1}),
        ("lease", {"queue_id": "q", "max": 100, "wait_seconds": 60, "seconds": 3_600}),
        ("lease", {"queue_id": "q", "wait_seconds": 0.5, "seconds": 1.5}),
        ("ack", {"lease_ids": ["l"] * 100}),
        ("hold", {"lease_ids": ["l"], "seconds": 1}),
        ("hold", {"lease_ids": ["l"], "seconds": 3_600}),
        ("nack", {"lease_ids": ["l"], "retry_after_ms": 0, "reason": ""}),
        ("nack", {"lease_ids": ["l"], "retry_after_ms": 86_400_000, "dead": False, "reason": "x" * 256}),
        ("nack", {"lease_ids": ["l"], "dead": True}),
    ],
)
def test_a_worker_may_ask_for_the_least_and_the_most(action, fields):
    kind = {"lease": LeaseParams, "ack": AckLeases, "hold": HoldLeases, "nack": NackParams}[action]
    assert said(action, **fields) == kind(**fields)


@pytest.mark.parametrize(
    ("action", "fields", "path"),
    [
        ("lease", {"queue_id": "q", "max": 0}, "$.max"),
        ("lease", {"queue_id": "q", "max": 101}, "$.max"),
        ("lease", {"queue_id": "q", "wait_seconds": -1}, "$.wait_seconds"),
        ("lease", {"queue_id": "q", "wait_seconds": 60.5}, "$.wait_seconds"),
        ("lease", {"queue_id": "q", "seconds": 0.5}, "$.seconds"),
        ("lease", {"queue_id": "q", "seconds": 3_601}, "$.seconds"),
        ("lease", {"queue_id": "q", "wait": 30}, "$.wait"),
        ("lease", {"queue_id": "q", "timeout_seconds": 30}, "$.timeout_seconds"),
        ("lease", {"queue_id": "q", "lease_seconds": 30}, "$.lease_seconds"),
        ("nack", {"lease_ids": ["l"], "delay_ms": 5_000}, "$.delay_ms"),
        ("nack", {"lease_ids": ["l"], "retry_after_seconds": 5}, "$.retry_after_seconds"),
        ("hold", {"lease_ids": ["l"], "seconds": 3_600.5}, "$.seconds"),
        ("hold", {"lease_ids": ["l"] * 101, "seconds": 5}, "$.lease_ids"),
        ("nack", {"lease_ids": ["l"], "retry_after_ms": -1}, "$.retry_after_ms"),
        ("nack", {"lease_ids": ["l"], "retry_after_ms": 86_400_001}, "$.retry_after_ms"),
        ("nack", {"lease_ids": ["l"] * 101}, "$.lease_ids"),
        ("ack", {"lease_ids": ["l"], "cursor": "c"}, "$.cursor"),
        ("ack", {"lease_ids": ["l"], "event_ids": ["e"]}, "$.event_ids"),
        ("hold", {"lease_ids": ["l"], "seconds": 5, "cursor": "c"}, "$.cursor"),
    ],
)
def test_less_or_more_than_that_is_refused_by_its_name(action, fields, path):
    code, message = refusal(said, action, **fields)
    assert code == "invalid_params"
    assert f"`{path}`" in message


def test_who_says_when_an_event_is_tried_again_and_that_it_is_not_is_told_both_names():
    code, message = refusal(said, "nack", lease_ids=["l"], dead=True, retry_after_ms=0)
    assert (code, message) == ("invalid_params", "`retry_after_ms` or `dead`, not both - at `$.retry_after_ms`")


def test_only_what_names_leases_is_refused_for_naming_what_does_not_go_with_them():
    assert said("lease", queue_id="q", cursor="c") == LeaseParams("q")


def test_a_list_of_leases_that_is_too_long_is_refused_before_it_is_looked_at():
    code, message = refusal(said, "ack", lease_ids=["no id"] * 101)
    assert code == "invalid_params"
    assert "`$.lease_ids`" in message


def test_who_works_needs_the_scope_to_subscribe():
    key = Key("key", "acct", frozenset({"command", "publish", "webhooks"}))
    assert refusal(said, "lease", key, queue_id="q")[0] == "forbidden"


# --- what an account asks for


def test_a_queue_is_made_as_it_is_asked_for():
    asked = NewQueue("q", list("fbdacefb"), list("pomnop"), "inbox", 30, 7, 600, "stop")
    queue = made(asked, KEY, LimitsConfig(), NOW)
    names, types = tuple("abcdef"), tuple("mnop")
    assert queue == Queue("acct", "q", names, types, "inbox", 30.0, 7, 600.0, "stop", created_at=NOW)
    assert (type(queue.lease_seconds), type(queue.max_age_seconds)) == (float, float)


def test_what_is_left_out_of_a_queue_is_as_the_protocol_says():
    queue = made(NewQueue("q"), KEY, LIMITS, NOW)
    assert queue == Queue("acct", "q", None, None, "thread", 60.0, 5, 259_200.0, "continue", "active", NOW)


@pytest.mark.parametrize("inbox_ids", [None, "*", ["*"], ["a", "*"]])
def test_a_queue_of_all_inboxes_is_one_of_all_that_its_key_reaches(inbox_ids):
    assert made(NewQueue("q", inbox_ids), KEY, LIMITS, NOW).selection == EVERYTHING
    assert made(NewQueue("q", inbox_ids), NARROW, LIMITS, NOW).inbox_ids == ("a", "b")


def test_a_queue_is_of_inboxes_that_its_key_reaches_and_no_others():
    assert made(NewQueue("q", ["b"]), NARROW, LIMITS, NOW).inbox_ids == ("b",)
    code, message = refusal(made, NewQueue("q", ["b", "c"]), NARROW, LIMITS, NOW)
    assert code == "forbidden"
    assert "`$.inbox_ids[1]`" in message


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"inbox_ids": ["a", "b", "c", "d"]}, "$.inbox_ids"),
        ({"event_types": ["x", "y", "z"]}, "$.event_types"),
    ],
)
def test_a_queue_names_no_more_than_a_connection_may_have(fields, path):
    for call, arguments in (
        (made, (NewQueue("q", **fields), KEY)),
        (changed, (Queue("acct", "q"), QueueChange(**fields), KEY)),
    ):
        code, message = refusal(call, *arguments, LIMITS, *([NOW] if call is made else []))
        assert code == "invalid_params"
        assert f"`{path}`" in message
    few = {name: names[:-1] for name, names in fields.items()}
    assert made(NewQueue("q", **few), KEY, LIMITS, NOW)


def test_a_queue_names_no_more_inboxes_than_can_be_listed_in_one_step():
    names = [f"in_{number}" for number in range(MAX_INBOX_IDS + 1)]
    assert made(NewQueue("q", names[:-1]), KEY, LimitsConfig(), NOW)
    assert refusal(made, NewQueue("q", names), KEY, LimitsConfig(), NOW)[0] == "invalid_params"


QUEUE = Queue("acct", "q", ("a",), ("x",), created_at=NOW)


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"inbox_ids": ["c", "b"]}, "inbox_ids", ("b", "c")),
        ({"inbox_ids": None}, "inbox_ids", None),
        ({"event_types": ["z", "y"]}, "event_types", ("y", "z")),
        ({"event_types": None}, "event_types", None),
        ({"lease_seconds": 5}, "lease_seconds", 5),
        ({"max_attempts": 9}, "max_attempts", 9),
        ({"max_age_seconds": 60}, "max_age_seconds", 60),
        ({"dead_after": "stop"}, "dead_after", "stop"),
        ({"status": "paused"}, "status", "paused"),
    ],
)
def test_a_change_is_of_what_it_names_and_the_rest_stays(change, field, value):
    after = changed(QUEUE, QueueChange(**change), KEY, LIMITS)
    names = [name for name in Queue.__struct_fields__ if getattr(after, name) != getattr(QUEUE, name)]
    assert (names, getattr(after, field)) == ([field], value)


def test_the_order_of_a_queue_may_be_said_again_and_not_be_changed():
    assert changed(QUEUE, QueueChange(order="thread"), KEY, LIMITS) == QUEUE
    code, message = refusal(changed, QUEUE, QueueChange(order="none"), KEY, LIMITS)
    assert code == "invalid_params"
    assert "`$.order`" in message


def test_the_id_of_a_queue_may_be_said_again_and_not_be_changed():
    assert changed(QUEUE, QueueChange(queue_id="q"), KEY, LIMITS) == QUEUE
    code, message = refusal(changed, QUEUE, QueueChange(queue_id="r"), KEY, LIMITS)
    assert code == "invalid_params"
    assert "`$.queue_id`" in message


def test_a_queue_of_the_configuration_is_as_that_says():
    section = AccountQueueConfig(
        id="q", inbox_ids=tuple("fbdacefb"), event_types=tuple("pomnop"), order="none", lease_seconds=5,
        max_attempts=2, max_age_seconds=70, dead_after="stop",
    )  # fmt: skip
    queue = configured("acct", section, NOW)
    names, types = tuple("abcdef"), tuple("mnop")
    assert queue == Queue("acct", "q", names, types, "none", 5.0, 2, 70.0, "stop", created_at=NOW, configured=True)
    assert configured("acct", AccountQueueConfig(id="q"), NOW).selection == EVERYTHING


# --- what is kept of it


def test_two_queues_that_do_the_same_are_the_same_whenever_they_were_made_and_whatever_their_status():
    other = configured("acct", AccountQueueConfig(id="q", inbox_ids=("a",), event_types=("x",)), NOW + 9)
    paused = changed(other, QueueChange(status="paused"), KEY, LIMITS)
    assert paused.content() == QUEUE.content()
    assert changed(QUEUE, QueueChange(max_attempts=9), KEY, LIMITS).content() != QUEUE.content()


def test_a_queue_is_seen_by_all_that_it_was_asked_for():
    assert seen(QUEUE) == type(seen(QUEUE))(
        "q", ["a"], ["x"], "thread", 60.0, 5, 259_200.0, "continue", "active", "2027-01-15T08:00:00.000Z", False
    )
    everything = seen(Queue("acct", "q"))
    assert (everything.inbox_ids, everything.event_types) == (["*"], None)


def test_a_queue_gets_events_of_its_inboxes_and_types_and_gives_them_on_its_terms():
    intake = QUEUE.intake(7)
    assert (intake.queue, intake.order, intake.types) == (7, "thread", TypeFilter(["x"]))
    assert intake.selection == Selection(frozenset({"a"}))
    assert Queue("acct", "q").intake(7).types is None
    terms = [Queue("acct", "q", max_attempts=3, dead_after=after).terms(7) for after in ("stop", "continue")]
    assert [(each.queue, each.max_attempts, each.stops) for each in terms] == [(7, 3, True), (7, 3, False)]


@pytest.mark.parametrize(
    ("inbox_ids", "key", "reached"),
    [
        (None, KEY, True),
        (None, NARROW, False),
        (("a", "b"), NARROW, True),
        (("a", "c"), NARROW, False),
        (("a",), Key("key", "acct", frozenset({"webhooks"})), False),
    ],
)
def test_a_queue_is_reached_by_who_reaches_all_of_its_inboxes(inbox_ids, key, reached):
    assert Queue("acct", "q", inbox_ids).is_reached_by(key) is reached
