"""Predicates of a FILTER: tests of one socket, each with its opposite, its text and its bytecode.

A predicate is true of a row only if that is known. A row that lacks the value (no ``tcp_info``, a holder that
we were not allowed to look for) matches neither ``pid = 1`` nor ``pid != 1``; this is why `Not` is pushed
down to the predicates before anything is computed, and why each of them knows its opposite.

Instructions for the kernel may let through more rows than match, never fewer. Mirrors
``inet_diag_bc_run`` in net/ipv4/inet_diag.c. `finwait.table.grammar` reads predicates from text,
`finwait.table.filter` applies whole trees of them.
"""

# ruff: noqa: D102 - what the methods of every predicate do is said once, at `Leaf`

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.table.patterns import MATCHERS, could_be_name, glob
from finwait.table.schema import Mask
from finwait.table.sockets import SocketTable, address_text
from finwait.table.vocabulary import ENUMERATIONS, NAMED_STATES, quoted, state_text, written_duration
from finwait.uapi import tcp
from finwait.uapi.inet_diag import AF_INET, AF_INET6

__all__ = [
    "BC_JMP",
    "BOUND_INACTIVE_BIT",
    "CONTEXT",
    "EVERYTHING",
    "EVERY_STATE",
    "NOTHING",
    "OF_FINDINGS",
    "Age",
    "And",
    "Autobound",
    "Context",
    "Host",
    "Kernel",
    "Known",
    "Leaf",
    "Mark",
    "Node",
    "Not",
    "Number",
    "Op",
    "Or",
    "Perhaps",
    "Port",
    "Resolver",
    "RowFacts",
    "States",
    "Text",
    "User",
    "gather",
    "leaves",
    "uid_unknown",
]


class Perhaps(Struct, frozen=True):
    """Among the values that a row has there may be one of these: it is not known."""

    values: frozenset[str]


class Context(Protocol):
    """What is known about the rows of a table beyond its columns; see `CONTEXT` for the names."""

    def values(self, name: str) -> Sequence[Any] | NDArray[Any]:
        """Return one value a row; None (NaN in an array of floats) where it is not known.

        Raises:
            KeyError: nothing of that name is known about any row.
        """


CONTEXT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "age_at_least_s": "Seconds that the socket has certainly been in its state.",
        "age_at_most_s": "The most seconds that it can have been in its state.",
        "autobound": "Whether the kernel chose the local port: it is in ip_local_port_range, and the kernel "
        "keeps the socket when it is given the bytecode of the filter `autobound`.",
        "cgroup": "Path of the cgroup v2 directory below its mount point (`/` is the root); empty for none.",
        "comm": "Names of the processes that hold it.",
        "container": "Ids and names of the container that created it.",
        "dev": "Name of the interface that it is bound to; empty for none.",
        "netns": "Names by which people call its network namespace.",
        "pid": "Process ids of its holders.",
        "pod": "UID and `NAMESPACE/NAME` of the pod that created it.",
        "namespace": "Kubernetes namespace of that pod.",
        "workload": "`NAMESPACE/NAME` of what the pod is part of.",
        "service": "`NAMESPACE/NAME` of the Kubernetes Service between its ends; empty for none.",
        "label": "Labels of the pod, as `KEY` and as `KEY=VALUE`.",
        "rule": "Name of the rule that is its primary cause; none if it was looked at and nothing matched.",
        "also": "Names of the other rules that matched it.",
        "variant": "Number of the variant of its primary cause, 0 for none; none where there is no cause.",
        "severity": "Severity of its primary finding.",
        "ends": "By what it ends if nobody acts.",
        "waited": "Who waits for it in the programs that hold it.",
        "thread": "Names of the threads that wait for it, themselves or in an event loop.",
        "user": "Name of the user that created it.",
    }
)
"""Names that `Filter.needs` can hold → what `Context.values` returns for a row.

Where a row can have several values (pids, names), a tuple of them; ``()`` is "known to have none". A None among
them is "and perhaps others", a `Perhaps` "and perhaps one of these": ``=`` may still match, ``!=`` cannot where one
of those would.
"""

OF_FINDINGS: Final = frozenset({"rule", "also", "variant", "severity"})
"""Names out of `CONTEXT` that nobody knows before rules are applied."""

# --------------------------------------------------------------------------------------------------------
# The tree

_OPPOSITE: Final = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}

BOUND_INACTIVE_BIT: Final = 1 << tcp.BOUND_INACTIVE

EVERY_STATE: Final = tcp.ALL_STATES | BOUND_INACTIVE_BIT

