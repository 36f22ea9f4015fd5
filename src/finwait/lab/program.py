"""What runs inside an actor: a program that owns sockets and does what it is told.

Executed as a script in a fresh interpreter (``python -I -S program.py FD LAUNCH``), never imported by
finwait. It enters its network namespace and cgroup, takes the name it was given, and then obeys JSON lines
that arrive on an inherited Unix socket. What it does is what real programs do, with real system calls; the
one liberty is that it can be told when.

The surprise: it must import nothing but the standard library, because ``-I -S`` sees no site-packages. That
is also why it starts in some 30 ms.

It does not decide anything about a scenario. That is `finwait.lab.scenarios`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__: list[str] = []

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
# include/uapi/linux/tcp.h; the socket module has no names for these.
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR_OFF_NO_WP = 19, 20, 21, -1
TCP_RECV_QUEUE, TCP_SEND_QUEUE = 1, 2
TCP_FIN_WAIT1 = 4

LIBC = ctypes.CDLL(None, use_errno=True)
# Ways of an event loop to watch a socket; the thread of `elsewhere` is not in the loop.
LOOPS = {
    "loop": select.EPOLLIN | select.EPOLLRDHUP,
    "edge": select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET,
    "spent": select.EPOLLIN | select.EPOLLONESHOT,
    "paused": 0,
    "elsewhere": select.EPOLLIN,
}
HOW = {"RD": socket.SHUT_RD, "WR": socket.SHUT_WR, "RDWR": socket.SHUT_RDWR}


def checked(result: int, doing: str) -> None:
    """Raise the `OSError` that a libc call left in errno."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it is gone."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def take_name(comm: str, cmdline: list[str]) -> None:
    """Show ``comm`` and ``cmdline`` in /proc, as a program of that name would.

    The argument area is overwritten in place: ``PR_SET_MM_ARG_START`` would need CAP_SYS_RESOURCE. The last
    byte has to stay NUL, or the kernel takes it for setproctitle() and reads on into the environment
    (``get_mm_cmdline`` in fs/proc/base.c).
    """
    LIBC.prctl(PR_SET_NAME, comm.encode()[:15], 0, 0, 0)
    with open("/proc/self/stat", "rb") as file:
        # The comm may contain spaces and parentheses: count fields from the last one. Field 3 is the first.
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[48 - 3]), int(fields[49 - 3])
    room = end - start
    title = b"\0".join(word.encode() for word in cmdline)[: room - 1]
    ctypes.memmove(start, title.ljust(room, b"\0"), room)


def address(sock: socket.socket, side: str) -> list[Any]:
    """Return ``[host, port]`` of a socket's own or other end; ``["", 0]`` when it has none any more."""
    try:
        name = sock.getsockname() if side == "local" else sock.getpeername()
    except OSError:
        return ["", 0]
    return [name[0], name[1]]


def describe(sock: socket.socket) -> dict[str, Any]:
    """Return what the other side of the control socket needs to know about a socket."""
    return {
        "fd": sock.fileno(),
        "inode": os.fstat(sock.fileno()).st_ino,
        "family": int(sock.family),
        "local": address(sock, "local"),
        "peer": address(sock, "peer"),
    }


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of ``data``."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Relay:
    """A little TCP relay that passes half-closes on and never gives up on a direction.

    This is the relay of a thousand proxies: two copies, each of which ends at end-of-file and then calls
    ``shutdown(SHUT_WR)`` on the far leg. It closes a pair only when *both* directions have ended.
    """

    def __init__(
        self, program: Program, listener: socket.socket, target: tuple[str, int], keepalive: bool
    ) -> None:
        self.program = program
        self.keepalive = keepalive
        self.listener = listener
        self.target = target
        self.pairs: list[tuple[socket.socket, socket.socket]] = []
        self.ended: set[int] = set()
        program.watch(listener, self.accept)

    def accept(self) -> None:
        """Take a client in and connect it to the target."""
        inner, _ = self.listener.accept()
        outer = socket.create_connection(self.target, timeout=10)
        inner.settimeout(10)
        if self.keepalive:
            for leg in (inner, outer):
                leg.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.program.adopt(inner)
        self.program.adopt(outer)
        self.pairs.append((inner, outer))
        self.program.watch(inner, lambda: self.copy(inner, outer))
        self.program.watch(outer, lambda: self.copy(outer, inner))

    def copy(self, source: socket.socket, sink: socket.socket) -> None:
        """Move what can be read; at end-of-file pass the half-close on."""
        with contextlib.suppress(OSError):
            data = source.recv(65536)
            if data:
                sink.sendall(data)
                return
        self.program.unwatch(source)
        self.ended.add(source.fileno())
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        if sink.fileno() in self.ended:
            self.ended -= {source.fileno(), sink.fileno()}
            self.pairs = [pair for pair in self.pairs if source not in pair]
            self.program.drop(source)
            self.program.drop(sink)


