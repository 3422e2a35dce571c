"""What several workers tell, as one broker tells it."""

import pytest
from msgspec import UNSET, Raw
from msgspec.structs import replace
from steps import result_of

from broker.durations import BOUNDS
from broker.observe.census import MOST_ACCOUNTS_SHOWN, AccountSeen
from broker.observe.choosing import ChosenPage, OperatorConnection, Wanted
from broker.observe.connections import MOST_CLOSED_SHOWN, PAGE_CONNECTIONS, ConnectionClosed
from broker.observe.live import Buckets, ConnectionCounts, LiveCounters, LiveWindow, Snapshot
from broker.observe.merging import (
    NumberedPage,
    merged_connections,
    merged_metrics,
    merged_pages,
    merged_snapshots,
)


def account(name, rate=1.0, **fields):
    told = {"connections": 1, "max_connections": 10, "window_events": 5, "window_bytes": 50, "window_seconds": 5.0}
    return AccountSeen(name, rate, **{**told, "tier": "developer", **fields})


def closed(at, number=0):
    return ConnectionClosed(f"2026-01-01T00:00:{at:02}.000Z", f"conn_{number}", "acct", None, "", 1.0)


def snapshot(**fields):
    buckets = Buckets(BOUNDS, tuple(range(len(BOUNDS) + 1)))
    told = {
        "at": "now", "version": "1", "uptime_seconds": 10.0, "draining": False,
        "connections": ConnectionCounts(6, 3, 2, 1, 3, 2, 1), "held_bytes": 100,
        "counters": LiveCounters(1, 2, 3, 4, 5, {"forbidden": 1}), "delay_seconds": buckets,
        "loop_lag_seconds": buckets, "window": LiveWindow(10, 20, 30, 300.0, 200.0, None), "accounts": [], "closed": [],
    }  # fmt: skip
    return Snapshot(**{**told, **fields})


# --- figures


def test_figures_are_summed_but_for_those_of_which_one_counts():
    one = snapshot()
    other = snapshot(
        at="later", uptime_seconds=20.0, draining=True, connections=ConnectionCounts(10, 9, 1, 0, 10, 0, 0),
        held_bytes=7, counters=LiveCounters(10, 20, 30, 40, 50, {"forbidden": 2, "not_found": 3}),
        window=LiveWindow(1, 2, 3, 300.0, 100.0, None),
    )  # fmt: skip
    for merged, first in ((merged_snapshots([one, other]), one), (merged_snapshots([other, one]), other)):
        assert (merged.at, merged.version, merged.uptime_seconds, merged.draining) == (first.at, "1", 20.0, True)
        assert merged.connections == ConnectionCounts(16, 12, 3, 1, 13, 2, 1)
        assert merged.held_bytes == 107
        assert merged.counters == LiveCounters(11, 22, 33, 44, 55, {"forbidden": 3, "not_found": 3})
        assert merged.window == LiveWindow(11, 22, 33, 300.0, 100.0, None)
        assert merged.delay_seconds.counts == tuple(range(0, 2 * len(BOUNDS) + 1, 2))
        assert merged.loop_lag_seconds.buckets == BOUNDS


def test_one_workers_figures_are_the_brokers():
    alone = snapshot(accounts=[account("a")], closed=[closed(1)])
    assert merged_snapshots([alone]) == alone


def test_an_account_of_several_workers_is_one_whose_events_each_of_them_has():
    one = account("a", 3.0, window_events=9, window_bytes=10, window_seconds=None, connections=2)
    other = account("a", 2.0, window_events=4, window_bytes=90, squeezed=True, tier=None, max_connections=None)
    for pair in ([one, other], [other, one]):
        merged = merged_snapshots([snapshot(accounts=[each]) for each in pair])
        assert merged.accounts == [
            AccountSeen("a", 3.0, 3, 10, 9, 90, 5.0, tier="developer", squeezed=True),
        ]
    without = [account("a", window_seconds=None)] * 2
    assert merged_snapshots([snapshot(accounts=[each]) for each in without]).accounts[0].window_seconds is None


def test_the_busiest_accounts_of_all_workers_come_first():
    accounts = [account(f"a{number:02}", number % 5, connections=number) for number in range(16)]
    merged = merged_snapshots([snapshot(accounts=accounts[:9]), snapshot(accounts=accounts[9:])])
    expected = sorted(accounts, key=lambda each: (-each.events_per_second, -each.connections))
    assert merged.accounts == expected[:MOST_ACCOUNTS_SHOWN]
    same = [account(name) for name in "cab"]
    assert [each.account_id for each in merged_snapshots([snapshot(accounts=same)]).accounts] == ["a", "b", "c"]


def test_the_connections_that_ended_last_come_first_whichever_workers_they_were():
    ended = [closed(at, at) for at in range(30)]
    merged = merged_snapshots([snapshot(closed=ended[::2]), snapshot(closed=ended[1::2])])
    assert merged.closed == ended[::-1][:MOST_CLOSED_SHOWN]


# --- metrics

ONE = b"""# HELP broker_x_total X
# TYPE broker_x_total counter
broker_x_total{a="b c"} 1
broker_x_total{a="d"} 2
# HELP broker_draining Draining
# TYPE broker_draining gauge
broker_draining 1
# HELP broker_window_squeezed_seconds Squeezed
# TYPE broker_window_squeezed_seconds gauge
broker_window_squeezed_seconds 7
"""
OTHER = b"""# HELP broker_x_total X
# TYPE broker_x_total counter
broker_x_total{a="b c"} 10
broker_x_total{a="e"} 5
# HELP broker_draining Draining
# TYPE broker_draining gauge
broker_draining 1
# HELP broker_window_squeezed_seconds Squeezed
# TYPE broker_window_squeezed_seconds gauge
broker_window_squeezed_seconds 3
"""


