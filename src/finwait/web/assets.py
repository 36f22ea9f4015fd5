"""The page's files, read once: the process that serves them cannot read a file any more when it does."""

from __future__ import annotations

from importlib import resources
from typing import Final

__all__ = ["read_assets"]

_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def read_assets() -> dict[str, tuple[str, bytes]]:
    """Return path → content type and bytes; ``/`` is the page."""
    served = {}
    for item in resources.files("finwait.web").joinpath("page").iterdir():
        suffix = item.name[item.name.rfind(".") :]
        if suffix in _KINDS:
            path = "/" if item.name == "index.html" else f"/page/{item.name}"
            served[path] = _KINDS[suffix], item.read_bytes()
    return served