_STATE_CELLS: Final = (1 << 256) - 1  # idiag_state is a u8; whatever it holds is in a set or not

# enum in include/uapi/linux/inet_diag.h
BC_JMP, BC_S_GE, BC_S_LE, BC_D_GE, BC_D_LE, BC_AUTO, BC_S_COND, BC_D_COND = 1, 2, 3, 4, 5, 6, 7, 8

BC_DEV_COND, BC_MARK_COND, BC_CGROUP_COND = 9, 10, 13

Resolver = Callable[[str], int | None]


class Kernel(Struct, frozen=True):
    """What the caller can tell about the kernel that will run the bytecode."""

    ifindex: Resolver | None
    cgroup_id: Resolver | None
    net_admin: bool


class Op(Struct, frozen=True):
    """One instruction: true goes on behind it, false jumps. ``negated`` turns that round."""

    code: int
    argument: bytes = b""
    negated: bool = False


class RowFacts(Struct, frozen=True):
    """A table and its context while a mask is computed; each context value is asked for once."""

    table: SocketTable
    context: Context | Mapping[str, Any] | None
    asked: dict[str, Any]

    def values(self, name: str) -> Sequence[Any] | NDArray[Any]:
        """Return one value a row.

        Raises:
            ValueError: the context has none, or a wrong number of them.
        """
        if name not in self.asked:
            context: Context | Mapping[str, Any] = {} if self.context is None else self.context
            try:
                values = context[name] if isinstance(context, Mapping) else context.values(name)
            except KeyError:
                raise ValueError(f"the filter needs to know `{name}` of every row") from None
            if len(values) != len(self.table):
                raise ValueError(f"`{name}` has {len(values)} values for {len(self.table)} rows")
            self.asked[name] = values
        return self.asked[name]


class And(Struct, frozen=True):
    """All of the parts; without parts, every row."""

    parts: tuple[Node, ...]


class Or(Struct, frozen=True):
    """One of the parts; without parts, no row."""

    parts: tuple[Node, ...]


class Not(Struct, frozen=True):
    """Not the part."""

    part: Node


EVERYTHING: Final = And(())

NOTHING: Final = Or(())


class Leaf(Struct, frozen=True):
    """A predicate: a test of one row that knows its opposite, its text and its bytecode."""

    cost: ClassVar[int] = 0
    """0: a column; 1: a value in an array; 2: a Python call a row. Cheap ones go first."""

    def negated(self) -> Leaf:
        """Return the predicate that is true where this one is known to be false."""
        return replace(self, op=_OPPOSITE[self.op])  # type: ignore[attr-defined]

    def test(self, rows: RowFacts, index: NDArray[np.intp]) -> Mask:
        """Return which of the rows in ``index`` are known to match."""
        raise NotImplementedError

    def kernel(self, kernel: Kernel) -> Op | bool:  # noqa: ARG002 - most predicates are not the kernel's
        """Return the instruction; True when the kernel cannot tell; False when no row can match."""
        return True

    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        """Return the columns and the context values that `test` looks at."""
        raise NotImplementedError


Node = And | Or | Not | Leaf


def uid_unknown(table: SocketTable, index: NDArray[np.intp]) -> Mask:
    """Return of which rows nobody knows who made them: minisockets, and before Linux 6.16 orphans, report uid 0."""
    state = table.column("state")[index]
    requests = (state == tcp.SYN_RECV) | (state == tcp.NEW_SYN_RECV)
    mini = (state == tcp.TIME_WAIT) | requests | (table.column("timer")[index] == 3)
    return mini | ((table.column("uid")[index] == 0) & (table.column("inode")[index] == 0))


def _compare(cells: NDArray[Any], op: str, value: float) -> Mask:
    if op == "=":
        return cells == value
    if op == "!=":
        return cells != value
    if op == "<":
        return cells < value
    if op == "<=":
        return cells <= value
    if op == ">":
        return cells > value
    return cells >= value


class States(Leaf, frozen=True):
    """The row's state is one of a set, bit *n* for state *n*."""

    states: int

    def negated(self) -> States:
        return States(self.states ^ _STATE_CELLS)

    def test(self, rows: RowFacts, index: NDArray[np.intp]) -> Mask:
        members = np.array([bool(self.states >> n & 1) for n in range(256)])
        return members[rows.table.column("state")[index]]

    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset({"state"}), frozenset()

    def __str__(self) -> str:
        if self.states == tcp.ALL_STATES:
            return "state all"
        names = [state_text(n) for n in sorted(NAMED_STATES) if self.states >> n & 1]
        return "state " + ",".join(names) if names else "exclude all"


