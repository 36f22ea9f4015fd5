"""The TCP segment in a captured packet: link type, network header, TCP header.

Mirrors the link types Ethernet (with VLAN and QinQ tags, PPPoE), Linux SLL and SLL2, RAW, IPv4, IPv6, NULL,
LOOP and PPP, the IPv4 and IPv6 headers (extension headers followed), and TCP of RFC 9293 with the options of
RFC 7323. What is no TCP segment is an `Unread` with the reason: a packet of another protocol is nothing to us,
one whose link type nobody here can read is a thing we have not seen.

Checksums are not verified: a host that leaves them to its card shows wrong ones.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import msgspec

from finwait.uapi.pcap import Frame
from finwait.uapi.socket_filter import Address

__all__ = [
    "ACK",
    "FIN",
    "LINKTYPE_ETHERNET",
    "LINKTYPE_LINUX_SLL",
    "LINKTYPE_LINUX_SLL2",
    "LINKTYPE_RAW",
    "PSH",
    "RST",
    "SYN",
    "Segment",
    "Unread",
    "link_name",
    "parse_segment",
]

LINKTYPE_NULL: Final = 0
LINKTYPE_ETHERNET: Final = 1
LINKTYPE_PPP: Final = 9
LINKTYPE_RAW_BSD: Final = 12
LINKTYPE_RAW_OPENBSD: Final = 14
LINKTYPE_PPP_HDLC: Final = 50
LINKTYPE_PPP_ETHER: Final = 51
LINKTYPE_RAW: Final = 101
LINKTYPE_LOOP: Final = 108
LINKTYPE_LINUX_SLL: Final = 113
LINKTYPE_IPV4: Final = 228
LINKTYPE_IPV6: Final = 229
LINKTYPE_LINUX_SLL2: Final = 276

_NAMES: Final = {
    LINKTYPE_NULL: "NULL",
    LINKTYPE_ETHERNET: "EN10MB",
    6: "IEEE802_5",
    LINKTYPE_PPP: "PPP",
    LINKTYPE_RAW_BSD: "RAW",
    LINKTYPE_RAW_OPENBSD: "RAW",
    LINKTYPE_PPP_HDLC: "PPP_HDLC",
    LINKTYPE_PPP_ETHER: "PPP_ETHER",
    LINKTYPE_RAW: "RAW",
    104: "C_HDLC",
    105: "IEEE802_11",
    LINKTYPE_LOOP: "LOOP",
    LINKTYPE_LINUX_SLL: "LINUX_SLL",
    127: "IEEE802_11_RADIOTAP",
    189: "USB_LINUX",
    195: "IEEE802_15_4_WITHFCS",
    220: "USB_LINUX_MMAPPED",
    LINKTYPE_IPV4: "IPV4",
    LINKTYPE_IPV6: "IPV6",
    239: "NFLOG",
    249: "USBPCAP",
    253: "NETLINK",
    LINKTYPE_LINUX_SLL2: "LINUX_SLL2",
}
_RAW: Final = frozenset((LINKTYPE_RAW, LINKTYPE_RAW_BSD, LINKTYPE_RAW_OPENBSD, LINKTYPE_IPV4, LINKTYPE_IPV6))

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

_ETH_IPV4: Final = 0x0800
_ETH_IPV6: Final = 0x86DD
_ETH_PPPOE: Final = 0x8864
_ETH_VLAN: Final = frozenset((0x8100, 0x88A8, 0x9100))
_PPP: Final = {0x0021: _ETH_IPV4, 0x0057: _ETH_IPV6}
_BY_VERSION: Final = {4: _ETH_IPV4, 6: _ETH_IPV6}

_ONLY_TIMES: Final = (
    b"\x01\x01\x08\x0a"  # the options of nearly every segment: two NOPs, then the time stamps
)


class Unread(enum.Enum):
    """Why a packet gave no segment."""

    LINK = "its link type is not read here"
    OTHER = "not TCP"
    CUT = "cut before the end of its TCP header"
    FRAGMENT = "a fragment without the TCP header"


class Segment(msgspec.Struct, frozen=True, gc=False):
    """One TCP segment."""  # a struct, because a capture has millions: made in a fifth of a dataclass's time

    time_ns: int
    src: Address
    dst: Address
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    window: int
    """As sent, not scaled."""
    payload: int
    """Bytes of data, by the IP header (also when the capture cut them)."""
    outgoing: bool | None = None
    """Whether the capturing host sent it; None where the link type does not say."""
    interface: str = ""
    place: str = ""
    """Where it was captured, where there are several such places (a network namespace)."""
    ip_id: int | None = None
    """Identification of the IPv4 header; None for IPv6."""
    tsval: int | None = None
    """The sender's time stamp (RFC 7323); None without one."""
    scale: int | None = None
    """The window scale that a SYN announces; None without one."""


