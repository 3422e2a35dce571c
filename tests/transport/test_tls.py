"""TLS over real sockets: what is served over it, who is kept out, what a stalled client gets, and how it ends."""

import json
import logging
import shutil
import socket
import ssl
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
import trio
import websockets.sync.client
from certificates import Authority
from clients import (
    ACCOUNT,
    ALICE,
    broker_log,
    configured,
    connected,
    event,
    numbers,
    open_socket,
    read_to_end,
    read_until,
    secured,
    serving,
    until,
)
from msgspec import structs

import broker.transport.server
from broker import CloseCode, ConfigError, LimitsConfig, ServerConfig
from broker.protocol.framing import text_frame
from broker.transport.stream import ClientStream
from broker.transport.tls import SEALED_BYTES, Certificate, TlsSession


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def trust(authority):
    return authority.trust()


@asynccontextmanager
async def serving_tls(authority, **sections):
    server = structs.replace(authority.sign(), drain_seconds=600)
    async with serving(configured(server=server, **sections)) as served:
        yield served


def url_of(served, scheme: str) -> str:
    return f"{scheme}://localhost:{served.address[1]}"


def asking(served, trust) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {ALICE}"}
    return httpx.AsyncClient(verify=trust, base_url=url_of(served, "https"), headers=headers)


async def publish(served, *chosen: int, size: int = 0) -> None:
    for number in chosen:
        await served.broker.publish(ACCOUNT, event(number, size=size))


# --- what is served ----------------------------------------------------------


async def test_http_over_tls_is_answered_again_and_again_on_one_connection(authority, trust):
    async with serving_tls(authority) as served, asking(served, trust) as client:
        for number in range(3):
            assert (await client.post("/v1/events", json=event(number))).status_code == 200
        page = (await client.get("/v1/events?inbox_ids=in_1&since=5m")).json()["result"]
        assert numbers(page["events"]) == [0, 1, 2]


async def test_a_large_request_and_a_large_answer_come_whole(authority, trust):
    async with serving_tls(authority) as served, asking(served, trust) as client:
        events = [event(number, size=100_000) for number in range(20)]
        assert (await client.post("/v1/events", json=events)).status_code == 200
        page = (await client.get("/v1/events?inbox_ids=in_1&since=5m")).json()["result"]
        assert numbers(page["events"]) == list(range(20))


async def test_the_fan_out_writes_to_a_client_by_itself_as_it_does_without_tls(authority, trust):
    async with serving_tls(authority) as served, connected(served.address, "inbox_ids=in_1", tls=trust) as client:
        await until(lambda: served.connection(client).session.follower.live)
        woken = []
        served.connection(client).wake = lambda: woken.append(True)
        await publish(served, *range(50))
        assert [numbers([await client.next()])[0] for _ in range(50)] == list(range(50))
        assert not woken
        await client.say(action="ping", request_id="r")
        assert (await client.answer("r"))["type"] == "response"


async def test_a_foreign_client_publishes_receives_pings_and_closes_over_wss(authority, trust):
    def act(url: str) -> None:
        headers = {"Authorization": f"Bearer {ALICE}"}
        with websockets.sync.client.connect(url, ssl=trust, additional_headers=headers, open_timeout=60) as websocket:
            assert json.loads(websocket.recv(timeout=60))["type"] == "connection.ready"
            assert websocket.ping().wait(60)
            websocket.send(json.dumps({"action": "publish", "request_id": "r", "events": event(1)}))
            frames = [json.loads(websocket.recv(timeout=60)) for _ in range(2)]
            assert {frame["type"] for frame in frames} == {"response", "test.event"}
            websocket.close()
            assert websocket.close_code == CloseCode.NORMAL

    async with serving_tls(authority) as served:
        with trio.fail_after(60):
            await trio.to_thread.run_sync(act, url_of(served, "wss") + "/v1/stream?inbox_ids=in_1")
            await served.until_gone()


