"""access.py: who may connect, and what a key reaches."""

import sys
from hashlib import sha256
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.access.keys import Access, Key, Narrowing, credential_of, inbox_ids_of
from broker.config import AccountConfig, Config, KeyConfig, OperatorConfig
from broker.errors import RequestError
from broker.protocol.names import ALL_INBOXES
from broker.protocol.selection import ACCOUNT_EVENTS, EVERYTHING, NOTHING, Selection

WHOLE, NARROW, OPERATOR = "dm_live_whole", "dm_live_narrow", "dm_operator_1"


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


ACCESS = Access(
    Config(
        accounts=(
            AccountConfig(
                id="acct_a",
                keys=(
                    KeyConfig(id="key_whole", sha256=digest(WHOLE)),
                    KeyConfig(id="key_narrow", sha256=digest(NARROW), scopes=("subscribe",), inbox_ids=("a", "b")),
                ),
            ),
            AccountConfig(id="acct_empty"),
        ),
        operators=(OperatorConfig(id="op_main", sha256=digest(OPERATOR)),),
    )
)


def refusal(call, *arguments) -> RequestError:
    with pytest.raises(RequestError) as refused:
        call(*arguments)
    return refused.value


def key_of(*scopes: str, inbox_ids: set[str] | None = None) -> Key:
    return Key("key", "acct_a", frozenset(scopes), None if inbox_ids is None else frozenset(inbox_ids))


# --- who it is


def test_a_key_is_known_by_its_sha256_with_its_account_scopes_and_reach():
    whole, narrow = digest(WHOLE), digest(NARROW)
    all_scopes = frozenset({"subscribe", "command", "publish"})
    assert ACCESS.account_key(whole) == Key("key_whole", "acct_a", all_scopes, sha256=whole)
    assert ACCESS.account_key(narrow) == Key(
        "key_narrow", "acct_a", frozenset({"subscribe"}), frozenset({"a", "b"}), sha256=narrow
    )


def test_an_operators_key_has_no_account_and_may_only_publish():
    key = ACCESS.operator_key(digest(OPERATOR))
    assert key.is_operator
    assert (key.account_id, key.scopes) == (None, {"publish"})
    assert not ACCESS.account_key(digest(WHOLE)).is_operator


@pytest.mark.parametrize("other", ["dm_live_other", WHOLE + " ", WHOLE.upper(), ""])
def test_another_sha256_is_no_key(other):
    assert ACCESS.account_key(digest(other)) is None
    assert ACCESS.operator_key(digest(other)) is None


@pytest.mark.parametrize("secret", [WHOLE, OPERATOR])
def test_the_first_digits_of_a_sha256_are_not_enough(secret):
    same_start = digest(secret)[:40] + "0" * 24
    assert ACCESS.account_key(same_start) is None
    assert ACCESS.operator_key(same_start) is None


def test_a_key_of_one_kind_is_not_looked_for_among_the_other():
    assert ACCESS.account_key(digest(OPERATOR)) is None
    assert ACCESS.operator_key(digest(WHOLE)) is None


def test_the_configuration_holds_accounts_with_and_without_keys():
    assert ACCESS.holds_account("acct_a")
    assert ACCESS.holds_account("acct_empty")
    assert not ACCESS.holds_account("acct_none")


# --- the one credential of a request

TOKEN = "wst_a.b"
OFFERED = ("daimon.v1", f"bearer.{TOKEN}")


@pytest.mark.parametrize(
    ("authorization", "query"),
    [
        ("Bearer K", {}),
        ("bearer K", {}),
        ("BEARER   K ", {}),
        (None, {"key": "K"}),
        (None, {"token": "K", "since": "x"}),
    ],
)
def test_a_credential_is_taken_from_the_header_else_from_the_query(authorization, query):
    assert credential_of(authorization, query) == "K"
    assert credential_of(authorization, query, ["daimon.v1", "chat"]) == "K"


@pytest.mark.parametrize("offered", [OFFERED, OFFERED[1:], OFFERED[::-1], (*OFFERED, "chat")])
def test_a_token_is_taken_from_the_subprotocols_that_are_offered(offered):
    assert credential_of(None, {}, offered) == TOKEN


