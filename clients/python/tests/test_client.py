"""The client against a real broker, on both event loops."""

from contextlib import suppress

import anyio
import pytest
from certificates import Authority
from daimon_email import CommandError, ConnectionEndedError, DaimonWebSocket
from daimon_email.connection import Connection
from daimon_email.handling import Handlers, Queue
from daimon_email.notices import Notices
from processes import KEY, serving
from test_pure import event
from websockets.client import ClientProtocol
from websockets.protocol import State
from websockets.uri import parse_uri

from broker.keys import hash_key


def client_of(broker, **options):
    return DaimonWebSocket(broker.key, url=broker.url, **{"reconnect_delay": 0.01, **options})


def test_the_plans_client_gets_its_mails_and_answers_them(local_broker, run):
    async def main():
        client = DaimonWebSocket(api_key=local_broker.key, url=local_broker.url, auto_reconnect=True, reconnect_delay=5)
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
            local_broker.receive_mail("in_1", subject="Hello")
            await answered.wait()
        return seen

    assert run(main) == ["connected", ("Hello", "in_1"), ("sent_1", "evt_1")]
    [given] = local_broker.commands
    assert (given.params["subject"], given.params["to"], given.once) == ("Re: Hello", "ada@example.com", "evt_1")


def test_a_wrong_key_ends_it_with_the_reason(local_broker, run):
    async def main():
        with pytest.raises(ConnectionEndedError) as caught:
            await DaimonWebSocket("dm_live_wrong", url=local_broker.url).connect()
        return caught.value

    error = run(main)
    assert (error.code, error.status) == ("unauthorized", 401)


def test_a_block_that_cannot_begin_is_not_run(local_broker, run):
    async def main():
        with pytest.raises(ConnectionEndedError):
            async with DaimonWebSocket("dm_live_wrong", url=local_broker.url):
                pytest.fail("the block ran")

    run(main)


def test_waiting_for_a_broker_that_is_not_there_can_be_given_up(local_broker, run):
    async def main():
        with local_broker.away(), anyio.move_on_after(0.1) as tried:
            async with client_of(local_broker):
                pytest.fail("the block ran")
        return tried.cancelled_caught

    assert run(main)


def test_a_refused_command_raises_with_its_code(local_broker, run):
    async def main():
        async with client_of(local_broker) as client:
            with pytest.raises(CommandError) as caught:
                await client.command("nobody_does_this")
            return caught.value.code

    assert run(main) == "unknown_action"


# --- ending


def test_what_a_block_raises_comes_out_as_it_is(local_broker, run):
    async def main():
        async with client_of(local_broker):
            raise KeyError("the block's") from ValueError("the cause")

    with pytest.raises(KeyError) as caught:
        run(main)
    assert str(caught.value.__cause__) == "the cause"


def test_after_close_the_block_goes_on(local_broker, run):
    async def main():
        async with client_of(local_broker) as client:
            await client.close()
            await anyio.lowlevel.checkpoint()
            with pytest.raises(ConnectionEndedError):
                await client.ping()

    run(main)


def test_a_client_that_was_cancelled_goes_on_where_it_was_also_in_another_loop(local_broker, run):
    client = client_of(local_broker)
    connected, heard = [], []
    client.on("connected", lambda: connected.append(1) or (len(connected) == 1 and local_broker.receive_mail()))
    come = None

    @client.on("message.received")
    def take(message, event):
        heard.append(event.event_id)
        come.set()

    async def main():
        nonlocal come
        come = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.connect)
            await come.wait()
            await anyio.wait_all_tasks_blocked()  # the handler has returned
            tasks.cancel_scope.cancel()

    run(main)
    local_broker.receive_mail()  # comes between
    run(main)
    assert heard == ["evt_1", "evt_2"]


def test_a_handler_may_close_the_client_and_is_finished_before(local_broker, run):
    async def main():
        client = client_of(local_broker)
        steps = []

        @client.on("message.received")
        async def last(message):
            await client.close()
            steps.append((await client.ping()).server_time is not None)

        async with anyio.create_task_group() as tasks:
            client.on("connected", local_broker.receive_mail)
            tasks.start_soon(client.connect)
        return steps

    assert run(main) == [True]


def test_close_waits_for_the_handlers_that_are_at_work(local_broker, run):
    async def main():
        client = client_of(local_broker)
        begun, steps = anyio.Event(), []

        @client.on("message.received")
        async def slow(message):
            begun.set()
            await anyio.sleep(0.05)
            steps.append("handled")

        async with client:
            local_broker.receive_mail()
            await begun.wait()
            await client.close()
            steps.append("closed")
        return steps

    assert run(main) == ["handled", "closed"]


