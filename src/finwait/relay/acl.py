"""Which sources may connect.

``deny`` goes before ``allow``; an empty ``allow`` allows all. An IPv4 client of a dual-stack listener arrives as
``::ffff:192.0.2.1`` and is judged as the IPv4 address that it is.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Acl"]


class Acl:
    """Networks that may, and networks that may not.

    Raises:
        ValueError: something is not a network.
    """

    def __init__(self, allow: Iterable[str], deny: Iterable[str]) -> None:
        self._allow = [ipaddress.ip_network(network) for network in allow]
        self._deny = [ipaddress.ip_network(network) for network in deny]
        # Clients come back; parsing an address costs as much as accepting a connection.
        self.admits = lru_cache(maxsize=4096)(self._admits)

    def _admits(self, source: str) -> bool:
        """Return whether an address may connect."""
        address = ipaddress.ip_address(source.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._deny):
            return False
        return not self._allow or any(address in network for network in self._allow)
