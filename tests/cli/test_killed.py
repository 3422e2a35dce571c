"""`broker serve` with a log on disk, killed in the middle of a stream of publishes, again and again; and out of room.

`make prove-storage` kills it twenty times instead of three, with either setting of `storage.synchronous`.
"""

import json
import os
import random
import resource
import threading
import urllib.error
from collections import Counter

import pytest
from durable import publish, stream
from processes import GUARD_SECONDS, KEY, serving
from websockets.exceptions import WebSocketException

from broker.keys import hash_key

KILLS = int(os.environ.get("BROKER_KILLS", "3"))
SYNCHRONOUS = ["full", "normal"] if KILLS > 3 else ["full"]
WINDOWS = [100_000, 50] if KILLS > 3 else [50]
"""Events that memory holds: what is older is read from disk."""
PUBLISHERS = 4
LAST = "last"
CONFIG = """
[replay]
seconds = 3600
max_events_per_account = {window}
[storage]
path = "{path}"
synchronous = "{synchronous}"
[[accounts]]
id = "acct_test"
tier = "growth"
[[accounts.keys]]
id = "key_test"
sha256 = "{digest}"
"""


@pytest.fixture
def configure(tmp_path):
    def configure(synchronous, window=100_000):
        path = tmp_path / "broker.toml"
        settings = {"path": tmp_path / "broker.db", "synchronous": synchronous, "window": window}
        path.write_text(CONFIG.format(digest=hash_key(KEY), **settings))
        return path

    return configure


def position(cursor):
    return int(cursor.split(".")[1])


class Publisher(threading.Thread):
    """Publishes until the broker is gone; notes what was answered, and what may be stored or not."""

    def __init__(self, url, name, answered, enough):
        super().__init__(daemon=True)
        self.url, self.name_ = url, name
        self.answered, self.enough = answered, enough
        self.unanswered = []

    def run(self):
        number = 0
        while True:
            names = [f"{self.name_}.{number}.{n}" for n in range(random.choice((1, 1, 1, 20)))]
            number += 1
            try:
                told = publish(self.url, names)
            except (OSError, ValueError, urllib.error.URLError):
                self.unanswered += names
                return
            for one in told:
                assert "duplicate" not in one
                self.answered[one["event_id"]] = one["cursor"]
            if len(self.answered) >= self.enough.count:
                self.enough.set()


class Enough(threading.Event):
    """Set when so many publishes were answered."""

    def __init__(self, count):
        super().__init__()
        self.count = count


class Subscriber(threading.Thread):
    """Follows from a cursor until the broker is gone or it has seen an event; notes every frame."""

    def __init__(self, url, cursor, until=None):
        super().__init__(daemon=True)
        self.url, self.cursor, self.until = url, cursor, until
        self.seen, self.gaps = [], []
        self.ready = threading.Event()

    def run(self):
        try:
            with stream(self.url, self.cursor) as client:
                ready = json.loads(client.recv(GUARD_SECONDS))
                if self.cursor and not ready["replay"]["recovered"]:
                    self.gaps.append(ready)
                self.cursor = ready["cursor"]
                self.ready.set()
                for message in client:
                    frame = json.loads(message)
                    if frame["type"] == "replay.gap":
                        self.gaps.append(frame)
                    elif "event_id" in frame:
                        self.cursor = frame["cursor"]
                        self.seen.append((frame["event_id"], frame["cursor"]))
                        if frame["event_id"] == self.until:
                            return
        except (OSError, WebSocketException):
            pass
        finally:
            self.ready.set()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("synchronous", SYNCHRONOUS)
def test_killed_at_any_moment_it_loses_nothing_it_answered_doubles_nothing_and_keeps_the_order(
    configure, synchronous, window
):
    config = configure(synchronous, window)
    answered, unanswered, seen, gaps = {}, [], [], []
    cursor = first_cursor = None
    for number in range(KILLS):
        with serving("--config", config) as (broker, url):
            subscriber = Subscriber(url, cursor)
            subscriber.start()
            assert subscriber.ready.wait(GUARD_SECONDS)
            first_cursor = first_cursor or subscriber.cursor
            enough = Enough(len(answered) + random.randrange(1, 300))
            publishers = [Publisher(url, f"e{number}.{n}", answered, enough) for n in range(PUBLISHERS)]
            for publisher in publishers:
                publisher.start()
            assert enough.wait(GUARD_SECONDS)
            broker.kill()
            for thread in (*publishers, subscriber):
                thread.join(GUARD_SECONDS)
            unanswered += [name for publisher in publishers for name in publisher.unanswered]
            seen += subscriber.seen
            gaps += subscriber.gaps
            cursor = subscriber.cursor
    with serving("--config", config) as (broker, url):
        again = {one["event_id"]: one for name in answered for one in publish(url, [name])}
        assert all(one.get("duplicate") for one in again.values())
        assert {name: one["cursor"] for name, one in again.items()} == answered
        resent = {name: publish(url, [name])[0]["cursor"] for name in unanswered}
        publish(url, [LAST])
        last, whole = Subscriber(url, cursor, LAST), Subscriber(url, first_cursor, LAST)
        for thread in (last, whole):
            thread.start()
            thread.join(GUARD_SECONDS)
    seen += last.seen
    assert gaps + last.gaps + whole.gaps == []
    assert dict(seen[:-1]) == answered | resent, "each with the cursor that was answered"
    assert [name for name, times in Counter(name for name, _ in seen).items() if times > 1] == []
    assert seen == whole.seen, "who came back each time saw what one who reads it all at the end sees"
    assert [position(cursor) for _, cursor in seen] == sorted(position(cursor) for _, cursor in seen)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_out_of_room_it_refuses_to_publish_and_serves_subscribers_and_goes_on_when_there_is_room(configure):
    with serving("--config", configure("full")) as (broker, url):
        _, hard = resource.prlimit(broker.pid, resource.RLIMIT_FSIZE)
        answered = [one["event_id"] for one in publish(url, ["e1", "e2"])]
        resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (300_000, hard))
        refused = None
        while refused is None:
            name = f"e{len(answered) + 1}"
            try:
                publish(url, [name], size=20_000)
                answered.append(name)
            except urllib.error.HTTPError as error:
                refused = json.load(error)["error"]
        assert (refused["code"], refused["retry_after_ms"]) == ("unavailable", 1000)
        with stream(url, "1h") as client:
            frames = [json.loads(client.recv(GUARD_SECONDS)) for _ in range(1 + len(answered))]
            assert [frame["event_id"] for frame in frames[1:]] == answered
            resource.prlimit(broker.pid, resource.RLIMIT_FSIZE, (hard, hard))
            (published,) = publish(url, [name], size=20_000)
            assert "duplicate" not in published
            assert json.loads(client.recv(GUARD_SECONDS))["event_id"] == name
        broker.terminate()
        assert broker.wait(GUARD_SECONDS) == 0