def test_a_client_that_waits_for_its_next_attempt_is_closed_at_once(local_broker, run):
    async def main():
        client = client_of(local_broker, reconnect_delay=3600)
        lost = anyio.Event()
        client.on("disconnected", lambda reason: lost.set())
        with anyio.fail_after(60):
            async with client:
                with local_broker.away():
                    await lost.wait()
                    await client.close()

    run(main)


def test_reconnect_now_ends_the_wait(local_broker, run):
    async def main():
        client = client_of(local_broker, reconnect_delay=3600)
        connected = []
        again = anyio.Event()
        client.on("connected", lambda: connected.append(1) or (len(connected) == 2 and again.set()))
        client.on("disconnected", lambda reason: client.reconnect_now())
        async with client:
            local_broker.cut()
            await again.wait()

    run(main)


def test_a_client_connects_once_at_a_time(local_broker, run):
    async def main():
        async with client_of(local_broker) as client:
            with pytest.raises(RuntimeError, match="connected already"):
                await client.connect()

    run(main)


def test_a_client_that_was_closed_stays_so(local_broker, run):
    async def main():
        client = client_of(local_broker)
        async with client:
            pass
        await client.close()
        for call, said in (
            (client.connect, "stays so: make another"),
            (client.subscribe, "stays so: make another"),
            (client.unsubscribe, "stays so: make another"),
            (client.ping, "closed"),
        ):
            with pytest.raises(ConnectionEndedError, match=said) as caught:
                await call()
            assert caught.value.code == 1000

    run(main)


def test_closed_before_it_connects_it_does_not_connect(local_broker, run):
    async def main():
        client = client_of(local_broker)
        refused = []

        async def ping():
            try:
                await client.ping()
            except ConnectionEndedError as error:
                refused.append(error.code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ping)
            await anyio.wait_all_tasks_blocked()
            await client.close()
        with pytest.raises(ConnectionEndedError, match="make another"):
            async with client:
                raise AssertionError("it is open")
        return refused

    assert run(main) == [1000]


def test_closed_in_the_moment_in_which_it_connects_it_ends(local_broker, run):
    async def main():
        client = client_of(local_broker)

        async def connect():
            with suppress(ConnectionEndedError):  # closed first
                await client.connect()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connect)
            tasks.start_soon(client.close)

    run(main)


def test_one_that_was_cancelled_may_connect_again_or_be_closed(local_broker, run):
    async def main():
        client = client_of(local_broker)
        for _ in range(2):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await client.connect()
        async with client:
            await client.ping()
        cancelled = client_of(local_broker)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await cancelled.connect()
        await cancelled.close()

    run(main)


def test_one_that_is_taken_over_ends_with_4409(local_broker, run):
    async def main():
        with pytest.raises(ConnectionEndedError) as caught:
            async with client_of(local_broker, client_id="agent"), client_of(local_broker, client_id="agent"):
                await anyio.sleep_forever()
        return caught.value.code

    assert run(main) == 4409


# --- handlers


def test_a_handler_that_fails_is_reported_and_stops_nothing(local_broker, run):
    async def main():
        client = client_of(local_broker)
        told, done = [], anyio.Event()

        @client.on("message.received")
        def fail(message):
            raise ValueError(message.subject)

        @client.on("message.received")
        def work(message):
            told.append(message.subject)
            if message.subject == "two":
                done.set()

        client.on("error", lambda error: told.append(repr(error)))
        async with client:
            local_broker.receive_mail(subject="one")
            local_broker.receive_mail(subject="two")
            await done.wait()
        return told

    assert run(main) == ["ValueError('one')", "one", "ValueError('two')", "two"]


def test_a_notice_is_told_before_the_event_that_came_after_it(run):
    async def main():
        handlers, told, done = Handlers(), [], anyio.Event()
        handlers.add("gap", told.append)

        async def handle(event):
            told.append(event.event_id)
            done.set()

        queue = Queue(handle, 1, None, held=lambda: notices.unheard)
        notices = Notices(handlers, queue.wake)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.run, tasks)
            await anyio.wait_all_tasks_blocked()
            queue.pause()
            queue.put(event(1))
            notices.tell("gap", "a gap")
            queue.resume()
            await anyio.wait_all_tasks_blocked()
            assert told == []
            tasks.start_soon(notices.run)
            await done.wait()
            tasks.cancel_scope.cancel()
        return told

    assert run(main) == ["a gap", "evt_1"]


