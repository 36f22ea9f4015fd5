"""Acts of the journal taken back, or settled where nothing can be."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from finwait.acting.aftermath import still_there
from finwait.acting.borrowed import STILL_THERE, DescriptorMoved, holders_elsewhere
from finwait.acting.identity import NOT_ENTERED, Holder, Journal, kernel_target, key_of, namespaces_of
from finwait.acting.options import SYSCTLS, set_since
from finwait.errors import FinwaitError, Refused, TargetGone
from finwait.kernel import pidfd, procfs
from finwait.kernel.socket_locks import locked
from finwait.remedy.journal import Act, check_undo
from finwait.remedy.plan import End

__all__ = ["restore", "settle"]


def restore(act_id: int, journal: Journal, *, force: bool = False) -> str:
    """Put socket options back as an act found them; return what was done, in words.

    Args:
        act_id: which.
        journal: where it is written down.
        force: also when somebody has set them since. Without it, options that its program has set since an act was
            cut short stay as they are.

    Raises:
        ValueError: there is no such act.
        Refused: it cannot be taken back, or was already, or the options were set since (guard ``changed-since``).
        TargetGone: the connection has ended; there is nothing to put back.
        FinwaitError: it is still there, and none of its descriptors was found: they were moved, and the act stays open.
        KernelError: the options could not be set.
    """
    entry = journal.get(act_id)
    check_undo(entry)
    if entry.kind != "sockopt":
        raise Refused("irreversible", f"act {act_id} cannot be reverted: it is a {entry.kind}")
    if entry.result is None and entry.pid != os.getpid() and journal.is_running(entry) and not force:
        raise Refused(
            "under-way",
            f"act {act_id} is not finished: pid {entry.pid} is still doing it",
            override="--force",
        )
    target = entry.target
    with _whole_act(act_id):
        options = {name: int(entry.before["options"][name]) for name in entry.before["options"]}
        made = {name: int(value) for name, value in entry.after["options"].items()}
        cookie, inode = int(target["cookie"], 16), int(target["inode"])
        holders = [(int(pid), int(fd), str(comm)) for pid, fd, comm in target["holders"]]
        followed = [str(name) for name in entry.before.get("followed", ())]
        end = End(**{name: target[name] for name in End.__struct_fields__})
        key_of(end)
        kernel_target(end)
        if not options.keys() <= pidfd.KEEPALIVE_OPTIONS.keys():
            raise ValueError("an option that finwait does not set")
    undo = Act(
        "sockopt", dict(target), dict(entry.after), {"options": options}, f"undo {act_id}", undoes=act_id
    )
    (undo_id,) = journal.claim_many([undo], besides=act_id)
    if not isinstance(undo_id, int):
        raise Refused("taken", f"act {act_id} cannot be reverted now: {undo_id}")
    last: FinwaitError = TargetGone(cookie)
    ways = _ways(end, inode, holders)
    this_boot = entry.boot_id == procfs.facts().boot_id
    if not this_boot:
        last, ways = TargetGone(cookie, "the machine has been restarted since"), iter(())
    try:
        with _lock(act_id, end, holders) if this_boot else nullcontext():
            for pid, fd, comm in ways:
                try:
                    with pidfd.borrowed(pid, fd, inode=inode, cookie=cookie) as sock:
                        now = pidfd.get_options(sock)
                        if entry.result is not None and not force:
                            _unchanged(now, options, made)
                        kept = {} if force else set_since(now, options, made)
                        ours = {name: value for name, value in options.items() if name not in kept}
                        pidfd.set_options(sock, pidfd.nearest(ours))
                except TargetGone as error:
                    last = error
                    continue
                said = f"interrupted; act {undo_id} restored it"
                _close_open(entry, journal, {undo_id: {"result": "restored"}}, said)
                where = f"{comm} (pid {pid}, fd {fd})"
                return f"restored {_put_back_text(ours)} in {where}{_kept(kept)}{_pinned(followed)}"
    except FinwaitError as error:
        journal.complete_many({undo_id: {"error": str(error), "restored": True}})
        raise
    _close_open(
        entry,
        journal,
        {undo_id: {"error": str(last), "restored": True}},
        "interrupted; its connection has ended since",
    )
    raise last


@contextmanager
def _lock(act_id: int, end: End, holders: Sequence[Holder]) -> Iterator[None]:
    """Keep other acts from the options of a connection, those of other journals too.

    Raises:
        Refused: another act is at them.
    """
    key = key_of(end)
    spaces = namespaces_of({end.netns}, [(end.netns, pid, fd) for pid, fd, _ in holders[:1]])
    if not spaces:  # nothing leads there: either it is gone, or no descriptor of it will be found
        yield
        return
    with locked(spaces, {key}) as refused:
        if why := refused.get(key):
            raise Refused("taken", f"act {act_id} cannot be reverted now: {why}")
        yield


def _kept(kept: Mapping[str, int]) -> str:
    """Say which options their program has set since."""
    if not kept:
        return ""
    return f"; left as the program has set them since: {', '.join(f'{n}={v}' for n, v in kept.items())}"


def _ways(end: End, inode: int, known: Sequence[Holder]) -> Iterator[Holder]:
    """Give the holders that are known, and then those that are found when it is looked anew.

    Raises:
        FinwaitError: the connection is still there, and no descriptor of it could be found, or kept up with.
    """
    yield from known
    for _ in range(3):
        for found in holders_elsewhere({0: (end, inode)}).values():
            if isinstance(found, DescriptorMoved):
                raise found
            yield from found
            break
        else:
            return
    raise FinwaitError(f"{STILL_THERE}, and its descriptor keeps moving")


def _put_back_text(options: Mapping[str, int]) -> str:
    """Say what options are now, and what of it is not as it was."""
    now = pidfd.nearest(options)
    return ", ".join(
        f"{n}={now[n]}" + (f" (it was {v}, more than setsockopt(2) accepts)" if now[n] != v else "")
        for n, v in options.items()
    )


def _pinned(followed: Sequence[str]) -> str:
    names = [name for name in followed if name in SYSCTLS]
    if not names:
        return ""
    return (
        f"; {', '.join(names)}: now the socket's own, and no longer those of the sysctls if it followed them"
    )


def _unchanged(now: Mapping[str, int], before: Mapping[str, int], made: Mapping[str, int]) -> None:
    """Refuse if an option is neither as an act left it nor as it was before."""
    for name, value in made.items():
        if now[name] not in (value, before.get(name)):
            raise Refused(
                "changed-since",
                f"{name} is {now[name]} now, but the act set it to {value}: somebody has changed it since",
                override="--force",
            )


def _close_open(entry: Any, journal: Journal, results: dict[int, dict[str, Any]], said: str) -> None:  # noqa: ANN401
    """Write results down, and that of an act which was cut short: it is told no more."""
    if entry.result is None:
        results = results | {entry.id: {"result": said}}
    journal.complete_many(results)


@contextmanager
def _whole_act(act_id: int) -> Iterator[None]:
    """Say of an act whose record is not what we write that it is damaged."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise FinwaitError(f"act {act_id} of the journal is damaged: {error!r}") from None


def settle(act_id: int, journal: Journal) -> str:
    """Find out what came of an act that was cut short and cannot be taken back; write it down and return it.

    Raises:
        ValueError: there is no such act, or it is not one that was cut short.
    """
    entry = journal.get(act_id)
    if entry.result is not None:
        raise ValueError(f"act {act_id} is complete")
    target = entry.target
    if entry.kind == "conntrack-delete":
        said = "it is unknown whether the entry was deleted; `finwait conntrack` shows the entries"
    elif entry.boot_id != procfs.facts().boot_id:
        said = "the machine has been restarted since: its connection is gone"
    else:
        with _whole_act(act_id):
            end = End(**{name: target[name] for name in End.__struct_fields__})
            key_of(end)
            kernel_target(end)
        seen = still_there([end]).get(key_of(end))
        said = "its connection is gone" if seen is None else f"its connection is still there, in {seen.state}"
        if seen is not None and seen.unknown:
            said = f"the state of its connection is unknown: {NOT_ENTERED}"
    journal.complete_many({act_id: {"result": f"interrupted; {said}"}})
    return said
