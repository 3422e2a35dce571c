"""Web pages: whose may connect, and what a browser must be told so that it lets them."""

import pytest
from clients import ACCOUNT, ALICE, ask, configured, connected, opening, post_events, serving

from broker import BrowsersConfig, ConfigError, RequestError
from broker.config import parse_config

PAGE = "https://app.example"
OF_THE_PAGE = ("Origin", PAGE)
OF_ANOTHER = ("Origin", "https://evil.example")
LISTED = configured(browsers=BrowsersConfig(origins=(PAGE, "http://localhost:3000")))


@pytest.mark.parametrize("path", ["/healthz", "/v1/stream", "/v1/events", "/nowhere"])
@pytest.mark.parametrize("origin", [PAGE, "null", ""])
async def test_without_the_section_no_page_may_connect(path, origin):
    async with serving() as served:
        answer = await ask(served.address, "GET", path, ("Origin", origin), key=ALICE)
    assert (answer.status, answer.code) == (403, "forbidden")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", ["https://evil.example", "http://app.example", "https://app.example:8443", "null"])
async def test_a_page_of_an_origin_that_is_not_listed_may_not_connect(origin):
    async with serving(LISTED) as served:
        answer = await opening(served.address, "", ("Origin", origin), ("Connection", "Upgrade, close"))
    assert (answer.status, answer.code) == (403, "forbidden")
    assert "origins" in answer.message


async def test_who_names_no_origin_is_no_browser_and_connects():
    async with serving() as served, connected(served.address) as client:
        assert client.ready["account_id"] == ACCOUNT


async def test_a_listed_page_opens_a_stream():
    async with serving(LISTED) as served, connected(served.address, "", OF_THE_PAGE) as client:
        assert client.ready["account_id"] == ACCOUNT


async def test_a_listed_page_may_read_every_answer_refusals_too():
    async with serving(LISTED) as served:
        published = await post_events(served.address, {"type": "a.b", "payload": {}}, OF_THE_PAGE)
        refused = await post_events(served.address, b"[", OF_THE_PAGE)
        unknown = await ask(served.address, "GET", "/nowhere", OF_THE_PAGE)
    assert [published.status, refused.status, unknown.status] == [200, 400, 404]
    for answer in (published, refused, unknown):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"] == "Origin"
        assert answer.headers["access-control-expose-headers"] == "Retry-After"


async def test_a_preflight_of_a_listed_page_is_told_what_it_may_send():
    async with serving(LISTED) as served:
        asks = ("Access-Control-Request-Method", "POST")
        answer = await ask(served.address, "OPTIONS", "/v1/events", OF_THE_PAGE, asks)
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"].split(", ")
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "content-type", "last-event-id"} <= set(allowed)
    assert int(answer.headers["access-control-max-age"]) > 0


async def test_a_preflight_of_another_page_is_refused():
    async with serving(LISTED) as served:
        asks = ("Access-Control-Request-Method", "POST")
        answer = await ask(served.address, "OPTIONS", "/v1/events", OF_ANOTHER, asks)
    assert answer.status == 403
    assert "access-control-allow-methods" not in answer.headers


async def test_an_options_that_is_no_preflight_is_told_nothing_of_pages():
    async with serving(LISTED) as served:
        answer = await ask(served.address, "OPTIONS", "/v1/events")
    assert answer.status == 204
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_reload_lets_another_page_in():
    async with serving() as served:
        assert (await ask(served.address, "GET", "/healthz", OF_THE_PAGE)).status == 403
        assert served.broker.reload(LISTED) == []
        assert (await ask(served.address, "GET", "/healthz", OF_THE_PAGE)).status == 200


def test_the_same_refusal_raised_twice_is_not_told_more_each_time():
    error = RequestError("forbidden", "no", headers=(("A", "1"),))
    assert error.with_headers((("B", "2"),)).headers == (("A", "1"), ("B", "2"))
    assert error.headers == (("A", "1"),)


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://app.example/page", "*", "null", ""])
def test_what_is_no_origin_is_refused_by_name(origin):
    with pytest.raises(ConfigError, match=r"browsers\.origins"):
        parse_config(f'[browsers]\norigins = ["{origin}"]', {})


def test_origins_may_come_from_the_environment():
    config = parse_config("", {"BROKER_BROWSERS__ORIGINS": "https://a.example, http://localhost:3000"})
    assert config.browsers.origins == ("https://a.example", "http://localhost:3000")
