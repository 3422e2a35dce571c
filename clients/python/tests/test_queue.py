"""Workers that share a queue: each event is one worker's, held while it works, done once."""

import anyio
import pytest
from daimon_email import CommandError, DaimonWebSocket
from daimon_email.leases import Lease, Leases
from processes import KEY, serving
from test_pure import event

from broker.keys import hash_key

CONFIG = f"""
[[accounts]]
id = "acct"
tier = "developer"
[[accounts.keys]]
id = "key"
sha256 = "{hash_key(KEY)}"
[[accounts.queues]]
id = "support"
inbox_ids = ["in_q"]
order = "none"
"""


@pytest.fixture
def url(tmp_path):
    path = tmp_path / "broker.toml"
    path.write_text(f'[storage]\npath = "{tmp_path / "broker.db"}"\nmin_free_bytes = 0\n{CONFIG}')
    with serving("--config", path) as (_, url):
        yield url


def mail(number):
    message = {"message_id": f"msg_{number}", "from": "ada@example.com", "subject": str(number)}
    return {
        "type": "message.received",
        "inbox_id": "in_q",
        "event_id": f"evt_{number}",
        "payload": {"message": message},
    }


def test_two_workers_share_a_queue_and_each_event_is_done_by_one(url, run):
    async def main():
        done = []

        async def work(client):
            async for lease in client.queue("support"):
                async with lease as message:
                    done.append(message.subject)
                if len(done) == 6:
                    await one.close()
                    await two.close()

        async with (
            DaimonWebSocket(KEY, url=url, inbox_ids=[]) as one,
            DaimonWebSocket(KEY, url=url, inbox_ids=[]) as two,
        ):
            await one.publish([mail(number) for number in range(6)])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work, one)
                tasks.start_soon(work, two)
        return sorted(done)

    assert run(main) == ["0", "1", "2", "3", "4", "5"]


def test_what_fails_is_reported_and_given_back(url, run):
    async def main():
        reported = []
        async with DaimonWebSocket(KEY, url=url, inbox_ids=[]) as client:
            client.on("error", lambda error: reported.append(repr(error)))
            await client.publish(mail(1))
            async for lease in client.queue("support"):
                async with lease:
                    raise ValueError("not today")
                break
            again = await client.command("lease", {"queue_id": "support"})
        return reported, again.leases

    assert run(main) == (["ValueError('not today')"], [])


class Broker:
    """Answers what a lease asks for."""

    def __init__(self, lost=()):
        self.given, self.reported, self.lost = [], [], list(lost)

    async def ask(self, action, fields, seconds):
        self.given.append((action, fields["lease_ids"]))
        return {"lost": self.lost}

    async def report(self, what, error):
        self.reported.append(str(error))

    def lease(self):
        given = {"lease_id": "lse_1", "event": event(1).frame, "attempt": 1, "expires_at": ""}
        return Lease(given, self.ask, self.report)


async def test_a_lease_is_held_for_as_long_as_it_is_worked_on(autojump_clock):
    broker = Broker()
    async with broker.lease():
        await anyio.sleep(50)
    assert broker.given == [("hold", ["lse_1"]), ("hold", ["lse_1"]), ("ack", ["lse_1"])]


async def test_why_a_queue_gives_nothing_now_is_told_once(autojump_clock):
    answers = [CommandError("unavailable", "Queues need a log on disk")] * 3 + [CommandError("not_found", "No queue")]
    told = []

    async def ask(*_):
        raise answers.pop(0)

    async def report(what, error):
        told.append((what, error.code))

    with pytest.raises(CommandError, match="No queue"):
        await anext(Leases("support", anyio.Lock(), ask, report))
    assert told == [("lease from support", "unavailable")]


async def test_work_whose_lease_is_lost_is_cancelled(autojump_clock):
    broker = Broker(lost=["lse_1"])
    async with broker.lease():
        await anyio.sleep_forever()
    assert broker.given == [("hold", ["lse_1"])]
    assert "lease_lost" in broker.reported[0]


async def test_commands_of_the_work_carry_its_lease_and_are_done_once(autojump_clock):
    client = DaimonWebSocket("dm_live_x", url="ws://127.0.0.1:1")
    asked = {}

    async def note(action, fields, *_):
        asked[action] = fields

    client._command = note
    async with Broker().lease() as message:
        await client.send_email(inbox_id=message.inbox_id, to=message.from_)
        await client.ping()
    assert (asked["send_email"]["lease_id"], asked["send_email"]["once"]) == ("lse_1", "evt_1")
    assert asked["ping"] == {}
