"""What a kernel test needs, said once: a skip that names what is missing, or a failure where CI asks for all."""

from __future__ import annotations

import os

import pytest

__all__ = ["require"]


def require(*missing: str) -> None:
    """Skip (or fail, with ``FINWAIT_KERNEL_TESTS=1``) when something is missing."""
    if missing:
        (pytest.fail if os.environ.get("FINWAIT_KERNEL_TESTS") == "1" else pytest.skip)("; ".join(missing))
