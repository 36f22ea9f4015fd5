"""``finwait audit``: judge the advice in files that people have, or what a cluster runs."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finwait.remedy.audit import AuditReport
    from finwait.remedy.audit.finding import Problem
    from finwait.remedy.knowledge import Knowledge

__all__ = ["add_parser"]

_LARGEST = 64 << 20
_MOST_SHOWN = 200  # objects that are fetched once more for their lines
_FAIL_ON = ("harmful", "false", "no-effect", "conditional", "misread")
_KINDS = ("sysctl", "shell", "markdown", "text", "yaml", "haproxy", "nginx", "code")
_EPILOG = """\
examples:
  finwait audit /etc/sysctl.conf /etc/sysctl.d/*.conf
  kubectl -n kube-system get cm kube-proxy -o yaml | finwait audit --kind yaml -
  finwait audit -o sarif deploy/*.yaml docs/*.md > audit.sarif
  finwait audit --cluster --context production

exit status:
  0  no verdict that --fail-on names    1  at least one
  2  wrong usage                        3  a file, an object or a place in one was not read
"""


def _verdicts(text: str) -> frozenset[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return frozenset()
    unknown = [name for name in names if name not in _FAIL_ON]
    if unknown or not names:
        shown = ", ".join(_FAIL_ON)
        raise argparse.ArgumentTypeError(f"{unknown[0] if unknown else text!r} is none of {shown}, none")
    return frozenset(names)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "audit",
        help="check advice in files: does it help, do nothing or harm?",
        description="Read sysctl files, shell scripts, notes, Kubernetes and other YAML (also Helm and "
        "Jinja\ntemplates), HAProxy, nginx and Envoy configurations. Judge each piece of "
        "advice on closing\nconnections, with the reason, the source and what to do instead. "
        "For each file, say what\nwas recognised in it, that nothing was recognised, or that "
        "it was not read.\n\nWith --cluster: judge what a Kubernetes cluster runs, read by your own kubectl: "
        "kube-proxy's\nand the kubelet's configuration, sysctls of pods, time-outs of Envoy, Istio and "
        "ingress-nginx.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="a file; `-` for standard input")
    cluster = parser.add_argument_group("a cluster")
    cluster.add_argument("--cluster", action="store_true", help="judge what a cluster runs (by kubectl)")
    cluster.add_argument("--context", metavar="NAME", help="context of the kubeconfig")
    cluster.add_argument("--kubeconfig", metavar="FILE", help="the kubeconfig")
    parser.add_argument(
        "-o", "--output", choices=("text", "json", "sarif"), default="text", help="format (default text)"
    )
    parser.add_argument(
        "--fail-on",
        type=_verdicts,
        default=frozenset(("harmful", "false")),
        metavar="VERDICT,…",
        help=f"exit 1 on these: {', '.join(_FAIL_ON)}, or none (default: harmful,false)",
    )
    parser.add_argument("--kind", choices=_KINDS, help="how to read the files (default: by name and content)")
    parser.add_argument("--all", action="store_true", help="in text, also show what is right")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry the command out and return its exit status."""
    from finwait.errors import UsageError
    from finwait.shipped import knowledge

    if bool(args.files) == args.cluster:
        raise UsageError("name files to read, or --cluster", hint="one of both")
    if (args.context or args.kubeconfig) and not args.cluster:
        raise UsageError("--context and --kubeconfig are for --cluster")
    known = knowledge()
    reports, unread = _of_cluster(args, known) if args.cluster else _of_files(args, known)
    _show(args, reports, known, unread)
    if any(f.verdict in args.fail_on for report in reports for f in report.findings):
        return 1
    return 3 if unread or any(report.problems for report in reports) else 0


def _of_files(args: argparse.Namespace, known: Knowledge) -> tuple[list[AuditReport], list[Problem]]:
    from finwait.remedy.audit.finding import Problem

    reports: list[AuditReport] = []
    unread: list[Problem] = []
    for name in dict.fromkeys(args.files):
        data = _read(name)
        if isinstance(data, Problem):
            unread.append(data)
        else:
            reports.append(_judge(name, data, known, args.kind))
    return reports, unread


def _of_cluster(args: argparse.Namespace, known: Knowledge) -> tuple[list[AuditReport], list[Problem]]:
    """Judge the objects of a cluster; one of which something is said, as kubectl shows it: then its lines are right."""
    from importlib.util import find_spec

    from finwait.kube.configuration import as_shown, read
    from finwait.kube.kubectl import Kubectl
    from finwait.remedy.audit.finding import Problem

    if find_spec("yaml") is None:  # said once, and not of each object
        return [], [
            Problem("the cluster", 1, "reading its objects needs PyYAML: pip install 'finwait[audit]'")
        ]
    options = [(f"--{name}", value) for name in ("context", "kubeconfig") if (value := getattr(args, name))]
    kubectl = Kubectl([word for option in options for word in option])
    cluster = read(kubectl)
    unread = [Problem(gap.where, 1, f"could not {gap.doing}", gap.doing) for gap in cluster.gaps]
    reports: list[AuditReport] = []
    for item in cluster.objects:
        report = _judge(item.title, item.text, known, "yaml")
        if report.status != "nothing" and len(reports) < _MOST_SHOWN:
            shown = as_shown(kubectl, item)
            report = report if shown is None else _judge(item.title, shown, known, "yaml")
        if report.status != "nothing":
            reports.append(report)
    print(
        f"finwait: read {len(cluster.objects)} objects of the cluster, and recognised something in {len(reports)}",
        file=sys.stderr,
    )
    return reports, unread


def _judge(name: str, data: bytes, known: Knowledge, kind: str | None) -> AuditReport:
    from finwait.remedy.audit import audit

    return audit(name, data, known, kind=kind)


def _read(name: str) -> bytes | Problem:
    """Return what a file holds, or why it could not be read."""
    from finwait import files
    from finwait.errors import FileRefused
    from finwait.remedy.audit.finding import Problem

    try:
        if name == "-":
            data = sys.stdin.buffer.read(_LARGEST + 1)
        else:
            with files.open_to_read(name, pipes=True) as file:
                data = file.read(_LARGEST + 1)
    except FileRefused as error:
        tail = ": name the files in it, for example with a glob" if os.path.isdir(name) else ""
        cause = f"{error.reason}{tail}"
        return Problem(name, 1, f"could not be read: {cause}", cause)
    except OSError as error:
        return Problem(name, 1, f"could not be read: {error.strerror}", str(error.strerror))
    if len(data) > _LARGEST:
        return Problem(name, 1, f"is larger than {_LARGEST >> 20} MiB: split it")
    return data


def _show(
    args: argparse.Namespace, reports: list[AuditReport], known: Knowledge, unread: list[Problem]
) -> None:
    import msgspec

    from finwait import __version__
    from finwait.table.units import printable

    if args.output == "text":
        from finwait.report.audit import audit_text

        for line in audit_text(reports, show_true=args.all, unread=unread):
            print(line)
        return
    for problem in (*(p for report in reports for p in report.problems), *unread):
        print(printable(f"finwait: not read: {problem}"), file=sys.stderr)
    if args.output == "json":
        from finwait.report.audit import audit_json

        answer = audit_json(reports, unread)
    else:
        from finwait.report.sarif import sarif

        answer = sarif(reports, known, __version__, unread)
    print(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
