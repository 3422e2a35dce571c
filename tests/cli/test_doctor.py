"""`broker doctor` against what is well and what is broken: it names what is wrong, and what to do."""

import json

import pytest
import trio
from between import (
    AsksForMore,
    Between,
    CutsWhatIsQuiet,
    DropsUpgrade,
    ForgetsWhatIsQuiet,
    HoldsBack,
    Says,
    ShiftsTime,
    Slow,
    standing,
)
from certificates import Authority
from clients import (
    ALICE,
    INBOXES,
    LISTENER,
    OPERATOR,
    PUBLISHER,
    alices,
    config_of,
    configured,
    configured_key,
    connected,
    token_of,
)
from clients import serving as serving_here
from documents import ROOT
from processes import GUARD_SECONDS, KEY, process, serving

import broker.cli.examining
import broker.cli.probing
from broker import Config
from broker.cli.examining import Patient, examine
from broker.cli.findings import EXIT_CODES, Finding, exit_code, lines_of, quantiles
from broker.cli.options import parse_url
from broker.cli.probing import Place
from broker.config import StorageConfig
from broker.keys import hash_key


@pytest.fixture
def impatient(monkeypatch):
    """What does not come in four seconds does not come."""
    monkeypatch.setattr(broker.cli.examining, "STEP_SECONDS", 4.0)
    monkeypatch.setattr(broker.cli.probing, "STEP_SECONDS", 4.0)


async def findings_at(url, key=ALICE, *, trust=None, inbox=None, idle=0.0, samples=3):
    """All that the doctor finds at a URL, by the check."""
    where, found = parse_url(url), []
    patient = Patient(Place(where.http, trust), where.websocket, key, inbox, idle, samples)
    with trio.fail_after(GUARD_SECONDS):
        await examine(patient, found.append)
    assert all(finding.said for finding in found)
    assert all(bool(finding.do) == (finding.state == "problem") for finding in found)
    return {finding.check: finding for finding in found}


def problems(found):
    return {finding.check: finding.problem for finding in found.values() if finding.state == "problem"}


def port_of(served):
    return served.address[1]


# --- what is well ------------------------------------------------------------


async def test_with_a_key_that_may_see_to_webhooks_it_says_whether_they_are_at_this_node(tmp_path):
    keys = (configured_key(ALICE, scopes=("subscribe", "webhooks")),)
    alone = config_of(alices(*keys))
    on_disk = config_of(alices(*keys), storage=StorageConfig(path=str(tmp_path / "broker.db"), min_free_bytes=0))
    for config, state, said in ((alone, "skipped", "keeps no webhooks and queues"), (on_disk, "ok", "0 and 0")):
        async with serving_here(config) as served:
            found = await findings_at(f"127.0.0.1:{port_of(served)}")
        assert found["webhooks"].state == state
        assert said in found["webhooks"].said
        assert exit_code(found.values()) == 0


async def test_where_all_is_well_it_finds_nothing_and_measures():
    async with serving_here() as served:
        found = await findings_at(f"127.0.0.1:{port_of(served)}", samples=10)
    assert {check: finding.state for check, finding in found.items()} == {
        "reach": "ok", "broker": "ok", "key": "ok", "stream": "ok", "round trip": "ok", "clock": "ok",
        "delivery": "ok", "replay": "ok", "quiet": "skipped", "event stream": "ok",
    }  # fmt: skip
    assert found["key"].measured == {"scopes": "subscribe, command, publish"}
    delivery = found["delivery"].measured
    assert delivery["events"] == 10
    assert 0 < delivery["p50_seconds"] <= delivery["p99_seconds"] <= delivery["max_seconds"]
    assert found["round trip"].measured["min_seconds"] > 0
    assert abs(found["clock"].measured["ahead_seconds"]) < 1
    assert exit_code(found.values()) == 0


