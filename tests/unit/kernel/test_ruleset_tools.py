"""A tool that fails to list firewall rules has not said that there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from finwait.kernel import netns, ruleset


def here() -> netns.NetNamespace:
    return netns.NetNamespace(netns.own_netns())


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, **tools: str) -> None:
    for name, script in tools.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_failing_nft_is_a_gap_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch, nft="echo; echo 'Error: cache initialization failed' >&2; exit 1")
    texts, gaps = ruleset.rulesets([here()])
    assert texts[here().inode].strip() == ""
    (gap,) = gaps
    assert gap.where == f"netns {here().inode}"
    assert "`nft list ruleset`: Error: cache initialization failed" in gap.needs


@pytest.mark.parametrize("script", ["exit 7", "kill -9 $$"])
def test_one_that_dies_in_silence_is_a_gap(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, monkeypatch, nft=script)
    _, gaps = ruleset.rulesets([here()])
    assert len(gaps) == 1


def test_one_that_cannot_be_run_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch, nft="")
    (tmp_path / "nft").write_bytes(b"#!/nonexistent/x\n")
    _, gaps = ruleset.rulesets([here()])
    assert len(gaps) == 1


def test_each_tool_that_fails_is_told_and_what_others_say_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, monkeypatch, nft="echo table ip x", iptables_legacy_save="echo '*raw'; exit 3")
    texts, gaps = ruleset.rulesets([here()])
    assert texts[here().inode].split() == ["table", "ip", "x", "*raw"]
    assert len(gaps) == 1
    assert "iptables-legacy-save" in gaps[0].needs


def test_no_rules_are_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, monkeypatch, nft="exit 0")
    assert ruleset.rulesets([here()]) == ({here().inode: ""}, [])
