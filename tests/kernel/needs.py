"""What a kernel test cannot do without: missing, it is a skip, or a failure where FINWAIT_KERNEL_TESTS=1."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    if os.environ.get("FINWAIT_KERNEL_TESTS") == "1":
        pytest.fail(what)
    pytest.skip(what)


def root_and(*tools: str) -> None:
    """Need root and some commands."""
    for tool in tools:
        if not shutil.which(tool):
            missing(f"`{tool}` is not installed")
    if os.geteuid() != 0:
        missing("needs root to make and set up a network namespace")
