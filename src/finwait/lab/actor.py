"""The near side of an actor: a handle on a program that runs in a namespace and owns sockets.

Each call of a method is one JSON line to `finwait.lab.program` and one line back, in order; a call returns
when the program has done it. Errors of the program's system calls arrive as `finwait.errors.KernelError`.

The surprise: the death signal that ends the program follows the *thread* that started it (prctl(2),
PR_SET_PDEATHSIG), so a lab belongs to a thread that outlives it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from finwait.errors import FinwaitError, KernelError, TargetGone

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from finwait.lab.topology import Netns

__all__ = ["Actor", "ProgramSocket", "has_ipv6", "meet"]

_PROGRAM = Path(__file__).with_name("program.py")


@lru_cache(maxsize=1)
def has_ipv6() -> bool:
    """Return whether this kernel has IPv6: ``ipv6.disable=1`` takes it away."""
    try:
        socket.socket(socket.AF_INET6).close()
    except OSError:
        return False
    return True


def _spoken(host: str) -> tuple[socket.AddressFamily, str]:
    """Return the family and the address to use for ``host``; without IPv6, what does the same in IPv4."""
    if ":" not in host:
        return socket.AF_INET, host
    if has_ipv6():
        return socket.AF_INET6, host
    return socket.AF_INET, "0.0.0.0" if host == "::" else host.removeprefix("::ffff:")  # noqa: S104 - a namespace of ours


class ProgramSocket(Struct, frozen=True):
    """A socket as its program sees it."""

    actor: Actor
    fd: int
    inode: int
    family: int
    src: str
    sport: int
    dst: str
    dport: int

    @property
    def owner(self) -> tuple[int, int]:
        """The program's pid and its descriptor for this socket."""
        return (self.actor.pid, self.fd)


