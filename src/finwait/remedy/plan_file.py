"""A plan from a file, perhaps one that somebody edited. What writes it is `finwait.report.plan`.

Of a file only identities, means and facts are taken: its texts must be those of `finwait.remedy.plan` for those facts,
and what is shown before the act is made anew from a look (`finwait.remedy.making.again`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from finwait.diagnosis.catalogue import NAMES
from finwait.diagnosis.rule import Means
from finwait.errors import FinwaitError, Refused
from finwait.remedy.plan import CLASS, SEES, End, Left, Plan, Refusal, Sees, Step
from finwait.remedy.recorded import unheld, unsound
from finwait.uapi.inet_diag import FAMILY_NAMES, PROTOCOL_NAMES

__all__ = ["decode"]


class _WrittenOwner(msgspec.Struct, frozen=True):
    pid: int
    fd: int
    comm: str


class _WrittenEnd(msgspec.Struct, frozen=True):
    """A connection end as a plan file has it (`finwait.report.shape.connection`)."""

    netns: int
    protocol: Literal["tcp", "mptcp"]
    family: Literal["inet", "inet6"]
    src: str
    sport: int
    dst: str
    dport: int
    state: str
    cookie: str
    ifindex: int = 0

    def identity(self) -> dict[str, Any]:
        """Return what `End` and `Step` have of it."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in End.__struct_fields__}
        return fields | {"protocol": _PROTOCOLS[self.protocol], "family": _FAMILIES[self.family]}


class _WrittenStep(_WrittenEnd, frozen=True, kw_only=True):
    means: Means
    remedy_class: str = msgspec.field(name="class")
    rule: str
    inode: int
    bytes_received: int
    bytes_acked: int
    owners: tuple[_WrittenOwner, ...] | None
    sees: Sees
    peer_told: str
    stays: str = ""
    other_end: _WrittenEnd | None = None
    selected: _WrittenEnd | None = None
    note: str = ""
    gone: bool = False
    pair: int | None = None

    def step(self) -> Step:
        names = (
            "means",
            "rule",
            "inode",
            "bytes_received",
            "bytes_acked",
            "sees",
            "peer_told",
            "stays",
            "note",
            "gone",
        )
        return Step(
            **self.identity(),
            **{name: getattr(self, name) for name in names},
            kind=self.remedy_class,
            pair=self.pair or 0,
            holders=tuple((o.pid, o.fd, o.comm) for o in self.owners or ()),
            holders_known=self.owners is not None,
            other=None if self.other_end is None else End(**self.other_end.identity()),
            selected=None if self.selected is None else End(**self.selected.identity()),
        )


class _WrittenLeft(_WrittenEnd, frozen=True, kw_only=True):
    guard: str
    reason: str
    wait_ms: int = 0


class _WrittenPlan(msgspec.Struct, frozen=True):
    made_unix_ns: int
    boot_id: str
    steps: tuple[_WrittenStep, ...]
    left: tuple[_WrittenLeft, ...] = ()
    advice: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    apiVersion: str = "finwait/v1"  # noqa: N815 - the spelling of the contract
    kind: str = "ClearPlan"

    def plan(self) -> Plan:
        left_alone = (
            Left(End(**entry.identity()), entry.guard, entry.reason, entry.wait_ms) for entry in self.left
        )
        return Plan(
            self.made_unix_ns,
            self.boot_id,
            tuple(step.step() for step in self.steps),
            tuple(left_alone),
            self.advice,
            self.refused,
        )


_PROTOCOLS: Final = {name: number for number, name in PROTOCOL_NAMES.items()}

_FAMILIES: Final = {name: number for number, name in FAMILY_NAMES.items()}


