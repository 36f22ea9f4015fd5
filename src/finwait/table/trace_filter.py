"""FILTER → the filter language of trace events, as far as a transition can decide it.

What goes to the kernel may let too much through and never too little. Only ports are constant over the
life of a connection *and* numbers that the trace filter can compare; states are not, because the time in a
state needs the transition that began it. A port that the kernel has not chosen yet reads 0 in the first
event of a connection, so 0 always passes.
"""

from __future__ import annotations

from typing import Final

from finwait.table.filter import Filter
from finwait.table.predicates import And, Host, Node, Not, Or, Port

__all__ = ["kernel_filter", "only_ports_and_hosts"]

_BASE: Final = "protocol == 6"
_LONGEST: Final = 2000  # the file takes a page; longer than this is not worth the kernel's time either
_OPS: Final = {"=": "==", "!=": "!=", "<": "<", ">": ">", "<=": "<=", ">=": ">="}


def kernel_filter(wanted: Filter | None) -> str:
    """Return the filter for ``sock:inet_sock_set_state`` that passes every transition of what is wanted."""
    text = _compile(wanted.root, negated=False) if wanted is not None else ""
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
