"""Whatever names a network namespace names the same one to every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from finwait.lab.topology import Lab

pytestmark = pytest.mark.kernel


def shown(*words: str) -> dict[str, object]:
    ran = subprocess.run(
        [sys.executable, "-m", "finwait", *words, "-o", "json"], capture_output=True, text=True
    )
    assert ran.returncode in (0, 3), ran.stderr
    found: dict[str, object] = json.loads(ran.stdout)
    return found


def test_each_form_of_a_name_leads_to_the_same_namespace_in_a_look_and_in_tune() -> None:
    with Lab() as lab:
        path = f"/proc/{os.getpid()}/fd/{lab.netns('named').fd}"
        inode = os.stat(path).st_ino
        forms = [path, str(inode), f"netns:{inode}", f"net:[{inode}]"]
        own = os.stat("/proc/self/ns/net").st_ino
        pid = os.getpid()
        where = [(form, inode) for form in forms]
        where += [(form, own) for form in (str(pid), f"pid:{pid}", f"/proc/{pid}/ns/net", str(own))]
        for form, wanted in where:
            look = shown("netns", "--netns", form)
            assert [item["netns"] for item in look["items"]] == [wanted], form  # type: ignore[attr-defined]
            tune = shown("tune", "show", "tcp_fin_timeout", "--netns", form)
            assert [space["netns"] for space in tune["namespaces"]] == [wanted], form  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", [("netns",), ("tune", "show"), ("list",)])
@pytest.mark.parametrize("name", ["no-such-namespace", "4294967295", "/etc/hostname", "/nonexistent/x"])
def test_a_namespace_that_is_not_there_is_status_1(words: tuple[str, ...], name: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "finwait", *words, "--netns", name], capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert name in ran.stderr
    assert "hint: " in ran.stderr
