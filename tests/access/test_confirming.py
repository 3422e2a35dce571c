"""Whose credential it is, by itself: what is known is told without a question, and who is asked is asked once."""

import pytest

from broker.access.keyring import Keyring
from broker.access.keys import Access, Key, Narrowing, digest_of
from broker.access.lookup import Kept
from broker.access.tokens import Tokens
from broker.config import AccountConfig, Config, KeyConfig, OperatorConfig
from broker.errors import RequestError
from broker.schedule import Schedule

OURS, OTHERS, OPERATOR = "dm_live_ours", "dm_live_others", "dm_operator_main"
EVENTS = frozenset({"subscribe"})


class Asked:
    """Who is asked for keys: what is said of one, and what was said before."""

    def __init__(self, key=None):
        self.key = key
        self.said = {}
        self.asked = []
        self.meanwhile = lambda: None

    async def find(self, digest, remote):
        self.asked.append((digest, remote))
        self.meanwhile()
        return Kept(self.key, 1e9)

    def kept(self, digest):
        return self.said.get(digest)


def access(*keys, operator=True):
    configured = tuple(KeyConfig(id=name, sha256=digest_of(secret)) for name, secret in keys)
    operators = (OperatorConfig(id="op", sha256=digest_of(OPERATOR)),) if operator else ()
    return Access(Config(accounts=(AccountConfig(id="acct", tier="growth", keys=configured),), operators=operators))


def keyring(asked=None, *keys):
    return Keyring(access(*(keys or [("ours", OURS)])), Tokens("x" * 32, 60), asked, Schedule())


def others(**fields):
    return Key("others", "acct_other", EVENTS, sha256=digest_of(OTHERS), **fields)


async def code_of(awaitable):
    with pytest.raises(RequestError) as refused:
        await awaitable
    return refused.value.code


# --- whose it is


async def test_a_key_of_the_configuration_is_known_and_nobody_is_asked():
    asked = Asked()
    known = keyring(asked)
    assert (await known.authenticate(OURS, None)).id == "ours"
    assert (await known.authenticate(OPERATOR, None)).is_operator
    assert await code_of(known.authenticate("dm_operator_other", None)) == "unauthorized"
    assert asked.asked == []


async def test_who_has_the_keys_elsewhere_is_asked_with_the_address_of_the_client():
    asked = Asked(others())
    known = keyring(asked)
    assert await known.authenticate(OTHERS, "192.0.2.1") == others()
    assert asked.asked == [(digest_of(OTHERS), "192.0.2.1")]
    asked.key = None
    assert await code_of(known.authenticate("dm_live_nobody", None)) == "unauthorized"


@pytest.mark.parametrize("credential", ["dm_live_", "dm_live_ä", "dm_live_" + "x" * 201, "dm_other_x", ""])
async def test_nobody_is_asked_for_what_is_no_key(credential):
    asked = Asked(others())
    assert await code_of(keyring(asked).authenticate(credential, None)) == "unauthorized"
    assert asked.asked == []


async def test_without_anybody_to_ask_other_keys_are_not_known():
    assert await code_of(keyring().authenticate(OTHERS, None)) == "unauthorized"


async def test_what_the_configuration_has_come_to_know_while_others_were_asked_is_what_counts():
    asked = Asked(others())
    known = keyring(asked)
    asked.meanwhile = lambda: known.reload(access(("ours", OURS), ("new", OTHERS)))
    assert (await known.authenticate(OTHERS, None)).id == "new"


async def test_a_key_that_was_known_once_is_asked_for_again_and_narrowed_as_it_was():
    asked = Asked(others())
    narrowed = others().narrowed(Narrowing(frozenset({"a"})))
    assert await keyring(asked).recall(narrowed) == narrowed
    assert asked.asked == [(digest_of(OTHERS), None)]


# --- what it reaches by now


async def test_a_key_is_confirmed_without_a_question_and_narrowed_as_it_was():
    asked = Asked()
    known = keyring(asked)
    key = await known.authenticate(OURS, None)
    assert known.confirm(key) == key
    narrowed = key.narrowed(Narrowing(frozenset({"a"})))
    assert known.confirm(narrowed) == narrowed
    operator = await known.authenticate(OPERATOR, None)
    assert known.confirm(operator) == operator
    assert asked.asked == []


async def test_a_key_that_has_left_the_configuration_is_gone():
    known = keyring()
    key, operator = await known.authenticate(OURS, None), await known.authenticate(OPERATOR, None)
    known.reload(access(("other", "dm_live_other"), operator=False))
    for gone in (key, operator):
        with pytest.raises(RequestError) as refused:
            known.confirm(gone)
        assert refused.value.code == "unauthorized"


def test_what_was_said_of_a_key_is_believed_and_what_nobody_has_said_is_to_be_asked():
    asked = Asked()
    known = keyring(asked)
    with pytest.raises(RequestError) as refused:
        known.confirm(others())
    assert refused.value.code == "unavailable"
    asked.said[digest_of(OTHERS)] = Kept(others(tier="free"), 1e9)
    assert known.confirm(others()).tier == "free"
    asked.said[digest_of(OTHERS)] = Kept(None, 1e9)
    with pytest.raises(RequestError) as refused:
        known.confirm(others())
    assert refused.value.code == "unauthorized"


# --- accounts


def test_an_account_that_is_not_there_is_named_unless_others_may_know_it():
    keyring().require_account("acct")
    keyring(Asked()).require_account("acct_nobody")
    for path, words in ((None, "'acct_nobody'"), ("$[0].account_id", "at `$[0].account_id`")):
        with pytest.raises(RequestError, match=r"acct_nobody") as refused:
            keyring().require_account("acct_nobody", path)
        assert refused.value.code == "not_found"
        assert refused.value.message.endswith(words)


def test_the_tier_of_an_account_is_that_of_the_configuration():
    assert (keyring().tier_of("acct"), keyring().tier_of("acct_nobody")) == ("growth", None)
