"""What any bytes may do to what reads a client's bytes: refused with a reason, or understood; nothing else.

Each target takes any bytes. It raises what is a fault of the broker: an exception that is no refusal, or two readings
of the same bytes. `looking` lets atheris look for such bytes, led by which lines of the broker they reach.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from clients import ACCOUNT, ALICE
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Message, Ping

from broker import LimitsConfig
from broker.access.keys import Key, credential_of, digest_of
from broker.access.opening import check_opening
from broker.access.tokens import Tokens
from broker.commands.requests import check_command
from broker.errors import RequestError
from broker.protocol.decoding import BadCommandError, BadFrameError, decode_command, decode_params, decode_struct, sound
from broker.protocol.events import prepare_event, split_events
from broker.protocol.messages import AckParams, HoldParams, SubscribeParams, TokenRequest
from broker.transport.pacing import FrameScanner
from broker.transport.parsing import HeadParser, body_of
from broker.transport.upgrade import check_upgrade, offered_subprotocols

LIMITS = LimitsConfig()
KEY = Key("key_fuzzed", ACCOUNT, frozenset({"subscribe", "command", "publish"}), sha256=digest_of(ALICE))
TOKENS = Tokens("a secret of more than thirty-two characters", 60)
NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
MAX_HEAD_BYTES = 16_384


def _head_of(data: bytes, cut: int) -> object:
    """What a head is read as, if it comes in pieces of so many bytes; 0: in one."""
    parser, waiting = HeadParser(MAX_HEAD_BYTES), bytearray()
    request = None
    try:
        for start in range(0, len(data), cut or len(data) or 1):
            waiting += data[start : start + (cut or len(data))]
            if request is None:
                request = parser.take(waiting)
    except RequestError:
        return "refused"  # for what is wrong in that part of a line that has come
    if request is None:
        return None
    headers = [(name, value) for name, value in request.headers]
    return request.method, request.path, request.query_string, headers, request.body_bytes, bytes(waiting)


def request_head(data: bytes) -> None:
    """A request's head, and all that is done with it before somebody is known."""
    whole = _head_of(data, 0)
    if len(data) < 400:
        assert whole == _head_of(data, 1) == _head_of(data, 7), "the same bytes are read in two ways"
    parser, waiting = HeadParser(MAX_HEAD_BYTES), bytearray(data)
    try:
        request = parser.take(waiting)
        if request is None:
            return
        assert "\r" not in request.path + request.query_string
        assert "\n" not in request.path + request.query_string
        assert not [value for _, value in request.headers if b"\r" in value or b"\n" in value or b"\0" in value]
        body = body_of(request, MAX_HEAD_BYTES)
        while body.take(waiting) is not None:
            pass
    except RequestError:
        return
    for step in (
        lambda: check_upgrade(request),
        lambda: check_opening(KEY, request.query(), LIMITS),
        lambda: credential_of(None, request.query(), offered_subprotocols(request)),
    ):
        try:
            said = step()
        except RequestError as error:
            json.dumps(error.as_json())
        else:
            if isinstance(said, bytes):
                assert said.count(b"\r\n\r\n") == 1, "a head of two requests"
                assert said.endswith(b"\r\n\r\n")


def command(data: bytes) -> None:
    """A text frame: a command, checked and decoded as each of those that the broker does itself."""
    try:
        text = data.decode()
        decoded = decode_command(text)
    except (UnicodeDecodeError, BadFrameError, BadCommandError):
        return
    for params in (SubscribeParams, AckParams, HoldParams):
        try:
            decode_params(decoded, params)
        except RequestError as error:
            json.dumps(error.as_json())
    try:
        proved = sound(decoded)
        check_command(KEY, proved, "r")
    except RequestError:
        return
    params = {name: raw for name, raw in proved.params.items() if proved.paths[name] != "$.traceparent"}
    for raw in params.values():
        json.loads(bytes(raw))  # it is handed on as it is
    again = {"action": proved.action, "request_id": proved.request_id, "params": params}
    second = sound(decode_command(msgspec.json.encode(again).decode()))
    if proved.request_id is not None:
        assert second.proof == proved.proof, "the same command has two contents"


def publish(data: bytes) -> None:
    """The body of a publish: what comes through is one line of strict JSON."""
    for ndjson in (False, True):
        try:
            for found in split_events(data, ndjson=ndjson, max_events=100, max_bytes=65_536):
                if found is None:
                    continue
                path, proved = found
                event = prepare_event(proved, path, now="2026-11-23T10:00:00.000Z", new_id=lambda: "evt_x")
                assert isinstance(json.loads(event.payload), dict)
                assert b"\n" not in event.payload
                assert b"\r" not in event.payload
        except RequestError as error:
            json.dumps(error.as_json())


def token(data: bytes) -> None:
    """A connection token: only what was issued is read, whatever is done to it; and what is asked of a new one."""
    issued = TOKENS.issue(KEY, TokenRequest(inbox_ids=["in_1"]), NOW).token
    text = data.decode("latin-1")
    place = data[0] % len(issued) if data else 0
    for tried in (text, "wst_" + text, issued[:place] + text[1:] + issued[place + len(text[1:]) :], issued + text):
        try:
            TOKENS.read(tried, NOW)
        except RequestError:
            continue
        assert tried == issued, "a token that was not issued is taken"
    try:
        asked = decode_struct(data, TokenRequest)
        made = TOKENS.issue(KEY, asked, NOW).token
    except (RequestError, UnicodeDecodeError):
        return
    claims = TOKENS.read(made, NOW)
    assert KEY.narrowed(claims.narrowing).scopes <= KEY.scopes


def _heard(data: bytes, cut: int) -> tuple[list[object], object]:
    """The messages and pings in a client's frames that come in pieces of so many bytes, and what ends them."""
    scanner, websocket = FrameScanner(1_000), Connection(ConnectionType.SERVER)
    heard: list[object] = []
    part: str | bytes = ""
    for start in range(0, len(data), cut):
        scanner.feed(data[start : start + cut], 0.0)
        while piece := scanner.next_piece():
            websocket.receive_data(piece)
            for said in websocket.events():
                if isinstance(said, CloseConnection):
                    return heard, said.code  # broken framing, by wsproto
                if isinstance(said, Ping):
                    heard.append((Ping, bytes(said.payload)))
                elif isinstance(said, Message):
                    part = said.data if not part else part + said.data
                    if said.message_finished:
                        heard.append(part)
                        part = ""
        if scanner.too_much is not None:
            return heard, scanner.too_much.close_code
        if scanner.close is not None:
            return heard, scanner.close
    return heard, None


def frames(data: bytes) -> None:
    """A client's frames: it is heard as it spoke, however what it sent was cut."""
    whole = _heard(data, len(data) or 1)
    assert whole == _heard(data, 1) == _heard(data, 3), "the same frames are read in two ways"


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (request_head, command, publish, token, frames)
}
CORPUS = Path(__file__).with_name("corpus")


def corpus_of(target: str) -> list[bytes]:
    """The bytes that are kept of a target: those that something was learned by."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
