"""The wire as its standards have it: what clients and proxies really send, through a raw socket, on the real server."""

import gzip
import json
import re

import pytest
import trio
from clients import (
    ALICE,
    Answer,
    ask,
    bearer,
    configured,
    event,
    open_socket,
    parse_answer,
    post_events,
    read_to_end,
    read_until,
    send_raw,
    serving,
    upgrade_head,
)

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
AUTHORIZED = b"Host: x\r\nAuthorization: Bearer " + ALICE.encode() + b"\r\n"


async def head_of_answer(served, data: bytes) -> Answer:
    """The head of what answers ``data``; the connection may go on."""
    async with await open_socket(served.address) as stream:
        await stream.send_all(data)
        received = await read_until(stream, b"\r\n\r\n")
    return parse_answer(received.partition(b"\r\n\r\n")[0])


async def statuses(served, data: bytes) -> list[int]:
    """The status of each answer to ``data``, which ends the connection."""
    with trio.fail_after(60):
        async with await open_socket(served.address) as stream:
            await stream.send_all(data)
            return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", await read_to_end(stream))]


# --- upgrades ----------------------------------------------------------------

UPGRADES = {
    "in absolute form": upgrade_head().replace(b"GET /", b"GET http://broker.example/"),
    "with Connection on two lines": upgrade_head().replace(b"Connection:", b"Connection: keep-alive\r\nConnection:"),
    "with a list of protocols": upgrade_head("", ("Upgrade", "websocket, h2c")),
    "with a host in punycode": upgrade_head("", ("Host", "xn--strae-oqa.example")),
    "after an empty line": b"\r\n" + upgrade_head(),
    "beside a proxy's credential": upgrade_head(f"key={ALICE}", ("Authorization", "Basic YTpi")),
    "with extensions": upgrade_head("", ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")),
}


@pytest.mark.parametrize("head", UPGRADES.values(), ids=UPGRADES.keys())
async def test_an_upgrade_is_accepted_with_reason_and_date(head, no_errors):
    async with serving() as served:
        async with await open_socket(served.address) as stream:
            await stream.send_all(head)
            received = await read_until(stream, b"connection.ready")
        assert received.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        answer = parse_answer(received.partition(b"\r\n\r\n")[0])
        assert answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert answer.headers["date"].endswith(" GMT")
        assert "sec-websocket-protocol" not in answer.headers


async def test_our_subprotocol_is_chosen_if_it_is_offered_and_no_other():
    for offered, chosen in [("daimon.v1", "daimon.v1"), ("x, daimon.v1", "daimon.v1"), ("x, y", None)]:
        async with serving() as served:
            answer = await head_of_answer(served, upgrade_head("", ("Sec-WebSocket-Protocol", offered)))
            assert (answer.status, answer.headers.get("sec-websocket-protocol")) == (101, chosen)


async def test_a_token_may_be_offered_beside_our_subprotocol_and_is_not_chosen():
    async with serving() as served:
        token = (await ask(served.address, "POST", "/v1/websocket/token", key=ALICE, body=b"")).result["token"]
        offered = f"daimon.v1, bearer.{token}"
        answer = await head_of_answer(served, upgrade_head("", ("Sec-WebSocket-Protocol", offered), key=None))
        assert (answer.status, answer.headers["sec-websocket-protocol"]) == (101, "daimon.v1")
        refused = await head_of_answer(
            served, upgrade_head(f"token={token}", ("Sec-WebSocket-Protocol", offered), key=None)
        )
        assert refused.status == 400


REFUSED = {
    "without a host": upgrade_head().replace(b"Host: broker.example\r\n", b""),
    "with an empty host": upgrade_head("", ("Host", "")),
    "with a host that is none": upgrade_head("", ("Host", "a@b/c")),
    "with two hosts": upgrade_head().replace(b"Host:", b"Host: x\r\nHost:"),
    "with two credentials": upgrade_head().replace(b"Host:", b"Authorization: Bearer x\r\nHost:"),
    "with a length": upgrade_head("", ("Content-Length", "3")) + b"abc",
    "with chunks": upgrade_head("", ("Transfer-Encoding", "chunked")) + b"0\r\n\r\n",
    "without a key": upgrade_head("", ("Sec-WebSocket-Key", "")),
}


@pytest.mark.parametrize("head", REFUSED.values(), ids=REFUSED.keys())
async def test_a_broken_upgrade_is_refused_and_what_follows_is_never_read_as_http(head, no_errors):
    async with serving() as served:
        assert await statuses(served, head + HEALTH) == [400]


async def test_a_refused_upgrade_ends_the_connection_wherever_it_was_asked_for():
    async with serving() as served:
        assert await statuses(served, upgrade_head(key="dm_live_nobody") + HEALTH) == [401]
        assert await statuses(served, upgrade_head().replace(b"/v1/stream", b"/elsewhere") + HEALTH) == [404]
        assert await statuses(served, upgrade_head("", ("Sec-WebSocket-Version", "8")) + HEALTH) == [426]
        # who asks for no WebSocket will not go on in it
        assert await statuses(served, b"GET /v1/stream HTTP/1.1\r\n" + AUTHORIZED + b"\r\n" + LAST) == [426, 200]


# --- requests ----------------------------------------------------------------


async def test_a_proxys_target_in_absolute_form_is_answered():
    async with serving() as served:
        for target in ("http://broker.example/healthz", "HTTP://x:1/healthz?a=b", "https://[::1]/healthz"):
            assert (await ask(served.address, "GET", target)).result == {"status": "ok"}
        published = await ask(
            served.address, "POST", "http://x/v1/events", key=ALICE, body=json.dumps(event(1)).encode()
        )
        assert published.status == 200


async def test_empty_lines_before_a_request_and_after_a_body_are_ignored():
    body = json.dumps(event(1)).encode()
    post = b"POST /v1/events HTTP/1.1\r\n" + AUTHORIZED + b"Content-Length: %d\r\n\r\n" % len(body) + body
    async with serving() as served:
        assert await statuses(served, b"\r\n" + HEALTH + b"\r\n\r\n" + post + b"\r\n" + LAST) == [200, 200, 200]


async def test_every_answer_has_a_date_and_a_reason():
    async with serving() as served:
        for data, status_line in [
            (LAST, b"HTTP/1.1 200 OK"),
            (LAST.replace(b"GET", b"OPTIONS"), b"HTTP/1.1 204 No Content"),
            (b"nonsense\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
            (upgrade_head(key=None), b"HTTP/1.1 401 Unauthorized"),
            (LAST.replace(b"healthz", b"nowhere"), b"HTTP/1.1 404 Not Found"),
            (LAST.replace(b"GET", b"DELETE"), b"HTTP/1.1 405 Method Not Allowed"),
            (b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n", b"HTTP/1.1 505 HTTP Version Not Supported"),
        ]:
            async with await open_socket(served.address) as stream:
                await stream.send_all(data)
                received = await read_to_end(stream)
            assert received.startswith(status_line + b"\r\n")
            assert re.search(rb"\r\nDate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", received)


@pytest.mark.parametrize("coding", ["gzip", "identity, gzip", "x"])
async def test_a_content_coding_is_refused_and_ours_is_named(coding):
    body = gzip.compress(json.dumps(event(1)).encode())
    async with serving() as served:
        answer = await post_events(served.address, body, ("Content-Encoding", coding))
        assert (answer.status, answer.code) == (415, "unsupported_media_type")
        assert answer.headers["accept-encoding"] == "identity"
        assert (await post_events(served.address, event(1), ("Content-Encoding", "Identity"))).status == 200
        # who may not publish is told that first
        refused = await post_events(served.address, body, ("Content-Encoding", coding), key="dm_live_nobody")
        assert refused.status == 401


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9", b"HTTP/3.0"])
async def test_another_version_is_told_so(version):
    async with serving() as served:
        answer = await send_raw(served.address, HEALTH.replace(b"HTTP/1.1", version))
        assert (answer.status, answer.code) == (505, "version_not_supported")


async def test_who_knows_only_http_2_is_told_so():
    async with serving() as served:
        assert (await send_raw(served.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")).status == 505


@pytest.mark.parametrize("host", [b"", b"Host:\r\n", b"Host: a@b/c\r\n", b"Host: a b\r\n", b"Host: x\r\nHost: x\r\n"])
async def test_a_request_needs_one_host_that_is_one(host):
    async with serving() as served:
        assert (await send_raw(served.address, HEALTH.replace(b"Host: x\r\n", host))).status == 400


async def test_http_1_0_is_answered_without_a_host_and_ended():
    async with serving() as served:
        answer = await send_raw(served.address, b"GET /healthz HTTP/1.0\r\n\r\n")
        assert (answer.status, answer.result) == (200, {"status": "ok"})


# --- methods -----------------------------------------------------------------

ALLOWED = {
    "/healthz": "GET, HEAD, OPTIONS",
    "/readyz": "GET, HEAD, OPTIONS",
    "/v1/stream": "GET, OPTIONS",
    "/v1/events": "GET, POST, OPTIONS",
    "/v1/commands": "POST, OPTIONS",
    "/v1/websocket/token": "POST, OPTIONS",
}


@pytest.mark.parametrize(("path", "allowed"), ALLOWED.items())
async def test_a_path_says_which_methods_it_has(path, allowed):
    async with serving() as served:
        options = await ask(served.address, "OPTIONS", path)
        assert (options.status, options.headers["allow"], options.body) == (204, allowed, b"")
        refused = await ask(served.address, "DELETE", path, key=ALICE)
        assert (refused.status, refused.code, refused.headers["allow"]) == (405, "method_not_allowed", allowed)


async def test_options_of_the_whole_server_and_of_nothing():
    async with serving() as served:
        assert (await ask(served.address, "OPTIONS", "*")).status == 204
        assert (await ask(served.address, "OPTIONS", "/nowhere")).status == 404
        assert (await ask(served.address, "GET", "*")).status == 400


async def test_head_is_answered_as_get_is_without_the_body():
    async with serving() as served:
        for path, status in (("/healthz", 200), ("/readyz", 200), ("/nowhere", 404), ("/v1/stream", 405)):
            head = await ask(served.address, "HEAD", path)
            got = await ask(served.address, "HEAD" if status == 405 else "GET", path)
            assert (head.status, head.body) == (status, b"")
            assert head.headers["content-length"] == got.headers["content-length"] != "0"
        # and the connection goes on
        assert await statuses(served, HEALTH.replace(b"GET", b"HEAD") + LAST) == [200, 200]


# --- what two readers might read in two ways ---------------------------------

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
SMUGGLING = {
    "two lengths": b"Content-Length: 0\r\nContent-Length: %d\r\n" % len(SMUGGLED),
    "a length twice": b"Content-Length: 0\r\nContent-Length: 0\r\n",
    "a list of lengths": b"Content-Length: 0, %d\r\n" % len(SMUGGLED),
    "a length beside chunks": b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(SMUGGLED),
    "chunks beside a length": b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n" % len(SMUGGLED),
    "another coding": b"Transfer-Encoding: gzip, chunked\r\n",
    "chunks that are not last": b"Transfer-Encoding: chunked, identity\r\n",
    "a line that goes on": b"X: y\r\n Content-Length: %d\r\n" % len(SMUGGLED),
    "a bare line break": b"X: y\nContent-Length: %d\r\n" % len(SMUGGLED),
    "a space before a colon": b"Content-Length : %d\r\n" % len(SMUGGLED),
    "a length with a sign": b"Content-Length: +%d\r\n" % len(SMUGGLED),
    "a tab in a coding": b"Transfer-Encoding: \x0bchunked\r\n",
}


@pytest.mark.parametrize("lines", SMUGGLING.values(), ids=SMUGGLING.keys())
async def test_what_two_readers_might_read_in_two_ways_is_refused_and_ends_the_connection(lines):
    head = b"POST /v1/events HTTP/1.1\r\n" + AUTHORIZED + lines + b"\r\n"
    async with serving() as served:
        assert await statuses(served, head + SMUGGLED) == [400]
        assert served.broker.statistics().published == 0


BROKEN_CHUNKS = {
    "that are too short": b"5\r\nabc\r\n0\r\n\r\n",
    "that are too long": b"3\r\n[]\r\n0\r\n\r\n",
    "with bare line breaks": b"3\nabc\n0\n\n",
    "with a sign": b"+3\r\nabc\r\n",
    "with an extension": b"3;" + b"e" * 20_000,
    "with trailers": b"0\r\n" + b"T: v\r\n" * 20_000,
}


@pytest.mark.parametrize("chunks", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS.keys())
async def test_broken_or_endless_chunks_are_refused_and_end_the_connection(chunks):
    head = b"POST /v1/events HTTP/1.1\r\n" + AUTHORIZED + b"Transfer-Encoding: chunked\r\n\r\n"
    async with serving() as served:
        assert await statuses(served, head + chunks + SMUGGLED) == [400]


async def test_chunks_with_extensions_and_trailers_are_taken():
    head = b"POST /v1/events HTTP/1.1\r\n" + AUTHORIZED + b"Transfer-Encoding: chunked\r\n\r\n"
    async with serving() as served:
        assert await statuses(served, head + b"1;a=b\r\n[\r\n1\r\n]\r\n0;c\r\nT: v\r\n\r\n" + LAST) == [200, 200]


# --- hostile heads -----------------------------------------------------------


async def test_a_head_of_many_lines_and_a_query_of_many_names_are_refused():
    lines = b"".join(b"a:b\r\n" for _ in range(3_000))
    names = b"&".join(b"n%d=" % number for number in range(2_000))
    async with serving() as served:
        assert (await send_raw(served.address, HEALTH.replace(b"\r\n\r\n", b"\r\n" + lines + b"\r\n"))).status == 431
        answer = await send_raw(served.address, upgrade_head(names.decode()))
        assert (answer.status, answer.code) == (400, "bad_request")
        assert "100 names" in answer.message
        many = b"".join(b"X-%d: y\r\n" % number for number in range(80))
        assert (await send_raw(served.address, LAST.replace(b"\r\n\r\n", b"\r\n" + many + b"\r\n"))).status == 200


async def test_the_client_may_leave_while_its_command_is_done():
    came, left = trio.Event(), trio.Event()
    async with serving(configured()) as served:

        @served.broker.command("work", seconds=600, when_client_leaves="cancel")
        async def work(params, context):
            came.set()
            try:
                await trio.sleep_forever()
            finally:
                left.set()

        with trio.fail_after(60):
            async with await open_socket(served.address) as stream:
                body = b'{"action":"work"}'
                head = b"POST /v1/commands HTTP/1.1\r\n" + AUTHORIZED + b"Content-Length: %d\r\n\r\n" % len(body)
                await stream.send_all(head + body)
                await came.wait()
            await left.wait()


async def test_two_credentials_are_refused_on_every_route():
    async with serving() as served:
        answer = await ask(served.address, "POST", "/v1/commands", bearer(ALICE), bearer(ALICE), body=b"{}")
        assert answer.status == 400
