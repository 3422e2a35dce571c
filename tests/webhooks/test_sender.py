"""One post: what the endpoint gets, what counts as taken, and what an endpoint cannot do to the broker."""

import socket
import ssl
import threading
from contextlib import asynccontextmanager
from functools import partial

import httpcore
import pytest
import trio
import trustme
from receivers import OK, answering, receiving

from broker import ConfigError
from broker.config import WebhooksConfig
from broker.webhooks import sender as room
from broker.webhooks.connecting import MAX_LOOKUPS, Resolver
from broker.webhooks.sender import ATTEMPT_SECONDS, KEEP_SECONDS, MAX_POOLS, Outcome, Post, open_sender
from broker.webhooks.signing import secret_of

SECRET, OLD = secret_of(bytes(range(32))), secret_of(bytes(range(1, 33)))
BODY = '{"type":"message.received","payload":{"a": 1.50, "b":"ü"}}'.encode()
LOOPBACK = WebhooksConfig(allow_networks=("127.0.0.0/8",), allow_http=True)


def post_to(url, **fields):
    fields = {"endpoint": "wh", "account_id": "acct", "secrets": (SECRET,), "event_id": "evt_1", "body": BODY} | fields
    return Post(url=url, **fields)


def told(outcome: Outcome):
    return outcome.status, outcome.error