def decode(data: bytes, name: str = "the plan") -> Plan:
    """Read a plan again, perhaps one that somebody edited.

    Args:
        data: the file.
        name: of the file, for errors.

    Raises:
        FinwaitError: it is not one; the message begins with the file and the line.
        Refused: it names a listener.
    """
    try:
        written = msgspec.json.decode(data, type=_WrittenPlan)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        line = _line_of_error(data, str(error))
        raise FinwaitError(f"{name}:{line}: not a plan of `finwait clear -o json`: {error}") from None
    if written.kind != "ClearPlan" or written.apiVersion != "finwait/v1":
        where = f"{name}:{_line_of(data, ['kind'])}"
        raise FinwaitError(f"{where}: not a plan of this finwait: {written.apiVersion} {written.kind}")
    plan = written.plan()
    for k, step in enumerate(plan.steps):
        if (wrong := _wrong(step)) is not None:
            where = f"{name}:{_line_of(data, ['steps', k])}"
            if step.state == "LISTEN":
                raise Refused("listener", f"{where}: {wrong}")
            raise FinwaitError(f"{where}: {wrong}")
    _once(plan, data, name)
    return plan


def _once(plan: Plan, data: bytes, name: str) -> None:
    """Refuse a plan that names a connection twice: it would be counted, and acted upon, twice.

    Raises:
        FinwaitError: it does; names both steps.
    """
    seen: dict[tuple[int, int], int] = {}
    for k, step in enumerate(plan.steps):
        first = seen.setdefault((step.netns, int(step.cookie, 16)), k)
        if first != k:
            lines = [_line_of(data, ["steps", n]) for n in (first, k)]
            error = FinwaitError(
                f"{name}:{lines[1]}: names a connection a second time, cookie {step.cookie} in netns "
                f"{step.netns}; the first is in line {lines[0]}"
            )
            error.hint = "remove one of the two steps"
            raise error


def _wrong(step: Step) -> str | None:
    """Return what is wrong with a step that was read from a file, or None."""
    if step.state == "LISTEN":
        return "the plan names a listener"
    for end in (step, step.other, step.selected):
        if end is not None and (wrong := unsound(end)) is not None:
            return wrong
    if (wrong := unheld(step.inode, step.holders)) is not None:
        return wrong
    if step.kind != CLASS[step.means]:
        return f"`{step.means}` is {CLASS[step.means]}, but the plan says otherwise"
    if step.peer_told != SEES[step.sees]:
        return (
            f"the description of what the peer sees is not `{SEES[step.sees]}` (edited, or from another "
            "version)"
        )
    if step.rule and step.rule not in NAMES:
        return "it names an unknown rule"
    return None


def _line_of_error(data: bytes, message: str) -> int:
    """Return the line that msgspec's message points at, by a byte or by a path."""
    if at := re.search(r"\(byte (\d+)\)", message):
        return data.count(b"\n", 0, int(at[1])) + 1
    if at := re.search(r"`\$(\S*)`", message):
        words = re.findall(r"\[(\d+)\]|\.?([^.\[\]]+)", at[1])
        return _line_of(data, [int(number) if number else word for number, word in words])
    return data.count(b"\n") + 1


_TOKEN: Final = re.compile(rb'"(?:\\.|[^"\\])*"|[{}\[\]:,]', re.DOTALL)


def _line_of(data: bytes, path: Sequence[str | int]) -> int:
    """Return the line (from 1) on which the value at a path of well-formed JSON begins, as far as it is there."""
    target, line = list(path), 1
    position: list[str | int] = []
    pending = b""
    for token in _TOKEN.finditer(data):
        word = token[0]
        if word in b"{[":
            if position and position == target[: len(position)]:
                line = data.count(b"\n", 0, token.start()) + 1
            position.append("" if word == b"{" else 0)
        elif word in b"}]":
            if position:
                position.pop()
        elif word == b":" and position:
            position[-1] = pending[1:-1].decode("utf-8", "replace")
        elif word == b"," and position and isinstance(position[-1], int):
            position[-1] += 1
        pending = word
        if position == target:
            begins = len(data) - len(data[token.end() :].lstrip())
            return data.count(b"\n", 0, begins) + 1
    return line
