"""``finwait tune``: settings that bear on closing: show, explain, plan, apply, roll back."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from finwait.cli import options
from finwait.cli.streams import acts_told

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from finwait.acting.sysctls import Applied
    from finwait.errors import Gap
    from finwait.kernel.journal import SqliteJournal
    from finwait.kernel.surroundings import Surroundings
    from finwait.kernel.sysctl import SysctlTarget
    from finwait.remedy.settings.model import Setting
    from finwait.remedy.tuning import Profile, ProfilePlan, TuningFacts

__all__ = ["add_parser"]

_EPILOG = """\
examples:
  finwait tune show --all-netns
  finwait tune explain tcp_fin_timeout
  finwait tune plan article-production
  finwait tune plan tcp_keepalive_time=300 tcp_fin_timeout=30
  sudo finwait tune apply kubernetes-node --persist --yes
  sudo finwait tune apply pod --pod-uid 1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed --yes
  sudo finwait tune rollback 17 --yes
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command with its subcommands."""
    parser = subparsers.add_parser(
        "tune",
        help="show, judge and set the sysctls that affect closing connections",
        description="Show, explain, plan, apply and roll back the sysctls that affect closing connections.\nEach "
        "line of a plan says whether it helps, has no effect here, or harms, and why.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="tune_command", required=True, metavar="COMMAND")
    _add_show(commands)
    _add_explain(commands)
    _add_plan(commands)
    _add_apply(commands)
    _add_rollback(commands)


def _add_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    show = commands.add_parser("show", help="the values in force, with what is unusual about them")
    show.add_argument("keys", nargs="*", metavar="KEY", help="only these settings")
    show.add_argument("--all-netns", action="store_true", help="in every network namespace that can be found")
    _where(show)
    _output(show)
    show.set_defaults(run=run_show)


def _add_explain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    explain = commands.add_parser("explain", help="everything that finwait knows about one setting")
    explain.add_argument(
        "key",
        metavar="KEY",
        help="for example net.ipv4.tcp_fin_timeout, or tcp_fin_timeout",
    )
    _output(explain)
    _diagnosis(explain)
    explain.set_defaults(run=run_explain)


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = commands.add_parser(
        "plan", help="what a list of settings would change, with a verdict on each line"
    )
    _what(plan)
    _where(plan)
    _diagnosis(plan)
    _output(plan)
    plan.set_defaults(run=run_plan)


def _add_apply(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    apply = commands.add_parser("apply", help="set a whole list or nothing; written to the journal first")
    _what(apply)
    _where(apply)
    _diagnosis(apply)
    apply.add_argument("--yes", action="store_true", help="do it; without this, finwait only shows the plan")
    apply.add_argument("--persist", action="store_true", help="also write a sysctl.d file for the next boot")
    apply.add_argument(
        "--allow-harmful", action="store_true", help="also set lines that the plan calls harmful"
    )
    _output(apply)
    apply.add_argument("--skip-blocked", action="store_true", help="leave out lines that cannot be set here")
    apply.set_defaults(run=run_apply)


def _add_rollback(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    rollback = commands.add_parser("rollback", help="revert what an earlier apply changed")
    rollback.add_argument(
        "id", type=options.whole(1, (1 << 63) - 1), metavar="ID", help="the number that apply printed"
    )
    rollback.add_argument(
        "--yes", action="store_true", help="do it; without this, finwait only shows what would be done"
    )
    _output(rollback)
    rollback.add_argument(
        "--force",
        action="store_true",
        help="even if somebody has changed a value, or the sysctl.d file, since",
    )
    rollback.set_defaults(run=run_rollback)


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="format (default text)"
    )


def _what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="+",
        metavar="PROFILE|FILE|KEY=VALUE",
        help=(
            "a built-in profile, a file (sysctl.conf or TOML profile), or settings; `list` lists the profiles"
        ),
    )


def _where(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    options.add_netns(group, "the network namespace to look at or set (default: the current one)")
    group.add_argument("--pod-uid", metavar="UID", help="the namespace of this pod on this node")


def _diagnosis(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-diagnosis", action="store_true", help="do not diagnose what is stuck now")


@contextlib.contextmanager
def _target(args: argparse.Namespace) -> Iterator[SysctlTarget]:
    from finwait.kernel import sysctl

    try:
        target = sysctl.pod_target(args.pod_uid) if args.pod_uid else sysctl.open_target(args.netns)
    except ValueError as error:
        hint = "as in `kubectl get pod -o jsonpath={.metadata.uid}`"
        raise _wrong(f"`--pod-uid`: {error}", hint) from None
    with target:
        yield target


def _name(target: SysctlTarget) -> str:
    return f"netns {target.inode} ({target.name}{', the initial one' if target.initial else ''})"


def rule_counts(inode: int | None = None) -> tuple[dict[str, int] | None, tuple[Gap, ...]]:
    """Diagnose, and return how many connections each rule found, and what could not be seen.

    The counts are None where no look was possible, which is said.

    Args:
        inode: look only into this network namespace; None for the whole machine.
    """
    from finwait import session
    from finwait.errors import FinwaitError
    from finwait.kernel.observe import LookPlan

    only = None if inode is None else frozenset((inode,))
    try:
        diagnosis = session.diagnose(how=session.Look(LookPlan(only=only)))
    except FinwaitError as error:
        print(f"finwait: could not look for what is stuck now: {error}", file=sys.stderr)
        return None, ()
    counts: dict[str, int] = {}
    for finding in diagnosis.findings:
        if finding.primary and (inode is None or finding.netns == inode):
            counts[finding.rule] = counts.get(finding.rule, 0) + (finding.count or len(finding.rows))
    return counts, diagnosis.gaps


def facts_of(target: SysctlTarget, settings: Iterable[Setting]) -> TuningFacts:
    """Read what the verdicts on these settings depend on beside the values in force."""
    from finwait.errors import DecodeError
    from finwait.kernel import surroundings
    from finwait.remedy.tuning import TuningFacts
    from finwait.uapi import proc

    tracking = any(band.tracking for setting in settings for band in setting.bands)
    around = surroundings.read(target, tracking=tracking)
    try:
        orphans = proc.parse_sockstat(around.sockstat or b"").get("TCP.orphan")
        aborted = proc.parse_snmp(around.netstat or b"").get("TcpExt.TCPAbortOnMemory")
    except DecodeError:
        orphans = aborted = None
    memory = re.search(rb"^MemTotal:\s+(\d+) kB", around.meminfo or b"", re.MULTILINE)
    size = (around.hash_entries or b"").strip()
    return TuningFacts(
        *_tracked(around),
        orphans=orphans,
        aborted=aborted,
        hash_entries=int(size) if size.lstrip(b"-").isdigit() else None,
        memory_kb=int(memory[1]) if memory else None,
    )


def _tracked(around: Surroundings) -> tuple[bool | None, str]:
    """Return whether a namespace translates addresses or filters by state, and by what that is known."""
    from finwait.uapi import ruleset

    if around.translated:
        return True, f"{around.translated} translated entries"
    if (around.ipvs or b"").count(b"\n") > 3:  # three lines are its heading
        return True, "IPVS has services"
    if around.rules is None:
        return None, "its firewall rules could not be listed"
    if ruleset.translates(around.rules):
        return True, "a rule translates addresses"
    if ruleset.filters_by_state(around.rules):
        return True, "a rule filters by connection state"
    if around.translated is None:
        return None, f"its {around.entries} tracked flows were not looked at"
    return False, "no translated entry, no such rule"


def run_show(args: argparse.Namespace) -> int:
    """Print the values in force and return the exit status."""
    from finwait.kernel import sysctl
    from finwait.remedy.settings.catalogue import CATALOGUE
    from finwait.report.tune import show_json, show_text

    settings = [_setting(key) for key in args.keys] or list(CATALOGUE)
    keys = [setting.key for setting in settings]
    gaps = []
    answer = []
    with contextlib.ExitStack() as stack:
        if args.all_netns:
            targets, missing = sysctl.all_targets()
            gaps += missing
            for target in targets:
                stack.enter_context(target)
        else:
            targets = [stack.enter_context(_target(args))]
        for number, target in enumerate(targets):
            reading = sysctl.read(keys, target)
            gaps += reading.gaps
            facts = facts_of(target, settings)
            if args.output == "json":
                answer.append(show_json(settings, reading.values, target.identity(), facts))
                continue
            if number:
                print()
            for line in show_text(settings, reading.values, _name(target), facts):
                print(line)
    if args.output == "json":
        _json("Settings", {"namespaces": answer}, gaps)
    options.tell_gaps(gaps)
    return options.status(gaps)


def _json(kind: str, members: Mapping[str, Any], gaps: Iterable[Gap] = ()) -> None:
    from finwait.report.shape import document, encoded

    sys.stdout.write(encoded(document(kind, members, gaps), indent=2))


def _setting(key: str) -> Setting:
    from finwait.remedy.settings.catalogue import CATALOGUE, by_key

    setting = by_key(key)
    if setting is None:
        import difflib

        names = [s.key.rpartition(".")[2] for s in CATALOGUE]
        near = difflib.get_close_matches(key.rpartition(".")[2], names, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "`finwait tune show` lists them"
        raise _wrong(f"`{key}` is not a setting that affects closing", hint)
    return setting


def _wrong(message: str, hint: str) -> Exception:
    from finwait.errors import UsageError

    return UsageError(message, hint=hint)


def run_explain(args: argparse.Namespace) -> int:
    """Print what is known of a setting and return the exit status."""
    from finwait.kernel import sysctl
    from finwait.remedy.tuning import verdicts
    from finwait.report.tune import explain_json, explain_text
    from finwait.shipped import knowledge

    setting = _setting(args.key)
    counts, gaps = (None, ()) if args.no_diagnosis else rule_counts()
    effects = verdicts((setting,), counts or {})[setting.key]
    with sysctl.open_target(None) as target:
        facts = facts_of(target, (setting,))
        reading = sysctl.read([setting.key], target)
    value = reading.values.get(setting.key)
    gaps = (*gaps, *reading.gaps)
    if args.output == "json":
        _json("Setting", explain_json(setting, knowledge(), effects, facts, value), gaps)
    else:
        for line in explain_text(setting, knowledge(), effects, facts, value):
            print(line)
    options.tell_gaps(gaps)
    return options.status(gaps)


def load_profile(words: Sequence[str], *, acting: bool = False) -> Profile:
    """Return the settings that a command line asks for: a shipped profile, a file, or ``key=value`` words.

    Args:
        words: of the command line.
        acting: they are to be set, so nobody else may have written the file.

    Raises:
        UsageError: there is no such profile, or the words cannot be understood.
        ProfileError: the file cannot be understood.
    """
    from finwait import files, shipped
    from finwait.errors import FileRefused
    from finwait.remedy.tuning import ProfileError, parse_assignments, parse_profile, parse_sysctl_conf

    if all("=" in word for word in words) and not os.path.exists(words[0]):
        try:
            return parse_assignments(words)
        except ProfileError as error:
            raise _wrong(error.reason, "for example `tcp_keepalive_time=300`") from None
    if len(words) > 1:
        raise _wrong(
            "one profile or file at a time, or only KEY=VALUE words", "plan them one after the other"
        )
    name = words[0]
    if name in shipped.profile_names():
        return shipped.profiles()[name]
    try:
        own = "read it; if you agree to it, apply a copy of your own" if acting else ""
        data = files.read(name, 1 << 20, pipes=True, own_way=True, own=own)
    except FileRefused as error:
        raise _wrong(f"`{name}` is not a profile, and was not read: {error.reason}", error.hint) from None
    except OSError as error:
        hint = f"profiles: {', '.join(shipped.profile_names())}"
        if isinstance(error, FileNotFoundError):
            raise _wrong(f"no profile is called `{name}`, and there is no such file", hint) from None
        raise _wrong(
            f"`{name}` is not a profile, and could not be read as a file: {error.strerror}", hint
        ) from None
    if name.endswith(".toml"):
        return parse_profile(name, data)
    return parse_sysctl_conf(name, data.decode("utf-8", errors="replace"))


def make_plan(profile: Profile, target: SysctlTarget, counts: Mapping[str, int]) -> ProfilePlan:
    """Read the values in force in a namespace and judge a profile against them."""
    from finwait.kernel import sysctl
    from finwait.remedy.settings.catalogue import by_key
    from finwait.remedy.tuning import EXTRA_KEYS, plan

    keys = list(dict.fromkeys([*(line.key for line in profile.lines), *_RELATED, *EXTRA_KEYS]))
    reading = sysctl.read(keys, target)
    return plan(
        profile,
        reading.values,
        initial_netns=target.initial,
        counts=counts,
        read_only=reading.read_only,
        facts=facts_of(target, [s for line in profile.lines if (s := by_key(line.key)) is not None]),
    )


_RELATED = (
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_orphan_retries",
    "net.ipv4.tcp_rto_max_ms",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_buckets",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
)
"""Settings that others are judged together with."""


def run_plan(args: argparse.Namespace) -> int:
    """Print a plan and return the exit status."""
    if args.what == ["list"]:
        return _list(args)
    profile = load_profile(args.what)
    with _target(args) as target:
        counts, gaps = (None, ()) if args.no_diagnosis else rule_counts(target.inode)
        plan = make_plan(profile, target, counts or {})
        _print_plan(plan, target, counts, args.output, gaps)
    options.tell_gaps(gaps)
    return options.status(gaps)


def _list(args: argparse.Namespace) -> int:
    from finwait import shipped

    if args.output == "json":
        items = [
            {"name": name, "title": profile.title, "source": profile.source}
            for name, profile in shipped.profiles().items()
        ]
        _json("ProfileList", {"items": items})
        return 0
    for name, profile in shipped.profiles().items():
        print(f"{name:<26} {profile.title}")
    return 0


def _print_plan(
    plan: ProfilePlan,
    target: SysctlTarget,
    counts: Mapping[str, int] | None,
    output: str,
    gaps: Iterable[Gap],
) -> None:
    from finwait.report.tune import plan_json, plan_text

    if output == "json":
        _json("TunePlan", plan_json(plan, target.identity(), counted=counts is not None), gaps)
        return
    for line in plan_text(plan, _name(target), counted=counts is not None):
        print(line)


def run_apply(args: argparse.Namespace) -> int:
    """Apply a plan and return the exit status."""
    from finwait.acting.sysctls import apply_plan
    from finwait.kernel.journal import opened

    options.tell_unfinished()
    profile = load_profile(args.what, acting=True)
    as_json = args.output == "json"
    with _target(args) as target:
        counts, gaps = (None, ()) if args.no_diagnosis else rule_counts(target.inode)
        plan = make_plan(profile, target, counts or {})
        if not as_json:
            _print_plan(plan, target, counts, "text", gaps)
        options.tell_gaps(gaps)
        if not args.yes and (as_json or not (plan.changes and _agreed(plan))):
            if as_json:
                _applied(plan, target, counts, gaps)
            print("nothing was done; add `--yes` to apply this plan", file=sys.stderr)
            return 0
        _guard(plan, target, args)
        if not plan.changes and not args.persist:
            if as_json:
                _applied(plan, target, counts, gaps)
            print("nothing to change", file=sys.stderr)
            return 0
        with opened() as journal:
            try:
                outcome = apply_plan(plan, target, journal, persist=args.persist)
            except KeyboardInterrupt:
                _tell_interrupted(journal)
                raise
            with acts_told(lambda: f"{len(plan.changes)} values were set, as act {outcome.act_id}"):
                if as_json:
                    _applied(plan, target, counts, gaps, outcome)
                    return 0
                for line in outcome.lines:
                    print(line)
                print(f"undo with: finwait tune rollback {outcome.act_id}")
    return 0


def _agreed(plan: ProfilePlan) -> bool:
    return options.agreed(f"Set these {len(plan.changes)} values?")


def _applied(
    plan: ProfilePlan,
    target: SysctlTarget,
    counts: Mapping[str, int] | None,
    gaps: Iterable[Gap],
    outcome: Applied | None = None,
) -> None:
    """Print a plan and what came of it as one document."""
    from finwait.report.tune import plan_json

    members = plan_json(plan, target.identity(), counted=counts is not None) | {
        "applied": outcome is not None,
        "act": None if outcome is None else outcome.act_id,
        "done": [] if outcome is None else list(outcome.lines),
    }
    _json("TuneOutcome", members, gaps)


def _tell_interrupted(journal: SqliteJournal) -> None:
    """Say what an interruption left."""
    open_acts = journal.left_open()
    state = "settings may be changed; see `finwait journal --incomplete`" if open_acts else "nothing was done"
    print(f"finwait: interrupted; {state}", file=sys.stderr)


def _guard(plan: ProfilePlan, target: SysctlTarget, args: argparse.Namespace) -> None:
    from finwait.errors import Refused

    if plan.harmful and not args.allow_harmful:
        named = ", ".join(f"{line.key.rpartition('.')[2]}={line.wanted}" for line in plan.harmful)
        raise Refused("harmful", f"{named} would make things worse", override="--allow-harmful")
    if plan.blocked and not args.skip_blocked:
        named = ", ".join(line.key.rpartition(".")[2] for line in plan.blocked)
        raise Refused("all-or-nothing", f"{named} cannot be set in this namespace", override="--skip-blocked")
    if args.persist and not target.initial:
        raise Refused("persist", "a sysctl.d file sets the initial namespace only, and this is another one")


def run_rollback(args: argparse.Namespace) -> int:
    """Take an act back and return the exit status."""
    from finwait.acting.sysctls import roll_back
    from finwait.kernel.journal import opened
    from finwait.report.journal import undone_json, would_do, would_json

    with opened() as journal:
        try:
            entry = journal.get(args.id)
        except ValueError:
            raise _no_such_act(f"the journal has no act {args.id}") from None
        if entry.kind != "sysctl":
            raise _no_such_act(f"act {args.id} set no sysctls")
        as_json = args.output == "json"
        if not args.yes:
            if as_json:
                _json("UndoPlan", {"items": [would_json(entry)]})
            else:
                for line in would_do(entry):
                    print(line)
            if as_json or not options.agreed(f"Revert act {args.id}?"):
                print("nothing was done; add `--yes` to restore these values", file=sys.stderr)
                return 4  # not 0: who goes on after it would take them for put back
        try:
            outcome = roll_back(args.id, journal, force=args.force)
        except KeyboardInterrupt:
            _tell_interrupted(journal)
            raise
        with acts_told(lambda: f"act {args.id} was reverted, by act {outcome.act_id}"):
            if as_json:
                _json("UndoList", {"items": [undone_json(entry, "; ".join(outcome.lines))]})
            else:
                for line in outcome.lines:
                    print(line)
    return 0


def _no_such_act(message: str) -> Exception:
    from finwait.errors import FinwaitError

    error = FinwaitError(message)
    error.hint = "`finwait journal` lists the acts"
    return error
