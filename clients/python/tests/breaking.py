"""Faults that clients have: each makes the Python client a broken one, and has scenes that must notice."""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import anyio
import anyio.lowlevel
import daimon_email.client
from daimon_email.acknowledging import Acknowledging
from daimon_email.client import DaimonWebSocket
from daimon_email.commands import Commands
from daimon_email.connection import Connection, EndedError
from daimon_email.ending import BackOff, Ending
from daimon_email.events import Event
from daimon_email.handling import MAX_QUEUE_BYTES, Handlers, Queue
from daimon_email.keeping import FileStore
from daimon_email.place import Place, Seen
from daimon_email.selection import Selection
from standardwebhooks.webhooks import Webhook


@dataclass(frozen=True)
class Fault:
    apply: Callable[[], None]
    scenes: dict[str, str]
    """Those that must notice it, and words of what each must say."""


FAULTS: dict[str, Fault] = {}


def fault(scenes: dict[str, str]):
    def register(apply):
        FAULTS[apply.__name__.replace("_", "-")] = Fault(apply, scenes)
        return apply

    return register


def wrap(owner, name, around):
    """Replace a method by one that is given the one before."""
    before = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: around(before, *args, **kwargs))


@fault({"events": "what handlers got"})
def last_comes_first():
    first = []

    def put(before, queue, event):
        if not first:
            first.append(event)
            return
        before(queue, event)
        if len(first) == 1:
            first.append(event)
            before(queue, first[0])

    wrap(Queue, "put", put)


@fault({"failing-handler": "handled"})
def stops_at_a_failure():
    async def handle(before, handlers, event):
        if not await before(handlers, event):
            await anyio.sleep_forever()

    wrap(Handlers, "handle", handle)


@fault({"slow-handler": "pings are answered"})
def does_not_read_while_it_handles():
    Queue.is_full = property(lambda queue: bool(queue._running or queue._events))


@fault({"pause": "called in a pause"})
def hears_no_pause():
    DaimonWebSocket.pause = lambda client: None


@fault({"drop-mid-event": "instead of ['evt_1', 'evt_2'"})
def forgets_its_cursor():
    wrap(daimon_email.client, "stream_url", lambda before, *args, **asked: before(*args, **asked | {"since": None}))


@fault({"drop-before-first": "instead of ['evt_1', 'evt_2'"})
def forgets_its_cursor_when_an_opening_fails():
    failed, heard = [], set()

    async def receive(before, connection, patience):
        try:
            received = await before(connection, patience)
        except EndedError:
            if id(connection) not in heard:
                failed.append(connection)
            raise
        heard.add(id(connection))
        return received

    def url(before, *args, **asked):
        return before(*args, **asked | {"since": None if failed else asked["since"]})

    wrap(Connection, "receive", receive)
    wrap(daimon_email.client, "stream_url", url)


@fault({"drop-while-handling": "instead of ['evt_4', 'evt_5'"})
def keeps_what_came_instead_of_what_is_handled():
    Place.handled = property(lambda place: place.received, lambda place, cursor: None)


@fault({"restart-from-store": "its client_id"})
def forgets_its_client_id():
    def load(before, store):
        kept = before(store)
        return None if kept is None else replace(kept, client_id=f"py_{secrets.token_hex(8)}")

    wrap(FileStore, "load", load)


@fault({"restart-from-store": "instead of ['evt_3', 'evt_4']"})
def forgets_its_store():
    FileStore.load = lambda store: None


@fault({"drain": "instead of 1.5 s", **dict.fromkeys(("refused-429", "refused-503"), "earlier than Retry-After")})
def does_not_wait_as_it_is_asked_to():
    wrap(BackOff, "next", lambda before, self, ending, chance: before(self, replace(ending, wait_seconds=0.0), chance))


@fault({"gap": "gaps: []", "gap-while-paused": "in gaps", "forgotten": "gaps: []"})
def tells_no_gap():
    async def tell(before, handlers, name, *args):
        if name != "gap":
            await before(handlers, name, *args)

    wrap(Handlers, "tell", tell)


@fault({"gap": "gaps: [7, 7]", "forgotten": "gaps: [None, None]"})
def tells_gaps_twice():
    async def tell(before, handlers, name, *args):
        await before(handlers, name, *args)
        if name == "gap":
            await before(handlers, name, *args)

    wrap(Handlers, "tell", tell)


@fault({"duplicate": "'evt_4', 'evt_5'] instead of"})
def hands_on_what_it_knows():
    Seen.is_new = lambda seen, event: True


@fault({"half-open": "connection 2"})
def trusts_the_network():
    wrap(Connection, "receive", lambda before, connection, patience: before(connection, 1e6))


@fault(dict.fromkeys(("refused-401", "refused-403", "revoked-4401", "replaced-4409"), "it came back"))
def comes_back_whatever_it_is_told():
    Ending.come_back = property(lambda ending: True)


