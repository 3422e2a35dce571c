"""The endpoints of an account: made, changed, removed, by whom, and what each gets by its key: where a clock jumps."""

from functools import partial

import pytest
import trio
from webhooks.at_work import ACCOUNT, BARE_KEY, INBOX_KEY, KEY, START, URL, config_of, working

from broker.access.keyring import Keyring
from broker.config import AccountConfig, AccountWebhookConfig, KeyConfig
from broker.errors import RequestError
from broker.log import letterbook
from broker.webhooks.endpoint import MAX_ENDPOINTS, EndpointChange, NewEndpoint
from broker.webhooks.signing import OVERLAP_SECONDS, secret_of

SECRET, OTHER = secret_of(bytes(range(32))), secret_of(bytes(range(1, 33)))


async def refusal(awaitable):
    with pytest.raises(RequestError) as refused:
        await awaitable
    return refused.value.code


def ids(work, key=KEY):
    return [live.endpoint.webhook_id for live in work.webhooks.endpoints.of(work.key(key))]


def hook(name, **fields):
    return AccountWebhookConfig(id=name, url=URL, secret=SECRET, **fields)


# --- made, and seen


async def test_a_secret_is_said_by_the_answer_that_made_it_or_another_and_never_again(autojump_clock):
    async with working() as work:
        endpoints, key = work.webhooks.endpoints, work.key()
        made = await work.make(webhook_id="w", secret=SECRET)
        assert made.secret == SECRET
        assert type((await work.make(webhook_id="w")).secret) is not str
        assert type((await endpoints.change(key, "w", EndpointChange(order="inbox"))).secret) is not str
        rotated = await endpoints.rotate(key, "w")
        assert rotated.secret not in (SECRET, made.secret)
        [live] = endpoints.of(key)
        assert live.endpoint.secrets(START + trio.current_time()) == (rotated.secret, SECRET)
        assert live.endpoint.old_secret_until == START + trio.current_time() + OVERLAP_SECONDS


async def test_the_same_again_is_the_same_and_another_of_the_same_name_is_a_conflict(autojump_clock):
    async with working() as work:
        made = await work.make(webhook_id="w", order="inbox")
        assert (await work.make(webhook_id="w", order="inbox")).created_at == made.created_at
        assert await refusal(work.make(webhook_id="w")) == "conflict"
        assert ids(work) == ["w"]
        assert await refusal(work.make(work.key(INBOX_KEY), webhook_id="w", order="inbox")) == "conflict"


async def test_an_account_has_no_more_endpoints_than_it_may_and_may_make_the_same_again(autojump_clock):
    async with working() as work:
        for number in range(MAX_ENDPOINTS):
            await work.make(webhook_id=f"w{number}")
        assert await refusal(work.make(webhook_id="more")) == "conflict"
        await work.make(webhook_id="w3")
        await work.webhooks.endpoints.remove(work.key(), "w0")
        await work.make(webhook_id="more")


async def test_an_inbox_key_sees_and_changes_its_own_endpoints_and_another_key_all(autojump_clock):
    async with working() as work:
        endpoints, inbox_key = work.webhooks.endpoints, work.key(INBOX_KEY)
        await work.make(webhook_id="all")
        await work.make(inbox_key, webhook_id="own")
        assert (ids(work), ids(work, INBOX_KEY)) == (["all", "own"], ["own"])
        for call in (
            partial(endpoints.change, inbox_key, "all", EndpointChange(order="inbox")),
            partial(endpoints.rotate, inbox_key, "all"),
            partial(endpoints.remove, inbox_key, "all"),
            partial(endpoints.remove, work.key(), "none"),
        ):
            assert await refusal(call()) == "not_found"
        await endpoints.remove(work.key(), "own")
        assert ids(work) == ["all"]


async def test_a_key_without_the_scope_makes_and_changes_nothing(autojump_clock):
    async with working() as work:
        await work.make(webhook_id="w")
        bare = work.key(BARE_KEY)
        assert await refusal(work.make(bare)) == "forbidden"
        assert await refusal(work.webhooks.endpoints.remove(bare, "w")) == "forbidden"


async def test_a_key_that_is_gone_while_others_change_something_changes_nothing(autojump_clock):
    async with working() as work:
        key = work.key()
        work.reload(config_of(keys=(KeyConfig(id="key_bare", sha256=BARE_KEY),)))
        assert await refusal(work.make(key)) == "unauthorized"


# --- changed


