"""Nothing is acknowledged that was not sent, and nothing that is still to come is lost by what is acknowledged.

One client under one name comes, subscribes and unsubscribes, changes its filter, replays, acknowledges and goes, in any
order, while events are published and leave the window.
"""

import json
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import append, make_buffer, prepared, wall_at
from streams import TEXT, room, take_frames

from broker.access.keys import Key
from broker.access.opening import check_opening
from broker.config import Config
from broker.errors import RequestError
from broker.fanout.acknowledged import Acknowledged
from broker.fanout.acknowledging import Acknowledging
from broker.fanout.listeners import Listener
from broker.fanout.subscriptions import Subscriptions
from broker.log.archive import Kept, Page, Reached
from broker.transport.session import Session, SubscribeRequest

KEY = Key("key_a", "acct_a", frozenset({"subscribe"}), None, sha256="of the key")
CONFIG = Config()
NOW = 0.0
SETS = ("a", "ab", "abc", "bc", "c")
TYPES = ("", "", "x", "x,y")


class Agent:
    """Remembers of its present connection what it was sent, and from where on it is to have each inbox."""

    def __init__(self, chance):
        self.chance = chance
        self.buffer = make_buffer()
        self.subscriptions = Subscriptions(0)
        self.acknowledged = Acknowledged()
        self.client = self.acknowledged.client("acct_a", KEY.identity, "agent")
        self.entries = {}
        self.session = None

    def live(self, steps):
        """Do anything that can be done, so many times."""
        always = [self.publish, self.publish, self.drop]
        away = [self.come]
        connected = [
            self.be_fed, self.be_fed, self.be_fed, self.fall_behind, self.subscribe, self.unsubscribe,
            self.acknowledge_up_to_a_cursor, self.acknowledge_up_to_a_cursor, self.acknowledge_up_to_a_cursor,
            self.acknowledge_one, self.acknowledge_what_was_not_sent, self.lose_the_connection_and_come_again, self.go,
        ]  # fmt: skip
        for _ in range(steps):
            self.chance.choice(always + (away if self.session is None else connected))()

    def publish(self):
        batch = []
        for _ in range(self.chance.randint(1, 5)):
            position = self.buffer.head + 1
            event = prepared(f"e{position}", self.chance.choice("abc"), event_type=self.chance.choice("xxyz"))
            batch.append(append(self.buffer, event, position, NOW))
            self.entries[position] = batch[-1]
        for _ in self.subscriptions.write(self.subscriptions.advance(batch)):
            pass
        self.subscriptions.settle()
        self.buffer.delivered = self.buffer.head
        self.hear()

    def drop(self):
        if len(self.buffer):
            self.buffer.drop_first(NOW)

    @property
    def gone_through(self):
        """Up to where events are gone for good."""
        return self.buffer.dropped_through

    # --- a connection

    def open(self, inboxes, types, since):
        query = {"client_id": "agent", "inbox_ids": ",".join(inboxes), "event_types": types, "since": since}
        opening = check_opening(KEY, {name: value for name, value in query.items() if value}, CONFIG.limits)
        self.wire, self.sent, self.settled, self.cursors = bytearray(), set(), set(), []
        listener = Listener(self.take, lambda: None)
        self.session = Session(
            KEY,
            CONFIG,
            self.buffer,
            self.subscriptions,
            listener,
            opening,
            "conn_1",
            self.acknowledged,
            room(),
        )
        self.follower = self.session.follower
        self.acknowledging = Acknowledging(self.buffer, self.follower)
        self.inboxes, self.types = set(inboxes), types
        reached = None
        while (reach := self.session.open(NOW, reached)) is not None:
            reached = self.reach(reach)
        self.read(1)
        self.from_where = dict.fromkeys(inboxes, self.buffer.position_of(self.cursors[0]))

    def take(self, data):
        self.wire += data
        return len(data)

    def read(self, writes):
        """Take so many writes, if there are; -1: all."""
        while writes:
            frames = self.session.take()
            if frames is not None:
                writes -= 1
                self.wire += frames
            elif self.session.wanted is not None:
                self.session.take_in(self.session.wanted, self.page(self.session.wanted))
            else:
                break
        self.hear()

    def page(self, older):
        raise NotImplementedError

    def reach(self, reach):
        raise NotImplementedError

    def hear(self):
        for opcode, payload in take_frames(self.wire) if self.session is not None else ():
            if opcode == TEXT:
                frame = json.loads(payload)
                self.cursors.append(frame.get("result", frame).get("cursor") or frame["to"])
                if "event_id" in frame:
                    self.sent.add(int(frame["event_id"][1:]))

    def say(self, **command):
        asked = self.session.receive(json.dumps(command), NOW, wall_at(NOW))
        while isinstance(asked, SubscribeRequest):
            asked = self.session.obey(asked.command, NOW, wall_at(NOW), self.reach(asked.reach))
        return asked

    def come(self):
        self.open(self.chance.choice(SETS), self.chance.choice(TYPES), self.since())

    def since(self):
        back = self.chance.randint(0, 40)
        return self.chance.choice(["acked", "", self.buffer.cursor_at(max(0, self.buffer.head - back))])

    def be_fed(self):
        self.read(self.chance.randint(1, 3))

    def fall_behind(self):
        self.follower.pause()

    def subscribe(self):
        inboxes, types, since = set(self.chance.choice(SETS)), self.chance.choice(TYPES), self.since()
        params = {"since": since} if since else {}
        if types and types != self.types:
            params["event_types"] = types.split(",")
            self.types = types
            self.from_where = dict.fromkeys(self.from_where, self.follower.position)
        self.say(action="subscribe", inbox_ids=sorted(inboxes), **params)
        begins = self.follower.sent_through
        if since:
            begins = max(begins, self.client.position if since == "acked" else self.buffer.position_of(since))
        for inbox in inboxes - self.inboxes:
            self.from_where[inbox] = begins
        self.inboxes |= inboxes
        self.read(1)

    def unsubscribe(self):
        inboxes = set(self.chance.choice(SETS))
        self.say(action="unsubscribe", inbox_ids=sorted(inboxes))
        self.inboxes -= inboxes
        self.read(1)

    # --- what it acknowledges

    def acknowledge_up_to_a_cursor(self):
        cursor = self.chance.choice(self.cursors[-6:])
        covered = self.acknowledging._begin(self.say(action="ack", cursor=cursor)).covered
        through = self.client.position
        by_cursor = {
            position for position, entry in self.entries.items() if covered.by_cursor(position, entry.inbox, entry.type)
        }
        assert by_cursor <= self.sent
        assert all(position <= self.buffer.position_of(cursor) for position in by_cursor)
        self.settled |= {position for position in self.sent if position <= through}

    def acknowledge_one(self):
        position = self.chance.choice([0, *self.sent])
        answers = []
        self.acknowledging.submit(self.say(action="ack", event_ids=[f"e{position}"]), answers.append)
        assert answers[0].acked == (position > self.buffer.dropped_through)

    def acknowledge_what_was_not_sent(self):
        if self.follower.position == self.buffer.head:
            return
        answers, before = [], self.client.position
        ahead = self.buffer.cursor_at(self.follower.position + 1)
        self.acknowledging.submit(self.say(action="ack", cursor=ahead), answers.append)
        assert isinstance(answers[0], RequestError)
        assert self.client.position == before

    # --- it goes, and comes again

    def go(self):
        self.session.close()
        self.session = None

    def lose_the_connection_and_come_again(self):
        if not self.inboxes or self.client.position is None:
            return
        types = self.types.split(",") if self.types else "xyz"
        to_come = {
            position
            for position, entry in self.entries.items()
            if entry.inbox in self.inboxes and entry.type in types and position not in self.settled
            and position > max(self.from_where[entry.inbox], self.gone_through)
        }  # fmt: skip
        self.session.close()
        self.open(sorted(self.inboxes), self.types, "acked")
        self.read(-1)
        assert to_come <= self.sent


