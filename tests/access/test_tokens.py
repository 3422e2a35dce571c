"""Connection tokens: what they leave of a key and that nobody makes, bends or prolongs one; credentials in no log."""

import json
import logging
import string
from datetime import UTC, datetime, timedelta

import pytest
import trio
from clients import (
    ACCOUNT,
    ALICE,
    BOB,
    INBOXES,
    LISTENER,
    OPERATOR,
    PUBLISHER,
    TEXT,
    alices,
    ask,
    bearer,
    broker_log,
    config_of,
    configured,
    configured_key,
    connected,
    event,
    masked,
    numbers,
    opening,
    serving,
    token_of,
)
from hypothesis import assume, example, given
from hypothesis import strategies as st

import broker.access.keyring
from broker import KeyConfig, RequestError, TokensConfig
from broker.access.keys import Key, digest_of
from broker.access.tokens import MAX_NAMES, MAX_TOKEN_LENGTH, Tokens
from broker.protocol.messages import TokenRequest

SECRET = "a secret that all processes of a deployment share"
NOW = datetime(2026, 11, 23, 10, 0, 0, 123_000, UTC)
TTL = 60
MILLISECOND = timedelta(milliseconds=1)
TOKENS = Tokens(SECRET, TTL)
ALL_SCOPES = ("subscribe", "command", "publish")

inboxes = st.sampled_from("abcdef")
scopes = st.sampled_from(ALL_SCOPES)
keys = st.builds(
    Key,
    st.just("key"),
    st.just(ACCOUNT),
    st.frozensets(scopes),
    st.none() | st.frozensets(inboxes, min_size=1),
    sha256=st.just(digest_of(ALICE)),
)
requests = st.builds(
    TokenRequest,
    st.none() | st.just("*") | st.lists(inboxes | st.just("*"), min_size=1, max_size=4),
    st.none() | st.lists(scopes, max_size=3),
    st.none() | st.floats(0.001, 2 * TTL) | st.integers(1, 2 * TTL),
)
TOKEN = TOKENS.issue(
    Key("key", ACCOUNT, frozenset(ALL_SCOPES), sha256=digest_of(ALICE)), TokenRequest(["a", "b"], ["subscribe"]), NOW
).token


def issued(key: Key, request: TokenRequest, wall: datetime = NOW):
    """A token and what it leaves of its key; None if it is refused."""
    try:
        token = TOKENS.issue(key, request, wall)
    except RequestError:
        return None
    return token, key.narrowed(TOKENS.read(token.token, wall).narrowing)


def everything(**fields) -> Key:
    return Key("key", ACCOUNT, frozenset(ALL_SCOPES), sha256=digest_of(ALICE), **fields)


def refusal(call, *arguments) -> RequestError:
    with pytest.raises(RequestError) as refused:
        call(*arguments)
    return refused.value


def check_unauthorized(token: str, wall: datetime = NOW, tokens: Tokens = TOKENS) -> None:
    error = refusal(tokens.read, token, wall)
    assert error.code == "unauthorized"
    assert error.headers == (("WWW-Authenticate", "Bearer"),)
    assert len(token) < 30 or token not in str(error)


# --- what a token leaves of its key


@given(keys, requests)
def test_a_token_reaches_what_its_key_and_its_request_have_in_common(key, request):
    made = issued(key, request)
    assume(made is not None)
    left = made[1]
    asked = request.inbox_ids
    whole = asked is None or "*" in asked
    assert left.inbox_ids == (key.inbox_ids if whole else frozenset(asked))
    assert left.scopes == (key.scopes if request.scopes is None else frozenset(request.scopes))
    assert (left.id, left.account_id, left.tier, left.sha256) == (key.id, key.account_id, key.tier, key.sha256)


@given(keys, requests)
def test_no_token_reaches_more_than_its_key(key, request):
    made = issued(key, request)
    assume(made is not None)
    left = made[1]
    assert left.scopes <= key.scopes
    assert key.inbox_ids is None or (left.inbox_ids is not None and left.inbox_ids <= key.inbox_ids)