def test_a_handler_of_connected_may_give_commands(local_broker, run):
    async def main():
        client = client_of(local_broker, inbox_ids=[])
        pinged = anyio.Event()

        @client.on("connected")
        async def ping():
            await client.ping()
            pinged.set()

        async with client:
            await pinged.wait()

    run(main)


def test_a_handler_that_waits_for_an_answer_gets_it_behind_a_full_queue(local_broker, run, monkeypatch):
    monkeypatch.setattr("daimon_email.handling.MAX_QUEUE_BYTES", 0)

    async def main():
        client = client_of(local_broker)
        answered = anyio.Event()

        @client.on("message.received")
        async def work(message):
            await anyio.wait_all_tasks_blocked()
            await client.ping()
            if message.subject == "last":
                answered.set()

        async with client:
            for subject in ("first", "second", "last"):
                local_broker.receive_mail(subject=subject)
            await answered.wait()

    run(main)


def test_paused_nothing_is_handed_on_and_resumed_all_of_it_in_order(local_broker, run):
    async def main():
        client = client_of(local_broker)
        subjects, done = [], anyio.Event()

        @client.on("message.*")
        def work(message):
            subjects.append(message.subject)
            if message.subject == "3":
                done.set()

        async with client:
            client.pause()
            for number in range(4):
                local_broker.receive_mail(subject=str(number))
            await client.ping()
            assert subjects == []
            client.resume()
            await done.wait()
        return subjects

    assert run(main) == ["0", "1", "2", "3"]


def test_several_handlers_at_once_but_one_of_each_thread(local_broker, run):
    async def main():
        client = client_of(local_broker, concurrency=3)
        at_work, most, done = [], [], anyio.Event()

        @client.on("message.received")
        async def work(message):
            at_work.append(message.thread_id)
            most.append(sorted(at_work))
            await anyio.sleep(0.05)
            at_work.remove(message.thread_id)
            if message.subject == "last":
                done.set()

        async with client:
            for thread in ("a", "a", "b"):
                local_broker.receive_mail(thread_id=thread)
            local_broker.receive_mail(thread_id="a", subject="last")
            await done.wait()
        return most

    seen = run(main)
    assert ["a", "b"] in seen
    assert all(len(set(threads)) == len(threads) for threads in seen)


# --- commands


def test_a_command_before_the_connection_is_done_when_it_is_open(local_broker, run):
    async def main():
        client, done = client_of(local_broker), anyio.Event()

        async def mark():
            await client.mark_as_read(message_id="msg_1")
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mark)
            await anyio.wait_all_tasks_blocked()
            async with client:
                await done.wait()

    run(main)
    assert [command.action for command in local_broker.commands] == ["mark_as_read"]


def test_the_plans_dashboard_subscribes_before_it_connects(local_broker, run):
    async def main():
        client = client_of(local_broker)
        seen, done = [], anyio.Event()
        await client.send({"action": "subscribe", "inbox_ids": ["inbox_1", "inbox_2"]})

        @client.on("message.received")
        def update(message):
            seen.append(message.inbox_id)
            if message.inbox_id == "inbox_2":
                done.set()

        async with client:
            for inbox_id in ("inbox_1", "inbox_3", "inbox_2"):
                local_broker.receive_mail(inbox_id)
            await done.wait()
        return seen

    assert run(main) == ["inbox_1", "inbox_2"]


def test_what_was_subscribed_to_while_away_is_followed_afterwards(local_broker, run):
    async def main():
        client = client_of(local_broker, inbox_ids=["inbox_1"])
        lost, heard = anyio.Event(), anyio.Event()
        client.on("disconnected", lambda reason: lost.set())
        client.on("message.received", lambda message: heard.set())
        async with client:
            with local_broker.away():
                await lost.wait()
                await client.subscribe("inbox_2")
                local_broker.receive_mail("inbox_2")
            await heard.wait()

    run(main)


def test_an_opening_follows_ten_thousand_inboxes(local_broker, run):
    async def main():
        inbox_ids = [f"agent-number-{number:05d}-with-a-long-name@agents.example.com" for number in range(10_000)]
        client = client_of(local_broker, inbox_ids=inbox_ids)
        seen, done = [], anyio.Event()

        @client.on("message.received")
        def note(message):
            seen.append(message.inbox_id)
            if len(seen) == 4:
                done.set()

        async with client:
            await client.ping()
            local_broker.receive_mail(inbox_ids[-1])
            local_broker.receive_mail(inbox_ids[0])
            with local_broker.away():
                local_broker.receive_mail(inbox_ids[-1])
                local_broker.receive_mail(inbox_ids[0])
            await done.wait()
        return [inbox_ids.index(inbox_id) for inbox_id in seen]

    assert sorted(run(main)) == [0, 0, 9_999, 9_999]