class AgentWithArchive(Agent):
    """What leaves memory is read elsewhere, until that lets it go, too."""

    gone_through = 0

    def __init__(self, chance):
        super().__init__(chance)
        self.buffer._shared.archive_seconds = 86_400.0

    def drop(self):
        for _ in range(self.chance.randint(0, 6)):
            super().drop()
        if self.chance.random() < 0.5:
            self.gone_through = self.chance.randint(self.gone_through, self.buffer.dropped_through)

    def matching(self, selection, after, through):
        return [
            entry
            for position, entry in self.entries.items()
            if after < position <= through and entry.inbox in selection
        ]

    def gone(self, selection, after, through):
        gone_through = min(self.gone_through, through)
        return gone_through, len(self.matching(selection, after, gone_through))

    def page(self, older):
        gone_through, missed = self.gone(older.selection, older.after, older.through)
        entries = self.matching(older.selection, max(older.after, gone_through), older.through)
        most = self.chance.randint(1, 3)
        reached = entries[most - 1].position if len(entries) > most else older.through
        return Page(entries[:most], reached, gone_through, missed)

    def reach(self, reach):
        after = reach.position or 0
        gone_through, missed = self.gone(reach.selection, after, reach.through)
        count = len(self.matching(reach.selection, max(after, gone_through), reach.through))
        kept = Kept(count, gone_through, None if reach.position is None else missed)
        return Reached(reach, reach.position, kept, None if reach.before is None else self.page(reach.before))


@pytest.mark.parametrize("kind", [Agent, AgentWithArchive])
@settings(max_examples=150)
@given(st.randoms(use_true_random=True))
def test_nothing_is_lost_and_nothing_is_acknowledged_that_was_not_sent(kind, chance):
    with patch("broker.fanout.follower.READ_EVENTS", 1):
        kind(chance).live(60)
