"""wording.py: what people are told, in words."""

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import pytest
from msgspec import Meta, Struct
from texts import refusal

from broker.access.lookup import AccessAnswer
from broker.config import Config
from broker.protocol import messages
from broker.protocol.events import prepare_event, prove_events
from broker.protocol.names import EventType, Identifier, InboxId, InboxName, Tier, TypePattern
from broker.protocol.wording import counted, listed, located, size
from broker.queues.asked import LeaseParams, NackParams
from broker.queues.queue import NewQueue, QueueChange, QueueResend
from broker.waiting.asked import WaitParams
from broker.webhooks.endpoint import EndpointChange, NewEndpoint, Resend


def told(kind: Any, value: Any, path: str = "$") -> str:
    """What people are told of a value that is not of a type."""
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.convert(value, kind)
    return located(str(caught.value), path)


class Form(Struct, forbid_unknown_fields=True):
    tier: Tier = "free"
    number: Annotated[int, Meta(ge=1, le=65_535)] = 1
    seconds: Annotated[float, Meta(gt=0)] = 1.0
    names: Annotated[list[Identifier], Meta(min_length=1, max_length=2)] | None = None
    secret: Annotated[str, Meta(min_length=32)] = "x" * 32
    at: Annotated[datetime, Meta(tz=True)] | None = None
    choice: Literal["a", "b"] = "a"


class Needy(Struct):
    needed: bool


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (str, 5, "Expected text, not a whole number - at `$`"),
        (list[int], {}, "Expected a list, not an object - at `$`"),
        (bool | None, "x", "Expected true or false or null, not text - at `$`"),
        (Form, [], "Expected an object, not a list - at `$`"),
        (Form, {"number": 0}, "Expected a whole number of at least 1 - at `$.number`"),
        (Form, {"number": 65_536}, "Expected a whole number of at most 65,535 - at `$.number`"),
        (Form, {"seconds": 0.0}, "Expected a number of more than 0 - at `$.seconds`"),
        (Form, {"names": []}, "Expected at least 1 element - at `$.names`"),
        (Form, {"names": ["a"] * 3}, "Expected at most 2 elements - at `$.names`"),
        (Form, {"names": ["a", "b c"]}, "Expected 1 to 128 of letters, digits and `_.:@-` - at `$.names[1]`"),
        (Form, {"secret": "short"}, "Expected at least 32 characters - at `$.secret`"),
        (Form, {"tier": "gold"}, "Expected `free`, `developer`, `growth` or `enterprise`, not 'gold' - at `$.tier`"),
        (Form, {"choice": "c"}, "'c' is no value of this - at `$.choice`"),
        (Form, {"colour": 1}, "Nothing here is called `colour` - at `$`"),
        (Needy, {}, "There is no `needed` - at `$`"),
        (Form, {"at": "noon"}, "Expected a time with its offset, such as `2026-11-23T10:00:00Z` - at `$.at`"),
        (
            Form,
            {"at": "2026-11-23T10:00:00"},
            "Expected a time with its offset, such as `2026-11-23T10:00:00Z` - at `$.at`",
        ),
    ],
)
def test_what_is_expected_is_told_in_words(kind, value, words):
    assert told(kind, value) == words


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Identifier, "1 to 128 of letters, digits and `_.:@-`"),
        (InboxId, "an inbox: 1 to 254 of letters, digits and .:@!#$%&'*+-/=?^_`{|}~, but not `*` alone"),
        (InboxName, "an inbox: 1 to 254 of letters, digits and .:@!#$%&'*+-/=?^_`{|}~, or `*` for all"),
        (
            EventType,
            "an event type: words of `a-z`, `0-9` and `_`, joined by `.`, each with a letter first, at most 128",
        ),
        (
            TypePattern,
            "an event type: words of `a-z`, `0-9` and `_`, joined by `.`, each with a letter first, at most 128",
        ),
    ],
)
def test_an_alphabet_is_told_in_words(kind, words):
    for bad in ("", "é", "a b", "x" * 300):
        assert told(kind, bad, "name").startswith(f"Expected {words}")


def test_no_more_is_said_again_of_what_was_given_than_it_takes_to_know_it():
    words = told(Form, {"tier": "gold" * 1_000_000})
    assert "not 'goldgold" in words
    assert len(words) < 200


