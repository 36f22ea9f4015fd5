"""Addresses and interfaces of a namespace: the answers to ``RTM_GETADDR``, ``RTM_GETLINK`` and ``RTM_GETNSID``.

Mirrors include/uapi/linux/rtnetlink.h, if_addr.h, if_link.h and net_namespace.h. With them one can say that the other
end of a connection *should* be on this machine, and that it is not there is then evidence instead of ignorance; and
which namespaces are connected, for an address alone may be that of somebody on another network.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from finwait.errors import DecodeError
from finwait.uapi import netlink as nl

__all__ = [
    "ADDRESS_ATTRIBUTES",
    "HARMLESS_ATTRIBUTES",
    "IFADDRMSG_SIZE",
    "LEADS_ELSEWHERE",
    "RTM_NEWADDR",
    "addresses",
    "addresses_request",
    "link_namespaces",
    "links",
    "links_request",
    "namespace_number",
    "nsid_request",
]

RTM_NEWLINK, RTM_GETLINK = 16, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWNSID, RTM_GETNSID = 88, 90
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_EXT_MASK, _IFLA_LINK_NETNSID = 3, 10, 29, 37
_RTEXT_FILTER_SKIP_STATS = 1 << 3
_NETNSA_NSID, _NETNSA_FD = 1, 3
_RTGENMSG_SIZE = 4  # family u8, padded
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
        attributes: dict[int, bytes] = {}
        for number, at, size in nl.attributes(
            data, nl.NLMSG_HEADER + IFADDRMSG_SIZE, length, "ifaddrmsg attribute"
        ):
            attributes[number] = data[at : at + size]
        # On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL ours; without LOCAL they agree.
        raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        if family == 2 and raw is not None and len(raw) == 4:
            result.append((0, 0xFFFF << 32 | struct.unpack("!I", raw)[0]))
        elif family == 10 and raw is not None and len(raw) == 16:
            high, low = struct.unpack("!QQ", raw)
            result.append((high, low))
    return result


LEADS_ELSEWHERE: Final = struct.pack("=HH", nl.NLA_HEADER + 4, _IFLA_LINK_NETNSID)
"""The header of the attribute that `link_namespaces` looks for: messages without these bytes have none."""


def links_request() -> bytes:
    """Return the dump request for the interfaces."""
    skip = nl.attribute(_IFLA_EXT_MASK, struct.pack("=I", _RTEXT_FILTER_SKIP_STATS))
    return nl.message(RTM_GETLINK, nl.NLM_F_REQUEST | nl.NLM_F_DUMP, bytes(_IFINFOMSG_SIZE) + skip)


def link_namespaces(buffer: NDArray[np.uint8], messages: nl.Messages) -> set[int]:
    """Return the numbers of the namespaces that interfaces lead to, as the namespace of the interfaces has them.

    Raises:
        DecodeError: a message is shorter than ``struct ifinfomsg`` or its attributes do not fit.
    """
    result: set[int] = set()
    for data, length in _link_messages(buffer, messages):
        for number, at, size in nl.attributes(
            data, nl.NLMSG_HEADER + _IFINFOMSG_SIZE, length, "ifinfomsg attribute"
        ):
            if number == _IFLA_LINK_NETNSID and size == 4:
                result.add(struct.unpack_from("=i", data, at)[0])
    result.discard(-1)
    return result


def _link_messages(buffer: NDArray[np.uint8], messages: nl.Messages) -> Iterator[tuple[bytes, int]]:
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
        yield data, length


def nsid_request(fd: int) -> bytes:
    """Return the request for the number that the namespace of a descriptor has in the one that is asked."""
    attribute = nl.attribute(_NETNSA_FD, struct.pack("=I", fd))
    return nl.message(RTM_GETNSID, nl.NLM_F_REQUEST, bytes(_RTGENMSG_SIZE) + attribute)


def namespace_number(answer: bytes) -> int | None:
    """Return the number that an answer to `nsid_request` names; None where it has none there.

    Raises:
        DecodeError: it is not such an answer.
    """
    if len(answer) < nl.NLMSG_HEADER + _RTGENMSG_SIZE:
        raise DecodeError("struct rtgenmsg", 0, answer[:16], f"message of {len(answer)} bytes is too short")
    length, kind = struct.unpack_from("=IH", answer)
    if kind != RTM_NEWNSID or not nl.NLMSG_HEADER + _RTGENMSG_SIZE <= length <= len(answer):
        raise DecodeError("RTM_NEWNSID", 0, answer[:16], f"a message of type {kind} and {length} bytes")
    for number, at, size in nl.attributes(
        answer, nl.NLMSG_HEADER + _RTGENMSG_SIZE, length, "rtgenmsg attribute"
    ):
        if number == _NETNSA_NSID and size == 4:
            nsid: int = struct.unpack_from("=i", answer, at)[0]
            return nsid if nsid >= 0 else None
    return None


def links(buffer: NDArray[np.uint8], messages: nl.Messages) -> dict[int, tuple[str, int]]:
    """Return name and index of the master (0 for none) of each interface, by index.

    Raises:
        DecodeError: a message is shorter than ``struct ifinfomsg`` or its attributes do not fit.
    """
    result: dict[int, tuple[str, int]] = {}
    for data, length in _link_messages(buffer, messages):
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
