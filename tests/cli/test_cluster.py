"""Many `broker serve` at one server, whatever befalls them: nothing answered is missing without a gap that says so.

A few faults here; `make prove-cluster` has sixteen of each kind, in under ten minutes.
"""

import os

import chaos
import pytest
import trio
from chaos import ON_DISK, Cluster, befall
from processes import free_port
from valkeys import server

TIMES = int(os.environ.get("BROKER_CHAOS", "1"))
PROVING = TIMES > 1
FAULTS = {
    "cut": chaos.cut,
    "emptied": chaos.emptied,
    "killed": chaos.killed,
    "restarted": chaos.restarted,
    "restarted, on disk": chaos.restarted,
    "stuck": chaos.stuck,
    "stuck for long": chaos.stuck_for_long,
    "full": chaos.full,
    "stopped": chaos.stopped,
    "drained": chaos.drained,
    "stale": chaos.stale,
    "failed over": chaos.failed_over,
    "first replica": chaos.first_replica,
    "behind the window": chaos.behind,
    "anything": chaos.anything,
}
IN_EVERY_RUN = {"stale"}
SECONDS = 600 if PROVING else 150
MOVES = 1_000


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if PROVING or kind in IN_EVERY_RUN])
async def test_what_was_answered_is_told_once_in_order_or_in_a_gap_whatever_happens(tmp_path, kind, record_property):
    times = min(TIMES, 4) if kind == "stuck for long" else TIMES
    options = ON_DISK if "disk" in kind else ()
    window = 1 if kind == "behind the window" else 300
    with server("valkey", *options, port=free_port()) as running:
        cluster = Cluster(tmp_path, running, window_seconds=window)
        with trio.fail_after(SECONDS):
            async with cluster.under_load():
                await befall(cluster, FAULTS[kind], times)
    record_property("chaos", f"{kind}, {times} times: {cluster.summary()}")
    cluster.check()
    assert cluster.answers > chaos.EVENTS_BETWEEN * times
    if kind == "behind the window":
        assert [count for told in cluster.told.values() for _, _, count in told.gaps if count is not None]


if PROVING:

    async def test_clients_that_move_from_node_to_node_all_the_time_see_one_stream(tmp_path, record_property):
        with server() as running:
            cluster = Cluster(tmp_path, running, nodes=3)
            with trio.fail_after(SECONDS):
                async with cluster.under_load(stay_seconds=0.05):
                    while cluster.moves < MOVES:  # noqa: ASYNC110
                        await trio.sleep(0.05)
        record_property("chaos", f"clients that move all the time: {cluster.summary()}")
        cluster.check()
        assert not [gap for told in cluster.told.values() for gap in told.gaps], cluster.summary()
