"""The container image: the same files make the same bytes, and what it is made of is what the project asks for."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.image.build import DEBIAN, LOCK, USER, WHEELS, stanzas
from deploy.image.oci import ImageText, layer_of, write_layout
from deploy.image.sbom import Part, spdx
from deploy.image.try_image import CAPABILITIES, unpack
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
VALUES = yaml.safe_load((ROOT / "deploy/helm/finwait/values.yaml").read_text())
EPOCH = 1_700_000_000
TEXT = ImageText("localhost/x:1", ("/usr/bin/x",), {"PATH": "/usr/bin"}, {"a": "b"}, EPOCH)


def filled(root: Path, order: int) -> Path:
    """Make files, in one order or the other."""
    root.mkdir()
    for name in sorted(("b/deep/z", "b/y", "a"), reverse=bool(order)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(0o640)
        os.utime(path, (order, order))
    (root / "link").symlink_to("/nowhere")
    for path in (root / "b", root / "b/deep"):
        path.chmod(0o755)
    return root


def test_the_same_files_make_the_same_image_whenever_and_wherever_they_were_made(tmp_path: Path) -> None:
    made = []
    for order in (0, 1):
        layer = layer_of(filled(tmp_path / str(order), order), "files", EPOCH)
        out = tmp_path / f"{order}.tar"
        made.append((write_layout(out, [layer], TEXT), hashlib.sha256(out.read_bytes()).hexdigest()))
    assert made[0] == made[1]


def test_a_layer_is_owned_by_root_sorted_and_without_set_user_bits(tmp_path: Path) -> None:
    root = filled(tmp_path / "root", 0)
    (root / "a").chmod(0o4755)
    layer = layer_of(root, "files", EPOCH)
    data = gzip.decompress(layer.blob)
    assert layer.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == ["a", "b", "b/deep", "b/deep/z", "b/y", "link"]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {(0, 0, "", "", EPOCH)}
    assert members[0].mode == 0o755
    assert members[-1].linkname == "/nowhere"


def test_a_layer_takes_no_file_that_everybody_can_write_to_and_no_device(tmp_path: Path) -> None:
    root = filled(tmp_path / "root", 0)
    (root / "a").chmod(0o666)
    with pytest.raises(ValueError, match="by everybody"):
        layer_of(root, "files", EPOCH)
    (root / "a").chmod(0o644)
    os.mkfifo(root / "pipe")
    with pytest.raises(ValueError, match="no file, folder or link"):
        layer_of(root, "files", EPOCH)


def test_every_blob_of_an_image_is_what_its_name_says(tmp_path: Path) -> None:
    root = filled(tmp_path / "root", 0)
    layers = [layer_of(root, "a", EPOCH, lambda n: n == "a"), layer_of(root, "b", EPOCH, lambda n: n != "a")]
    out = tmp_path / "image.tar"
    digest = write_layout(out, layers, TEXT)
    config = unpack(out, tmp_path / "unpacked")
    assert config["Entrypoint"] == ["/usr/bin/x"]
    assert config["Env"] == ["PATH=/usr/bin"]
    assert (tmp_path / "unpacked/b/deep/z").read_text() == "b/deep/z"
    with tarfile.open(out) as tar:
        index = json.load(tar.extractfile("index.json"))  # type: ignore[arg-type]
    assert index["manifests"][0]["digest"] == digest
    assert index["manifests"][0]["annotations"]["io.containerd.image.name"] == "localhost/x:1"


def test_the_bill_of_materials_names_every_part_once_and_in_a_form_that_others_read() -> None:
    parts = [
        Part("deb", "libstdc++6", "12.2.0-14+deb12u1", "0" * 64),
        Part("deb", "zlib1g", "1:1.2.13.dfsg-1", "1" * 64),
        Part("pypi", "prometheus_client", "0.26.0", "2" * 64, "Apache-2.0 AND BSD-2-Clause"),
        Part("pypi", "odd", "1", "3" * 64, "Copyright (c) somebody\nall of it"),
    ]
    data = spdx("finwait", "0.1.0", parts, EPOCH)
    assert data == spdx("finwait", "0.1.0", reversed(parts), EPOCH)
    document: dict[str, Any] = json.loads(data)
    assert document["spdxVersion"] == "SPDX-2.3"
    assert document["creationInfo"]["created"] == "2023-11-14T22:13:20Z"
    packages = {p["name"]: p for p in document["packages"]}
    names = [p["SPDXID"] for p in document["packages"]]
    assert all(re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", name) for name in names)
    assert len(names) == len(set(names)) == 5
    purls = {
        name: p["externalRefs"][0]["referenceLocator"] for name, p in packages.items() if "externalRefs" in p
    }
    assert purls["libstdc++6"] == "pkg:deb/debian/libstdc++6@12.2.0-14+deb12u1?arch=amd64&distro=debian-12"
    assert purls["prometheus_client"] == "pkg:pypi/prometheus-client@0.26.0"
    assert packages["prometheus_client"]["licenseDeclared"] == "Apache-2.0 AND BSD-2-Clause"
    assert packages["odd"]["licenseDeclared"] == "NOASSERTION"
    contained = {
        r["relatedSpdxElement"] for r in document["relationships"] if r["relationshipType"] == "CONTAINS"
    }
    assert contained == set(names) - {"SPDXRef-image"}


def test_the_wheels_of_the_image_are_locked_and_all_that_its_commands_need() -> None:
    locked = stanzas(LOCK.read_text(), WHEELS)
    assert locked.count("numpy==") == 1
    for line in locked.splitlines():
        assert re.fullmatch(r"[a-z].*==\S+( ; .*)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["agent"], *extras["audit"], *extras["tui"]]
    assert {Requirement(r).name.lower() for r in asked} <= set(WHEELS)
    with pytest.raises(ValueError, match="nosuch"):
        stanzas(LOCK.read_text(), ["nosuch"])


def test_another_python_gets_its_own_version_of_a_package() -> None:
    versions = {
        python: stanzas(LOCK.read_text(), ["numpy"], python).partition(" ")[0] for python in ("3.11", "3.12")
    }
    assert versions["3.11"] != versions["3.12"]


def test_image_and_chart_mean_the_same_user_and_the_same_rights() -> None:
    assert VALUES["serve"]["user"] == USER
    assert len(set(DEBIAN)) == len(DEBIAN)
    template = (ROOT / "deploy/helm/finwait/templates/daemonset.yaml").read_text()
    added = re.findall(r"^ +- ([A-Z_]+)(?: #|$)", template, re.MULTILINE)
    to_be_another = {"SETUID", "SETGID"}  # for what follows the API server; the image is tried without that
    assert set(added) == set(CAPABILITIES) | to_be_another