class Actor:
    """A program of its own name in a network namespace.

    Args:
        netns: where its sockets live.
        comm: its name in ``/proc/PID/comm`` (15 bytes at most).
        cmdline: its arguments as ``/proc/PID/cmdline`` shall show them; ``(comm,)`` when empty.
        cgroups: directories of cgroups to enter before the first socket.
    """

    def __init__(self, netns: Netns, comm: str, cmdline: Sequence[str], cgroups: Sequence[Path]) -> None:
        self.netns = netns
        self.comm = comm
        self.children: list[int] = []
        """Pidfds of programs that it started and that may outlive it; negative pids where the kernel has no pidfds."""
        near, far = socket.socketpair()
        launch = {
            "parent": os.getpid(),
            "netns": netns.fd,
            "comm": comm,
            "cmdline": list(cmdline) or [comm],
            "cgroups": [str(path) for path in cgroups],
        }
        with far:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_PROGRAM), str(far.fileno()), json.dumps(launch)],
                pass_fds=(far.fileno(), netns.fd),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath)},
            )
        self._control = near
        self._control.settimeout(90)  # one that died says so at once; a busy machine starts a program late
        self._replies = near.makefile("rb")
        self.pid = self._process.pid

    def __repr__(self) -> str:
        return f"<Actor {self.comm} pid {self.pid} in {self.netns.name}>"

    def ask(self, do: str, **arguments: object) -> Any:  # noqa: ANN401  # whatever JSON held
        """Have the program carry out one command and return its answer.

        Raises:
            KernelError: a system call of the program failed.
            TargetGone: the program is not there any more.
        """
        try:
            self._control.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            line = self._replies.readline()
        except OSError:
            line = b""
        if not line:
            raise TargetGone(self.pid, f"program `{self.comm}` did not answer `{do}`")
        reply = json.loads(line)
        if "errno" in reply:
            doing = f"have `{self.comm}` {do.replace('_', ' ')} ({reply['error']})"
            raise KernelError(reply["errno"], doing, netns=self.netns.inode)
        return reply["ok"]

    def ready(self) -> Actor:
        """Wait until the program runs inside its namespace; return the actor itself."""
        self.ask("hello")
        return self

    def _conn(self, answer: dict[str, Any]) -> ProgramSocket:
        (src, sport), (dst, dport) = answer["local"], answer["peer"]
        return ProgramSocket(self, answer["fd"], answer["inode"], answer["family"], src, sport, dst, dport)

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────

    def listen(
        self,
        host: str,
        port: int = 0,
        *,
        backlog: int = 1024,
        mptcp: bool = False,
        inheritable: bool = False,
    ) -> ProgramSocket:
        """Listen; port 0 lets the kernel choose. ``::`` is dual-stack: it takes IPv4 clients too."""
        family, host = _spoken(host)
        return self._conn(
            self.ask(
                "listen",
                host=host,
                port=port,
                family=int(family),
                backlog=backlog,
                mptcp=mptcp,
                inheritable=inheritable,
            )
        )

    def connect(
        self,
        host: str,
        port: int,
        *,
        source: str = "",
        mptcp: bool = False,
        options: Sequence[tuple[int, int, int]] = (),
    ) -> ProgramSocket:
        """Open one connection; see `connect_many`."""
        return self.connect_many(1, host, port, source=source, mptcp=mptcp, options=options)[0]

    def connect_many(
        self,
        count: int,
        host: str,
        port: int,
        *,
        source: str = "",
        mptcp: bool = False,
        options: Sequence[tuple[int, int, int]] = (),
        wait: bool = True,
    ) -> list[ProgramSocket]:
        """Open ``count`` connections at once.

        Args:
            count: how many; the far listener's backlog must hold those that nobody accepts meanwhile.
            host: ``::ffff:192.0.2.1`` makes an AF_INET6 socket that speaks IPv4.
            port: the far port.
            source: the address to come from; the kernel chooses when empty.
            mptcp: use IPPROTO_MPTCP.
            options: ``(level, name, value)`` to set before connecting.
            wait: until all are established; without it the address is the far end's that was asked for.
        """
        family, host = _spoken(host)
        answers = self.ask(
            "connect",
            host=host,
            port=port,
            family=int(family),
            count=count,
            source=source,
            mptcp=mptcp,
            options=[list(option) for option in options],
            wait=wait,
        )
        return [self._conn(answer) for answer in answers]

    def dial(self, host: str, port: int, *, source: str, sport: int) -> ProgramSocket:
        """Begin to connect from a given port; the connection may stay in SYN_SENT."""
        answer = self.ask("dial", host=host, port=port, source=source, sport=sport)
        return replace(self._conn(answer), dst=host, dport=port)

    def accept(self, listener: ProgramSocket) -> ProgramSocket:
        """Accept one connection, waiting for it up to 10 s."""
        return self.accept_many(listener, 1)[0]

    def accept_many(self, listener: ProgramSocket, count: int) -> list[ProgramSocket]:
        """Accept ``count`` connections, waiting for each up to 10 s."""
        return [self._conn(answer) for answer in self.ask("accept", fd=listener.fd, count=count)]

    # ── using ────────────────────────────────────────────────────────────────────────────────────────

    def send(self, conns: Iterable[ProgramSocket], text: str) -> None:
        """Send ``text`` on each."""
        self.ask("send", fds=[conn.fd for conn in conns], text=text)

    def fill(self, conn: ProgramSocket) -> int:
        """Send zeros until the kernel takes no more; return how many bytes it took."""
        return int(self.ask("fill", fd=conn.fd))

    def recv(self, conns: Iterable[ProgramSocket], size: int) -> int:
        """Read exactly ``size`` bytes from each; return how many came altogether."""
        return int(self.ask("recv", fds=[conn.fd for conn in conns], size=size))

    def read_to_end(self, conns: Iterable[ProgramSocket]) -> int:
        """Read each until end-of-file; return how many bytes came before it."""
        return int(self.ask("read_to_end", fds=[conn.fd for conn in conns]))

    def await_reset(self, conns: Iterable[ProgramSocket]) -> int:
        """Read each until an error or end-of-file; return the last errno, 0 for end-of-file."""
        return int(self.ask("await_reset", fds=[conn.fd for conn in conns]))

    def trickle(self, conns: Iterable[ProgramSocket], text: str, every: float) -> None:
        """Send ``text`` on each now and every ``every`` seconds, in the background."""
        self.ask("trickle", fds=[conn.fd for conn in conns], text=text, every=every)

    def absorb(self, conns: Iterable[ProgramSocket]) -> None:
        """Read and throw away whatever comes on each, in the background."""
        self.ask("absorb", fds=[conn.fd for conn in conns])

    def wait(
        self,
        conns: Iterable[ProgramSocket],
        how: Literal["recv", "poll", "loop", "edge", "spent", "paused", "elsewhere"],
    ) -> None:
        """Let something in the program wait for each.

        Args:
            conns: sockets of this program.
            how: a thread in recv() without a limit, or in poll() for ten minutes at most; an event loop that
                watches for reading, is told once (edge), was told and is not armed again (spent), watches for
                nothing (paused), or whose thread does something else.
        """
        self.ask("wait", fds=[conn.fd for conn in conns], how=how)

    def setsockopt(self, conns: Iterable[ProgramSocket], level: int, name: int, value: int) -> None:
        """Set an integer socket option on each."""
        self.ask("setsockopt", fds=[conn.fd for conn in conns], level=level, name=name, value=value)

    def relay(self, listener: ProgramSocket, host: str, port: int, *, keepalive: bool = False) -> None:
        """Relay every client of ``listener`` to ``host:port``, passing half-closes on, without a deadline.

        ``keepalive`` sets SO_KEEPALIVE on both legs, with the times of the namespace's sysctls.
        """
        self.ask("relay", fd=listener.fd, host=host, port=port, keepalive=keepalive)

    def udp(self, host: str, port: int) -> ProgramSocket:
        """Bind a UDP socket: a descriptor of another kind, for what must not be mistaken for TCP."""
        return self._conn(self.ask("udp", host=host, port=port))

    def legs(self, listener: ProgramSocket) -> list[tuple[ProgramSocket, ProgramSocket]]:
        """Return the pairs that a relay holds: the leg to the client, the leg to the target."""
        return [(self._conn(near), self._conn(far)) for near, far in self.ask("legs", fd=listener.fd)]

    def inject_above_window(self, conn: ProgramSocket, ahead: int = 50_000_000) -> None:
        """Put one forged segment on the wire, ``ahead`` bytes above the window (IPv4; needs CAP_NET_RAW)."""
        self.ask("inject_above_window", fd=conn.fd, ahead=ahead)

    # ── ending ───────────────────────────────────────────────────────────────────────────────────────

    def shutdown(self, conns: Iterable[ProgramSocket], how: Literal["RD", "WR", "RDWR"] = "WR") -> None:
        """Shut down one or both directions of each."""
        self.ask("shutdown", fds=[conn.fd for conn in conns], how=how)

    def close(self, conns: Iterable[ProgramSocket]) -> None:
        """Close the program's descriptor of each."""
        self.ask("close", fds=[conn.fd for conn in conns])

    def leave(self, conns: Iterable[ProgramSocket]) -> None:
        """Close each for good, in the way that surely makes an ordinary orphan in FIN_WAIT2.

        The FIN goes out and is acknowledged before the descriptor is closed. With close() alone the kernel
        keeps about one in some thousand as a full socket (timer 2) instead, when the acknowledgement arrives
        while close() still holds the socket (tcp_rcv_state_process: ``sock_owned_by_user``).
        """
        self.ask("leave", fds=[conn.fd for conn in conns])

    def reset(self, conns: Iterable[ProgramSocket]) -> None:
        """Close each with SO_LINGER on and 0 s, which sends RST."""
        self.ask("reset", fds=[conn.fd for conn in conns])

    def forget(self, conns: Iterable[ProgramSocket]) -> None:
        """Close each without a packet, as a machine does that loses power (needs CAP_NET_ADMIN)."""
        self.ask("forget", fds=[conn.fd for conn in conns])

    def child(self, conns: Iterable[ProgramSocket], *argv: str) -> int:
        """Start a real program that inherits the descriptors under the same numbers; return its pid."""
        pid = int(self.ask("child", fds=[conn.fd for conn in conns], argv=list(argv)))
        try:
            self.children.append(os.pidfd_open(pid))
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            self.children.append(
                -pid
            )  # before Linux 5.3: our program is its parent and does not reap it before `kill`
        return pid

    def strand(self, conns: Iterable[ProgramSocket]) -> None:
        """Leave the sockets inside a message (SCM_RIGHTS) that nobody receives; close our descriptors."""
        self.ask("strand", fds=[conn.fd for conn in conns])

    def kill(self) -> None:
        """End the program and what it started at once, as SIGKILL does, and wait until they are gone."""
        if self.children:
            for pidfd in self.children:
                with contextlib.suppress(ProcessLookupError):
                    if pidfd < 0:
                        os.kill(-pidfd, signal.SIGKILL)
                        continue
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
            self.children.clear()
            with contextlib.suppress(FinwaitError):
                self.ask("reap")
        self._process.kill()
        self._process.wait()
        self._replies.close()
        self._control.close()


def meet(
    client: Actor, host: str, server: Actor, listener: ProgramSocket, count: int = 1
) -> tuple[list[ProgramSocket], list[ProgramSocket]]:
    """Open ``count`` connections and have them accepted; the two lists are in the same order.

    Args:
        client: who connects.
        host: the server's address as the client says it.
        server: who accepts.
        listener: where.
        count: how many; taken in portions that fit the listener's queue.
    """
    near: list[ProgramSocket] = []
    far: list[ProgramSocket] = []
    while len(near) < count:
        portion = min(500, count - len(near))
        near += client.connect_many(portion, host, listener.sport)
        far += server.accept_many(listener, portion)
    at = {conn.dport: conn for conn in far}
    return near, [at[conn.sport] for conn in near]
