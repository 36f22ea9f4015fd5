"""FILTER over changes of state: what of it the kernel decides, what can be judged at all, and of which rows.

A change of state is not a socket. The event carries addresses, ports and both states; a look at the socket, some time
later, adds what does not change in its life (namespace, user, cgroup, cookie). What does change, such as a queue or a
timer, nobody can tell for the moment of the event any more, so a FILTER that asks for it is refused (`refusal`) rather
than answered with what happens to be there.

Of a row that was never looked up, because its socket was gone before the look, `judge` says neither yes nor no. That is
its difference from `finwait.table.filter.Filter.mask`, which knows "known to be true" and nothing else: who counts what
could not be judged needs "known to be false" too.

What goes to the kernel may let too much through and never too little. Only ports are constant over the life of a
connection *and* numbers that the trace filter can compare; states are not, because the time in a state needs the
transition that began it. A port that the kernel has not chosen yet reads 0 in the first event of a connection, so 0
always passes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.errors import FilterError
from finwait.table.filter import Filter
from finwait.table.predicates import (
    OF_FINDINGS,
    And,
    Autobound,
    Host,
    Known,
    Leaf,
    Mark,
    Node,
    Not,
    Number,
    Or,
    Port,
    RowFacts,
    Text,
    User,
    leaves,
)
from finwait.table.schema import Mask
from finwait.table.sockets import SCHEMA, SocketTable

__all__ = [
    "JUDGED",
    "asks_for_devices",
    "asks_for_holders",
    "asks_for_namespaces",
    "beyond_the_event",
    "by_the_event",
    "in_every_dump",
    "judge",
    "kernel_filter",
    "may_be_in",
    "only_ports_and_hosts",
    "refusal",
]

_BASE: Final = "protocol == 6"
_LONGEST: Final = 2000  # the file takes a page; longer than this is not worth the kernel's time either
_OPS: Final = {"=": "==", "!=": "!=", "<": "<", ">": ">", "<=": "<=", ">=": ">="}

_TOLD: Final = frozenset({"state", "sport", "dport", "src", "dst", "family", "protocol"})
"""Columns that every event carries."""
_LASTING: Final = frozenset({"netns", "ifindex", "cookie", "inode", "uid", "cgroup_id"})
"""Columns that a look adds and that stay the same for the life of a socket."""
_AROUND: Final = frozenset({"pid", "comm", "cgroup", "pod", "container", "user", "netns", "dev"})
"""What else is found out about a row."""
_AGES: Final = frozenset({"age_at_least_s", "age_at_most_s"})
_DIAGNOSED: Final = OF_FINDINGS
JUDGED: Final = (
    "state", "exclude", "sport", "dport", "src", "dst", "family", "age", "netns", "pid", "comm", "user", "uid",
    "cgroup", "cgroup_id", "pod", "container", "dev", "ifindex", "cookie", "inode", "protocol",
)  # fmt: skip
"""Predicates that changes of state can be judged by; the rest needs `--stuck`, or a look."""


def kernel_filter(row_filter: Filter | None) -> str:
    """Return the filter for ``sock:inet_sock_set_state`` that passes every transition of what is wanted."""
    text = _compile(row_filter.root, negated=False) if row_filter is not None else ""
    if not text or len(text) > _LONGEST:
        return _BASE
    return f"{_BASE} && {text}"


def only_ports_and_hosts(node: Node) -> bool:
    """Whether nothing but ports and addresses decides, which minisockets have as well as full sockets."""
    if isinstance(node, And | Or):
        return all(only_ports_and_hosts(part) for part in node.parts)
    if isinstance(node, Not):
        return only_ports_and_hosts(node.part)
    return isinstance(node, Port | Host)


def by_the_event(row_filter: Filter | None) -> bool:
    """Whether the events alone decide: ports, addresses and states."""
    return row_filter is None or (row_filter.columns <= _TOLD and not row_filter.needs)


def beyond_the_event(row_filter: Filter) -> tuple[str, ...]:
    """Return what a FILTER asks for that no event tells, in the words of the FILTER."""
    terms: dict[str, None] = {}
    for leaf in row_filter.leaves:
        columns, needs = leaf.reads()
        if needs or not columns <= _TOLD:
            terms["age" if needs & _AGES else "user" if isinstance(leaf, User) else _name(leaf)] = None
    return tuple(terms)


_OF_THE_DUMP: Final = frozenset(
    column.name for column in SCHEMA if column.source.startswith("inet_diag_msg")
) | {"netns"}
"""Columns that every answer of the kernel has, without attributes."""


def in_every_dump(row_filter: Filter) -> bool:
    """Whether a dump without attributes decides, with the names of the namespaces."""
    return row_filter.columns <= _OF_THE_DUMP and not row_filter.needs - {"netns"}


def asks_for_namespaces(row_filter: Filter) -> bool:
    """Whether a FILTER asks for network namespaces."""
    return "netns" in row_filter.columns | row_filter.needs


def may_be_in(row_filter: Filter, inode: int, names: Collection[str]) -> bool:
    """Whether a FILTER may select something in a network namespace.

    Args:
        row_filter: the FILTER.
        inode: of the namespace.
        names: by which people call it.
    """

    def by(leaf: Leaf) -> bool | None:
        if isinstance(leaf, Number) and leaf.column == "netns" and leaf.op in ("=", "!="):
            return (leaf.value == inode) is (leaf.op == "=")
        if isinstance(leaf, Known) and leaf.name == "netns":
            return leaf.matches_any(names) is (leaf.op == "=")
        return None

    return row_filter.judge(by) is not False


def asks_for_devices(row_filter: Filter | None) -> bool:
    """Whether a FILTER asks for interfaces by name."""
    return row_filter is not None and "dev" in row_filter.columns | row_filter.needs


def asks_for_holders(row_filter: Filter | None) -> bool:
    """Whether a FILTER asks for processes."""
    return row_filter is not None and bool(row_filter.needs & {"pid", "comm"})


def _name(leaf: Leaf) -> str:
    if isinstance(leaf, Autobound):
        return "autobound"
    if isinstance(leaf, Mark):
        return "fwmark"
    if isinstance(leaf, Known):
        return leaf.name
    assert isinstance(leaf, Number | Text), "the others are judged"
    if leaf.column == "inode":
        return "held"
    return leaf.column


_SPELLINGS: Final = {"held": ("held", "orphan", "inode"), "fwmark": ("fwmark", "mark")}


def _judged(leaf: Leaf, *, stuck: bool) -> bool:
    columns, needs = leaf.reads()
    if isinstance(leaf, User):
        return True
    if needs - (_AROUND | _AGES):
        return False
    if stuck:
        return True
    if isinstance(leaf, Number) and leaf.column == "inode" and not leaf.value:
        return False  # whether it is held: a socket can be let go between its change and the look
    return columns <= _TOLD | _LASTING


def refusal(row_filter: Filter | None, *, stuck: bool = False) -> FilterError | None:
    """Return why a FILTER cannot be used on changes of state, None if it can.

    Args:
        row_filter: the FILTER.
        stuck: it selects sockets of a look, which has every column, and not changes of state.
    """
    if row_filter is None:
        return None
    for leaf in row_filter.leaves:
        if _judged(leaf, stuck=stuck):
            continue
        name = _name(leaf)
        words = "|".join(map(re.escape, _SPELLINGS.get(name, (name,))))
        match = re.search(rf"\b({words})\b", row_filter.text, re.IGNORECASE)
        shown, column = (match[0], match.start()) if match else (name, 0)
        if name in OF_FINDINGS:
            why, other = "it needs a diagnosis", "`finwait check` and `finwait top`"
        elif name == "autobound":
            why, other = (
                "the kernel does not report it for a socket",
                "`ss`, which asks the kernel for a selection",
            )
        else:
            why, other = (
                "it may have changed since",
                "`finwait trace --stuck`, `finwait list` and `finwait check`",
            )
        can = "all other predicates can be used" if stuck else f"`trace` can judge {', '.join(JUDGED)}"
        return FilterError(
            row_filter.text, column, f"`trace` cannot judge `{shown}`: {why}", hint=f"{other} can; {can}"
        )
    return None


def judge(
    row_filter: Filter, table: SocketTable, known: Mapping[str, Mask], context: Mapping[str, Any]
) -> tuple[Mask, Mask]:
    """Return which rows are known to match and which are known not to.

    Args:
        row_filter: the FILTER.
        table: the rows as sockets.
        known: of columns that not every row has, which rows have it; of ``pid`` and ``comm``, of which rows every
            value is in the context. Where it is not, a value that is there counts and one that is not there may be.
        context: as `Filter.mask` takes it.
    """
    return _judge(row_filter.root, False, RowFacts(table, context, {}), known, np.arange(len(table)))


def _judge(
    node: Node, negated: bool, facts: RowFacts, known: Mapping[str, Mask], index: NDArray[np.intp]
) -> tuple[Mask, Mask]:
    if isinstance(node, Not):
        return _judge(node.part, not negated, facts, known, index)
    if not isinstance(node, And | Or):
        return _test(node.negated() if negated else node, facts, known, index)
    every = isinstance(node, And) is not negated
    yes, no = np.full(len(index), every), np.full(len(index), not every)
    place = np.arange(len(index))
    for part in sorted(node.parts, key=_cost):
        if not len(place):
            break
        one_yes, one_no = _judge(part, negated, facts, known, index[place])
        if every:
            yes[place] &= one_yes
            no[place] = one_no
            place = place[~one_no]
        else:
            yes[place] = one_yes
            no[place] &= one_no
            place = place[~one_yes]
    return yes, no


def _cost(node: Node) -> int:
    return max((leaf.cost for leaf in leaves(node)), default=0)


def _test(
    leaf: Leaf, facts: RowFacts, known: Mapping[str, Mask], index: NDArray[np.intp]
) -> tuple[Mask, Mask]:
    if isinstance(leaf, User):  # whether the uid is known is told by `known`, not by the state of the event
        leaf = Number("uid", leaf.op, leaf.uid)
    columns, needs = leaf.reads()
    sure = np.ones(len(index), np.bool_)
    for name in (*columns, *needs):
        if name in known:
            sure &= known[name][index]
    yes, no = leaf.test(facts, index), leaf.negated().test(facts, index)
    if not isinstance(leaf, Known) or leaf.name not in ("pid", "comm"):
        return yes & sure, no & sure
    # One that is seen to match matches, whoever else there may be.
    return (yes, no & sure) if leaf.op == "=" else (yes & sure, no)


def _compile(node: Node, *, negated: bool) -> str:
    """Return an expression; empty when every transition may pass."""
    if isinstance(node, Not):
        return _compile(node.part, negated=not negated)
    if isinstance(node, And | Or):
        parts = [_compile(part, negated=negated) for part in node.parts]
        if isinstance(node, And) != negated:
            kept = [part for part in parts if part]
            return f"({' && '.join(kept)})" if len(kept) > 1 else "".join(kept)
        if not parts or not all(parts):
            return ""
        return f"({' || '.join(parts)})" if len(parts) > 1 else parts[0]
    if isinstance(node, Port):
        leaf = node.negated() if negated else node
        assert isinstance(leaf, Port)
        return f"({leaf.side} {_OPS[leaf.op]} {leaf.port} || {leaf.side} == 0)"
    return ""
