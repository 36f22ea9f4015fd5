"""What a kernel lacks, or forbids, is told as that, and not as something else."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from finwait import lone_sockets
from finwait.errors import NotSupported, PermissionNeeded
from finwait.kernel import observe, tracefs

NONE = b"protocol  size sockets  memory\nMPTCP     1936      0      -1\nTCP 2304 3 9\n"
SOME = NONE.replace(b"1936      0", b"1936      2")
IDLE = b"TcpExt: SyncookiesSent\nTcpExt: 7\nMPTcpExt: MPCapableSYNRX MPCapableSYNTX\nMPTcpExt: 0 0\n"
USED = IDLE.replace(b"MPTcpExt: 0 0", b"MPTcpExt: 0 3")


@pytest.mark.parametrize(
    ("protocols", "netstat", "asked"),
    [
        (NONE, IDLE, False),
        (SOME, IDLE, True),
        (NONE, USED, True),  # 6.1 does not count its MPTCP sockets
        (None, IDLE, True),
        (NONE, None, True),
        (NONE, b"TcpExt: A\nTcpExt: 7\n", False),  # no MPTCP in this kernel
        (
            NONE,
            IDLE.replace(b" MPCapableSYNTX", b"").replace(b"0 0", b"0"),
            True,
        ),  # 5.10 does not count clients
    ],
)
def test_mptcp_is_asked_for_where_it_may_be_in_use(
    protocols: bytes | None, netstat: bytes | None, asked: bool
) -> None:
    assert observe._uses_mptcp(protocols, netstat) == asked


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EPERM])
def test_a_kernel_that_is_locked_down_is_not_one_without_tracepoints(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lockdown = tmp_path / "lockdown"
    monkeypatch.setattr(tracefs, "LOCKDOWN", lockdown)
    assert (
        not isinstance(tracefs._explain(OSError(code, ""), "open it"), NotSupported) or code == errno.ENOENT
    )
    lockdown.write_text("none integrity [confidentiality]\n")
    refused = tracefs._explain(OSError(code, ""), "open it")
    assert isinstance(refused, PermissionNeeded)
    assert "locked down" in f"{refused.capability} {refused.hint}"
    lockdown.write_text("none [integrity] confidentiality\n")
    assert not tracefs.locked_down()


def test_why_a_socket_could_not_be_asked_is_told_by_its_errno() -> None:
    assert "Linux 5.6" in lone_sockets._right_to_ask({errno.ENOSYS, errno.EPERM}, capable=True)
    assert lone_sockets._right_to_ask({errno.EPERM}, capable=False) == "CAP_SYS_PTRACE"
    assert "yama" in lone_sockets._right_to_ask({errno.EPERM}, capable=True)
    assert lone_sockets._right_to_ask({0}, capable=True) == ""
