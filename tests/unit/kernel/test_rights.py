"""Of a right that we hold it is never said that it was missing."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import numpy as np
import pytest

from finwait.acting.borrowed import DescriptorMoved
from finwait.attribution.owners import holders
from finwait.errors import Gap, PermissionNeeded
from finwait.follow.actors import Actors
from finwait.kernel import netns, rights, sysctl
from finwait.uapi.observation import Descriptors

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
    assert "this process is in another one" in rights.missing(capability, ALL)
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


def test_no_refusal_names_a_capability_without_asking_whether_we_have_it() -> None:
    """To advise CAP_SYS_PTRACE to somebody who has it sends people the wrong way."""
    blind = [
        f"{path}:{call.lineno}"
        for path in sorted(SOURCE.rglob("*.py"))
        if "relay" not in path.parts
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in ("PermissionNeeded", "Gap")
        for word in (*call.args, *(keyword.value for keyword in call.keywords))
        if isinstance(word, ast.Constant) and isinstance(word.value, str) and word.value.startswith("CAP_")
    ]
    assert blind == []


@pytest.mark.parametrize(
    ("needs", "hint"),
    [
        ("CAP_SYS_PTRACE", "run it as root, or give it CAP_SYS_PTRACE, so that it can inspect every process"),
        ("a security policy", "`--not-holder PID` vouches for a process; others need a security policy"),
    ],
)
def test_what_is_said_of_holders_names_what_was_missing(needs: str, hint: str) -> None:
    none = np.empty(0, np.uint32)
    found = holders(none, Descriptors(none, none, none.astype(np.uint64), (7,)), needs=needs)
    assert f"pid 7 could not be inspected (needs {needs};" in found.missing
    assert found.hint == hint
    assert found.select(np.empty(0, np.int64)).hint == hint


def test_a_descriptor_that_moved_names_what_was_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for held, said in ((0, "CAP_SYS_PTRACE; try with sudo"), (ALL, "alone is not enough")):
        monkeypatch.setattr(rights, "held", lambda held=held: held)
        monkeypatch.setattr(rights, "in_initial_user_namespace", lambda: True)
        assert DescriptorMoved(1, unseen=False).hint.endswith(said)
