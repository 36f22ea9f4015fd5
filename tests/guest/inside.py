"""What runs in the guest: one process that tries everything and writes a line of JSON for each thing tried.

    python -m tests.guest.inside scenarios proofs acts …

A thing that this kernel lacks is ``not here``, with the reason; one that fails leaves the rest to go on.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finwait.kernel import tracefs

if TYPE_CHECKING:
    from finwait.lab.scenario import Situation

OUT = Path(os.environ.get("GUEST_OUT", "/out"))
ONLY = [word for word in os.environ.get("ONLY", "").replace("+", " ").split(",") if word]
PATIENCE_S = 60.0
TESTS = (
    "tests/kernel/test_sockets_against_proc.py",
    "tests/kernel/test_sysctl.py",
    "tests/kernel/test_destroy_trial.py",
    "tests/kernel/test_lone_sockets.py",
    "tests/kernel/test_lab_topology.py",
    "tests/kernel/test_filter_bytecode.py",
    "tests/kernel/test_trace.py",
)
"""The kernel tests that ask the kernel, not the command line: a process with numpy takes long to start in emulation.

Those of acting are left to the matrix and the acts, which ask the same in one process.
"""
ATTRIBUTES = {
    1: "MEMINFO", 2: "INFO", 3: "VEGASINFO", 4: "CONG", 5: "TOS", 6: "TCLASS", 7: "SKMEMINFO", 8: "SHUTDOWN",
    15: "MARK", 16: "BBRINFO", 17: "CLASS_ID", 18: "MD5SIG", 19: "ULP_INFO", 20: "SK_BPF_STORAGES", 21: "CGROUP_ID",
    22: "SOCKOPT",
}  # fmt: skip
"""INET_DIAG_… of include/uapi/linux/inet_diag.h."""


class _NotHere(Exception):
    """This kernel, or this machine, lacks what it takes."""


class _Differs(Exception):
    """It can be done, and what came of it is not what is expected."""


def emit(kind: str, name: str, verdict: str, began: float, detail: str = "") -> None:
    """Write one line; it is on the host at once."""
    row = {
        "kind": kind, "name": name, "verdict": verdict, "seconds": round(time.monotonic() - began, 1),
        "detail": detail[-6000:],
    }  # fmt: skip
    with (OUT / "results").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(kind, name, verdict, row["seconds"], flush=True)


def attempt(kind: str, name: str, work: Callable[[], str | None]) -> None:
    """Do it and write what came of it: ``ok``, ``differs``, ``not here`` or ``failed``."""
    if ONLY and name not in ONLY:
        return
    began = time.monotonic()
    try:
        detail = work()
    except _NotHere as error:
        emit(kind, name, "not here", began, str(error))
    except _Differs as error:
        emit(kind, name, "differs", began, str(error))
    except BaseException as error:  # noqa: BLE001 - the outermost loop: whatever happened, the rest is tried too
        emit(kind, name, "failed", began, f"{error!r}\n{traceback.format_exc()}")
    else:
        emit(kind, name, "ok", began, detail or "")


def command(*words: str) -> tuple[int, str, str]:
    """Run `finwait` in this process; return status, output and errors."""
    from finwait import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(list(words))
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
    return status, out.getvalue(), err.getvalue()


def expected(status: int, wanted: tuple[int, ...], out: str, err: str) -> None:
    """Insist on an exit status."""
    if status not in wanted:
        raise _Differs(f"status {status}\n{err[-2500:]}\n{out[-2500:]}")


# ── the jobs ─────────────────────────────────────────────────────────────────────────────────────────


def scenarios() -> None:
    """Every scenario of the lab: built, and diagnosed as what it is."""
    from finwait.cli import lab
    from finwait.lab.scenario import scenarios as all_of_them
    from finwait.lab.topology import unmet

    lab.PATIENCE_S = 60
    for name, scenario in sorted(all_of_them().items()):

        def work(name: str = name, needs: tuple[str, ...] = scenario.needs) -> None:
            if lacking := unmet(needs):
                raise _NotHere("; ".join(lacking))
            expected_as_built(name)

        attempt("scenario", name, work)


def expected_as_built(name: str) -> None:
    """Run one scenario; a process that a policy keeps from being looked into holds none of its sockets."""
    from finwait.kernel import procfs

    walled = [
        word for pid in procfs.descriptors()[0].unreadable if pid for word in ("--not-holder", str(pid))
    ]
    status, out, err = command("lab", "run", name, "--all", *walled)
    expected(status, (0, 3), out, err)
    if "not everything that was built" in err:
        raise _Differs(err + out)


def proofs() -> None:
    """Every demonstration of the ledger."""
    from finwait.lab.proofs.catalogue import proofs as all_of_them
    from finwait.lab.proofs.catalogue import prove
    from finwait.lab.topology import unmet

    for name, proof in sorted(all_of_them().items(), key=lambda item: item[1].seconds):

        def work(proof: Any = proof) -> None:
            if lacking := unmet(proof.needs):
                raise _NotHere("; ".join(lacking))
            outcome = prove(proof)
            if not outcome.held:
                apart = [
                    f"{m.what}: expected {m.expected}; measured {m.got}"
                    for m in outcome.measured
                    if not m.held
                ]
                raise _Differs("\n".join(apart))

        attempt("proof", name, work)


def matrix() -> None:
    """What SOCK_DESTROY does in each state; `str` of the measurement is the detail."""
    from tests.guest.matrix import cells, measure

    for name, cell in cells():
        attempt("destroy", name, lambda cell=cell: str(measure(cell, PATIENCE_S)))  # type: ignore[misc]


def _of(situation: Situation) -> tuple[str, ...]:
    return ("netns", "=", str(situation.expected[0].netns))


def _in_scenario(name: str, work: Callable[[Situation], str | None]) -> str | None:
    from finwait.lab import scenario
    from finwait.lab.topology import unmet

    if lacking := unmet(scenario.scenarios()[name].needs):
        raise _NotHere("; ".join(lacking))
    said: list[str | None] = []

    def then(situation: Situation) -> int:
        said.append(work(situation))
        return 0

    scenario.run(name, False, then)
    return said[0]


def _record(situation: Situation) -> None:
    path = OUT / "recording.finwait"
    path.unlink(missing_ok=True)
    status, out, err = command("record", str(path), "--netns", _of(situation)[2])
    expected(status, (0, 3), out, err)
    status, out, err = command("diagnose", "--from", str(path))
    expected(status, (0, 3), out, err)


def _check(situation: Situation) -> None:
    status, out, err = command("check", "--netns", _of(situation)[2])
    expected(status, (1,), out, err)


def _probe(situation: Situation) -> str:
    status, out, err = command("probe", *_of(situation), "state", "fin-wait-2")
    expected(status, (0, 3), out, err)
    if "alive" not in out:
        raise _Differs(out + err)
    return out


def _options(situation: Situation) -> list[tuple[Any, ...]]:
    from finwait.kernel import pidfd

    found = []
    for one in situation.expected:
        for pid, fd in one.owners[:1]:
            handle = os.pidfd_open(pid)
            try:
                copy = pidfd._syscall(pidfd._SYS_PIDFD_GETFD, handle, fd, 0)
            finally:
                os.close(handle)
            with socket.socket(fileno=copy) as sock:
                keepalive = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                found.append((keepalive, *(sock.getsockopt(socket.IPPROTO_TCP, o) for o in (4, 5, 6, 18))))
    return found


def _arm(situation: Situation) -> None:
    before, last = _options(situation), max([0, *_acts()])
    status, out, err = command("arm", "--keepalive", "60/15/5", "--yes", *_of(situation))
    expected(status, (0, 3), out, err)
    if {one[:4] for one in _options(situation)} != {(1, 60, 15, 5)}:
        raise _Differs(f"options are {_options(situation)}\n{out}{err}")
    status, out, err = command("undo", "--yes", *(str(number) for number in _acts() if number > last))
    expected(status, (0, 3), out, err)
    if _options(situation) != before:
        raise _Differs(f"options are {_options(situation)}, were {before}\n{out}{err}")


def _acts() -> list[int]:
    return [int(entry["id"]) for entry in json.loads(command("journal", "-o", "json")[1])["items"]]


def _clear(*how: str) -> Callable[[Situation], str]:
    def work(situation: Situation) -> str:
        words = ("clear", *how, "--yes", "--min-age", "0s", "--share", "1", *_of(situation))
        status, out, err = command(*words)
        if "nothing was done" in err:
            raise _Differs(out + err)
        expected(status, (0, 3), out, err)
        end = time.monotonic() + 30
        inodes = {one.inode for one in situation.expected}
        while left := inodes & {row.inode for row in situation.rows().values() if row.inode}:
            if time.monotonic() > end:
                raise _Differs(f"{len(left)} are still there\n{out}{err}")
            time.sleep(0.2)
        return out

    return work


def _resets(family: int, address: str) -> Callable[[], str]:
    done = threading.Event()

    def traffic() -> None:
        while not done.wait(1):  # again and again: when the trace has begun is not known here
            with socket.socket(family) as door:
                door.bind((address, 0))
                door.listen()
                client = socket.socket(family)
                client.connect(door.getsockname()[:2])
                accepted, _ = door.accept()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                time.sleep(0.2)
                accepted.close()

    def work() -> str:
        done.clear()
        thread = threading.Thread(target=traffic)
        thread.start()
        try:
            status, out, err = command("trace", "--resets", "-o", "jsonl", "--for", "8s")
        finally:
            done.set()
            thread.join()
        expected(status, (0, 3), out, err)
        lines = [json.loads(line) for line in out.splitlines()]
        seen = [one for one in lines if address in (one.get("src"), one.get("dst"))]
        if not seen:
            raise _Differs(f"{len(lines)} lines, none of {address}\n{err}\n{out[:3000]}")
        resets = [one for one in seen if "reset" in json.dumps(one)]
        if not resets:
            raise _Differs(f"no reset of {address}\n{err}\n{out[:3000]}")
        return f"{len(seen)} lines, {len(resets)} with resets; {err}"

    return work


def acts() -> None:
    """Looking and acting through the command line."""
    attempt("act", "trial of SOCK_DESTROY", _trial)
    attempt("act", "trace over IPv4", _resets(socket.AF_INET, "127.0.0.1"))
    attempt("act", "trace over IPv6", _resets(socket.AF_INET6, "::1"))
    attempt("act", "record and diagnose it", lambda: _in_scenario("close-wait-eof-read", _record))
    attempt("act", "check", lambda: _in_scenario("close-wait-eof-read", _check))
    attempt("act", "probe", lambda: _in_scenario("fin-wait2-held", _probe))
    attempt("act", "arm and undo", lambda: _in_scenario("idle-unprobed", _arm))
    attempt("act", "clear --with fin", lambda: _in_scenario("close-wait-eof-read", _clear("--with", "fin")))
    attempt("act", "clear --with reset", lambda: _in_scenario("fin-wait2-held", _clear("--with", "reset")))
    attempt(
        "act", "clear --with destroy", lambda: _in_scenario("fin-wait2-held", _clear("--with", "destroy"))
    )
    attempt("act", "tune apply and undo", _tune)


def _trial() -> str:
    from finwait.kernel.destroy_trial import tried

    found = tried()
    if found.why_unknown:
        raise _NotHere(found.why_unknown)
    return f"ends orphans: {found.ends_orphans}; ends minisockets: {found.ends_minisockets}"


def _tune() -> None:
    path = Path("/proc/sys/net/ipv4/tcp_fin_timeout")
    before = path.read_text()
    status, out, err = command("tune", "apply", "tcp_fin_timeout=33", "--yes")
    expected(status, (0, 3), out, err)
    if path.read_text().strip() != "33":
        raise _Differs(f"tcp_fin_timeout is {path.read_text()}{out}{err}")
    status, out, err = command("undo", "--yes", str(max(_acts())))
    expected(status, (0, 3), out, err)
    if path.read_text() != before:
        raise _Differs(f"tcp_fin_timeout is {path.read_text()}{out}{err}")


def facts() -> None:
    """What this kernel hands out: lengths, attributes, events, system calls."""
    attempt("fact", "release", platform.release)
    attempt("fact", "bytes of tcp_info", lambda: str(_tcp_info()))
    attempt("fact", "attributes of a socket", lambda: " ".join(_attributes()))
    attempt("fact", "events of tcp", lambda: " ".join(_events("tcp")))
    for event in ("tcp_send_reset", "tcp_receive_reset", "tcp_retransmit_skb"):
        attempt("fact", f"fields of {event}", lambda event=event: " ".join(_fields(event)))  # type: ignore[misc]
    attempt("fact", "MPTCP", _mptcp)
    attempt("fact", "pidfd_getfd", _getfd)


def _tcp_info() -> int:
    with socket.socket() as sock:
        return len(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1024))


def _attributes() -> list[str]:
    from finwait.uapi import netlink as nl

    found: set[int] = set()
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        with (
            socket.create_connection(door.getsockname()),
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink,
        ):
            request = struct.pack("=BBBBI48x", socket.AF_INET, socket.IPPROTO_TCP, 0xFF, 0, 1 << 1)
            netlink.send(struct.pack("=IHHII", 16 + len(request), 20, 0x301, 1, 0) + request)
            data = netlink.recv(1 << 18)
    length = struct.unpack_from("=I", data)[0]
    at = 16 + 72
    while at + 4 <= length:
        size, kind = struct.unpack_from("=HH", data, at)
        found.add(kind & 0x3FFF)
        at += nl.align4(max(size, 4))
    return [ATTRIBUTES.get(kind, str(kind)) for kind in sorted(found)]


def _events(group: str) -> list[str]:
    with tracefs.Root() as root:
        try:
            return sorted(p.name for p in Path(root.path, "events", group).iterdir() if p.is_dir())
        except OSError as error:
            raise _NotHere(error.strerror) from None


def _fields(event: str) -> list[str]:
    with tracefs.Root() as root:
        path = Path(root.path, "events/tcp", event, "format")
        if not path.exists():
            raise _NotHere("no such event")
        lines = [line.strip() for line in path.read_text().splitlines()]
    fields = [line.partition(";")[0].split()[-1] for line in lines if line.startswith("field:")]
    return [field for field in fields if not field.startswith("common_")]


def _mptcp() -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
    except OSError as error:
        raise _NotHere(error.strerror) from None


def _getfd() -> None:
    from finwait.kernel import pidfd

    handle = os.pidfd_open(os.getpid())
    try:
        os.close(pidfd._syscall(pidfd._SYS_PIDFD_GETFD, handle, 0, 0))
    except OSError as error:
        raise _NotHere(error.strerror) from None
    finally:
        os.close(handle)


def tests() -> None:
    """The kernel tests of `TESTS`, in a process of their own."""
    wanted = [t for t in TESTS if Path(t).exists() and (not ONLY or any(o in t for o in ONLY))]
    began = time.monotonic()
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "timeout=600",
        "-m",
        "not slow",
    ]
    with (OUT / "tests").open("w") as out:
        done = subprocess.run([*words, *wanted], stdout=out, stderr=subprocess.STDOUT, check=False)
    lines = (OUT / "tests").read_text().splitlines()
    for line in lines:
        if line.startswith(("FAILED ", "ERROR ", "SKIPPED ")):
            word, _, rest = line.partition(" ")
            emit("test", rest[:300], {"SKIPPED": "not here"}.get(word, "differs"), began)
    emit(
        "tests",
        "subset",
        "ok" if done.returncode == 0 else "differs",
        began,
        lines[-1] if lines else "",
    )


def smoke() -> None:
    """The shortest proof that it works: the demo, a trace over ::1, an orphan destroyed."""
    from tests.guest.matrix import cells, measure

    attempt("scenario", "kube-proxy-userspace", lambda: expected_as_built("kube-proxy-userspace"))
    attempt("act", "trace over IPv6", _resets(socket.AF_INET6, "::1"))
    attempt("act", "trial of SOCK_DESTROY", _trial)
    cell = dict(cells())["FIN_WAIT1 orphan"]
    attempt("destroy", "FIN_WAIT1 orphan", lambda: str(measure(cell, PATIENCE_S)))


def recordings() -> None:
    """Recordings of every scenario on this kernel, for tests/captures."""
    from finwait.lab.scenario import scenarios as all_of_them
    from finwait.lab.topology import unmet
    from tests.captures import make

    for name, scenario in sorted(all_of_them().items()):

        def work(name: str = name, needs: tuple[str, ...] = scenario.needs) -> None:
            if lacking := unmet(needs):
                raise _NotHere("; ".join(lacking))
            path = make.make(name)
            folder = OUT / "captures" / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)

        attempt("recording", name, work)


JOBS: dict[str, Callable[[], None]] = {
    job.__name__: job for job in (facts, smoke, acts, matrix, scenarios, proofs, tests, recordings)
}


def main(words: list[str]) -> int:
    """Do the jobs named, in their order."""
    began = time.monotonic()
    import finwait.cli

    emit("boot", platform.release(), "ok", began, finwait.cli.__name__)
    for word in words:
        JOBS[word]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
