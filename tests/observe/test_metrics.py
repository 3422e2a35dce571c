"""`GET /metrics` of a broker to which much has happened, as Prometheus' own parser reads it."""

import json
import re

import msgspec
import pytest
import trio
from apis import SECRET, running_api
from clients import (
    ACCOUNT,
    ALICE,
    INBOXES,
    alices,
    ask,
    config_of,
    configured,
    connected,
    event,
    post_events,
    serving,
    token_of,
    until,
)
from documents import ROOT
from observe.scrapes import scrape
from receivers import receiving
from valkeys import Server, server

from broker import Config, EngineConfig, ReplayConfig
from broker.access.keys import Key
from broker.config import CalloutConfig, StorageConfig, WebhooksConfig
from broker.durations import BOUNDS
from broker.observe.connections import Survey
from broker.observe.metrics import Reading, exposition
from broker.webhooks.endpoint import NewEndpoint

# --- what is told ------------------------------------------------------------


async def test_connections_are_told_by_tier_and_transport_and_their_ends_by_code(noisy_broker):
    seen = await scrape(noisy_broker)
    assert seen("connections", "enterprise", "websocket") == 2
    assert seen("connections_opened_total", "websocket") == 3
    assert seen("connections_closed_total", "none") == 1
    assert seen("connections_behind") == 0


async def test_a_client_that_does_not_read_is_told_as_behind_with_its_bytes():
    async with serving() as served, connected(served.address, "inbox_ids=*", receive_buffer_bytes=4096) as client:
        await until(lambda: served.connection(client).statistics().live)
        for number in range(8):
            await served.broker.publish(ACCOUNT, event(number, size=200_000))
        await until(lambda: not served.connection(client).statistics().live)
        seen = await scrape(served)
        assert seen("connections_behind") == 1
        assert seen("connections_held_bytes") > 0
        assert seen("fanout_fell_behind_total") == 1


async def test_events_are_told_as_they_came_in_and_as_often_as_they_went_out(noisy_broker):
    seen = await scrape(noisy_broker)
    assert seen("events_published_total") == 10
    assert seen("events_duplicate_total") == 1
    assert seen("events_delivered_total") == 2 * 10 + 4, "two were live, one had what was left of the window"


async def test_gaps_are_told_with_what_was_missed(noisy_broker):
    seen = await scrape(noisy_broker)
    assert (seen("gaps_total"), seen("gap_events_total")) == (1, 6)


async def test_the_window_is_told_in_events_bytes_and_seconds_and_why_events_left_it(noisy_broker):
    seen = await scrape(noisy_broker)
    assert seen("window_events") == 4
    assert 0 < seen("window_bytes") < seen("window_limit_bytes")
    assert seen("window_seconds") == 300
    assert seen("window_dropped_events_total", "limit") == 6
    assert seen("window_dropped_events_total", "age") == 0
    assert 0 <= seen("window_squeezed_seconds") < 60


async def test_events_that_were_too_old_left_the_window_by_age(autojump_clock):
    async with serving(configured(replay=ReplayConfig(seconds=5))) as served:
        await served.broker.publish(ACCOUNT, [event(1), event(2)])
        await trio.sleep(10)
        seen = await scrape(served)
        assert seen("window_dropped_events_total", "age") == 2
        assert seen("window_dropped_events_total", "limit") == 0
        assert "squeezed" not in seen.text


async def test_commands_are_told_by_action_and_outcome(noisy_broker):
    seen = await scrape(noisy_broker)
    assert seen("commands_total", "send_email", "ok") == 1
    assert seen("commands_total", "send_email", "other") == 1, "a code of the handler's own"
    assert seen("commands_total", "ping", "ok") == 6, "one came over HTTP"
    assert seen("commands_under_way") == 0


async def test_an_action_that_nobody_does_is_no_label(noisy_broker):
    seen = await scrape(noisy_broker)
    assert seen("commands_total", "other", "unknown_action") == 1
    assert "paint_it_black" not in seen.text


async def test_refusals_are_told_by_reason(noisy_broker):
    seen = await scrape(noisy_broker)
    assert seen("requests_refused_total", "not_found") == 1


