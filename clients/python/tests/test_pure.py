"""What needs no network: how far a client has come, which inboxes it follows, when it comes back."""

import pytest
from daimon_email import CommandError, DaimonWebSocket, Event, is_processed, processed
from daimon_email.commands import Commands
from daimon_email.ending import BackOff, closed, refused
from daimon_email.opening import stream_url, url_of, warn_of_clear_text
from daimon_email.place import Place, Seen
from daimon_email.selection import Selection, chunks
from hypothesis import given
from hypothesis import strategies as st


def event(number, inbox_id="in_1"):
    return Event(
        {
            "type": "message.received",
            "event_id": f"evt_{number}",
            "inbox_id": inbox_id,
            "created_at": "2026-11-23T10:00:00.000Z",
            "cursor": f"c{number}",
            "payload": {"message": {"from": "ada@example.com"}},
        }
    )


# --- the place


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_handled_is_the_last_before_which_all_is_dealt_with_and_no_event_is_acknowledged_early(order, failed):
    place, events, done = Place("c_"), [event(number) for number in range(6)], set()
    for each in events:
        place.came(each)
    acknowledged = set()
    for number in order:
        place.dealt_with(events[number], 0.0, failed=number in failed, window_seconds=300.0)
        done.add(number)
        first_undone = next((n for n in range(6) if n not in done), 6)
        assert place.handled == ("c_" if first_undone == 0 else f"c{first_undone - 1}")
        cursor, singly = place.take_acknowledgement()
        acknowledged |= set(range(int(cursor[1:]) + 1)) if cursor else set()
        acknowledged |= {int(event_id.removeprefix("evt_")) for event_id in singly}
        assert acknowledged <= done - failed
    assert acknowledged == done - failed


def test_an_acknowledgement_that_came_to_nothing_is_owed_again():
    place = Place(None)
    for number in (1, 2):
        place.came(event(number))
    place.moved("c9")
    other = event(3)
    place.came(other)
    place.dealt_with(other, 0.0, failed=False, window_seconds=300.0)
    taken = place.take_acknowledgement()
    assert taken == (None, ["evt_3"])
    assert not place.owes_acknowledgement
    place.give_back(*taken)
    assert place.take_acknowledgement() == taken


def test_after_the_window_of_a_failed_event_cursors_are_acknowledged_again():
    place = Place(None)
    events = [event(number) for number in range(3)]
    for number, (now, failed) in enumerate([(0.0, True), (299.0, False), (300.0, False)]):
        place.came(events[number])
        place.dealt_with(events[number], now, failed=failed, window_seconds=300.0)
    assert place.take_acknowledgement() == ("c2", ["evt_1"])


def test_who_begins_again_is_told_what_comes_again():
    place = Place("c0")
    one, two = event(1), event(2)
    place.came(one)
    place.came(two)
    place.dealt_with(one, 0.0, failed=False, window_seconds=300.0)
    assert place.begin_again() == [two]
    assert place.received == place.handled == "c1"


def test_an_event_is_new_once_in_its_inbox_until_it_is_forgotten():
    seen = Seen(most=2)
    assert [seen.is_new(e) for e in (event(1), event(1), event(1, "in_2"), event(2), event(1))] == [
        True, False, True, True, True,
    ]  # fmt: skip


# --- the inboxes


def test_what_is_not_said_is_everything_and_the_first_that_are_named_replace_it():
    selection = Selection(None)
    assert selection.names == ["*"]
    selection.add(["b", "a"])
    assert selection.names == ["a", "b"]


def test_under_everything_a_single_inbox_cannot_be_left_out():
    with pytest.raises(CommandError) as caught:
        Selection(None).remove(["a"])
    assert caught.value.code == "invalid_params"


@pytest.mark.parametrize(
    ("wanted", "opened", "difference"),
    [
        (["a"], ["a"], ([], [])),
        (["a", "b"], ["a", "c"], (["b"], ["c"])),
        (["*"], ["a"], (["*"], [])),
        (["a"], ["*"], (["a"], ["*"])),
    ],
)
def test_what_a_connection_must_be_told_after_its_opening(wanted, opened, difference):
    assert Selection(wanted).since(opened) == difference


def test_a_key_that_reaches_less_narrows_what_is_asked_for_at_the_next_opening():
    some, every = Selection(["a", "b"]), Selection(["*"])
    some.narrow(["a"])
    every.narrow(["a"])
    assert (some.names, every.names) == (["a"], ["*"])


