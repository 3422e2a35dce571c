"""An endpoint by itself: what may be asked for, what is kept and shown, what it gets by which key."""

import pytest

from broker.access.keys import Key
from broker.config import AccountWebhookConfig, LimitsConfig
from broker.errors import RequestError
from broker.protocol.selection import EVERYTHING, Selection, TypeFilter
from broker.webhooks.endpoint import (
    MAX_CLIENT_IDS,
    MAX_INBOX_IDS,
    MAX_URL,
    Checks,
    Endpoint,
    EndpointChange,
    NewEndpoint,
    configured,
    owned,
    rotated,
    seen,
)
from broker.webhooks.guard import Guard
from broker.webhooks.signing import OVERLAP_SECONDS, secret_of

NOW = 1_800_000_000.0
URL = "https://hooks.example.com/in"
SECRET, OTHER = secret_of(bytes(range(32))), secret_of(bytes(range(1, 33)))
KEY = Key("key", "acct", frozenset({"webhooks", "subscribe"}), sha256="ab")
NARROW = Key("narrow", "acct", frozenset({"webhooks", "subscribe"}), frozenset({"b", "a"}), sha256="cd")
CHECKS = Checks(LimitsConfig(max_inboxes_per_connection=3, max_event_types=2), Guard(), allow_http=False)
MADE = owned(Endpoint("acct", "wh", URL, SECRET, ("a",), ("x",), created_at=NOW), KEY)


def made(key=KEY, checks=CHECKS, url=URL, **fields):
    return checks.made(NewEndpoint(url, **fields), key, "wh", SECRET, NOW)


def changed(endpoint, key=KEY, **fields):
    return CHECKS.changed(endpoint, EndpointChange(**fields), key)


def refusal(call, *arguments, **fields):
    with pytest.raises(RequestError) as refused:
        call(*arguments, **fields)
    return refused.value.code, refused.value.message


def differing(one, other):
    return {name for name in Endpoint.__struct_fields__ if getattr(one, name) != getattr(other, name)}


# --- what is asked for


def test_an_endpoint_is_made_as_it_is_asked_for_and_goes_by_the_key_that_asks():
    endpoint = made(
        checks=Checks(LimitsConfig(), Guard(), allow_http=False), webhook_id="mine", inbox_ids=list("fbdacefb"),
        event_types=list("pomnop"), mode="fallback", client_ids=list("zyxwvz"), fallback_seconds=7, order="inbox",
        secret=OTHER,
    )  # fmt: skip
    assert endpoint == Endpoint(
        "acct", "mine", URL, OTHER, tuple("abcdef"), tuple("mnop"), "fallback", tuple("vwxyz"), 7.0, "inbox",
        created_at=NOW, key_id="key", key_sha256="ab", key_scopes=("subscribe", "webhooks"),
    )  # fmt: skip
    assert type(endpoint.fallback_seconds) is float


def test_what_is_left_out_of_an_endpoint_is_as_the_protocol_says():
    endpoint = made()
    assert (endpoint.webhook_id, endpoint.secret, endpoint.mode, endpoint.order) == ("wh", SECRET, "always", "none")
    assert (endpoint.inbox_ids, endpoint.event_types, endpoint.client_ids) == (None, None, ())
    assert (endpoint.fallback_seconds, endpoint.status, endpoint.disabled_because) == (30.0, "active", None)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://hooks.example.com:8443/in?a=b%20c",
        "https://1.1.1.1/",
        "https://hooks.example.com/" + "x" * (MAX_URL - 26),
    ],
)
def test_a_url_of_the_public_internet_is_taken_as_it_stands(url):
    assert made(url=url).url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https:///in",
        "https://:443/",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:x/",
        "HTTPS://hooks.example.com/",
        "https://[::1/",
        "https://me@hooks.example.com/",
        "https://hooks.example.com/#",
        "https://hooks.example.com/{id}",
        "https://hooks.example.com/a\\b",
        "https://hooks.example.com/\x7f",
        "https://hooks.example.com/ä",
        "https://hooks.example.com/" + "x" * (MAX_URL - 25),
        "http://hooks.example.com/",
        "https://127.0.0.1/",
        "https://[fe80::1%25eth0]/",
    ],
)
def test_another_url_is_refused_by_its_name_be_it_made_or_changed(url):
    for call, arguments in ((made, ()), (changed, (MADE,))):
        code, message = refusal(call, *arguments, url=url)
        assert code == "invalid_params"
        assert "`$.url`" in message


