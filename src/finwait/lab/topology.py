"""Network namespaces, the links between them, and the promise that nothing of it stays behind.

A `Lab` holds each namespace by an open descriptor and nothing else, so even SIGKILL leaves nothing: the
descriptors close, the programs die with their parent (PR_SET_PDEATHSIG), the kernel takes the rest down. What
would survive, named namespaces and cgroups, is made only on request, and removed on exit, after exceptions,
and on SIGTERM and SIGINT.

Two labs at once do not meet: each takes a /20 of 10.0.0.0/8 that no other lab of this machine has (the
number is held by an abstract Unix socket), so even their four-tuples differ.

The surprise: an orphaned socket keeps its namespace alive after the last process and descriptor is gone, for
as long as its FIN is retransmitted (some 104 s). So a lab destroys what is left before it lets go; on kernels that
would leave an orphan for ever then (`kernel.destroy_trial`), it has orphans end at their next retransmission.

A namespace is entered by a thread that ends there; no thread of the caller ever changes its own. Working as
an ordinary user is possible inside ``unshare --user --map-root-user --net``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from msgspec import Struct

from finwait.errors import FinwaitError, KernelError, NotSupported, PermissionNeeded
from finwait.kernel import destroy_trial, rights
from finwait.lab.actor import Actor, has_ipv6

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType, TracebackType

    from finwait.lab.actor import ProgramSocket

__all__ = ["Lab", "LabError", "Link", "Netns", "Translated", "unmet"]

_T = TypeVar("_T")

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MNT_DETACH = 4096, 2
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_RUN_NETNS = Path("/run/netns")
_LIBC = ctypes.CDLL(None, use_errno=True)

_LABS = 4096
"""How many labs fit into 10.0.0.0/8 with 16 networks of 256 addresses each."""


_NETWORKS = 16
_AS_ROOT = "use sudo, or run it inside `unshare --user --map-root-user --net`"


class LabError(FinwaitError):
    """The lab could not build what a scenario asks for: a tool is missing or said no."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Link(Struct, frozen=True):
    """A veth pair between two namespaces, with an IPv4 /24 and an IPv6 /64 on it.

    On a kernel without IPv6 ``a6`` and ``b6`` are the IPv4 addresses: whoever connects to them is served all the same.
    """

    a: Netns
    b: Netns
    a_dev: str
    b_dev: str
    a4: str
    b4: str
    a6: str
    b6: str

    def cut(self, *, a: bool = True, b: bool = True) -> None:
        """Swallow everything that arrives at end ``a``, at end ``b``, or at both; nobody is told."""
        for end, dev in ((self.a, self.a_dev),) * a + ((self.b, self.b_dev),) * b:
            end.nft(
                f"table inet cut_{dev} {{\n chain arriving {{\n  type filter hook prerouting priority -400\n"
                f'  iifname "{dev}" drop\n }}\n}}'
            )

    def refuse(self, *, a: bool = False, b: bool = False) -> None:
        """Refuse whatever wants to leave by end ``a`` or ``b``, as a firewall of that machine does (OUTPUT)."""
        for end, dev in ((self.a, self.a_dev),) * a + ((self.b, self.b_dev),) * b:
            end.nft(
                f"table inet refuse_{dev} {{\n chain leaving {{\n  type filter hook output priority 0\n"
                f'  oifname "{dev}" drop\n }}\n}}'
            )


