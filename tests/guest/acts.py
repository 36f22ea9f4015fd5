"""Looking and acting through the command line, each in a scenario of the lab and each put back."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.guest.trying import OUT, Differs, NotHere, attempt, command, expected

if TYPE_CHECKING:
    from finwait.lab.scenario import Situation

__all__ = ["acts", "arm", "check", "clear", "in_scenario", "probe", "record", "resets", "trial", "tune"]


def _of(situation: Situation) -> tuple[str, ...]:
    return ("netns", "=", str(situation.expected[0].netns))


def in_scenario(name: str, work: Callable[[Situation], str | None]) -> str | None:
    from finwait.lab import scenario
    from finwait.lab.topology import unmet

    if lacking := unmet(scenario.scenarios()[name].needs):
        raise NotHere("; ".join(lacking))
    said: list[str | None] = []

    def then(situation: Situation) -> int:
        said.append(work(situation))
        return 0

    scenario.run(name, False, then)
    return said[0]


def record(situation: Situation) -> None:
    path = OUT / "recording.finwait"
    path.unlink(missing_ok=True)
    status, out, err = command("record", str(path), "--netns", _of(situation)[2])
    expected(status, (0, 3), out, err)
    status, out, err = command("diagnose", "--from", str(path))
    expected(status, (0, 3), out, err)


def check(situation: Situation) -> None:
    status, out, err = command("check", "--netns", _of(situation)[2])
    expected(status, (1,), out, err)


def probe(situation: Situation) -> str:
    status, out, err = command("probe", *_of(situation), "state", "fin-wait-2")
    expected(status, (0, 3), out, err)
    if "alive" not in out:
        raise Differs(out + err)
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


def arm(situation: Situation) -> None:
    before, last = _options(situation), max([0, *_acts()])
    status, out, err = command("arm", "--keepalive", "60/15/5", "--yes", *_of(situation))
    expected(status, (0, 3), out, err)
    if {one[:4] for one in _options(situation)} != {(1, 60, 15, 5)}:
        raise Differs(f"options are {_options(situation)}\n{out}{err}")
    status, out, err = command("undo", "--yes", *(str(number) for number in _acts() if number > last))
    expected(status, (0, 3), out, err)
    if _options(situation) != before:
        raise Differs(f"options are {_options(situation)}, were {before}\n{out}{err}")


def _acts() -> list[int]:
    return [int(entry["id"]) for entry in json.loads(command("journal", "-o", "json")[1])["items"]]


def clear(*how: str) -> Callable[[Situation], str]:
    def work(situation: Situation) -> str:
        words = ("clear", *how, "--yes", "--min-age", "0s", "--share", "1", *_of(situation))
        status, out, err = command(*words)
        if "nothing was done" in err:
            raise Differs(out + err)
        expected(status, (0, 3), out, err)
        end = time.monotonic() + 30
        inodes = {one.inode for one in situation.expected}
        while left := inodes & {row.inode for row in situation.rows().values() if row.inode}:
            if time.monotonic() > end:
                raise Differs(f"{len(left)} are still there\n{out}{err}")
            time.sleep(0.2)
        return out

    return work


def resets(family: int, address: str) -> Callable[[], str]:
    """Return the trace of resets at an address, while connections are reset there again and again."""
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
            for patience in ("8s", "60s"):  # on a busy machine an emulated one has not even begun after eight
                status, out, err = command("trace", "--resets", "-o", "jsonl", "--for", patience)
                expected(status, (0, 3), out, err)
                if address in out:
                    break
        finally:
            done.set()
            thread.join()
        lines = [json.loads(line) for line in out.splitlines()]
        seen = [one for one in lines if address in (one.get("src"), one.get("dst"))]
        if not seen:
            raise Differs(f"{len(lines)} lines, none of {address}\n{err}\n{out[:3000]}")
        told = [one for one in seen if "reset" in json.dumps(one)]
        if not told:
            raise Differs(f"no reset of {address}\n{err}\n{out[:3000]}")
        return f"{len(seen)} lines, {len(told)} with resets; {err}"

    return work


def acts() -> None:
    """Looking and acting through the command line."""
    attempt("act", "trial of SOCK_DESTROY", trial)
    attempt("act", "trace over IPv4", resets(socket.AF_INET, "127.0.0.1"))
    attempt("act", "trace over IPv6", resets(socket.AF_INET6, "::1"))
    attempt("act", "record and diagnose it", lambda: in_scenario("close-wait-eof-read", record))
    attempt("act", "check", lambda: in_scenario("close-wait-eof-read", check))
    attempt("act", "probe", lambda: in_scenario("fin-wait2-held", probe))
    attempt("act", "arm and undo", lambda: in_scenario("idle-unprobed", arm))
    attempt("act", "clear --with fin", lambda: in_scenario("close-wait-eof-read", clear("--with", "fin")))
    attempt("act", "clear --with reset", lambda: in_scenario("fin-wait2-held", clear("--with", "reset")))
    attempt("act", "clear --with destroy", lambda: in_scenario("fin-wait2-held", clear("--with", "destroy")))
    attempt("act", "tune apply and undo", tune)


def trial() -> str:
    from finwait.kernel.destroy_trial import tried

    found = tried()
    if found.why_unknown:
        raise NotHere(found.why_unknown)
    return f"ends orphans: {found.ends_orphans}; ends minisockets: {found.ends_minisockets}"


def tune() -> None:
    path = Path("/proc/sys/net/ipv4/tcp_fin_timeout")
    before = path.read_text()
    status, out, err = command("tune", "apply", "tcp_fin_timeout=33", "--yes")
    expected(status, (0, 3), out, err)
    if path.read_text().strip() != "33":
        raise Differs(f"tcp_fin_timeout is {path.read_text()}{out}{err}")
    status, out, err = command("undo", "--yes", str(max(_acts())))
    expected(status, (0, 3), out, err)
    if path.read_text() != before:
        raise Differs(f"tcp_fin_timeout is {path.read_text()}{out}{err}")
