"""What to type to act on exactly the connections of a finding: neither more of them, nor others.

A finding is a cause in one namespace at one holder. The shortest FILTER that selects its connections and no other
names the rule, and then, as far as other findings of the same rule make it necessary, the namespace, the variant,
the processes, who waits for them; where nothing else tells two findings apart, the cookies. To that comes what the
diagnosis itself was asked for: a hint without it would act on more than was shown.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from finwait.attribution.waiting import KINDS
from finwait.diagnosis.finding import Finding, Remedy
from finwait.diagnosis.view import View
from finwait.table.filter import Filter, conjunction, parse
from finwait.table.predicates import Known
from finwait.uapi.sets import among, distinct

__all__ = ["NOTHING_ASKED", "Asked", "aimed", "command_of"]

_SHORT = 4
"""So many processes are named one by one; more by the name of their program, where that tells them apart."""

T = TypeVar("T")


class Asked(Struct, frozen=True):
    """What a diagnosis was asked for."""

    filter: Filter | None = None
    options: tuple[str, ...] = ()
    """Options of the look that decide what is found, as words of a command line."""
    recorded: bool = False
    """Whether it is about a recording, on which nothing can be acted."""


NOTHING_ASKED = Asked()


def aimed(view: View, findings: Sequence[Finding], asked: Asked) -> tuple[Finding, ...]:
    """Return findings whose FILTER and commands select exactly their connections."""
    own = _selections(view, findings)
    result = []
    for k, finding in enumerate(findings):
        select = str(conjunction(asked.filter, parse(own[k]))) if own.get(k) else ""
        ends = tuple(command_of(r, finding.rule, select, asked) for r in finding.ends_it)
        result.append(replace(finding, select=select, ends_it=ends, listing=_listing(select, asked)))
    return tuple(result)


def _listing(select: str, asked: Asked) -> str:
    return _line(("finwait", "list", *asked.options), select) if select else ""


def command_of(remedy: Remedy, rule: str, select: str, asked: Asked) -> Remedy:
    """Return a remedy whose command, if it is one for the connections of a rule, is for those of a FILTER."""
    words = shlex.split(remedy.command)
    select = remedy.select or select
    if len(words) < 3 or words[0] != "finwait" or rule not in words:
        return remedy
    options, asks = _options_first(words[2:])
    if asked.recorded and words[1] == "clear":
        options.append("--dry-run")
    if asks != [rule] and select:  # the rule, and something more: that stays
        own = parse(asks).without(Known("rule", "=", rule))
        select = str(conjunction(parse(select), own))
    if words[1] == "clear" and select == f"rule = {rule}":
        select = rule
    command = _line((*words[:2], *asked.options, *options), select) if select else ""
    return replace(remedy, command=command)


def _options_first(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the options of a command of ours, each of which has a value, and its FILTER."""
    options: list[str] = []
    asks: list[str] = []
    for k, word in enumerate(words):
        option = word.startswith("--") or (k > 0 and words[k - 1].startswith("--"))
        (options if option else asks).append(word)
    return options, asks


def _line(words: Sequence[str], select: str) -> str:
    """Return a command line with a FILTER at its end, quoted for a shell where it must be."""
    plain = re.fullmatch(r"[\w .,:=/@%+-]+", select, re.ASCII) is not None
    return f"{shlex.join(words)} {select if plain else shlex.quote(select)}"


def _split(members: list[int], key: Callable[[int], Hashable]) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for k in members:
        groups.setdefault(key(k), []).append(k)
    return groups


def _selections(view: View, findings: Sequence[Finding]) -> dict[int, str]:
    """Return a FILTER for each finding that has connections, by its place."""
    spaces = {k: distinct(view.sockets.netns[f.rows]).tolist() for k, f in enumerate(findings) if len(f.rows)}
    result: dict[int, str] = {}
    for members in _split(list(spaces), lambda k: (findings[k].rule, findings[k].primary)).values():
        primary, rule = findings[members[0]].primary, findings[members[0]].rule
        word = f"rule = {rule}" if primary else f"also = {rule}"
        if len(members) == 1:
            result[members[0]] = word
            continue
        for same in _split(members, lambda k: tuple(spaces[k])).values():
            one_space = len(spaces[same[0]]) == 1
            several = any(spaces[k] != spaces[same[0]] for k in members)
            overlap = any(
                spaces[k] != spaces[same[0]] and set(spaces[k]) & set(spaces[same[0]]) for k in members
            )
            text = f"{word} and netns = {spaces[same[0]][0]}" if several and one_space else word
            if several and (not one_space or overlap):
                result |= {k: _by_cookie(view, findings[k]) for k in same}
            else:
                result |= _within(view, findings, same, text, primary=primary)
    return result