def test_a_message_that_is_too_big_is_refused_and_not_sent(local_broker, run):
    async def main():
        async with client_of(local_broker) as client:
            with pytest.raises(CommandError) as caught:
                await client.send_email(inbox_id="in_1", to="ada@example.com", body="x" * 2_000_000)
            await client.ping()
            return caught.value.code

    assert run(main) == "too_large"


class Narrow:
    """A stream that takes a byte, and the rest when it may."""

    def __init__(self):
        self.begun, self.gate, self.taken = anyio.Event(), anyio.Event(), b""

    async def send(self, data):
        self.taken += data[:1]
        self.begun.set()
        await self.gate.wait()
        self.taken += data[1:]


def test_a_frame_is_written_whole_also_if_who_gave_it_is_cancelled(run):
    async def main():
        protocol = ClientProtocol(parse_uri("ws://127.0.0.1/"), state=State.OPEN)
        stream = Narrow()
        connection = Connection(stream, protocol)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.send, "x" * 100)
            await stream.begun.wait()
            tasks.cancel_scope.cancel()
            stream.gate.set()
        return len(stream.taken)

    assert run(main) == 2 + 4 + 100  # a head, a mask, the text


def test_tokens_are_fetched_for_each_opening_also_after_one_could_not_be(local_broker, run):
    async def main():
        asked, reported, connected = [], [], anyio.Event()

        async def token():
            asked.append(1)
            if len(asked) == 1:
                raise OSError("the backend is away")
            return local_broker.key

        client = DaimonWebSocket(token=token, url=local_broker.url, reconnect_delay=0.01)
        client.on("error", lambda error: reported.append(str(error)))
        client.on("connected", lambda: len(asked) == 3 and connected.set())
        async with client:
            local_broker.cut()
            await connected.wait()
        return reported

    assert run(main) == ["the backend is away"]


# --- waiting


def test_a_wait_finds_what_came_before_it(local_broker, run):
    local_broker.receive_mail(subject="Your code is 493201")

    async def main():
        async with client_of(local_broker) as client:
            found = await client.wait_for(where={"subject": "code"}, since="5m", extract=["code"])
            none = await client.wait_for(where=lambda message: "nothing" in message.subject, since="5m", timeout=0.1)
            return found.codes, found.message.subject, none

    assert run(main) == (("493201",), "Your code is 493201", None)


def test_a_wait_goes_on_over_a_lost_connection(local_broker, run):
    async def main():
        client = client_of(local_broker)
        lost = anyio.Event()
        client.on("disconnected", lambda reason: lost.set())
        found = []

        async def wait():
            found.append(await client.wait_for(where=lambda message: message.subject == "second"))

        async with client, anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(0.05)
            local_broker.receive_mail(subject="first")
            with local_broker.away():
                await lost.wait()
                local_broker.receive_mail(subject="second")
        return found[0].message.subject

    assert run(main) == "second"


# --- TLS


@pytest.fixture
def behind_tls(tmp_path):
    """A broker that speaks TLS, in a process of its own: its URL, and the trust that its authority deserves."""
    authority = Authority(tmp_path)
    server = authority.sign()
    config = tmp_path / "broker.toml"
    config.write_text(
        f"[server]\ntls_certificate = '{server.tls_certificate}'\ntls_key = '{server.tls_key}'\n"
        f"[[accounts]]\nid = 'acct'\n[[accounts.keys]]\nid = 'key'\nsha256 = '{hash_key(KEY)}'\n"
    )
    with serving("--config", config) as (_, url):
        yield url.replace("127.0.0.1", "localhost"), authority.trust()


def test_a_broker_with_tls_is_trusted_if_its_authority_is(behind_tls, run):
    url, trust = behind_tls

    async def main():
        async with DaimonWebSocket(KEY, url=url, trust=trust) as client:
            return (await client.ping()).server_time is not None

    assert run(main)


def test_a_certificate_that_is_not_trusted_is_said_to_be_so(behind_tls, run):
    url, _ = behind_tls

    async def main():
        with pytest.raises(ConnectionEndedError) as caught:
            await DaimonWebSocket(KEY, url=url, auto_reconnect=False).connect()
        return caught.value.message

    assert "its certificate is not trusted" in run(main)
