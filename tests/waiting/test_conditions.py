"""What an event must be like: every condition by itself, and whatever stands in a payload."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.waiting.addresses import MAX_ADDRESSES, MAX_CHARACTERS, Address, address_of, addresses_in
from broker.waiting.asked import WaitParams
from broker.waiting.conditions import Mail, Where, condition, mail_of

MAIL = {
    "message_id": "msg_1",
    "from": "Ada Lovelace <ada@mail.Example.com>",
    "to": ["Sales <sales@shop.example>", "bob@shop.example"],
    "subject": "Your ORDER is ready: Straße 7",
    "body": "Come and get it.\nCode 4711",
    "thread_id": "thread_1",
    "in_reply_to": "msg_0",
}


def event(message=MAIL, **beside):
    return json.dumps({"type": "message.received", "payload": {"message": message, **beside}}).encode()


def fits(message=MAIL, **where):
    check = condition(msgspec.convert(where, Where))
    return check is None or check(mail_of(event(message)))


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"from": "ADA@mail"},
        {"from": "Lovelace"},
        {"from": "@mail.example.com"},
        {"to": "bob@"},
        {"to": "@SHOP.example"},
        {"subject": "order is READY"},
        {"subject": "STRASSE"},
        {"contains": "ready"},
        {"contains": "code 4711"},
        {"thread_id": "thread_1"},
        {"in_reply_to": "msg_0"},
        {"from": "ada", "to": "sales", "subject": "order", "contains": "come", "thread_id": "thread_1"},
    ],
)
def test_what_is_there_is_found_upper_and_lower_case_alike(where):
    assert fits(**where)


@pytest.mark.parametrize(
    "where",
    [
        {"from": "bob"},
        {"from": "@example.com"},
        {"from": "@mail.example"},
        {"from": "@mail.example.co"},
        {"to": "ada"},
        {"to": "@shop"},
        {"subject": "code"},
        {"contains": "ada"},
        {"contains": "get.it"},
        {"thread_id": "thread_"},
        {"thread_id": "THREAD_1"},
        {"in_reply_to": "msg_00"},
        {"in_reply_to": "msg_"},
        {"from": "ada", "subject": "nothing of this"},
    ],
)
def test_what_is_not_there_is_not_found(where):
    assert not fits(**where)


REAL = [
    "a@example.com",
    "a@example.com.",
    " A@Example.COM ",
    "<a@example.com>",
    "Ada <a@example.com>",
    '"x@evil.io" <a@example.com>',
    "a@example.com <A@example.com>",
    "dependabot[bot] <a@example.com>",
    "山田\u3000太郎 <a@example.com>",
]
NOT_REAL = [
    "evil@example.com <x@evil.io>",
    '"evil@example.com" <x@evil.io>',
    "x@evil.io <a@example.com>",
    "x@evil.io (a@example.com)",
    "a@example.com (Ada)",
    "a@example.com@evil.io",
    '"@example.com"@evil.io',
    '"x@evil.io"@example.com',
    "a@example.com evil.io",
    *(f"a@example.com{between}x@evil.io" for between in (",", ", ", ";", ":", "/", ">", " ")),
    *(f"x@evil.io{between}a@example.com" for between in (", ", "; ", ":")),
    "team: a@example.com;",
    "<a@example.com> <x@evil.io>",
    "Ada <a@example.com>@evil.io",
    "Ada <a@example.com",
    'Ada" <a@example.com>',
    "a@example.com\u200b.evil.io",
    "a@example.com\u200b",
    "\u202ea@example.com",
    "a@example.com\r\n",
    "a\x00@example.com",
    "a@example.com\u3164",
    "a@example.com..",
    "a@example.com-b.org",
    "a@example.com.evil.io",
    "a@example.community",
    "a@notexample.com",
    "a@mail.example.com",
    "@example.com",
    "example.com",
]


@pytest.mark.parametrize("wanted", ["@example.com", "@EXAMPLE.com.", "a@example.com", "A@Example.com", "a@"])
@pytest.mark.parametrize("sender", REAL)
def test_the_one_real_address_of_a_sender_counts(sender, wanted):
    assert fits({**MAIL, "from": sender}, **{"from": wanted})


@pytest.mark.parametrize("wanted", ["@example.com", "a@example.com", "evil@example.com"])
@pytest.mark.parametrize("sender", NOT_REAL)
def test_what_looks_like_an_address_or_is_not_clear_is_none(sender, wanted):
    assert not fits({**MAIL, "from": sender}, **{"from": wanted})


def test_a_name_that_looks_like_an_address_does_not_hide_the_real_one():
    assert fits({**MAIL, "from": '"evil@example.com" <x@evil.io>'}, **{"from": "@evil.io"})


def test_letters_that_only_look_like_those_of_another_domain_or_name_are_others():
    assert not fits({**MAIL, "from": "a@straße.example"}, **{"from": "@strasse.example"})
    assert not fits({**MAIL, "from": "\u212aate@example.com"}, **{"from": "kate@example.com"})
    assert fits({**MAIL, "from": "a@BÜCHER.example"}, **{"from": "@bücher.example"})


def test_a_text_with_an_at_that_names_no_domain_fits_nothing():
    for wanted in ("@", "@@", "@example.com evil", "@.com"):
        assert not fits({**MAIL, "from": "a@example.com"}, **{"from": wanted}), wanted


@pytest.mark.parametrize(
    "to",
    [
        ["x@evil.io", "Ada <a@example.com>"],
        "x@evil.io, Ada <a@example.com>",
        '"Doe, J" <x@evil.io>,, "b@c" <a@example.com>',
        ["broken (", "a@example.com."],
    ],
)
def test_recipients_are_judged_each_by_itself(to):
    for wanted in ("@example.com", "a@example.com"):
        assert fits({**MAIL, "to": to}, to=wanted)
        assert not fits({**MAIL, "to": to}, to=f"{wanted}.evil.io")


@pytest.mark.parametrize(
    "to",
    [['"a@example.com" <x@evil.io>'], "x@evil.io (a@example.com)", '"a@example.com, " <x@evil.io>', '", a@example.com'],
)
def test_a_name_of_a_recipient_is_no_address(to):
    assert not fits({**MAIL, "to": to}, to="@example.com")


@pytest.mark.parametrize(
    "message", [None, 7, "text", [], ["ada"], {}, {"from": {"name": "ada"}, "to": 7, "subject": None}]
)
def test_a_payload_of_another_form_fits_no_condition_and_every_wait_without_one(message):
    assert fits(message)
    for name in ("from", "to", "subject", "contains", "thread_id", "in_reply_to"):
        assert not fits(message, **{name: "ada"})


def test_where_there_is_no_message_the_payload_itself_is_meant():
    bounced = json.dumps({"payload": {"to": "ada@example.com", "subject": "Bounced", "reason": "full"}}).encode()
    assert condition(Where(to="@example.com"))(mail_of(bounced))


def test_no_condition_is_none_that_anybody_need_look_at():
    assert condition(None) is condition(Where()) is None


def test_a_mailbox_is_no_longer_than_a_line_of_a_mail():
    name = "n" * (MAX_CHARACTERS - len(" <a@example.com>"))
    assert address_of(f"{name} <a@example.com>") == Address("a@example.com", "example.com")
    assert address_of(f"{name}n <a@example.com>") is None


def test_a_name_that_is_the_address_itself_may_be_written_otherwise():
    assert address_of("Ada@Example.com. <ada@example.com>") == Address("ada@example.com", "example.com")
    assert address_of("ada@example.org <ada@example.com>") is None


def test_of_a_list_of_far_too_many_recipients_there_is_none():
    assert len(list(addresses_in(",".join(["a@example.com"] * MAX_ADDRESSES)))) == MAX_ADDRESSES
    assert list(addresses_in(",".join(["a@example.com"] * (MAX_ADDRESSES + 1)))) == []


def test_recipients_may_be_one_text_and_far_too_many_are_not_looked_at():
    assert fits({**MAIL, "to": "eve@x.com"}, to="eve")
    assert fits({**MAIL, "to": ["no"] * 999 + ["eve"]}, to="eve")
    assert not fits({**MAIL, "to": ["no"] * 1_000 + ["eve"]}, to="eve")


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({"where": {"sender": "x"}}, "sender"),
        ({"where": {"subject": ""}}, "$.where.subject"),
        ({"where": {"subject": "x" * 257}}, "$.where.subject"),
        ({"where": {"subject": 7}}, "$.where.subject"),
        ({"timeout_seconds": -1}, "$.timeout_seconds"),
        ({"timeout_seconds": 3601}, "$.timeout_seconds"),
        ({"extract": ["codes"]}, "$.extract"),
        ({"event_types": []}, "$.event_types"),
        ({"event_types": ["No Type"]}, "$.event_types"),
        ({"since": ""}, "$.since"),
    ],
)
def test_a_wait_that_cannot_be_is_refused_by_the_name_of_its_field(params, path):
    with pytest.raises(msgspec.ValidationError, match=path.replace("$", r"\$")):
        msgspec.convert(params, WaitParams)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "to", "subject", "x"]), inner),
    max_leaves=10,
)


@given(payload=st.dictionaries(st.sampled_from(["message", "from", "to", "subject", "body"]), JSON))
def test_whatever_the_payload_is_something_is_read_of_it(payload):
    mail = mail_of(json.dumps({"payload": payload}).encode())
    assert isinstance(mail, Mail)
    assert all(isinstance(text, str) for text in (mail.from_, mail.subject, mail.body, *mail.to))
