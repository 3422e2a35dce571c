"""What a request says by its headers and its query."""

from urllib.parse import quote_from_bytes, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import RequestError
from broker.transport.request import MAX_QUERY_NAMES, Request


def test_a_header_that_stands_twice_has_no_value():
    request = Request("GET", "/", headers=[(b"authorization", b"a"), (b"authorization", b"b"), (b"x", b"y")])
    assert (request.header(b"x"), request.header(b"none")) == (b"y", None)
    with pytest.raises(RequestError, match="authorization") as caught:
        request.header(b"authorization")
    assert caught.value.code == "bad_request"


def test_nothing_secret_is_shown():
    request = Request("GET", "/", "key=dm_live_a", [(b"authorization", b"Bearer dm_live_b")])
    request.query()
    assert "dm_live" not in repr(request)


def test_a_query_is_percent_decoded_and_plus_stays_plus():
    request = Request("GET", "/", "a=1+2&b=%C3%A4%26&c=&d&&e=x=y")
    assert request.query() == {"a": "1+2", "b": "ä&", "c": "", "d": "", "e": "x=y"}
    assert request.query() is request.query()


@pytest.mark.parametrize("query", ["a=1&a=1", "a=%FF", "%61=1&a=2", "a%FF=1", "a=%ED%A0%80"])
def test_a_query_name_twice_or_not_utf8_is_refused_by_name(query):
    with pytest.raises(RequestError, match=r"'a") as caught:
        Request("GET", "/", query).query()
    assert caught.value.code == "bad_request"


def test_the_names_of_a_query_are_counted_before_it_is_parsed():
    names = [f"n{number}=%FF" for number in range(MAX_QUERY_NAMES + 1)]
    with pytest.raises(RequestError, match="100 names"):
        Request("GET", "/", "&".join(names)).query()
    with pytest.raises(RequestError, match="'n0' is not UTF-8"):
        Request("GET", "/", "&".join(names[:-1])).query()
    with pytest.raises(RequestError, match="100 names"):
        Request("GET", "/", "&" * 8_000).query()


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), max_size=6), st.data())
def test_whatever_is_percent_encoded_comes_out_again(fields, data):
    def encoded(text: str) -> str:
        return quote_from_bytes(text.encode(), safe=data.draw(st.sampled_from(["", "+", "/:@"])))

    query = "&".join(f"{encoded(name)}={encoded(value)}" for name, value in fields.items())
    assert Request("GET", "/", query).query() == fields


@given(st.text(st.sampled_from("ab&=%+;é"), max_size=12) | st.text(st.characters(codec="ascii", min_codepoint=33)))
def test_a_query_is_what_its_decoded_pairs_are_or_refused(query):
    pairs = [tuple(map(unquote_to_bytes, pair.partition("=")[::2])) for pair in query.split("&") if pair]
    names = [name for name, _ in pairs]
    try:
        expected = {name.decode(): value.decode() for name, value in pairs}
    except UnicodeDecodeError:
        expected = None
    if expected is None or len(set(names)) < len(names) or query.count("&") >= MAX_QUERY_NAMES:
        with pytest.raises(RequestError):
            Request("GET", "/", query).query()
    else:
        assert Request("GET", "/", query).query() == expected