@fault({"back-off": "waits grow"})
def waits_the_same_each_time():
    def following(before, back_off, ending, chance):
        back_off.attempts = 0
        return before(back_off, ending, chance)

    wrap(BackOff, "next", following)


@fault({"back-off": "of any length"})
def has_no_jitter():
    wrap(BackOff, "next", lambda before, back_off, ending, chance: before(back_off, ending, 1.0))


@fault({"back-off": "sets the wait back"})
def never_begins_anew():
    BackOff.succeeded = lambda back_off: None


@fault({"too-big": "sent the message again"})
def sends_what_was_too_big_again():
    Commands.refuse = lambda *args: None
    Commands.refuse_longest = lambda *args: None


@fault({"answer-after-reconnect": "sent_2"})
def sends_again_by_another_id():
    def unanswered(before, commands):
        return [(name, text.replace(name, f"{name}.again")) for name, text in before(commands)]

    def answer(before, commands, frame):
        return before(commands, frame | {"request_id": frame["request_id"].removesuffix(".again")})

    wrap(Commands, "unanswered", unanswered)
    wrap(Commands, "answer", answer)


@fault(
    {
        "answer-after-reconnect": '"c1"',
        "subscribe-answer-lost": '"s"',
        "command-before-open": '"c1"',
        "wait-for": '"lost"',
    }
)
def sends_nothing_again():
    Commands.unanswered = lambda commands: []


@fault({"token-expired": "connected"})
def keeps_its_token():
    def begin(before, client, *args, token=None, **options):
        kept = []

        async def once():
            if not kept:
                kept.append(await token())
            return kept[0]

        before(client, *args, token=token and once, **options)

    wrap(DaimonWebSocket, "__init__", begin)


@fault({"acked": "an acknowledgement"})
def acknowledges_nothing():
    Place.owes_acknowledgement = False


@fault({"acked": "still handling"})
def acknowledges_what_comes():
    def came(before, place, event):
        before(place, event)
        place._to_acknowledge = event.cursor

    wrap(Place, "came", came)


@fault({"once": "sent_2"})
def names_no_event():
    DaimonWebSocket._once = lambda client, action, fields, once: None


@fault({"webhook": "old"})
def believes_everything():
    daimon_email.verify = lambda headers, body, secret: Event(json.loads(body))


@fault({"webhook": "old"})
def looks_at_no_clock():
    Webhook._Webhook__verify_timestamp = lambda webhook, said: datetime.fromtimestamp(float(said), UTC)


@fault({"unknown": "connected"})
def stays_away_from_what_it_does_not_know():
    known = Ending.come_back.fget
    Ending.come_back = property(lambda ending: ending.code != 4999 and known(ending))


@fault({"order": "by thread, evt_2 waits for evt_1"})
def handles_all_at_once():
    Queue._key = lambda queue, event: None


@fault({"order": "these run at once"})
def handles_one_at_a_time():
    def begin(before, client, *args, concurrency=1, **options):
        before(client, *args, **options)

    wrap(DaimonWebSocket, "__init__", begin)


@fault({"subscriptions": "instead of ['evt_1', 'evt_3', 'evt_5', 'evt_7'"})
def follows_what_it_followed_first():
    asked_first = []

    def url(before, *args, **asked):
        asked_first.append(asked["inbox_ids"])
        return before(*args, **asked | {"inbox_ids": asked_first[0]})

    wrap(daimon_email.client, "stream_url", url)


@fault({"command-times-out": "how often it was sent"})
def sends_again_what_has_timed_out():
    Commands.drop = lambda commands, request_id: None


@fault({"full-queue": "it reads on and on"})
def queues_without_end():
    Queue.is_full = False


@fault({"full-queue": '"evt_1"'})
def reads_no_answers_when_its_queue_is_full():
    Queue.is_full = property(lambda queue: queue._bytes > MAX_QUEUE_BYTES)


@fault({"failed-not-acked": "what had failed: ['evt_4']"})
def acknowledges_what_failed():
    def dealt_with(before, place, event, now, *, failed, window_seconds):
        before(place, event, now, failed=False, window_seconds=window_seconds)

    wrap(Place, "dealt_with", dealt_with)


@fault({"closing": "goodbye"})
def leaves_without_a_word():
    wrap(Connection, "aclose", lambda before, connection, lost=False: before(connection, lost=True))


@fault({"closing": "acknowledged"})
def does_not_acknowledge_when_it_closes():
    wrap(Acknowledging, "acknowledge", lambda before, acknowledging, *args: anyio.lowlevel.checkpoint())


@fault({"narrowed": "connected"})
def asks_for_what_it_reaches_no_longer():
    Selection.narrow = lambda selection, names: None