@given(st.lists(st.text("abc@", min_size=1, max_size=20)), st.integers(30, 100))
def test_chunks_hold_all_names_in_order_and_stay_small(names, most):
    parts = chunks(names, most)
    assert [name for part in parts for name in part] == names
    assert all(sum(len(name) + 4 for name in part) <= most for part in parts)


# --- the opening


def test_where_to_is_what_is_given_then_the_environment_then_the_plan(monkeypatch):
    monkeypatch.delenv("DAIMON_WS_URL", raising=False)
    assert url_of(None) == "wss://ws.daimon.email/v1/stream"
    monkeypatch.setenv("DAIMON_WS_URL", "http://127.0.0.1:8765")
    assert url_of(None) == "ws://127.0.0.1:8765/v1/stream"
    assert url_of("https://broker.example/elsewhere?x=1") == "wss://broker.example/elsewhere?x=1"
    with pytest.raises(ValueError, match="url: 'ftp://x'"):
        url_of("ftp://x")


@pytest.mark.parametrize("key", ["dm_live_secret\n", "dm_live_secret ", "dm_live_s\xe9cret"])
def test_a_key_that_cannot_be_one_is_refused_and_not_told(key):
    with pytest.raises(ValueError, match="api_key") as refused:
        DaimonWebSocket(key, url="ws://127.0.0.1:1")
    assert "cret" not in str(refused.value)


def test_one_inbox_is_a_name_and_no_list_of_letters():
    assert Selection("in_1").names == ["in_1"]


def test_what_is_no_json_is_refused_before_it_is_sent():
    with pytest.raises(ValueError, match="JSON"):
        Commands().give("x", {"n": float("nan")})


@pytest.mark.parametrize("url", ["ws://127.0.0.1:1/v1/stream", "ws://[::1]/", "ws://localhost/", "wss://a.example/"])
def test_a_key_to_this_host_or_over_tls_is_no_warning(url):
    warn_of_clear_text(url)


def test_a_key_in_the_clear_to_another_host_is_a_warning():
    with pytest.warns(UserWarning, match="in the clear"):
        warn_of_clear_text("ws://broker.example/v1/stream")


def test_inboxes_that_do_not_fit_into_an_url_are_left_for_later():
    names = [f"inbox_{number}" for number in range(1_000)]
    url, late = stream_url("ws://h/v1/stream", inbox_ids=names, event_types=None, since="c1", client_id=None)
    assert len(url) < 8_000
    assert 0 < len(late) < 1_000
    assert late == names[-len(late) :]


# --- coming back


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1009, 1011, 1012, 1015, 4000, 4408, None])
def test_a_client_comes_back_after_most_endings(code):
    assert closed(code).come_back


@pytest.mark.parametrize("code", [1002, 1007, 1008, 4401, 4409])
def test_a_client_stays_away_where_coming_back_is_of_no_use(code):
    assert not closed(code).come_back


@pytest.mark.parametrize(("status", "back"), [(400, 0), (401, 0), (403, 0), (404, 0), (426, 0), (429, 1), (503, 1)])
def test_refusals_for_good_and_for_now(status, back):
    assert refused(status, "x", "x", None, 0.0).come_back is bool(back)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_waits_are_random_and_their_limit_doubles_up_to_a_minute(chances):
    back_off = BackOff(5.0)
    for number, chance in enumerate(chances):
        assert back_off.next(closed(None), chance) == pytest.approx(chance * min(60.0, 5.0 * 2**number))


def test_what_the_broker_asks_for_is_waited():
    assert BackOff(5.0).next(closed(1012, wait_seconds=0.7), 1.0) == 0.7
    assert BackOff(5.0).next(refused(429, None, None, "7", 0.0), 0.5) == 9.5
    assert BackOff(5.0).next(refused(503, None, None, "Thu, 01 Jan 1970 00:00:20 GMT", 5.0), 0.0) == 15.0


# --- what is dealt with


def test_an_event_is_processed_in_its_inbox_and_an_id_in_any():
    assert processed(event("p1"))
    assert not processed(event("p1"))
    assert is_processed("evt_p1")
    assert not is_processed(event("p1", "in_2"))
    assert processed("evt_p2")
    assert is_processed(event("p2"))


def test_fields_are_attributes_and_unknown_ones_are_kept():
    message = event(1).subject
    assert (message.from_, message["from"], message.labels, message.inbox_id) == (
        "ada@example.com", "ada@example.com", (), "in_1",
    )  # fmt: skip
    odd = Event({**event(1).frame, "payload": {"message": {"class": 1, "get": 2, "new": {"x": [{"y": 3}]}}}}).subject
    assert (odd.class_, odd.get_, odd.new.x[0].y) == (1, 2, 3)