class Port(Leaf, frozen=True):
    """The local or remote port compares with a number."""

    side: str
    op: str
    port: int

    def test(self, rows: RowFacts, index: NDArray[np.intp]) -> Mask:
        return _compare(rows.table.column(self.side)[index], self.op, self.port)

    def kernel(self, kernel: Kernel) -> Op | bool:  # noqa: ARG002
        local = self.side == "sport"
        if self.op in {"=", "!="}:
            # Not BC_S_EQ, which only newer kernels take: a host condition without host is as good.
            return Op(BC_S_COND if local else BC_D_COND, _host(0, 0, b"", self.port), self.op == "!=")
        low = self.op in {">", ">="}
        bound = self.port + {">": 1, "<": -1}.get(self.op, 0)
        if not 0 <= bound <= 0xFFFF:
            return False
        if bound == (0 if low else 0xFFFF):
            return True
        ge, le = (BC_S_GE, BC_S_LE) if local else (BC_D_GE, BC_D_LE)
        return Op(ge if low else le, struct.pack("=BBH", 0, 0, bound))

    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset({self.side}), frozenset()

    def __str__(self) -> str:
        return f"{self.side} {self.op} :{self.port}"


def _host(family: int, prefix: int, address: bytes, port: int | None) -> bytes:
    """Return ``struct inet_diag_hostcond``."""
    return struct.pack("=BBxxi", family, prefix, -1 if port is None else port) + address


class Host(Leaf, frozen=True):
    """The local or remote address lies in a prefix, and its port is the one given, if one is.

    An IPv4 prefix also covers ``::ffff:`` addresses of AF_INET6 sockets, an IPv6 prefix only AF_INET6
    sockets: the rule of ``inet_diag_bc_run`` in net/ipv4/inet_diag.c. ``family`` 0 is any address.
    """

    side: str
    op: str
    family: int
    high: int = 0
    low: int = 0
    prefix: int = 0
    port: int | None = None

    def test(self, rows: RowFacts, index: NDArray[np.intp]) -> Mask:
        hits = np.ones(len(index), np.bool_)
        if self.family:
            words = rows.table.column(self.side)[index]
            bits = self.prefix + (96 if self.family == AF_INET else 0)
            mask = ((1 << 128) - 1) ^ ((1 << (128 - bits)) - 1)
            for k, (want, word_mask) in enumerate(
                ((self.high, mask >> 64), (self.low, mask & 0xFFFFFFFFFFFFFFFF))
            ):
                hits &= (words[:, k] & np.uint64(word_mask)) == np.uint64(want & word_mask)
            if self.family == AF_INET6:
                hits &= rows.table.column("family")[index] == AF_INET6
        if self.port is not None:
            hits &= rows.table.column("sport" if self.side == "src" else "dport")[index] == self.port
        return hits if self.op == "=" else ~hits

    def kernel(self, kernel: Kernel) -> Op | bool:  # noqa: ARG002
        if not self.family and self.port is None:
            return self.op == "="
        address = b""
        if self.family == AF_INET:
            address = struct.pack("!I", self.low & 0xFFFFFFFF)
        elif self.family == AF_INET6:
            address = struct.pack("!QQ", self.high, self.low)
        code = BC_S_COND if self.side == "src" else BC_D_COND
        return Op(code, _host(self.family, self.prefix, address, self.port), self.op == "!=")

    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        columns = {self.side, "family"} if self.family else set()
        if self.port is not None:
            columns.add("sport" if self.side == "src" else "dport")
        return frozenset(columns), frozenset()

    def __str__(self) -> str:
        if not self.family:
            host = "*"
        elif self.family == AF_INET:
            host = address_text(self.high, self.low) + (f"/{self.prefix}" if self.prefix < 32 else "")
        else:
            # ipaddress prints a mapped address as IPv4 text in some versions; hexadecimal is always read back
            words = f"{self.high:016x}{self.low:016x}"
            text = (
                ":".join(f"{int(words[i : i + 4], 16):x}" for i in range(0, 32, 4))
                if self.high == 0 and self.low >> 32 == 0xFFFF
                else address_text(self.high, self.low)
            )
            host = "[" + text + (f"/{self.prefix}" if self.prefix < 128 else "") + "]"
        return f"{self.side} {self.op} {host}" + (f":{self.port}" if self.port is not None else "")