class Program:
    """The loop: obey commands, and meanwhile keep relays relaying and trickles trickling."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.sockets: dict[int, socket.socket] = {}
        self.relays: dict[int, Relay] = {}
        self.trickles: dict[int, tuple[bytes, float, float]] = {}
        self.children: list[subprocess.Popen[bytes]] = []
        self.in_flight: list[socket.socket] = []
        self.loops: list[select.epoll] = []
        self.selector = selectors.DefaultSelector()
        self.selector.register(control, selectors.EVENT_READ, None)

    # ── sockets ──────────────────────────────────────────────────────────────────────────────────────

    def adopt(self, sock: socket.socket) -> dict[str, Any]:
        """Keep a socket open under its descriptor number and describe it."""
        self.sockets[sock.fileno()] = sock
        return describe(sock)

    def drop(self, sock: socket.socket) -> None:
        """Close a socket for good."""
        self.unwatch(sock)
        self.trickles.pop(sock.fileno(), None)
        self.sockets.pop(sock.fileno(), None)
        sock.close()

    def watch(self, sock: socket.socket, react: Callable[[], None]) -> None:
        """Call ``react()`` whenever ``sock`` is readable."""
        self.selector.register(sock, selectors.EVENT_READ, react)

    def unwatch(self, sock: socket.socket) -> None:
        """Stop watching; harmless when it was not watched."""
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(sock)

    # ── commands; each takes the JSON object's members as keywords and returns something JSON can hold ──

    def do_hello(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "netns": os.stat("/proc/self/ns/net").st_ino}

    def do_listen(
        self, host: str, port: int, family: int, backlog: int, mptcp: bool, inheritable: bool
    ) -> dict[str, Any]:
        sock = socket.socket(
            family, socket.SOCK_STREAM, socket.IPPROTO_MPTCP if mptcp else socket.IPPROTO_TCP
        )
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
        sock.listen(backlog)
        sock.settimeout(10)
        sock.set_inheritable(inheritable)
        return self.adopt(sock)

    def do_connect(
        self,
        host: str,
        port: int,
        family: int,
        count: int,
        source: str,
        mptcp: bool,
        options: list[list[int]],
        wait: bool,
    ) -> list[dict[str, Any]]:
        """Open ``count`` connections; all of them are under way before the first is waited for, if any is."""
        fresh = []
        for _ in range(count):
            sock = socket.socket(
                family, socket.SOCK_STREAM, socket.IPPROTO_MPTCP if mptcp else socket.IPPROTO_TCP
            )
            for level, name, value in options:
                sock.setsockopt(level, name, value)
            if source:
                sock.bind((source, 0))
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect((host, port))
            fresh.append(sock)
        if wait:
            self.await_connected(fresh, host, port)
        return [self.adopt(sock) for sock in fresh]

    @staticmethod
    def await_connected(fresh: list[socket.socket], host: str, port: int) -> None:
        poll = selectors.DefaultSelector()
        for sock in fresh:
            poll.register(sock, selectors.EVENT_WRITE)
        deadline = time.monotonic() + 20
        while poll.get_map():
            ready = poll.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"connect to {host} port {port}: no answer")
            for key, _ in ready:
                sock = key.fileobj  # type: ignore[assignment]
                poll.unregister(sock)
                failed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if failed:
                    raise OSError(failed, f"connect to {host} port {port}: {os.strerror(failed)}")
        poll.close()
        for sock in fresh:
            sock.settimeout(10)

    def do_dial(self, host: str, port: int, source: str, sport: int) -> dict[str, Any]:
        """Begin to connect from a port, and do not wait for what becomes of it."""
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        sock.bind((source, sport))
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect((host, port))
        return self.adopt(sock)

    def do_accept(self, fd: int, count: int) -> list[dict[str, Any]]:
        taken = []
        for _ in range(count):
            sock, _ = self.sockets[fd].accept()
            sock.settimeout(10)
            taken.append(self.adopt(sock))
        return taken

    def do_send(self, fds: list[int], text: str) -> None:
        for fd in fds:
            self.sockets[fd].sendall(text.encode())

    def do_fill(self, fd: int) -> int:
        """Send until the kernel takes no more; return how many bytes it took."""
        sock = self.sockets[fd]
        sock.setblocking(False)
        sent, chunk = 0, bytes(65536)
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += sock.send(chunk)
        sock.settimeout(10)
        return sent

    def do_recv(self, fds: list[int], size: int) -> int:
        """Read exactly ``size`` bytes from each; return how many were read altogether (less at the end)."""
        total = 0
        for fd in fds:
            remaining = size
            while remaining:
                data = self.sockets[fd].recv(remaining)
                if not data:
                    break
                remaining -= len(data)
                total += len(data)
        return total

    def do_read_to_end(self, fds: list[int]) -> int:
        """Read each socket until end-of-file; return the number of bytes that came before."""
        total = 0
        for fd in fds:
            while data := self.sockets[fd].recv(65536):
                total += len(data)
        return total

    def do_await_reset(self, fds: list[int]) -> int:
        """Read each socket until it reports an error; return the errno of the last."""
        number = 0
        for fd in fds:
            try:
                while self.sockets[fd].recv(65536):
                    pass
            except OSError as error:
                number = error.errno or 0
        return number

    def do_shutdown(self, fds: list[int], how: str) -> None:
        for fd in fds:
            self.sockets[fd].shutdown(HOW[how])

    def do_close(self, fds: list[int]) -> None:
        for fd in fds:
            self.drop(self.sockets[fd])

    def do_leave(self, fds: list[int]) -> None:
        """Send FIN on each, wait until it is acknowledged, then close."""
        self.do_shutdown(fds, "WR")
        deadline = time.monotonic() + 10
        for fd in fds:
            # The first byte of struct tcp_info is the state.
            while self.sockets[fd].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_FIN_WAIT1:
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "the FIN is not acknowledged")
                time.sleep(0.001)
        self.do_close(fds)

    def do_reset(self, fds: list[int]) -> None:
        for fd in fds:
            self.sockets[fd].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.drop(self.sockets[fd])

    def do_forget(self, fds: list[int]) -> None:
        """Close each without a packet, as a machine forgets it that loses power (TCP_REPAIR)."""
        for fd in fds:
            self.sockets[fd].setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            self.drop(self.sockets[fd])

    def do_setsockopt(self, fds: list[int], level: int, name: int, value: int) -> None:
        for fd in fds:
            self.sockets[fd].setsockopt(level, name, value)

    def do_child(self, fds: list[int], argv: list[str]) -> int:
        """Start a real program that inherits ``fds`` under the same numbers; return its pid."""
        child = subprocess.Popen(
            argv,
            pass_fds=fds,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # one thread here
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.children.append(child)
        return child.pid

    def do_reap(self) -> None:
        """Wait for the children that have been killed, so that no zombie is left to whoever is init here."""
        for child in self.children:
            child.wait(10)

    def do_strand(self, fds: list[int]) -> None:
        """Send descriptors over a Unix socket that nobody reads, and close our own copies.

        The sockets then live only inside the message: no ``/proc/*/fd`` shows them.
        """
        left, right = socket.socketpair()
        socket.send_fds(left, [b"x"], fds)
        self.in_flight += [left, right]
        for fd in fds:
            self.drop(self.sockets[fd])

    def do_relay(self, fd: int, host: str, port: int, keepalive: bool) -> None:
        self.relays[fd] = Relay(self, self.sockets[fd], (host, port), keepalive)

    def do_udp(self, host: str, port: int) -> dict[str, Any]:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((host, port))
        return self.adopt(sock)

    def do_legs(self, fd: int) -> list[list[dict[str, Any]]]:
        return [[describe(inner), describe(outer)] for inner, outer in self.relays[fd].pairs]

    def do_trickle(self, fds: list[int], text: str, every: float) -> None:
        """Send ``text`` on each socket now and every ``every`` seconds from now on."""
        for fd in fds:
            self.trickles[fd] = (text.encode(), every, time.monotonic())

    def do_wait(self, fds: list[int], how: str) -> None:
        """Let something in this program wait for each socket, in a thread or an event loop of its own."""
        for fd in fds:
            target: Callable[[], object]
            if how == "recv":
                self.sockets[fd].setblocking(True)
                target = partial(self.sockets[fd].recv, 1)
            elif how == "poll":
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                target = partial(poll.poll, 600_000)
            else:
                epoll = select.epoll()
                epoll.register(fd, LOOPS[how])
                self.loops.append(epoll)
                if how == "elsewhere":
                    continue
                target = epoll.poll
                while how != "loop" and epoll.poll(0.05):
                    pass  # told of what is there: an edge and a one-shot are spent
            threading.Thread(target=target, daemon=True).start()

    def do_absorb(self, fds: list[int]) -> None:
        """Read and throw away whatever comes, in the background, until end-of-file."""
        for fd in fds:
            sock = self.sockets[fd]

            def react(sock: socket.socket = sock) -> None:
                try:
                    more = sock.recv(65536)
                except OSError:
                    more = b""
                if not more:
                    self.unwatch(sock)

            self.watch(sock, react)

    def do_inject_above_window(self, fd: int, ahead: int) -> None:
        """Put one segment on the wire that looks like ours but lies ``ahead`` bytes beyond the window.

        Sequence numbers are read through TCP_REPAIR (tcp(7) names it; net/ipv4/tcp.c), so nothing is
        guessed; the segment itself goes through a raw socket. IPv4 only.
        """
        sock = self.sockets[fd]
        numbers = {}
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        try:
            for queue in (TCP_SEND_QUEUE, TCP_RECV_QUEUE):
                sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
                numbers[queue] = sock.getsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ) & 0xFFFFFFFF
        finally:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF_NO_WP)
        (src, sport), (dst, dport) = sock.getsockname(), sock.getpeername()
        seq, ack = (numbers[TCP_SEND_QUEUE] + ahead) & 0xFFFFFFFF, numbers[TCP_RECV_QUEUE]
        payload = b"late"
        flags = 0x18  # PSH, ACK
        ends = socket.inet_aton(src) + socket.inet_aton(dst)
        segment = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 512, 0, 0) + payload
        pseudo = ends + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(segment))
        segment = segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]
        # The kernel fills in the total length, the identification and the header checksum (raw(7)).
        header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, socket.IPPROTO_TCP, 0) + ends
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(header + segment, (dst, 0))

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────

    def due(self) -> float | None:
        """Send what is due on the trickles; return the seconds until the next, None when there are none."""
        now = time.monotonic()
        for fd, (text, every, at) in list(self.trickles.items()):
            if at <= now:
                try:
                    self.sockets[fd].sendall(text)
                    self.trickles[fd] = (text, every, now + every)
                except OSError:
                    del self.trickles[fd]
        return (
            max(0.0, min((at for _, _, at in self.trickles.values()), default=now) - now)
            if self.trickles
            else None
        )

    def obey(self, line: bytes) -> bytes:
        """Carry one command out and return the reply line."""
        command = json.loads(line)
        reply: dict[str, Any]
        try:
            reply = {"ok": getattr(self, f"do_{command.pop('do')}")(**command)}
        except OSError as error:
            reply = {"errno": error.errno or 0, "error": str(error.strerror or error)}
        return json.dumps(reply).encode() + b"\n"

    def loop(self) -> None:
        """Run until the other side of the control socket closes."""
        pending = b""
        while True:
            for key, _ in self.selector.select(self.due()):
                if key.data is not None:
                    with contextlib.suppress(OSError):
                        key.data()
                    continue
                data = self.control.recv(1 << 20)
                if not data:
                    return
                pending += data
                while b"\n" in pending:
                    line, _, pending = pending.partition(b"\n")
                    self.control.sendall(self.obey(line))


def main() -> None:
    """Become the program that the launch description names, then obey."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the lab, which ends us in order
    fd, launch = int(sys.argv[1]), json.loads(sys.argv[2])
    control = socket.socket(fileno=fd)
    control.set_inheritable(False)
    if os.getppid() != launch["parent"]:
        return  # it died before the death signal was armed
    for path in launch["cgroups"]:
        with open(f"{path}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))
    checked(LIBC.setns(launch["netns"], CLONE_NEWNET), "enter the network namespace")
    os.close(launch["netns"])
    take_name(launch["comm"], launch["cmdline"])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    Program(control).loop()


if __name__ == "__main__":
    main()