class Netns:
    """A network namespace, held open by a descriptor.

    Attributes:
        name: what the lab's stories call it.
        fd: the descriptor that keeps it alive.
        inode: its number, as ``/proc/PID/ns/net`` and finwait print it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = _in_thread(_unshare)
        self.inode = os.fstat(self.fd).st_ino
        self._devices = 0
        self.call(_loopback_up)

    def __repr__(self) -> str:
        return f"<Netns {self.name} {self.inode}>"

    def call(self, function: Callable[[], _T]) -> _T:
        """Carry a function out inside the namespace, in a thread that ends there; return its result."""

        def inside() -> _T:
            _checked(_LIBC.setns(self.fd, _CLONE_NEWNET), "enter the network namespace")
            return function()

        return _in_thread(inside)

    def run(self, *argv: str, stdin: str = "", fds: Sequence[int] = ()) -> str:
        """Run a command inside the namespace and return what it printed.

        Raises:
            LabError: the command is not there or failed; the message has what it said.
        """

        def inside() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                argv,
                input=stdin,
                capture_output=True,
                text=True,
                check=False,
                pass_fds=tuple(fds),
                timeout=60,
            )

        try:
            done = self.call(inside)
        except FileNotFoundError:
            raise LabError(
                f"could not run `{argv[0]}`: it is not installed", hint="apt install iproute2 nftables"
            ) from None
        if done.returncode:
            message = done.stderr.strip() or f"exit status {done.returncode}"
            refused = "not permitted" in message
            raise LabError(
                f"`{' '.join(argv)}` failed in namespace {self.name}: {message}",
                hint=_AS_ROOT if refused else "",
            )
        return done.stdout

    def ip(self, *lines: str, fds: Sequence[int] = ()) -> None:
        """Carry out lines of the `ip` command, such as ``route add default via 10.0.0.1``, in one batch."""
        self.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n", fds=fds)

    def nft(self, ruleset: str) -> None:
        """Load a ruleset written in the language of nftables."""
        self.run("nft", "-f", "-", stdin=ruleset + "\n")

    def sysctl(self, name: str, value: int | str) -> None:
        """Set a sysctl of this namespace, such as ``net.ipv4.tcp_fin_timeout``."""
        self.call(lambda: Path("/proc/sys", *name.split(".")).write_text(str(value)))

    def next_device(self) -> str:
        """Return a device name that is not in use here yet."""
        self._devices += 1
        return f"eth{self._devices - 1}"

    def end_sockets(self) -> None:
        """Have every TCP socket here end soon, when no program holds it any more.

        SOCK_DESTROY ends it at once. Of an orphan, older kernels only take its FIN and its timer, and it stays for
        ever: there the kernel gives up after one retransmission instead.
        """
        with contextlib.suppress(LabError, OSError):
            if destroy_trial.tried().ends_orphans:
                self.run("ss", "-K", "-t", "-a", "-n", "-H")
            else:
                self.sysctl("net.ipv4.tcp_orphan_retries", 1)

    def close(self) -> None:
        """Take its links down and let go of it. Safe to call twice."""
        if self.fd < 0:
            return
        self.end_sockets()
        if self._devices:
            with contextlib.suppress(LabError):  # the far end may have taken some of them with it
                lines = "".join(f"link delete eth{number}\n" for number in range(self._devices))
                self.run("ip", "-force", "-batch", "-", stdin=lines)
        os.close(self.fd)
        self.fd = -1


class Translated(Struct, frozen=True):
    """A client and a backend with a gateway between them that translates a Service address (DNAT)."""

    gateway: Netns
    client: Actor
    backend: Actor
    door: ProgramSocket
    """The backend's listener; its port is the Service's too."""
    address: str
    """The Service address, which is on no device."""

    def await_no_entries(self, deadline_s: float = 20.0) -> None:
        """Wait until the gateway's connection tracking has forgotten every flow to the Service.

        Raises:
            LabError: it still has some after ``deadline_s`` seconds.
        """
        end = time.monotonic() + deadline_s
        while entries := self.gateway.run("conntrack", "-L", "-p", "tcp", "-d", self.address).strip():
            if time.monotonic() > end:
                raise LabError(f"entries that do not expire: {entries}")
            time.sleep(0.1)


class Lab:
    """A place for failures on demand. Use it as a context manager, from a thread that outlives it.

    Args:
        prefix: also bind the namespaces to ``/run/netns/PREFIX-NAME``, so that `ip netns` lists them; ""
            (the default) leaves them anonymous. Of a named one SIGKILL does leave the name behind.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.namespaces: dict[str, Netns] = {}
        self.actors: list[Actor] = []
        self.links: list[Link] = []
        self._bound: list[Path] = []
        self._cgroups: list[Path] = []
        self._networks = 0
        self._number = -1
        self._claim: socket.socket | None = None
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> Self:
        self._claim_number()
        if threading.current_thread() is threading.main_thread():
            # SIGINT raises KeyboardInterrupt already; the others would end us without a word.
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._handlers[number] = signal.signal(number, _leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _claim_number(self) -> None:
        """Take a number that no other running lab has; the kernel gives it back when we are gone."""
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for attempt in range(_LABS):
            number = (os.getpid() * 7 + attempt) % _LABS
            try:
                claim.bind(f"\0finwait-lab-{number}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            self._claim, self._number = claim, number
            return
        claim.close()
        raise LabError(f"could not start a lab: {_LABS} are running", hint="end some of them")

    # ── building ─────────────────────────────────────────────────────────────────────────────────────

    def netns(self, name: str) -> Netns:
        """Make a namespace with its loopback up.

        Raises:
            PermissionNeeded: without CAP_SYS_ADMIN.
        """
        if name in self.namespaces:
            raise ValueError(f"namespace {name} exists already")
        try:
            fresh = Netns(name)
        except PermissionError as error:
            refusal = PermissionNeeded(
                error.errno or errno.EPERM, "make a network namespace", _right_to_make()
            )
            refusal.hint = _AS_ROOT
            raise refusal from None
        self.namespaces[name] = fresh
        if self.prefix:
            self._bind(fresh)
        return fresh

    def _bind(self, netns: Netns) -> None:
        """Give a namespace a name for `ip netns`."""
        path = _RUN_NETNS / f"{self.prefix}-{netns.name}"
        path.parent.mkdir(mode=0o755, exist_ok=True)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
        self._bound.append(path)
        source = f"/proc/self/fd/{netns.fd}".encode()
        _checked(_LIBC.mount(source, str(path).encode(), None, _MS_BIND, None), f"bind {path}")

    def link(self, a: Netns, b: Netns) -> Link:
        """Join two namespaces by a veth pair with fresh IPv4 and IPv6 networks, both ends up."""
        if self._networks >= _NETWORKS:
            raise ValueError(f"a lab has {_NETWORKS} networks")
        base = ipaddress.IPv4Address("10.0.0.0") + self._number * 4096 + self._networks * 256
        base6 = ipaddress.IPv6Address("fd66:696e:7761::") + ((self._number * 16 + self._networks) << 64)
        # Different interface indices on purpose: when both ends of a veth have the same one, the kernel takes
        # their carrier for not urgent (linkwatch_urgent_event) and IPv6 stays dead for a second.
        index = 100 + 2 * self._networks
        self._networks += 1
        v4 = str(base + 1), str(base + 2)
        v6 = (str(base6 + 1), str(base6 + 2)) if has_ipv6() else v4
        link = Link(a, b, a.next_device(), b.next_device(), *v4, *v6)
        a.ip(
            f"link add {link.a_dev} index {index} type veth "
            f"peer name {link.b_dev} index {index + 1} netns /proc/self/fd/{b.fd}",
            f"addr add {link.a4}/24 dev {link.a_dev}",
            *((f"addr add {link.a6}/64 dev {link.a_dev} nodad",) if has_ipv6() else ()),
            f"link set {link.a_dev} up",
            fds=(b.fd,),
        )
        b.ip(
            f"addr add {link.b4}/24 dev {link.b_dev}",
            *((f"addr add {link.b6}/64 dev {link.b_dev} nodad",) if has_ipv6() else ()),
            f"link set {link.b_dev} up",
        )
        self.links.append(link)
        return link

    def service_address(self) -> str:
        """Return a fresh IPv4 address that is on no device, as a Service's virtual address is."""
        if self._networks >= _NETWORKS:
            raise ValueError(f"a lab has {_NETWORKS} networks")
        base = ipaddress.IPv4Address("10.0.0.0") + self._number * 4096 + self._networks * 256
        self._networks += 1
        return str(base + 10)

    def translated(self) -> Translated:
        """Build client — gateway — server, with DNAT of a Service address on the gateway, and its programs.

        Connection tracking runs in the gateway's namespace only, as on a node of a cluster.
        """
        outside, gateway, inside = self.netns("client"), self.netns("gateway"), self.netns("server")
        front, back = self.link(outside, gateway), self.link(gateway, inside)
        address = self.service_address()
        outside.ip(f"route add default via {front.b4}")
        inside.ip(f"route add default via {back.a4}")
        # What is not translated goes nowhere, as beyond a node's gateway: no ICMP error tells the client.
        gateway.ip(f"route add blackhole {address}")
        gateway.sysctl("net.ipv4.ip_forward", 1)
        gateway.nft(
            "table ip service {\n chain prerouting {\n  type nat hook prerouting priority dstnat\n"
            f"  ip daddr {address} tcp dport 8080 dnat to {back.b4}\n }}\n}}"
        )
        client = self.actor(outside, "client")
        backend = self.actor(inside, "backend")
        return Translated(gateway, client, backend, backend.listen(back.b4, 8080), address)

    def actor(self, netns: Netns, comm: str, *cmdline: str, cgroup: Path | None = None) -> Actor:
        """Start a program in a namespace; it is ready to be told what to do when this returns."""
        actor = Actor(netns, comm, cmdline, () if cgroup is None else (cgroup,))
        self.actors.append(actor)
        return actor.ready()

    def cgroup(self, path: str) -> Path:
        """Make a cgroup (version 2) and return its directory.

        Args:
            path: for example ``kubepods.slice/pod.slice/app.scope``, below a directory of this lab's own.

        Raises:
            NotSupported: there is no cgroup2 hierarchy here, or we may not write to it.
        """
        root = _cgroup2_root()
        if root is None:
            raise NotSupported(errno.ENOENT, "make a cgroup", "cgroup2 hierarchy")
        where = root / f"finwait-lab-{self._number}"
        for part in ("", *Path(path).parts):
            where = where / part
            try:
                where.mkdir()
            except FileExistsError:
                continue
            except OSError as error:
                raise NotSupported(error.errno or 0, f"make cgroup {where}", "writable cgroup2") from None
            self._cgroups.append(where)
        return where

    # ── taking down ──────────────────────────────────────────────────────────────────────────────────

    def vanish(self, netns: Netns) -> None:
        """Lose a namespace as a dying node does: links first, so that nothing its programs say gets out."""
        for link in [link for link in self.links if netns in (link.a, link.b)]:
            end, dev = (link.a, link.a_dev) if link.a is netns else (link.b, link.b_dev)
            end.ip(f"link delete {dev}")
            self.links.remove(link)
        self._end_actors([actor for actor in self.actors if actor.netns is netns])
        del self.namespaces[netns.name]
        netns.close()

    def _end_actors(self, doomed: Sequence[Actor]) -> None:
        """Kill programs and what they started, and wait until all are gone."""
        for actor in doomed:
            actor.kill()
            self.actors.remove(actor)

    def close(self) -> None:
        """Remove everything. Safe to call twice, and from a half-built lab."""
        self._end_actors(list(self.actors))
        for netns in self.namespaces.values():
            netns.close()
        self.namespaces.clear()
        self.links.clear()
        for path in self._bound:
            _LIBC.umount2(str(path).encode(), _MNT_DETACH)
            path.unlink(missing_ok=True)
        self._bound.clear()
        for path in reversed(self._cgroups):
            _remove_cgroup(path)
        self._cgroups.clear()
        if self._claim is not None:
            self._claim.close()
            self._claim = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._handlers.clear()


def _right_to_make() -> str:
    capabilities = {rights.missing(name): None for name in ("CAP_SYS_ADMIN", "CAP_NET_ADMIN")}
    return " and ".join(capabilities)


def unmet(needs: Sequence[str]) -> tuple[str, ...]:
    """Return which of a scenario's needs this machine does not meet, each as a sentence for a skip.

    Known needs: ``netns`` (may make namespaces), ``cgroup2``, ``mptcp``, ``tool:NAME`` (a command), and
    ``sysctl:NAME`` (of a namespace).
    """
    missing = []
    for need in needs:
        if need.startswith("tool:"):
            if shutil.which(need[5:]) is None:
                missing.append(f"the command `{need[5:]}` is not installed")
        elif need == "netns":
            try:
                os.close(_in_thread(_unshare))
            except OSError as error:
                reason = os.strerror(error.errno or 0)
                missing.append(
                    f"may not make a network namespace ({reason}); needs {_right_to_make()}; {_AS_ROOT}"
                )
        elif need == "mptcp":
            try:
                socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP).close()
            except OSError as error:
                missing.append(f"the kernel has no MPTCP ({error.strerror})")
        elif need.startswith("sysctl:"):
            if not Path("/proc/sys", *need[7:].split(".")).exists():
                missing.append(f"this kernel has no sysctl `{need[7:]}`")
        elif need == "cgroup2":
            root = _cgroup2_root()
            if root is None or not os.access(root, os.W_OK):
                missing.append("no cgroup2 hierarchy that we may write to")
        else:
            raise ValueError(f"unknown need {need!r}")
    return tuple(missing)


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signature of a handler
    """Unwind as an exception would, so that every ``with`` cleans up."""
    raise SystemExit(128 + number)


def _checked(result: int, doing: str) -> None:
    """Raise what a libc call left in errno, as the `OSError` subclass of that number."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} ({doing})")


def _in_thread(function: Callable[[], _T]) -> _T:
    """Run ``function()`` in a thread of its own and return or raise what it does.

    The thread goes home before it ends: the kernel lists a thread for a moment after it was joined, and a
    namespace in which it was left would look like one where somebody lives.
    """
    results: list[_T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                results.append(function())
            finally:
                _LIBC.setns(home, _CLONE_NEWNET)
                os.close(home)
        except BaseException as error:  # noqa: BLE001  # handed on below, to the caller's thread
            errors.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _unshare() -> int:
    """Put this (throw-away) thread into a new namespace and return a descriptor of it."""
    _checked(_LIBC.unshare(_CLONE_NEWNET), "make a network namespace")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _loopback_up() -> None:
    """Set IFF_UP on ``lo`` (netdevice(7)); quicker than starting `ip` for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        flags = struct.unpack("16sh14x", answer)[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def _cgroup2_root() -> Path | None:
    """Return where the cgroup2 hierarchy is mounted, if anywhere."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    return None


def _remove_cgroup(path: Path) -> None:
    """Remove a cgroup whose processes are gone; the kernel may need a moment to notice (EBUSY)."""
    deadline = time.monotonic() + 5
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise KernelError(error.errno or 0, f"remove cgroup {path}") from None
            time.sleep(0.01)
        else:
            return
