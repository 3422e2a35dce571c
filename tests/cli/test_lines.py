"""Frames as lines for people."""

from hypothesis import given
from hypothesis import strategies as st

from broker.cli.lines import about, line_of

EVENT = {
    "type": "message.received",
    "event_id": "evt_1",
    "inbox_id": "inbox_abc123",
    "created_at": "2026-11-23T10:00:00.123Z",
    "cursor": "c1",
    "payload": {"message": {"from": "ada@example.com", "subject": "Hello"}},
}


def test_an_event_is_a_line_of_when_what_where_and_about():
    assert line_of(EVENT).split() == [
        "10:00:00.123", "message.received", "inbox_abc123", "from:", "ada@example.com,", "subject:", "Hello"
    ]  # fmt: skip


def test_an_event_of_the_account_says_so_and_an_unknown_payload_is_shown():
    line = line_of({"type": "door.opened", "event_id": "evt_1", "created_at": "", "payload": {"door": 7}})
    assert line.split() == ["door.opened", "(account)", '{"door":', "7}"]


def test_the_brokers_own_frames_are_told():
    ready = {
        "type": "connection.ready",
        "connection_id": "conn_1",
        "account_id": "acct",
        "inbox_ids": ["a", "b"],
        "replay": {"recovered": False, "count": 3},
    }
    assert "conn_1 of acct, inboxes: a, b, to be replayed: 3, after a gap" in line_of(ready)
    assert line_of({"type": "replay.gap", "from": None, "to": "c1", "count": 12}).endswith(": 12")
    assert "500 ms" in line_of({"type": "server.draining", "reconnect_after_ms": 500})
    assert line_of({"type": "connection.cursor", "cursor": "c9"}).strip() == "connection.cursor"


@given(st.dictionaries(st.sampled_from(["from", "subject", "reason", "x"]), st.text()))
def test_what_strangers_wrote_can_do_nothing_to_a_terminal(payload):
    assert about(payload).isprintable()
    assert line_of({**EVENT, "payload": {"message": payload}, "inbox_id": str(payload)}).isprintable()


def test_a_long_subject_is_cut():
    assert len(about({"subject": "x" * 1000})) == 100