async def test_server_sent_events_come_over_tls(authority, trust):
    async with serving_tls(authority) as served, secured(await open_socket(served.address), trust) as stream:
        head = f"GET /v1/events/stream?inbox_ids=in_1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\n\r\n"
        await stream.send_all(head.encode())
        assert b"text/event-stream" in await read_until(stream, b"connection.ready")
        await publish(served, 7)
        assert b"data: " in await read_until(stream, b'"number":7')


async def test_it_speaks_http_1_1_by_alpn_and_nothing_older_than_tls_1_2(authority, trust):
    trust.set_alpn_protocols(["h2", "http/1.1"])
    async with serving_tls(authority) as served:
        async with secured(await open_socket(served.address), trust) as stream:
            await stream.do_handshake()
            assert stream.selected_alpn_protocol() == "http/1.1"
            assert stream.version() in ("TLSv1.2", "TLSv1.3")
        context = Certificate(served.broker.config.server.tls_certificate, served.broker.config.server.tls_key).context
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


async def test_the_address_and_the_state_of_tcp_are_those_of_the_socket_beneath(authority, trust):
    async with serving_tls(authority) as served, connected(served.address, tls=trust) as client:
        stream = served.connection(client)._stream
        assert stream.remote == "127.0.0.1"
        assert stream.unacknowledged_seconds() is not None


# --- one client is nobody else's trouble -------------------------------------


async def test_a_client_that_speaks_plain_http_is_ended_with_one_line(authority, caplog):
    caplog.set_level(logging.INFO)
    async with serving_tls(authority) as served:
        with trio.fail_after(60):
            async with await open_socket(served.address) as stream:
                await stream.send_all(
                    b"GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer dm_live_secret\r\n\r\n"
                )
                with suppress(trio.BrokenResourceError):
                    assert b"HTTP/1.1 200" not in await read_to_end(stream)
    assert broker_log(caplog).count("a TLS handshake") == 1
    assert "http request" in broker_log(caplog)
    assert "secret" not in broker_log(caplog)
    assert "Traceback" not in broker_log(caplog)


async def test_a_client_that_hangs_in_the_handshake_is_ended_in_time_and_holds_up_nobody(
    authority, trust, caplog, monkeypatch
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(broker.transport.server, "HANDSHAKE_SECONDS", 0.2)
    async with serving_tls(authority) as served, await open_socket(served.address) as hanging:
        await hanging.send_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        async with connected(served.address, tls=trust) as client:
            await client.ping()
        with trio.fail_after(60):
            assert not await hanging.receive_some()
    assert "Traceback" not in broker_log(caplog)


async def test_a_client_that_leaves_in_the_handshake_is_no_line_at_all(authority, trust, caplog):
    async with serving_tls(authority) as served:
        (await open_socket(served.address)).socket.close()
        async with connected(served.address, tls=trust) as client:
            await client.ping()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "handshake" not in broker_log(caplog)


async def test_rubbish_amid_a_session_ends_that_client_only(authority, trust, no_errors):
    async with (
        serving_tls(authority) as served,
        connected(served.address, "inbox_ids=in_1", tls=trust) as broken,
        connected(served.address, "inbox_ids=in_1", tls=trust) as client,
    ):
        await broken.stream.transport_stream.send_all(b"\x17\x03\x03\x00\x05rubbish" * 10)
        await until(lambda: len(served.server.connections) == 1)
        await publish(served, 1)
        assert numbers([await client.next()]) == [1]


async def test_a_client_that_stops_reading_costs_a_bounded_remainder_and_is_fed_from_the_log(authority, trust):
    async with (
        serving_tls(authority) as served,
        connected(served.address, "inbox_ids=in_1", tls=trust, receive_buffer_bytes=4_096) as slow,
        connected(served.address, "inbox_ids=in_1", tls=trust) as healthy,
    ):
        for number in range(300):
            await publish(served, number, size=4_000)
            assert numbers([await healthy.next()]) == [number]
        found = served.streams().connections
        behind = found[slow.ready["connection_id"]]
        assert not behind.live
        assert 0 < behind.remainder_bytes < 400_000
        assert found[healthy.ready["connection_id"]].live
        assert [numbers([await slow.next()])[0] for _ in range(300)] == list(range(300))
        await until(lambda: served.connection(slow).session.follower.live)


# --- the end -----------------------------------------------------------------


async def test_the_end_is_said_in_tls_too_so_that_no_answer_can_be_cut_short(authority, trust):
    async with serving_tls(authority) as served:
        stream = trio.SSLStream(await open_socket(served.address), trust, server_hostname="localhost")
        with trio.fail_after(60):
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            # Without `https_compatible` an end that was not said is an error.
            assert b"200 OK" in await read_to_end(stream)
            await stream.aclose()


async def test_a_client_that_ends_without_saying_so_has_ended(authority, trust, no_errors):
    async with serving_tls(authority) as served, connected(served.address, tls=trust) as client:
        await client.stream.transport_stream.send_eof()
        await until(lambda: not served.server.connections)


async def test_the_drain_closes_with_1012_over_tls_after_everything(authority, trust, no_errors):
    async with serving_tls(authority) as served, connected(served.address, "inbox_ids=in_1", tls=trust) as client:
        await publish(served, *range(100), size=2_000)
        served.broker.start_draining()
        frames, closed = await client.rest()
        assert numbers(frames) == list(range(100))
        assert closed.code == CloseCode.RESTART
        await client.say_close(CloseCode.RESTART)
        assert await client.at_end()
        with trio.fail_after(60):
            await served.ended.wait()


# --- what a stream does ------------------------------------------------------


class SealedPair:
    """A `ClientStream` over TLS, and the client's end, which reads only on request."""

    def __init__(self, stream: ClientStream, client: trio.SSLStream) -> None:
        self.stream = stream
        self.client = client

    async def read(self, size: int) -> bytes:
        data = b""
        with trio.fail_after(60):
            while len(data) < size:
                data += await self.client.receive_some(65_536)
        return data


@asynccontextmanager
async def sealed_pair(authority, trust):
    ours, theirs = socket.socketpair()
    settings = authority.sign()
    stream = ClientStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    client = secured(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)), trust)
    async with stream, client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.start_tls, Certificate(settings.tls_certificate, settings.tls_key).context)
            nursery.start_soon(client.do_handshake)
        yield SealedPair(stream, client)