@pytest.mark.parametrize("authorization", ["Basic cHJveHk6c2VjcmV0", "Digest Bearer", "K", "", "Bearerish K"])
def test_another_scheme_is_a_proxys_and_not_looked_at(authorization):
    assert credential_of(authorization, {"key": "K"}) == "K"
    assert credential_of(authorization, {}, OFFERED) == TOKEN
    assert refusal(credential_of, authorization, {}).code == "unauthorized"


@pytest.mark.parametrize(
    ("authorization", "query", "offered"),
    [
        ("Bearer K", {"key": "K"}, ()),
        ("Bearer K", {"token": "K"}, ()),
        (None, {"key": "K", "token": "K"}, ()),
        ("Bearer", {"key": ""}, ()),
        ("Bearer", {"key": "K"}, ()),
        ("Basic B", {"key": "K", "token": "K"}, ()),
        (f"Bearer {TOKEN}", {}, OFFERED),
        (None, {"token": TOKEN}, OFFERED),
        (None, {"token": ""}, OFFERED),
        (None, {}, (*OFFERED, "bearer.wst_other")),
        (None, {}, (*OFFERED, OFFERED[1])),
        ("Bearer K", {}, ("bearer.dm_live_x",)),
    ],
)
def test_two_credentials_are_a_bad_request_even_if_they_are_the_same(authorization, query, offered):
    assert refusal(credential_of, authorization, query, offered).code == "bad_request"


@pytest.mark.parametrize(
    ("authorization", "query"),
    [(None, {}), (None, {"key": ""}), ("Bearer", {}), ("Bearer  ", {}), ("Basic K", {}), ("K", {}), ("", {})],
)
def test_no_credential_is_unauthorized(authorization, query):
    error = refusal(credential_of, authorization, query)
    assert error.code == "unauthorized"
    assert error.headers == (("WWW-Authenticate", "Bearer"),)


@pytest.mark.parametrize("name", ["bearer.dm_live_alice", "bearer.", "bearer.WST_a"])
def test_a_subprotocol_carries_no_key_and_the_refusal_does_not_repeat_it(name):
    error = refusal(credential_of, None, {}, ["daimon.v1", name])
    assert error.code == "unauthorized"
    assert "token" in error.message
    assert "alice" not in error.message


# --- what it reaches


def test_a_key_may_do_what_its_scopes_say():
    key = key_of("publish")
    key.require("publish")
    error = refusal(key.require, "subscribe")
    assert error.code == "forbidden"
    assert "`subscribe`" in error.message


def test_an_account_key_reaches_every_inbox_and_the_accounts_own_events():
    key = key_of("publish")
    key.require_inbox("anything", "$")
    key.require_inbox(None, "$")


def test_an_inbox_key_reaches_its_inboxes_and_no_account_events():
    key = key_of("publish", inbox_ids={"a"})
    key.require_inbox("a", "$")
    for inbox, words in (("b", "'b'"), (None, "needs an inbox")):
        error = refusal(key.require_inbox, inbox, "$.inbox_id")
        assert error.code == "forbidden"
        assert "`$.inbox_id`" in error.message
        assert words in error.message


def test_what_an_account_key_selects_has_the_accounts_own_events_with_it():
    key = key_of("subscribe")
    assert key.select(["*"], "p") == key.select("*", "p") == key.select(["a", "*"], "p") == EVERYTHING
    assert key.select(["a"], "p") == Selection(frozenset({"a", ACCOUNT_EVENTS}))


def test_what_an_inbox_key_selects_is_part_of_its_inboxes():
    key = key_of("subscribe", inbox_ids={"a", "b"})
    assert key.select(["*"], "p") == Selection(frozenset({"a", "b"}))
    assert key.select(["b"], "p") == Selection(frozenset({"b"}))
    assert "`p[1]`" in refusal(key.select, ["a", "c"], "p").message


@pytest.mark.parametrize(
    ("key", "selection"),
    [
        (key_of("subscribe"), Selection(frozenset({ACCOUNT_EVENTS}))),
        (key_of("subscribe", inbox_ids={"a"}), Selection(frozenset({"a"}))),
        (key_of("publish"), NOTHING),
        (key_of("publish", inbox_ids={"a"}), NOTHING),
    ],
)
def test_a_connection_that_asks_for_nothing_gets_what_its_key_stands_for(key, selection):
    assert key.initial_selection() == selection


