"""Machines that were restricted on purpose: what finwait then does, and what it says that it cannot do.

Each restriction is a boot of its own: some are words on the kernel's command line, and none of the others can be
taken back before the next boot. What can be done without what is forbidden must be done; of the rest finwait names
what forbids it, and what would let it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.guest.acts import arm, clear, in_scenario, probe, record, resets, tune
from tests.guest.trying import Differs, NotHere, attempt, command, expected, expected_as_built

if TYPE_CHECKING:
    from finwait.lab.scenario import Situation

__all__ = ["RESTRICTED", "Restricted"]

LOCKDOWN = Path("/sys/kernel/security/lockdown")
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
MODPROBE = Path("/proc/sys/kernel/modprobe")
MODULES_DISABLED = Path("/proc/sys/kernel/modules_disabled")
NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Restricted:
    """One boot."""

    append: str
    """Words for the kernel's command line."""
    job: Callable[[], None]


def _try(restriction: str, what: str, work: Callable[[], str | None]) -> None:
    attempt("restriction", f"{restriction}: {what}", work)


def _said(words: tuple[str, ...], statuses: tuple[int, ...], *wanted: str) -> str:
    """Run a command; insist on its status and on what it says."""
    status, out, err = command(*words)
    expected(status, statuses, out, err)
    lacking = [one for one in wanted if one not in out + err]
    if lacking:
        raise Differs(f"does not say {lacking}\n{err[-2500:]}\n{out[-2500:]}")
    return next((line.strip() for line in (err + out).splitlines() if any(w in line for w in wanted)), "")


def _usual(restriction: str) -> None:
    """What none of these restrictions may keep from working."""
    _try(restriction, "`finwait`", lambda: _said(("diagnose",), (0, 3)))
    _try(restriction, "`lab run fin-wait2-held`", lambda: expected_as_built("fin-wait2-held"))
    _try(restriction, "record and diagnose it", lambda: in_scenario("close-wait-eof-read", record))
    _try(
        restriction,
        "`clear --with destroy`",
        lambda: in_scenario("fin-wait2-held", clear("--with", "destroy")),
    )
    _try(restriction, "tune apply and undo", tune)


def _borrowing(restriction: str) -> None:
    """What takes a copy of a descriptor."""
    _try(restriction, "`probe`", lambda: in_scenario("fin-wait2-held", probe))
    _try(restriction, "arm and undo", lambda: in_scenario("idle-unprobed", arm))


def _tracing(restriction: str) -> None:
    _try(restriction, "trace over IPv4", resets(socket.AF_INET, "127.0.0.1"))


# ── ipv6.disable=1 ───────────────────────────────────────────────────────────────────────────────────


def without_ipv6() -> None:
    """The kernel knows no address family of IPv6."""
    name = "ipv6.disable=1"
    _try(name, "there is no IPv6", _no_ipv6)
    _usual(name)
    _borrowing(name)
    _tracing(name)
    _try(name, "`list`", lambda: _said(("list",), (0, 3)))
    _try(name, "`check`", lambda: _said(("check",), (0,)))
    _try(name, "`tune show`", lambda: _said(("tune", "show"), (0, 3)))
    _try(name, "`lab run relay-pair`", lambda: expected_as_built("relay-pair"))
    _try(name, "`relay run --listen *:0`", _relay)


def _no_ipv6() -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6):
        raise Differs("a socket of IPv6 could be made")


