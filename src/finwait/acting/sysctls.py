"""Settings of a network namespace: set as a plan says, all of it or nothing, and put back."""

from __future__ import annotations

import contextlib
import errno
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from finwait.acting.cut_short import open_ones, origin, over_since
from finwait.errors import KernelError, Refused
from finwait.kernel import sysctl
from finwait.kernel.boot import boot_id
from finwait.kernel.interruption import check, noted
from finwait.remedy.journal import Act, foreign_line, settings_act
from finwait.remedy.tuning import COMMAND_LINE, LineState, drop_in, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from finwait.acting import identity as acting
    from finwait.kernel.sysctl import SysctlTarget, Written
    from finwait.remedy.journal import Journal, SettingsAct
    from finwait.remedy.tuning import ProfilePlan

__all__ = ["Applied", "apply_plan", "roll_back"]


class Applied(Struct, frozen=True):
    """What an act did."""

    act_id: int
    lines: tuple[str, ...]


@noted()
def apply_plan(
    plan: ProfilePlan,
    target: SysctlTarget,
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
        "sysctl": {line.key: line.current for line in plan.lines if line.state is LineState.CHANGE}
    }
    after: dict[str, Any] = {"sysctl": plan.changes}
    file = _drop_in(plan, folder) if persist else None
    if file is not None:
        before["drop_in"] = {"path": str(folder / file.name), "text": file.text_before}
        after["drop_in"] = {"path": str(folder / file.name), "text": file.text}
    lines: list[str] = []
    check()  # from here on it is a matter of milliseconds, and goes through
    act_id = journal.record(
        Act("sysctl", target.identity(), before, after, f"tune apply {plan.profile.name}")
    )
    tell(f"recorded {act_id}")
    try:
        applied = sysctl.apply(plan.changes, target, expected=before["sysctl"], on_step=on_step)
        lines += [f"{key}: {applied.before[key]} -> {value}" for key, value in applied.after.items()]
        if file is not None:
            tell("writing drop-in")
            with _or_put_back(applied, target):
                sysctl.write_drop_in(file.name, file.text, folder=folder)
            tell("wrote drop-in")
            lines += file.lines(folder)
    except Exception as error:
        journal.complete(act_id, {"error": str(error)})
        raise
    journal.complete(act_id, {"values": dict(applied.after)})
    return Applied(act_id, tuple(lines))


@contextlib.contextmanager
def _or_put_back(written: Written | None, target: SysctlTarget | None) -> Iterator[None]:
    """Do the second half of an act; where that fails, put back what the first one set.

    Raises:
        KernelError: that failed, too; the message names what is left changed.
    """
    try:
        yield
    except BaseException:
        if written is not None:
            sysctl.restore(written.before, target)
        raise


class _DropIn(Struct, frozen=True):
    """The sysctl.d file of a plan."""

    name: str
    text: str
    text_before: str | None
    """None where there is no such file yet."""
    kept: dict[str, str]
    """Settings that it had, and that the plan does not name."""

    def lines(self, folder: Path) -> list[str]:
        """Return what is said of it once it is written."""
        lines = [f"written: {folder / self.name}"]
        if self.kept:
            settings = ", ".join(f"{key} = {value}" for key, value in self.kept.items())
            lines.append(f"kept in it from before: {settings}")
        return lines


def _drop_in(plan: ProfilePlan, folder: Path) -> _DropIn:
    """Return the sysctl.d file that a plan makes of the one that is there.

    Raises:
        Refused: it holds what somebody else wrote.
    """
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", plan.profile.name.rpartition("/")[2].removesuffix(".conf"))
    name = f"90-finwait-{stem}.conf"
    settings = {
        line.key: line.wanted for line in plan.lines if line.state in (LineState.CHANGE, LineState.SAME)
    }
    existing = sysctl.read_drop_in(name, folder=folder)
    if foreign := foreign_line(existing or ""):
        raise Refused(
            "drop-in",
            f"`{folder / name}` contains a line that finwait does not write: `{foreign}`; move it to another file",
        )
    try:
        (existing or "").encode()
    except UnicodeEncodeError:  # the journal could not keep it
        raise Refused("drop-in", f"`{folder / name}` is not UTF-8; move it to another file") from None
    kept: dict[str, str] = {}
    if plan.profile.name == COMMAND_LINE:  # what was typed adds up; a profile's file is the profile
        kept = {key: value for key, value in settings_of(existing or "").items() if key not in settings}
    title = " ".join(plan.profile.title.split())
    text = drop_in(kept | settings, f"written by `finwait tune apply`: {title}")
    return _DropIn(name, text, existing, kept)


