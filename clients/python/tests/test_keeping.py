"""What is dealt with, and who is told so: acknowledgements, holds, the cursor store, webhooks beside the stream."""

import anyio
import pytest
import trio
from daimon_email import DaimonWebSocket, FileStore, Kept, is_processed, processed
from daimon_email.acknowledging import Acknowledging
from daimon_email.errors import CommandError, TimedOutError
from daimon_email.place import Place
from test_pure import event


class Broker:
    """Takes acknowledgements as it is told to."""

    def __init__(self, place=None):
        self.given = []
        self.error = None
        self.acknowledging = Acknowledging(place or Place(None), self.give)

    async def give(self, action, fields, seconds):
        self.given.append((trio.current_time(), action, fields))
        if self.error is not None:
            raise self.error


def done(place, number):
    each = event(number)
    place.came(each)
    place.dealt_with(each, 0.0, failed=False, window_seconds=300.0)


async def test_what_is_handled_for_ten_seconds_is_held_again_and_again(autojump_clock):
    broker, began = Broker(), trio.current_time()
    with trio.move_on_after(55):
        await broker.acknowledging.hold(event(1))
    assert [(round(at - began), action, fields["event_ids"]) for at, action, fields in broker.given] == [
        (10, "hold", ["evt_1"]),
        (30, "hold", ["evt_1"]),
        (50, "hold", ["evt_1"]),
    ]


async def test_acknowledgements_are_gathered_for_a_second_and_owed_again_where_none_answers(autojump_clock):
    place = Place(None)
    broker = Broker(place)
    broker.error = TimedOutError("late")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.acknowledging.run, lambda: True)
        done(place, 1)
        done(place, 2)
        await trio.sleep(1.5)
        broker.error = None
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert [fields for _, _, fields in broker.given] == [{"cursor": "c2"}, {"cursor": "c2"}]


async def test_a_broker_that_knows_no_acknowledgements_is_asked_once(autojump_clock):
    place = Place(None)
    broker = Broker(place)
    broker.error = CommandError("unknown_action", "There is no `ack`")
    for number in (1, 2):
        done(place, number)
        await broker.acknowledging.acknowledge()
    assert len(broker.given) == 1
    assert not place.owes_acknowledgement, "what nobody takes is kept for ever"


def test_a_program_that_acknowledges_by_itself_or_not_at_all_owes_nothing():
    for ack in ("manual", "off"):
        place = DaimonWebSocket("dm_live_key", ack=ack)._place
        done(place, 1)
        assert not place.owes_acknowledgement, "what nobody takes is kept for ever"
    assert DaimonWebSocket("dm_live_key")._place.acknowledges


# --- the store


def test_a_program_that_starts_again_goes_on_where_it_was(local_broker, run, tmp_path):
    store = FileStore(tmp_path / "cursor")

    def seen_by_a_client(last_subject):
        client = DaimonWebSocket(local_broker.key, url=local_broker.url, cursor_store=store)
        seen = []

        @client.on("message.received")
        async def note(message):
            seen.append(message.subject)
            if message.subject == last_subject:
                await client.close()

        client.on("connected", lambda: local_broker.receive_mail(subject=last_subject))
        run(client.connect)
        return seen

    assert seen_by_a_client("one") == ["one"]
    first = store.load()
    local_broker.receive_mail(subject="two")
    assert seen_by_a_client("three") == ["two", "three"]
    assert store.load().client_id == first.client_id


def test_a_file_that_is_no_store_is_said_to_be_none(tmp_path):
    assert FileStore(tmp_path / "cursor").load() is None
    for content in ("[1]", "", '{"client'):
        (tmp_path / "cursor").write_text(content)
        with pytest.raises(ValueError, match="cursor is no cursor store"):
            FileStore(tmp_path / "cursor").load()


def test_a_store_that_fails_is_reported_and_stops_nothing(local_broker, run):
    class Full:
        def load(self):
            return Kept("agent")

        def save(self, kept):
            raise OSError("the disk is full")

    async def main():
        client = DaimonWebSocket(local_broker.key, url=local_broker.url, cursor_store=Full())
        reported, heard = [], anyio.Event()
        client.on("error", lambda error: reported.append(str(error)))
        client.on("message.received", lambda message: heard.set())
        async with client:
            local_broker.receive_mail()
            await heard.wait()
        return set(reported)

    assert run(main) == {"the disk is full"}


# --- webhooks beside the stream


def test_an_event_is_processed_from_when_its_handler_begins_unless_it_fails(local_broker, run):
    async def main():
        client = DaimonWebSocket(local_broker.key, url=local_broker.url)
        seen, done = [], anyio.Event()

        @client.on("message.received")
        def work(message, event):
            seen.append(is_processed(event))
            if message.subject == "fails":
                raise ValueError

        client.on("error", lambda error: None)
        client.on("message.bounced", lambda bounce: done.set())
        async with client:
            local_broker.receive_mail("in_p", subject="works")
            failing = local_broker.receive_mail("in_p", subject="fails")
            local_broker.publish({"type": "message.bounced", "inbox_id": "in_p", "event_id": "last", "payload": {}})
            await done.wait()
        return seen, is_processed(event(failing.removeprefix("evt_"), "in_p"))

    assert run(main) == ([True, True], False)


def test_what_a_webhook_has_brought_is_not_handed_on(local_broker, run):
    async def main():
        client = DaimonWebSocket(local_broker.key, url=local_broker.url)
        subjects, done = [], anyio.Event()

        @client.on("message.received")
        def work(message):
            subjects.append(message.subject)
            if message.subject == "last":
                done.set()

        async with client:
            client.pause()
            first = local_broker.receive_mail("in_w", subject="first")
            local_broker.receive_mail("in_w", subject="last")
            processed(event(first.removeprefix("evt_"), "in_w"))
            client.resume()
            await done.wait()
        return subjects

    assert run(main) == ["last"]