def link_name(link: int) -> str:
    """Return a link type as people look it up: ``127 (IEEE802_11_RADIOTAP)``."""
    return f"{link} ({_NAMES[link]})" if link in _NAMES else str(link)


def parse_segment(frame: Frame) -> Segment | Unread:
    """Return the TCP segment of a packet, or why there is none.

    A damaged packet on the wire is a fact and not an error of the file, so nothing is raised.
    """
    network = _network(frame)
    if isinstance(network, Unread):
        return network
    kind, at, outgoing, interface = network
    inner = _ipv4(frame, at) if kind == _ETH_IPV4 else _ipv6(frame, at)
    if isinstance(inner, Unread):
        return inner
    src, dst, at, size, ip_id = inner
    data = frame.data
    if len(data) < at + 20:
        return Unread.CUT
    sport, dport, seq, ack, offset, flags, window = struct.unpack_from("!HHIIBBH", data, at)
    head = (offset >> 4) * 4
    if head < 20:
        return Unread.OTHER
    tsval = scale = None
    if head > 20:
        if data[at + 20 : at + 24] == _ONLY_TIMES and len(data) >= at + 28:
            (tsval,) = struct.unpack_from("!I", data, at + 24)
        else:
            tsval, scale = _options(data[at + 20 : at + head])
    return Segment(
        frame.time_ns, src, dst, sport, dport, seq, ack, flags, window, max(size - head, 0), outgoing,
        interface, frame.place, ip_id, tsval, scale,
    )  # fmt: skip


def _options(data: bytes) -> tuple[int | None, int | None]:
    """Return the time stamp and the window scale of TCP options, as far as they are there."""
    tsval = scale = None
    at = 0
    while at < len(data):
        kind = data[at]
        if kind == 0:
            break
        if kind == 1:
            at += 1
            continue
        length = data[at + 1] if at + 1 < len(data) else 0
        if length < 2 or at + length > len(data):
            break
        if kind == 8 and length == 10:
            (tsval,) = struct.unpack_from("!I", data, at + 2)
        elif kind == 3 and length == 3:
            scale = min(data[at + 2], 14)
        at += length
    return tsval, scale


_Inner = tuple[Address, Address, int, int, int | None]
"""Addresses, where TCP begins, how long it is, the IPv4 identification."""


def _ipv4(frame: Frame, at: int) -> _Inner | Unread:
    data = frame.data
    if len(data) < at + 20:
        return Unread.CUT if data[at : at + 1] and data[at] >> 4 == 4 else Unread.OTHER
    head = (data[at] & 15) * 4
    total, ip_id, fragment = struct.unpack_from("!HHH", data, at + 2)
    if data[at] >> 4 != 4 or head < 20 or data[at + 9] != 6:
        return Unread.OTHER
    if fragment & 0x1FFF:
        return Unread.FRAGMENT
    src, dst = struct.unpack_from("!II", data, at + 12)
    # Offloading hosts hand over 0 for packets longer than 64 kB.
    size = (total or frame.length - at) - head
    return (0, 0xFFFF << 32 | src), (0, 0xFFFF << 32 | dst), at + head, size, ip_id


