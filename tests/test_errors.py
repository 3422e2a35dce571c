"""errors.py: every code of the protocol has its status, every close code its answer."""

import pytest

from broker.errors import (
    HTTP_STATUS,
    BadCommandError,
    BadFrameError,
    BrokerClosedError,
    BrokerError,
    CloseCode,
    ConfigError,
    RequestError,
)

SECTION_4 = {
    "bad_request": 400,
    "invalid_json": 400,
    "invalid_params": 400,
    "forbidden": 403,
    "unknown_action": 404,
    "not_found": 404,
    "request_id_reused": 409,
    "too_large": 413,
    "rate_limited": 429,
    "internal": 500,
    "unavailable": 503,
    "draining": 503,
    "timeout": 504,
}
SECTION_2 = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "upgrade_required": 426,
    "connection_limit": 429,
    "draining": 503,
}
SECTION_5 = {
    1000: True,
    1001: True,
    1002: False,
    1007: False,
    1008: False,
    1009: True,
    1011: True,
    1012: True,
    4401: False,
    4408: True,
    4409: False,
}


@pytest.mark.parametrize(("code", "status"), sorted((SECTION_4 | SECTION_2).items()))
def test_every_error_code_of_the_protocol_has_its_http_status(code, status):
    assert RequestError(code, "no").status == status


def test_every_status_is_that_of_an_error():
    assert all(400 <= status < 600 for status in HTTP_STATUS.values())


def test_a_code_of_a_handlers_own_has_the_status_400():
    assert RequestError("no_such_message", "no").status == 400


@pytest.mark.parametrize(("code", "come_back"), SECTION_5.items())
def test_every_close_code_says_whether_to_come_back(code, come_back):
    assert CloseCode(code).come_back is come_back


def test_there_are_no_close_codes_but_those_of_the_protocol():
    assert {int(code) for code in CloseCode} == set(SECTION_5)


def test_an_error_as_json_is_code_and_message():
    assert RequestError("forbidden", "not yours").as_json() == {"code": "forbidden", "message": "not yours"}


@pytest.mark.parametrize("wait", [0, 1500])
def test_an_error_as_json_says_when_to_come_back_if_it_is_known(wait):
    error = RequestError("rate_limited", "slowly", retry_after_ms=wait)
    assert error.as_json() == {"code": "rate_limited", "message": "slowly", "retry_after_ms": wait}


def test_headers_of_an_error_stay_out_of_its_json():
    error = RequestError("unauthorized", "who?", headers=(("WWW-Authenticate", "Bearer"),))
    assert error.headers == (("WWW-Authenticate", "Bearer"),)
    assert error.as_json() == {"code": "unauthorized", "message": "who?"}


def test_an_error_without_more_has_no_headers_and_no_time():
    error = RequestError("internal", "sorry")
    assert error.headers == ()
    assert error.retry_after_ms is None


def test_an_error_as_text_names_its_code_and_message():
    assert str(RequestError("not_found", "no such inbox")) == "not_found: no such inbox"


def test_a_bad_frame_carries_the_answer_and_reads_like_it():
    answer = RequestError("invalid_json", "no")
    error = BadFrameError(answer)
    assert error.error is answer
    assert str(error) == "invalid_json: no"


def test_a_bad_command_carries_the_answer_and_what_ties_it_to_its_question():
    answer = RequestError("invalid_params", "no")
    error = BadCommandError("subscribe", "r1", answer)
    assert (error.action, error.request_id, error.error) == ("subscribe", "r1", answer)
    assert str(error) == "invalid_params: no"


@pytest.mark.parametrize("kind", [ConfigError, RequestError, BadFrameError, BadCommandError, BrokerClosedError])
def test_one_except_clause_catches_every_error_of_the_broker(kind):
    assert issubclass(kind, BrokerError)


def test_a_bad_frame_and_a_refused_request_are_told_apart():
    assert not issubclass(BadFrameError, RequestError)
    assert not issubclass(BadCommandError, BadFrameError)
    assert not issubclass(BadCommandError, RequestError)