@given(keys, keys, requests)
def test_a_token_of_a_key_that_reaches_less_by_now_reaches_no_more_than_that(key, later, request):
    made = issued(key, request)
    assume(made is not None)
    left = later.narrowed(TOKENS.read(made[0].token, NOW).narrowing)
    assert left.scopes == later.scopes & (made[1].scopes if request.scopes is not None else later.scopes)
    assert later.inbox_ids is None or (left.inbox_ids is not None and left.inbox_ids <= later.inbox_ids)
    if request.inbox_ids is not None and "*" not in request.inbox_ids:
        assert left.inbox_ids is not None
        assert left.inbox_ids <= set(request.inbox_ids)


@given(keys, requests)
def test_only_what_would_be_more_than_the_key_is_refused_and_the_field_is_named(key, request):
    asked = request.inbox_ids
    wider = set()
    if key.inbox_ids is not None and asked is not None and "*" not in asked and not set(asked) <= key.inbox_ids:
        wider.add("$.inbox_ids[")
    if not set(request.scopes or ()) <= key.scopes:
        wider.add("$.scopes[")
    if (request.ttl_seconds or 0) > TTL:
        wider.add("$.ttl_seconds")
    if not wider:
        assert issued(key, request) is not None
        return
    error = refusal(TOKENS.issue, key, request, NOW)
    assert error.code == "forbidden"
    assert any(field in error.message for field in wider)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (TokenRequest(["a", "c"]), "$.inbox_ids[1]"),
        (TokenRequest(scopes=["subscribe", "publish"]), "$.scopes[1]"),
        (TokenRequest(ttl_seconds=TTL + 0.001), "$.ttl_seconds"),
        (TokenRequest(ttl_seconds=10**400), "$.ttl_seconds"),
    ],
)
def test_a_token_that_would_be_wider_than_its_key_is_forbidden_and_the_field_named(request_, field):
    key = Key("key", ACCOUNT, frozenset({"subscribe"}), frozenset("ab"), sha256=digest_of(ALICE))
    error = refusal(TOKENS.issue, key, request_, NOW)
    assert error.code == "forbidden"
    assert f"`{field}`" in error.message


def test_tokens_get_no_tokens():
    token = issued(everything(), TokenRequest())[1]
    assert refusal(TOKENS.issue, token, TokenRequest(), NOW).code == "forbidden"


def test_operators_get_no_tokens():
    operator = Key("op", None, frozenset({"publish"}), sha256=digest_of(OPERATOR))
    assert refusal(TOKENS.issue, operator, TokenRequest(), NOW).code == "forbidden"


# --- its time


@given(st.integers(0, 999), st.integers(0, 86_400), st.none() | st.integers(1, TTL * 1000))
@example(0, 0, None)
def test_a_token_is_good_until_the_moment_that_was_said_and_not_from_then_on(ms, seconds, ttl_ms):
    wall = datetime(2026, 11, 23, tzinfo=UTC) + timedelta(seconds=seconds, milliseconds=ms)
    ttl_seconds = None if ttl_ms is None else ttl_ms / 1000
    token = TOKENS.issue(everything(), TokenRequest(ttl_seconds=ttl_seconds), wall)
    expires_at = datetime.fromisoformat(token.expires_at)
    assert expires_at == wall + (timedelta(seconds=TTL) if ttl_ms is None else timedelta(milliseconds=ttl_ms))
    assert TOKENS.read(token.token, expires_at - MILLISECOND).key_sha256 == digest_of(ALICE)
    for late in (timedelta(), MILLISECOND, timedelta(seconds=1), timedelta(days=400)):
        check_unauthorized(token.token, expires_at + late)


