"""An OCI image layout as one tar archive, byte for byte the same for the same files.

Mirrors the image specification 1.1: ``oci-layout``, ``index.json``, and blobs named by their SHA-256. What differs
between two machines is left out or fixed: the order of the files, their times and owners, the modes of links, and
gzip's own time. What is left is the version of zlib that packs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

__all__ = ["ImageText", "Layer", "layer_of", "write_layout"]

LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True, slots=True)
class Layer:
    """A part of an image."""

    blob: bytes
    """tar, packed by gzip."""
    diff_id: str
    """``sha256:…`` of the tar."""
    said: str
    """What it holds, for people."""


@dataclass(frozen=True, slots=True)
class ImageText:
    """What an image says of itself."""

    name: str
    """``repository:tag``."""
    entrypoint: tuple[str, ...]
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    epoch: int
    """Seconds: when it was made, and the time of every file."""
    architecture: str = "amd64"


def layer_of(root: Path, said: str, epoch: int, wanted: Callable[[str], bool] = lambda _: True) -> Layer:
    """Pack a folder, or the part of its paths that is wanted.

    Args:
        root: the folder that becomes ``/``.
        said: what it holds.
        epoch: the time of every file, in seconds.
        wanted: whether a path, relative to the root, belongs to it.

    Raises:
        ValueError: a file is no file, folder or link, or can be written to by everybody and is not sticky.
    """
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*"), key=lambda p: p.relative_to(root).parts):
            name = str(path.relative_to(root))
            if wanted(name):
                _add(tar, path, name, epoch)
    data = raw.getvalue()
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as file:
        file.write(data)
    return Layer(packed.getvalue(), _digest(data), said)


def _add(tar: tarfile.TarFile, path: Path, name: str, epoch: int) -> None:
    status = path.lstat()
    info = tarfile.TarInfo(name)
    info.mtime = epoch
    info.mode = stat.S_IMODE(status.st_mode) & ~(stat.S_ISUID | stat.S_ISGID)
    if stat.S_ISLNK(status.st_mode):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
        tar.addfile(info)
        return
    if info.mode & stat.S_IWOTH and not info.mode & stat.S_ISVTX:
        raise ValueError(f"{name} can be written to by everybody")
    if stat.S_ISDIR(status.st_mode):
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif stat.S_ISREG(status.st_mode):
        info.size = status.st_size
        with path.open("rb") as file:
            tar.addfile(info, file)
    else:
        raise ValueError(f"{name} is no file, folder or link")


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: Any) -> bytes:  # noqa: ANN401 - any JSON
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def write_layout(path: Path, layers: Iterable[Layer], text: ImageText) -> str:
    """Write an image; return the digest of its manifest, ``sha256:…``.

    Args:
        path: of the tar archive.
        layers: the lowest first.
        text: what it says of itself.
    """
    blobs: dict[str, bytes] = {}

    def blob(kind: str, data: bytes) -> dict[str, Any]:
        blobs[_digest(data)] = data
        return {"mediaType": kind, "digest": _digest(data), "size": len(data)}

    layers = list(layers)
    created = datetime.fromtimestamp(text.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = {
        "architecture": text.architecture,
        "os": "linux",
        "created": created,
        "config": {
            "Entrypoint": list(text.entrypoint),
            "Env": [f"{name}={value}" for name, value in sorted(text.environment.items())],
            "Labels": dict(text.labels),
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": created, "created_by": layer.said} for layer in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(CONFIG, _json(config)),
        "layers": [blob(LAYER, layer.blob) for layer in layers],
        "annotations": dict(text.labels),
    }
    described = blob(MANIFEST, _json(manifest))
    tag = text.name.rpartition(":")[2]
    described |= {
        "platform": {"architecture": text.architecture, "os": "linux"},
        # The first is for tools of the specification, the second for `ctr images import`.
        "annotations": {"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": text.name},
    }
    files = {
        "index.json": _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described]}),
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        **{f"blobs/sha256/{digest.partition(':')[2]}": data for digest, data in blobs.items()},
    }
    with tarfile.open(path, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), text.epoch, 0o644
            tar.addfile(info, io.BytesIO(data))
    return str(described["digest"])
