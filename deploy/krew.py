"""The archive and the manifest by which krew installs ``kubectl finwait``.

The manifest is that of https://krew.sigs.k8s.io/docs/developer-guide/plugin-manifest/ (v1alpha2). Its archive is the
same for the same sources: names in order, no times but the commit's, no users.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["archive", "manifest"]

PROGRAM: Final = "kubectl-finwait"
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
"""As the kernel calls them (uname(2)) → as krew does."""


def archive(files: Mapping[str, Path], made: int) -> bytes:
    """Return files as a ``.tar.gz``.

    Args:
        files: name in the archive → file.
        made: the time of all of them, in seconds since 1970.
    """
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=made, filename="") as outer,
        tarfile.open(fileobj=outer, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, path in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = path.stat().st_size, made
            entry.mode = 0o755 if name == PROGRAM else 0o644
            with path.open("rb") as file:
                tar.addfile(entry, file)
    return packed.getvalue()


def manifest(version: str, packed: bytes, address: str, machine: str, python: str) -> str:
    """Return the manifest, as JSON, which YAML includes.

    Args:
        version: of finwait.
        packed: the archive.
        address: where it will be.
        machine: for which it is, as uname(2) calls it.
        python: which Python runs it: ``3.11``.

    Raises:
        ValueError: krew takes nothing from such an address, or knows no such machine.
    """
    if not address.startswith("https://"):
        raise ValueError(f"krew takes archives from https:// only, not from `{address}`")
    if machine not in ARCHITECTURES:
        raise ValueError(f"krew has no name for `{machine}`")
    platform = {
        "selector": {"matchLabels": {"os": "linux", "arch": ARCHITECTURES[machine]}},
        "uri": address,
        "sha256": hashlib.sha256(packed).hexdigest(),
        "bin": PROGRAM,
    }
    document: dict[str, Any] = {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "finwait"},
        "spec": {
            "version": f"v{version}",
            "shortDescription": "TCP connections that do not finish closing",
            "description": "Finds the connections of all nodes that do not finish closing (FIN_WAIT2, CLOSE_WAIT "
            "and others), and says of each why, whose move it is and what ends it. Asks the agents of the finwait "
            "DaemonSet by your own kubectl.\n",
            "caveats": f"Needs Python {python} on this machine, and the finwait DaemonSet in the cluster "
            "(`kubectl finwait debug NODE --image IMAGE` does without).\n",
            "platforms": [platform],
        },
    }
    return json.dumps(document, indent=2) + "\n"
