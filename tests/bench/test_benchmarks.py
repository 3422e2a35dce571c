"""The pure parts of the benchmarks: no server, no timing."""

import gc
import json
import socket
from array import array
from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bars, check, cli, histograms
from benchmarks.cells import ahead_of_us, cells, too_much, why_not
from benchmarks.generator import receiving
from benchmarks.generator.deliveries import SLICES, Expected, account, length_of_union, together
from benchmarks.generator.effort import Effort, why_late, why_refused
from benchmarks.generator.endpoints import Endpoints
from benchmarks.generator.frames import FrameReader, is_one_frame, masked_frame
from benchmarks.generator.receiving import PythonLoop
from benchmarks.generator.schedule import Schedule
from benchmarks.generator.subscribers import Subscriber, Subscribers
from benchmarks.hostile.table import ROWS
from benchmarks.hostile.target import configuration as hostile_configuration
from benchmarks.options import Options
from benchmarks.payload import MARK, dues_in, message_of, patched
from benchmarks.peers.adapter import DUE, Publication, Running
from benchmarks.peers.broker import Broker
from benchmarks.profiles import collapse, hottest
from benchmarks.results import SCHEMA, Column, Hot, Results, ResultsError, Row, Table, load, save
from benchmarks.runner import cases_of, combined
from benchmarks.scenarios import SCENARIOS
from benchmarks.scenarios.webhooks import with_webhooks
from broker.config import parse_config

SECOND = 1_000_000_000


# --- frames


def server_frame(payload, opcode=1):
    size = len(payload)
    head = bytes([0x80 | opcode])
    if size < 126:
        return head + bytes([size]) + payload
    if size < 65_536:
        return head + b"\x7e" + size.to_bytes(2) + payload
    return head + b"\x7f" + size.to_bytes(8) + payload


@given(st.lists(st.sampled_from([0, 1, 125, 126, 300, 65_535, 65_536]), max_size=5), st.data())
def test_frames_come_whole_however_the_bytes_are_cut(sizes, data):
    payloads = [bytes([number]) * size for number, size in enumerate(sizes)]
    stream = b"".join(map(server_frame, payloads))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader, got = FrameReader(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[start:stop])
    assert got == [(1, payload) for payload in payloads]
    assert not reader.pending


@pytest.mark.parametrize("size", [0, 125, 126, 65_535])
def test_one_frame_is_told_from_parts_and_from_several(size):
    frame = server_frame(b"x" * size)
    assert is_one_frame(bytearray(frame), len(frame))
    assert not is_one_frame(bytearray(frame), len(frame) - 1)
    assert not is_one_frame(bytearray(frame * 2), 2 * len(frame))
    ping = server_frame(b"", 9)
    assert not is_one_frame(bytearray(ping), len(ping))


@pytest.mark.parametrize("size", [5, 125, 126, 65_536])
def test_a_masked_frame_holds_its_payload_as_it_is(size):
    frame = masked_frame(1, b"x" * size)
    assert frame[0] == 0x81
    assert frame[1] & 0x80
    assert frame.endswith(b"\0\0\0\0" + b"x" * size)


# --- schedule and payload


def test_a_schedule_is_fixed_before_it_begins():
    schedule = Schedule(rate=100, seconds=2, warm_up=0.5, channels=(3, 4))
    dues = schedule.dues(7 * SECOND)
    assert len(dues) == schedule.events == 250
    assert dues[0] == 7 * SECOND
    assert dues[schedule.warm_up_events] - dues[0] == SECOND // 2
    assert schedule.channel_of_each()[:3] == [3, 4, 3]
    assert schedule.dues(0) == [due - 7 * SECOND for due in dues]


@given(st.floats(0.1, 1_000_000), st.floats(0, 1), st.integers(0, 5))
def test_no_two_events_are_due_at_once(rate, jitter, seed):
    dues = Schedule(rate, min(1.0, 50 / rate), 0, jitter=jitter, seed=seed).dues(0)
    assert all(earlier < later for earlier, later in pairwise(dues))


def test_a_message_is_json_of_its_size_with_one_place_for_when_it_is_due():
    message = message_of(300)
    assert len(message) == 300
    assert json.loads(message)["message"]["body"].startswith("x")
    assert message.count(MARK + DUE) == 1
    assert list(dues_in(patched(message, 12_345) + patched(message, 67))) == [12_345, 67]


