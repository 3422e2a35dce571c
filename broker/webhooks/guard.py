"""Which addresses the broker connects to for an account: not those of its own network.

Pure. An endpoint's URL is its account's choice, and the broker stands where that account does not: beside the
operator's databases and the cloud's metadata service. So what a name resolves to is judged, address by address, and
what was judged is what is connected to. Public is what IANA's special-purpose registries (RFC 6890) leave over;
``is_global`` of the standard library alone takes multicast, 6to4 and translated loopback for public.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NOT_PUBLIC: Final = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by a carrier's customers; a cloud's metadata
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; the clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",  # with the broadcast address
        "2001::/23",  # Teredo, ORCHID and other assignments of the protocol
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
"""All that IANA gives out of IPv6 (RFC 4291 section 2.4): loopback, private, link-local and multicast lie outside."""
_TRANSLATED: Final = IPv6Network("64:ff9b::/96")
"""An IPv4 address behind NAT64 (RFC 6052)."""


class Guard:
    """Says which addresses may be connected to.

    ``allow`` names networks that may be, though they are not public; ``deny`` those that may not, whatever else is
    said. Networks are written `10.0.0.0/8`; of one that is not, ValueError is raised.
    """

    def __init__(self, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self._allow = tuple(map(ip_network, allow))
        self._deny = tuple(map(ip_network, deny))

    def permits(self, address: Address) -> bool:
        """Whether the address may be connected to; one that stands for an IPv4 address is as good as that."""
        forms = tuple(_forms(address))
        if any(_within(form, self._deny) for form in forms):
            return False
        return any(_within(form, self._allow) for form in forms) or _is_public(forms[-1])


def address_of(text: str) -> Address | None:
    """Return the address that a text is, its zone (`%eth0`) and an IPv6 address's brackets left out; None: it is none.

    Only the usual spelling is taken: what others (`127.1`, `0x7f000001`) mean is for the resolver to say.
    """
    try:
        return ip_address(text.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return None


def _forms(address: Address) -> Iterator[Address]:
    """Yield the address, and the IPv4 address that it stands for if it does."""
    yield address
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            yield address.ipv4_mapped
        elif address in _TRANSLATED:
            yield IPv4Address(int(address) & 0xFFFF_FFFF)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not _within(address, _NOT_PUBLIC)
