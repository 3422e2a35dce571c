"""The broker that users have in their tests: it does to their agents what a network and a bad day do."""

import anyio
import pytest
from daimon_email import CommandError, DaimonWebSocket

from broker import CommandError as Refusal


class Heard:
    """What a client's handlers were told, to be waited for."""

    def __init__(self, client):
        self.told = []
        self._changed = anyio.Event()
        client.on("message.received", lambda message: self.note(message.subject))
        client.on("connected", lambda: self.note("connected"))
        client.on("disconnected", lambda reason: self.note("disconnected"))
        client.on("gap", lambda gap: self.note(f"gap of {gap.count}"))

    def note(self, what):
        self.told.append(what)
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, what):
        while what not in self.told:
            await self._changed.wait()


def client_of(broker, **options):
    return DaimonWebSocket(broker.key, url=broker.url, **{"reconnect_delay": 0.01, **options})


def test_a_cut_is_a_lost_connection_over_which_nothing_is_missed(local_broker, run):
    async def main():
        client = client_of(local_broker)
        heard = Heard(client)
        async with client:
            with local_broker.away():
                await heard.until("disconnected")
                local_broker.receive_mail(subject="while away")
            await heard.until("while away")
            local_broker.cut()
            local_broker.receive_mail(subject="after a cut")
            await heard.until("after a cut")
        return [word for word in heard.told if "connected" not in word]

    assert run(main) == ["while away", "after a cut"]


def test_a_gap_is_told_with_its_count(local_broker, run):
    async def main():
        client = client_of(local_broker)
        heard = Heard(client)
        async with client:
            local_broker.receive_mail(subject="before")
            await heard.until("before")
            local_broker.gap(3)
            await heard.until("gap of 3")
            local_broker.receive_mail(subject="after")
            await heard.until("after")
        return [word for word in heard.told if "connected" not in word]

    assert run(main) == ["before", "gap of 3", "after"]


def test_a_slow_road_brings_all_the_same(local_broker, run):
    async def main():
        client = client_of(local_broker)
        heard = Heard(client)
        async with client:
            local_broker.slow(1_000_000)
            local_broker.receive_mail(subject="slow", body="x" * 10_000)
            await heard.until("slow")
            local_broker.slow()

    run(main)


def test_commands_are_noted_and_answered_as_the_test_says(local_broker, run):
    def refuse(command):
        raise Refusal("mailbox_full", f"No room for {command.params['to']}")

    local_broker.answer("send_email", refuse)
    local_broker.answer("archive", lambda command: {"archived": command.params["message_id"]})

    async def main():
        async with client_of(local_broker) as client:
            archived = await client.command("archive", {"message_id": "msg_1"})
            with pytest.raises(CommandError) as caught:
                await client.send_email(inbox_id="inbox_test", to="ada@example.com", once="greeting")
            return archived.archived, caught.value.code

    assert run(main) == ("msg_1", "mailbox_full")
    assert [(c.action, c.inbox_id, c.once) for c in local_broker.commands] == [
        ("archive", None, None),
        ("send_email", "inbox_test", "greeting"),
    ]
