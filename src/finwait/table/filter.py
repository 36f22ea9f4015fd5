"""FILTER: the grammar of ``ss``, with finwait's own predicates in it.

One text is compiled three ways: to a mask of TCP states and to inet_diag bytecode, which the kernel applies
while it walks its tables, and to a numpy mask, which decides. What goes to the kernel may let too much
through and never too little, so a filter costs what it selects and means the same on a recording.

Theory of operation. `finwait.table.grammar` makes the text a tree of `And`, `Or`, `Not` over
`finwait.table.predicates`. `Not` is pushed down to the predicates. The mask of that tree is "known to be
true". For the kernel every predicate that it cannot decide becomes "true", which, negation being at the
leaves, can only let more rows through. States are not in the bytecode but in a mask of their own.

What this does not do: look anything up. Names of devices, cgroups, users, pods are compared with what the
caller knows about each row (`Context`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.errors import FilterError
from finwait.table import grammar
from finwait.table.patterns import glob
from finwait.table.predicates import (
    BC_JMP,
    BOUND_INACTIVE_BIT,
    CONTEXT,
    EVERY_STATE,
    OF_FINDINGS,
    Age,
    And,
    Context,
    Kernel,
    Known,
    Leaf,
    Node,
    Not,
    Number,
    Op,
    Or,
    Resolver,
    RowFacts,
    States,
    gather,
    leaves,
)
from finwait.table.schema import Mask
from finwait.table.sockets import SocketTable
from finwait.table.values import UNSET
from finwait.table.vocabulary import NAMED_STATES, PREDICATES, SERVICES
from finwait.uapi import tcp

__all__ = ["CONTEXT", "PREDICATES", "SERVICES", "Context", "Filter", "conjunction", "parse"]

_LONGEST: Final = 0xFFFF - 8  # a jump is a u16, and so is the length of the attribute that holds the code


def _push_not(node: Node, negated: bool = False) -> Node:
    """Return the tree without `Not`."""
    if isinstance(node, Not):
        return _push_not(node.part, not negated)
    if isinstance(node, And | Or):
        kind = (Or if isinstance(node, And) else And) if negated else type(node)
        return gather(kind, [_push_not(p, negated) for p in node.parts])
    return node.negated() if negated else node


def _cost(node: Node) -> int:
    return max((leaf.cost for leaf in leaves(node)), default=0)


def _matches(node: Node, facts: RowFacts, index: NDArray[np.intp]) -> Mask:
    """Return which of the rows in ``index`` match; costly predicates come last and see what is undecided."""
    if not isinstance(node, And | Or):
        assert isinstance(node, Leaf), "Not has been pushed down"
        return node.test(facts, index)
    every = isinstance(node, And)
    out = np.full(len(index), every)
    place = np.arange(len(index))
    for part in sorted(node.parts, key=_cost):
        if not len(place):
            break
        hits = _matches(part, facts, index[place])
        out[place] = hits
        place = place[hits if every else ~hits]
    return out


def _possible(node: Node, facts: RowFacts, index: NDArray[np.intp]) -> Mask:
    """Return which of the rows are not known not to match."""
    if isinstance(node, And | Or):
        every = isinstance(node, And)
        out = np.full(len(index), every)
        for part in node.parts:
            mask = _possible(part, facts, index)
            out = out & mask if every else out | mask
        return out
    assert isinstance(node, Leaf), "Not has been pushed down"
    if isinstance(node, Age):
        return node.test(facts, index) | node.unknown(facts, index)
    return ~node.negated().test(facts, index)


def _judge(node: Node, by: Callable[[Leaf], bool | None]) -> bool | None:
    """Return what a tree says of something that answers its leaves, as in the logic of Kleene."""
    if isinstance(node, And | Or):
        absorbing = isinstance(node, Or)
        verdicts = [_judge(part, by) for part in node.parts]
        if absorbing in verdicts:
            return absorbing
        return None if None in verdicts else not absorbing
    assert isinstance(node, Leaf), "Not has been pushed down"
    return by(node)


def _possible_states(node: Node) -> int:
    if isinstance(node, States):
        return node.states & EVERY_STATE
    if isinstance(node, And):
        states = EVERY_STATE
        for part in node.parts:
            states &= _possible_states(part)
        return states
    if isinstance(node, Or):
        states = 0
        for part in node.parts:
            states |= _possible_states(part)
        return states
    return EVERY_STATE


_FEW: Final = 4
"""A set of more states than this names none of them; ``state connected`` has nine."""


def _asks_for(node: Node, state: int) -> bool:
    if isinstance(node, And):
        return any(_asks_for(part, state) for part in node.parts)
    if isinstance(node, Or):
        return all(_asks_for(part, state) for part in node.parts)
    if isinstance(node, States):
        named = node.states & EVERY_STATE
        return not named >> state & 1 or named.bit_count() <= _FEW
    if isinstance(node, Number):
        return node.column in ("cookie", "inode") and node.op == "=" and node.value != 0
    if isinstance(node, Known):
        return node.name in ("rule", "also") and node.op == "=" and not {"*", "?"} & set(node.pattern)
    return False


class _Pushed(Struct, frozen=True):
    """A predicate that the kernel decides, and how it is told."""

    leaf: Leaf
    op: Op


class _Group(Struct, frozen=True):
    """And or Or of what the kernel decides."""

    kind: type[And | Or]
    parts: tuple[_Group | _Pushed, ...]

    def __str__(self) -> str:
        word = " and " if self.kind is And else " or "
        return word.join(f"( {p} )" if isinstance(p, _Group) else str(p.leaf) for p in self.parts)


_Code = _Group | _Pushed | bool
"""What goes to the kernel: code, or True for "all rows", or False for "none"."""


def _for_kernel(node: Node, kernel: Kernel) -> _Code:
    """Return the part of a tree without `Not` that the kernel can decide; every name is looked up once."""
    if isinstance(node, And | Or):
        kind = type(node)
        absorbing, neutral = (False, True) if kind is And else (True, False)
        parts: list[_Group | _Pushed] = []
        for part in node.parts:
            code = _for_kernel(part, kernel)
            if code is absorbing:
                return absorbing
            if code is not neutral:
                assert not isinstance(code, bool), "a bool is one of the two"
                parts.append(code)
        if not parts:
            return neutral
        return parts[0] if len(parts) == 1 else _Group(kind, tuple(parts))
    assert isinstance(node, Leaf), "Not has been pushed down"
    op = node.kernel(kernel)
    return op if isinstance(op, bool) else _Pushed(node, op)


class _Assembler:
    """Lays instructions out so that true falls through to the end and false jumps four bytes past it.

    The kernel takes "exactly at the end" for a match and "four past it" for none (``inet_diag_bc_run``),
    and its audit wants every jump to go forward to the start of an instruction. Labels are therefore
    placed as the code grows and turned into distances last.
    """

    def __init__(self) -> None:
        self.code: list[tuple[int, bytes, int]] = []  # code, argument, label of false
        self.size = 0
        self.places: list[int] = []

    def label(self) -> int:
        self.places.append(-1)
        return len(self.places) - 1

    def place(self, label: int) -> None:
        self.places[label] = self.size

    def add(self, code: int, argument: bytes, otherwise: int) -> None:
        self.code.append((code, argument, otherwise))
        self.size += 4 + len(argument)

    def node(self, node: _Group | _Pushed, otherwise: int) -> None:
        if isinstance(node, _Pushed):
            op = node.op
            if op.negated:
                skip = self.label()
                self.add(op.code, op.argument, skip)
                self.add(BC_JMP, b"", otherwise)
                self.place(skip)
            else:
                self.add(op.code, op.argument, otherwise)
        elif node.kind is And:
            for part in node.parts:
                self.node(part, otherwise)
        else:
            done = self.label()
            for part in node.parts[:-1]:
                following = self.label()
                self.node(part, following)
                self.add(BC_JMP, b"", done)
                self.place(following)
            self.node(node.parts[-1], otherwise)
            self.place(done)


def _assemble(code: _Code) -> bytes:
    """Return the bytes; empty for "all rows", and for code that is too long for the kernel."""
    if code is True:
        return b""
    assembler = _Assembler()
    fail = assembler.label()
    if code is False:
        assembler.add(BC_JMP, b"", fail)
    else:
        assembler.node(code, fail)
    assembler.places[fail] = assembler.size + 4
    if assembler.size > _LONGEST:
        return b""
    out = bytearray()
    for number, argument, otherwise in assembler.code:
        length = 4 + len(argument)
        out += struct.pack("=BBH", number, length, assembler.places[otherwise] - len(out)) + argument
    return bytes(out)


def _text(node: Node) -> str:
    if isinstance(node, And | Or):
        word = " and " if isinstance(node, And) else " or "
        return word.join(f"( {_text(p)} )" if isinstance(p, And | Or) else _text(p) for p in node.parts)
    if isinstance(node, Not):
        inner = _text(node.part)
        return f"not ( {inner} )" if isinstance(node.part, And | Or) else f"not {inner}"
    return str(node)


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed FILTER. ``str()`` gives it back in one spelling, which `parse` reads as an equal filter.

    Args:
        root: the tree of predicates.
        text: what was typed.
    """

    root: Node
    text: str = field(default="", compare=False)
    _flat: Node = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_flat", _push_not(self.root))

    def __str__(self) -> str:
        return _text(self.root)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The predicates, in the order in which they stand."""
        return tuple(leaves(self.root))

    @property
    def says_states(self) -> bool:
        """Whether the filter speaks of states at all; if it does not, the caller chooses a default."""
        return any(isinstance(leaf, States) for leaf in leaves(self.root))

    @property
    def states(self) -> int:
        """Bit mask of the TCP states that can match, for ``idiag_states`` (bit *n* for state *n*).

        ``BOUND_INACTIVE`` is in it only if the filter names it: asking for it costs the kernel a walk.
        """
        named = any(
            isinstance(leaf, States) and leaf.states & BOUND_INACTIVE_BIT for leaf in leaves(self.root)
        )
        return _possible_states(self._flat) & (EVERY_STATE if named else tcp.ALL_STATES)

    def asks_for(self, state: int) -> bool:
        """Return whether every row in a state that can match was asked for by name.

        That is by the state (alone or among a few), by a rule, or by the socket's cookie or inode: not by what
        merely does not exclude it, such as a port, ``held`` or ``state != time-wait``.
        """
        return _asks_for(self._flat, state)

    @property
    def needs(self) -> frozenset[str]:
        """Names out of `CONTEXT` that `mask` may ask the context for."""
        return frozenset().union(*(leaf.reads()[1] for leaf in leaves(self._flat)))

    @property
    def asks_rules(self) -> bool:
        """Whether rules must be applied before it can be judged."""
        return bool(self.needs & OF_FINDINGS)

    @property
    def columns(self) -> frozenset[str]:
        """Columns that `mask` looks at; a dump must ask for the attributes that carry them."""
        return frozenset().union(*(leaf.reads()[0] for leaf in leaves(self._flat)))

    def mask(self, table: SocketTable, context: Context | Mapping[str, Any] | None = None) -> Mask:
        """Return which rows are known to match.

        Args:
            table: the sockets.
            context: what else is known about them, at least what `needs` names. A value is asked for only
                if the columns leave a row undecided.

        Raises:
            ValueError: the context lacks a value that is needed, or has a wrong number of them.
        """
        return _matches(self._flat, RowFacts(table, context, {}), np.arange(len(table)))

    def possible(
        self, table: SocketTable, context: Context | Mapping[str, Any] | None, index: NDArray[np.intp]
    ) -> Mask:
        """Return which of the rows in ``index`` are not known to be excluded: those that match, and open ones.

        A row of which some age is known is not open: `age > 10m` asks for those that are certainly older.

        Raises:
            ValueError: see `mask`.
        """
        return _possible(self._flat, RowFacts(table, context, {}), index)

    def without(self, part: Leaf) -> Filter:
        """Return the FILTER without one of the predicates that it asks for at the same time."""
        parts = self.root.parts if isinstance(self.root, And) else (self.root,)
        return Filter(gather(And, [sibling for sibling in parts if sibling != part]))

    def judge(self, by: Callable[[Leaf], bool | None]) -> bool | None:
        """Return whether something matches that answers each predicate: None where that stays open."""
        return _judge(self._flat, by)

    def bytecode(
        self,
        *,
        ifindex: Resolver | None = None,
        cgroup_id: Resolver | None = None,
        net_admin: bool = False,
    ) -> bytes:
        """Return inet_diag bytecode that passes every matching row; empty when the kernel cannot help.

        It passes rows that do not match wherever the kernel cannot tell, so `mask` has the last word.

        Args:
            ifindex: name of a device in the namespace asked → its index, None if there is none.
            cgroup_id: path below the cgroup v2 mount point → its id, None if there is none. Not given
                (None) for kernels without ``INET_DIAG_BC_CGROUP_COND``, which refuse the whole request.
            net_admin: whether we hold CAP_NET_ADMIN over the namespace; without it the kernel refuses
                requests that filter by mark.
        """
        return _assemble(_for_kernel(self._flat, Kernel(ifindex, cgroup_id, net_admin)))

    def explain(
        self,
        *,
        ifindex: Resolver | None = None,
        cgroup_id: Resolver | None = None,
        net_admin: bool = False,
    ) -> str:
        """Return a few lines that say which part runs in the kernel; arguments as in `bytecode`."""
        code = _for_kernel(self._flat, Kernel(ifindex, cgroup_id, net_admin))
        if code is False:
            pushed = "nothing"
        elif code is True:
            pushed = "everything"
        elif not _assemble(code):
            pushed = "everything (the filter is too long for it)"
        else:
            pushed = f"at least {code.leaf if isinstance(code, _Pushed) else code}"
        states = self.states
        names = [tcp.state_name(n) for n in sorted(NAMED_STATES) if states >> n & 1]
        shown = "any" if states & tcp.ALL_STATES == tcp.ALL_STATES else ", ".join(names) or "none"
        lines = [
            f"states asked for:    {shown}",
            f"kept by the kernel:  {pushed}",
            f"then checked:        {_text(self.root) or 'nothing, all rows match'}",
        ]
        if self.needs:
            lines.append(f"also looked up:      {', '.join(sorted(self.needs))}")
        return "\n".join(lines)


def conjunction(first: Filter | None, second: Filter) -> Filter:
    """Return the FILTER that selects what both select; a part that both have is named once."""
    if first is None:
        return second
    parts: dict[Node, None] = {}
    for operand in (first, second):
        parts |= dict.fromkeys(operand.root.parts if isinstance(operand.root, And) else (operand.root,))
    joined = Filter(gather(And, parts))
    return Filter(joined.root, str(joined))


def parse(
    text: str | Sequence[str],
    *,
    services: Mapping[str, int] = SERVICES,
    rules: Sequence[str] = (),
    variants: Callable[[], Mapping[str, int]] | None = None,
) -> Filter:
    """Read a FILTER.

    Args:
        text: the filter, or the words of a command line, which are joined by spaces. No words select everything; a
            blank word among them, which an unset variable of a script leaves behind, is an error.
        services: names of ports.
        rules: names of the rules there are; with them, a misspelt rule is an error.
        variants: gives how many variants each rule has; with it, a number that none has is an error.

    Raises:
        FilterError: it does not parse; with the column of the mistake and, where there is one, a hint.
    """
    words = [text] if isinstance(text, str) and text else list(text)
    joined = re.sub(r"\s", " ", " ".join(words))  # so that the caret of an error stands under its column
    for k, word in enumerate(words):
        if not word.strip():
            place = sum(len(earlier) + 1 for earlier in words[:k])
            raise FilterError(joined, place, "this word is empty", hint=UNSET)
    root = grammar.read(joined, services, rules, variants)
    if variants is not None:
        _check_variants(root, variants, joined)
    return Filter(root, joined)


def _check_variants(node: Node, variants: Callable[[], Mapping[str, int]], text: str) -> None:
    """Refuse a number that none of the rules has that are asked for at the same time.

    Raises:
        FilterError: there is one.
    """
    for part in node.parts if isinstance(node, And | Or) else ():
        _check_variants(part, variants, text)
    flat = _push_not(node)
    known = [leaf for leaf in leaves(flat) if isinstance(leaf, Known)] if isinstance(node, And) else []
    asked = [leaf for leaf in known if leaf.name == "variant" and leaf.op == "=" and leaf.pattern != "0"]
    if not asked or not any(leaf.name == "rule" for leaf in known):
        return
    counts = variants()

    def of(rule: str) -> bool:
        def by(leaf: Leaf) -> bool | None:
            if not isinstance(leaf, Known) or leaf.name != "rule":
                return None
            return bool(glob(leaf.pattern)(rule)) == (leaf.op == "=")

        return _judge(flat, by) is not False

    meant = {rule: n for rule, n in counts.items() if of(rule)}
    for leaf in asked:
        if meant and all(int(leaf.pattern) > n for n in meant.values()):
            raise FilterError(
                text,
                _place(text, leaf.pattern),
                f"{_rules_text(meant)} no variant {leaf.pattern}",
                hint="variants: 0 (none)"
                + "".join(f"; {rule} 1{f' to {n}' if n > 1 else ''}" for rule, n in meant.items() if n),
            )


def _rules_text(rules: Collection[str]) -> str:
    if len(rules) == 1:
        return f"rule {next(iter(rules))} has"
    return f"rules {', '.join(rules)} have" if len(rules) <= _NAMED else f"{len(rules)} rules have"


_NAMED: Final = 4
"""So many rules are named in an error."""


def _place(text: str, number: str) -> int:
    """Return where a FILTER names a variant."""
    match = re.search(rf"(?i)variant\s*\S*\s*0*{number}(?!\d)", text)
    return match.end() - len(number) if match else 0
