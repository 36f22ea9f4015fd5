"""A kernel that cannot list sockets is an error with what would help, never a machine without connections."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

import pytest

from finwait.cli import main
from finwait.errors import KernelError, NotSupported
from finwait.follow import Following
from finwait.kernel import lookup, observe, procfs
from finwait.kernel.observe import LookPlan, RunningMachine
from finwait.uapi import netlink as nl

Reader = Callable[..., bytes | None]


def files(monkeypatch: pytest.MonkeyPatch, given: dict[str, bytes | None]) -> None:
    """Let some files of /proc say something else."""
    plain = procfs.read

    def read(path: str, limit: int = 1 << 20, *, at: int | None = None) -> bytes | None:
        for name, data in given.items():
            if path.endswith(name):
                return data
        return plain(path, limit, at=at)

    monkeypatch.setattr(procfs, "read", read)


@pytest.fixture
def no_tcp_diag(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel answers whose module tcp_diag is not loaded and cannot be."""

    def refuse(*_: Any, **__: Any) -> None:
        raise NotSupported(
            errno.ENOENT, "dump the TCP sockets (No such file or directory)", "this kind of dump"
        )

    monkeypatch.setattr(observe, "dump", refuse)
    monkeypatch.setattr(lookup, "dump", refuse)
    files(monkeypatch, {"/net/sockstat": b"TCP: inuse 3 orphan 0 tw 0 alloc 3 mem 1\n"})


@pytest.mark.parametrize(
    ("disabled", "said"),
    [(b"0\n", "modprobe tcp_diag"), (b"1\n", "kernel.modules_disabled"), (None, "modprobe")],
)
@pytest.mark.usefixtures("no_tcp_diag")
def test_it_is_an_error_with_the_module_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, disabled: bytes | None, said: str
) -> None:
    files(
        monkeypatch,
        {"modules_disabled": disabled, "/net/sockstat": b"TCP: inuse 3 orphan 0 tw 0 alloc 3 mem 1\n"},
    )
    with pytest.raises(NotSupported) as told:
        RunningMachine().observe(LookPlan(descriptors=False))
    assert said in told.value.hint
    assert "tcp_diag" in told.value.hint
    with pytest.raises(NotSupported):
        lookup.check()


@pytest.mark.usefixtures("no_tcp_diag")
def test_no_command_calls_such_a_machine_well(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["list"], ["list", "-o", "json"]):
        assert main(words) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert "modprobe tcp_diag" in said.err
    assert main(["check"]) == 3
    line = capsys.readouterr().out
    assert line.startswith("FINWAIT UNKNOWN - could not dump the TCP sockets")
    assert "modprobe tcp_diag" in line
    assert line.count("\n") == 1


@pytest.mark.usefixtures("no_tcp_diag")
def test_polling_is_refused_and_says_why() -> None:
    with pytest.raises(NotSupported), Following(tracing=False):
        pass


def test_a_question_that_the_kernel_refuses_is_no_missing_socket() -> None:
    class Sock:
        def __init__(self, code: int) -> None:
            self.code = code

        def send(self, data: bytes) -> int:
            return len(data)

        def recv(self, _: int) -> bytes:
            return struct.pack("=IHHIIi", 36, nl.NLMSG_ERROR, 0, 1, 0, -self.code).ljust(36, b"\0")

    for code in (errno.ENOENT, errno.ESTALE):
        assert lookup._answer(Sock(code), b"") is None  # type: ignore[arg-type]
    for code in (errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP):
        with pytest.raises(KernelError):
            lookup._answer(Sock(code), b"")  # type: ignore[arg-type]