def test_where_the_operator_allows_it_plain_http_and_his_own_networks_are_posted_to():
    checks = Checks(LimitsConfig(), Guard(["10.0.0.0/8"]), allow_http=True)
    assert made(checks=checks, url="http://10.1.2.3/in").url == "http://10.1.2.3/in"
    assert refusal(made, checks=checks, url="ftp://10.1.2.3/in")[0] == "invalid_params"
    assert refusal(made, checks=checks, url="http://192.168.1.1/")[0] == "invalid_params"


@pytest.mark.parametrize("inbox_ids", [None, "*", ["*"], ["a", "*"]])
def test_an_endpoint_of_all_inboxes_is_one_of_all_that_its_key_reaches_now(inbox_ids):
    endpoint = made(NARROW, inbox_ids=inbox_ids)
    assert endpoint.inbox_ids is None
    assert endpoint.selection(NARROW) == Selection(frozenset({"a", "b"}))
    assert endpoint.selection(KEY) == EVERYTHING


def test_an_endpoint_is_of_inboxes_that_its_key_reaches_and_no_others():
    code, message = refusal(made, NARROW, inbox_ids=["a", "c"])
    assert code == "forbidden"
    assert "`$.inbox_ids[1]`" in message
    endpoint = made(KEY, inbox_ids=["a", "c"])
    assert endpoint.selection(NARROW) == Selection(frozenset({"a"}))
    assert endpoint.selection(KEY) == KEY.select(["a", "c"], "")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"inbox_ids": ["a", "b", "c", "d"]}, "$.inbox_ids"),
        ({"event_types": ["x", "y", "z"]}, "$.event_types"),
        ({"client_ids": [f"c{number}" for number in range(MAX_CLIENT_IDS + 1)]}, "$.client_ids"),
    ],
)
def test_an_endpoint_names_no_more_than_it_may(fields, path):
    for call, arguments in ((made, ()), (changed, (MADE,))):
        code, message = refusal(call, *arguments, **fields)
        assert code == "invalid_params"
        assert f"`{path}`" in message
        few = {name: names[:-1] for name, names in fields.items()}
        assert call(*arguments, **few)


def test_an_endpoint_names_no_more_inboxes_than_can_be_listed_in_one_step():
    checks = Checks(LimitsConfig(), Guard(), allow_http=False)
    names = [f"in_{number}" for number in range(MAX_INBOX_IDS + 1)]
    assert made(checks=checks, inbox_ids=names[:-1])
    assert refusal(made, checks=checks, inbox_ids=names)[0] == "invalid_params"


def test_a_fallback_names_clients_be_it_made_or_changed():
    assert "`$.client_ids`" in refusal(made, mode="fallback")[1]
    assert "`$.client_ids`" in refusal(changed, MADE, mode="fallback")[1]
    fallback = made(mode="fallback", client_ids=["c"])
    for nobody in ([], None):
        assert "`$.client_ids`" in refusal(changed, fallback, client_ids=nobody)[1]
    assert changed(fallback, mode="always", client_ids=None).client_ids == ()


# --- what is changed


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"url": URL + "2"}, "url", URL + "2"),
        ({"event_types": ["z", "y"]}, "event_types", ("y", "z")),
        ({"event_types": None}, "event_types", None),
        ({"inbox_ids": ["c", "b"]}, "inbox_ids", ("b", "c")),
        ({"inbox_ids": None}, "inbox_ids", None),
        ({"client_ids": ["d", "c"]}, "client_ids", ("c", "d")),
        ({"fallback_seconds": 9}, "fallback_seconds", 9),
        ({"order": "inbox"}, "order", "inbox"),
        ({"status": "paused"}, "status", "paused"),
    ],
)
def test_a_change_is_of_what_it_names_and_the_rest_stays(change, field, value):
    after = changed(MADE, **change)
    assert differing(after, MADE) == {field}
    assert getattr(after, field) == value


def test_who_says_which_inboxes_it_gets_is_whose_key_it_goes_by_and_who_says_else_is_not():
    after = changed(MADE, NARROW, inbox_ids=["b"])
    assert (after.key_id, after.key_sha256, after.key_inbox_ids) == ("narrow", "cd", ("a", "b"))
    assert changed(MADE, NARROW, order="inbox").key_id == "key"
    assert changed(MADE, NARROW, status="paused").key_id == "key"


@pytest.mark.parametrize("status", ["active", "paused"])
def test_who_lets_a_disabled_endpoint_be_again_is_whose_key_it_goes_by(status):
    disabled = configured("acct", AccountWebhookConfig(id="wh", url=URL, secret=SECRET), NOW)
    disabled = type(disabled)("acct", "wh", URL, SECRET, status="disabled", disabled_because="gone", key_id="key")
    after = changed(disabled, NARROW, status=status)
    assert (after.status, after.disabled_because, after.key_id) == (status, None, "narrow")
    still = changed(disabled, NARROW, order="inbox")
    assert (still.status, still.disabled_because, still.key_id) == ("disabled", "gone", "key")