@noted()
def roll_back(
    act_id: int, journal: acting.ActJournal, *, force: bool = False, folder: Path | None = None
) -> Applied:
    """Put back what an act changed, also one that was cut short; the taking back is an act of its own.

    Of an act that was to take another one back, and was cut short, that is finished.

    Args:
        act_id: the act's number.
        journal: where it was recorded.
        force: also put back values, and the sysctl.d file, that somebody changed since; the journal keeps what the file
            held.
        folder: where sysctl.d files are; None for ``/etc/sysctl.d``.

    Raises:
        ValueError: there is no such act, or it set no sysctls.
        Refused: the namespace is gone and its values with it, a value or the file was changed since, the act was taken
            back already, or it is none that finwait could have done.
        KernelError: a value or file could not be put back; nothing is left changed then, unless the message says so.
    """
    asked = journal.get(act_id)
    entry = origin(asked, journal)
    if entry.kind != "sysctl":
        raise ValueError(f"act {act_id} set no sysctls")
    if reason := over_since(asked, entry, journal):
        return Applied(act_id, (reason,))
    act = settings_act(entry)
    folder = folder if folder is not None else sysctl.SYSCTL_D
    target, gone = _recorded_target(act)
    if target is None and not act.drop_in:
        journal.complete_many(open_ones(entry, journal, gone))
        raise Refused("namespace-gone", gone)
    with target if target is not None else contextlib.nullcontext():
        now = sysctl.read(list(act.before), target).values if target is not None else {}
        if not force:
            _unchanged_since(act, now, entry.id)
        file = _file_of(act, folder)
        edited = _edited(file, folder, entry.id, force=force)
        back = {k: v for k, v in reversed(list(act.before.items())) if k in now and now[k] != v}
        before: dict[str, Any] = {"sysctl": {k: now[k] for k in back}}
        if edited:
            before["edited"] = edited
        identity = target.identity() if target is not None else entry.target
        lines = [gone] if gone else []
        check()
        (new_id,) = journal.record_many(
            [Act("sysctl", identity, before, {"sysctl": back}, f"roll back {entry.id}", undoes=entry.id)]
        )
        try:
            lines += _put_back(back, before["sysctl"], target, file, folder, force=force)
        except Exception as error:
            journal.complete_many({new_id: {"error": str(error)}})
            raise
        others = open_ones(entry, journal, f"act {new_id} restored it", besides=new_id)
        journal.complete_many(others | {new_id: {"values": back}})
    if edited:
        lines.append(f"`finwait journal -o json` shows, with act {new_id}, what it held")
    if not lines:
        lines.append("nothing to restore: everything is already as before")
    return Applied(new_id, tuple(lines))


def _put_back(
    back: Mapping[str, str],
    now: Mapping[str, str],
    target: SysctlTarget | None,
    file: sysctl.DropIn | None,
    folder: Path,
    *,
    force: bool,
) -> list[str]:
    """Put values and a file back, or neither; return what is said of it.

    Raises:
        KernelError: one could not be put back; nothing is left changed then, unless the message says so.
    """
    written = sysctl.apply(back, target, expected=now) if back else None
    lines = [f"{key}: {now[key]} -> {value}" for key, value in back.items()]
    if file is not None:
        with _or_put_back(written, target):
            sysctl.remove_drop_in(file, folder=folder, force=force)
        lines.append(f"{file.path}: {'removed' if file.before is None else 'restored'}")
    return lines


def _file_of(act: SettingsAct, folder: Path) -> sysctl.DropIn | None:
    """Return the sysctl.d file that an act wrote."""
    if not act.drop_in:
        return None
    return sysctl.DropIn(str(folder / act.drop_in), act.text_before, act.text_after)


def _edited(file: sysctl.DropIn | None, folder: Path, act_id: int, *, force: bool) -> str:
    """Return what somebody made of the sysctl.d file of an act since, as the journal can keep it.

    Raises:
        Refused: somebody edited it, or removed it, and that is not overruled.
    """
    edited = sysctl.edited(file, folder=folder) if file is not None else None
    if file is None or edited is None:
        return ""
    if not force:
        doing = "edited" if edited else "removed"
        reason = f"somebody has {doing} `{file.path}` since act {act_id}"
        raise Refused("changed-since", reason, override="--force")
    return edited.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _unchanged_since(act: SettingsAct, now: Mapping[str, str], act_id: int) -> None:
    """Refuse to put back values that are neither what an act set nor what it found."""
    changed = [
        key for key in act.before if key in now and now[key] not in (act.before[key], act.after.get(key))
    ]
    if changed:
        values = ", ".join(f"{key} is {now[key]}" for key in changed)
        raise Refused("changed-since", f"{values}: somebody set it after act {act_id}", override="--force")


def _recorded_target(act: SettingsAct) -> tuple[SysctlTarget | None, str]:
    """Open the namespace that an act was done in; None and the reason if it is gone."""
    gone = f"network namespace {act.netns} is gone, and its values with it"
    if act.boot_id != boot_id():
        return None, f"{gone}: the machine has been restarted since"
    try:
        target = sysctl.open_target(f"netns:{act.netns}")
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return None, gone
        raise
    if target.cookie != act.cookie:
        target.close()
        return None, f"{gone}; another one has its number now"
    return target, ""
