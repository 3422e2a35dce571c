"""The client against a real broker, on both event loops."""

import anyio
import pytest
from daimon_email import CommandError, ConnectionEndedError, DaimonWebSocket
from demonstrating import KEY, mail


def test_the_plans_client_gets_its_mails_and_answers_them(served, run):
    async def main():
        client = DaimonWebSocket(api_key=KEY, url=served.url, auto_reconnect=True, reconnect_delay=5)
        seen, answered = [], anyio.Event()

        @client.on("message.received")
        def handle_message(message):
            seen.append((message.subject, message.inbox_id))

        @client.on("message.received")
        async def answer(message, event):
            sent = await client.send_email(
                inbox_id=message.inbox_id, to=message.from_, subject=f"Re: {message.subject}"
            )
            seen.append((sent.message_id, event.event_id))
            answered.set()

        @client.on("connected")
        def handle_connected():
            seen.append("connected")

        async with client:
            await anyio.to_thread.run_sync(served.publish, mail(1))
            await answered.wait()
        return seen

    assert run(main) == ["connected", ("Mail 1", "in_1"), ("sent_1", "evt_1")]
    assert served.sent == [{"to": "ada@example.com", "subject": "Re: Mail 1", "body": "", "once": "evt_1"}]


def test_a_wrong_key_ends_it_with_the_reason(served, run):
    async def main():
        with pytest.raises(ConnectionEndedError) as caught:
            await DaimonWebSocket(api_key="dm_live_wrong", url=served.url).connect()
        return caught.value

    error = run(main)
    assert (error.code, error.status) == ("unauthorized", 401)


def test_a_refused_command_raises_with_its_code(served, run):
    async def main():
        async with DaimonWebSocket(api_key=KEY, url=served.url) as client:
            with pytest.raises(CommandError) as caught:
                await client.command("nobody_does_this")
            return caught.value.code

    assert run(main) == "unknown_action"


def test_a_wait_finds_what_came_before_it(served, run):
    served.publish(mail(1, subject="Your code is 493201"))

    async def main():
        async with DaimonWebSocket(api_key=KEY, url=served.url) as client:
            found = await client.wait_for(where={"subject": "code"}, since="5m", extract=["code"])
            none = await client.wait_for(where=lambda message: "nothing" in message.subject, since="5m", timeout=0.1)
            return found.codes, found.message.subject, none

    assert run(main) == (("493201",), "Your code is 493201", None)
