"""The Helm chart, what is made of it, and the tools that make it.

helm is on PATH where `make chart` fetched it, or somebody installed it; nothing here fetches anything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

__all__ = ["CHART", "CHECK_CHART", "MANIFEST", "Objects", "helm", "missing", "rendered", "validator"]

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy/helm/finwait"
MANIFEST = ROOT / "deploy/kubernetes/finwait.yaml"
CHECK_CHART = os.environ.get("FINWAIT_CHECK_CHART") == "1"
"""Set by `make chart`: what is missing is a failure."""


def missing(what: str) -> None:
    """Skip, or fail where everything should be there."""
    reason = f"{what} is not installed; `make chart` fetches it"
    if CHECK_CHART:
        pytest.fail(reason)
    pytest.skip(reason)


def helm(*words: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Run helm; values go in as a file on standard input."""
    program = shutil.which("helm")
    if program is None:
        missing("`helm`")
    assert program is not None
    more = ("--values", "-") if values is not None else ()
    return subprocess.run(
        [program, *words, *more], input=json.dumps(values or {}), capture_output=True, text=True, timeout=120
    )


class Objects:
    """What a chart was rendered to.

    Args:
        text: YAML documents.
    """

    def __init__(self, text: str) -> None:
        self.all: list[dict[str, Any]] = [item for item in yaml.safe_load_all(text) if item]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return those of a kind."""
        return [item for item in self.all if item["kind"] == kind]

    def only(self, kind: str) -> dict[str, Any]:
        """Return the only one of a kind."""
        (item,) = self.of(kind)
        return item

    @property
    def pod(self) -> dict[str, Any]:
        """The pod of the DaemonSet."""
        spec: dict[str, Any] = self.only("DaemonSet")["spec"]["template"]["spec"]
        return spec

    def container(self, name: str) -> dict[str, Any]:
        """Return a container of it."""
        (item,) = (c for c in self.pod["containers"] if c["name"] == name)
        made: dict[str, Any] = item
        return made


def rendered(values: dict[str, Any] | None = None, *words: str) -> Objects:
    """Return what helm makes of the chart with these values."""
    done = helm("template", "finwait", str(CHART), "--namespace", "finwait", *words, values=values or {})
    assert done.returncode == 0, done.stderr
    return Objects(done.stdout)


def validator() -> str:
    """Return a Python that has kubernetes-validate: it stands beside the helm that `make chart` fetched."""
    program = Path(shutil.which("helm") or "/nonexistent").with_name("venv") / "bin/python"
    if not program.exists():
        missing("kubernetes-validate")
    return str(program)
