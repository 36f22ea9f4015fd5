"""Settings of a network namespace: set as a plan says, all of it or nothing, and put back."""

from __future__ import annotations

import contextlib
import errno
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finwait.acting.cut_short import open_ones, origin, over_since
from finwait.errors import KernelError, Refused
from finwait.kernel import sysctl
from finwait.kernel.interruption import check, noted
from finwait.remedy.journal import Act, foreign_line, settings_act
from finwait.remedy.tuning import COMMAND_LINE, State, drop_in, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from finwait.acting import identity as acting
    from finwait.kernel.sysctl import Target
    from finwait.remedy.journal import Journal, SettingsAct
    from finwait.remedy.tuning import Plan

__all__ = ["Applied", "apply_plan", "roll_back"]


@dataclass(frozen=True, slots=True)
class Applied:
    """What an act did."""

    act_id: int
    lines: tuple[str, ...]


@noted()
def apply_plan(
    plan: Plan,
    target: Target,
    journal: Journal,
    *,
    persist: bool = False,
    folder: Path | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Applied:
    """Set what a plan changes, all of it or nothing, written down before it is done.

    Args:
        plan: what to set; lines that cannot be set are left out.
        target: the namespace, still open since the plan was made.
        journal: where the act is recorded before and completed after.
        persist: also write a sysctl.d file with every line that is in force afterwards.
        folder: where sysctl.d files are; None for ``/etc/sysctl.d``.
        on_step: told each step as it begins: ``recorded ID``, those of `finwait.kernel.sysctl.apply`,
            ``writing drop-in``, ``wrote drop-in``.

    Raises:
        Refused: the sysctl.d file holds what somebody else wrote.
        KernelError: the journal or a sysctl could not be written, or a value changed since the plan; nothing is left
            changed then, unless the message says so.
    """
    tell = on_step or (lambda _step: None)
    folder = folder if folder is not None else sysctl.SYSCTL_D
    before: dict[str, Any] = {
        "sysctl": {line.key: line.current for line in plan.lines if line.state is State.CHANGE}
    }
    after: dict[str, Any] = {"sysctl": plan.changes}
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", plan.profile.name.rpartition("/")[2].removesuffix(".conf"))
    name = f"90-finwait-{stem}.conf"
    earlier: dict[str, str] = {}
    if persist:
        kept = {line.key: line.wanted for line in plan.lines if line.state in (State.CHANGE, State.SAME)}
        there = sysctl.read_drop_in(name, folder=folder)
        if foreign := foreign_line(there or ""):
            raise Refused(
                "drop-in",
                f"`{folder / name}` contains a line that finwait does not write: `{foreign}`; move it "
                "to another file",
            )
        if plan.profile.name == COMMAND_LINE:  # what was typed adds up; a profile's file is the profile
            earlier = {key: value for key, value in settings_of(there or "").items() if key not in kept}
        title = " ".join(plan.profile.title.split())
        text = drop_in(earlier | kept, f"written by `finwait tune apply`: {title}")
        path = folder / name
        before["drop_in"] = {"path": str(path), "text": there}
        after["drop_in"] = {"path": str(path), "text": text}
    lines: list[str] = []
    check()  # from here on it is a matter of milliseconds, and goes through
    act_id = journal.record(
        Act("sysctl", target.identity(), before, after, f"tune apply {plan.profile.name}")
    )
    tell(f"recorded {act_id}")
    try:
        applied = sysctl.apply(plan.changes, target, expected=before["sysctl"], on_step=on_step)
        lines += [f"{key}: {applied.before[key]} -> {value}" for key, value in applied.after.items()]
        if persist:
            tell("writing drop-in")
            try:
                sysctl.write_drop_in(name, after["drop_in"]["text"], folder=folder)
            except BaseException:
                sysctl.restore(applied.before, target)
                raise
            tell("wrote drop-in")
            lines.append(f"written: {folder / name}")
            if earlier:
                lines.append(f"kept in it from before: {', '.join(f'{k} = {v}' for k, v in earlier.items())}")
    except Exception as error:
        journal.complete(act_id, {"error": str(error)})
        raise
    journal.complete(act_id, {"values": dict(applied.after)})
    return Applied(act_id, tuple(lines))


@noted()
def roll_back(
    act_id: int, journal: acting.Journal, *, force: bool = False, folder: Path | None = None
) -> Applied:
    """Put back what an act changed, also one that was cut short; the taking back is an act of its own.

    Of an act that was to take another one back, and was cut short, that is finished.

    Args:
        act_id: the act's number.
        journal: where it was recorded.
        force: also put back values that somebody changed since.
        folder: where sysctl.d files are; None for ``/etc/sysctl.d``.

    Raises:
        ValueError: there is no such act, or it set no sysctls.
        Refused: the namespace is gone and its values with it, a value was changed since, the act was taken back
            already, or it is none that finwait could have done.
        KernelError: a value or file could not be put back; nothing is left changed then.
    """
    asked = journal.get(act_id)
    entry = origin(asked, journal)
    if entry.kind != "sysctl":
        raise ValueError(f"act {act_id} set no sysctls")
    if said := over_since(asked, entry, journal):
        return Applied(act_id, (said,))
    did = settings_act(entry)
    folder = folder if folder is not None else sysctl.SYSCTL_D
    wanted, was_set = did.before, did.after
    target, gone = _recorded_target(did)
    if target is None and not did.drop_in:
        journal.complete_many(open_ones(entry, journal, gone))
        raise Refused("namespace-gone", gone)
    with target if target is not None else contextlib.nullcontext():
        now = sysctl.read(list(wanted), target).values if target is not None else {}
        changed = [k for k in wanted if k in now and now[k] not in (wanted[k], was_set.get(k))]
        if changed and not force:
            told = ", ".join(f"{k} is {now[k]}" for k in changed)
            raise Refused(
                "changed-since", f"{told}: somebody set it after act {entry.id}", override="--force"
            )
        back = {k: v for k, v in reversed(list(wanted.items())) if k in now and now[k] != v}
        before = {"sysctl": {k: now[k] for k in back}}
        identity = target.identity() if target is not None else entry.target
        lines = [gone] if gone else []
        check()
        (new_id,) = journal.record_many(
            [Act("sysctl", identity, before, {"sysctl": back}, f"roll back {entry.id}", undoes=entry.id)]
        )
        try:
            if back:
                sysctl.apply(back, target, expected=before["sysctl"])
                lines += [f"{key}: {now[key]} -> {value}" for key, value in back.items()]
            if did.drop_in:
                path = str(folder / did.drop_in)
                sysctl.remove_drop_in(sysctl.DropIn(path, did.text_before, did.text_after), folder=folder)
                lines.append(f"{path}: {'removed' if did.text_before is None else 'restored'}")
        except Exception as error:
            journal.complete_many({new_id: {"error": str(error)}})
            raise
        others = open_ones(entry, journal, f"act {new_id} restored it", besides=new_id)
        journal.complete_many(others | {new_id: {"values": back}})
    if not lines:
        lines.append("nothing to restore: everything is already as before")
    return Applied(new_id, tuple(lines))


def _recorded_target(did: SettingsAct) -> tuple[Target | None, str]:
    """Open the namespace that an act was done in; None and the reason if it is gone."""
    gone = f"network namespace {did.netns} is gone, and its values with it"
    if did.boot_id != sysctl.boot_id():
        return None, f"{gone}: the machine has been restarted since"
    try:
        target = sysctl.open_target(f"netns:{did.netns}")
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None, gone
        raise
    if target.cookie != did.cookie:
        target.close()
        return None, f"{gone}; another one has its number now"
    return target, ""
