"""What krew installs is the same for the same sources, and its manifest says what is in it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from deploy import krew

ADDRESS = "https://files.example/finwait/kubectl-finwait.tar.gz"


def packed(tmp_path: Path) -> bytes:
    program, licence = tmp_path / "made", tmp_path / "text"
    program.write_bytes(b"#!/usr/bin/env python3\n")
    licence.write_text("as is")
    return krew.archive({"kubectl-finwait": program, "LICENSE": licence}, 1_700_000_000)


def test_the_archive_has_the_program_and_nothing_of_who_made_it_or_when(tmp_path: Path) -> None:
    data = packed(tmp_path)
    assert packed(tmp_path) == data
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [(m.name, m.mode, m.mtime, m.uid, m.uname) for m in members] == [
        ("LICENSE", 0o644, 1_700_000_000, 0, ""), ("kubectl-finwait", 0o755, 1_700_000_000, 0, ""),
    ]  # fmt: skip


def test_the_manifest_names_the_archive_by_its_hash(tmp_path: Path) -> None:
    data = packed(tmp_path)
    document = json.loads(krew.manifest("1.2.3", data, ADDRESS, "x86_64", "3.11"))
    assert (document["kind"], document["metadata"], document["spec"]["version"]) == (
        "Plugin", {"name": "finwait"}, "v1.2.3",
    )  # fmt: skip
    (platform,) = document["spec"]["platforms"]
    assert platform == {
        "selector": {"matchLabels": {"os": "linux", "arch": "amd64"}}, "uri": ADDRESS, "bin": "kubectl-finwait",
        "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    assert len(document["spec"]["shortDescription"]) <= 50, "krew's own limit"


@pytest.mark.parametrize(("address", "machine"), [("http://files.example/x", "x86_64"), (ADDRESS, "riscv64")])
def test_what_krew_would_refuse_is_refused(address: str, machine: str) -> None:
    with pytest.raises(ValueError, match="krew"):
        krew.manifest("1.2.3", b"", address, machine, "3.11")