@pytest.mark.parametrize("size", [100, SEALED_BYTES, SEALED_BYTES + 1, 1_000_000])
async def test_what_the_kernel_does_not_take_goes_out_before_the_next_frame(authority, trust, size):
    async with sealed_pair(authority, trust) as pair:
        frame, sent = text_frame(b"x" * size), b""
        while (taken := pair.stream.write_nowait(frame)) == len(frame):
            sent += frame
        if taken:
            sent += frame
            assert pair.stream.statistics().remainder_bytes
        assert pair.stream.write_nowait(frame) == 0
        last = text_frame(b"last")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.stream.send_frames, last)
            assert await pair.read(len(sent + last)) == sent + last
        assert pair.stream.statistics().remainder_bytes == 0
        assert pair.stream.write_nowait(last) == len(last)
        assert await pair.read(len(last)) == last


async def test_a_write_that_was_cancelled_is_ended_by_the_next_writer(authority, trust):
    async with sealed_pair(authority, trust) as pair:
        first, last = text_frame(b"x" * 2_000_000), text_frame(b"last")
        with trio.move_on_after(0.05):
            await pair.stream.send_frames(first)
        assert pair.stream.statistics().remainder_bytes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.stream.send_frames, last)
            assert await pair.read(len(first + last)) == first + last


async def test_a_read_takes_no_more_than_it_was_asked_for_and_loses_nothing(authority, trust):
    async with sealed_pair(authority, trust) as pair:
        sent = bytes(range(256)) * 100
        await pair.client.send_all(sent)
        received = b""
        while len(received) < len(sent):
            part = await pair.stream.receive_some(1_000)
            assert len(part) <= 1_000
            received += part
        assert received == sent


def test_a_session_that_is_asked_for_answers_and_given_no_chance_to_write_them_is_bounded(authority):
    settings = authority.sign()
    session = TlsSession(Certificate(settings.tls_certificate, settings.tls_key).context)
    session._outgoing.write(b"x" * 20_000)
    session.feed(b"\x16\x03\x01")
    with pytest.raises(broker.transport.tls.BadTlsError):
        session.open(100)


