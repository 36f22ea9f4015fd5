"""What recognisers made of texts → the `Observation` that a look at the kernel gives, or one for each moment.

Outputs are of one moment, and none takes the place of another: a row that any of them has is there. Only where the
same command was seen to be typed again (or the texts or their times are two), and shows most of the connections that it
had shown before, another moment begins. Texts of two machines (their prompts name them, or no local address is the
same) are two network namespaces of one look, so that both ends of a connection are joined. What has no column becomes a
gap: a text never tells everything, and what it does not tell is unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from finwait.errors import Gap
from finwait.pasted.encode import encoded
from finwait.pasted.joined import JoinedSockets, ends_of, joined, names_of
from finwait.pasted.recognise import read_section, sections
from finwait.pasted.rows import TextPart
from finwait.uapi.cluster import NO_NAMES, ClusterNames
from finwait.uapi.observation import (
    UNTOLD_FD,
    Descriptors,
    Dump,
    Facts,
    Namespace,
    Observation,
    ProcessFiles,
)

__all__ = ["PastedText", "TextReading", "observations"]

NETNS: Final = 1
"""Stands for the inode of the first network namespace: texts do not tell it."""


class PastedText(Struct, frozen=True):
    """One text: its lines, what it is called, and when it was made."""

    name: str
    lines: list[str]
    unix_ns: int = 0


class PastedOutput(Struct):
    """What one command printed: what tells it from that of another, and what shows that it is a later one."""

    key: tuple[str, str, str]
    text: int
    typed: bool
    unix_ns: int
    part: TextPart

    def follows(self, before: PastedOutput) -> bool:
        """Return whether it is what the same command shows at a later moment."""
        now, then = self.part.rows, before.part.rows
        if self.key != before.key or now is None or then is None or not len(then) or not len(now):
            return False
        timed = bool(self.unix_ns and before.unix_ns and self.unix_ns != before.unix_ns)
        if not (timed or self.text != before.text or (self.typed and before.typed)):
            return False
        old = ends_of(then)
        if not len(old):
            return False
        return 2 * int(np.isin(old, ends_of(now)).sum()) >= len(old)


class PastedMoment(Struct):
    """What was read of one moment, at one place."""

    unix_ns: int = 0
    outputs: list[PastedOutput] = field(default_factory=list)

    @property
    def parts(self) -> list[TextPart]:
        """What the outputs say."""
        return [output.part for output in self.outputs]

    @property
    def has_rows(self) -> bool:
        """Whether any text of it lists sockets, or entries of connection tracking."""
        return any(part.rows is not None or part.flows for part in self.parts)


class PastedPlace(Struct):
    """One machine, or one network namespace of it: what was read there, moment by moment."""

    hosts: set[str] = field(default_factory=set)
    addresses: set[tuple[int, int]] = field(default_factory=set)
    """Local addresses of its connections."""
    moments: list[PastedMoment] = field(default_factory=list)

    @property
    def parts(self) -> list[TextPart]:
        """All that was read there."""
        return [part for moment in self.moments for part in moment.parts]

    @property
    def settings(self) -> dict[str, bytes]:
        """What was read of settings: they hold for all moments."""
        return {n: data for part in self.parts for n, data in part.files.items() if n.startswith("sys/")}


class TextReading(Struct):
    """What was made of texts."""

    looks: tuple[Observation, ...]
    labels: dict[str, dict[int, str]]
    """For each text, what each of its lines was read as, by number."""
    recognised: Counter[str]
    """How many lines each recogniser knew."""
    texts: tuple[PastedText, ...]
    notes: tuple[str, ...]
    """What the texts say that no column has."""


def observations(texts: Sequence[PastedText]) -> TextReading:
    """Return the looks that texts make, the earliest first; none where nothing is recognised."""
    labels: dict[str, dict[int, str]] = {}
    known: Counter[str] = Counter()
    places: list[PastedPlace] = []
    for number, text in enumerate(texts):
        outputs, labels[text.name], unknown = sections(text.lines)
        parts = [read_section(section) for section in outputs]
        if unknown and parts:
            parts[-1].unread["read lines that look like rows, of no tool that is known"] = unknown
        place = None
        for section, part in zip(outputs, parts, strict=True):
            known[section.name] += len(section.numbers)
            place = _place(places, section.host, part, place)
            when = section.unix_ns or text.unix_ns
            _sort_in(place.moments, PastedOutput(section.key, number, section.typed, when, part))
    for place in places:
        if len(place.moments) > 1 and all(moment.unix_ns for moment in place.moments):
            place.moments.sort(key=lambda moment: moment.unix_ns)
    notes = tuple(dict.fromkeys(note for place in places for part in place.parts for note in part.notes))
    return TextReading(_looks(places), labels, known, tuple(texts), notes)


def _place(places: list[PastedPlace], host: str, part: TextPart, last: PastedPlace | None) -> PastedPlace:
    """Return where a part was read: at the host that is named, else where its addresses are local, else as the last.

    What is called alike and shares no local address is another place all the same: containers of one machine are.
    """
    addresses = part.rows.local_addresses() if part.rows is not None else set()
    fitting = [
        place
        for place in places
        if (not host or not place.hosts or host in place.hosts)
        and not (addresses and place.addresses and not addresses & place.addresses)
    ]
    named = [place for place in fitting if host and host in place.hosts]
    shared = [place for place in named or fitting if addresses & place.addresses]
    before = [last] if last is not None and last in fitting else []
    place = next(iter((*shared, *named, *before, *fitting)), None)
    if place is None:
        place = PastedPlace()
        places.append(place)
    place.addresses |= addresses
    place.hosts |= {host} if host else set()
    return place


def _sort_in(moments: list[PastedMoment], output: PastedOutput) -> None:
    """Add an output to the moment that it belongs to: a new one where its command shows what it has become."""
    # Where other commands listed sockets as well, what they showed must not be left behind.
    alone = bool(moments) and all(o.key == output.key for o in moments[-1].outputs if o.part.rows is not None)
    if not moments or (alone and any(output.follows(before) for before in moments[-1].outputs)):
        moments.append(PastedMoment(output.unix_ns))
    now = moments[-1]
    now.unix_ns = now.unix_ns or output.unix_ns
    now.outputs.append(output)


def _looks(places: Sequence[PastedPlace]) -> tuple[Observation, ...]:
    """Return one look for each moment of which every place with connections has an output, the last ones.

    An output that stood for two moments would say that nothing moved in between.
    """
    of_places = [[m for m in place.moments if m.has_rows] for place in places]
    count = min((len(moments) for moments in of_places if moments), default=1 if places else 0)
    last = [
        moments[-count:] or place.moments[-1:] * count
        for place, moments in zip(places, of_places, strict=True)
    ]
    return tuple(_look(places, [moments[k] for moments in last]) for k in range(count))


def _look(places: Sequence[PastedPlace], moments: Sequence[PastedMoment]) -> Observation:
    buffers: list[NDArray[np.uint8]] = []
    spaces: list[Namespace] = []
    triples: set[tuple[int, int, int]] = set()
    gaps: list[Gap] = [_NOT_SHOWN]
    taken: set[int] = set()
    at = 0
    for number, (place, moment) in enumerate(zip(places, moments, strict=True), NETNS):
        settings = place.settings
        sockets = joined(moment.parts, settings, taken)
        files = dict(settings)
        for part in moment.parts:
            files |= {name: data for name, data in part.files.items() if not name.startswith("sys/")}
        dumps: list[Dump] = []
        if sockets is not None:
            data, dumps = encoded(sockets.columns, sockets.missing, sockets.src, sockets.dst, at)
            at += len(data)
            buffers.append(data)
            triples |= _descriptors(place.parts, sockets)
        if flows := [flow for part in moment.parts for flow in part.flows]:
            data, dump = _entries(flows, at)
            at += len(data)
            buffers.append(data)
            dumps.append(dump)
        gaps += _gaps(moment.parts, sockets)
        name = " and ".join(sorted(place.hosts)) or ("pasted" if len(places) == 1 else f"pasted {number}")
        spaces.append(Namespace(number, (name,), dumps=tuple(dumps), files=files))
    return _assembled(places, moments, buffers, spaces, triples, gaps)


def _assembled(
    places: Sequence[PastedPlace],
    moments: Sequence[PastedMoment],
    buffers: Sequence[NDArray[np.uint8]],
    spaces: Sequence[Namespace],
    triples: set[tuple[int, int, int]],
    gaps: Sequence[Gap],
) -> Observation:
    everything = [part for place in places for part in place.parts]
    when = max((moment.unix_ns for moment in moments), default=0)
    hosts = [host for place in places for host in sorted(place.hosts)]
    pods = {pod.uid: pod for part in everything for pod in part.pods}
    columns = np.array(sorted(triples), np.uint64).reshape(-1, 3)
    name = " and ".join(hosts) or "pasted text"
    return Observation(
        Facts(hostname=name, unix_ns=when, boottime_ns=when, boottime_end_ns=when),
        np.concatenate(buffers) if buffers else np.empty(0, np.uint8),
        tuple(spaces),
        Descriptors(
            columns[:, 0].astype(np.uint32),
            columns[:, 1].astype(np.uint32),
            columns[:, 2].copy(),
            pasted=True,
        ),
        {pid: ProcessFiles(comm=name.encode("utf-8", "replace")) for pid, name in _names(places).items()},
        gaps=tuple(gaps),
        complete=False,
        names=ClusterNames(pods=tuple(pods.values()), as_of={"pods": when / 1e9 or 1.0})
        if pods
        else NO_NAMES,
    )


def _names(places: Sequence[PastedPlace]) -> dict[int, str]:
    """Return the names of processes; one pid may be two processes, of two machines."""
    names: dict[int, dict[str, None]] = {}
    for place in places:
        for pid, several in names_of(place.parts).items():
            names.setdefault(pid, {}).update(several)
    return {pid: " or ".join(several) for pid, several in names.items()}


def _entries(flows: Sequence[bytes], at: int) -> tuple[NDArray[np.uint8], Dump]:
    """Return connection tracking entries as datagrams, each of one entry."""
    starts, ends = [], []
    data = bytearray()
    for flow in flows:
        starts.append(at + len(data))
        data += flow
        ends.append(at + len(data))
        data += bytes(-len(data) % 8)
    return np.frombuffer(bytes(data), np.uint8), Dump("conntrack", tuple(starts), tuple(ends))


def _descriptors(parts: Sequence[TextPart], sockets: JoinedSockets) -> set[tuple[int, int, int]]:
    """Return (pid, fd, inode) of the holders that texts name."""
    inode = sockets.columns["inode"]
    known = set(inode.tolist())
    moved = sockets.moved
    numbers = {(pid, fd, moved.get(number, number)) for part in parts for pid, fd, number in part.descriptors}
    listed = {triple for triple in numbers if triple[2] in known}
    named = {(holder.pid, holder.fd, int(inode[holder.row])) for holder in sockets.holders}
    # A process whose descriptor one text numbers is not named once more because another does not.
    numbered = {(pid, number) for pid, fd, number in named | listed if fd != UNTOLD_FD}
    return listed | {t for t in named if t[2] and (t[1] != UNTOLD_FD or (t[0], t[2]) not in numbered)}


_NOT_SHOWN: Final = Gap(
    "the text",
    "show connections that are not in it, those of other network namespaces among them",
    "`finwait record` on that machine",
    unentered=True,
)


def _gaps(parts: Sequence[TextPart], sockets: JoinedSockets | None) -> list[Gap]:
    """Return what the texts do not tell, beside what a rule misses."""
    unread: Counter[str] = Counter()
    for part in parts:
        unread.update(part.unread)
    gaps = [Gap("the text", f"{doing}: {n}", "") for doing, n in sorted(unread.items())]
    if sockets is not None and sockets.stateless:
        rows = "1 row" if sockets.stateless == 1 else f"{sockets.stateless} rows"
        needs = "the command line, or `ss` without `state STATE`"
        gaps.append(Gap("the text", f"tell the state of {rows}", needs))
    return gaps
