"""Letters on their way, under a clock that jumps: what is posted when, in which order, and what follows from it."""

import pytest
import trio
import trio.lowlevel
from webhooks.at_work import ACCOUNT, HOUR, INBOX_KEY, KEY, URL, Posts, body_of, config_of, working

from broker.protocol.messages import PreparedEvent, encode_event
from broker.webhooks.endpoint import EndpointChange, Resend
from broker.webhooks.posting import AT_ONCE, PER_SECOND

DAY = 24 * HOUR


# --- what is posted


async def test_an_event_is_posted_as_it_stands_in_the_frame(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        work.publish(payload=b'{"b": 1.50,"a":"\\u00fc"}')
        await trio.sleep(1)
        [post] = work.posts.posts
        event = PreparedEvent(
            "message.received", "in_1", "evt_1", "2026-01-01T00:00:00.000Z", b'{"b": 1.50,"a":"\\u00fc"}', None
        )
        assert post.body == encode_event(event, "cprefix.1")
        assert (post.url, post.account_id, post.event_id, post.attempt) == (URL, ACCOUNT, "evt_1", 1)
        assert post.secrets == (endpoint.secret,)
        assert await work.states(endpoint.webhook_id) == {"evt_1": "delivered"}


async def test_an_event_is_posted_at_once_to_each_endpoint_that_wants_it(autojump_clock):
    async with working() as work:
        await work.make(url="https://all.example.com/")
        await work.make(url="https://inbox.example.com/", inbox_ids=["in_2"])
        await work.make(url="https://types.example.com/", event_types=["account.*"])
        work.publish("in_1")
        work.publish("in_2")
        work.publish("", "account.upgraded")
        await trio.sleep(0.5)
        got = {}
        for post in work.posts.posts:
            got.setdefault(post.url.split("/")[2].partition(".")[0], []).append(post.event_id)
        assert {name: sorted(ids) for name, ids in got.items()} == {
            "all": ["evt_1", "evt_2", "evt_3"],
            "inbox": ["evt_2", "evt_3"],
            "types": ["evt_3"],
        }


async def test_nothing_is_written_for_an_account_without_endpoints(autojump_clock):
    async with working() as work:
        await work.make()
        work.publish(account="acct_other")
        await trio.sleep(1)
        assert not work.posts.posts
        assert work.storage.connection.execute("SELECT count(*) FROM letters").fetchone() == (0,)


# --- again


async def test_an_event_that_nobody_takes_is_posted_thirteen_times_in_three_days_and_is_then_dead(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        work.posts.answer = 500
        began_at = trio.current_time()
        work.publish()
        await trio.sleep(4 * DAY)
        times = [at - began_at for at in work.posts.times["evt_1"]]
        assert len(times) == 13
        assert times[1] == pytest.approx(5, abs=0.1)
        assert times[-1] == pytest.approx(71.7 * HOUR, rel=0.01)
        delivery = (await work.deliveries(endpoint.webhook_id))["evt_1"]
        assert (delivery.state, delivery.attempts, delivery.due_at) == ("dead", 13, None)
        assert (delivery.last.status, delivery.last.error) == (500, "status")
        assert [post.attempt for post in work.posts.posts] == list(range(1, 14))


@pytest.mark.parametrize("order", ["none", "inbox"])
async def test_a_receiver_that_is_down_for_an_hour_gets_everything_once_it_is_up_in_order_where_asked(
    order, autojump_clock
):
    taken = []
    async with working() as work:
        await work.make(order=order)
        work.posts.answer = "connect"
        published = {"in_1": [], "in_2": []}
        for number in range(120):
            inbox = f"in_{1 + number % 2}"
            published[inbox].append(work.publish(inbox))
            await trio.sleep(30)
        work.posts.answer = 200
        up_at = len(work.posts.posts)
        await trio.sleep(2.5 * HOUR)
        taken = [body_of(post) for post in work.posts.posts[up_at:]]
        assert sorted(event["event_id"] for event in taken) == sorted(published["in_1"] + published["in_2"])
        if order == "inbox":
            for inbox, ids in published.items():
                got = [event["event_id"] for event in taken if event["inbox_id"] == inbox]
                first = got.index(ids[1])
                # One that failed for an hour has stepped aside, the others come as they were published.
                assert [each for each in got if each != ids[0]] == ids[1:]
                assert first <= 1


async def test_while_an_endpoint_fails_it_is_only_probed_and_the_others_burn_no_attempts(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        work.posts.answer = "timeout"
        for _ in range(100):
            work.publish()
        await trio.sleep(29)
        assert len(work.posts.posts) <= 8
        await trio.sleep(HOUR)
        assert len(work.posts.posts) < 20
        attempts = [each.attempts for each in (await work.deliveries(endpoint.webhook_id, limit="1000")).values()]
        assert attempts.count(0) > 80


async def test_what_an_endpoint_that_never_comes_back_was_owed_is_dead_after_three_days(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        work.posts.answer = "timeout"
        for _ in range(50):
            work.publish()
        await trio.sleep(3 * DAY - HOUR)
        assert "dead" not in (await work.states(endpoint.webhook_id)).values()
        await trio.sleep(2 * HOUR)
        assert set((await work.states(endpoint.webhook_id)).values()) == {"dead"}


async def test_an_endpoint_that_asks_for_it_is_left_alone(autojump_clock):
    async with working() as work:
        await work.make()
        work.posts.answer, work.posts.retry_after = 429, 600.0
        work.publish()
        await trio.sleep(1)
        work.posts.answer = 200
        work.publish()
        await trio.sleep(590)
        assert work.posts.ids == ["evt_1"]
        await trio.sleep(20)
        assert sorted(work.posts.ids) == ["evt_1", "evt_1", "evt_2"]


async def test_a_poison_event_does_not_hold_up_the_others(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        work.posts.answers["evt_1"] = 400
        for _ in range(50):
            work.publish()
            await trio.sleep(1)
        await trio.sleep(10)
        states = await work.states(endpoint.webhook_id)
        assert states.pop("evt_1") == "waiting"
        assert set(states.values()) == {"delivered"}


async def test_in_order_a_poison_head_steps_aside_after_an_hour(autojump_clock):
    async with working() as work:
        endpoint = await work.make(order="inbox")
        work.posts.answers["evt_1"] = 400
        for _ in range(3):
            work.publish()
        await trio.sleep(0.5 * HOUR)
        assert set(work.posts.ids) == {"evt_1"}
        await trio.sleep(2 * HOUR)
        assert [each for each in work.posts.ids if each != "evt_1"] == ["evt_2", "evt_3"]
        assert (await work.states(endpoint.webhook_id))["evt_1"] == "waiting"


# --- fallback


async def acknowledge(work, client_id="cli", **what):
    told = []
    work.outbox.acknowledge(ACCOUNT, client_id, told.append, **{"reach": work.key().select(["*"], "")} | what)
    await trio.lowlevel.checkpoint()
    return told[0]


async def test_a_fallback_posts_only_what_no_client_acknowledged_in_time(autojump_clock):
    async with working() as work:
        endpoint = await work.make(mode="fallback", client_ids=["cli"], fallback_seconds=30)
        for _ in range(3):
            work.publish()
        await trio.sleep(20)
        assert (await acknowledge(work, covers=lambda *_: True, through=1)).acked == 1
        assert (await acknowledge(work, event_ids=["evt_2"])).acked == 1
        await trio.sleep(9)
        assert not work.posts.posts
        await trio.sleep(2)
        assert work.posts.ids == ["evt_3"]
        states = await work.states(endpoint.webhook_id)
        assert states == {"evt_1": "acked", "evt_2": "acked", "evt_3": "delivered"}
        assert (await work.deliveries(endpoint.webhook_id))["evt_1"].acked_by == "cli"


async def test_a_client_that_acknowledges_too_late_is_told_who_was_first(autojump_clock):
    async with working() as work:
        endpoint = await work.make(mode="fallback", client_ids=["cli"], fallback_seconds=30)
        work.posts.seconds = 10
        work.posts.answer = 500
        work.publish()
        await trio.sleep(31)
        told = await acknowledge(work, event_ids=["evt_1"])
        assert (told.acked, told.claimed) == (0, ["evt_1"])
        await trio.sleep(DAY)
        assert work.posts.ids == ["evt_1"]
        assert await work.states(endpoint.webhook_id) == {"evt_1": "acked"}


async def test_what_a_client_holds_waits_for_it(autojump_clock):
    async with working() as work:
        await work.make(mode="fallback", client_ids=["cli"], fallback_seconds=30)
        work.publish()
        told = []
        everything = work.key().select(["*"], "")
        work.outbox.hold(ACCOUNT, "cli", told.append, event_ids=["evt_1"], seconds=600, reach=everything)
        await trio.sleep(599)
        assert not work.posts.posts
        await trio.sleep(2)
        assert work.posts.ids == ["evt_1"]


async def test_only_the_clients_that_are_named_take_events_from_a_fallback(autojump_clock):
    async with working() as work:
        await work.make(mode="fallback", client_ids=["cli"], fallback_seconds=30)
        work.publish()
        assert (await acknowledge(work, "other", covers=lambda *_: True, through=1)).acked == 0
        await trio.sleep(31)
        assert work.posts.ids == ["evt_1"]


async def test_an_endpoint_for_always_is_no_clients_to_acknowledge(autojump_clock):
    async with working() as work:
        endpoint = await work.make(client_ids=["cli"])
        work.publish()
        assert (await acknowledge(work, covers=lambda *_: True, through=1)).acked == 0
        await trio.sleep(1)
        assert await work.states(endpoint.webhook_id) == {"evt_1": "delivered"}


# --- how much at once


async def test_an_endpoint_has_eight_posts_under_way_at_most(autojump_clock):
    async with working() as work:
        await work.make()
        work.posts.seconds = 1.0
        for _ in range(40):
            work.publish()
        await trio.sleep(20)
        assert work.posts.most_under_way == 8
        assert len(work.posts.posts) == 40


async def test_all_together_have_sixty_four_and_one_account_leaves_some_to_the_others(autojump_clock):
    others = [f"acct_{number}" for number in range(3)]
    config = config_of(others=tuple(account_of(name) for name in others))
    async with working(config=config) as work:
        for number in range(12):
            await work.make(url=f"https://{number}.example.com/")
        work.posts.seconds = 14.0
        for _ in range(20):
            work.publish()
        await trio.sleep(5)
        assert work.posts.under_way == AT_ONCE * 3 / 4
        for name in others:
            await work.make(key=work.key(sha_of(name)), url=f"https://{name}.example.com/")
            work.publish(account=name)
        await trio.sleep(1)
        assert {post.account_id for post in work.posts.posts} == {ACCOUNT, *others}


def sha_of(name):
    return name.encode().hex().ljust(64, "0")


def account_of(name):
    from broker.config import AccountConfig, KeyConfig

    return AccountConfig(id=name, keys=(KeyConfig(id="key", sha256=sha_of(name), scopes=("webhooks",)),))


async def test_two_hundred_a_second_are_begun_at_most(autojump_clock):
    async with working() as work:
        for number in range(16):
            await work.make(url=f"https://{number}.example.com/")
        began_at = trio.current_time()
        for _ in range(100):
            work.publish()
        await trio.sleep(30)
        assert len(work.posts.posts) == 1600
        took = max(times[-1] for times in work.posts.times.values()) - began_at
        assert took == pytest.approx(1600 / PER_SECOND, rel=0.1)


# --- how an endpoint does


async def test_an_account_is_told_once_of_an_endpoint_that_has_failed_for_an_hour_and_when_it_is_back(autojump_clock):
    async with working() as work:
        await work.make(url=URL + "?token=secret")
        work.posts.answer = 503
        for _ in range(20):
            work.publish()
        await trio.sleep(HOUR - 60)
        assert work.said == []
        await trio.sleep(6 * HOUR)
        assert work.said == ["webhook.failing"]
        _, _, payload, _ = work.announced[0]
        assert (payload["url"], payload["error"], payload["status"]) == (URL, "status", 503)
        work.posts.answer = 200
        await trio.sleep(12 * HOUR)
        assert work.said == ["webhook.failing", "webhook.recovered"]


async def test_an_endpoint_that_says_it_is_gone_is_disabled_and_gets_no_further_letters(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        work.posts.answer = 410
        work.publish()
        await trio.sleep(1)
        [seen] = [work.webhooks.endpoints.shown(live) for live in work.webhooks.endpoints.of(work.key())]
        assert (seen.status, seen.disabled_because) == ("disabled", "gone")
        assert work.said == ["webhook.disabled"]
        work.posts.answer = 200
        work.publish()
        await trio.sleep(DAY)
        assert work.posts.ids == ["evt_1"]
        assert await work.states(endpoint.webhook_id) == {"evt_1": "dead"}


async def test_an_endpoint_that_fails_for_five_days_is_disabled(autojump_clock):
    async with working() as work:
        await work.make()
        work.posts.answer = "dns"
        for _ in range(6 * 24):
            work.publish()
            await trio.sleep(HOUR)
            if "webhook.disabled" in work.said:
                break
        assert work.said == ["webhook.failing", "webhook.disabled"]
        assert 5 * DAY <= work.announced[1][3] - work.started_at <= 5 * DAY + 3 * HOUR


async def test_one_that_was_disabled_goes_on_when_it_is_activated(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        work.posts.answers["evt_1"] = 410
        work.posts.seconds = 0.1
        work.publish()
        work.publish()
        await trio.sleep(1)
        work.publish()
        await work.webhooks.endpoints.change(work.key(), endpoint.webhook_id, EndpointChange(status="active"))
        work.publish()
        await trio.sleep(1)
        assert "evt_3" not in work.posts.ids
        assert (await work.states(endpoint.webhook_id))["evt_4"] == "delivered"


async def test_a_paused_endpoint_keeps_its_letters_for_three_days(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        change = work.webhooks.endpoints.change
        await change(work.key(), endpoint.webhook_id, EndpointChange(status="paused"))
        work.publish()
        await trio.sleep(2 * DAY)
        work.publish()
        assert not work.posts.posts
        await trio.sleep(DAY + HOUR)
        await change(work.key(), endpoint.webhook_id, EndpointChange(status="active"))
        await trio.sleep(1)
        assert work.posts.ids == ["evt_2"]
        assert await work.states(endpoint.webhook_id) == {"evt_1": "dead", "evt_2": "delivered"}


async def test_another_url_begins_anew_at_once(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        work.posts.answer = "connect"
        events = {work.publish() for _ in range(10)}
        await trio.sleep(HOUR)
        work.posts.answer = 200
        new = EndpointChange(url="https://new.example.com/")
        seen = await work.webhooks.endpoints.change(work.key(), endpoint.webhook_id, new)
        assert seen.failing_since is None
        await trio.sleep(1)
        assert {post.event_id for post in work.posts.posts if post.url == new.url} == events


async def test_what_failed_at_one_url_is_posted_to_another_at_once(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        work.posts.answer = 500
        work.publish()
        await trio.sleep(HOUR)  # its next attempt is an hour and a half away
        before = len(work.posts.posts)
        await trio.sleep(HOUR / 2)
        assert len(work.posts.posts) == before
        new = EndpointChange(url="https://new.example.com/")
        await work.webhooks.endpoints.change(work.key(), endpoint.webhook_id, new)
        await trio.sleep(1)
        assert [post.url for post in work.posts.posts[before:]] == [new.url]


async def test_another_url_does_not_hurry_what_waits_for_a_client(autojump_clock):
    async with working() as work:
        endpoint = await work.make(mode="fallback", client_ids=["agent"], fallback_seconds=600)
        work.publish()
        new = EndpointChange(url="https://new.example.com/")
        await work.webhooks.endpoints.change(work.key(), endpoint.webhook_id, new)
        await trio.sleep(1)
        assert not work.posts.posts


# --- again on demand, and after a restart


async def test_what_is_dead_or_delivered_is_sent_again_on_demand(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        work.posts.answers["evt_1"] = 500
        work.publish()
        work.publish()
        await trio.sleep(4 * DAY)
        work.posts.answers.clear()
        resend = work.webhooks.resend
        posted = len(work.posts.posts)
        assert await resend(work.key(), endpoint.webhook_id, Resend(state="dead", since="1h")) == 0
        assert await resend(work.key(), endpoint.webhook_id, Resend(state="dead", since="48h")) == 1
        assert await resend(work.key(), endpoint.webhook_id, Resend(event_ids=["evt_2", "evt_3"])) == 1
        await trio.sleep(1)
        assert sorted(work.posts.ids[posted:]) == ["evt_1", "evt_2"]
        assert set((await work.states(endpoint.webhook_id)).values()) == {"delivered"}


async def test_what_was_under_way_when_the_process_ended_is_posted_after_the_next_start(autojump_clock):
    posts = Posts()
    async with working(posts=posts) as work:
        endpoint = await work.make()
        posts.seconds = 10
        work.publish()
        await trio.sleep(5)
    posts.seconds = 0
    async with working(work.storage, posts=posts) as again:
        await trio.sleep(1)
        assert posts.ids == ["evt_1", "evt_1"]
        assert [post.attempt for post in posts.posts] == [1, 2]
        assert await again.states(endpoint.webhook_id) == {"evt_1": "delivered"}
        again.publish()
        await trio.sleep(1)
        assert posts.ids[2:] == ["evt_2"]


async def test_a_broker_that_drains_begins_nothing_more_and_ends_what_is_under_way(autojump_clock):
    posts = Posts()
    async with working(posts=posts) as work:
        endpoint = await work.make()
        posts.seconds = 5
        for _ in range(20):
            work.publish()
        await trio.sleep(1)
        work.draining.set()
        work.publish()
        await trio.sleep(60)
        assert len(posts.posts) == 8
    async with working(work.storage, posts=posts) as again:
        await trio.sleep(60)
        assert sorted(posts.ids) == sorted(f"evt_{number}" for number in range(1, 22))
        assert set((await again.states(endpoint.webhook_id)).values()) == {"delivered"}


async def test_how_long_an_endpoint_fails_is_known_after_a_restart(autojump_clock):
    async with working() as work:
        await work.make()
        work.posts.answer = "connect"
        for _ in range(10):
            work.publish()
        await trio.sleep(0.7 * HOUR)
    async with working(work.storage, posts=work.posts) as again:
        await trio.sleep(2 * HOUR)
        assert again.said == ["webhook.failing"]
        first = again.announced[0][3]
        assert first - work.started_at < 1.6 * HOUR


async def test_what_came_of_a_post_is_written_down_however_long_that_takes(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        work.posts.seconds = 5
        work.publish()
        await trio.sleep(1)
        work.storage.refuses = True
        await trio.sleep(60)
        work.storage.refuses = False
        await trio.sleep(5)
        assert await work.states(endpoint.webhook_id) == {"evt_1": "delivered"}
        assert work.posts.ids == ["evt_1"]
        work.storage.refuses = True
        work.storage.refuses = False


# --- keys


async def test_an_endpoint_whose_key_reaches_less_gets_less_from_the_same_step_on(autojump_clock):
    async with working() as work:
        endpoint = await work.make(key=work.key(INBOX_KEY))
        work.posts.answer = 500
        work.publish("in_2")
        await trio.sleep(1)
        work.posts.answer = 200
        work.reload(config_of(inbox_ids=("in_1",)))
        work.publish("in_1")
        work.publish("in_2")
        await trio.sleep(HOUR)
        assert work.posts.ids == ["evt_1", "evt_2"]
        [live] = work.webhooks.endpoints.of(work.key(INBOX_KEY))
        assert work.webhooks.endpoints.shown(live).inbox_ids == ["in_1"]
        assert list(await work.states(endpoint.webhook_id)) == ["evt_2"]


async def test_an_endpoint_whose_key_is_gone_is_disabled(autojump_clock):
    async with working() as work:
        await work.make(key=work.key(INBOX_KEY))
        work.reload(config_of(keys=work.config.accounts[0].keys[:1]))
        work.publish("in_1")
        await trio.sleep(1)
        [live] = work.webhooks.endpoints.of(work.key(KEY))
        assert (live.endpoint.status, live.endpoint.disabled_because) == ("disabled", "key_gone")
        assert not work.posts.posts
        assert work.said == ["webhook.disabled"]


async def test_an_endpoint_whose_key_went_while_the_process_was_down_is_disabled_at_the_start(autojump_clock):
    async with working() as work:
        await work.make(key=work.key(INBOX_KEY))
        work.publish("in_1")
        keys = work.config.accounts[0].keys[:1]
        work.posts.posts.clear()
    async with working(work.storage, config_of(keys=keys), work.posts) as again:
        await trio.sleep(1)
        assert not again.posts.posts
        [live] = again.webhooks.endpoints.of(again.key(KEY))
        assert live.endpoint.disabled_because == "key_gone"


async def test_whoever_is_woken_after_the_end_begins_nothing(autojump_clock):
    async with working() as work:
        await work.make()
        [live] = work.webhooks.endpoints.lives()
        await trio.sleep(1)
    work.outbox.woken(live.number, 0.0)
    work.webhooks.endpoints.disable(live, "gone")
    work.webhooks.reload(work.config.accounts)
    await trio.sleep(1)
    assert not work.posts.posts


async def test_a_key_that_is_revoked_while_its_endpoint_is_made_has_no_endpoint(autojump_clock):
    async with working() as work:
        write = work.storage.write

        async def revoke_and_write(what):
            written = await write(what)
            if work.storage.connection.execute("SELECT count(*) FROM webhooks").fetchone() == (0,):
                return written  # somebody else's
            work.storage.write = write
            work.reload(config_of(keys=work.config.accounts[0].keys[:1]))
            return written

        key = work.key(INBOX_KEY)
        work.storage.write = revoke_and_write
        made = await work.make(key=key)
        assert (made.status, made.disabled_because) == ("disabled", "key_gone")
        work.publish("in_1")
        await trio.sleep(1)
        assert not work.posts.posts


# --- room


async def test_where_the_log_is_too_large_what_is_dead_goes_first_and_then_what_waits_longest(autojump_clock):
    async with working() as work:
        endpoint = await work.make()
        work.posts.answers["evt_1"] = 410
        work.publish()
        await trio.sleep(1)
        await work.webhooks.endpoints.change(work.key(), endpoint.webhook_id, EndpointChange(status="paused"))
        work.publish()
        assert await work.states(endpoint.webhook_id) == {"evt_1": "dead", "evt_2": "waiting"}
    async with working(work.storage, max_bytes=0) as again:
        await trio.sleep(1)
        assert await again.states(endpoint.webhook_id) == {"evt_2": "waiting"}
        await trio.sleep(10)
        assert await again.states(endpoint.webhook_id) == {}


# --- figures


async def test_endpoints_are_counted_by_how_they_do(autojump_clock):
    def counted(work):
        return {doing: n for doing, n in work.webhooks.statistics().endpoints.items() if n}

    async with working() as work:
        endpoints = work.webhooks.endpoints
        [one, two, _] = [await work.make() for _ in range(3)]
        assert counted(work) == {"active": 3}
        await endpoints.change(work.key(), two.webhook_id, EndpointChange(status="paused"))
        work.posts.answer = 500
        work.publish()
        await trio.sleep(1)
        assert counted(work) == {"failing": 2, "paused": 1}
    async with working(work.storage, posts=work.posts) as again:
        assert counted(again) == {"failing": 2, "paused": 1}
        work.posts.answer = 200
        await trio.sleep(60)
        assert counted(again) == {"active": 2, "paused": 1}
        work.posts.answers["evt_2"] = 410
        again.publish()
        await trio.sleep(1)
        assert counted(again) == {"disabled": 2, "paused": 1}
        await again.webhooks.endpoints.remove(again.key(), one.webhook_id)
        assert counted(again) == {"disabled": 1, "paused": 1}


async def test_letters_are_counted_once_a_minute(autojump_clock):
    async with working() as work:
        await work.make()
        work.posts.answer = 500
        work.publish()
        await trio.sleep(61)
        statistics = work.webhooks.statistics()
        assert statistics.letters["waiting"] == 1
        assert statistics.oldest_waiting_seconds == pytest.approx(61, abs=1)
        assert statistics.posting.attempts["status"] == 3