class Mark(Leaf, frozen=True):
    """SO_MARK under a mask; the value is not masked, as in the kernel."""

    op: str
    mark: int
    mask: int

    def test(self, rows: RowFacts, index: NDArray[np.intp]) -> Mask:
        cells = rows.table.column("mark")[index] & np.uint32(self.mask)
        return _compare(cells, self.op, self.mark) & rows.table.present("mark")[index]

    def kernel(self, kernel: Kernel) -> Op | bool:
        if not kernel.net_admin:  # inet_diag_bc_audit: EPERM for the whole request
            return True
        return Op(BC_MARK_COND, struct.pack("=II", self.mark, self.mask), self.op == "!=")

    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset({"mark"}), frozenset()

    def __str__(self) -> str:
        mask = "" if self.mask == 0xFFFFFFFF else f"/{self.mask:#x}"
        return f"fwmark {self.op} {self.mark:#x}{mask}"


class Number(Leaf, frozen=True):
    """A column of numbers compares with a number, in the unit of the column."""

    column: str
    op: str
    value: int

    def test(self, rows: RowFacts, index: NDArray[np.intp]) -> Mask:
        cells = rows.table.column(self.column)[index]
        hits = _compare(cells, self.op, self.value)
        known = rows.table.present(self.column)[index]
        if self.column == "inode" and not self.value:  # one that is not 0 and missing stands for any other
            known = known | (cells != 0)
        return hits & known

    def kernel(self, kernel: Kernel) -> Op | bool:
        if self.op not in {"=", "!="}:
            return True
        negated = self.op == "!="
        if self.column == "ifindex":
            return Op(BC_DEV_COND, struct.pack("=I", self.value), negated)
        if self.column == "mark":
            return Mark(self.op, self.value, 0xFFFFFFFF).kernel(kernel)
        if self.column == "cgroup_id" and kernel.cgroup_id is not None:
            return Op(BC_CGROUP_COND, struct.pack("=Q", self.value), negated)
        if self.column == "family":
            if self.value not in {AF_INET, AF_INET6}:
                return negated
            # A condition on AF_INET also takes mapped rows of AF_INET6; one on AF_INET6 takes just those,
            # and there is no third family.
            wants_inet6 = (self.value == AF_INET6) is not negated
            return Op(BC_S_COND, _host(AF_INET6, 0, bytes(16), None), not wants_inet6)
        return True

    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset({self.column}), frozenset()

    def __str__(self) -> str:
        names = ENUMERATIONS.get(self.column, {})
        shown = next((name for name, number in names.items() if number == self.value), str(self.value))
        return f"{self.column} {self.op} {shown}"


class Text(Leaf, frozen=True):
    """A column of text is like a pattern."""

    column: str
    op: str
    pattern: str

    def test(self, rows: RowFacts, index: NDArray[np.intp]) -> Mask:
        cells = rows.table.column(self.column)[index]
        names, inverse = np.unique(cells, return_inverse=True)
        like = glob(self.pattern)
        hits = np.array([bool(like(bytes(n).decode("latin-1"))) for n in names], np.bool_)
        matching = hits[inverse] if len(hits) else np.zeros(0, np.bool_)
        return (matching if self.op == "=" else ~matching) & rows.table.present(self.column)[index]

    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset({self.column}), frozenset()

    def __str__(self) -> str:
        return f"{self.column} {self.op} {quoted(self.pattern)}"


class User(Leaf, frozen=True):
    """The user that made the socket, by number.

    Minisockets, and before Linux 6.16 orphans, report 0 whoever made them: not known.
    """

    op: str
    uid: int

    def test(self, rows: RowFacts, index: NDArray[np.intp]) -> Mask:
        return _compare(rows.table.column("uid")[index], self.op, self.uid) & ~uid_unknown(rows.table, index)

    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset({"uid", "state", "timer", "inode"}), frozenset()

    def __str__(self) -> str:
        return f"{'user' if self.op in {'=', '!='} else 'uid'} {self.op} {self.uid}"


