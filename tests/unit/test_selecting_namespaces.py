"""Namespaces by name: what we may not look at is never said not to be there."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from finwait.errors import FinwaitError, Gap, PermissionNeeded
from finwait.kernel import netns, procfs, rights
from finwait.selecting import namespaces
from finwait.uapi.nsfs import parse_netns_name

PID = os.getpid()


def denied(monkeypatch: pytest.MonkeyPatch, where: str, number: int) -> None:
    plain = os.stat

    def stat(path: Any, *rest: Any, **options: Any) -> Any:
        if path == where:
            raise OSError(number, os.strerror(number), path)
        return plain(path, *rest, **options)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(rights, "held", lambda: 0)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize(
    ("name", "where", "said", "needs"),
    [
        (f"pid:{PID}", f"/proc/{PID}/ns/net", f"could not read the network namespace of pid {PID}", "PTRACE"),
        (f"/proc/{PID}/ns/net", f"/proc/{PID}/ns/net", f"could not read `/proc/{PID}/ns/net`", "PTRACE"),
        ("/somewhere/net", "/somewhere/net", "could not read `/somewhere/net`", "DAC_READ_SEARCH"),
    ],
    ids=["pid", "its link", "another path"],
)
def test_a_namespace_that_we_may_not_read_is_no_missing_one(
    monkeypatch: pytest.MonkeyPatch, name: str, where: str, said: str, needs: str, number: int
) -> None:
    denied(monkeypatch, where, number)
    with pytest.raises(PermissionNeeded) as caught:
        namespaces([parse_netns_name(name)], live=True)
    assert str(caught.value).startswith(said)
    assert needs in caught.value.hint


@pytest.mark.parametrize("name", [f"pid:{PID}", f"/proc/{PID}/ns/net"], ids=["pid", "its link"])
def test_a_namespace_that_is_gone_is_said_to_be(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    denied(monkeypatch, f"/proc/{PID}/ns/net", errno.ENOENT)
    with pytest.raises(FinwaitError, match="there is no network namespace"):
        namespaces([parse_netns_name(name)], live=True)


@pytest.mark.parametrize("complete", [True, False])
def test_a_name_is_only_not_found_where_not_all_could_be_seen(
    monkeypatch: pytest.MonkeyPatch, complete: bool
) -> None:
    gaps = [] if complete else [Gap("pid 1", "read its network namespace", "CAP_SYS_PTRACE")]
    monkeypatch.setattr(netns, "discover", lambda *_: ([], gaps))
    monkeypatch.setattr(procfs, "descriptors", lambda: ((), ()))
    said = "there is no" if complete else "was found; pid 1: could not read its network namespace"
    with pytest.raises(FinwaitError, match=said):
        namespaces([parse_netns_name("no-such-name")], live=True)
