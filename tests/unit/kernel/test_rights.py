"""Of a right that we hold it is never said that it was missing."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from finwait.errors import Gap, PermissionNeeded
from finwait.follow.actors import Actors
from finwait.kernel import netns, rights, sysctl

SOURCE = Path(rights.__file__).parents[1]
ALL = (1 << 41) - 1


def closed_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel refuse to say in which namespace any process is."""
    real = os.readlink

    def readlink(path: str, **where: int) -> str:
        if path.endswith("/ns/net"):
            raise PermissionError(13, "no")
        return real(path, **where)

    monkeypatch.setattr(os, "readlink", readlink)


@pytest.mark.parametrize("capability", ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_NET_ADMIN"])
def test_what_we_hold_was_not_missing(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights, "in_initial_user_namespace", lambda: True)
    assert rights.missing(capability, 0) == capability
    assert rights.missing(capability, ALL) == (
        f"a security policy that allows it; {capability} alone is not enough"
    )
    monkeypatch.setattr(rights, "in_initial_user_namespace", lambda: False)
    assert "ours is another" in rights.missing(capability, ALL)
    assert rights.honest(Gap("x", "do it", "something else"), ALL).needs == "something else"


def test_the_namespaces_of_processes_are_told_alike_by_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    closed_to_us(monkeypatch)
    monkeypatch.setattr(rights, "in_initial_user_namespace", lambda: True)
    for held, needs in ((0, "CAP_SYS_PTRACE"), (ALL, "a security policy that allows it")):
        monkeypatch.setattr(rights, "held", lambda held=held: held)
        for gaps in (netns.discover()[1], sysctl.all_targets()[1]):
            (gap,) = [gap for gap in gaps if gap.doing.startswith("read ")]
            assert gap.needs.startswith(needs)


def test_holders_that_a_trace_cannot_find_are_told_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights, "in_initial_user_namespace", lambda: True)
    monkeypatch.setattr(rights, "held", lambda: ALL)
    actors = Actors(frozenset())
    actors.holders.unreadable = (7,)
    (gap,) = actors.blind_gaps
    assert gap.needs.startswith("a security policy that allows it; CAP_SYS_PTRACE alone is not enough")


def test_sudo_is_not_advised_where_a_policy_refuses() -> None:
    assert "sudo" in PermissionNeeded(1, "do it", "CAP_SYS_ADMIN").hint
    assert "sudo" not in PermissionNeeded(1, "do it", rights.missing("CAP_SYS_ADMIN", ALL)).hint


def test_no_gap_names_a_capability_without_asking_whether_we_hold_it() -> None:
    """By the source: the third part of a Gap is no literal that names a capability."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Gap":
                texts = [c.value for c in ast.walk(node.args[2]) if isinstance(c, ast.Constant)]
                calls = any(isinstance(c, ast.Call) for c in ast.walk(node.args[2]))
                if not calls and any(str(text).startswith(("CAP_", "root")) for text in texts):
                    found.append(f"{path.name}:{node.lineno}")
    assert not found
