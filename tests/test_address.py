"""address.py: where a Valkey is, as a URL says it."""

import pytest

from broker.address import Address, parse_address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://127.0.0.1", Address("127.0.0.1")),
        ("valkey://valkey.internal:7000/3", Address("valkey.internal", 7000, database=3)),
        ("rediss://u:p%40ss@h:1/0", Address("h", 1, username="u", password="p@ss", tls=True)),
        ("redis://:secret@[::1]:6380/", Address("::1", 6380, password="secret")),
        ("unix:///run/valkey.sock", Address(path="/run/valkey.sock")),
        ("unix:///run/val%20key.sock?db=2", Address(path="/run/val key.sock", database=2)),
    ],
)
def test_a_url_says_where_it_is(url, address):
    assert parse_address(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "", "redis://", "http://127.0.0.1", "redis://h:65536", "redis://h:x", "redis://h/x", "redis://h/1/2", "redis://h/1e9",
        "redis://h?db=1", "unix://run/valkey.sock", "unix://", "unix:///s?db=-1", "127.0.0.1:6379",
    ],
)  # fmt: skip
def test_what_is_no_such_url_is_refused_without_being_told(url):
    with pytest.raises(ValueError, match="Expected") as refused:
        parse_address(url)
    assert len(url) < 10 or url not in str(refused.value)


def test_an_address_never_tells_its_password():
    address = parse_address("redis://user:hunter2@[::1]:6380/4")
    assert (str(address), repr(address)) == ("[::1]:6380, database 4",) * 2