# --- its files ---------------------------------------------------------------


async def test_a_certificate_that_is_loaded_again_is_for_new_connections_only(authority, trust, tmp_path):
    settings = Authority(tmp_path).sign()
    async with serving(configured(server=settings)) as served:
        old_trust = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        async with connected(served.address, "inbox_ids=in_1", tls=old_trust) as old:
            new = authority.sign("new")
            for name in ("tls_certificate", "tls_key"):
                shutil.copy(getattr(new, name), getattr(settings, name))
            served.server._certificate.reload()
            async with connected(served.address, tls=trust) as client:
                await client.ping()
            await publish(served, 1)
            assert numbers([await old.next()]) == [1]


async def test_files_that_do_not_load_again_leave_the_old_certificate(tmp_path):
    authority = Authority(tmp_path)
    settings = authority.sign()
    async with serving(configured(server=settings)) as served:
        (tmp_path / "server.pem").write_text("rubbish")
        with pytest.raises(ConfigError, match=r"server\.pem"):
            served.server._certificate.reload()
        async with connected(served.address, tls=authority.trust()) as client:
            await client.ping()


def broken_files(folder):
    """Settings with a fault, and what their error has to say."""
    authority = Authority(folder)
    good, other = authority.sign("good"), authority.sign("other")
    certificate, key = good.tls_certificate, good.tls_key
    rubbish = folder / "rubbish.pem"
    rubbish.write_text("-----BEGIN NOTHING-----\nc2VjcmV0c2VjcmV0\n")
    locked = folder / "locked.key"
    locked.write_text(LOCKED_KEY)
    missing = str(folder / "missing.pem")
    return [
        (missing, key, ["`server.tls_certificate`", missing, "No such file"]),
        (certificate, missing, ["`server.tls_key`", missing, "No such file"]),
        (certificate, str(folder), ["`server.tls_key`", str(folder)]),
        (str(rubbish), key, ["`server.tls_certificate`", str(rubbish), "no certificate"]),
        (key, key, ["`server.tls_certificate`", "no certificate"]),
        (certificate, str(rubbish), ["`server.tls_key`", str(rubbish), "no key"]),
        (certificate, other.tls_key, ["`server.tls_key`", other.tls_key, "not the certificate's"]),
        (certificate, str(locked), ["`server.tls_key`", str(locked), "encrypted"]),
    ]


LOCKED_KEY = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAjGYsc1E4gRyQICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEIIS199+3/QFU9BNjea1134EgZA8
MUkVlnTG+hzvOsnuZx7fQ2FiTCeQW3QJatlQYwHxdoMYY4yJwxlPpYKFIVoRNsX9
7H6ip+PBnSYjsoQtoHX0Zr4zOH/dPXlxxnZ73myNrSIlU4OmzheF/7yZv2rzRkTx
Eti0SE7YhgjA3lOnssIURGP1Ybf2pCOjnEG8DxoaTZTSTWHpxHQdN0B3kL7UBG8=
-----END ENCRYPTED PRIVATE KEY-----
"""


def test_a_file_that_cannot_be_used_is_named_with_the_reason_and_no_word_of_the_key(tmp_path):
    for certificate, key, said in broken_files(tmp_path):
        with pytest.raises(ConfigError) as caught:
            Certificate(certificate, key)
        for words in said:
            assert words in str(caught.value)
        assert "c2VjcmV0" not in str(caught.value)
        assert "BEGIN" not in str(caught.value)


async def test_a_socket_file_stays_plain_beside_tls(authority, tmp_path):
    path = str(tmp_path / "broker.sock")
    signed = authority.sign()
    settings = ServerConfig(unix=path, tls_certificate=signed.tls_certificate, tls_key=signed.tls_key)
    async with serving(configured(server=settings, limits=LimitsConfig())):
        stream = await trio.open_unix_socket(path)
        async with stream:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with trio.fail_after(60):
                assert b"200 OK" in await read_to_end(stream)
