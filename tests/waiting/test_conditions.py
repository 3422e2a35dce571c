"""What an event must be like: every condition by itself, and whatever stands in a payload."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        {"from": "ada", "subject": "nothing of this"},
    ],
)
def test_what_is_not_there_is_not_found(where):
    assert not fits(**where)


def test_a_domain_is_the_whole_of_one_wherever_it_stands():
    for sender in ("a@x.com", "A <a@x.com>", "a@x.com.evil.org, b@X.COM", "@x.com"):
        assert fits({**MAIL, "from": sender}, **{"from": "@x.com"}), sender
    for sender in ("a@x.com.evil.org", "a@notx.com", "a@x.com-b.org", "x.com", "a@x.community"):
        assert not fits({**MAIL, "from": sender}, **{"from": "@x.com"}), sender


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
