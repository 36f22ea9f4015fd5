"""Packets of chosen connections, from a packet socket in the right network namespace.

Theory of operation. A thread enters the namespace, opens an AF_PACKET socket there and ends; the socket
stays what it is, so no thread of ours ever works in a foreign namespace. The filter is attached before the
socket is bound: not one packet of anybody else gets into the ring. Packets come through TPACKET_V3, a ring
of blocks that the kernel fills and hands over whole, so a packet costs no system call; the bytes begin with
the network header (SOCK_DGRAM), and a cooked header (SLL2) is put before them, which also says which way
the packet went and on which interface.

While it is open the socket keeps its namespace alive: a pod that is deleted meanwhile keeps its addresses
until the capture ends.

What this cannot see: packets that were dropped before the device (egress rules, a full queue), and any that
came while no block was free (`Capture.dropped` counts them). Long packets may be several segments that the
host joins before it sends them or after it received them (TSO, GRO).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from finwait.errors import KernelError, NotSupported, PermissionNeeded
from finwait.kernel import netns, procfs
from finwait.uapi import pcap

__all__ = ["Capture", "Packet", "space_of"]

_ETH_P_ALL: Final = 3
_SO_ATTACH_FILTER: Final = 26
_SOL_PACKET: Final = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 5, 6, 10
_TPACKET_V3: Final = 2
_PACKET_OUTGOING: Final = 4
_ARPHRD_LOOPBACK: Final = 772
_BLOCK: Final = 1 << 18
_BLOCKS: Final = 32
_RETIRE_MS: Final = 50  # a block that is not full is handed over after this time
_SOCKADDR_LL: Final = 48  # behind struct tpacket3_hdr


@dataclass(frozen=True, slots=True)
class Packet:
    """One captured packet."""

    time_ns: int
    """Unix time, from the kernel."""
    data: bytes
    """With an SLL2 header before the network header."""
    length: int
    """On the wire, the SLL2 header counted in."""
    ifindex: int
    outgoing: bool


class Capture:
    """A running capture in one namespace; a context manager.

    Args:
        space: where.
        tuples: what, see `finwait.uapi.pcap.socket_filter`.
        snaplen: bytes to keep of each packet.
    """

    def __init__(self, space: netns.NetNamespace, tuples: list[pcap.Tuple], *, snaplen: int = 65535) -> None:
        self._space = space
        self._program = pcap.socket_filter(tuples, snaplen=snaplen)
        self._sock: socket.socket | None = None
        self._ring: mmap.mmap | None = None
        self._next = 0
        self.interfaces: dict[int, str] = {}
        """Index → name, as they were at the start."""
        self._dropped = 0

    def __enter__(self) -> Self:
        """Open the socket.

        Raises:
            PermissionNeeded: CAP_NET_RAW is missing, or the namespace cannot be entered.
            NotSupported: the kernel has no packet sockets, or not this ring.
            KernelError: it said no to something else.
        """
        results, gaps = netns.visit([self._space], lambda _: self._open())
        if gaps:
            raise PermissionNeeded(errno.EPERM, gaps[0].doing, gaps[0].needs or "CAP_SYS_ADMIN")
        self._sock, self.interfaces = results[self._space.inode]
        try:
            self._ring = mmap.mmap(self._sock.fileno(), _BLOCK * _BLOCKS)
        except OSError as error:
            self.close()
            raise KernelError(error.errno or errno.ENOMEM, "map the ring of packets") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> tuple[socket.socket, dict[int, str]]:
        doing = "capture packets"
        space = self._space.inode
        try:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
        except OSError as error:
            code = error.errno or errno.EIO
            if code in (errno.EPERM, errno.EACCES):
                raise PermissionNeeded(code, doing, "CAP_NET_RAW", netns=space) from None
            raise NotSupported(code, doing, "packet sockets", netns=space) from None
        try:
            program = ctypes.create_string_buffer(self._program, len(self._program))
            fprog = struct.pack("HL", len(self._program) // 8, ctypes.addressof(program))
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
            sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, struct.pack("i", _TPACKET_V3))
            frame = 2048
            ring = struct.pack("7I", _BLOCK, _BLOCKS, frame, _BLOCK * _BLOCKS // frame, _RETIRE_MS, 0, 0)
            sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, ring)
            _bind_all(sock)
            return sock, {index: name for index, name in socket.if_nameindex()}  # noqa: C416 - a dict is wanted
        except OSError as error:
            sock.close()
            raise KernelError(error.errno or errno.EIO, doing, netns=space) from None
        except BaseException:
            sock.close()
            raise

    @property
    def netns(self) -> int:
        """Inode of the namespace."""
        return self._space.inode

    def fileno(self) -> int:
        """Return a descriptor that is readable when a block of packets is there."""
        assert self._sock is not None
        return self._sock.fileno()

    def wait(self, timeout: float) -> bool:
        """Sleep until there are packets, at most ``timeout`` seconds; return whether there are."""
        return bool(select.select([self], [], [], max(timeout, 0))[0])

    def drain(self) -> Iterator[Packet]:
        """Yield the packets that are there; never blocks."""
        ring = self._ring
        assert ring is not None
        for _ in range(_BLOCKS):
            base = self._next * _BLOCK
            (status,) = struct.unpack_from("=I", ring, base + 8)
            if not status & 1:  # TP_STATUS_USER
                return
            count, at = struct.unpack_from("=II", ring, base + 12)
            at += base
            for _ in range(count):
                step, seconds, nanos, kept, length, _, _, net = struct.unpack_from("=IIIIIIHH", ring, at)
                _, protocol, ifindex, hatype, way, halen = struct.unpack_from(
                    "=H2siHBB", ring, at + _SOCKADDR_LL
                )
                outgoing = way == _PACKET_OUTGOING
                # Loopback shows each packet twice, as it goes and as it comes: once is enough.
                if not (outgoing and hatype == _ARPHRD_LOOPBACK):
                    address = ring[at + _SOCKADDR_LL + 12 : at + _SOCKADDR_LL + 20]
                    head = protocol + struct.pack("!HIHBB", 0, ifindex, hatype, way, halen) + address
                    data = head + ring[at + net : at + net + kept]
                    yield Packet(seconds * 1_000_000_000 + nanos, data, length + len(head), ifindex, outgoing)
                at += step
            struct.pack_into("=I", ring, base + 8, 0)  # TP_STATUS_KERNEL: give the block back
            self._next = (self._next + 1) % _BLOCKS

    def dropped(self) -> int:
        """Return how many packets found no free block since the start."""
        assert self._sock is not None
        _, drops, _ = struct.unpack("=III", self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 12))
        self._dropped += drops  # reading resets the kernel's count
        return self._dropped

    def close(self) -> None:
        """End the capture; idempotent."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def _bind_all(sock: socket.socket) -> None:
    """Bind to all interfaces, also later ones (Python's bind wants the name of one)."""
    address = struct.pack("=HHiHBB8s", socket.AF_PACKET, socket.htons(_ETH_P_ALL), 0, 0, 0, 0, b"")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.bind(sock.fileno(), address, len(address)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def space_of(inode: int) -> netns.NetNamespace:
    """Return the namespace with an inode.

    Raises:
        KernelError: there is none (any more).
    """
    for held in (False, True):  # listing descriptors is slow, and rarely the only thing that leads there
        spaces, _ = netns.discover(procfs.descriptors()[1] if held else ())
        for space in spaces:
            if space.inode == inode:
                return space
    raise KernelError(errno.ENOENT, f"find network namespace {inode} ({os.strerror(errno.ENOENT)})")