# --- what is kept, and what it gets


def test_for_a_while_the_secret_that_it_had_signs_beside_the_new_one():
    after = rotated(MADE, OTHER, NOW)
    assert after.secrets(NOW) == (OTHER, SECRET)
    assert after.secrets(NOW + OVERLAP_SECONDS - 1) == (OTHER, SECRET)
    assert after.secrets(NOW + OVERLAP_SECONDS) == (OTHER,)
    assert MADE.secrets(NOW) == (SECRET,)


def test_an_endpoint_keeps_of_its_key_what_that_reached():
    kept = owned(MADE, NARROW)
    assert (kept.key.id, kept.key.sha256, kept.key.account_id) == ("narrow", "cd", "acct")
    assert (kept.key.scopes, kept.key.inbox_ids) == (NARROW.scopes, NARROW.inbox_ids)
    assert owned(MADE, KEY).key.inbox_ids is None


def test_an_endpoint_of_the_configuration_goes_by_no_key_and_reaches_the_account():
    section = AccountWebhookConfig(
        id="wh", url=URL, secret=SECRET, inbox_ids=tuple("fbdacefb"), event_types=tuple("pomnop"), mode="fallback",
        client_ids=tuple("zyxwvz"), fallback_seconds=5, order="inbox",
    )  # fmt: skip
    endpoint = configured("acct", section, NOW)
    assert endpoint == Endpoint(
        "acct", "wh", URL, SECRET, tuple("abcdef"), tuple("mnop"), "fallback", tuple("vwxyz"), 5.0, "inbox",
        created_at=NOW, configured=True,
    )  # fmt: skip
    assert (endpoint.key.id, endpoint.key.scopes) == ("configuration", frozenset({"webhooks"}))
    assert (endpoint.key.inbox_ids, endpoint.key.sha256) == (None, "")
    everything = configured("acct", AccountWebhookConfig(id="wh", url=URL, secret=SECRET), NOW)
    assert (everything.inbox_ids, everything.event_types) == (None, None)


def test_a_route_has_the_inboxes_the_types_the_order_and_of_a_fallback_the_delay():
    route = MADE.route(7, KEY)
    assert (route.webhook, route.webhook_id, route.selection) == (7, "wh", KEY.select(["a"], ""))
    assert (route.types, route.delay_seconds, route.in_order) == (TypeFilter(["x"]), 0.0, False)
    fallback = made(mode="fallback", client_ids=["c"], fallback_seconds=9, order="inbox").route(7, KEY)
    assert (fallback.types, fallback.delay_seconds, fallback.in_order) == (None, 9.0, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"url": URL + "2"},
        {"inbox_ids": ["b"]},
        {"event_types": ["y"]},
        {"mode": "fallback", "client_ids": ["c"]},
        {"client_ids": ["c"]},
        {"fallback_seconds": 5},
        {"order": "inbox"},
    ],
)
def test_two_endpoints_are_the_same_if_the_same_was_asked_for_whatever_their_secrets_and_times(fields):
    asked = {"inbox_ids": ["a"], "event_types": ["x"]}
    first = made(**asked)
    again = CHECKS.made(NewEndpoint(URL, secret=OTHER, **asked), NARROW, "other", SECRET, NOW + 9)
    assert again.content() == first.content()
    assert made(**{**asked, **fields}).content() != first.content()
    section = AccountWebhookConfig(id="wh", url=URL, secret=SECRET, inbox_ids=("a",), event_types=("x",))
    assert configured("acct", section, NOW).content() != first.content()


def test_an_endpoint_is_seen_by_all_that_it_was_asked_for_and_its_secret_only_where_that_is_said():
    shown = seen(MADE, KEY, None)
    assert shown == type(shown)(
        "wh", URL, ["a"], ["x"], "always", [], 30.0, "none", "active", None, None, "2027-01-15T08:00:00.000Z", False,
        "key",
    )  # fmt: skip
    assert seen(MADE, KEY, NOW, with_secret=True).secret == SECRET
    assert seen(MADE, KEY, NOW).failing_since == "2027-01-15T08:00:00.000Z"
    section = AccountWebhookConfig(id="wh", url=URL, secret=SECRET)
    by_nobody = seen(configured("acct", section, NOW), KEY, None)
    assert (by_nobody.inbox_ids, by_nobody.event_types, by_nobody.key_id) == (["*"], None, None)


def test_others_see_the_url_of_an_endpoint_without_its_query():
    assert made(url=URL + "?token=secret").shown_url == URL
