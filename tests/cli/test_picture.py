"""What `broker top` shows: what is pressed, what a restart does to it, and that it fits every terminal."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from rich.console import Console
from snapshots import NASTY, connection, page, snapshot

from broker.cli.picture import SORTS, Picture, document_of, line_of, lines_of
from broker.cli.screen import FOOTER, drawn, rows_of


def picture(**fields):
    shown = Picture("http://127.0.0.1:8765")
    shown.take(snapshot(uptime=1))
    shown.take(snapshot(uptime=2, published=7, delivered=70, **fields))
    return shown


# --- keys --------------------------------------------------------------------


@pytest.mark.parametrize(("key", "sort"), SORTS.items())
def test_a_key_sorts_by_what_the_footer_says(key, sort):
    shown = Picture("")
    assert shown.press(key)
    assert shown.wanted(10)["sort"] == sort
    assert f" {key} " in FOOTER
    assert shown.wanted(10)["order"] == ("asc" if sort == "account_id" else "desc")


def test_r_turns_the_order_f_goes_through_the_states_and_other_keys_do_nothing():
    shown = Picture("")
    assert shown.press("r")
    assert shown.wanted(5) == {"sort": "behind_events", "order": "asc", "limit": "5"}
    states = []
    for _ in range(4):
        assert shown.press("f")
        states.append(shown.wanted(5).get("state"))
    assert states == ["behind", "paused", "live", None]
    assert not shown.press("x")


# --- what is known -----------------------------------------------------------


def test_rates_are_told_from_the_second_snapshot_on():
    shown = Picture("")
    shown.take(snapshot(uptime=1))
    assert "/s" not in line_of(shown)
    shown.take(snapshot(uptime=2, published=7, delivered=70))
    assert "in 7/s  out 70/s" in line_of(shown)


def test_a_restart_is_seen_and_makes_no_rates():
    shown = picture()
    shown.take(snapshot(uptime=0.5))
    assert shown.rates is None
    assert "restarts seen: 1" in line_of(shown)
    shown.take(snapshot(uptime=1.5, published=3))
    assert "in 3/s" in line_of(shown)


def test_a_restart_is_seen_though_the_broker_is_up_for_longer_than_it_was_before():
    shown = Picture("ws://x/v1/stream")
    shown.take(structs.replace(snapshot(uptime=0.3), at="2026-11-27T10:00:00.000Z"))
    shown.lose("Connection refused")
    shown.take(structs.replace(snapshot(uptime=0.5, published=3), at="2026-11-27T10:00:03.000Z"))
    assert "restarts seen: 1" in line_of(shown)
    assert shown.rates is None
    shown.lose("the network was away")
    shown.take(structs.replace(snapshot(uptime=2.5, published=3), at="2026-11-27T10:00:05.000Z"))
    assert "restarts seen: 1" in line_of(shown)


def test_a_lost_broker_is_told_with_why_and_what_was_told_last_stays():
    shown = picture()
    shown.lose("Connection refused")
    assert line_of(shown) == "lost: Connection refused (what was told last is of 10:00:00)"
    assert "connections 3" in "\n".join(lines_of(shown))
    shown.take(snapshot(uptime=9))
    assert "serving" in line_of(shown)


def test_a_broker_that_drains_is_told_so():
    assert "draining" in line_of(picture(draining=True))


def test_as_lines_all_of_it_is_there_and_nothing_for_a_terminal_to_obey():
    shown = picture(accounts=2, gaps=2, gap_events=9, refused={"forbidden": 3})
    shown.page = page(connection(1, "paused"), connection(2, name=NASTY))
    text = "\n".join(lines_of(shown))
    for told in (
        "gaps 2",
        "events missed 9",
        "forbidden 3",
        "211 s of 300 s",
        "■ paused",
        "1,234",
        "account 0",
        "cut short",
    ):
        assert told in text
    assert "\x1b" not in text


def test_a_log_on_disk_is_told_with_how_far_it_reaches():
    assert "reaches 211 s of 300 s; on disk 1 d 0 h" in "\n".join(lines_of(picture(disk_seconds=86_400)))


def test_for_programs_it_is_json_with_what_the_broker_told():
    shown = picture()
    shown.page = page(connection(1))
    told = json.loads(json.dumps(document_of(shown)))
    assert told["contact"] == "live"
    assert told["snapshot"]["type"] == "operator.snapshot"
    assert told["rates"]["published_per_second"] == 7
    assert told["page"]["connections"][0]["client_id"] == "worker"


# --- on a terminal -----------------------------------------------------------


def on_a_terminal(shown, width, height):
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, legacy_windows=False)
    console.print(drawn(shown, width, height))
    return console.file.getvalue().rstrip("\n").split("\n")


@settings(deadline=None, max_examples=60)
@given(
    st.integers(20, 250),
    st.integers(12, 80),
    st.integers(0, 100),
    st.sampled_from(["live", "lost", "connecting"]),
)
def test_it_fits_the_terminal_whatever_is_shown(width, height, connections, contact):
    shown = Picture("http://127.0.0.1:8765")
    if contact != "connecting":
        shown.take(snapshot(uptime=1))
        shown.take(snapshot(uptime=2, published=7, accounts=10, closed=20, refused={NASTY: 5}))
        shown.page = page(*(connection(number, "behind", NASTY) for number in range(connections)))
    if contact == "lost":
        shown.lose(NASTY)
    lines = on_a_terminal(shown, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "\x1b" not in "".join(lines)


def test_on_a_wide_terminal_everything_is_there():
    shown = picture(accounts=1, closed=1)
    shown.page = page(connection(1, "behind", "[bold]agent"))
    text = "\n".join(on_a_terminal(shown, 160, 40))
    for told in (
        "serving",
        "in         7/s",
        "[bold]agent",
        "▲ behind",
        "150 connections (all)",
        "busiest account",
        "cut short",
        "4408",
    ):
        assert told in text
    assert text.endswith(FOOTER)


def test_so_many_connections_are_asked_for_as_have_room():
    assert rows_of(40) == 40 - 7 - 7 - 3
    assert rows_of(20) == 10
    assert rows_of(3) == 1
