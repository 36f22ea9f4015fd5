"""Acts of the journal taken back, or settled where nothing can be."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from finwait.acting.aftermath import still_there
from finwait.acting.borrowed import STILL_THERE, DescriptorMoved, holders_elsewhere
from finwait.acting.cut_short import open_ones, origin, over_since
from finwait.acting.identity import NOT_ENTERED, ActJournal, Holder, key_of, namespaces_of
from finwait.acting.options import SYSCTLS, set_since
from finwait.errors import FinwaitError, Refused, TargetGone
from finwait.kernel import pidfd, procfs
from finwait.kernel.interruption import check, noted
from finwait.kernel.socket_locks import locked
from finwait.remedy.journal import Act
from finwait.remedy.plan import End
from finwait.remedy.recorded import OptionsAct, connection_of, options_act

__all__ = ["restore", "settle"]


@noted()
def restore(act_id: int, journal: ActJournal, *, force: bool = False) -> str:
    """Put socket options back as an act found them; return what was done, in words.

    Of an act that was to take another one back, and was cut short, that is finished.

    Args:
        act_id: which.
        journal: where it is written down.
        force: also when somebody has set them since, and past the lock when another program holds it. Without it,
            options that its program has set since an act was cut short stay as they are.

    Raises:
        ValueError: there is no such act.
        Refused: it cannot be taken back, or was already, or the options were set since (guard ``changed-since``).
        TargetGone: the connection has ended; there is nothing to put back.
        FinwaitError: it is still there, and none of its descriptors was found: they were moved, and the act stays open;
            or the act is damaged, and nothing was begun.
        KernelError: the options could not be set.
    """
    asked = journal.get(act_id)
    entry = origin(asked, journal)
    if reason := over_since(asked, entry, journal):
        return reason
    act_id = entry.id
    _may_be_undone(entry, journal, force=force)
    old = options_act(entry)
    check()
    undo_id = _begun(entry, old, journal)
    last: FinwaitError = TargetGone(old.cookie)
    ways = _ways(old.end, old.inode, old.holders)
    this_boot = entry.boot_id == procfs.facts().boot_id
    if not this_boot:
        last, ways = TargetGone(old.cookie, "the machine has been restarted since"), iter(())
    halfway = entry.result is None or any(undo.id != undo_id for undo in journal.open_undos(act_id))
    try:
        with _lock(act_id, old.end, old.holders, force) if this_boot else nullcontext("") as past:
            for pid, fd, comm in ways:
                try:
                    with pidfd.borrowed(pid, fd, inode=old.inode, cookie=old.cookie) as sock:
                        text = _put_back(
                            sock, old, checked=entry.result is not None, halfway=halfway, force=force
                        )
                except TargetGone as error:
                    last = error
                    continue
                others = open_ones(entry, journal, f"act {undo_id} restored it", besides=undo_id)
                journal.complete_many(others | {undo_id: {"result": "restored"}})
                return (
                    f"restored {text[0]} in {comm} (pid {pid}, fd {fd}){text[1]}{_pinned(old.followed)}{past}"
                )
    except FinwaitError as error:
        journal.complete_many({undo_id: {"error": str(error), "restored": True}})
        raise
    others = open_ones(entry, journal, "its connection has ended since", besides=undo_id)
    journal.complete_many(others | {undo_id: {"error": str(last), "restored": True}})
    raise last


def _may_be_undone(entry: Any, journal: ActJournal, *, force: bool) -> None:  # noqa: ANN401 - a JournalEntry
    """Refuse an act that is none on options, or that another process is still doing."""
    if entry.kind != "sockopt":
        raise Refused("irreversible", f"act {entry.id} cannot be reverted: it is a {entry.kind}")
    if entry.result is None and entry.pid != os.getpid() and journal.is_running(entry) and not force:
        raise Refused(
            "under-way",
            f"act {entry.id} is not finished: pid {entry.pid} is still doing it",
            override="--force",
        )


def _begun(entry: Any, old: OptionsAct, journal: ActJournal) -> int:  # noqa: ANN401 - a JournalEntry
    """Write down that an act is taken back, which only one may do at a time; return the number of that."""
    undo = Act(
        "sockopt",
        dict(entry.target),
        dict(entry.after),
        {"options": old.before},
        f"undo {entry.id}",
        undoes=entry.id,
    )
    (undo_id,) = journal.claim_many([undo], besides=entry.id)
    if not isinstance(undo_id, int):
        raise Refused("taken", f"act {entry.id} cannot be reverted now: {undo_id}")
    return undo_id


def _put_back(
    sock: socket.socket, old: OptionsAct, *, checked: bool, halfway: bool, force: bool
) -> tuple[str, str]:
    """Put the options of a socket back; return which, and which its program has set since.

    Raises:
        Refused: ``checked``, and somebody has set them since.
    """
    now = pidfd.get_options(sock)
    if checked and not force:
        _unchanged(now, old.before, old.after, halfway=halfway)
    kept = {} if force else set_since(now, old.before, old.after, halfway=halfway)
    originals = {name: value for name, value in old.before.items() if name not in kept}
    pidfd.set_options(sock, pidfd.nearest(originals))
    return _put_back_text(originals), _kept(kept)


@contextmanager
def _lock(act_id: int, end: End, holders: Sequence[Holder], force: bool) -> Iterator[str]:
    """Keep other acts from the options of a connection, those of other journals too.

    Gives what is to be said of a lock that could not be had, where that is no obstacle.

    Raises:
        Refused: another act is at them.
    """
    key = key_of(end)
    spaces = namespaces_of({end.netns}, [(end.netns, pid, fd) for pid, fd, _ in holders[:1]])
    if not spaces:  # nothing leads there: either it is gone, or no descriptor of it will be found
        yield ""
        return
    with locked(spaces, {key}) as refused:
        why = refused.get(key)
        if why and not force:
            raise Refused("taken", f"act {act_id} cannot be reverted now: {why}", override="--force")
        yield f"; without the lock, as --force says: {why}" if why else ""


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
        for holders in holders_elsewhere({0: (end, inode)}).values():
            if isinstance(holders, DescriptorMoved):
                raise holders
            yield from holders
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


def _unchanged(
    now: Mapping[str, int], before: Mapping[str, int], made: Mapping[str, int], *, halfway: bool
) -> None:
    """Refuse if an option is neither as an act left it nor as it was before."""
    for name, value in made.items():
        between = halfway and name == "keepalive" and now[name] == 0  # see `set_since`
        if now[name] not in (value, before.get(name)) and not between:
            raise Refused(
                "changed-since",
                f"{name} is {now[name]} now, but the act set it to {value}: somebody has changed it since",
                override="--force",
            )


def settle(act_id: int, journal: ActJournal) -> str:
    """Find out what came of an act that was cut short and cannot be taken back; write it down and return it.

    Raises:
        ValueError: there is no such act, or it is not one that was cut short.
        FinwaitError: the act is damaged.
    """
    entry = journal.get(act_id)
    if entry.result is not None:
        raise ValueError(f"act {act_id} is complete")
    if entry.kind == "conntrack-delete":
        detail = "it is unknown whether the entry was deleted; `finwait conntrack` shows the entries"
    elif entry.boot_id != procfs.facts().boot_id:
        detail = "the machine has been restarted since: its connection is gone"
    else:
        end = connection_of(entry)
        seen = still_there([end]).get(key_of(end))
        detail = (
            "its connection is gone" if seen is None else f"its connection is still there, in {seen.state}"
        )
        if seen is not None and seen.unknown:
            detail = f"the state of its connection is unknown: {NOT_ENTERED}"
    journal.complete_many({act_id: {"result": f"interrupted; {detail}"}})
    return detail
