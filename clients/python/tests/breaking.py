"""Faults that clients have: each makes the Python client a broken one, and has scenes that must notice."""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import anyio
import daimon_email.client
from daimon_email.client import DaimonWebSocket
from daimon_email.commands import Commands
from daimon_email.connection import Connection, EndedError
from daimon_email.ending import BackOff, Ending
from daimon_email.events import Event
from daimon_email.handling import Handlers, Queue
from daimon_email.keeping import FileStore
from daimon_email.place import Place, Seen
from standardwebhooks.webhooks import Webhook


@dataclass(frozen=True)
class Fault:
    apply: Callable[[], None]
    scenes: tuple[str, ...]
    """Those that must notice it."""


FAULTS: dict[str, Fault] = {}


def fault(*scenes: str):
    def register(apply):
        FAULTS[apply.__name__.replace("_", "-")] = Fault(apply, scenes)
        return apply

    return register


def wrap(owner, name, around):
    """Replace a method by one that is given the one before."""
    before = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: around(before, *args, **kwargs))


@fault("events")
def last_comes_first():
    def take(before, queue, event):
        before(queue, event)
        queue._events.rotate()

    wrap(Queue, "put", take)


@fault("failing-handler")
def stops_at_a_failure():
    async def handle(before, handlers, event):
        if not await before(handlers, event):
            await anyio.sleep_forever()

    wrap(Handlers, "handle", handle)


@fault("slow-handler")
def does_not_read_while_it_handles():
    Queue.is_full = property(lambda queue: bool(queue._running or queue._events))


@fault("pause")
def hears_no_pause():
    DaimonWebSocket.pause = lambda client: None


@fault("drop-mid-event")
def forgets_its_cursor():
    wrap(daimon_email.client, "stream_url", lambda before, *args, **asked: before(*args, **asked | {"since": None}))


@fault("drop-before-first")
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


@fault("drop-while-handling")
def keeps_what_came_instead_of_what_is_handled():
    Place.handled = property(lambda place: place.received, lambda place, cursor: None)


@fault("restart-from-store")
def forgets_its_client_id():
    def load(before, store):
        kept = before(store)
        return None if kept is None else replace(kept, client_id=f"py_{secrets.token_hex(8)}")

    wrap(FileStore, "load", load)


@fault("restart-from-store")
def forgets_its_store():
    FileStore.load = lambda store: None


@fault("drain", "refused-429", "refused-503")
def does_not_wait_as_it_is_asked_to():
    wrap(BackOff, "next", lambda before, self, ending, chance: before(self, replace(ending, wait_seconds=0.0), chance))


@fault("gap")
def tells_no_gap():
    async def tell(before, handlers, name, *args):
        if name != "gap":
            await before(handlers, name, *args)

    wrap(Handlers, "tell", tell)


@fault("gap")
def tells_gaps_twice():
    async def tell(before, handlers, name, *args):
        await before(handlers, name, *args)
        if name == "gap":
            await before(handlers, name, *args)

    wrap(Handlers, "tell", tell)


@fault("duplicate")
def hands_on_what_it_knows():
    Seen.is_new = lambda seen, event: True


@fault("half-open")
def trusts_the_network():
    wrap(Connection, "receive", lambda before, connection, patience: before(connection, 1e6))


@fault("refused-401", "refused-403", "revoked-4401", "replaced-4409")
def comes_back_whatever_it_is_told():
    Ending.come_back = property(lambda ending: True)


@fault("back-off")
def waits_the_same_each_time():
    def following(before, back_off, ending, chance):
        back_off.attempts = 0
        return before(back_off, ending, chance)

    wrap(BackOff, "next", following)


@fault("back-off")
def has_no_jitter():
    wrap(BackOff, "next", lambda before, back_off, ending, chance: before(back_off, ending, 1.0))


@fault("back-off")
def never_begins_anew():
    BackOff.succeeded = lambda back_off: None


@fault("too-big")
def sends_what_was_too_big_again():
    Commands.refuse = lambda *args: None
    Commands.refuse_longest = lambda *args: None


@fault("answer-after-reconnect")
def sends_again_by_another_id():
    def unanswered(before, commands):
        return [(name, text.replace(name, f"{name}.again")) for name, text in before(commands)]

    def answer(before, commands, frame):
        return before(commands, frame | {"request_id": frame["request_id"].removesuffix(".again")})

    wrap(Commands, "unanswered", unanswered)
    wrap(Commands, "answer", answer)


@fault("answer-after-reconnect", "command-before-open", "wait-for")
def sends_nothing_again():
    Commands.unanswered = lambda commands: []


@fault("token-expired")
def keeps_its_token():
    def begin(before, client, *args, token=None, **options):
        kept = []

        async def once():
            if not kept:
                kept.append(await token())
            return kept[0]

        before(client, *args, token=token and once, **options)

    wrap(DaimonWebSocket, "__init__", begin)


@fault("acked")
def acknowledges_nothing():
    Place.owes_acknowledgement = False


@fault("acked")
def acknowledges_what_comes():
    def came(before, place, event):
        before(place, event)
        place._to_acknowledge = event.cursor

    wrap(Place, "came", came)


@fault("once")
def names_no_event():
    DaimonWebSocket._once = lambda client, action, fields, once: None


@fault("webhook")
def believes_everything():
    daimon_email.verify = lambda headers, body, secret: Event(json.loads(body))


@fault("webhook")
def looks_at_no_clock():
    Webhook._Webhook__verify_timestamp = lambda webhook, said: datetime.fromtimestamp(float(said), UTC)
