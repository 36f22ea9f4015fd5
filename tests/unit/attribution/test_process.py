"""What is known of a process from its files, whichever of them could be read."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from finwait.attribution.process import ProcessView, process
from finwait.uapi.observation import Facts, ProcessFiles

STAT = (
    b"7 (a b) S 3 7 7 0 -1 4194560 " + b"0 " * 8 + b"20 0 5 0 1200 " + b"0 " * 5 + b"77 " + b"0 " * 24 + b"\n"
)
FILES = ProcessFiles(
    stat=STAT,
    status=b"Name:\ta b\nTgid:\t7\nPid:\t7\nPPid:\t3\nUid:\t1001\t0\t0\t0\nGid:\t0\t0\t0\t0\nThreads:\t5\n",
    cmdline=b"a\0b\0",
    cgroup=b"1:cpu:/a\n0::/system.slice/a.service\n",
    exe=b"/bin/a",
    netns=9,
)
FACTS = Facts(boottime_ns=13_000_000_000, boottime_end_ns=14_000_000_000, clock_ticks=100)
WHOLE = ProcessView(
    7, "a b", "a b", "/bin/a", 1001, 3, 2000, "/system.slice/a.service", 9, "S", 5, ("a", "b"), 77
)
UNKNOWN: dict[str, dict[str, Any]] = {
    "stat": {"comm": "?", "ppid": 0, "age_ms": -1, "state": "", "threads": 0, "stack": 0},
    "status": {"uid": -1},
    "cmdline": {"cmdline": "", "argv": ()},
    "cgroup": {"cgroup": ""},
    "exe": {"exe": ""},
    "netns": {"netns": None},
}


def test_every_file_says_its_part() -> None:
    assert process(7, FILES, FACTS) == WHOLE


@pytest.mark.parametrize("file", UNKNOWN)
def test_a_file_that_could_not_be_read_leaves_only_its_part_unknown(file: str) -> None:
    without: dict[str, Any] = {file: None}
    assert process(7, replace(FILES, **without), FACTS) == replace(WHOLE, **UNKNOWN[file])


@pytest.mark.parametrize("file", ["stat", "status", "cgroup"])
def test_a_file_that_does_not_parse_costs_no_other(file: str) -> None:
    half: dict[str, Any] = {file: b"half a"}
    assert process(7, replace(FILES, **half), FACTS) == replace(WHOLE, **UNKNOWN[file])


def test_the_longest_path_of_a_cgroup_names_it_and_a_start_after_the_look_is_no_age() -> None:
    assert (
        process(7, replace(FILES, cgroup=b"1:cpu:/a/b/c/d/e/f/g/h\n0::/a\n"), FACTS).cgroup
        == "/a/b/c/d/e/f/g/h"
    )
    assert process(7, FILES, Facts(boottime_ns=1)).age_ms == -1


@pytest.mark.parametrize(
    ("lines", "sigpipe"),
    [
        (b"SigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\n", "kills"),
        (b"SigIgn:\t0000000000001000\nSigCgt:\t0000000000000000\n", "spares"),
        (b"SigIgn:\t0000000000000000\nSigCgt:\t0000000000001000\n", "spares"),
        (b"SigIgn:\t0000000000000800\nSigCgt:\t0000000000002000\n", "kills"),
        (b"SigIgn:\t0000000000000000\n", "unknown"),
        # the init of a container: the kernel gives it no signal whose action is the default one
        (b"NSpid:\t7\t1\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\n", "spares"),
    ],
)
def test_sigpipe_kills_what_neither_ignores_nor_catches_it(lines: bytes, sigpipe: str) -> None:
    assert FILES.status is not None
    assert process(7, replace(FILES, status=FILES.status + lines), FACTS).sigpipe == sigpipe