@pytest.mark.parametrize(("key", "inbox", "expected"), [(INBOXES, None, "in_1"), (ALICE, "in_7", "in_7")])
async def test_it_publishes_where_the_key_reaches_or_where_it_is_told(key, inbox, expected):
    async with serving_here() as served, served.broker.subscribe("acct_alice") as events:
        found = await findings_at(f"127.0.0.1:{port_of(served)}", key, inbox=inbox, samples=1)
        event = await anext(events)
    assert problems(found) == {}
    assert (event.type, event.inbox_id) == ("doctor.probe", expected)


async def test_with_a_key_that_may_not_publish_it_publishes_nothing():
    async with serving_here() as served:
        found = await findings_at(f"127.0.0.1:{port_of(served)}", LISTENER)
        assert served.broker.statistics().published == 0
    assert (found["delivery"].state, found["replay"].state) == ("skipped", "ok")
    assert problems(found) == {}


async def test_nothing_is_published_if_that_is_not_wanted():
    async with serving_here() as served:
        assert problems(await findings_at(f"127.0.0.1:{port_of(served)}", samples=0)) == {}
        assert served.broker.statistics().published == 0


async def test_a_tier_of_one_connection_is_enough():
    async with serving_here(Config(accounts=(alices(tier="free"),))) as served:
        assert problems(await findings_at(f"127.0.0.1:{port_of(served)}", idle=0.1)) == {}


async def test_a_token_is_looked_at_as_far_as_it_goes():
    async with serving_here() as served:
        found = await findings_at(f"127.0.0.1:{port_of(served)}", await token_of(served.address))
    assert problems(found) == {}
    assert (found["key"].state, found["replay"].state) == ("skipped", "ok")


async def test_over_tls_with_a_known_authority_all_is_well(tmp_path):
    authority = Authority(tmp_path)
    async with serving_here(configured(server=authority.sign())) as served:
        found = await findings_at(f"https://localhost:{port_of(served)}", trust=authority.trust())
    assert problems(found) == {}
    assert "with TLS" in found["reach"].said


# --- who is there ------------------------------------------------------------


async def test_where_nothing_listens_it_says_so():
    found = await findings_at("127.0.0.1:1")
    assert problems(found) == {"reach": "unreachable"}
    assert "127.0.0.1:1: Connection refused" in found["reach"].said


async def test_a_name_that_nobody_knows_is_said_to_be_unknown():
    assert problems(await findings_at("nowhere.invalid:80")) == {"reach": "unreachable"}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\n<html>", "no_broker"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "no_broker"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no_broker"),
        (b"", "no_answer"),
    ],
)
async def test_what_is_no_broker_is_said_to_be_none(answer, problem, impatient):
    async with standing(Says(answer)) as url:
        assert problems(await findings_at(url)) == {"broker": problem}


async def test_a_broker_that_drains_is_not_ready():
    async with serving_here() as served, connected(served.address) as client:
        await client.say(action="ping")
        served.broker.start_draining()
        found = await findings_at(f"127.0.0.1:{port_of(served)}")
    assert problems(found) == {"broker": "not_ready"}
    assert "drains" in found["broker"].said


# --- TLS ---------------------------------------------------------------------


async def test_an_unknown_authority_is_named_with_the_option_that_helps(tmp_path):
    async with serving_here(configured(server=Authority(tmp_path).sign())) as served:
        found = await findings_at(f"https://localhost:{port_of(served)}")
    assert problems(found) == {"reach": "tls"}
    assert "is not trusted" in found["reach"].said
    assert "--ca-file" in found["reach"].do


async def test_http_where_tls_is_spoken_is_told_which_scheme_it_is(tmp_path):
    async with serving_here(configured(server=Authority(tmp_path).sign())) as served:
        found = await findings_at(f"ws://localhost:{port_of(served)}")
    assert problems(found) == {"broker": "scheme"}
    assert f"--url https://localhost:{port_of(served)}" in found["broker"].do


async def test_https_where_plain_http_is_spoken_is_told_which_scheme_it_is():
    async with serving_here() as served:
        found = await findings_at(f"wss://127.0.0.1:{port_of(served)}")
    assert problems(found) == {"reach": "scheme"}
    assert f"--url http://127.0.0.1:{port_of(served)}" in found["reach"].do