def _within(
    view: View, findings: Sequence[Finding], members: list[int], text: str, *, primary: bool
) -> dict[int, str]:
    """Return FILTERs that tell findings of one rule in one namespace apart.

    By their holders first: those stay what they are, while a variant may be another one in a minute, for instance
    once the other end is gone; then the command of one group would be for the connections of another.
    """
    owners = Counter(pid for k in members for pid in findings[k].pids)
    apart = {k for k in members if findings[k].pids and all(owners[pid] == 1 for pid in findings[k].pids)}
    filters = _told_apart(view, findings, members, text)
    result = {k: filters[k] for k in members if k in apart}
    shared = [k for k in members if k not in apart and findings[k].pids]
    unheld = [k for k in members if not findings[k].pids]
    pids = sorted({pid for k in shared for pid in findings[k].pids})
    confined = f"{text} and pid = {','.join(map(str, pids))}" if len(shared) < len(members) else text
    result |= _by_variant(view, findings, shared, confined, primary=primary)
    if len(unheld) < len(members):
        held = [bool(view.held[findings[k].rows].any()) for k in unheld]
        others = [bool(view.held[findings[k].rows].all()) for k in members if findings[k].pids]
        text = f"{text} and orphan" if not any(held) and all(others) else ""
    return result | _by_variant(view, findings, unheld, text, primary=primary)


def _by_variant(
    view: View, findings: Sequence[Finding], members: list[int], text: str, *, primary: bool
) -> dict[int, str]:
    """Return FILTERs that tell findings apart that have the same holders, or none; an empty text tells nothing."""
    if not text:
        return {k: _by_cookie(view, findings[k]) for k in members}
    result: dict[int, str] = {}
    variants = _split(members, lambda k: findings[k].variant) if primary else {0: members}
    for variant, same in variants.items():
        start = f"{text} and variant = {variant}" if len(variants) > 1 else text
        if len(same) == 1:
            result[same[0]] = start
        elif primary and _alike(findings, same):
            # One holder has some that are proven and some that are not: those are different findings.
            for severity, graded in _split(same, lambda k: findings[k].severity).items():
                result |= _told_apart(view, findings, graded, f"{start} and severity = {severity}")
        elif same:
            result |= _told_apart(view, findings, same, start)
    return result


def _alike(findings: Sequence[Finding], members: list[int]) -> bool:
    """Return whether some findings differ by their severity where their holders do not tell them apart."""
    graver = _split(members, lambda k: (findings[k].pids, findings[k].severity))
    return len(graver) > len(_split(members, lambda k: findings[k].pids))


def _told_apart(view: View, findings: Sequence[Finding], same: list[int], start: str) -> dict[int, str]:
    """Return FILTERs that tell findings of one variant apart by their holders, else by cookie."""
    result: dict[int, str] = {}
    if len(same) == 1:
        return {same[0]: start}
    owners = Counter(pid for k in same for pid in findings[k].pids)
    programs = Counter(name for k in same for name in {_comm(view, pid) for pid in findings[k].pids})
    held = {k: view.held[findings[k].rows] for k in same}
    waited = {k: set(view.waits.kinds[findings[k].rows].tolist()) for k in same}
    answers = Counter(kind for kinds in waited.values() for kind in kinds)
    for k in same:
        pids = findings[k].pids
        names = {_comm(view, pid) for pid in pids}
        if pids and all(owners[pid] == 1 for pid in pids):
            name, *others = sorted(names)
            plain = not others and programs[name] == 1 and not set(name) & {"*", "?"}
            if len(pids) > _SHORT and plain:
                result[k] = f"{start} and comm = {_quoted(name)}"
            else:
                result[k] = f"{start} and pid = {','.join(map(str, pids))}"
        elif not pids and not held[k].any() and all(held[other].all() for other in same if other != k):
            result[k] = f"{start} and orphan"
        elif len(waited[k]) == 1 and answers[kind := min(waited[k])] == 1 and kind >= 0:
            result[k] = f"{start} and waited = {KINDS[kind]}"
        else:
            result[k] = _by_cookie(view, findings[k])
    return result


def _comm(view: View, pid: int) -> str:
    process = view.processes.get(pid)
    return process.comm if process is not None else "?"


def _quoted(name: str) -> str:
    # `*` and `?` are patterns even in quotes: then the pids name them.
    return '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'


def _by_cookie(view: View, finding: Finding) -> str:
    """Return a FILTER of cookies; nothing where they do not tell the connections from others."""
    cookies = view.sockets.cookie[finding.rows]
    same = among(view.sockets.cookie, cookies) & np.isin(
        view.sockets.netns, distinct(view.sockets.netns[finding.rows])
    )
    if not cookies.all() or int(same.sum()) != len(finding.rows):
        return ""
    spaces = distinct(view.sockets.netns[finding.rows]).tolist()
    listed = ", ".join(f"{cookie:#x}" for cookie in cookies.tolist())
    return f"netns = {','.join(map(str, spaces))} and cookie = {listed}"