@pytest.mark.parametrize("by", ["socket", "http"])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_template_keeps_its_length_when_it_is_patched(by, batch):
    running = Running("127.0.0.1", 1, [], Publication(1))
    template = Broker(by=by, batch=batch).publish(running, 7, message_of(200))
    request = patched(template, 99)
    assert len(request) == len(template)
    assert list(dues_in(request)) == [99] * batch
    body = request[request.index(b"[" if batch > 1 else b'{"type"') :].rstrip(b"}" if by == "socket" else b"")
    assert body.count(b'"inbox_7"') == batch


def test_the_brokers_configuration_is_one():
    from benchmarks.peers.broker import configuration

    config = parse_config(configuration(4711), {})
    assert config.server.port == 4711
    assert [account.id for account in config.accounts] == ["acct_bench", "acct_neighbour"]
    assert config.storage.path is None


# --- deliveries


def arrivals_of(*deliveries):
    return array("q", [number for delivery in deliveries for number in delivery])


def test_latency_counts_from_when_an_event_was_due_and_not_in_the_warm_up():
    expected = Expected({0: (2, 100 + SECOND)}, begun=SECOND, seconds=1)
    had = account(
        arrivals_of((0, 100, 900), (1, 100, 950), (0, SECOND, SECOND + 5000), (1, SECOND, SECOND + 9000)),
        [0, 0],
        expected,
    )
    assert (had.lost, had.doubled, had.deliveries) == (0, 0, 4)
    assert had.latency.total_count == 2
    assert had.latency.get_max_value() == 9
    assert had.last == {SECOND: SECOND + 9000}
    assert had.burst_seconds == (50 + 4000) / 1e9
    assert [part.total_count for part in had.slices] == [2] + [0] * (SLICES - 1)


@pytest.mark.parametrize(
    ("dues", "lost", "doubled"),
    [([1, 2], 1, 0), ([1, 2, 3, 3], 0, 1), ([1, 2, 2], 1, 1), ([], 3, 0), ([3, 2, 1], 0, 0)],
)
def test_what_is_lost_or_doubled_is_counted(dues, lost, doubled):
    expected = Expected({5: (3, 6)}, begun=0, seconds=1)
    had = account(arrivals_of(*((0, due, due) for due in dues)), [5], expected)
    assert (had.lost, had.doubled) == (lost, doubled)


def test_the_last_of_all_processes_is_the_last():
    expected = Expected({0: (1, 10)}, begun=0, seconds=1)
    parts = [account(arrivals_of((0, 10, came)), [0], expected) for came in (500, 40_000)]
    whole = together(parts)
    assert whole.last == {10: 40_000}
    assert whole.deliveries == whole.latency.total_count == 2


def test_what_spans_share_counts_once():
    assert length_of_union([(0, 10), (5, 20), (30, 31), (6, 7)]) == 21


# --- the loop that receives


