"""Which addresses an account may let the broker connect to."""

from ipaddress import ip_address

import pytest

from broker.webhooks.guard import Guard, address_of

REFUSED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",  # a cloud's metadata
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",  # the clouds' metadata
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.9",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "224.0.1.1",  # multicast, global by the standard library
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",  # 127.0.0.1 behind NAT64, global by the standard library
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",  # 127.0.0.1 by 6to4
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # a cloud's metadata
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", REFUSED)
def test_what_is_not_public_is_refused(address):
    assert not Guard().permits(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_permitted(address):
    assert Guard().permits(ip_address(address))


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00::5"])
def test_an_operator_may_allow_networks_of_his_own(address):
    guard = Guard(["10.1.0.0/16", "fd00::/8"])
    assert guard.permits(ip_address(address))
    assert not guard.permits(ip_address("10.2.0.1"))
    assert not guard.permits(ip_address("127.0.0.1"))


@pytest.mark.parametrize("address", ["168.63.129.16", "::ffff:168.63.129.16", "64:ff9b::a83f:8110", "10.0.0.1"])
def test_what_is_denied_is_refused_be_it_public_or_allowed(address):
    guard = Guard(["10.0.0.0/8"], ["168.63.129.16/32", "10.0.0.0/24"])
    assert not guard.permits(ip_address(address))
    assert guard.permits(ip_address("10.0.1.1"))
    assert guard.permits(ip_address("168.63.129.17"))


def test_a_network_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"10\.0\.0"):
        Guard(["10.0.0.1/8"])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("127.1", None),
        ("0x7f000001", None),
        ("2130706433", None),
        ("0177.0.0.1", None),
        ("hooks.example.com", None),
        ("", None),
    ],
)
def test_an_address_in_the_usual_spelling_is_known_as_one(text, address):
    assert address_of(text) == (None if address is None else ip_address(address))