def test_clients_see_inboxes_sorted_and_never_the_accounts_own():
    assert inbox_ids_of(EVERYTHING) == [ALL_INBOXES] == ["*"]
    assert inbox_ids_of(Selection(frozenset({"b", "a", "c"}))) == ["a", "b", "c"]
    assert inbox_ids_of(Selection(frozenset({"b", "a", ACCOUNT_EVENTS}))) == ["a", "b"]
    assert inbox_ids_of(NOTHING) == []


# --- what a token leaves of it

SCOPES = ("subscribe", "command", "publish")
reaches = st.none() | st.frozensets(st.sampled_from("abc"))
scope_sets = st.frozensets(st.sampled_from(SCOPES))
keys = st.builds(Key, st.just("key"), st.just("acct_a"), scope_sets, reaches)
narrowings = st.builds(Narrowing, reaches, st.none() | scope_sets)


def test_a_key_itself_may_do_everything_that_a_key_may_and_a_token_of_it_may_not():
    key = key_of("subscribe")
    assert key.narrowed(None) is key
    key.require_key()
    assert refusal(key.narrowed(Narrowing()).require_key).code == "forbidden"


@given(keys, narrowings)
def test_what_is_left_is_what_key_and_narrowing_have_in_common(key, narrowing):
    left = key.narrowed(narrowing)
    assert left.scopes == (key.scopes if narrowing.scopes is None else key.scopes & narrowing.scopes)
    for inbox in ("a", "b", "c", "d"):
        both = [inbox_ids is None or inbox in inbox_ids for inbox_ids in (key.inbox_ids, narrowing.inbox_ids)]
        assert (left.inbox_ids is None or inbox in left.inbox_ids) == all(both)
    assert (left.inbox_ids is None) == (key.inbox_ids is None and narrowing.inbox_ids is None)
    assert (left.id, left.account_id, left.tier) == (key.id, key.account_id, key.tier)


@given(keys, narrowings)
def test_narrowing_again_by_the_same_changes_nothing(key, narrowing):
    left = key.narrowed(narrowing)
    assert left.narrowed(narrowing) == left
    assert left.narrowed(left.narrowing) == left


@pytest.mark.parametrize(
    ("key", "inbox_ids"),
    [
        (key_of("subscribe", "publish", inbox_ids={"a", "b"}), {"a", "b"}),
        (key_of("subscribe", "publish").narrowed(Narrowing(frozenset({"a"}))), {"a"}),
        (key_of("subscribe", "command"), None),
    ],
)
def test_what_is_left_for_a_look_is_to_subscribe_to_all_that_it_reaches(key, inbox_ids):
    looking = key.looking()
    assert (looking.scopes, looking.inbox_ids) == ({"subscribe"}, inbox_ids)
    assert key_of("publish").looking().scopes == frozenset()


def test_what_is_left_for_a_look_of_a_token_is_no_more_when_its_key_is_judged_again():
    key = key_of("subscribe", "command")
    looking = key.narrowed(Narrowing(frozenset({"a"}))).looking()
    assert key.narrowed(looking.narrowing) == looking


def test_what_is_for_a_whole_account_or_for_operators_is_refused_to_others():
    key_of("subscribe").require_whole_account()
    assert refusal(key_of("subscribe", inbox_ids={"a"}).require_whole_account).code == "forbidden"
    ACCESS.operator_key(digest(OPERATOR)).require_operator()
    assert refusal(key_of("subscribe").require_operator).code == "forbidden"


# --- who its bearer is


@given(keys, keys, narrowings, narrowings)
def test_the_same_key_narrowed_the_same_is_the_same_client_and_another_is_not(one, other, narrowing, another):
    """Whatever the key reaches, and however it is called."""
    one, other = (msgspec.structs.replace(key, id=name, sha256="aa") for key, name in ((one, "a"), (other, "b")))
    assert one.identity == other.identity
    left, right = one.narrowed(narrowing).identity, other.narrowed(another).identity
    assert (left == right) == (narrowing == another)
    assert (left == one.identity) == (narrowing == Narrowing())
    assert one.narrowed(narrowing).narrowed(narrowing).identity == left
    stranger = msgspec.structs.replace(one, sha256="bb")
    assert stranger.identity not in (one.identity, left)
    assert stranger.narrowed(narrowing).identity not in (one.identity, left)


