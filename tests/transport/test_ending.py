"""Why a connection ends, and what its client is told."""

import pytest

from broker import CloseCode
from broker.transport.ending import closed_by_broker, closed_by_client


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4409, 4999])
@pytest.mark.parametrize("reason", [b"", "zu spät".encode()])
def test_what_a_client_may_close_with_is_echoed(code, reason):
    payload = code.to_bytes(2) + reason
    ending = closed_by_client(payload)
    assert ending.close == payload
    assert ending.said == f"closed by the client with {code}"


def test_a_close_without_a_code_is_answered_with_one_without():
    assert closed_by_client(b"").close == b""
    assert closed_by_client(b"").said == "closed by the client without a code"


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_a_code_that_may_not_be_sent_is_broken_framing(code):
    ending = closed_by_client(code.to_bytes(2) + b"bye")
    assert ending.close is not None
    assert ending.close[:2] == CloseCode.PROTOCOL_ERROR.to_bytes(2)


def test_half_a_code_is_broken_framing_and_a_reason_must_be_utf_8():
    for payload, code in ((b"\x03", CloseCode.PROTOCOL_ERROR), (b"\x03\xe8\xff", CloseCode.NOT_UTF8)):
        ending = closed_by_client(payload)
        assert ending.close is not None
        assert ending.close[:2] == code.to_bytes(2)
        assert ending.said.startswith(f"closed by the broker with {code}")


def test_what_the_broker_says_fits_into_a_close_and_into_the_log():
    ending = closed_by_broker(CloseCode.TOO_BIG, "x" * 200)
    assert ending.close == CloseCode.TOO_BIG.to_bytes(2) + b"x" * 123
    assert ending.said.startswith("closed by the broker with 1009: xxx")
