"""The images of the node: finwait's own, and the one that every pod's sandbox needs."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

__all__ = ["PAUSE", "finwait_image", "write_pause"]

PAUSE = "localhost/pause:1"
_OCI = "application/vnd.oci.image"
_ROOT = Path(__file__).parents[2]
_SOURCES = ("src", "deploy/image", "requirements.lock", "pyproject.toml")


def finwait_image(folder: Path) -> Path:
    """Return the archive of `make image`, built anew where the sources are younger."""
    newest = max(
        path.stat().st_mtime
        for name in _SOURCES
        for path in ((_ROOT / name).rglob("*") if (_ROOT / name).is_dir() else [_ROOT / name])
        if path.is_file() and "__pycache__" not in path.parts
    )
    for archive in folder.glob("*.oci.tar"):
        if archive.stat().st_mtime > newest:
            return archive
    subprocess.run([sys.executable, str(_ROOT / "deploy/image/build.py"), str(folder)], check=True, stdout=2)
    (archive,) = folder.glob("*.oci.tar")
    return archive


def write_pause(busybox: Path, archive: Path) -> None:
    """Write an image of one static program that sleeps: what holds the namespaces of a pod."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        member = tarfile.TarInfo("busybox")
        data = busybox.read_bytes()
        member.size, member.mode = len(data), 0o755
        tar.addfile(member, io.BytesIO(data))
    blobs: dict[str, bytes] = {}

    def blob(kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"{_OCI}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    below = blob("layer.v1.tar", layer.getvalue())
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/busybox", "sleep", "2000000000"]},
        "rootfs": {"type": "layers", "diff_ids": [below["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}.manifest.v1+json",
        "config": blob("config.v1+json", json.dumps(config).encode()),
        "layers": [below],
    }
    described = blob("manifest.v1+json", json.dumps(manifest).encode())
    described["annotations"] = {"io.containerd.image.name": PAUSE}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [described]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    with tarfile.open(archive, "w") as tar:
        for name, data in blobs.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
