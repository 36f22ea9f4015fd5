"""Expressions of PromQL, those of the dashboard, and the tools of Prometheus.

The tools are on PATH, or where `make check-metrics` unpacks Debian's packages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
from promql_parser import Expr

__all__ = [
    "CHECK_METRICS",
    "DASHBOARD",
    "UNPACKED",
    "filled",
    "labels_of",
    "metrics_of",
    "parse",
    "queries",
    "tool",
]

ROOT = Path(__file__).parents[1]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/finwait.json").read_text())

CHECK_METRICS = "FINWAIT_CHECK_METRICS"
"""Set to 1 by `make check-metrics`: what takes longer runs, and what is missing is a failure."""
UNPACKED = ROOT / "build/prometheus/usr/bin"


def tool(name: str) -> str | None:
    """Return the path of a program, or None."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), str(UNPACKED))))


def queries() -> Iterator[tuple[str, str]]:
    """Yield where it stands and the expression, of the dashboard."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def filled(expression: str) -> str:
    """Return an expression with Grafana's variables filled in.

    Raises:
        ValueError: there is one that the dashboard does not have.
    """
    result = expression.replace("$__rate_interval", "5m").replace("$instance", ".*")
    if "$" in result:
        raise ValueError(f"a variable that is not known: {expression}")
    return result


def parse(expression: str) -> Expr:
    """Return an expression of PromQL, with Grafana's variables filled in.

    Raises:
        ValueError: it is none.
    """
    return promql_parser.parse(filled(expression))


def metrics_of(expression: str) -> set[str]:
    """Return the names of the metrics that an expression selects."""
    return set(re.findall(r"\b(?:finwait_\w+|up|ALERTS)\b", _without_text(expression)))


def labels_of(expression: str) -> set[str]:
    """Return the names of the labels that an expression matches, groups by or joins on."""
    plain = _without_text(expression)
    found = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", plain))
    for names in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", plain):
        found |= {name.strip() for name in names.split(",") if name.strip()}
    return found


def _without_text(expression: str) -> str:
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