@given(st.integers(0, 999_999))
def test_no_token_lives_longer_than_was_said(microsecond):
    token = TOKENS.issue(everything(), TokenRequest(), NOW.replace(microsecond=microsecond))
    check_unauthorized(token.token, datetime.fromisoformat(token.expires_at))


def test_the_time_is_written_in_utc_with_milliseconds():
    assert TOKENS.issue(everything(), TokenRequest(), NOW).expires_at == "2026-11-23T10:01:00.123Z"


# --- what is no token


@given(st.integers(0, len(TOKEN) - 1), st.characters() | st.sampled_from(string.printable))
def test_a_token_with_any_one_character_changed_is_no_token(position, character):
    assume(TOKEN[position] != character)
    check_unauthorized(TOKEN[:position] + character + TOKEN[position + 1 :])


def test_every_character_of_a_token_counts_to_its_last_bit():
    """The last character of a base64 text has bits that decoders ignore."""
    alphabet = string.ascii_letters + string.digits + "-_+/=."
    for position in range(len(TOKEN)):
        for character in alphabet.replace(TOKEN[position], ""):
            check_unauthorized(TOKEN[:position] + character + TOKEN[position + 1 :])


@given(st.integers(0, len(TOKEN) - 1))
def test_a_part_of_a_token_is_no_token(size):
    check_unauthorized(TOKEN[:size])


@given(st.text(min_size=1))
@example("=")
@example("\n")
@example(".")
@example("\ud800")
def test_a_token_with_anything_behind_or_before_it_is_no_token(more):
    check_unauthorized(TOKEN + more)
    check_unauthorized(more + TOKEN)


@given(st.text(st.characters() | st.characters(categories=["Cs"])) | st.text("abc.=-_\u00e9\ud800"))
@example("")
@example(".")
@example("wst_.")
@example("wst_\ud800.\udfff")
def test_whatever_text_is_given_it_is_unauthorized_and_nothing_worse(text):
    check_unauthorized(text)
    check_unauthorized("wst_" + text)


@given(st.text(min_size=1), st.text(min_size=32, max_size=40))
def test_what_another_secret_signed_is_no_token(text, other):
    assume(other != SECRET)
    tokens = Tokens(other, TTL)
    check_unauthorized(tokens.issue(everything(), TokenRequest(), NOW).token)
    check_unauthorized(TOKEN, tokens=tokens)


def test_the_signature_of_another_token_is_not_good():
    other = TOKENS.issue(everything(), TokenRequest(), NOW).token
    check_unauthorized(f"{TOKEN.rpartition('.')[0]}.{other.rpartition('.')[2]}")


def test_a_token_is_good_in_every_process_of_the_same_secret():
    left = Tokens(SECRET, TTL).read(TOKEN, NOW)
    assert left == TOKENS.read(TOKEN, NOW)
    assert left.narrowing.inbox_ids == {"a", "b"}