def test_the_place_is_that_of_the_value_itself():
    assert located("Expected `int` - at `$[0].a`", "$.params.x") == "Expected a whole number - at `$.params.x[0].a`"
    assert located("Expected `int`", "since") == "Expected a whole number - at `since`"
    assert located("Expected `str` - at `key` in `$.x`", "$[3]") == "Expected text - at `key` in `$[3].x`"


def test_what_a_client_wrote_is_not_taken_for_a_place():
    assert told(list[Form], [{"x - at `$.y`": 1}]) == "Nothing here is called `x - at `$.y`` - at `$[0]`"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "The JSON ends too early"),
        ("[1,]", "The JSON is malformed: trailing comma"),
        ("1e999", "It is out of range"),
    ],
)
def test_broken_json_is_told_in_words(text, words):
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(text)
    assert located(str(caught.value), "$.x").startswith(words)
    assert located(str(caught.value), "$.x").endswith(" - at `$.x`")


# --- wherever somebody outside can be wrong -----------------------------------


def structs_in(kind: Any, seen: set[type]) -> Iterator[type[Struct]]:
    if isinstance(kind, type) and issubclass(kind, Struct) and kind not in seen:
        seen.add(kind)
        yield kind
        for field in msgspec.structs.fields(kind):
            yield from structs_in(field.type, seen)
    for inner in get_args(kind):
        yield from structs_in(inner, seen)


ASKED = (
    Config,
    AccessAnswer,
    messages.TokenRequest,
    messages.SubscribeParams,
    messages.UnsubscribeParams,
    messages.AckParams,
    messages.HoldParams,
    NewEndpoint,
    EndpointChange,
    Resend,
    NewQueue,
    QueueChange,
    QueueResend,
    LeaseParams,
    NackParams,
    WaitParams,
)
FIELDS = [
    (kind, field) for asked in ASKED for kind in structs_in(asked, set()) for field in msgspec.structs.fields(kind)
]
WRONG = [None, True, -1, 1e300, 10**30, "", "é", "a b", "x" * 300, [], ["a b"], [7], {}, {"a b": 1}]
MSGSPECS_OWN = (
    "`str`",
    "`int`",
    "`float`",
    "`array`",
    "`object`",
    "`null`",
    "`bool`",
    "regex",
    "Object ",
    "Invalid",
    " | ",
)


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: getattr(value, "name", None))
def test_nobody_is_told_a_pattern_or_the_name_of_a_type(kind, field):
    for value in WRONG:
        try:
            msgspec.convert(value, field.type)
        except msgspec.ValidationError as error:
            message = located(str(error), field.name)
            assert not [own for own in MSGSPECS_OWN if own in message], message
            assert "is no value of this" not in message, "a Literal whose values nobody is told"


def literals_of(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Literal:
        yield kind
    for inner in get_args(kind):
        yield from literals_of(inner)


def test_of_each_field_with_a_choice_people_are_told_the_choices():
    for kind, field in FIELDS:
        for literal in literals_of(field.type):
            with pytest.raises(msgspec.ValidationError) as caught:
                msgspec.convert({field.name: "none of these"}, msgspec.defstruct("One", [(field.name, literal)]))
            for value in get_args(literal):
                assert f"`{value}`" in located(str(caught.value), "$"), (kind, field.name)


@pytest.mark.parametrize("field", ["type", "payload", "inbox_id", "event_id", "created_at", "account_id"])
def test_of_an_event_too_nobody_is_told_a_pattern_or_the_name_of_a_type(field):
    for value in WRONG:
        text = msgspec.json.encode({"type": "a", "payload": {}} | {field: value})
        [(path, proved)] = filter(None, prove_events([("$[0]", text)], 1_000))
        try:
            prepare_event(proved, path, now="", new_id=str)
        except messages.RequestError:
            message = refusal(prepare_event, proved, path, now="", new_id=str).message
            assert not [own for own in MSGSPECS_OWN if own in message], message


# --- numbers -----------------------------------------------------------------


def test_sizes_and_numbers_read_well():
    assert [size(number) for number in (0, 1, 262_144, 1_048_576, 8_388_608, 8_388_609)] == [
        "0 bytes",
        "1 byte",
        "262,144 bytes",
        "1 MiB",
        "8 MiB",
        "8,388,609 bytes",
    ]
    assert [counted(number, "event") for number in (0, 1, 10_000)] == ["0 events", "1 event", "10,000 events"]
    assert [listed(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a or b", "a, b or c"]