async def test_the_time_from_publish_to_kernel_is_told_for_the_first_and_the_last(noisy_broker):
    seen = await scrape(noisy_broker)
    for name in ("first", "last"):
        assert seen(f"fanout_{name}_delivery_seconds_count") >= 1
    assert seen("fanout_first_delivery_seconds_sum") <= seen("fanout_last_delivery_seconds_sum")


async def test_what_nobody_live_was_sent_has_no_time():
    async with serving() as served:
        await served.broker.publish(ACCOUNT, event(1))
        await until(lambda: served.broker.statistics().replay.bytes)
        seen = await scrape(served)
        assert seen("fanout_first_delivery_seconds_count") == seen("fanout_last_delivery_seconds_count") == 0


async def test_the_loop_is_looked_at_each_half_second(autojump_clock):
    async with serving() as served:
        await trio.sleep(10.25)
        assert (await scrape(served))("event_loop_lag_seconds_count") == 20


async def test_questions_to_the_operators_api_are_told_by_what_came_of_them():
    async with running_api() as api:
        commands = CalloutConfig(url=api.url, secret=SECRET)
        async with serving(config_of(alices(), commands=commands)) as served:
            for _ in range(2):
                assert await served.broker.call(ACCOUNT, "send_email") == {"done": True}
            api.answer = b"nonsense\r\n\r\n"
            with pytest.raises(Exception, match="unavailable"):
                await served.broker.call(ACCOUNT, "send_email")
            seen = await scrape(served)
        assert seen("callout_duration_seconds_count", "commands", "2xx") == 2
        assert seen("callout_duration_seconds_count", "commands", "unavailable") == 1
        assert seen("callout_duration_seconds_bucket", "commands", "2xx", "+Inf") == 2
        assert seen("commands_total", "other", "ok") == 2, "the API does it, no handler of a name"


async def test_webhooks_are_told_by_what_came_of_their_posts(tmp_path):
    async with receiving() as receiver:
        storage = StorageConfig(path=str(tmp_path / "broker.db"), min_free_bytes=0)
        section = WebhooksConfig(allow_networks=("127.0.0.0/8",), allow_http=True)
        async with serving(configured(storage=storage, webhooks=section)) as served:
            library = Key("library", ACCOUNT, frozenset({"webhooks"}))
            await served.broker.webhooks.endpoints.make(library, NewEndpoint(url=receiver.url))
            await post_events(served.address, [event(number) for number in range(3)])
            await receiver.received(3)
            await until(lambda: served.broker.statistics().webhooks.posting.under_way == 0)
            seen = await scrape(served)
            assert seen("webhook_attempts_total", "delivered") == 3
            assert seen("webhook_attempts_total", "timeout") == 0
            assert seen("webhook_claims_total", "webhook") == 3
            assert seen("webhook_claims_total", "client") == 0
            assert seen("webhook_endpoints", "active") == 1
            assert seen("webhook_seconds_count") == 3


@pytest.mark.parametrize("kind", ["bodies", "names"])
async def test_bodies_under_way_and_what_connections_name_are_told(kind):
    async with serving() as served:
        with getattr(served.broker, kind).hold(ACCOUNT, 12_345):
            seen = await scrape(served)
            assert seen(f"{kind}_bytes") == 12_345
            assert seen(f"{kind}_limit_bytes") == getattr(served.broker.config.limits, f"max_{kind}_bytes")
        assert (await scrape(served))(f"{kind}_bytes") == 0


# --- how it is told ----------------------------------------------------------


async def test_no_id_of_anybody_is_told(noisy_broker):
    seen = await scrape(noisy_broker)
    for word in (ACCOUNT, "conn_", "in_1", "key_alice", "op_main", "dm_"):
        assert word not in seen.text


async def test_names_and_types_are_as_prometheus_has_them(noisy_broker):
    for name, family in (await scrape(noisy_broker)).families.items():
        assert re.fullmatch(r"broker_[a-z_]+", name)
        assert family.documentation
        assert not name.endswith(("_ms", "_milliseconds", "_kb", "_count", "_sum"))
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total")
        if family.type == "histogram":
            assert name.endswith(("_seconds", "_events"))