async def test_what_was_changed_holds_after_a_restart_and_what_was_removed_is_gone(autojump_clock):
    async with working() as work:
        await work.make(webhook_id="stays", event_types=["a.*"])
        await work.make(webhook_id="goes")
        await work.webhooks.endpoints.change(work.key(), "stays", EndpointChange(order="inbox"))
        await work.webhooks.endpoints.remove(work.key(), "goes")
        await trio.sleep(1)
    async with working(work.storage, posts=work.posts) as again:
        assert ids(again) == ["stays"]
        [live] = again.webhooks.endpoints.of(again.key())
        assert (live.endpoint.order, live.endpoint.event_types) == ("inbox", ("a.*",))
        await trio.sleep(1)
        again.publish(kind="b.c")
        again.publish(kind="a.b")
        await trio.sleep(1)
        assert [post.event_id for post in again.posts.posts] == ["evt_2"]


async def test_one_that_was_removed_may_be_made_again_at_once(autojump_clock):
    async with working() as work:
        work.posts.answer = 500
        await work.make(webhook_id="w")
        work.publish()
        await trio.sleep(1)
        await work.webhooks.endpoints.remove(work.key(), "w")
        await work.make(webhook_id="w")
        await trio.sleep(1)
        assert ids(work) == ["w"]
        assert await work.states("w") == {}
        rows = work.storage.connection.execute("SELECT count(*) FROM webhooks").fetchone()
        assert rows == (1,)


async def test_what_cannot_be_forgotten_at_once_of_one_that_was_removed_is_later_and_leaves_its_name(
    autojump_clock, monkeypatch
):
    def refuse(*_, **__):
        raise RequestError("unavailable", "The disk is full")

    remove = letterbook.remove
    async with working() as work:
        await work.make(webhook_id="w")
        monkeypatch.setattr(letterbook, "remove", refuse)
        await work.webhooks.endpoints.remove(work.key(), "w")
        await work.make(webhook_id="w", order="inbox")
        await trio.sleep(20)
    async with working(work.storage, posts=work.posts) as again:
        assert ids(again) == ["w"]
        assert [live.endpoint.order for live in again.webhooks.endpoints.lives()] == ["inbox"]
        monkeypatch.setattr(letterbook, "remove", remove)
        await trio.sleep(6)
        assert work.storage.connection.execute("SELECT webhook_id FROM webhooks").fetchall() == [("w",)]


async def test_after_a_start_an_endpoint_gets_letters_and_no_post_until_its_key_is_known(autojump_clock, monkeypatch):
    async def never(*_):
        await trio.sleep_forever()

    async with working() as work:
        await work.make(webhook_id="w")
    monkeypatch.setattr(Keyring, "recall", never)
    async with working(work.storage, posts=work.posts) as again:
        again.publish()
        await trio.sleep(10)
        assert await again.states("w") == {"evt_1": "waiting"}
        assert work.posts.posts == []


async def test_another_url_makes_an_endpoint_healthy_again_and_another_order_does_not(autojump_clock):
    async with working() as work:
        endpoints = work.webhooks.endpoints
        await work.make(webhook_id="w")
        work.posts.answer = 500
        work.publish()
        await trio.sleep(1)
        [live] = endpoints.of(work.key())
        assert endpoints.shown(live).failing_since is not None
        assert (await endpoints.change(work.key(), "w", EndpointChange(event_types=["x.y"]))).failing_since is not None
        assert (await endpoints.change(work.key(), "w", EndpointChange(url=f"{URL}/2"))).failing_since is None


async def test_letters_that_wait_stand_in_line_from_the_change_on_or_leave_it(autojump_clock):
    async with working() as work:
        change = partial(work.webhooks.endpoints.change, work.key(), "w")
        await work.make(webhook_id="w")
        work.posts.answer = 500
        for _ in range(3):
            work.publish("in_1")
        lines = lambda: [line for (line,) in work.storage.connection.execute("SELECT line FROM letters")]  # noqa: E731
        await trio.sleep(1)
        assert lines() == [0, 0, 0]
        await change(EndpointChange(order="inbox"))
        assert lines() == [1, 2, 2]
        work.publish("in_1")
        assert lines() == [1, 2, 2, 2]
        await change(EndpointChange(order="none"))
        assert lines() == [0, 0, 0, 0]


async def test_a_paused_endpoint_gets_letters_and_posts_them_when_it_is_active_again(autojump_clock):
    async with working() as work:
        change = partial(work.webhooks.endpoints.change, work.key(), "w")
        await work.make(webhook_id="w")
        await change(EndpointChange(status="paused"))
        work.publish()
        await trio.sleep(10)
        assert work.posts.posts == []
        await change(EndpointChange(status="active"))
        await trio.sleep(1)
        assert work.posts.ids == ["evt_1"]


