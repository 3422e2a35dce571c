"""Who asks, where proxies stand before the broker: what trusted ones wrote, and nothing that anybody else did."""

import logging

import pytest
import trio
from clients import OPERATOR, ask, broker_log, configured, connected, read_to_end, serving
from hypothesis import given
from hypothesis import strategies as st

from broker import ServerConfig
from broker.transport.proxies import MOST_PROXIES, TrustedProxies
from broker.transport.request import Request

PROXIES = TrustedProxies(["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"])
PROXY = "10.0.0.1"


def remote(*headers: tuple[str, str], peer: str | None = PROXY, by_socket_file: bool = False) -> str | None:
    lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    request = Request("GET", "/", headers=lines, remote=peer)
    return PROXIES.remote_of(request, by_socket_file=by_socket_file)


def forwarded_for(value: str, **options) -> str | None:
    return remote(("X-Forwarded-For", value), **options)


def forwarded(value: str, **options) -> str | None:
    return remote(("Forwarded", value), **options)


@pytest.mark.parametrize("peer", ["198.51.100.1", "192.0.2.8", "2001:db9::1", None])
def test_nobody_elses_headers_are_looked_at(peer):
    assert forwarded_for("203.0.113.5", peer=peer) == peer
    assert forwarded("for=203.0.113.5", peer=peer) == peer


@pytest.mark.parametrize("peer", [PROXY, "192.0.2.7", "2001:db8::99"])
def test_a_trusted_proxy_says_who_asks(peer):
    assert forwarded_for("203.0.113.5", peer=peer) == "203.0.113.5"
    assert forwarded("for=203.0.113.5;proto=https", peer=peer) == "203.0.113.5"


def test_who_comes_by_a_socket_file_is_trusted():
    assert forwarded_for("203.0.113.5", peer=None, by_socket_file=True) == "203.0.113.5"
    assert remote(peer=None, by_socket_file=True) is None


def test_without_a_header_it_is_the_proxy():
    assert remote() == PROXY


def test_it_is_the_rightmost_address_that_is_not_trusted_whatever_stands_left_of_it():
    assert forwarded_for("1.1.1.1, 203.0.113.5, 10.9.9.9, 192.0.2.7") == "203.0.113.5"
    assert forwarded("for=1.1.1.1, for=203.0.113.5, for=10.9.9.9") == "203.0.113.5"
    assert remote(("X-Forwarded-For", "1.1.1.1"), ("X-Forwarded-For", "203.0.113.5, 10.0.0.2")) == "203.0.113.5"


def test_where_all_are_trusted_it_is_the_one_furthest_away():
    assert forwarded_for("10.0.0.3, 10.0.0.2") == "10.0.0.3"


@pytest.mark.parametrize(
    ("node", "address"),
    [
        ("203.0.113.5:4711", "203.0.113.5"),
        ('"203.0.113.5:4711"', "203.0.113.5"),
        ('"[2001:db9::5]:4711"', "2001:db9::5"),
        ('"[2001:db9::5]"', "2001:db9::5"),
        ('"[::ffff:203.0.113.5]"', "203.0.113.5"),
        ("unknown", PROXY),
        ("_hidden", PROXY),
        ('"[2001:db9::5%eth0]"', PROXY),
        ("203.0.113.500", PROXY),
        ("", PROXY),
    ],
)
def test_an_address_is_read_in_each_of_its_forms_and_what_is_none_is_not_taken(node, address):
    assert forwarded(f"by=203.0.113.60; FOR={node} ;proto=http") == address
    assert forwarded_for(node.strip('"')) == address


@pytest.mark.parametrize("left_open", ['for="', 'for="\\', 'for=1.1.1.1;x="a', ";;;=", "for"])
def test_what_a_client_writes_swallows_nothing_of_what_the_proxy_adds(left_open):
    assert forwarded(f"{left_open}, for=203.0.113.5") == "203.0.113.5"


def test_two_addresses_in_one_element_are_none():
    assert forwarded("for=1.1.1.1;for=203.0.113.5") == PROXY


def test_a_second_header_that_says_something_else_makes_nobody_another():
    both = [("X-Forwarded-For", "203.0.113.5"), ("Forwarded", "for=1.1.1.1")]
    assert remote(*both) == PROXY
    assert remote(both[0], ("Forwarded", "for=203.0.113.5")) == "203.0.113.5"


