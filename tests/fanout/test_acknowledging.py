"""acknowledging.py: the commands of one connection, what of them waits, and how much of it there may be."""

from collections import Counter

import pytest
from garbage import garbage
from logs import append, make_buffer, prepared

from broker.errors import RequestError
from broker.fanout import acknowledging
from broker.fanout.acknowledged import Acknowledged, AckRequest
from broker.fanout.acknowledging import Acknowledging
from broker.fanout.follower import Follower
from broker.fanout.listeners import Listener, take_nothing
from broker.fanout.subscriptions import Subscriptions
from broker.protocol.messages import AckParams
from broker.protocol.selection import EVERYTHING

COUNT = 3_000


class Sent:
    """A client that was sent a window of events, and acknowledges."""

    def __init__(self):
        self.buffer = make_buffer()
        subscriptions = Subscriptions(0)
        client = Acknowledged().client("acct_a", "key", "agent")
        self.follower = Follower(
            self.buffer, subscriptions, Listener(take_nothing, lambda: None), EVERYTHING, None, client
        )
        batch = [append(self.buffer, prepared(f"e{n}"), n, 0.0) for n in range(1, COUNT + 1)]
        while batch:
            subscriptions.advance(batch)
            subscriptions.settle()
            batch = batch[subscriptions.position - batch[0].position + 1 :]
        while self.follower.next() is not None:
            pass
        self.acknowledging = Acknowledging(self.buffer, self.follower)
        self.answers = []

    def ack(self, through=COUNT, event_ids=None):
        """Acknowledge; return whether it is the first that waits."""
        params = AckParams(self.buffer.cursor_at(through) if through else None, event_ids)
        return self.acknowledging.submit(AckRequest("r", "ack", params, EVERYTHING), self.answers.append)


@pytest.fixture
def sent():
    return Sent()


async def test_what_takes_one_step_is_answered_in_it_and_what_is_longer_is_counted_in_turns(sent):
    assert not sent.ack(through=100)
    assert [told.acked for told in sent.answers] == [100]
    assert sent.ack()
    assert not sent.ack(through=None, event_ids=["e1"])
    assert (len(sent.answers), len(sent.acknowledging)) == (1, 2)
    await sent.acknowledging.do_waiting()
    assert [told.acked for told in sent.answers] == [100, COUNT - 100, 1]
    assert len(sent.acknowledging) == 0


async def test_too_many_that_are_not_answered_yet_are_refused(sent, monkeypatch):
    monkeypatch.setattr(acknowledging, "MAX_WAITING", 2)
    sent.ack()
    sent.ack()
    sent.ack()
    [refusal] = sent.answers
    assert isinstance(refusal, RequestError)
    assert (refusal.code, refusal.retry_after_ms) == ("rate_limited", 1_000)
    await sent.acknowledging.do_waiting()
    assert not sent.ack(through=None, event_ids=["e1"])


async def test_the_ids_that_wait_are_bounded_together(sent, monkeypatch):
    monkeypatch.setattr(acknowledging, "MAX_WAITING_IDS", 3)
    sent.ack(event_ids=[f"e{number}" for number in range(10)])
    sent.ack(through=None, event_ids=["e1"])
    assert [told.code for told in sent.answers] == ["rate_limited"]
    sent.ack(through=10)
    assert len(sent.acknowledging) == 2


async def test_what_was_answered_leaves_nothing_for_the_garbage_collector(sent):
    sent.ack()
    await sent.acknowledging.do_waiting()
    with garbage() as left:
        sent.ack(through=None, event_ids=["e1"])
        sent.ack(through=COUNT - 1)
    assert left == Counter()


async def test_of_a_client_that_left_nothing_is_answered_and_its_position_has_moved(sent):
    sent.ack()
    sent.acknowledging.give_up()
    await sent.acknowledging.do_waiting()
    assert sent.answers == []
    assert sent.follower.sent.client.position == COUNT