async def test_a_disabled_endpoint_gets_no_letters_and_its_account_is_told_once(autojump_clock):
    async with working() as work:
        await work.make(webhook_id="w", url=f"{URL}?secret")
        [live] = work.webhooks.endpoints.of(work.key())
        for _ in range(2):
            work.webhooks.endpoints.disable(live, "failing")
        work.publish()
        await trio.sleep(10)
        assert await work.states("w") == {}
        assert [(kind, payload) for _, kind, payload, _ in work.announced] == [
            ("webhook.disabled", {"webhook_id": "w", "url": URL, "because": "failing"})
        ]
    async with working(work.storage, posts=work.posts) as again:
        [live] = again.webhooks.endpoints.of(again.key())
        assert (live.endpoint.status, live.endpoint.disabled_because) == ("disabled", "failing")


async def test_that_an_endpoint_is_disabled_is_written_down_when_the_disk_takes_it(autojump_clock):
    async with working() as work:
        await work.make(webhook_id="w")
        [live] = work.webhooks.endpoints.of(work.key())
        work.storage.refuses = True
        work.webhooks.endpoints.disable(live, "failing")
        await trio.sleep(20)
        work.storage.refuses = False
        await trio.sleep(6)
    async with working(work.storage, posts=work.posts) as again:
        [live] = again.webhooks.endpoints.of(again.key())
        assert live.endpoint.status == "disabled"


async def test_a_fallback_of_two_endpoints_for_one_client_waits_for_it_at_both(autojump_clock):
    async with working() as work:
        for name in ("one", "two"):
            await work.make(webhook_id=name, mode="fallback", client_ids=["agent"], fallback_seconds=30)
        for _ in range(2):
            work.publish()
        told = []
        everything = work.key().select(["*"], "")
        work.outbox.acknowledge(ACCOUNT, "agent", told.append, event_ids=["evt_1"], reach=everything)
        await trio.sleep(29)
        assert work.posts.posts == []
        await trio.sleep(2)
        assert work.posts.ids == ["evt_2"] * 2


# --- the configuration


async def test_endpoints_of_the_configuration_come_change_and_go_with_it(autojump_clock):
    async with working(config=config_of(webhooks=(hook("a"), hook("b")))) as work:
        assert ids(work) == ["a", "b"]
        before = {live.endpoint.webhook_id: live for live in work.webhooks.endpoints.of(work.key())}
        await trio.sleep(100)
        changed = AccountWebhookConfig(id="b", url=URL, secret=OTHER, order="inbox")
        work.reload(config_of(webhooks=(changed, hook("c"))))
        await trio.sleep(1)
        assert ids(work) == ["b", "c"]
        b, _ = work.webhooks.endpoints.of(work.key())
        assert (b, b.endpoint.order) == (before["b"], "inbox")
        assert b.endpoint.created_at == START
        assert b.endpoint.secrets(START + trio.current_time()) == (OTHER, SECRET)
        _, c = work.webhooks.endpoints.of(work.key())
        came_at = c.endpoint.created_at
        await trio.sleep(OVERLAP_SECONDS)
        work.reload(config_of(webhooks=(changed, hook("c", event_types=("a.b",)))))
        await trio.sleep(1)
        assert b.endpoint.secrets(START + trio.current_time()) == (OTHER,)
        assert (c.endpoint.event_types, c.endpoint.created_at) == (("a.b",), came_at)


async def test_a_reload_of_the_same_configuration_changes_nothing_and_leaves_what_was_made(autojump_clock):
    async with working(config=config_of(webhooks=(hook("a"),))) as work:
        await work.make(webhook_id="made")
        before = [live.endpoint for live in work.webhooks.endpoints.of(work.key())]
        work.reload(config_of(webhooks=(hook("a"),)))
        await trio.sleep(1)
        assert [live.endpoint for live in work.webhooks.endpoints.of(work.key())] == before


async def test_a_secret_that_was_changed_signs_beside_the_old_one_though_the_broker_starts_anew(autojump_clock):
    async with working(config=config_of(webhooks=(hook("a"),))) as work:
        await trio.sleep(10)
    changed = AccountWebhookConfig(id="a", url=URL, secret=OTHER)
    async with working(work.storage, config_of(webhooks=(changed,)), work.posts) as again:
        [live] = again.webhooks.endpoints.of(again.key())
        assert live.endpoint.secrets(START + trio.current_time()) == (OTHER, SECRET)
        again.reload(config_of(webhooks=(AccountWebhookConfig(id="a", url=URL, secret=OTHER, order="inbox"),)))
        await trio.sleep(1)
        assert live.endpoint.secrets(START + trio.current_time()) == (OTHER, SECRET)


async def test_one_of_the_configuration_that_was_disabled_is_active_again_after_a_reload(autojump_clock):
    async with working(config=config_of(webhooks=(hook("a"),))) as work:
        [live] = work.webhooks.endpoints.of(work.key())
        work.webhooks.endpoints.disable(live, "gone")
        work.reload(config_of(webhooks=(hook("a"),)))
        await trio.sleep(1)
        assert (live.endpoint.status, live.endpoint.disabled_because) == ("active", None)
        work.publish()
        await trio.sleep(1)
        assert work.posts.ids == ["evt_1"]