async def test_a_histogram_is_whole(noisy_broker):
    family = (await scrape(noisy_broker)).families["broker_fanout_last_delivery_seconds"]
    buckets = [(sample.labels["le"], sample.value) for sample in family.samples if sample.name.endswith("_bucket")]
    [count] = [sample.value for sample in family.samples if sample.name.endswith("_count")]
    assert [float(edge) for edge, _ in buckets] == [*BOUNDS, float("inf")]
    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert buckets[-1][1] == count


async def test_every_metric_stands_in_the_documentation_and_none_beside(noisy_broker, tmp_path):
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(broker_\w+)(?:\{[\w,]+\})?` \|", page, re.MULTILINE))
    families = list((await scrape(noisy_broker)).families.values())
    with server() as engine:
        on_disk = StorageConfig(path=str(tmp_path / "keeper.db"), min_free_bytes=0)
        async with serving(msgspec.structs.replace(sharing(engine), storage=on_disk)) as served:
            families += (await scrape(served)).families.values()
    assert documented == {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def sharing(engine: Server) -> Config:
    return msgspec.structs.replace(configured(), engine=EngineConfig(url=engine.url))


async def test_an_engine_that_nodes_share_is_told_of_and_readyz_says_when_it_is_away():
    with server() as engine:
        async with serving(sharing(engine)) as served:
            await post_events(served.address, [event(1), event(2)])
            async with connected(served.address):
                found = await scrape(served)
                assert (found("engine_away"), found("engine_full"), found("engine_losses_total")) == (0, 0, 0)
                assert (found("engine_call_events_total"), found("engine_accounts")) == (2, 1)
                assert (await ask(served.address, "GET", "/readyz")).status == 200
                engine.kill()
                await until(lambda: served.broker._engine.away)
            assert (await ask(served.address, "GET", "/readyz")).status == 503
            refused = await ask(served.address, "GET", "/v1/events?wait=1", key=ALICE)
            assert (refused.status, refused.code) == (503, "unavailable")
            assert (await scrape(served))("engine_away") == 1


async def test_a_log_on_disk_tells_of_its_commits_its_size_and_its_errors(noisy_broker):
    found = await scrape(noisy_broker)
    commits = found("storage_commit_seconds_count")
    assert commits == found("storage_group_events_count") > 0
    assert found("storage_group_events_sum") >= commits
    assert found("storage_commit_seconds_sum") > 0
    assert found("storage_bytes") > 0
    assert found("storage_free_bytes") > 0
    assert ("broker_storage_errors_total", "full") in found.samples
    assert found("older_reads_total") >= 1, "of the one who came late"
    assert (found("older_events_total"), found("older_reads_under_way")) == (0, 0), "what it got was in memory"


async def test_without_a_log_on_disk_nothing_is_told_of_one():
    async with serving() as served:
        assert not [name for name in (await scrape(served)).names if "storage" in name or "older" in name]


@pytest.mark.parametrize("key", [ALICE, INBOXES])
async def test_metrics_are_for_operators(key):
    async with serving() as served:
        answer = await ask(served.address, "GET", "/metrics", key=key)
        assert (answer.status, answer.code) == (403, "forbidden")
        assert (await ask(served.address, "GET", "/metrics", key=await token_of(served.address))).status == 403
        assert (await ask(served.address, "GET", "/metrics")).status == 401


async def test_the_size_of_a_scrape_does_not_grow_with_clients_and_accounts(noisy_broker):
    def size():
        return len(
            exposition(Reading(noisy_broker.broker.statistics(), Survey(), noisy_broker.broker.config)).split(b"\n")
        )

    before = size()
    for number in range(500):
        await noisy_broker.broker.publish(f"acct_{number}", event(inbox=f"in_{number}"))
        body = json.dumps({"action": f"act_{number}"}).encode()
        await ask(noisy_broker.address, "POST", "/v1/commands", key=ALICE, body=body)
    assert size() <= before + 2