def test_metrics_are_one_exposition_whose_samples_are_summed_the_greatest_or_the_least():
    assert result_of(merged_metrics([ONE, OTHER])).decode().splitlines() == [
        "# HELP broker_x_total X",
        "# TYPE broker_x_total counter",
        'broker_x_total{a="b c"} 11.0',
        'broker_x_total{a="d"} 2.0',
        'broker_x_total{a="e"} 5.0',
        "# HELP broker_draining Draining",
        "# TYPE broker_draining gauge",
        "broker_draining 1.0",
        "# HELP broker_window_squeezed_seconds Squeezed",
        "# TYPE broker_window_squeezed_seconds gauge",
        "broker_window_squeezed_seconds 3.0",
    ]
    assert result_of(merged_metrics([ONE])).endswith(b"\n")


def test_of_what_is_the_same_or_is_so_at_one_worker_the_greatest_or_the_least_counts():
    def said(away, squeezed, held):
        return (
            f"# HELP broker_engine_away x\n# TYPE broker_engine_away gauge\nbroker_engine_away {away}\n"
            f"# TYPE broker_window_squeezed_seconds gauge\nbroker_window_squeezed_seconds {squeezed}\n"
            f"# TYPE broker_held gauge\nbroker_held {held}\n"
        ).encode()

    assert result_of(merged_metrics([said(1.0, 30.0, 2.0), said(1.0, 20.0, 3.0)])) == said(1.0, 20.0, 5.0)


def test_metrics_of_many_workers_are_merged_in_a_step_for_each():
    assert len(list(merged_metrics([ONE, OTHER] * 32))) == 64


# --- connections


def test_connections_of_all_workers_come_in_the_order_of_their_opening_up_to_one_page():
    raw = [Raw(b"%d" % number) for number in range(PAGE_CONNECTIONS + 2)]
    rows = list(enumerate(raw))
    whole = merged_connections([NumberedPage(rows[0:10:2], more=False), NumberedPage(rows[1:10:2], more=False)])
    assert (whole.connections, whole.next) == (raw[:10], UNSET)
    cut = merged_connections([NumberedPage(rows[::2], more=False), NumberedPage(rows[1::2], more=False)])
    assert (cut.connections, cut.next) == (raw[:PAGE_CONNECTIONS], str(PAGE_CONNECTIONS - 1))
    more = merged_connections([NumberedPage(rows[:3], more=True), NumberedPage(rows[3:5], more=False)])
    assert (more.connections, more.next) == (raw[:5], "4")
    assert merged_connections([NumberedPage([], more=False)]).next is UNSET


def connection(number, **fields):
    told = OperatorConnection(
        f"conn_{number}", "acct", "key", None, "websocket", None, None, f"2026-01-01T00:00:{number:02}.000Z", "live",
        number, number, 0.5, 0, 0, 1.5, None, None,
    )  # fmt: skip
    return replace(told, **fields)


def chosen(rows, total=100):
    """A worker's page of some connections, whose numbers are those of their ids."""
    return ChosenPage(total, len(rows), [(int(row.connection_id.removeprefix("conn_")), row) for row in rows])


def page(wanted, *workers):
    return result_of(merged_pages([chosen(rows) for rows in workers], wanted)).told()


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("sort", ["behind_events", "opened_at", "inboxes"])
def test_a_page_is_what_comes_there_when_the_connections_of_all_workers_are_sorted(order, sort):
    rows = [connection(number) for number in range(20)]
    rows = rows if order == "asc" else rows[::-1]
    merged = page(Wanted(sort=sort, order=order, offset=3, limit=5), rows[::2], rows[1::2])
    assert (merged.total, merged.matching, merged.connections) == (200, 20, rows[3:8])


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("sort", ["opened_at", "client_id", "behind_events"])
def test_of_connections_that_are_alike_the_first_comes_first_whichever_worker_has_it(order, sort):
    at = "2026-01-01T00:00:00.000Z"
    rows = [connection(number, opened_at=at, client_id="a", behind_events=7) for number in range(6)]
    if (sort, order) == ("opened_at", "desc"):
        rows.reverse()
    merged = page(Wanted(sort=sort, order=order), [rows[2], rows[5]], [rows[0], rows[3]], [rows[1], rows[4]])
    assert merged.connections == rows


def test_who_has_all_inboxes_has_the_most_and_who_has_no_name_comes_before_all_names():
    everything, some = connection(1, inboxes=None), connection(2)
    assert page(Wanted(sort="inboxes", order="asc"), [everything], [some]).connections == [some, everything]
    nameless, named = connection(1), connection(2, client_id="a")
    assert page(Wanted(sort="client_id", order="asc"), [named], [nameless]).connections == [nameless, named]


def test_a_page_far_down_comes_in_steps():
    rows = [connection(number % 60) for number in range(1_000)]
    rows.sort(key=lambda row: row.behind_events)
    steps = merged_pages([chosen(rows, 1_000)], Wanted(order="asc", offset=900, limit=10))
    assert len(list(steps)) > 2
    assert page(Wanted(order="asc", offset=900, limit=200), rows).connections == rows[900:]
