"""Demonstrations about how a program closes, and who keeps its sockets: linger, unread data, shutdown, holders."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from finwait.kernel import pidfd
from finwait.lab.proofs.instruments import (
    NET,
    NFT,
    Measured,
    Place,
    Proof,
    by_scenario,
    equal,
    error_of,
    in_state,
    keepalive,
    life,
    link,
    packets,
    seen,
    until,
)
from finwait.lab.topology import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CLOSING"]

_SO_COOKIE: Final = 57


def _linger_zero(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        pair = place.pair()
        pair.a.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += pair.a.send(bytes(65536))
        pair.a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.a.close()
        received, end = 0, "end of file"
        try:
            while data := pair.b.recv(65536):
                received += len(data)
        except OSError as error:
            end = errno.errorcode.get(error.errno or 0, "?")
        yield Measured(
            "bytes written and received with SO_LINGER 0",
            "fewer received",
            f"{sent}, {received}",
            received < sent,
        )
        yield equal("what the peer reads last", "ECONNRESET", end)
        yield Measured("what was in the peer's queue", "readable", f"{received} bytes", received > 0)


def _linger_waits(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        pair = place.pair()
        pair.a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1))
        place.silence()
        start = time.monotonic()
        pair.a.close()
        yield life(
            "how long close() takes with SO_LINGER 1 s and a silent peer", time.monotonic() - start, 0.9, 5
        )
        yield seen("what close() leaves", pair.at_a(), "FIN_WAIT1", held=False)


def _close_with_unread(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        unread, read = place.pair(), place.pair()
        unread.a.sendall(b"x")
        until(lambda: (row := unread.at_b()) is not None and row.rqueue == 1, "the byte is there")
        unread.b.close()
        until(lambda: unread.at_a() is None, "a reset")
        yield equal("the peer's error after a close() with unread data", "ECONNRESET", error_of(unread.a))
        for pair, data in ((read, b""), (place.pair(), b"x")):
            if data:
                pair.a.sendall(data)
            pair.a.shutdown(socket.SHUT_WR)
            until(lambda p=pair: in_state(p.at_b(), "CLOSE_WAIT"), "CLOSE_WAIT")  # type: ignore[misc]
            row = pair.at_b()
            yield equal(
                f"Recv-Q of CLOSE_WAIT with {len(data)} unread bytes", len(data) + 1, row and row.rqueue
            )
            pair.b.close()
            end = ""
            try:
                end = "end of file" if not pair.a.recv(1) else "data"
            except OSError as error:
                end = errno.errorcode.get(error.errno or 0, "?")
            yield equal("what its peer sees at close()", "ECONNRESET" if data else "end of file", end)


def _holder_ends(lab: Lab) -> Iterator[Measured]:
    with Place(lab, tcp_fin_timeout=1) as place:
        pair = place.half_closed()
        time.sleep(0.1)  # the last acknowledgement may be on its way
        before = packets(place.ns)
        pair.a.close()
        until(lambda: pair.at_a() is None, "the orphan is gone")
        yield equal("packets from the holder's end until the orphan is gone", 0, packets(place.ns) - before)
        yield seen("the peer afterwards", pair.at_b(), "CLOSE_WAIT", timer=0, held=True)
        keepalive(pair.b, 1, 1, 3)
        until(lambda: pair.at_b() is None, "keepalive is answered by a reset")
        link = os.readlink(f"/proc/self/fd/{pair.b.fileno()}")
        yield Measured("the peer with keepalive, and its descriptor", "row gone, descriptor open", f"row gone, {link}",
                       link.startswith("socket:"))  # fmt: skip


def _owed_fin(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        closed, shut = place.half_closed(), place.half_closed()
        closed.b.close()
        until(lambda: in_state(closed.at_a(), "TIME_WAIT"), "the FIN ends the half-close")
        yield equal("what the end in FIN_WAIT2 reads when its peer closes", b"", closed.a.recv(1))
        fd = shut.b.fileno()
        cookie, inode = (
            struct.unpack("=Q", shut.b.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0],
            os.fstat(fd).st_ino,
        )
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"],
                                 pass_fds=(fd,), stdin=subprocess.PIPE)  # fmt: skip
        try:
            shut.b.close()
            yield seen("the end that owes its FIN", shut.at_b(), "CLOSE_WAIT", timer=0, held=True)
            with pidfd.borrowed(child.pid, fd, inode=inode, cookie=cookie) as copy:
                copy.shutdown(socket.SHUT_WR)
            until(
                lambda: in_state(shut.at_a(), "TIME_WAIT") and shut.at_b() is None,
                "the FIN ends the half-close",
            )
            yield equal("what its peer reads after a FIN from outside", b"", shut.a.recv(1))
            kept = os.readlink(f"/proc/{child.pid}/fd/{fd}")
            yield equal("the descriptor in its program afterwards", f"socket:[{inode}]", kept)
        finally:
            child.kill()
            child.communicate()


def _shutdown_read(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        pair = place.pair()
        time.sleep(0.1)
        before = packets(place.ns)
        pair.a.shutdown(socket.SHUT_RD)
        time.sleep(0.3)
        yield equal("packets after shutdown(RD)", 0, packets(place.ns) - before)
        pair.b.sendall(b"x")
        until(lambda: (row := pair.at_b()) is not None and row.wqueue == 0, "the data is acknowledged")
        yield seen("the peer after sending to it", pair.at_b(), "ESTABLISHED")


def _data_for_the_gone(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        both, orphan = place.half_closed(), place.half_closed()
        both.a.shutdown(socket.SHUT_RDWR)
        orphan.a.close()
        for name, pair in (("shut in both directions", both), ("an orphan", orphan)):
            pair.b.sendall(b"x")
            until(lambda p=pair: p.at_a() is None and p.at_b() is None, "both ends are gone")  # type: ignore[misc]
            error = error_of(pair.b)
            yield Measured(f"sending to a socket that is {name}", "both ends gone, ECONNRESET or EPIPE",
                           f"both ends gone, {error}", error in ("ECONNRESET", "EPIPE"))  # fmt: skip


def _inherited(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        pair = place.pair()
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"],
                                 pass_fds=(pair.a.fileno(),), stdin=subprocess.PIPE)  # fmt: skip
        try:
            time.sleep(0.1)
            before = packets(place.ns)
            pair.a.close()
            time.sleep(0.3)
            yield equal("packets after the parent's close()", 0, packets(place.ns) - before)
            yield seen("the connection", pair.at_a(), "ESTABLISHED", timer=0, held=True)
        finally:
            child.kill()
            child.communicate()
        until(lambda: not in_state(pair.at_b(), "ESTABLISHED"), "the FIN comes")
        yield seen("the peer after the child's end", pair.at_b(), "CLOSE_WAIT")


def _in_flight(lab: Lab) -> Iterator[Measured]:
    with Place(lab) as place:
        pair = place.pair()
        left, right = socket.socketpair()
        with left, right:
            inode = os.fstat(pair.a.fileno()).st_ino
            socket.send_fds(left, [b"x"], [pair.a.fileno()])
            pair.a.close()
            holders = [fd for fd in os.listdir("/proc/self/fd") if link(fd) == f"socket:[{inode}]"]
            row = pair.at_a()
            yield equal("descriptors that refer to it", [], holders)
            yield equal("its inode in the table", inode, row.inode if row else None)


CLOSING: Final[tuple[Proof, ...]] = (
    Proof("linger-zero", ("S38", "X06"), 0.3, NET, _linger_zero),
    Proof("linger-waits", ("X07",), 1.2, NFT, _linger_waits),
    Proof("close-with-unread", ("X08", "X09"), 0.4, NET, _close_with_unread),
    Proof("holder-ends", ("X10", "X19"), 3, NET, _holder_ends),
    Proof("owed-fin", ("X17",), 0.5, NET, _owed_fin),
    Proof("shutdown-read", ("X12",), 0.6, NET, _shutdown_read),
    Proof("data-for-the-gone", ("X13",), 0.3, NET, _data_for_the_gone),
    Proof("inherited", ("X14", "S06"), 0.7, NET, _inherited),
    Proof("in-flight", ("X15",), 0.1, NET, _in_flight),
    Proof("relay-that-waits", ("S01",), 1, NET, by_scenario("kube-proxy-userspace")),
)