def test_no_more_addresses_are_looked_at_than_there_are_proxies_anywhere():
    assert forwarded_for(", ".join(["203.0.113.5"] + ["10.0.0.2"] * (MOST_PROXIES - 1))) == "203.0.113.5"
    assert forwarded_for(", ".join(["203.0.113.5"] + ["10.0.0.2"] * MOST_PROXIES)) == "10.0.0.2"


@given(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=60))
def test_whatever_a_client_sends_the_proxys_own_word_counts(sent):
    assert forwarded_for(f"{sent}, 203.0.113.5") == "203.0.113.5"
    assert forwarded(f"{sent}, for=203.0.113.5") == "203.0.113.5"


def says_tls(*headers: tuple[str, str], peer: str | None = PROXY, by_socket_file: bool = False, by_tls: bool = False):
    lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return PROXIES.says_tls(
        Request("GET", "/", headers=lines, remote=peer), by_socket_file=by_socket_file, by_tls=by_tls
    )


@pytest.mark.parametrize(
    ("headers", "by_tls"),
    [
        ((("X-Forwarded-Proto", "https"),), True),
        ((("X-Forwarded-Proto", "WSS"),), True),
        ((("X-Forwarded-Proto", "https, http"),), True),
        ((("Forwarded", "for=203.0.113.5;proto=https"),), True),
        ((("X-Forwarded-Proto", "http"), ("Forwarded", "for=203.0.113.5;proto=http")), False),
        ((("X-Forwarded-Proto", "httpss"),), False),
        ((("Forwarded", "proto=https;proto=http"),), False),
        ((), False),
    ],
)
def test_a_trusted_proxy_says_who_came_by_tls_and_nobody_else_does(headers, by_tls):
    assert says_tls(*headers) is by_tls
    assert says_tls(*headers, peer=None, by_socket_file=True) is by_tls
    assert not says_tls(*headers, peer="198.51.100.1")


def test_who_came_by_tls_to_the_broker_itself_did_but_a_proxy_may_have_clients_that_did_not():
    assert says_tls(peer="198.51.100.1", by_tls=True)
    assert not says_tls(by_tls=True)


# --- over sockets ------------------------------------------------------------

HEADER = ("X-Forwarded-For", "203.0.113.5")


async def remotes(served) -> list[str | None]:
    """The addresses of all connections, as an operator is told of them."""
    answer = await ask(served.address, "GET", "/v1/connections", key=OPERATOR)
    return [connection["remote"] for connection in answer.result["connections"]]


def behind(*networks: str, **fields):
    return configured(server=ServerConfig(trusted_proxies=networks, **fields))


async def test_a_refusal_and_a_connection_are_of_the_address_that_a_trusted_proxy_names(caplog):
    caplog.set_level(logging.INFO)
    async with serving(behind("127.0.0.0/8")) as served:
        await ask(served.address, "GET", "/v1/events", HEADER, key="dm_live_nobody")
        assert "203.0.113.5" in broker_log(caplog)
        async with connected(served.address, "", HEADER):
            assert await remotes(served) == ["203.0.113.5"]


async def test_a_refusal_and_a_connection_are_of_the_peer_where_it_is_no_trusted_proxy(caplog):
    caplog.set_level(logging.INFO)
    async with serving(behind("10.0.0.0/8")) as served:
        await ask(served.address, "GET", "/v1/events", HEADER, key="dm_live_nobody")
        assert "203.0.113.5" not in broker_log(caplog)
        async with connected(served.address, "", HEADER):
            assert await remotes(served) == ["127.0.0.1"]


async def test_a_proxy_at_the_socket_file_names_who_asks(caplog, tmp_path):
    caplog.set_level(logging.INFO)
    path = str(tmp_path / "broker.sock")
    async with serving(behind(unix=path)), await trio.open_unix_socket(path) as stream:
        await stream.send_all(
            b"GET /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: 203.0.113.5\r\n\r\n"
        )
        with trio.fail_after(60):
            assert b" 401 " in await read_to_end(stream)
    assert "203.0.113.5" in broker_log(caplog)