class Names:
    """A resolver that says what it is told, and counts."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def __call__(self, name, port, **_):
        self.asked.append(name)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer]


@asynccontextmanager
async def sending(config=LOOPBACK, names=None):
    async with open_sender(config, None if names is None else Resolver(names)) as sender:
        yield sender


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def trusting(authority, tmp_path):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return WebhooksConfig(allow_networks=("127.0.0.0/8",), ca_file=str(path))


def tls_of(authority, name):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


# --- what the endpoint gets


async def test_an_endpoint_gets_the_body_byte_for_byte_signed_by_both_secrets():
    async with receiving() as receiver, sending() as sender:
        outcome = await sender.post(post_to(receiver.url + "?a=b", secrets=(SECRET, OLD), attempt=3))
        [request] = receiver.requests
        assert told(outcome) == (200, None)
        assert (request.method, request.target, request.body) == ("POST", "/hooks?a=b", BODY)
        request.verify(SECRET)
        request.verify(OLD)
        wanted = {
            "content-type": "application/json",
            "webhook-id": "evt_1",
            "webhook-attempt": "3",
            "webhook-account": "acct",
        }
        assert wanted.items() <= request.headers.items()
        assert request.headers["user-agent"].startswith("daimon-broker/")


async def test_the_trace_of_an_event_is_a_header_too():
    trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    body = b'{"type":"a.b","event_id":"evt_1","created_at":"2026-11-23T10:00:00.123Z",%b"cursor":"c1","payload":{}}'
    async with receiving() as receiver, sending() as sender:
        await sender.post(post_to(receiver.url, body=body % (b'"traceparent":"%b",' % trace)))
        await sender.post(post_to(receiver.url, body=body % b""))
        traced, other = receiver.requests
    assert traced.headers["traceparent"] == trace.decode()
    assert "traceparent" not in other.headers


async def test_each_attempt_is_signed_anew():
    times = iter([1_000_000_000.0, 1_000_000_060.0])
    async with receiving() as receiver, open_sender(LOOPBACK, wall_clock=lambda: next(times)) as sender:
        for _ in range(2):
            await sender.post(post_to(receiver.url))
        assert [r.headers["webhook-timestamp"] for r in receiver.requests] == ["1000000000", "1000000060"]
        assert len({r.headers["webhook-signature"] for r in receiver.requests}) == 2


async def test_a_connection_is_used_again_and_eight_posts_may_be_under_way():
    async with receiving() as receiver, sending() as sender:
        for _ in range(3):
            await sender.post(post_to(receiver.url))
        assert receiver.connections == 1
        receiver.answer = None
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(sender.post, post_to(receiver.url, event_id=f"evt_{number}"))
            await receiver.received(3 + 8)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(receiver.requests) == 3 + 8
            nursery.cancel_scope.cancel()


# --- what counts


@pytest.mark.parametrize(
    ("status", "error"),
    [(200, None), (202, None), (204, None), (400, "status"), (404, "status"), (410, "status"), (500, "status")],
)
async def test_two_hundreds_are_success_and_nothing_else_is(status, error):
    async with receiving() as receiver, sending() as sender:
        receiver.answer = answering(status)
        assert told(await sender.post(post_to(receiver.url))) == (status, error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status):
    async with receiving() as elsewhere, receiving() as receiver, sending() as sender:
        receiver.answer = answering(status, f"Location: {elsewhere.url}")
        assert told(await sender.post(post_to(receiver.url))) == (status, "redirect")
        assert not elsewhere.requests


async def test_what_an_endpoint_asks_for_is_told():
    async with receiving() as receiver, sending() as sender:
        receiver.answer = answering(429, "Retry-After: 77")
        assert (await sender.post(post_to(receiver.url))).retry_after_seconds == 77
        receiver.answer = answering(200, "Retry-After: 77")
        assert (await sender.post(post_to(receiver.url))).retry_after_seconds == 0


@pytest.mark.parametrize("answer", [b"220 mail.test ESMTP\r\n\r\n", b"HTTP/1.1 banana\r\n\r\n", b"\x00" * 4096])
async def test_what_is_no_http_is_told_as_such(answer):
    async with receiving() as receiver, sending() as sender:
        receiver.answer = answer
        assert told(await sender.post(post_to(receiver.url))) == (None, "protocol")


async def test_an_answer_that_is_cut_is_no_answer_but_one_whose_body_is_cut_is_one():
    async with receiving() as receiver, sending() as sender:
        for answer, outcome in [
            (b"", (None, "protocol")),
            (b"HTTP/1.1 200 OK\r\nContent-Le", (None, "protocol")),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab", (200, None)),
        ]:

            async def cut(stream, answer=answer):
                await stream.send_all(answer)
                await stream.aclose()

            receiver.answer = cut
            assert told(await sender.post(post_to(receiver.url))) == outcome


async def test_a_port_that_nobody_listens_at_is_told():
    async with receiving() as receiver, sending() as sender:
        url = receiver.url
        async with receiving() as other:
            gone = other.url
        assert told(await sender.post(post_to(gone))) == (None, "connect")
        assert told(await sender.post(post_to(url))) == (200, None)


async def test_a_kept_connection_that_dies_before_it_answers_is_no_attempt():
    async with receiving() as receiver, sending() as sender:
        await sender.post(post_to(receiver.url))

        async def die(stream):
            receiver.answer = OK
            await trio.aclose_forcefully(stream)

        receiver.answer = die
        assert told(await sender.post(post_to(receiver.url, event_id="evt_2"))) == (200, None)
        assert receiver.ids == ["evt_1", "evt_2", "evt_2"]
        assert receiver.connections == 2


async def test_a_new_connection_that_dies_is_an_attempt():
    async with receiving() as receiver, sending() as sender:
        receiver.answer = trio.aclose_forcefully
        assert told(await sender.post(post_to(receiver.url))) == (None, "protocol")
        assert len(receiver.requests) == 1


# --- what an endpoint cannot do


async def test_an_endpoint_that_does_not_answer_has_fifteen_seconds(autojump_clock):
    async with receiving() as receiver, sending() as sender:
        receiver.answer = None
        outcome = await sender.post(post_to(receiver.url))
        assert told(outcome) == (None, "timeout")
        assert outcome.duration_seconds == ATTEMPT_SECONDS == 15


async def test_a_head_that_drips_has_no_more(autojump_clock):
    async def drip(stream):
        await stream.send_all(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            await stream.send_all(b".")
            await trio.sleep(0.5)

    async with receiving() as receiver, sending() as sender:
        receiver.answer = drip
        outcome = await sender.post(post_to(receiver.url))
        assert (told(outcome), outcome.duration_seconds) == ((None, "timeout"), 15)


async def test_a_body_that_drips_changes_nothing_of_the_status_and_holds_nobody_up(autojump_clock):
    async def drip(stream):
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await stream.send_all(b".")
            await trio.sleep(0.1)

    async with receiving() as receiver, sending() as sender:
        receiver.answer = drip
        outcome = await sender.post(post_to(receiver.url))
        assert told(outcome) == (200, None)
        assert outcome.duration_seconds <= 1.0
        receiver.answer = OK
        assert told(await sender.post(post_to(receiver.url))) == (200, None)
        assert receiver.connections == 2


@pytest.mark.parametrize(
    ("head", "piece", "outcome"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n", b"z" * 65_536, (200, None)),
        (b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nz\r\n" * 1_000, (500, "status")),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1_000, (None, "protocol")),
        (b"", b"HTTP/1.1 103 Hints\r\n\r\n" * 1_000, (None, "protocol")),
        (b"", b"z" * 65_536, (None, "protocol")),
    ],
    ids=["a body", "chunks", "a head", "hints", "a line"],
)
async def test_of_an_endless_answer_no_more_is_read_than_fits(head, piece, outcome):
    async def answer(stream):
        await stream.send_all(head)
        while True:
            await stream.send_all(piece)

    async with receiving() as receiver, sending() as sender:
        receiver.answer = answer
        with trio.fail_after(60):
            assert told(await sender.post(post_to(receiver.url))) == outcome


# --- which addresses are connected to


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "0",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.1.1",
        "[ff02::1]",
    ],
)
async def test_an_address_that_is_not_public_is_refused_however_it_is_written(host):
    async with receiving() as receiver, sending(WebhooksConfig(allow_http=True)) as sender:
        url = receiver.url.replace("127.0.0.1", host)
        assert told(await sender.post(post_to(url))) == (None, "blocked")
        assert receiver.connections == 0


async def test_a_name_of_an_address_that_is_not_public_is_refused():
    async with receiving(name="hooks.example.test") as receiver:
        async with sending(WebhooksConfig(allow_http=True), Names(["127.0.0.1", "10.0.0.1"])) as sender:
            assert told(await sender.post(post_to(receiver.url))) == (None, "blocked")
        assert receiver.connections == 0


async def test_of_the_addresses_of_a_name_only_those_permitted_are_tried():
    async with receiving(name="hooks.example.test") as receiver:
        names = Names(["10.0.0.1", "127.0.0.1"])
        config = WebhooksConfig(allow_http=True, allow_networks=("127.0.0.1/32",))
        async with sending(config, names) as sender:
            assert told(await sender.post(post_to(receiver.url))) == (200, None)
        assert receiver.requests[0].headers["host"].startswith("hooks.example.test:")


async def test_a_name_that_changes_its_address_gains_nothing(monkeypatch):
    """What is judged is what is connected to: between the two lies no second look."""
    connected = []

    async def connect(self, host, port, *_):
        connected.append(host)
        raise httpcore.ConnectError

    monkeypatch.setattr(httpcore.TrioBackend, "connect_tcp", connect)
    names = Names(["93.184.216.34"], ["127.0.0.1"])
    async with sending(WebhooksConfig(allow_http=True), names) as sender:
        assert told(await sender.post(post_to("http://rebind.test/"))) == (None, "connect")
        assert told(await sender.post(post_to("http://rebind.test/"))) == (None, "blocked")
    assert connected == ["93.184.216.34"]
    assert names.asked == ["rebind.test"] * 2


async def test_a_name_is_resolved_once_for_each_connection_and_tls_speaks_of_the_name(authority, trusting):
    names = Names(["127.0.0.1"])
    tls = tls_of(authority, "hooks.example.test")
    async with receiving(tls, "hooks.example.test") as receiver, sending(trusting, names) as sender:
        for _ in range(2):
            assert told(await sender.post(post_to(receiver.url))) == (200, None)
        assert receiver.names == ["hooks.example.test"]
        assert {r.headers["host"].partition(":")[0] for r in receiver.requests} == {"hooks.example.test"}
        assert names.asked == ["hooks.example.test"]


async def test_an_endpoint_that_is_another_by_its_certificate_gets_nothing(authority, trusting):
    async with receiving(tls_of(authority, "other.example.test"), "hooks.example.test") as receiver:
        async with sending(trusting, Names(["127.0.0.1"])) as sender:
            assert told(await sender.post(post_to(receiver.url))) == (None, "tls")
        assert not receiver.requests


async def test_an_authority_that_nobody_named_is_not_believed(authority):
    async with receiving(tls_of(authority, "hooks.example.test"), "hooks.example.test") as receiver:
        async with sending(LOOPBACK, Names(["127.0.0.1"])) as sender:
            assert told(await sender.post(post_to(receiver.url))) == (None, "tls")
        assert not receiver.requests


async def test_a_port_that_speaks_no_tls_is_told(trusting):
    async def listen(stream):
        await stream.receive_some(1000)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, listen, 0, host="127.0.0.1"))
        async with sending(trusting) as sender:
            url = f"https://127.0.0.1:{listener.socket.getsockname()[1]}/"
            assert told(await sender.post(post_to(url))) == (None, "tls")
        nursery.cancel_scope.cancel()


async def test_a_tls_handshake_that_hangs_is_ended(trusting, autojump_clock):
    async with receiving() as receiver, sending(trusting) as sender:
        url = receiver.url.replace("http:", "https:")
        assert told(await sender.post(post_to(url))) == (None, "timeout")


async def test_what_is_denied_is_refused_though_it_is_allowed_too():
    config = WebhooksConfig(allow_networks=("127.0.0.0/8",), deny_networks=("127.0.0.1/32",), allow_http=True)
    async with receiving() as receiver, sending(config) as sender:
        assert told(await sender.post(post_to(receiver.url))) == (None, "blocked")
        assert receiver.connections == 0


async def test_plain_http_is_refused_unless_it_is_allowed():
    async with receiving() as receiver, sending(WebhooksConfig(allow_networks=("127.0.0.0/8",))) as sender:
        assert told(await sender.post(post_to(receiver.url))) == (None, "blocked")
        assert receiver.connections == 0


@pytest.mark.parametrize("answer", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label"), []])
async def test_a_name_without_an_address_is_told(answer):
    async with sending(LOOPBACK, Names(answer)) as sender:
        assert told(await sender.post(post_to("http://nowhere.test/"))) == (None, "dns")


async def test_slow_names_of_one_account_take_neither_the_time_nor_the_threads_of_others(monkeypatch):
    go = threading.Event()

    def look_up(name, port, **_):
        if name == "slow.test":
            go.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    try:
        async with receiving(name="quick.test") as receiver, sending(LOOPBACK, look_up) as sender:
            async with trio.open_nursery() as nursery:
                with monkeypatch.context() as soon:
                    soon.setattr(room, "ATTEMPT_SECONDS", 0.3)
                    for number in range(2 * MAX_LOOKUPS):
                        slow = post_to("http://slow.test/", endpoint=f"wh_{number}", account_id="acct_slow")
                        nursery.start_soon(sender.post, slow)
                    await trio.testing.wait_all_tasks_blocked(0.02)
                assert told(await sender.post(post_to(receiver.url))) == (200, None)
            # Their time is over, their threads are not.
            with monkeypatch.context() as soon:
                soon.setattr(room, "ATTEMPT_SECONDS", 0.3)
                slow = post_to("http://slow.test/", account_id="acct_slow")
                assert told(await sender.post(slow)) == (None, "timeout")
            other = post_to(receiver.url, endpoint="wh_other", account_id="acct_other")
            assert told(await sender.post(other)) == (200, None)
    finally:
        go.set()


# --- what is kept


async def test_connections_that_rest_are_closed(autojump_clock):
    closed = trio.Event()
    async with receiving() as receiver, sending() as sender:

        async def answer(stream):
            await stream.send_all(OK)
            assert await stream.receive_some(1) == b""
            closed.set()
            await stream.aclose()

        receiver.answer = answer
        await sender.post(post_to(receiver.url))
        assert sender.statistics().pools == 1
        with trio.fail_after(KEEP_SECONDS * 2):
            await closed.wait()
        assert sender.statistics().pools == 0


async def test_connections_are_kept_for_so_many_endpoints_at_most(autojump_clock, monkeypatch):
    monkeypatch.setattr(room, "MAX_POOLS", 2)
    async with receiving() as receiver, sending() as sender:
        for number in range(5):
            await sender.post(post_to(receiver.url, endpoint=f"wh_{number}"))
        await trio.sleep(KEEP_SECONDS / 2)
        assert sender.statistics().pools == 2
    assert MAX_POOLS > 64


async def test_a_file_of_authorities_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"webhooks\.ca_file"):
        async with open_sender(WebhooksConfig(ca_file=str(tmp_path / "none.pem"))):
            pass
