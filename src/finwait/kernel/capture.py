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
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self

import numpy as np
from msgspec import Struct

from finwait.errors import KernelError, NotSupported, PermissionNeeded
from finwait.kernel import netns, procfs, rights
from finwait.kernel.netlink import NETLINK_ROUTE, Arena, dump, netlink_socket
from finwait.uapi import netlink as nl
from finwait.uapi import rtnetlink
from finwait.uapi.socket_filter import Tuple, socket_filter

__all__ = ["RETIRE_S", "Capture", "Packet", "space_of"]

_ETH_P_ALL: Final = 3
_SO_ATTACH_FILTER: Final = 26
_SOL_PACKET: Final = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 5, 6, 10
_TPACKET_V3: Final = 2
_PACKET_OUTGOING: Final = 4
_ARPHRD_LOOPBACK: Final = 772
_BLOCK: Final = 1 << 18
_BLOCKS: Final = 32
RETIRE_S: Final = 0.05
"""A block that is not full is handed over after this time."""
_LOOPBACK: Final = 1  # its index in every namespace
_SOCKADDR_LL: Final = 48  # behind struct tpacket3_hdr


class Packet(Struct, frozen=True):
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
        wanted: the connections, each with the index of the interface that its socket is bound to, or 0.
        snaplen: bytes to keep of each packet.
        program: another filter in place of one for these connections (``struct sock_filter``).
        block: bytes of a block of the ring; a power of two, and at least 64 KiB.
        blocks: of the ring.
    """

    def __init__(
        self,
        space: netns.NetNamespace,
        tuples: Sequence[tuple[Tuple, int]],
        *,
        snaplen: int = 65535,
        program: bytes = b"",
        block: int = _BLOCK,
        blocks: int = _BLOCKS,
    ) -> None:
        self._filter = program
        self._block = block
        self._blocks = blocks
        self._space = space
        self._wanted = tuples
        self._snaplen = snaplen
        self._sock: socket.socket | None = None
        self._ring: mmap.mmap | None = None
        self._next = 0
        self.interfaces: dict[int, str] = {}
        """Index → name, as they were at the start."""
        self._masters: dict[int, int] = {}
        self._dropped = 0

    def __enter__(self) -> Self:
        """Open the socket.

        Raises:
            PermissionNeeded: CAP_NET_RAW is missing, or the namespace cannot be entered.
            NotSupported: the kernel has no packet sockets, or not this ring.
            KernelError: it said no to something else.
            ValueError: so many connections that the filter is longer than the kernel takes.
        """
        results, gaps = netns.visit([self._space], lambda _: self._open())
        if gaps and gaps[0].needs:
            raise PermissionNeeded(errno.EPERM, f"enter {gaps[0].where}", gaps[0].needs)
        if gaps:
            raise KernelError(errno.ENOENT, f"enter {gaps[0].where}")
        if self._space.inode not in results:
            raise KernelError(errno.ENOENT, f"enter netns {self._space.inode}")
        self._sock = results[self._space.inode]
        try:
            self._ring = mmap.mmap(self._sock.fileno(), self._block * self._blocks)
        except OSError as error:
            self.close()
            raise KernelError(error.errno or errno.ENOMEM, "map the ring of packets") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reached(self, ifindex: int) -> frozenset[int]:
        """Return the interfaces that packets of a socket bound to one of them pass.

        Its own, those below it (of a VRF, a bond or a bridge), and the loopback for what the namespace says to
        itself.
        """
        return frozenset((ifindex, _LOOPBACK, *(k for k, over in self._masters.items() if over == ifindex)))

    def _program(self) -> bytes:
        bound: dict[Tuple, frozenset[int]] = {}
        for ends, ifindex in self._wanted:
            reached = self.reached(ifindex) if ifindex else frozenset[int]()
            before = bound.get(ends)
            # Two sockets may share addresses and ports, each with its own interface; one without takes all.
            bound[ends] = (
                reached if before is None else before | reached if before and reached else frozenset()
            )
        return socket_filter(bound, interfaces=bound, snaplen=self._snaplen)

    def _open(self) -> socket.socket:
        doing = "capture packets"
        space = self._space.inode
        try:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
        except OSError as error:
            code = error.errno or errno.EIO
            if code in (errno.EPERM, errno.EACCES):
                raise PermissionNeeded(code, doing, rights.missing("CAP_NET_RAW"), netns=space) from None
            raise NotSupported(code, doing, "packet sockets", netns=space) from None
        try:
            links = _links()
            self.interfaces = {index: name for index, (name, _) in links.items()}
            self._masters = {index: master for index, (_, master) in links.items() if master}
            program = self._filter or self._program()
            held = ctypes.create_string_buffer(program, len(program))
            fprog = struct.pack("HL", len(program) // 8, ctypes.addressof(held))
            sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
            sock.setsockopt(_SOL_PACKET, _PACKET_VERSION, struct.pack("i", _TPACKET_V3))
            frame = 2048
            block, blocks = self._block, self._blocks
            ring = struct.pack(
                "7I", block, blocks, frame, block * blocks // frame, round(RETIRE_S * 1000), 0, 0
            )
            sock.setsockopt(_SOL_PACKET, _PACKET_RX_RING, ring)
            _bind_all(sock)
            return sock
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
        for _ in range(self._blocks):
            base = self._next * self._block
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
            self._next = (self._next + 1) % self._blocks

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


def _links() -> dict[int, tuple[str, int]]:
    """Return name and master of every interface of this namespace."""
    doing = "list the interfaces"
    arena = Arena(1 << 24)
    with netlink_socket(NETLINK_ROUTE, doing) as sock:
        answer = dump(sock, rtnetlink.links_request(), arena, doing)
    buffer = arena.array()
    return rtnetlink.links(buffer, nl.walk(buffer, np.array(answer.starts), np.array(answer.ends)))


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
            # A thread may only be visiting, as ours do: where nothing else leads in, look further.
            if space.inode == inode and (held or any("/task/" not in path for path in space.paths)):
                return space
    raise KernelError(errno.ENOENT, f"find network namespace {inode} ({os.strerror(errno.ENOENT)})")
