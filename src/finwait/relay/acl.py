"""Which sources may connect.

``deny`` goes before ``allow``; an empty ``allow`` allows all. An IPv4 client of a dual-stack listener arrives as
``::ffff:192.0.2.1`` and is judged as the IPv4 address that it is; a network of such addresses is the IPv4 network that
it stands for. A client of a Unix listener has no address: the word ``unix`` stands for all of them, and a list of
networks alone admits none.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["UNIX", "Acl", "parse_network", "plain", "source_network"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
UNIX: Final = "unix"
"""Stands in a list for the clients of Unix listeners."""
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


def parse_network(text: str) -> Network:
    """Return a network; one of IPv4-mapped addresses as the IPv4 network that it stands for.

    Raises:
        ValueError: it is no network, or one of which nobody could say whether it means IPv4 addresses.
    """
    if "%" in text:
        raise ValueError(f"`{text}`: a network has no scope")
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv4Network):
        return network
    if network.subnet_of(_MAPPED):
        address = ipaddress.IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        return ipaddress.IPv4Network((address, network.prefixlen - 96))
    if 0 < network.prefixlen < 96 and _MAPPED.subnet_of(network):
        raise ValueError(
            f"`{text}` contains the IPv4-mapped addresses; write IPv4 and IPv6 networks separately"
        )
    return network


def plain(host: str) -> str:
    """Return an address without a scope, and an IPv4-mapped one as the IPv4 address that it is.

    Raises:
        ValueError: it is no address.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


@lru_cache(maxsize=4096)
def source_network(source: str, v4: int, v6: int) -> str:
    """Return what an address is counted as: the network that it is in, written as its first address.

    All clients of a link share fe80::/64, so a link-local address is counted by itself.

    Args:
        source: the address, with or without a scope.
        v4: bits of an IPv4 network, also of an address that is mapped into IPv6.
        v6: bits of an IPv6 network.
    """
    try:
        address = ipaddress.ip_address(plain(source))
    except ValueError:  # a header may call its client anything
        return source
    if isinstance(address, ipaddress.IPv4Address):
        return str(ipaddress.IPv4Network((address, v4), strict=False).network_address)
    if address.is_link_local:
        return source
    return str(ipaddress.IPv6Network((address, v6), strict=False).network_address)


class Acl:
    """Networks that may, and networks that may not.

    Raises:
        ValueError: something is not a network.
    """

    def __init__(self, allow: Iterable[str], deny: Iterable[str]) -> None:
        allow, deny = list(allow), list(deny)
        self._allow = [parse_network(text) for text in allow if text != UNIX]
        self._deny = [parse_network(text) for text in deny if text != UNIX]
        self.admits_unix = UNIX not in deny and (not allow or UNIX in allow)
        """Whether clients of Unix listeners may connect."""
        self._allows_all = not allow
        # Clients come back; parsing an address costs as much as accepting a connection.
        self.admits = lru_cache(maxsize=4096)(self._admits)

    def _admits(self, source: str) -> bool:
        """Return whether an address may connect."""
        address = ipaddress.ip_address(plain(source))
        if any(address in network for network in self._deny):
            return False
        return self._allows_all or any(address in network for network in self._allow)
