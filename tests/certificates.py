"""Certificates for tests, made by openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["made"]


def made(folder: Path, name: str, *more: str) -> tuple[Path, Path]:
    """Return the paths of a certificate for localhost and 127.0.0.1, which vouches for itself, and of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("`openssl` is not installed (apt: openssl)")
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-days",
        "2",
    ]
    words += ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    words += ["-keyout", str(key), "-out", str(certificate), *(more or ("-nodes",))]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    key.chmod(0o600)
    return certificate, key