async def test_what_stands_in_the_configuration_is_changed_there_alone(autojump_clock):
    async with working(config=config_of(webhooks=(hook("a"),))) as work:
        endpoints, key = work.webhooks.endpoints, work.key()
        assert await refusal(endpoints.change(key, "a", EndpointChange(order="inbox"))) == "conflict"
        assert await refusal(endpoints.rotate(key, "a")) == "conflict"
        assert await refusal(endpoints.remove(key, "a")) == "conflict"


async def test_an_account_that_leaves_the_configuration_leaves_with_its_endpoints(autojump_clock):
    other = AccountConfig(id="acct_other", webhooks=(hook("o"),))
    async with working(config=config_of(others=(other,))) as work:
        work.publish(account="acct_other")
        await trio.sleep(1)
        assert len(work.posts.posts) == 1
        work.reload(config_of())
        await trio.sleep(1)
        work.publish(account="acct_other")
        await trio.sleep(1)
        assert len(work.posts.posts) == 1
        assert list(work.webhooks.endpoints.lives()) == []


# --- its key


async def test_an_endpoint_goes_by_what_its_key_reaches_and_keeps_that_over_a_restart(autojump_clock):
    async with working() as work:
        await work.make(work.key(INBOX_KEY), webhook_id="w")
        work.reload(config_of(inbox_ids=("in_1", "in_3")))
        await trio.sleep(1)
        [live] = work.webhooks.endpoints.of(work.key(INBOX_KEY))
        assert work.webhooks.endpoints.shown(live).inbox_ids == ["in_1", "in_3"]
        assert live.endpoint.key_inbox_ids == ("in_1", "in_3")
        for inbox in ("in_2", "in_3"):
            work.publish(inbox)
        await trio.sleep(1)
        assert await work.states("w") == {"evt_2": "delivered"}
    row = work.storage.connection.execute("SELECT record FROM webhooks").fetchone()[0]
    assert b"in_3" in row
    assert b"in_2" not in row


@pytest.mark.parametrize("left", [("subscribe",), None], ids=["the scope", "the key"])
async def test_an_endpoint_whose_key_lost_the_scope_or_is_gone_is_disabled_and_told(autojump_clock, left):
    async with working() as work:
        await work.make(work.key(INBOX_KEY), webhook_id="w")
        whole, inbox_key, _ = work.config.accounts[0].keys
        keys = (whole,) if left is None else (whole, KeyConfig(id="key_inbox", sha256=inbox_key.sha256, scopes=left))
        work.reload(config_of(keys=keys))
        await trio.sleep(1)
        [live] = work.webhooks.endpoints.of(work.key())
        assert (live.endpoint.status, live.endpoint.disabled_because) == ("disabled", "key_gone")


async def test_who_lets_it_be_active_again_is_whose_key_it_goes_by_from_then_on(autojump_clock):
    async with working() as work:
        await work.make(work.key(INBOX_KEY), webhook_id="w")
        whole = work.config.accounts[0].keys[:1]
        work.reload(config_of(keys=whole))
        await trio.sleep(1)
        await work.webhooks.endpoints.change(work.key(), "w", EndpointChange(status="active"))
        work.publish("in_9")
        await trio.sleep(1)
        assert work.posts.ids == ["evt_1"]
        work.reload(config_of(keys=(KeyConfig(id="key_bare", sha256=BARE_KEY),)))
        await trio.sleep(1)
        [live] = work.webhooks.endpoints.lives()
        assert live.endpoint.disabled_because == "key_gone"


async def test_of_an_account_that_has_no_endpoint_nothing_is_kept(autojump_clock):
    async with working() as work:
        await work.make(webhook_id="w")
        assert work.webhooks.endpoints.counted()["active"] == 1
        await work.webhooks.endpoints.remove(work.key(), "w")
        assert await refusal(work.webhooks.endpoints.remove(work.key(), "w")) == "not_found"
        await trio.sleep(1)
        assert set(work.webhooks.endpoints.counted().values()) == {0}
        assert (work.webhooks.endpoints._accounts, work.webhooks.endpoints._by_number) == ({}, {})
        assert work.storage.connection.execute("SELECT count(*) FROM webhooks").fetchone() == (0,)


async def test_two_who_make_the_same_at_once_make_one(autojump_clock):
    async with working() as work:
        made = []

        async def make():
            made.append(await work.webhooks.endpoints.make(work.key(), NewEndpoint(URL, webhook_id="w")))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(make)
        assert len({each.created_at for each in made}) == 1
        assert sum(type(each.secret) is str for each in made) == 1
        assert (ids(work), work.config.accounts[0].id) == (["w"], ACCOUNT)