async def test_https_where_neither_is_spoken_is_said_to_be_no_tls():
    async with standing(Says(b"220 mail.example ESMTP\r\n")) as url:
        assert problems(await findings_at(f"https://{url}")) == {"reach": "tls"}


# --- the key -----------------------------------------------------------------


async def test_a_wrong_key_is_said_to_be_unknown():
    async with serving_here() as served:
        found = await findings_at(f"127.0.0.1:{port_of(served)}", "dm_live_wrong")
    assert problems(found) == {"key": "key"}


async def test_an_operators_key_is_told_apart():
    async with serving_here() as served:
        found = await findings_at(f"127.0.0.1:{port_of(served)}", OPERATOR)
    assert problems(found) == {"key": "key"}
    assert "operator" in found["key"].said


async def test_a_key_without_the_scope_to_subscribe_is_said_to_get_no_events():
    async with serving_here() as served:
        found = await findings_at(f"127.0.0.1:{port_of(served)}", PUBLISHER)
    assert problems(found) == {"key": "scope"}
    assert "the key may publish" in found["key"].said
    assert found["event stream"].state == "skipped"


async def test_an_inbox_that_the_key_does_not_reach_is_named():
    async with serving_here() as served:
        found = await findings_at(f"127.0.0.1:{port_of(served)}", INBOXES, inbox="in_9")
    assert list(problems(found)) == ["stream"]
    assert "in_9" in found["stream"].said


async def test_an_expired_token_is_said_to_be_none():
    async with serving_here() as served:
        assert problems(await findings_at(f"127.0.0.1:{port_of(served)}", "wst_x.y")) == {"stream": "key"}


async def test_at_the_connection_limit_it_says_so():
    async with serving_here(config_of(alices(tier="free"))) as served, connected(served.address):
        found = await findings_at(f"127.0.0.1:{port_of(served)}")
    assert problems(found) == {"stream": "connection_limit"}


# --- what stands between -----------------------------------------------------


async def through(made, **options):
    async with serving_here() as served, standing(made(port_of(served))) as url:
        return await findings_at(url, **options)


async def test_through_what_does_no_harm_all_is_well():
    assert problems(await through(Between, idle=0.1)) == {}


async def test_a_proxy_that_cuts_quiet_connections_is_found_with_the_time_that_it_waits():
    found = await through(CutsWhatIsQuiet, idle=30)
    assert problems(found) == {"quiet": "cut_when_quiet"}
    assert 0.5 < found["quiet"].measured["seconds"] < 20
    assert "heartbeat of 30 s" in found["quiet"].do


async def test_a_proxy_that_forgets_quiet_connections_without_a_word_is_found(impatient):
    found = await through(ForgetsWhatIsQuiet, idle=1.5)
    assert problems(found) == {"quiet": "cut_when_quiet"}
    assert "nobody says so" in found["quiet"].said


async def test_a_quiet_connection_that_lives_is_well():
    found = await through(Between, idle=0.2)
    assert found["quiet"].state == "ok"


async def test_a_proxy_that_does_not_pass_the_upgrade_on_is_found():
    found = await through(DropsUpgrade)
    assert problems(found) == {"stream": "no_websocket"}
    assert "Upgrade" in found["stream"].do


async def test_a_proxy_that_buffers_an_upgraded_connection_is_found(impatient):
    found = await through(lambda port: HoldsBack(port, mark=b"HTTP/1.1 101 Switching Protocols\r\n"))
    assert problems(found) == {"stream": "no_websocket"}
    found = await through(lambda port: HoldsBack(port, mark=b"daimon.none\r\n\r\n"))
    assert problems(found) == {}


async def test_a_proxy_that_holds_back_what_comes_after_the_first_frame_is_found(impatient):
    found = await through(lambda port: HoldsBack(port, mark=b'"replay_seconds":300'))
    assert problems(found) == {"stream": "held_back"}


async def test_a_proxy_that_holds_back_events_is_found(impatient):
    found = await through(lambda port: HoldsBack(port, mark=b'"request_id":"publish_0"'))
    assert problems(found) == {"delivery": "held_back"}


