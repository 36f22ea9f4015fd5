"""The relay's counts as Prometheus text.

Counts are summed over workers. A worker that was replaced takes its counts with it, which Prometheus reads as a
restart of the counter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finwait.relay.machine import Reason
from finwait.relay.route import CONNECT_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["METRICS", "render"]

METRICS = {
    "finwait_relay_connections": ("gauge", "Connections now."),
    "finwait_relay_connections_accepted_total": ("counter", "Connections accepted."),
    "finwait_relay_connections_rejected_total": (
        "counter",
        "Connections turned away, by reason (acl, per_source, no_room, circle).",
    ),
    "finwait_relay_connections_ended_total": ("counter", "Connections ended, by reason."),
    "finwait_relay_half_closed": ("gauge", "Connections on which one side has sent its FIN."),
    "finwait_relay_half_closed_longest_seconds": ("gauge", "Age of the oldest half-close."),
    "finwait_relay_bytes_total": ("counter", "Bytes read, by side (client: from clients)."),
    "finwait_relay_connect_seconds": (
        "histogram",
        "Time to connect to a backend (the attempt that succeeded).",
    ),
    "finwait_relay_backend_connections": ("gauge", "Connections to a backend now."),
    "finwait_relay_backend_up": (
        "gauge",
        "0 if active checks, or the passive checks of any worker, leave the backend out; otherwise 1.",
    ),
    "finwait_relay_backend_connected_total": ("counter", "Connections to a backend that were established."),
    "finwait_relay_backend_failed_total": (
        "counter",
        "Attempts to connect that failed, and resets before the first byte.",
    ),
    "finwait_relay_backend_idle": ("gauge", "Connections opened in advance and not yet used."),
    "finwait_relay_workers": ("gauge", "Worker processes."),
    "finwait_relay_workers_silent": (
        "gauge",
        "Workers that did not answer within ten seconds; their counts are missing here.",
    ),
    "finwait_relay_worker_restarts_total": ("counter", "Workers that ended unexpectedly and were replaced."),
    "finwait_relay_pipes": ("gauge", "Pipes made for splice, in all workers."),
    "finwait_relay_access_log_dropped_total": (
        "counter",
        "Lines of the access log that were dropped: the reader was too slow, or the disk is full.",
    ),
}
"""Name → type and help."""


def render(workers: Iterable[dict[str, Any]], restarts: int, silent: int = 0) -> str:
    """Return the text; each of ``workers`` is what `finwait.relay.process.Process.do_stats` returned.

    ``silent`` is how many workers did not answer: their counts are missing.
    """
    workers = list(workers)
    samples: dict[str, dict[str, float]] = {name: {} for name in METRICS}

    def add(name: str, value: float, suffix: str = "", **labels: str) -> None:
        inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        line = f"{name}{suffix}{{{inside}}}" if inside else f"{name}{suffix}"
        of_metric = samples[name]
        if name == "finwait_relay_half_closed_longest_seconds":
            of_metric[line] = max(of_metric.get(line, 0.0), value)
        elif name == "finwait_relay_backend_up":
            of_metric[line] = min(of_metric.get(line, 1), value)
        else:
            of_metric[line] = of_metric.get(line, 0) + value

    add("finwait_relay_workers", len(workers) + silent)
    add("finwait_relay_workers_silent", silent)
    add("finwait_relay_worker_restarts_total", restarts)
    for worker in workers:
        add("finwait_relay_pipes", worker["pipes"])
        add("finwait_relay_access_log_dropped_total", worker["access_log_dropped"])
        for name, counts in worker["services"].items():
            _service(add, name, counts)
    lines = []
    for metric, (kind, text) in METRICS.items():
        lines += [f"# HELP {metric} {text}", f"# TYPE {metric} {kind}"]
        lines += [f"{line} {value:.10g}" for line, value in samples[metric].items()]
    return "\n".join(lines) + "\n"


def _service(add: Any, name: str, counts: dict[str, Any]) -> None:  # noqa: ANN401  # the function above
    add("finwait_relay_connections", counts["now"], service=name)
    add("finwait_relay_connections_accepted_total", counts["accepted"], service=name)
    for why in ("acl", "per_source", "no_room", "circle"):
        add("finwait_relay_connections_rejected_total", counts["rejected"].get(why, 0), service=name, why=why)
    for reason in Reason:
        add(
            "finwait_relay_connections_ended_total",
            counts["ended"].get(reason.value, 0),
            service=name,
            reason=reason,
        )
    add("finwait_relay_half_closed", counts["half_closed"], service=name)
    add("finwait_relay_half_closed_longest_seconds", counts["half_closed_longest_s"], service=name)
    for side in ("client", "server"):
        add("finwait_relay_bytes_total", counts[f"bytes_from_{side}"], service=name, side=side)
    total = 0
    for bound, count in zip((*map(str, CONNECT_BUCKETS), "+Inf"), counts["connect_buckets"], strict=True):
        total += count
        add("finwait_relay_connect_seconds", total, "_bucket", service=name, le=bound)
    add("finwait_relay_connect_seconds", counts["connect_sum_s"], "_sum", service=name)
    add("finwait_relay_connect_seconds", total, "_count", service=name)
    for backend in counts["backends"]:
        labels = {"service": name, "backend": backend["name"]}
        add("finwait_relay_backend_connections", backend["active"], **labels)
        add("finwait_relay_backend_up", int(backend["up"] and not backend["ejected"]), **labels)
        add("finwait_relay_backend_connected_total", backend["connected"], **labels)
        add("finwait_relay_backend_failed_total", backend["failed"], **labels)
        add("finwait_relay_backend_idle", backend["idle"], **labels)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
