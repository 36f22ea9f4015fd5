"""Columns that are joined or derived for a row that is printed, declared once.

What the kernel sends is in `finwait.table.sockets.SCHEMA`. A declaration here feeds `--columns`, the reference page,
Arrow's types, and what a FILTER says of a name that it does not have. How a cell is made is the method of its name in
`finwait.report.columns.Cells`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct

__all__ = ["DERIVED", "Derived"]


class Derived(Struct, frozen=True):
    """A column that no struct of the kernel has."""

    doc: str
    """One line for the reference page; units included."""
    predicate: str | None = None
    """What a FILTER has for the same, "" where it has nothing; None: a predicate of the same name."""
    dtype: str | None = None
    """The numpy type of its numbers; None: text."""


DERIVED: Final[Mapping[str, Derived]] = MappingProxyType(
    {
        "local": Derived("Local address and port.", predicate="`src` and `sport`"),
        "peer": Derived("Remote address and port.", predicate="`dst` and `dport`"),
        "state_name": Derived("TCP state by name.", predicate="`state`"),
        "family_name": Derived("`inet` or `inet6`.", predicate="`family`"),
        "src_text": Derived("Local address as text.", predicate="`src`"),
        "dst_text": Derived("Remote address as text.", predicate="`dst`"),
        "netns_name": Derived("Name of the network namespace, or its inode.", predicate="`netns`"),
        "owner": Derived(
            "Holders as `comm(pid:fd)`; `-` for none, `?` when not all processes could be inspected.",
            predicate="`pid`, `comm` and `held`",
        ),
        "pid": Derived("Lowest pid that holds it; empty if none was found.", dtype="u4"),
        "fd": Derived("Its descriptor there.", predicate="", dtype="u4"),
        "comm": Derived("Name of that process."),
        "holders": Derived("Number of descriptors that refer to it.", predicate="`held`", dtype="u4"),
        "waited": Derived(
            "Who waits for it in the programs that hold it: `thread`, `loop`, `paused` (an event loop watches it, "
            "but not for reading), `nobody`, or `unknown`; empty where that was not asked."
        ),
        "waiting": Derived(
            "Who that is: threads as `call TID/NAME`, event loops as `epoll FD`, with what they wait for.",
            predicate="`waited` and `thread`",
        ),
        "ends": Derived(
            "By what it ends if nobody acts: `never`, `peer`, `keepalive`, `unknown`, `retries` or `timer`."
        ),
        "outlook": Derived("When it ends by itself, and why.", predicate="`ends`"),
        "keepalive": Derived(
            "SO_KEEPALIVE of its socket: `off`, or `on IDLE/INTERVAL/COUNT` in seconds and probes; empty where it "
            "was not asked.",
            predicate="`timer = keepalive`, where its timer is the armed one",
        ),
        "user_timeout_ms": Derived("TCP_USER_TIMEOUT of its socket; 0 for none.", predicate="", dtype="u4"),
        "linger": Derived(
            "SO_LINGER of its socket: `off`, `reset` (close() sends a RST), or how long close() waits.",
            predicate="",
        ),
        "linger2_s": Derived(
            "TCP_LINGER2 of its socket: how long it stays in FIN_WAIT2 once it is an orphan; −1 not at all.",
            predicate="",
            dtype="i8",
        ),
        "age": Derived("How long it has been in its state, within bounds."),
        "age_at_least_s": Derived(
            "… at least, in seconds; empty when unknown.",
            predicate="`age`; `age > 3s` selects what is certainly older",
            dtype="f8",
        ),
        "age_at_most_s": Derived(
            "… at most, in seconds; empty when unknown.",
            predicate="`age`; `age < 3s` selects what is certainly younger",
            dtype="f8",
        ),
        "timer_name": Derived("Timer by name, with the time left.", predicate="`timer`"),
        "other_end": Derived(
            "State, owner and namespace of the other end, if it is on this machine.", predicate=""
        ),
        "other_state": Derived("State of the other end, if it is on this machine.", predicate=""),
        "conntrack": Derived("State and seconds left of its conntrack entry.", predicate=""),
        "cgroup": Derived("Path of the cgroup in which it was created."),
        "container_id": Derived("Container in which it was created.", predicate="`container`"),
        "pod": Derived(
            "Kubernetes pod as `NAMESPACE/NAME`; empty where the API server's names are not known."
        ),
        "namespace": Derived("Kubernetes namespace of that pod."),
        "container": Derived("Name of the container in that pod."),
        "workload": Derived("What the pod is part of, as `NAMESPACE/NAME`: its Deployment, StatefulSet …"),
        "node": Derived("Kubernetes node of the pod.", predicate=""),
        "service": Derived(
            "Kubernetes Service through which it goes, as `NAMESPACE/NAME`; empty for none, and where that is "
            "not known."
        ),
        "peer_pod": Derived("Pod at the other end, as `NAMESPACE/NAME`.", predicate=""),
        "peer_workload": Derived("What that pod is part of, if it is on this node.", predicate=""),
        "pod_uid": Derived("Kubernetes pod in which it was created.", predicate="`pod`"),
        "unit": Derived("systemd unit in which it was created.", predicate="`cgroup`"),
        "rule": Derived("Primary cause, if a rule has one."),
        "also": Derived("Other rules that match it."),
    }
)
