"""``finwait lab``: failures on demand, in private namespaces, and what finwait says of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from finwait.cli import options, prove

if TYPE_CHECKING:
    from finwait.lab.scenario import Situation
    from finwait.session import Diagnosis

__all__ = ["add_parser", "run"]

PATIENCE_S = 15
"""How long a scenario may take to become evident."""
REST_S = 3
"""How long, after that, the rest of what was built may take: other ends, and what it is to be told from."""
_NOT_AS_BUILT = "does not match everything that was built"


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "lab",
        help="produce a failure with real sockets in private namespaces, and diagnose it",
        description="Each scenario builds one pattern with real programs and sockets in its own network "
        "namespaces, diagnoses it, and removes everything.",
    )
    commands = parser.add_subparsers(dest="lab", metavar="list|run|prove|demo", required=True)
    names = commands.add_parser("list", help="the scenarios")
    names.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="format (default text)"
    )
    names.set_defaults(run=run_list)
    run_parser = commands.add_parser("run", help="build a scenario, diagnose it, remove it")
    run_parser.add_argument("scenario", metavar="SCENARIO", help="see `finwait lab list`")
    run_parser.add_argument("--keep", action="store_true", help="keep it until Ctrl-C")
    _options(run_parser)
    run_parser.set_defaults(run=run)
    prove.add_parser(commands)
    demo = commands.add_parser("demo", help="the classic: a relay that leaks half-closed connections")
    _options(demo)
    demo.set_defaults(run=run, scenario="kube-proxy-userspace", keep=False)


def _options(parser: argparse.ArgumentParser) -> None:
    options.add_look(parser)
    options.add_output(parser, options.DIAGNOSIS_FORMATS)
    parser.add_argument(
        "--all", action="store_true", help="show every connection of each finding, not only five"
    )
    parser.set_defaults(detail=True)


def run_list(args: argparse.Namespace) -> int:
    """List the scenarios."""
    from finwait.lab.scenario import list_scenarios

    scenarios = list_scenarios()
    if args.output == "json":
        from finwait.report.shape import document, encoded

        items = [{"name": s.name, "title": s.title, "seconds": s.seconds} for s in scenarios]
        options.write([encoded(document("ScenarioList", {"items": items}))])
        return 0
    wide = max(len(s.name) for s in scenarios)
    options.write(f"{s.name:<{wide}}  ~{s.seconds:.0f} s  {s.title}\n" for s in scenarios)
    return 0


def run(args: argparse.Namespace) -> int:
    """Build a scenario and diagnose it; the status is 0 when what was built is what is found."""
    import sys
    import textwrap
    import time

    from msgspec.structs import replace

    from finwait import session
    from finwait.cli.printing import show
    from finwait.errors import UsageError
    from finwait.lab.differences import differences, summary
    from finwait.lab.scenario import run as run_scenario
    from finwait.lab.scenario import scenarios

    if args.scenario not in scenarios():
        import difflib

        near = difflib.get_close_matches(args.scenario, list(scenarios()), 1)
        hint = f"did you mean `{near[0]}`?" if near else "`finwait lab list` lists them"
        raise UsageError(f"there is no scenario `{args.scenario}`", hint=hint)

    scenario = scenarios()[args.scenario]

    def diagnose(situation: Situation) -> int:
        look = options.how(args)
        if not look.watch_ms:
            look = replace(look, watch_ms=scenario.watch_ms)
        if scenario.idle_ms is not None:
            look = replace(look, options=replace(look.options, idle_ms=scenario.idle_ms))
        only = frozenset(situation.namespaces.values())
        look = replace(look, plan=replace(look.plan, only=only, established_limit=None))
        end = time.monotonic() + PATIENCE_S
        seen = False
        # Some evidence is made of time: retransmissions must fail, an accept queue must have waited.
        while True:
            diagnosis = session.diagnose(session.live_machine(), how=look)
            if not seen and (seen := _as_built(situation, diagnosis)):
                end = time.monotonic() + REST_S
            differs = differences(situation, diagnosis)
            if not differs or time.monotonic() > end:
                break
            time.sleep(0.2)
        seen = _as_built(situation, diagnosis)
        diagnosis = session.named(diagnosis, {inode: name for name, inode in situation.namespaces.items()})
        if args.output in ("text", "wide"):
            story = textwrap.fill(situation.story, 98, initial_indent="  ", subsequent_indent="  ")
            sys.stdout.write(f"What was built, with real sockets in private namespaces:\n{story}\n\n")
            sys.stdout.write("What finwait says:\n\n")
        show(args, diagnosis)
        sys.stdout.flush()  # with --keep nothing is written for long
        if differs:
            verdict = "differs from what the scenario expects" if seen else _NOT_AS_BUILT
            sys.stderr.write(f"finwait: the diagnosis {verdict}: {summary(differs)}\n")
        if seen:
            return 0
        return options.status(diagnosis.gaps) or 1

    return run_scenario(args.scenario, args.keep, diagnose)


def _as_built(situation: Situation, diagnosis: Diagnosis) -> bool:
    """Whether the rule of the scenario is found as the primary cause as often as it was built."""
    from collections import Counter

    expected = Counter(row.rule for row in situation.expected)
    counted: Counter[str] = Counter()
    for finding in diagnosis.findings:
        if finding.primary:
            counted[finding.rule] += finding.count
    return all(counted[rule] >= n for rule, n in expected.items())