async def test_a_proxy_that_buffers_server_sent_events_is_found(impatient):
    found = await through(lambda port: HoldsBack(port, mark=b"text/event-stream"))
    assert problems(found) == {"event stream": "event_stream"}
    assert "proxy_buffering off" in found["event stream"].do


async def test_a_clock_that_is_off_is_found_and_the_rest_is_looked_at_all_the_same():
    found = await through(ShiftsTime)
    assert problems(found) == {"clock": "clock"}
    assert "behind this machine's" in found["clock"].said
    assert found["clock"].measured["ahead_seconds"] < -10_000_000


async def test_a_way_that_is_slow_is_no_fault_of_the_broker_and_one_beyond_two_round_trips_is_told(monkeypatch):
    assert problems(await through(Slow, samples=1)) == {}
    monkeypatch.setattr(broker.cli.examining, "SLOW_SECONDS", -10.0)
    assert problems(await through(Slow, samples=1)) == {"delivery": "slow"}


async def test_two_brokers_behind_one_name_that_share_nothing_are_found():
    async with (
        serving_here() as one,
        serving_here() as other,
        # The second WebSocket is the fourth connection.
        standing(Between(*[port_of(one)] * 3, port_of(other))) as url,
    ):
        found = await findings_at(url, samples=0)
    assert problems(found) == {"replay": "no_replay"}
    assert "share an engine" in found["replay"].do


async def test_events_that_come_again_after_a_cut_are_found():
    found = await through(AsksForMore)
    assert problems(found) == {"replay": "no_replay"}
    assert "4 events came where one was missed" in found["replay"].said


# --- what it says ------------------------------------------------------------


def test_a_problem_is_two_lines_what_is_wrong_and_what_to_do():
    lines = lines_of(Finding("key", "problem", "it is wrong", "mend it", "key"))
    assert [line.split() for line in lines] == [["PROBLEM", "key", "it", "is", "wrong"], ["→", "mend", "it"]]


def test_the_exit_code_is_that_of_the_first_problem():
    found = [
        Finding("reach", "ok", ""),
        Finding("clock", "problem", "", "", "clock"),
        Finding("key", "problem", "", "", "key"),
    ]
    assert exit_code(found) == EXIT_CODES["clock"]


def test_quantiles_are_times_that_were_measured():
    assert quantiles([0.3, 0.1, 0.2]) == {"p50_seconds": 0.2, "p99_seconds": 0.3, "max_seconds": 0.3}
    assert quantiles([1.0]) == {"p50_seconds": 1.0, "p99_seconds": 1.0, "max_seconds": 1.0}


@pytest.mark.parametrize(("problem", "code"), EXIT_CODES.items())
def test_every_exit_code_is_documented(problem, code):
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert f"| {code} | `{problem}` |" in page
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)


# --- as a program ------------------------------------------------------------


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("doctor") / "broker.toml"
    path.write_text(f'[[accounts]]\nid = "a"\n[[accounts.keys]]\nid = "k"\nsha256 = "{hash_key(KEY)}"\n')
    with serving("--config", path) as (_, url):
        yield url


def run(*arguments):
    with process("doctor", *arguments) as examining:
        said, errors = examining.communicate(timeout=GUARD_SECONDS)
    assert errors == ""
    return examining.returncode, said


def test_for_people_it_says_each_check_in_a_line_as_it_comes(url):
    code, said = run("--url", url, "--samples", "2")
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == ["ok"] * 8 + ["skipped", "ok"]


def test_for_programs_it_is_one_document(url):
    code, said = run("--url", url, "--key", "dm_live_other", "--json")
    document = json.loads(said)
    assert code == document["exit_code"] == EXIT_CODES["key"]
    assert document["findings"][0]["check"] == "reach"
    assert document["findings"][-1] | {"said": "", "do": ""} == {
        "check": "key", "state": "problem", "problem": "key", "said": "", "do": "",
    }  # fmt: skip
