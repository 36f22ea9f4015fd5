"""What surrounds the real Kubernetes node of `make kube-e2e`; the node itself is not for CI."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.kube_e2e import __main__ as run
from tests.kube_e2e import binaries, checks, images, table


def test_without_the_programs_and_what_would_make_them_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINWAIT_KUBE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert set(binaries.BUILT) < set(binaries.missing())
    with pytest.raises(binaries.Absent, match=r"kube-apiserver.*apt-get"):
        binaries.ensure()


def test_a_run_that_cannot_be_is_skipped_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["kube_e2e"])
    assert run.main() == 77
    assert "kube-e2e: skipped: " in capsys.readouterr().out


def test_programs_that_are_there_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINWAIT_KUBE_CACHE", str(tmp_path))
    for name in binaries.missing():
        path = tmp_path / (name if name.startswith("cni/") else f"bin/{name}")
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert binaries.ensure() == tmp_path
    assert list(tmp_path.iterdir()) != []
    assert not (tmp_path / "work").exists()


def test_the_page_says_what_was_wrong_and_keeps_its_columns(tmp_path: Path) -> None:
    results = [
        {"title": "Names.", "right": True, "seen": "a | b\nc"},
        {"title": "Events.", "right": False, "seen": "none came"},
    ]
    file = tmp_path / "measured.json"
    file.write_text(
        json.dumps({"date": "2026-01-02", "versions": {"etcd": "3"}, "left": ["/x"], "results": results})
    )
    text = table.page(file)
    assert "| Names. | right | a \\| b c |" in text
    assert "| Events. | **wrong** | none came |" in text
    assert "2026-01-02: etcd 3." in text
    assert "afterwards: `/x`." in text


def test_the_sandbox_image_is_what_its_digests_say(tmp_path: Path) -> None:
    (tmp_path / "busybox").write_bytes(b"program")
    images.write_pause(tmp_path / "busybox", tmp_path / "pause.tar")
    with tarfile.open(tmp_path / "pause.tar") as tar:
        index = json.loads(tar.extractfile("index.json").read())  # type: ignore[union-attr]
        digest = index["manifests"][0]["digest"].partition(":")[2]
        manifest = json.loads(tar.extractfile(f"blobs/sha256/{digest}").read())  # type: ignore[union-attr]
        names = set(tar.getnames())
    for part in (manifest["config"], *manifest["layers"]):
        assert f"blobs/sha256/{part['digest'].partition(':')[2]}" in names


def test_each_check_has_a_title() -> None:
    assert all((check.__doc__ or "").strip().endswith(".") for check in checks.CHECKS)