class Known(Leaf, frozen=True):
    """Something that the context knows about the row: one of its values is like a pattern."""

    name: str
    op: str
    pattern: str
    cost = 2

    def test(self, rows: RowFacts, index: NDArray[np.intp]) -> Mask:
        values = rows.values(self.name)
        matches = MATCHERS.get(self.name, glob)(self.pattern)
        want = self.op == "="
        nameable = could_be_name(self.name, self.pattern)
        memo: dict[Any, bool] = {}
        result = np.zeros(len(index), np.bool_)
        for k, row in enumerate(index.tolist()):
            value = values[row]
            if value is None:
                continue
            items = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else value
            hit, unknown = False, False
            for item in items:
                if item is None:
                    unknown = unknown or nameable
                    continue
                answer = memo.get(item)
                if answer is None:
                    alternatives = item.values if isinstance(item, Perhaps) else (str(item),)
                    answer = memo[item] = any(matches(value) for value in alternatives)
                if isinstance(item, Perhaps):
                    unknown = unknown or answer
                elif answer:
                    hit = True
                    break
            result[k] = hit is want and (want or not unknown)
        return result

    def matches_any(self, values: Iterable[str]) -> bool:
        """Return whether one of some values is like the pattern."""
        matches = MATCHERS.get(self.name, glob)(self.pattern)
        return any(matches(value) for value in values)

    def kernel(self, kernel: Kernel) -> Op | bool:
        if "*" in self.pattern or "?" in self.pattern:
            return True
        if self.name == "dev" and kernel.ifindex is not None:
            ifindex = kernel.ifindex(self.pattern)
            if ifindex is not None:
                return Op(BC_DEV_COND, struct.pack("=I", ifindex), self.op == "!=")
        if self.name == "cgroup" and kernel.cgroup_id is not None:
            identity = kernel.cgroup_id(self.pattern)
            if identity is not None:
                return Op(BC_CGROUP_COND, struct.pack("=Q", identity), self.op == "!=")
        return True

    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(), frozenset({self.name})

    def __str__(self) -> str:
        return f"{self.name} {self.op} {quoted(self.pattern, self.name)}"


class Autobound(Leaf, frozen=True):
    """The kernel chose the local port.

    The kernel only tells whether nobody chose the port *of this socket* (no SOCK_BINDPORT_LOCK), which is
    true of accepted sockets as well; like ``ss``, the caller also looks whether it is an ephemeral port.
    """

    wanted: bool = True
    cost = 1

    def negated(self) -> Autobound:
        return Autobound(not self.wanted)

    def test(self, rows: RowFacts, index: NDArray[np.intp]) -> Mask:
        values = rows.values("autobound")
        if isinstance(values, np.ndarray) and values.dtype == np.bool_:
            return values[index] == self.wanted
        cells = [values[row] for row in index.tolist()]
        return np.array([v is not None and bool(v) is self.wanted for v in cells], np.bool_)

    def kernel(self, kernel: Kernel) -> Op | bool:  # noqa: ARG002
        return Op(BC_AUTO) if self.wanted else True

    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(), frozenset({"autobound"})

    def __str__(self) -> str:
        return "autobound" if self.wanted else "not autobound"


class Age(Leaf, frozen=True):
    """The time in the present state, a range, compares for certain with a duration in microseconds."""

    op: str
    us: int
    cost = 1

    def _needs(self) -> tuple[str, ...]:
        if self.op in {">", ">="}:
            return ("age_at_least_s",)
        if self.op in {"<", "<="}:
            return ("age_at_most_s",)
        return ("age_at_least_s", "age_at_most_s")

    def test(self, rows: RowFacts, index: NDArray[np.intp]) -> Mask:
        bound = self.us / 1e6
        cells = [_floats(rows.values(name), index) for name in self._needs()]
        if self.op == "=":
            return (cells[0] == bound) & (cells[1] == bound)
        if self.op == "!=":  # NaN compares false, which is what "not known" should do
            return (cells[0] > bound) | (cells[1] < bound)
        return _compare(cells[0], self.op, bound)

    def unknown(self, rows: RowFacts, index: NDArray[np.intp]) -> Mask:
        """Return of which rows no age is known at all."""
        least, most = (_floats(rows.values(name), index) for name in ("age_at_least_s", "age_at_most_s"))
        return np.isnan(least) & np.isnan(most)

    def reads(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(), frozenset(self._needs())

    def __str__(self) -> str:
        return f"age {self.op} {written_duration(self.us)}"


def _floats(values: Sequence[Any] | NDArray[Any], index: NDArray[np.intp]) -> NDArray[np.float64]:
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        return values[index].astype(np.float64)
    return np.array(
        [np.nan if values[row] is None else values[row] for row in index.tolist()], dtype=np.float64
    )


def leaves(node: Node) -> Iterator[Leaf]:
    """Give the predicates of an expression, in order."""
    if isinstance(node, And | Or):
        for part in node.parts:
            yield from leaves(part)
    elif isinstance(node, Not):
        yield from leaves(node.part)
    else:
        yield node


def gather(kind: type[And | Or], parts: Iterable[Node]) -> Node:
    """Return And or Or of the parts, flat, and the part itself when there is one."""
    flat: list[Node] = []
    for part in parts:
        if isinstance(part, kind):
            flat.extend(part.parts)
        else:
            flat.append(part)
    return flat[0] if len(flat) == 1 else kind(tuple(flat))
