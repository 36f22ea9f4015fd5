"""What a diagnosis says otherwise than a scenario expects: row by row, each with its program and descriptor.

The rows of a scenario are all of its connections, so a rule on any other row, or another rule, is a difference too.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from msgspec import Struct

from finwait.diagnosis.moves import Move
from finwait.table.sockets import address_text
from finwait.table.units import endpoint
from finwait.uapi import tcp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finwait.lab.scenario import Expected, Situation
    from finwait.session import Diagnosis

__all__ = ["Difference", "differences", "summary"]

_SHOWN = 3
Key = tuple[int, int, str, int, str, int]


class Difference(Struct, frozen=True):
    """A row whose primary cause is another one than expected."""

    row: str
    expected: str
    """The rule; "" for none."""
    found: str

    @property
    def missing(self) -> bool:
        """Whether a rule is expected: of what is retransmitted or waits, time may still show it."""
        return bool(self.expected)

    def __str__(self) -> str:
        return f"{self.row}: expected {self.expected or 'no rule'}, found {self.found or 'none'}"


def differences(situation: Situation, diagnosis: Diagnosis) -> list[Difference]:
    """Return what differs, missing rows first."""
    expected = {_key_of(row): row for row in situation.all if row.state != "CLOSE"}
    causes = _causes(diagnosis)
    names = {pid: process.comm for pid, process in diagnosis.view.processes.items()}
    names |= {actor.pid: actor.comm for actor in situation.lab.actors}
    result = [
        Difference(_described(row, names), row.rule, causes.get(key, ("", ""))[0])
        for key, row in expected.items()
        if row.rule != causes.get(key, ("", ""))[0]
    ]
    result += [
        Difference(f"{state} {_ends(key)}, which the scenario does not name", "", rule)
        for key, (rule, state) in causes.items()
        if key not in expected
    ]
    result += _other_moves(expected, diagnosis, names)
    result += _leaks(situation, diagnosis, names)
    return sorted(result, key=lambda difference: not difference.missing)


def summary(differs: Sequence[Difference]) -> str:
    """Return one line of the first of some differences, and how many more there are."""
    more = f"; and {len(differs) - _SHOWN} more" if len(differs) > _SHOWN else ""
    return "; ".join(map(str, differs[:_SHOWN])) + more


def _leaks(situation: Situation, diagnosis: Diagnosis, names: dict[int, str]) -> list[Difference]:
    """Return what differs of descriptors whose socket is in no table any more: counted for each program."""
    rule = "hidden-leak"
    expected = Counter(row.owners[0][0] for row in situation.expected if row.state == "CLOSE")
    counted: Counter[int] = Counter()
    for finding in diagnosis.findings:
        if finding.rule == rule:
            counted[finding.pids[0]] += finding.count
    return [
        Difference(
            f"descriptors of {names.get(pid, f'pid {pid}')} without a connection",
            f"{expected[pid]} × {rule}" if expected[pid] else "",
            f"{counted[pid]} × {rule}" if counted[pid] else "",
        )
        for pid in sorted(expected | counted)
        if expected[pid] != counted[pid]
    ]


def _key_of(row: Expected) -> Key:
    src, dst = (a.removeprefix("::ffff:") if "." in a else a for a in (row.src, row.dst))
    return (row.netns, row.protocol, src, row.sport, dst, row.dport)


def _key(diagnosis: Diagnosis, row: int) -> Key:
    s = diagnosis.view.sockets
    src, dst = (address_text(*(int(word) for word in s[name][row])) for name in ("src", "dst"))
    return (int(s.netns[row]), int(s.protocol[row]), src, int(s.sport[row]), dst, int(s.dport[row]))


def _causes(diagnosis: Diagnosis) -> dict[Key, tuple[str, str]]:
    """Return the primary cause of each row that has one, and its state."""
    state = diagnosis.view.sockets.state
    return {
        _key(diagnosis, row): (finding.rule, tcp.state_name(int(state[row])))
        for finding in diagnosis.findings
        for row in (finding.rows.tolist() if finding.primary else ())
    }


def _other_moves(
    expected: dict[Key, Expected], diagnosis: Diagnosis, names: dict[int, str]
) -> list[Difference]:
    """Return the rows of which something else in their program waits than expected, where a scenario says what."""
    stated = {key: row for key, row in expected.items() if row.move is not None}
    if not stated:
        return []
    names_of = (*Move,)
    moves_seen = {
        _key(diagnosis, row): names_of[move].value for row, move in enumerate(diagnosis.view.moves.tolist())
    }
    return [
        Difference(f"what waits for {_described(row, names)}", row.move or "", moves_seen.get(key, "no row"))
        for key, row in stated.items()
        if moves_seen.get(key) != row.move
    ]


def _described(row: Expected, names: dict[int, str]) -> str:
    holders = ", ".join(f"{names.get(pid, f'pid {pid}')} fd {fd}" for pid, fd in row.owners)
    return f"{holders or 'held by none'} ({row.state} {_ends(_key_of(row))})"


def _ends(key: Key) -> str:
    _, _, src, sport, dst, dport = key
    return f"{endpoint(src, str(sport))} → {endpoint(dst, str(dport))}"
