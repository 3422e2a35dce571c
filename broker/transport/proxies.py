"""Which address a request comes from, and whether by TLS, where proxies stand before the broker.

By RFC 7239, `X-Forwarded-For` and `X-Forwarded-Proto`.

Pure. Only what a trusted proxy wrote is looked at: addresses are read from the right, where each proxy adds the one it
was asked from, up to the first that is not trusted. What stands further left was written by anybody.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import islice
from typing import Final

from .request import Request

MOST_PROXIES: Final = 16
"""How many addresses are looked at."""

_BY_TLS: Final = frozenset({"https", "wss"})

IpAddress = IPv4Address | IPv6Address


class TrustedProxies:
    """The networks whose word on who asks is taken."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ip_network(network) for network in networks]

    def remote_of(self, request: Request, *, by_socket_file: bool) -> str | None:
        """Return the address of who asks; None: it is not known.

        ``request.remote`` is who is connected, who is trusted if he came by a socket file. Where the two headers
        say different things, one of them is not the proxy's: then it is the proxy's address.
        """
        peer, is_trusted = self._peer(request, by_socket_file=by_socket_file)
        if not is_trusted:
            return request.remote
        told = {self._untrusted(peer, hops) for hops in (_forwarded_for(request), _forwarded(request)) if hops}
        found = told.pop() if len(told) == 1 else peer
        return None if found is None else str(found)

    def says_tls(self, request: Request, *, by_socket_file: bool, by_tls: bool) -> bool:
        """Return whether it is known that a client came by TLS: to a trusted proxy that says so, or to the broker.

        Of what came without, nothing is known: a proxy that stands further out may have ended its TLS. To be asked
        before ``request.remote`` is another.
        """
        _, is_trusted = self._peer(request, by_socket_file=by_socket_file)
        if is_trusted:
            return any(word in _BY_TLS for word in _forwarded_proto(request))
        return by_tls

    def _peer(self, request: Request, *, by_socket_file: bool) -> tuple[IpAddress | None, bool]:
        """Return who is connected, and whether his word is taken. Where nobody's is, no address is parsed."""
        if not (by_socket_file or self._networks):
            return None, False
        peer = None if request.remote is None else _address_of(request.remote)
        return peer, by_socket_file or (peer is not None and self._trusts(peer))

    def _trusts(self, address: IpAddress) -> bool:
        return any(address in network for network in self._networks)

    def _untrusted(self, peer: IpAddress | None, hops: list[str]) -> IpAddress | None:
        """Return the rightmost address that is not trusted; else the last that was told."""
        found = peer
        for hop in islice(reversed(hops), MOST_PROXIES):
            address = _address_of(hop)
            if address is None:
                break
            found = address
            if not self._trusts(address):
                break
        return found


def _forwarded_for(request: Request) -> list[str]:
    return [item.decode("latin-1") for item in request.items(b"x-forwarded-for")]


def _forwarded_proto(request: Request) -> Iterator[str]:
    """Yield what the proxies say in either header."""
    for item in request.items(b"x-forwarded-proto"):
        yield item.decode("latin-1").lower()
    for item in request.items(b"forwarded"):
        yield _only(_parameters(item.decode("latin-1"), "proto")).lower()


def _forwarded(request: Request) -> list[str]:
    """Return what each proxy says in `for`, "" where it says nothing.

    No address has a comma in it, so what is quoted need not be told apart: a proxy's own words stand behind any quote
    that a client left open.
    """
    return [_only(_parameters(item.decode("latin-1"), "for")) for item in request.items(b"forwarded")]


def _parameters(element: str, wanted: str) -> Iterator[str]:
    for pair in element.split(";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == wanted:
            yield value.strip().strip('"')


def _only(values: Iterator[str]) -> str:
    found = list(values)
    return found[0] if len(found) == 1 else ""


def _address_of(node: str) -> IpAddress | None:
    """Return the address in ``192.0.2.1``, ``192.0.2.1:80``, ``2001:db8::1`` or ``[2001:db8::1]:80``; else None."""
    if node.startswith("["):
        node = node[1:].partition("]")[0]
    elif node.count(":") == 1:
        node = node.partition(":")[0]
    try:
        address = ip_address(node)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        # A zone is any text, and says nothing to anybody but its own host.
        return None if address.scope_id is not None else address.ipv4_mapped or address
    return address
