"""/proc/PID/task/TID/syscall: what a thread is in, on each architecture that we have a table of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from finwait.errors import DecodeError
from finwait.uapi import syscall

READ = b"0 0x5 0x7ffd0 0x2000 0x0 0x0 0x0 0x7ffc580370f8 0x7f0f453162ad\n"


def test_a_sleeping_thread_names_its_call_and_its_arguments() -> None:
    assert syscall.parse(READ) == syscall.SleepingIn(0, (5, 0x7FFD0, 0x2000, 0, 0, 0))


@pytest.mark.parametrize("line", [b"running\n", b"running", b"-1 0x7ffc0 0x7f0f0\n"])
def test_a_thread_that_is_in_no_call_is_in_none(line: bytes) -> None:
    assert syscall.parse(line) is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"walking\n",
        b"1_0 0x5 0x0 0x0 0x0 0x0 0x0 0x0 0x0\n",
        b"-2 0x1 0x2\n",
        b"0 0x5\n",
        READ[:-1] + b" 0x1\n",
        READ.replace(b"0x5", b"5"),
        READ.replace(b"0x5", b"0x10000000000000000"),
        READ + READ,
    ],
)
def test_any_other_line_is_refused(line: bytes) -> None:
    with pytest.raises(DecodeError):
        syscall.parse(line)


def test_the_same_call_has_another_number_on_another_architecture() -> None:
    for machine, number in (("x86_64", 0), ("aarch64", 63)):
        found = syscall.call(machine, number)
        assert found is not None
        assert (found.name, found.kind, found.fds) == ("read", "fd", (0,))


def test_an_architecture_without_a_table_and_the_x32_numbers_mean_nothing() -> None:
    assert syscall.call("riscv64", 63) is None
    assert syscall.call("x86_64", 1 << 30) is None
    assert syscall.call("x86_64", 4000) is None


def headers(path: str) -> dict[str, int]:
    text = Path(path).read_text()
    return {
        name: int(n) for name, n in re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize(
    ("machine", "path"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_numbers_are_those_of_the_kernel_s_headers(machine: str, path: str) -> None:
    if not Path(path).exists():
        pytest.skip(f"{path} is not here (linux-libc-dev)")
    said = headers(path)
    compared = 0
    for number, known in syscall.CALLS[machine].items():
        if known.name in said:  # a call that is younger than the headers is not in them
            assert said[known.name] == number, known.name
            compared += 1
    assert compared > 45