def _ipv6(frame: Frame, at: int) -> _Inner | Unread:
    data = frame.data
    if len(data) < at + 40:
        return Unread.CUT if data[at : at + 1] and data[at] >> 4 == 6 else Unread.OTHER
    if data[at] >> 4 != 6:
        return Unread.OTHER
    after = _behind_ipv6(data, at)
    if isinstance(after, Unread):
        return after
    src_high, src_low, dst_high, dst_low = struct.unpack_from("!QQQQ", data, at + 8)
    (total,) = struct.unpack_from("!H", data, at + 4)
    size = (total or frame.length - at - 40) - (after - at - 40)
    return (src_high, src_low), (dst_high, dst_low), after, size, None


def _behind_ipv6(data: bytes, at: int) -> int | Unread:
    """Return where the TCP header is."""
    following, at = data[at + 6], at + 40
    for _ in range(8):
        if following == 6:
            return at
        if following not in (0, 43, 44, 51, 60, 135):
            return Unread.OTHER
        if len(data) < at + 8:
            return Unread.CUT
        if following == 51:  # authentication header: counted in words
            following, at = data[at], at + (data[at + 1] + 2) * 4
        elif following == 44:  # fragment: only the first has the ports
            if struct.unpack_from("!H", data, at + 2)[0] & 0xFFF8:
                return Unread.FRAGMENT if data[at] == 6 else Unread.OTHER
            following, at = data[at], at + 8
        else:  # hop-by-hop, routing, destination options, mobility
            following, at = data[at], at + (data[at + 1] + 1) * 8
    return Unread.OTHER


_Network = tuple[int, int, bool | None, str]
"""The ethertype, where the network header is, whether this host sent the packet, the interface."""


def _network(frame: Frame) -> _Network | Unread:
    data, link, name = frame.data, frame.link, frame.interface
    if link == LINKTYPE_ETHERNET:
        if len(data) < 14:
            return Unread.CUT
        return _behind_tags(data, int.from_bytes(data[12:14]), 14, None, name)
    if link == LINKTYPE_LINUX_SLL:
        if len(data) < 16:
            return Unread.CUT
        return _behind_tags(data, int.from_bytes(data[14:16]), 16, data[:2] == b"\0\4", name)
    if link == LINKTYPE_LINUX_SLL2:
        if len(data) < 20:
            return Unread.CUT
        # A capture of all interfaces has one description for them and the index in every packet.
        name = name if name not in ("", "any") else f"if{int.from_bytes(data[4:8])}"
        return _behind_tags(data, int.from_bytes(data[:2]), 20, data[10] == 4, name)
    if link in _RAW:
        return _by_version(data, 0, name)
    if link in (LINKTYPE_NULL, LINKTYPE_LOOP):
        return _by_version(data, 4, name)
    if link in (LINKTYPE_PPP, LINKTYPE_PPP_HDLC):
        return _ppp(data, 2 if data[:2] == b"\xff\x03" else 0, name)
    if link == LINKTYPE_PPP_ETHER:
        return _ppp(data, 6, name)
    return Unread.LINK


def _by_version(data: bytes, at: int, name: str) -> _Network | Unread:
    if len(data) <= at:
        return Unread.CUT
    kind = _BY_VERSION.get(data[at] >> 4)
    return Unread.OTHER if kind is None else (kind, at, None, name)


def _ppp(data: bytes, at: int, name: str) -> _Network | Unread:
    if len(data) < at + 2:
        return Unread.CUT
    kind = _PPP.get(int.from_bytes(data[at : at + 2]))
    return Unread.OTHER if kind is None else (kind, at + 2, None, name)


def _behind_tags(data: bytes, kind: int, at: int, outgoing: bool | None, name: str) -> _Network | Unread:
    for _ in range(3):
        if kind not in _ETH_VLAN:
            break
        if len(data) < at + 4:
            return Unread.CUT
        kind, at = int.from_bytes(data[at + 2 : at + 4]), at + 4
    if kind == _ETH_PPPOE:
        return _ppp(data, at + 6, name)
    return (kind, at, outgoing, name) if kind in (_ETH_IPV4, _ETH_IPV6) else Unread.OTHER
