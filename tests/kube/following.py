"""A watcher beside a server of the tests, and how to wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from finwait.kube.access import KubeAccess
from finwait.kube.watch import KubePacing, Watcher
from tests.kube import cluster
from tests.kube.api_server import ApiServer

QUICK = KubePacing(
    start_s=0.0,
    first_s=0.01,
    most_s=0.05,
    refused_most_s=0.05,
    told_most_s=0.05,
    healthy_s=0.5,
    head_s=0.5,
    list_s=2.0,
    watch_s=(1, 2),
    silence_s=0.5,
    grace_s=1.0,
)
"""Pauses and deadlines of a test."""
PATIENT = replace(QUICK, head_s=60.0, list_s=60.0, silence_s=60.0, grace_s=60.0)
"""The same without a deadline that a busy machine could miss: where failures are counted."""
PATIENCE_S = 30.0
"""For what has to happen; nothing takes so long unless the machine is very busy."""


def watcher_of(server: ApiServer, pacing: KubePacing = QUICK, **files: str) -> Watcher:
    return Watcher(KubeAccess(server.url, node=cluster.NODE, **files), pacing=pacing)


def until(true: Callable[[], object], saying: Callable[[], object] = lambda: "") -> None:
    """Wait until something is so.

    Raises:
        AssertionError: it never was.
    """
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, saying()
        time.sleep(0.005)


def agree(watcher: Watcher, server: ApiServer) -> None:
    """Wait until names are those of the server's objects, and nothing is wrong any more."""

    def state() -> object:
        return (
            cluster.told(watcher.names()),
            cluster.expected(server.stored()),
            watcher.gaps(),
            watcher.requests,
        )

    until(
        lambda: cluster.told(watcher.names()) == cluster.expected(server.stored()) and not watcher.gaps(),
        state,
    )


def fill(server: ApiServer) -> None:
    """Store one or two objects of each kind."""
    server.put("pods", cluster.pod())
    server.put("pods", cluster.pod("db-0", ip="10.244.0.8", owner=("StatefulSet", "db"), labels={}))
    server.put("pods", cluster.pod("elsewhere", node="node-b", ip="10.244.1.4"))
    server.put("services", cluster.service())
    version = server.discovery[-1] if server.discovery else "v1"
    server.put("endpointslices", cluster.endpoint_slice(version=version))
    server.put("namespaces", cluster.namespace("shop"))


def written(path: Path, text: str) -> str:
    """Replace a file as the kubelet does, never half; return its path."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)
    return str(path)
