"""What runs in the guest: one process that tries everything and writes a line of JSON for each thing tried.

    python -m tests.guest.inside scenarios proofs acts …

A thing that this kernel lacks is ``not here``, with the reason; one that fails leaves the rest to go on.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finwait.kernel import tracefs
from tests.guest.acts import acts, resets, trial
from tests.guest.chosen import TESTS
from tests.guest.restricted import RESTRICTED
from tests.guest.trying import ONLY, OUT, PATIENCE_S, Differs, NotHere, attempt, emit, expected_as_built

ATTRIBUTES = {
    1: "MEMINFO", 2: "INFO", 3: "VEGASINFO", 4: "CONG", 5: "TOS", 6: "TCLASS", 7: "SKMEMINFO", 8: "SHUTDOWN",
    15: "MARK", 16: "BBRINFO", 17: "CLASS_ID", 18: "MD5SIG", 19: "ULP_INFO", 20: "SK_BPF_STORAGES", 21: "CGROUP_ID",
    22: "SOCKOPT",
}  # fmt: skip
"""INET_DIAG_… of include/uapi/linux/inet_diag.h."""


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
                raise NotHere("; ".join(lacking))
            expected_as_built(name)

        attempt("scenario", name, work)


def proofs() -> None:
    """Every demonstration of the ledger."""
    from finwait.lab.proofs.catalogue import proofs as all_of_them
    from finwait.lab.proofs.catalogue import prove
    from finwait.lab.topology import unmet

    for name, proof in sorted(all_of_them().items(), key=lambda item: item[1].seconds):

        def work(proof: Any = proof) -> None:
            if lacking := unmet(proof.needs):
                raise NotHere("; ".join(lacking))
            outcome = prove(proof)
            if not outcome.held:
                apart = [
                    f"{m.what}: expected {m.expected}; measured {m.got}"
                    for m in outcome.measured
                    if not m.held
                ]
                raise Differs("\n".join(apart))

        attempt("proof", name, work)


def matrix() -> None:
    """What SOCK_DESTROY does in each state; `str` of the measurement is the detail."""
    from tests.guest.matrix import cells, measure

    for name, cell in cells():
        attempt("destroy", name, lambda cell=cell: str(measure(cell, PATIENCE_S)))  # type: ignore[misc]


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
            raise NotHere(error.strerror) from None


def _fields(event: str) -> list[str]:
    with tracefs.Root() as root:
        path = Path(root.path, "events/tcp", event, "format")
        if not path.exists():
            raise NotHere("no such event")
        lines = [line.strip() for line in path.read_text().splitlines()]
    fields = [line.partition(";")[0].split()[-1] for line in lines if line.startswith("field:")]
    return [field for field in fields if not field.startswith("common_")]


def _mptcp() -> None:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
    except OSError as error:
        raise NotHere(error.strerror) from None


def _getfd() -> None:
    from finwait.kernel import pidfd

    handle = os.pidfd_open(os.getpid())
    try:
        os.close(pidfd._syscall(pidfd._SYS_PIDFD_GETFD, handle, 0, 0))
    except OSError as error:
        raise NotHere(error.strerror) from None
    finally:
        os.close(handle)


def tests() -> None:
    """The kernel tests of `TESTS`, in a process of their own."""
    names = [name for name in TESTS if not ONLY or name in ONLY]
    wanted = [path for name in names if (path := f"tests/kernel/{name}.py") and Path(path).exists()]
    # Its sysctls are there from when it is loaded.
    subprocess.run(["modprobe", "nf_conntrack"], capture_output=True, check=False)
    plugin = ("-p", "tests.guest.outcomes")  # it writes the rows
    options = ("-v", "-p", "no:cacheprovider", *plugin, "-o", "timeout=600", "-m", "not slow")
    with (OUT / "tests").open("w") as out:
        words = [sys.executable, "-m", "pytest", *options, *wanted]
        subprocess.run(words, stdout=out, stderr=subprocess.STDOUT, check=False)


def smoke() -> None:
    """The shortest proof that it works: the demo, a trace over ::1, an orphan destroyed."""
    from tests.guest.matrix import cells, measure

    attempt("scenario", "kube-proxy-userspace", lambda: expected_as_built("kube-proxy-userspace"))
    attempt("act", "trace over IPv6", resets(socket.AF_INET6, "::1"))
    attempt("act", "trial of SOCK_DESTROY", trial)
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
                raise NotHere("; ".join(lacking))
            path = make.make(name)
            folder = OUT / "captures" / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)

        attempt("recording", name, work)


JOBS: dict[str, Callable[[], None]] = {
    **{job.__name__: job for job in (facts, smoke, acts, matrix, scenarios, proofs, tests, recordings)},
    **{name: one.job for name, one in RESTRICTED.items()},
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
