"""A picture as Prometheus reads it. Pure: a scrape never looks, it formats the last finished round.

Each metric is declared once, in `METRICS`, from which the text and the reference page are made. Series are bounded
where the picture is made (`finwait.agent.tally`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from finwait.agent.protocol import DURATIONS_S, LOOKS_S, Histogram, RoundPicture

__all__ = ["METRICS", "Metric", "render"]

Kind = Literal["gauge", "counter", "histogram"]


class Metric(Struct, frozen=True):
    """One metric."""

    name: str
    """As Prometheus shows it."""
    kind: Kind
    labels: tuple[str, ...]
    doc: str
    """The HELP line."""
    samples: Callable[[RoundPicture], Iterable[tuple[tuple[str, ...], Any]]]
    """Label values and value, of a picture."""
    bounds: tuple[float, ...] = ()


def _groups(
    value: Callable[[Any], float],
) -> Callable[[RoundPicture], Iterator[tuple[tuple[str, ...], float]]]:
    def samples(p: RoundPicture) -> Iterator[tuple[tuple[str, ...], float]]:
        best: dict[tuple[str, ...], float] = {}
        for g in p.groups:
            labels = g.rule, g.namespace, g.workload
            best[labels] = max(value(g), best.get(labels, 0.0))
        yield from best.items()

    return samples


METRICS: Final[tuple[Metric, ...]] = (
    Metric(
        "finwait_sockets", "gauge", ("state",),
        "TCP sockets by state, as each network namespace was last looked at.",
        lambda p: (((state,), n) for state, n in p.sockets.items()),
    ),
    Metric(
        "finwait_stuck_connections", "gauge", ("rule", "severity", "namespace", "workload"),
        "Connections that do not finish closing, by cause and workload; both ends of one connection count once.",
        lambda p: (((g.rule, g.severity, g.namespace, g.workload), g.count) for g in p.groups),
    ),
    Metric(
        "finwait_stuck_connections_oldest_seconds", "gauge", ("rule", "namespace", "workload"),
        "The longest that one of these has been in its state for sure.",
        _groups(lambda g: g.oldest_s),
    ),
    Metric(
        "finwait_leak_connections_per_second", "gauge", ("rule", "namespace", "workload"),
        "How fast connections older than ten minutes pile up; 0 while they do not grow.",
        _groups(lambda g: g.rate),
    ),
    Metric(
        "finwait_episodes_opened_total", "counter", ("rule", "namespace", "workload"),
        "Connections that began not to finish closing, since the agent started; each end counts.",
        lambda p: (((c.rule, c.namespace, c.workload), c.total) for c in p.opened),
    ),
    Metric(
        "finwait_episodes_ended_total", "counter", ("rule", "how"),
        "… that ended, and how: closed, reset, cleared, owner-gone, vanished or unknown.",
        lambda p: (((e.rule, e.how), e.total) for e in p.ended),
    ),
    Metric(
        "finwait_episode_duration_seconds", "histogram", ("rule",),
        "How long these had lasted for sure.",
        lambda p: (((h.label,), h) for h in p.durations),
        DURATIONS_S,
    ),
    Metric(
        "finwait_limit_ratio", "gauge", ("limit", "namespace", "workload"),
        "Part of a limit that is used up (0 to 1); the fullest of its kind and workload.",
        lambda p: (((m.limit, m.namespace, m.workload), m.used / m.most if m.most else 1.0) for m in p.limits),
    ),
    Metric(
        "finwait_limit_reached_seconds", "gauge", ("limit", "namespace", "workload"),
        "Time until the first limit of its kind and workload is reached at the present rate; absent while none grows.",
        lambda p: (
            ((m.limit, m.namespace, m.workload), m.reached_s) for m in p.limits if m.reached_s is not None
        ),
    ),
    Metric(
        "finwait_look_duration_seconds", "histogram", ("kind",),
        "Processor time of looks: tick, questions, walk, diagnosis.",
        lambda p: (((h.label,), h) for h in p.looks),
        LOOKS_S,
    ),
    Metric(
        "finwait_look_cpu_seconds_total", "counter", (),
        "Processor time that the looking process has used.",
        lambda p: (((), p.cpu_s),),
    ),
    Metric(
        "finwait_look_last_success_timestamp_seconds", "gauge", (),
        "When the counters of the network namespaces were last read.",
        lambda p: (((), p.look_at_ns / 1e9),),
    ),
    Metric(
        "finwait_gaps", "gauge", ("needs",),
        "Parts of the machine that could not be looked at, by what would have helped.",
        lambda p: (((needs,), n) for needs, n in p.gaps.items()),
    ),
    Metric(
        "finwait_series_dropped", "gauge", (),
        "Workloads without series of their own, counted as `other`, and limits and holders without any.",
        lambda p: (((), p.series_dropped),),
    ),
    Metric(
        "finwait_untracked_connections", "gauge", (),
        "Connections in closing states that there was no room for.",
        lambda p: (((), p.untracked),),
    ),
    Metric(
        "finwait_undiagnosed_connections", "gauge", (),
        "Connections that do not finish closing and whose cause has not been looked for yet; each end counts.",
        lambda p: (((), p.undiagnosed),),
    ),
    Metric(
        "finwait_network_namespaces", "gauge", (),
        "Network namespaces that are known.",
        lambda p: (((), p.namespaces),),
    ),
    Metric(
        "finwait_namespace_unseen_seconds", "gauge", (),
        "The longest that a network namespace has not been looked at.",
        lambda p: (((), p.unseen_s),),
    ),
    Metric(
        "finwait_names_age_seconds", "gauge", (),
        "How old the oldest names of the cluster are; absent where none is followed, and before the first list.",
        lambda p: (((), p.names_age_s),) if p.names_age_s is not None else (),
    ),
    Metric(
        "finwait_store_errors_total", "counter", (),
        "Writes to the history that failed.",
        lambda p: (((), p.store_errors),),
    ),
    Metric(
        "finwait_policy_actions_total", "counter", ("policy", "rule", "outcome"),
        "Acts of the policy since the agent started, by what came of them; `would` in a dry run.",
        lambda p: (((a.policy, a.rule, a.outcome), a.total) for a in p.policy_actions),
    ),
    Metric(
        "finwait_policy_budget_remaining", "gauge", ("policy",),
        "Connections that the policy may act on now; 0 where no rule may at this time of the day. Absent in `observe`.",
        lambda p: (((b.policy,), b.remaining) for b in p.policy_budgets),
    ),
    Metric(
        "finwait_config_last_reload_successful", "gauge", (),
        "1 while the configuration that was read last is in force; 0 where it is wrong and the one before stays.",
        lambda p: (((), int(p.config_right)),),
    ),
    Metric(
        "finwait_build_info", "gauge", ("version",),
        "The version of finwait; always 1.",
        lambda p: (((p.version,), 1),),
    ),
)  # fmt: skip
"""Every metric, in the order in which it is shown."""


def render(picture: RoundPicture, accept: str = "") -> tuple[bytes, str]:
    """Return a picture as text, and its content type.

    The two formats are those of https://prometheus.io/docs/instrumenting/exposition_formats/ and of OpenMetrics 1.0.0;
    they differ in the name of a counter above its samples, and in how the text ends. prometheus-client writes the same
    (a test compares), but brings 5 MB of program into a process that should be small.

    Args:
        picture: the last finished round.
        accept: the Accept header; OpenMetrics where that asks for it, and what cannot be read asks for nothing.
    """
    open_metrics = any(
        kind.split(";")[0].strip() == "application/openmetrics-text" and _version_fits(kind)
        for kind in accept.split(",")
    )
    lines: list[str] = []
    for metric in METRICS:
        name = metric.name.removesuffix("_total") if open_metrics else metric.name
        lines += (f"# HELP {name} {_escaped(metric.doc)}", f"# TYPE {name} {metric.kind}")
        for labels, value in metric.samples(picture):
            pairs = dict(zip(metric.labels, labels, strict=True))
            if metric.kind == "histogram":
                lines += _histogram(metric.name, pairs, value, metric.bounds)
            else:
                lines.append(f"{metric.name}{_labels(pairs)} {_number(value)}")
    if open_metrics:
        lines.append("# EOF")
    body = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    return body, _OPEN_METRICS if open_metrics else _PLAIN


_PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPEN_METRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def _version_fits(kind: str) -> bool:
    """Return whether somebody who accepts OpenMetrics takes that of version 1."""
    versions = [
        word.partition("=")[2].strip() for word in kind.split(";") if word.strip().startswith("version=")
    ]
    return not versions or versions[0].split(".")[0] == "1"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _labels(pairs: Mapping[str, str]) -> str:
    words = []
    for name, value in sorted(pairs.items()):
        quoted = _escaped(value).replace('"', '\\"')
        words.append(f'{name}="{quoted}"')
    return "{" + ",".join(words) + "}" if words else ""


def _number(value: float) -> str:
    number = float(value)
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    return "NaN" if math.isnan(number) else repr(number)


def _histogram(
    name: str, pairs: Mapping[str, str], histogram: Histogram, bounds: tuple[float, ...]
) -> Iterator[str]:
    total = 0
    for bound, n in zip((*bounds, math.inf), histogram.counts, strict=False):
        total += n
        yield f"{name}_bucket{_labels({**pairs, 'le': _number(bound)})} {_number(total)}"
    yield f"{name}_count{_labels(pairs)} {_number(total)}"
    yield f"{name}_sum{_labels(pairs)} {_number(histogram.sum_s)}"
