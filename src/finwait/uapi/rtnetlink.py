"""Addresses and interfaces of a namespace: the answers to ``RTM_GETADDR`` and ``RTM_GETLINK``.

Mirrors include/uapi/linux/rtnetlink.h and if_addr.h. With them one can say that the other end of a
connection *should* be on this machine, and that it is not there is then evidence instead of ignorance.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from finwait.errors import DecodeError
from finwait.uapi import netlink as nl

__all__ = [
    "ADDRESS_ATTRIBUTES",
    "HARMLESS_ATTRIBUTES",
    "IFADDRMSG_SIZE",
    "RTM_NEWADDR",
    "addresses",
    "addresses_request",
    "links",
    "links_request",
]

RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
_IFLA_IFNAME, _IFLA_MASTER = 3, 10
_IFINFOMSG_SIZE = 16  # family u8, pad u8, type u16, index s32, flags u32, change u32
_IFA_ADDRESS, _IFA_LOCAL, _IFA_LABEL, _IFA_BROADCAST, _IFA_ANYCAST, _IFA_CACHEINFO = 1, 2, 3, 4, 5, 6
_IFA_MULTICAST, _IFA_FLAGS = 7, 8
ADDRESS_ATTRIBUTES = frozenset({_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_ANYCAST, _IFA_MULTICAST})
"""Attributes that hold an address."""
HARMLESS_ATTRIBUTES = frozenset({_IFA_CACHEINFO, _IFA_FLAGS})
"""Attributes that hold times and flags; the label, for one, is the name of an interface."""
IFADDRMSG_SIZE = 8  # family u8, prefixlen u8, flags u8, scope u8, index u32


def addresses_request() -> bytes:
    """Return the dump request for the addresses of every family."""
    return nl.message(RTM_GETADDR, nl.NLM_F_REQUEST | nl.NLM_F_DUMP, bytes(IFADDRMSG_SIZE))


def addresses(buffer: NDArray[np.uint8], messages: nl.Messages) -> list[tuple[int, int]]:
    """Return the local addresses as two 64-bit words each, IPv4 mapped into IPv6.

    Raises:
        DecodeError: a message is shorter than ``struct ifaddrmsg`` or its attributes do not fit.
    """
    result: list[tuple[int, int]] = []
    for offset, length, kind in zip(
        messages.offset.tolist(), messages.length.tolist(), messages.type.tolist(), strict=True
    ):
        if kind != RTM_NEWADDR:
            continue
        data = buffer[offset : offset + length].tobytes()
        if length < nl.NLMSG_HEADER + IFADDRMSG_SIZE:
            raise DecodeError(
                "struct ifaddrmsg", offset, data[:16], f"message of {length} bytes is too short"
            )
        family = data[nl.NLMSG_HEADER]
        found: dict[int, bytes] = {}
        for number, at, size in nl.attributes(
            data, nl.NLMSG_HEADER + IFADDRMSG_SIZE, length, "ifaddrmsg attribute"
        ):
            found[number] = data[at : at + size]
        # On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL ours; without LOCAL they agree.
        raw = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
        if family == 2 and raw is not None and len(raw) == 4:
            result.append((0, 0xFFFF << 32 | struct.unpack("!I", raw)[0]))
        elif family == 10 and raw is not None and len(raw) == 16:
            high, low = struct.unpack("!QQ", raw)
            result.append((high, low))
    return result


def links_request() -> bytes:
    """Return the dump request for the interfaces."""
    return nl.message(RTM_GETLINK, nl.NLM_F_REQUEST | nl.NLM_F_DUMP, bytes(_IFINFOMSG_SIZE))


def links(buffer: NDArray[np.uint8], messages: nl.Messages) -> dict[int, tuple[str, int]]:
    """Return name and index of the master (0 for none) of each interface, by index.

    Raises:
        DecodeError: a message is shorter than ``struct ifinfomsg`` or its attributes do not fit.
    """
    result: dict[int, tuple[str, int]] = {}
    for offset, length, kind in zip(
        messages.offset.tolist(), messages.length.tolist(), messages.type.tolist(), strict=True
    ):
        if kind != RTM_NEWLINK:
            continue
        data = buffer[offset : offset + length].tobytes()
        if length < nl.NLMSG_HEADER + _IFINFOMSG_SIZE:
            raise DecodeError(
                "struct ifinfomsg", offset, data[:16], f"message of {length} bytes is too short"
            )
        (index,) = struct.unpack_from("=i", data, nl.NLMSG_HEADER + 4)
        name, master = f"if{index}", 0
        for number, at, size in nl.attributes(
            data, nl.NLMSG_HEADER + _IFINFOMSG_SIZE, length, "ifinfomsg attribute"
        ):
            if number == _IFLA_IFNAME:
                name = data[at : at + size].rstrip(b"\0").decode("utf-8", "replace")
            elif number == _IFLA_MASTER and size == 4:
                (master,) = struct.unpack_from("=I", data, at)
        result[index] = name, master
    return result