@pytest.fixture(scope="module", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """What is compiled goes nowhere that lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROKER_BENCH_PEERS", str(tmp_path_factory.mktemp("cache")))
        receiving.compiled.cache_clear()
        yield
    receiving.compiled.cache_clear()


@pytest.fixture(params=["C", "Python"])
def loop(request):
    """A loop over the reading end of a socket pair; yields the loop, both ends and the end that calls it."""
    library = receiving.compiled() if request.param == "C" else None
    if request.param == "C" and library is None:
        pytest.skip("no C compiler")
    reading, writing = socket.socketpair()
    calling, called = socket.socketpair()
    with reading, writing, calling, called:
        reading.setblocking(False)
        opened = receiving.CLoop(library, called.fileno(), 2) if library else PythonLoop(called.fileno(), 2)
        opened.add(reading, 7)
        yield opened, reading, writing, calling


def test_a_loop_notes_events_and_gives_back_what_is_unusual(loop):
    receiver, reading, writing, calling = loop
    event = server_frame(patched(message_of(200), 123))
    writing.send(event)
    assert receiver.turn(5, 1) == ([], False)
    assert list(receiver.arrivals)[:2] == [7, 123]
    ping = server_frame(b"hello", 9)
    writing.send(ping)
    assert receiver.turn(5, None) == ([(reading.fileno(), ping)], False)
    writing.send(event)  # nobody has looked at the ping yet
    assert receiver.turn(5, None) == ([(reading.fileno(), event)], False)
    receiver.hold(reading.fileno(), False)
    writing.send(event)
    receiver.turn(5, 2)
    assert list(receiver.arrivals)[3:5] == [7, 123]
    calling.send(b"!")
    assert receiver.turn(None, None) == ([], True)


def test_a_loop_says_that_a_connection_ended(loop):
    receiver, reading, writing, _ = loop
    writing.close()
    assert receiver.turn(5, None) == ([(reading.fileno(), b"")], False)
    receiver.remove(reading)
    receiver.reset()
    assert receiver.turn(0, None) == ([], False)
    assert not receiver.arrivals


class Talker:
    """A peer that pings in its own way."""

    name = "talker"

    def ping(self, message):
        return b"PONG" if message == b"PING" else None


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_subscribers_have_every_event_however_the_bytes_are_cut(cuts):
    reading, writing = socket.socketpair()
    calling, called = socket.socketpair()
    with reading, writing, calling, called:
        reading.setblocking(False)
        subscribers = Subscribers(Talker(), Running("", 0, [], Publication(0)), [], called.fileno())
        subscribers.channels = [0]
        subscribers.add(Subscriber(reading, 0))
        dues = [10, 20, 30]
        stream = b"".join(server_frame(patched(message_of(200), due)) for due in dues)
        stream = server_frame(b"PING") + stream + server_frame(b"x", 9)
        while stream:
            size = cuts[len(stream) % len(cuts)]
            writing.send(stream[:size])
            subscribers.receive(0)
            stream = stream[size:]
        received, _ = subscribers.collect(Expected({0: (3, 60)}, begun=0, seconds=1), 3, 5)
        assert (received.lost, received.doubled, received.deliveries) == (0, 0, 3)
        assert sorted(received.last) == dues
        gc.enable()
        assert writing.recv(4096) == masked_frame(1, b"PONG") + masked_frame(10, b"x")


# --- the generator's effort


@pytest.mark.parametrize(
    ("effort", "cores", "refused"),
    [
        (Effort("subscribers", 0.5), 1, False),
        (Effort("subscribers", 0.95), 1, True),
        (Effort("subscribers", 0.5, 1.0, 0.99, 500, 0.5), 1, True),
        (Effort("subscribers", 0.5, 1.0, 0.99, 500, 0.05), 1, False),
        (Effort("subscribers", 0.5, 1.0, 0.5, 500, 0.5), 1, False),
        (Effort("subscribers", 0.5, 0.001, 0.99, 500, 0.5), 1, False),
    ],
)
def test_a_saturated_generator_is_refused(effort, cores, refused):
    assert bool(why_refused([effort], cores)) == refused


def test_processes_that_share_a_core_are_saturated_together():
    efforts = [Effort("subscribers", 0.5), Effort("publisher", 0.5)]
    assert "1.00 of its 1 cores" in why_refused(efforts, 1)
    assert not why_refused(efforts, 2)


@pytest.mark.parametrize(("late_ms", "latency_ms", "refused"), [(0.9, 1, False), (5, 6, True), (5, 50, False)])
def test_a_late_publisher_is_refused_where_it_is_what_was_measured(late_ms, latency_ms, refused):
    assert bool(why_late(late_ms, latency_ms)) == refused


# --- histograms


def test_histograms_add_up_and_travel():
    import pickle

    fast = histograms.of_nanoseconds([1_000_000] * 99)
    slow = histograms.of_nanoseconds([80_000_000])
    whole = histograms.merged([fast, pickle.loads(pickle.dumps(slow))])
    assert histograms.milliseconds(histograms.decoded(histograms.encoded(whole)), 50) == pytest.approx(1, rel=0.01)
    assert histograms.milliseconds(whole, 100) == pytest.approx(80, rel=0.01)
    assert histograms.milliseconds(histograms.empty(), 99) == 0
    curve = histograms.percentile_curve(whole)
    assert curve == sorted(curve)


# --- results and the report


def table_of(*rows):
    columns = [Column("p50_ms", "p50 ms", 2, "lower"), Column("rate", "events/s", 0, "higher")]
    return Table(
        scenario="fanout", title="Fan-out", what="…", columns=columns, headline="p50_ms", scale="N", rows=list(rows)
    )


def row_of(peer, case, p50, **more):
    latency = histograms.encoded(histograms.of_nanoseconds([int(p50 * 1e6)] * 200))
    return Row(peer=peer, case=case, figures={"p50_ms": p50}, latency=latency, slices=[latency] * 3, seconds=3, **more)


@pytest.fixture
def results():
    table = table_of(
        row_of("broker", "10", 1.5, size=10, hot=[Hot("send", 0.5)], profile="profile.txt"),
        row_of("nats", "10", 1.2, size=10, notes={"history": "none"}),
        row_of("floor", "10", 0.5, size=10),
        row_of("broker", "20", 2.5, size=20),
        row_of("nats", "20", 9.9, size=20, refused="generator saturated: it had too much to do"),
        Row(peer="nchan", case="20", skipped="not here: apt-get install it"),
    )
    return Results(
        created_at="2026-01-01T00:00:00+00:00",
        machine={"cores": "2"},
        versions={"broker": "1", "nats": "2"},
        does={"nats": "no history"},
        options={"pin": "True"},
        tables=[table],
    )


def test_a_refused_figure_is_never_a_number(results):
    [table] = results.tables
    refused = next(row for row in table.rows if row.refused)
    assert cells(table, refused) == ["20", "nats", "refused: generator saturated: it had too much to do"]
    assert cells(table, table.rows[0]) == ["10", "broker", "1.50", "-"]
    assert [(ours.case, [row.peer for row in ahead]) for ours, ahead in ahead_of_us(table)] == [("10", ["nats"])]


def test_what_is_more_than_may_be_is_marked(results, tmp_path):
    from benchmarks import report

    [table] = results.tables
    table.columns[0] = Column("p50_ms", "p50 ms", 2, "lower", at_most=1.4)
    assert too_much(table, table.rows[0]) == [False, False, True, False]
    assert too_much(table, table.rows[1]) == [False, False, False, False]
    assert "| 10 | broker | **1.50** | - |" in report.write(results, tmp_path).read_text()


def test_results_are_read_as_they_were_written(results, tmp_path):
    save(results, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == results


@pytest.mark.parametrize("text", ["", "{}", f'{{"schema":{SCHEMA + 1}}}'])
def test_a_file_of_another_schema_is_refused(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=r"results\.json"):
        load(path)


def test_the_report_is_made_from_results_alone(results, tmp_path):
    from benchmarks import report

    text = report.write(results, tmp_path).read_text()
    assert "| 10 | broker | 1.50 | - |" in text
    assert "refused: generator saturated" in text
    assert "9.9" not in text
    assert "skipped: not here: apt-get install it" in text
    assert "fanout, 10 (p50 ms): broker 1.50; nats 1.20. Most of its samples: `send` 50%" in text
    assert "| `send` | 50% |" in text
    for name in ("fanout-10-percentiles.svg", "fanout-10-over-time.svg", "fanout-scaling.svg"):
        assert f"({name})" in text
        assert (tmp_path / name).read_text().startswith("<?xml")


def test_several_runs_are_one_row_of_medians():
    runs = [row_of("broker", "10", p50) for p50 in (1.0, 9.0, 2.0)]
    row = combined(runs)
    assert row.figures == {"p50_ms": 2.0}
    assert histograms.decoded(row.latency).total_count == 600
    assert (
        why_not(combined([*runs, row_of("broker", "10", 1.0, void="3 deliveries lost")])) == "void: 3 deliveries lost"
    )


def test_a_refused_run_is_left_out_while_most_are_not():
    runs = [row_of("broker", "10", p50) for p50 in (1.0, 9.0, 2.0)]
    refused = row_of("broker", "10", 9.0, refused="generator saturated")
    row = combined([refused, *runs])
    assert row.figures == {"p50_ms": 2.0}
    assert row.notes == {"refused runs": "1 of 4"}
    assert combined([runs[0], refused]).refused


# --- bars


def test_every_bar_is_about_a_scenario_that_has_its_figure():
    for bar in bars.read():
        columns = {column.key for column in SCENARIOS[bar.scenario].columns}
        assert bar.figure in columns, bar
        assert set(bar.cases) <= {case.case for case in SCENARIOS[bar.scenario].cases(Options())}, bar
        assert check.options_for(bar, Options(brief=True)).runs <= bar.runs


def test_a_bar_is_judged_by_the_worst_of_its_rows():
    bar = bars.Bar("…", "hostile", "p50_ms", 2.0, 1, cases=("one", "other"))
    assert check.options_for(bar, Options()).cases == bar.cases
    assert bars.judge(bar, table_of(row_of("broker", "one", 1.0), row_of("broker", "other", 2.0))).holds
    assert not bars.judge(bar, table_of(row_of("broker", "one", 1.0), row_of("broker", "other", 2.1))).holds


@pytest.mark.parametrize(("value", "holds"), [(1.1, True), (1.2, True), (1.3, False)])
def test_a_bar_holds_up_to_its_value(value, holds):
    bar = bars.Bar("…", "slow", "ratio", 1.2, 3)
    without, with_them = row_of("broker", "without", 1.0), row_of("broker", "with", value)
    with_them.figures["ratio"] = value
    assert bars.judge(bar, table_of(without, with_them)).holds == holds
    without.void = "1 deliveries lost"
    assert not bars.judge(bar, table_of(without, with_them)).holds
    assert not bars.judge(bar, table_of(with_them.__class__(peer="broker", case="with"))).holds


# --- profiles


def test_collapsed_stacks_say_where_it_is_hot():
    assert hottest(["main;run;send 30", "main;run 10"]) == [Hot("send", 0.75), Hot("run", 0.25)]


def test_what_perf_lists_becomes_stacks():
    listing = "\n\tffff send\n\tffff main\n\n\tffff send\n\tffff main\n\n\tffff main\n\n"
    assert collapse(listing) == ["main;send 2", "main 1"]


# --- options


def test_chosen_cases_are_the_only_ones():
    hostile = SCENARIOS["hostile"]
    assert {case.case for case in cases_of(hostile, Options())} == set(ROWS)
    assert [case.case for case in cases_of(hostile, Options(cases=("list-of-ones", "no such")))] == ["list-of-ones"]
    brief = [case.case for case in cases_of(hostile, Options(brief=True))]
    assert 0 < len(brief) < len(ROWS)


def test_what_tls_costs_is_a_scenario_and_an_option_alike(tmp_path, capsys):
    for asked in ("tls", "--tls"):
        assert cli.main([asked, "--url", "https://example.com", "--out", str(tmp_path / asked)]) == 0
        [table] = load(tmp_path / asked / "results.json").tables
        assert (table.scenario, table.rows[0].skipped[:9]) == ("tls", "not with ")
    assert [case.size for case in SCENARIOS["tls"].cases(Options(subscribers=(7,)))][:1] == [7]


def test_every_row_has_a_configuration_that_the_broker_takes():
    for row in ROWS.values():
        config = parse_config(hostile_configuration(4711, 4712, row.settings, asks=row.asks), {})
        assert (config.access.url is not None) == row.asks


def test_the_webhooks_that_are_measured_are_some_that_the_broker_takes(tmp_path):
    config = parse_config(with_webhooks(4711, [4712, 4713], tmp_path / "broker.db"), {})
    assert [len(account.webhooks) for account in config.accounts] == [0, 2]
    assert config.storage.path is not None


def test_an_endpoint_takes_its_time_and_counts_what_it_answers():
    endpoints = Endpoints(2, 0.01, control=0)
    for port in endpoints.ports():
        for _ in range(2):
            assert httpx.post(f"http://127.0.0.1:{port}/", content=b"{}").status_code == 200
    assert (endpoints.taken(), endpoints.taken()) == (4, 0)


def test_a_deployment_is_measured_alone():
    options = Options(url="https://example.com", key="dm_live_x")
    assert options.compared == ("broker",)
    with options.broker().open(None, 1) as running:
        assert (running.host, running.port, running.tls, running.process_ids) == ("example.com", 443, True, [])
