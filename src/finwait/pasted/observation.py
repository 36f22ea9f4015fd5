"""What recognisers made of texts → the `Observation` that a look at the kernel gives, or one for each moment.

Outputs of different commands are of one moment; where a command's output comes again, another moment begins. What has
no column becomes a gap: a text never tells everything, and what it does not tell is unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from msgspec import Struct, field

from finwait.errors import Gap
from finwait.pasted.encode import encoded
from finwait.pasted.joined import Sockets, joined, names_of
from finwait.pasted.recognise import Section, read_section, sections
from finwait.pasted.rows import Part
from finwait.uapi.observation import (
    Descriptors,
    Dump,
    Facts,
    Namespace,
    Observation,
    ProcessFiles,
)

__all__ = ["Reading", "Text", "observations"]

NETNS: Final = 1
"""Stands for the inode of the network namespace in which the commands ran."""


class Text(Struct, frozen=True):
    """One text: its lines, what it is called, and when it was made."""

    name: str
    lines: list[str]
    unix_ns: int = 0


class Moment(Struct):
    """What was read of one moment."""

    unix_ns: int = 0
    parts: list[Part] = field(default_factory=list)
    seen: set[tuple[str, str, str]] = field(default_factory=set)


class Reading(Struct):
    """What was made of texts."""

    looks: tuple[Observation, ...]
    labels: dict[str, dict[int, str]]
    """For each text, what each of its lines was read as, by number."""
    recognised: Counter[str]
    """How many lines each recogniser knew."""
    texts: tuple[Text, ...]


def observations(texts: Sequence[Text]) -> Reading:
    """Return the looks that texts make, the earliest first; none where nothing is recognised."""
    labels: dict[str, dict[int, str]] = {}
    known: Counter[str] = Counter()
    moments: list[Moment] = []
    for text in texts:
        parts, labels[text.name] = sections(text.lines)
        for section in parts:
            known[section.name] += len(section.numbers)
            _sort_in(moments, section, section.unix_ns or text.unix_ns)
    if len(moments) > 1 and all(moment.unix_ns for moment in moments):
        moments.sort(key=lambda moment: moment.unix_ns)
    everything = [part for moment in moments for part in moment.parts]
    settings = {
        name: data for part in everything for name, data in part.files.items() if name.startswith("sys/")
    }
    with_rows = [moment for moment in moments if any(part.rows is not None for part in moment.parts)]
    looks = [_look(moment, settings, everything) for moment in (with_rows or moments[-1:])]
    return Reading(tuple(looks), labels, known, tuple(texts))


def _sort_in(moments: list[Moment], section: Section, unix_ns: int) -> None:
    """Add a section to the moment that it belongs to: a new one where its command was seen in the last."""
    key = section.key
    now = moments[-1] if moments else None
    if now is None or key in now.seen or (unix_ns and now.unix_ns and unix_ns != now.unix_ns):
        now = Moment(unix_ns)
        moments.append(now)
    now.unix_ns = now.unix_ns or unix_ns
    now.seen.add(key)
    now.parts.append(read_section(section))


def _look(moment: Moment, settings: dict[str, bytes], everything: Sequence[Part]) -> Observation:
    sockets = joined(moment.parts, settings)
    files = dict(settings)
    for part in moment.parts:
        files |= {name: data for name, data in part.files.items() if not name.startswith("sys/")}
    buffer, dumps = np.empty(0, np.uint8), tuple[Dump, ...]()
    descriptors = Descriptors.none()
    names = names_of(everything)
    if sockets is not None:
        buffer, made, _ = encoded(sockets.columns, sockets.missing, sockets.src, sockets.dst, 0)
        dumps = tuple(made)
        descriptors = _descriptors(sockets)
    host = next((part.host for part in moment.parts if part.host), "")
    return Observation(
        Facts(
            hostname=host or "pasted text",
            unix_ns=moment.unix_ns,
            boottime_ns=moment.unix_ns,
            boottime_end_ns=moment.unix_ns,
        ),
        buffer,
        (Namespace(NETNS, ("pasted",), dumps=dumps, files=files),),
        descriptors,
        {pid: ProcessFiles(comm=name.encode("utf-8", "replace")) for pid, name in names.items()},
        gaps=tuple(_gaps(moment.parts, sockets)),
        complete=False,
    )


def _descriptors(sockets: Sockets) -> Descriptors:
    """Return the holders that the texts name."""
    inode = sockets.columns["inode"]
    some = {(holder.pid, holder.fd, int(inode[holder.row])) for holder in sockets.holders}
    triples = sorted(triple for triple in some if triple[2])
    columns = np.array(triples, np.uint64).reshape(-1, 3)
    return Descriptors(
        columns[:, 0].astype(np.uint32),
        columns[:, 1].astype(np.uint32),
        columns[:, 2].copy(),
        pasted=True,
    )


def _gaps(parts: Sequence[Part], sockets: Sockets | None) -> list[Gap]:
    """Return what the texts do not tell, beside what a rule misses."""
    gaps = [
        Gap(
            "the text",
            "show connections that are not in it, those of other network namespaces among them",
            "`finwait record` on that machine",
            unentered=True,
        )
    ]
    unread: Counter[str] = Counter()
    for part in parts:
        unread.update(part.unread)
    gaps += [Gap("the text", f"{what}: {n}", "") for what, n in sorted(unread.items())]
    if sockets is not None and sockets.stateless:
        rows = "1 row" if sockets.stateless == 1 else f"{sockets.stateless} rows"
        gaps.append(
            Gap("the text", f"tell the state of {rows}", "the command line, or `ss` without `state STATE`")
        )
    return gaps
