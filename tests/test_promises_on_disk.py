"""What PROTOCOL section 3 promises is held by the same tests with a log on disk: each broker that they open has one."""

import importlib
import shutil
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import structs

import broker.broker
from broker.disk import open_disk

FOLDERS = "/dev/shm" if Path("/dev/shm").is_dir() else None
PROMISES = {
    "test_broker": (
        "test_a_sequence_of_events_and_mappings_is_published_in_its_order",
        "test_the_same_event_again_is_not_published_again",
        "test_a_publisher_waits_while_the_fan_out_is_behind_and_goes_on_when_it_is_not",
        "test_one_account_that_is_behind_holds_up_no_other",
        "test_an_operators_publish_waits_for_all_accounts_before_it_stores_anything",
        "test_a_publisher_cancelled_anywhere_has_stored_nothing_or_stored_and_delivered_all",
        "test_without_inboxes_everything_of_the_account_comes_and_nothing_of_another",
        "test_with_inboxes_only_theirs_and_the_accounts_own_come",
        "test_with_no_inboxes_only_the_accounts_own_events_come",
        "test_event_types_hold_for_live_and_replayed_events",
        "test_since_a_cursor_replays_what_came_after_it",
        "test_since_a_cursor_that_the_fan_out_has_not_passed_counts_what_came_after_it",
        "test_since_an_unknown_cursor_is_a_gap_without_a_count_and_then_the_whole_window",
        "test_two_brokers_are_independent",
        "test_while_it_drains_it_publishes_nothing",
        "test_after_its_end_it_publishes_nothing",
        "test_a_publisher_that_waits_when_the_drain_begins_is_refused",
    ),
    "transport.test_connection": (
        "test_a_subscriber_gets_events_in_their_order",
        "test_the_ready_frame_comes_first_and_its_cursor_is_good_for_a_reconnect",
        "test_a_published_event_reaches_the_publisher_and_his_answer_comes_too",
        "test_thousands_of_publishes_in_one_read_are_all_stored_in_their_order",
        "test_waiting_publishes_are_done_in_their_order_and_the_next_after_too_many_is_refused",
        "test_a_quiet_clients_cursor_stays_good",
    ),
    "transport.test_polling": (
        "test_pages_of_any_size_follow_each_other_without_loss_or_repeat",
        "test_an_inbox_key_sees_its_inboxes_only",
        "test_a_cursor_of_another_account_is_unknown_and_brings_nothing_of_it",
    ),
    "transport.test_sse": (
        "test_a_client_resumes_after_the_last_event_it_saw",
        "test_a_client_that_stops_reading_is_fed_from_the_log_and_misses_nothing",
    ),
}


@pytest.fixture(autouse=True)
def on_disk(monkeypatch):
    """Let each broker that is opened without a log on disk have one."""

    @asynccontextmanager
    async def opened(config):
        folder = tempfile.mkdtemp(dir=FOLDERS)
        section = structs.replace(config.storage, path=f"{folder}/broker.db")
        try:
            async with open_disk(structs.replace(config, storage=section)) as disk:
                yield disk
        finally:
            shutil.rmtree(folder)

    monkeypatch.setattr(broker.broker, "open_disk", opened)


for _module, _names in PROMISES.items():
    _tests = importlib.import_module(_module)
    for _name in _names:
        globals()[_name] = getattr(_tests, _name)