def test_a_token_that_would_be_too_long_is_not_issued():
    many = TokenRequest([f"inbox_{number}_{'x' * 100}" for number in range(100)])
    error = refusal(TOKENS.issue, everything(), many, NOW)
    assert (error.code, error.status) == ("too_large", 413)
    assert "`$.inbox_ids`" in error.message
    longest = ["x" * (MAX_TOKEN_LENGTH // 2)]
    token = TOKENS.issue(everything(), TokenRequest(longest), NOW).token
    assert len(token) <= MAX_TOKEN_LENGTH
    assert TOKENS.read(token, NOW).narrowing.inbox_ids == set(longest)


class Names(list):
    """A list of which nobody may look at a single item."""

    def __iter__(self):
        raise AssertionError("it was looked at")

    __getitem__ = __contains__ = __iter__


@pytest.mark.parametrize("field", ["inbox_ids", "scopes"])
def test_what_cannot_fit_into_a_token_is_refused_unseen(field):
    key = everything(inbox_ids=frozenset("ab"))
    request = TokenRequest(**{field: Names(["a"] * (MAX_NAMES + 1))})
    error = refusal(TOKENS.issue, key, request, NOW)
    assert (error.code, error.status) == ("too_large", 413)
    assert f"`$.{field}`" in error.message
    operator = Key("op", None, frozenset({"publish"}), sha256=digest_of(OPERATOR))
    assert refusal(TOKENS.issue, operator, request, NOW).code == "forbidden"


def test_names_that_are_too_long_together_are_refused_before_the_key_is_looked_at():
    key = everything(inbox_ids=frozenset("ab"))
    request = TokenRequest(["c" * 100] * (MAX_TOKEN_LENGTH // 100 + 1))
    assert refusal(TOKENS.issue, key, request, NOW).code == "too_large"


def test_as_many_inboxes_as_fit_may_be_named():
    most = [f"{number:x}" for number in range(500)]
    assert len(TOKENS.issue(everything(), TokenRequest(most), NOW).token) <= MAX_TOKEN_LENGTH
    assert TOKENS.issue(everything(), TokenRequest(["a"] * MAX_NAMES, ["publish"] * 100), NOW)


def test_a_token_that_is_too_long_is_not_read_though_its_signature_is_good(monkeypatch):
    monkeypatch.setattr("broker.access.tokens.MAX_TOKEN_LENGTH", 10 * MAX_TOKEN_LENGTH)
    token = TOKENS.issue(everything(), TokenRequest(["x" * MAX_TOKEN_LENGTH]), NOW).token
    assert TOKENS.read(token, NOW).key_sha256 == digest_of(ALICE)
    monkeypatch.undo()
    check_unauthorized(token)


def test_a_token_does_not_hold_the_key_itself():
    assert ALICE not in TOKEN
    assert SECRET not in TOKEN


# --- asking for one

PATH = "/v1/websocket/token"


async def make(served, key: str | None = ALICE, body: bytes | None = None, **request):
    """The answer to the request for a token."""
    if request:
        body = json.dumps(request).encode()
    return await ask(served.address, "POST", PATH, key=key, body=body)


@pytest.mark.parametrize("body", [None, b"", b"{}", b'{"unknown": 1}', b'{"inbox_ids": null, "scopes": null}'])
async def test_a_token_of_the_whole_key_is_given_for_nothing_said(body):
    before = datetime.now(UTC)
    async with serving() as served:
        answer = await make(served, body=body)
        assert answer.status == 200
        assert set(answer.json) == {"result"}
        assert set(answer.result) == {"token", "expires_at"}
        assert answer.result["token"].startswith("wst_")
        text = answer.result["expires_at"]
        assert text == datetime.fromisoformat(text).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        assert before + timedelta(seconds=59.9) < datetime.fromisoformat(text)
        assert datetime.fromisoformat(text) < datetime.now(UTC) + timedelta(seconds=60)


BAD = {
    "bad JSON": (b"{", 400, "invalid_json", "$"),
    "not UTF-8": (b'{"inbox_ids":["\xff"]}', 400, "invalid_json", "$"),
    "a list": (b"[]", 400, "invalid_params", "$"),
    "null": (b"null", 400, "invalid_params", "$"),
    "no inboxes": (b'{"inbox_ids": []}', 400, "invalid_params", "$.inbox_ids"),
    "an inbox that is no name": (b'{"inbox_ids": ["in_1", "a b"]}', 400, "invalid_params", "$.inbox_ids[1]"),
    "a scope that is none": (b'{"scopes": ["subscribe", "admin"]}', 400, "invalid_params", "$.scopes[1]"),
    "no time": (b'{"ttl_seconds": 0}', 400, "invalid_params", "$.ttl_seconds"),
    "an inbox of somebody else": (b'{"inbox_ids": ["in_1", "in_9"]}', 403, "forbidden", "$.inbox_ids[1]"),
    "a longer time": (b'{"ttl_seconds": 61}', 403, "forbidden", "$.ttl_seconds"),
    "a very long time": (b'{"ttl_seconds": %b}' % (b"9" * 400), 403, "forbidden", "$.ttl_seconds"),
}


@pytest.mark.parametrize(("body", "status", "code", "path"), BAD.values(), ids=BAD.keys())
async def test_a_request_for_a_token_that_may_not_be_is_refused_and_names_the_field(body, status, code, path):
    async with serving() as served:
        answer = await make(served, INBOXES, body)
        assert (answer.status, answer.code) == (status, code)
        assert f"`{path}`" in answer.message


async def test_scopes_that_the_key_has_not_are_forbidden():
    async with serving() as served:
        answer = await make(served, LISTENER, scopes=["subscribe", "publish"])
        assert (answer.status, answer.code) == (403, "forbidden")
        assert "`$.scopes[1]`" in answer.message


async def test_operators_and_tokens_get_none_and_strangers_are_not_known():
    async with serving() as served:
        assert (await make(served, OPERATOR)).status == 403
        assert (await make(served, await token_of(served.address))).status == 403
        assert (await make(served, None)).status == 401
        assert (await make(served, "dm_live_nobody")).status == 401


async def test_too_many_inboxes_for_a_token_are_too_large():
    async with serving() as served:
        answer = await make(served, inbox_ids=["x" * 100 + str(number) for number in range(100)])
        assert (answer.status, answer.code) == (413, "too_large")


# --- what it opens


@pytest.mark.parametrize("where", ["header", "token", "key"])
async def test_a_token_opens_a_stream_of_what_its_key_reaches(where):
    async with serving() as served:
        token = await token_of(served.address)
        query = "inbox_ids=*" if where == "header" else f"inbox_ids=*&{where}={token}"
        header = bearer(token) if where == "header" else ("Authorization", "")
        async with connected(served.address, query, header) as client:
            assert client.ready["inbox_ids"] == ["*"]
            await served.broker.publish(ACCOUNT, [event(1), event(2, inbox=None)])
            assert numbers([await client.next(), await client.next()]) == [1, 2]


async def test_a_token_may_be_used_more_than_once():
    async with serving() as served:
        token = await token_of(served.address)
        async with connected(served.address, key=token), connected(served.address, key=token):
            pass


@pytest.mark.parametrize("target", ["/v1/events", "/v1/commands", PATH])
@pytest.mark.parametrize("where", ["header", "query"])
async def test_a_token_opens_nothing_else(target, where):
    async with serving() as served:
        token = await token_of(served.address)
        target, key = (target, token) if where == "header" else (f"{target}?token={token}", None)
        answer = await ask(served.address, "POST", target, key=key, body=b'{"action": "ping"}')
        assert (answer.status, answer.code) == (403, "forbidden")
        assert served.broker.statistics().published == 0


class Calendar(datetime):
    """The time of day, put forward by so much."""

    ahead = timedelta()

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + cls.ahead


@pytest.fixture
def calendar(monkeypatch):
    monkeypatch.setattr(broker.access.keyring, "datetime", Calendar)
    monkeypatch.setattr(Calendar, "ahead", timedelta())
    return Calendar


async def test_a_connection_lives_on_after_its_token_has_expired(calendar):
    async with serving() as served:
        token = await token_of(served.address, inbox_ids=["in_1"])
        async with connected(served.address, "inbox_ids=in_1", key=token) as client:
            calendar.ahead = timedelta(seconds=61)
            assert (await opening(served.address, key=token)).status == 401
            served.broker.reload(served.broker.config)
            await served.broker.publish(ACCOUNT, event(1))
            assert numbers([await client.next()]) == [1]
            await client.ping()


async def test_a_shorter_time_may_be_asked_for(calendar):
    async with serving() as served:
        token = await token_of(served.address, ttl_seconds=5)
        calendar.ahead = timedelta(seconds=4)
        async with connected(served.address, key=token):
            pass
        calendar.ahead = timedelta(seconds=5)
        assert (await opening(served.address, key=token)).status == 401


async def test_the_longest_time_is_configured(calendar):
    async with serving(config_of(alices(), tokens=TokensConfig(ttl_seconds=3600))) as served:
        token = await token_of(served.address, ttl_seconds=3600)
        assert (await make(served, ttl_seconds=3600.5)).status == 403
        calendar.ahead = timedelta(seconds=3590)
        async with connected(served.address, key=token):
            pass


async def test_a_token_is_dead_with_its_key():
    other = configured_key("dm_live_other")
    async with serving(config_of(alices(configured_key(ALICE), other))) as served:
        token = await token_of(served.address)
        async with connected(served.address, key=token):
            pass
        served.broker.reload(config_of(alices(other)))
        assert (await opening(served.address, key=token)).status == 401


async def test_a_token_of_one_process_opens_the_stream_of_another_with_the_same_secret():
    config = config_of(alices(), tokens=TokensConfig(secret=SECRET))
    async with serving(config) as one, serving(config) as two, serving(config_of(alices())) as stranger:
        token = await token_of(one.address)
        async with connected(two.address, key=token):
            pass
        assert (await opening(stranger.address, key=token)).status == 401


# --- what is left of the key on an open connection


async def test_a_token_of_some_inboxes_is_an_inbox_key_without_the_accounts_own_events():
    async with serving() as served:
        token = await token_of(served.address, inbox_ids=["in_2", "in_1"])
        async with connected(served.address, key=token) as client:
            assert client.ready["inbox_ids"] == ["in_1", "in_2"]
            events = [event(1), event(2, inbox=None), event(3, inbox="in_3"), event(4, inbox="in_2")]
            await served.broker.publish(ACCOUNT, events)
            assert numbers([await client.next(), await client.next()]) == [1, 4]
            await client.ping()


async def test_a_token_subscribes_publishes_and_commands_only_where_it_reaches():
    done = []
    async with serving() as served:

        @served.broker.command("work")
        async def work(params, context):
            done.append((context.inbox_id, context.inbox_ids))

        token = await token_of(served.address, inbox_ids=["in_1"])
        async with connected(served.address, key=token) as client:
            for inbox, code in (("in_2", "forbidden"), ("in_1", None)):
                await client.say(action="subscribe", request_id="s", inbox_ids=[inbox])
                assert (await client.answer("s")).get("error", {}).get("code") == code
                await client.say(action="publish", request_id=f"p{inbox}", events=event(inbox=inbox))
                assert (await client.answer(f"p{inbox}")).get("error", {}).get("code") == code
                await client.say(action="work", request_id=f"w{inbox}", inbox_id=inbox)
                assert (await client.answer(f"w{inbox}")).get("error", {}).get("code") == code
            await client.say(action="publish", request_id="p", events=event(inbox=None))
            assert (await client.answer("p"))["error"]["code"] == "forbidden"
            await client.say(action="subscribe", request_id="all", inbox_ids="*")
            assert (await client.answer("all"))["result"]["inbox_ids"] == ["in_1"]
        assert done == [("in_1", {"in_1"})]
        assert served.broker.statistics().published == 1
        assert (await opening(served.address, "inbox_ids=in_2", key=token)).status == 403


async def test_a_token_may_do_only_what_its_scopes_say():
    async with serving() as served:
        token = await token_of(served.address, scopes=["subscribe"])
        async with connected(served.address, key=token) as client:
            await client.say(action="publish", request_id="p", events=event())
            assert (await client.answer("p"))["error"]["code"] == "forbidden"
            await client.say(action="work", request_id="w")
            assert (await client.answer("w"))["error"]["code"] == "forbidden"
        token = await token_of(served.address, scopes=[])
        async with connected(served.address, key=token) as client:
            await served.broker.publish(ACCOUNT, [event(1), event(2, inbox=None)])
            await client.ping()
        assert (await opening(served.address, "inbox_ids=*", key=token)).status == 403


# --- a client that is known again


async def test_a_token_that_is_narrowed_neither_gets_nor_gives_answers_of_its_keys_commands():
    """The handler answers by what it is told the key reaches."""
    async with serving() as served:
        asked = []

        @served.broker.command("look")
        async def look(params, context):
            asked.append(context.message_id)
            return "all" if context.inbox_ids is None else sorted(context.inbox_ids)

        async def answer(key: str, query: str = "") -> object:
            async with connected(served.address, query, key=key) as client:
                await client.say(action="look", request_id="r1")
                return (await client.answer("r1"))["result"]

        narrowed = [await token_of(served.address, inbox_ids=[inbox]) for inbox in ("in_1", "in_2", "in_2")]
        whole = await token_of(served.address)
        assert await answer(narrowed[0]) == ["in_1"]
        assert await answer(ALICE) == "all"
        assert await answer(narrowed[1]) == ["in_2"]
        assert len(set(asked)) == 3
        # The same key narrowed the same is the same client: its answer is given again.
        assert await answer(narrowed[2]) == ["in_2"]
        assert await answer(whole) == "all"
        assert len(asked) == 3
        assert await answer(narrowed[0], "client_id=c") == ["in_1"]
        assert len(set(asked)) == 4


async def test_a_token_that_is_narrowed_publishes_under_request_ids_of_its_own():
    async with serving() as served:
        token = await token_of(served.address, inbox_ids=["in_1"])
        for key, number in ((ALICE, 1), (token, 2), (ALICE, 1), (token, 2)):
            async with connected(served.address, key=key) as client:
                await client.say(action="publish", request_id="r1", events=[event(number)])
                assert "result" in await client.answer("r1")
        assert served.broker.statistics().published == 2


async def test_a_key_that_a_reload_changes_is_the_same_client_and_what_it_sends_again_is_not_done_again():
    """It was asked for before: an answer that was on its way once is no news."""
    async with serving() as served:
        asked = []

        @served.broker.command("send")
        async def send(params, context):
            asked.append(context.message_id)
            return len(asked)

        async def answer(key: str = ALICE) -> object:
            async with connected(served.address, key=key) as client:
                await client.say(action="send", request_id="r1", inbox_id="in_1")
                return (await client.answer("r1"))["result"]

        assert await answer() == 1
        served.broker.reload(config_of(alices(configured_key(ALICE, inbox_ids=("in_1", "in_2")))))
        assert await answer() == 1
        # Another secret under the old name is somebody else.
        new = KeyConfig(id=configured_key(ALICE).id, sha256=digest_of("dm_live_new"))
        served.broker.reload(config_of(alices(new)))
        assert await answer("dm_live_new") == 2
        assert len(set(asked)) == 2


# --- bad credentials: each its refusal, none in a log


@pytest.fixture
def everything_logged(caplog):
    """Log all that anybody would ever log."""
    before = {}
    for logger in (logging.getLogger(name) for name in logging.root.manager.loggerDict):
        before[logger] = logger.level
        logger.setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    yield caplog
    for logger, level in before.items():
        logger.setLevel(level)


FLIPPED = TOKEN[:-1] + ("A" if TOKEN[-1] != "A" else "B")
CREDENTIALS = {
    "header and key": (f"key={ALICE}", ALICE, 400),
    "header and token": ("token={token}", ALICE, 400),
    "key and token": (f"key={ALICE}&token={{token}}", None, 400),
    "the same key twice": (f"key={ALICE}&key={ALICE}", None, 400),
    "the same token twice": ("token={token}&token={token}", None, 400),
    "one name twice, once encoded": (f"key={ALICE}&%6bey={BOB}", None, 400),
    "a header and an empty key": ("key=", ALICE, 400),
    "none": ("", None, 401),
    "an empty key": ("key=", None, 401),
    "an empty token": ("token=", None, 401),
    "an empty header": ("", "", 401),
    "a huge key": ("", "dm_live_" + "x" * 8_000, 401),
    "a huge key in the query": ("key=dm_live_" + "x" * 8_000, None, 401),
    "a huge token": ("", "wst_" + "x" * 8_000, 401),
    "a huge operator key": ("", "dm_operator_" + "x" * 8_000, 401),
    "a huge credential of no form": ("", "x" * 8_000, 401),
    "no known prefix": ("", "sk_live_secret", 401),
    "the prefix alone": ("", "dm_live_", 401),
    "the prefix of a token alone": ("", "wst_", 401),
    "another case": ("", ALICE.upper(), 401),
    "not ASCII": ("", "dm_live_\xe9", 401),
    "a lone surrogate's bytes": ("key=dm_live_%ED%A0%80", None, 400),
    "a token of another secret": ("", TOKEN, 401),
    "a token with a byte flipped": ("", FLIPPED, 401),
    "a good token with a byte behind it": ("", "{token}A", 401),
    "a good token in another case": ("", "W{token}", 401),
    "a token with the prefix of a key": ("", "dm_live_{token}", 401),
}


@pytest.mark.parametrize(("query", "key", "status"), CREDENTIALS.values(), ids=CREDENTIALS.keys())
async def test_each_bad_credential_has_its_refusal_and_none_is_logged_or_quoted(query, key, status, everything_logged):
    async with serving() as served:
        token = await token_of(served.address)
        given_key = None if key is None else key.format(token=token)
        answer = await opening(served.address, query.format(token=token), key=given_key)
        assert answer.status == status
        assert answer.code == ("bad_request" if status == 400 else "unauthorized")
        assert (answer.headers.get("www-authenticate") == "Bearer") is (status == 401)
        said = answer.body.decode() + everything_logged.text
        assert f"status {status}, code {answer.code}," in broker_log(everything_logged)
        for secret in ("dm_live_", "wst_", "xxx", "sk_live", ALICE.upper(), token, TOKEN, FLIPPED):
            assert secret not in said
        assert served.broker.statistics().slots.connections == 0


async def test_beside_a_proxys_authorization_the_query_counts():
    proxys = ("Authorization", "Basic cHJveHk6c2VjcmV0")
    async with serving() as served:
        token = await token_of(served.address)
        for query in (f"key={ALICE}", f"token={token}"):
            async with connected(served.address, query, proxys) as client:
                assert client.ready["account_id"] == ACCOUNT
        assert (await ask(served.address, "POST", f"/v1/events?key={ALICE}", proxys, body=b"[]")).status == 200
        assert (await opening(served.address, f"key={ALICE}&token={token}", proxys, key=None)).status == 400
        assert (await opening(served.address, "", proxys, key=None)).status == 401


async def test_no_credential_of_a_living_connection_is_logged_or_said_at_its_end(everything_logged):
    reasons = []
    async with serving(configured()) as served:
        token = await token_of(served.address, INBOXES)
        for query, key in ((f"key={ALICE}", None), (f"token={token}", None), ("", token), ("", PUBLISHER)):
            header = ("Authorization", "" if key is None else f"Bearer {key}")
            async with (
                connected(served.address, f"client_id=c&{query}", header) as old,
                connected(served.address, f"client_id=c&{query}", header) as new,
            ):
                reasons.append((await old.rest())[1].reason)
                await new.send(masked(TEXT, b"{") * 20)
                reasons.append((await new.rest())[1].reason)
        async with connected(served.address, key=token) as client:
            served.broker.reload(config_of())
            closed = (await client.rest())[1]
            assert closed.code == 4401
            reasons.append(closed.reason)
        await trio.testing.wait_all_tasks_blocked()
        said = " ".join(reasons) + everything_logged.text
        assert broker_log(everything_logged).count("connection ended: ") == 9
        for secret in ("dm_live_", "wst_", token, token.rpartition(".")[2], digest_of(ALICE), digest_of(INBOXES)):
            assert secret not in said