def test_who_a_client_is_is_the_same_text_in_every_process():
    """It is remembered where others look it up, too."""
    key = msgspec.structs.replace(key_of("subscribe"), sha256="aa")
    narrowing = Narrowing(frozenset({"in_2", "in_1"}), frozenset({"subscribe"}))
    assert key.narrowed(narrowing).identity == "aa/2aa52d9b2e9fdd02e9af3477f23afddf"


def test_a_key_without_a_secret_is_known_by_its_id_and_is_the_librarys():
    key, given = key_of("subscribe"), msgspec.structs.replace(key_of("subscribe"), sha256="aa")
    assert key.identity == "key"
    assert key.narrowed(Narrowing(frozenset({"a"}))).identity.startswith("key/")
    assert (key.is_library, given.is_library) == (True, False)


# --- all that a connection of it may be sent


@pytest.mark.parametrize(
    ("key", "reach"),
    [
        (key_of("subscribe"), EVERYTHING),
        (key_of("subscribe", inbox_ids={"a", "b"}), Selection(frozenset({"a", "b"}))),
        (key_of("subscribe", inbox_ids=set()), NOTHING),
        (key_of("publish", "command"), NOTHING),
        (key_of("publish", inbox_ids={"a"}), NOTHING),
        (key_of("subscribe").narrowed(Narrowing(frozenset({"a"}))), Selection(frozenset({"a"}))),
        (key_of("subscribe").narrowed(Narrowing(None, frozenset())), NOTHING),
    ],
)
def test_a_key_reaches_its_inboxes_if_it_may_subscribe(key, reach):
    assert key.reach == reach


@pytest.mark.parametrize(
    ("key", "events"),
    [
        (key_of("subscribe"), Selection(frozenset({ACCOUNT_EVENTS}))),
        (key_of("subscribe", inbox_ids={"a"}), NOTHING),
        (key_of("publish"), NOTHING),
    ],
)
def test_every_connection_of_a_key_that_reaches_them_gets_the_accounts_own_events(key, events):
    assert key.account_events == events


@given(keys)
def test_a_connection_can_select_nothing_that_its_key_does_not_reach(key):
    assert key.initial_selection().minus(key.reach) == NOTHING
    if "subscribe" in key.scopes:
        assert key.select([ALL_INBOXES], "p") == key.reach
        assert (ACCOUNT_EVENTS in key.reach) == (key.inbox_ids is None)


@given(keys, narrowings)
def test_a_token_reaches_nothing_that_its_key_does_not_reach(key, narrowing):
    assert key.narrowed(narrowing).reach.minus(key.reach) == NOTHING


def test_a_token_reaches_no_inbox_that_its_key_does_not_reach_any_more():
    narrowing = Narrowing(frozenset({"inb_a", "inb_b"}))
    key = Key("key_1", "acct_1", frozenset({"subscribe"}), frozenset({"inb_a", "inb_c"}))
    assert key.narrowed(narrowing).inbox_ids == {"inb_a"}
    whole = Key("key_1", "acct_1", frozenset({"subscribe"}))
    assert whole.narrowed(narrowing).inbox_ids == {"inb_a", "inb_b"}


def test_very_many_keys_are_let_go_in_steps():
    """To free them all is long: of 100,000 it was a step of 60 ms."""
    scopes = ("subscribe",)

    def made(first: int, count: int) -> tuple[KeyConfig, ...]:
        return tuple(KeyConfig(id=f"k{n}", sha256=digest(str(n)), scopes=scopes) for n in range(first, first + count))

    def alive() -> int:
        return sys.getrefcount(scopes)

    ones = [AccountConfig(id=f"acct_{n}", keys=made(n, 1)) for n in range(3_000)]
    access = Access(Config(accounts=(*ones, AccountConfig(id="acct_many", keys=made(3_000, 3_000)))))
    del ones
    left = [alive(), *(alive() for _ in access.let_go()), alive()]
    assert left[0] - left[-1] == 6_000
    assert max(before - after for before, after in pairwise(left)) <= 1_024