def _relay() -> str:
    """Start a relay on every address and end it, as a person would."""
    words = [sys.executable, "-m", "finwait", "relay", "run", "--listen", "*:0", "--to", "127.0.0.1:9"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as relay:
        late = threading.Timer(120, relay.kill)
        late.start()
        said = []
        for line in relay.stderr or ():
            said.append(line)
            if "→" in line:  # it listens
                break
        relay.send_signal(signal.SIGTERM)
        said += relay.communicate()[1].splitlines(keepends=True)
        late.cancel()
    expected(relay.returncode, (0,), "", "".join(said))
    return said[0]


# ── lockdown ─────────────────────────────────────────────────────────────────────────────────────────


def locked_integrity() -> None:
    """Nobody may change the running kernel."""
    name = "lockdown=integrity"
    _try(name, "it is in force", lambda: _in_force("integrity"))
    _usual(name)
    _borrowing(name)
    _tracing(name)


def locked_confidentiality() -> None:
    """Nobody may read the running kernel either: no tracing."""
    name = "lockdown=confidentiality"
    _try(name, "it is in force", lambda: _in_force("confidentiality"))
    _usual(name)
    _borrowing(name)
    words = ("trace", "--for", "3s")
    _try(name, "`trace` compares snapshots, and says why", lambda: _said(words, (0, 3), "confidentiality"))
    _try(
        name,
        "`trace --resets` says why it cannot",
        lambda: _said((*words, "--resets"), (0, 1, 3), "confidentiality"),
    )


def _in_force(wanted: str) -> None:
    if not LOCKDOWN.exists():
        raise NotHere("the kernel has no lockdown")
    if f"[{wanted}]" not in LOCKDOWN.read_text():
        raise NotHere(f"`{LOCKDOWN}` is {LOCKDOWN.read_text().strip()}")


# ── yama ─────────────────────────────────────────────────────────────────────────────────────────────


def yama() -> None:
    """Who may attach to whom, from 1 to 3; 3 cannot be taken back."""
    for scope in (1, 2, 3):
        name = f"kernel.yama.ptrace_scope={scope}"
        _try(name, "it is in force", lambda scope=scope: _scope(scope))  # type: ignore[misc]
        _usual(name)
        if scope < 3:  # root has CAP_SYS_PTRACE
            _borrowing(name)
        else:
            _try(
                name, "`probe` changes nothing and says why", lambda: in_scenario("fin-wait2-held", _no_probe)
            )
            _try(name, "leaked descriptors are no all-clear", lambda: in_scenario("hidden-leak", _no_leak))
        _try(name, "a plain user's `probe` says why not", lambda: in_scenario("fin-wait2-held", _plain))


def _scope(scope: int) -> None:
    if not YAMA.exists():
        raise NotHere("the kernel has no yama")
    YAMA.write_text(str(scope))
    if YAMA.read_text().strip() != str(scope):
        raise Differs(f"it is {YAMA.read_text().strip()}")


def _netns(situation: Situation) -> str:
    return str(situation.expected[0].netns)


def _no_probe(situation: Situation) -> str:
    words = ("probe", "netns", "=", _netns(situation), "state", "fin-wait-2")
    return _said(words, (3,), "`kernel.yama.ptrace_scope`")


def _no_leak(situation: Situation) -> str:
    return _said(
        ("diagnose", "--netns", str(min(situation.namespaces.values()))), (3,), "ptrace_scope below 3"
    )


def _plain(situation: Situation) -> str:
    """Run ``probe`` in a child that is nobody, on a process of root's: neither yama nor anything else lets it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.environ["FINWAIT_STATE_DIR"] = "/tmp/nobody"
            status, out, err = command("probe", "netns", "=", _netns(situation), "state", "fin-wait-2")
            os.write(writing, f"{status}\n{out}{err}".encode()[:60000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    os.waitpid(pid, 0)
    if "Traceback" in said or not said or said.startswith("0\n"):
        raise Differs(said)
    return " ".join(said.split())[:300]


# ── modules ──────────────────────────────────────────────────────────────────────────────────────────


def without_modules() -> None:
    """The module that lists sockets is not loaded, and the kernel loads none by itself; then nobody can."""
    for name, loads_no_more, hint in (
        ("no module is loaded on demand", _no_modprobe, "modprobe tcp_diag"),
        ("kernel.modules_disabled=1", _modules_disabled, "modules_disabled"),
    ):
        _try(name, "tcp_diag is not loaded", _no_tcp_diag)
        with loads_no_more():
            if hint != "modules_disabled":  # the connection of the other leaves a TIME_WAIT
                _try(name, "no connection is none without it too", lambda: _said(("check",), (0,), "OK"))
            with _half_closed():
                for words, statuses in COMMANDS:
                    line = f"`{' '.join(words)}`"
                    _try(name, line, lambda w=words, s=statuses, h=hint: _said(w, s, h))  # type: ignore[misc]


COMMANDS = (
    (("diagnose",), (1,)),
    (("list",), (1,)),
    (("check",), (3,)),
    (("trace", "--for", "3s"), (0, 1, 3)),
    (("clear", "state fin-wait-2", "--yes"), (1,)),
)
"""Each with the statuses that are right where sockets cannot be listed."""


@contextlib.contextmanager
def _half_closed() -> Iterator[None]:
    """Hold a connection in FIN_WAIT2 and CLOSE_WAIT."""
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        socket.create_connection(door.getsockname()) as client,
        door.accept()[0],
    ):
        client.shutdown(socket.SHUT_WR)
        yield


@contextlib.contextmanager
def _modules_disabled() -> Iterator[None]:
    """This is for good: until the next boot."""
    MODULES_DISABLED.write_text("1")
    yield


@contextlib.contextmanager
def _no_modprobe() -> Iterator[None]:
    before = MODPROBE.read_text()
    MODPROBE.write_text("/bin/false")
    try:
        yield
    finally:
        MODPROBE.write_text(before)


def _no_tcp_diag() -> None:
    if any(line.startswith("tcp_diag ") for line in Path("/proc/modules").read_text().splitlines()):
        raise Differs("it is loaded")
    if not any(Path("/lib/modules").glob("*/kernel/net/ipv4/tcp_diag.ko*")):
        raise NotHere("it is no module of this kernel")


RESTRICTED = {
    "without_ipv6": Restricted("ipv6.disable=1", without_ipv6),
    "locked_integrity": Restricted("lockdown=integrity", locked_integrity),
    "locked_confidentiality": Restricted("lockdown=confidentiality", locked_confidentiality),
    "yama": Restricted("", yama),
    "without_modules": Restricted("", without_modules),
}
"""The boots, by the name of their job."""
