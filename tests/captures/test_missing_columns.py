"""What a kernel does not tell makes a finding less sure, or leaves a gap. It never makes it silent.

Every recording is diagnosed again without one of the columns that its diagnosis consults, in turn; and without what
came with later kernels. No finding is taken for granted that the kernel of the recording gave by a later column.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from finwait.session import Diagnosis
from finwait.table import decode
from finwait.table.sockets import SCHEMA, SocketTable
from tests.captures.make import HERE, replay

RECORDINGS: Final = sorted(HERE.glob("*/*.finwait"))
INFO: Final = tuple(c.name for c in SCHEMA if c.source.startswith("tcp_info."))


def tcp_info_of(length: int) -> frozenset[str]:
    """Columns of ``struct tcp_info`` that a kernel of so short a struct does not have."""
    return frozenset(n for n in INFO if SCHEMA[n].offset + np.dtype(SCHEMA[n].dtype).itemsize > length)


KERNELS: Final = {
    "before 4.1": tcp_info_of(104) | {"shutdown", "mark", "class_id", "cgroup_id", "sockopt"},
    "4.18": tcp_info_of(200) | {"cgroup_id", "sockopt"},
    "5.3": tcp_info_of(224) | {"cgroup_id", "sockopt"},
    "5.4": tcp_info_of(232) | {"cgroup_id", "sockopt"},
    "no tcp_info": frozenset(INFO),
}
"""What differs from the kernel of the recordings, as far as a diagnosis looks at it."""


class _Forgetful(SocketTable):
    """A table as a kernel would have filled it that lacks some columns; notes which columns it is asked for."""

    __slots__ = ("_asked",)
    _asked: set[str]

    @classmethod
    def of(cls, table: SocketTable, lost: frozenset[str], asked: set[str]) -> _Forgetful:
        made = cls(table._rows, dict(table._cache), len(table), dict(table._present))
        made._asked = asked
        for name in lost:
            empty = SCHEMA[name].empty(len(table))
            made._cache[name], made._present[name] = empty, np.zeros(len(table), np.bool_)
        return made

    def column(self, name: str) -> NDArray[Any]:
        self._asked.add(name)
        return super().column(name)

    def present(self, name: str) -> NDArray[np.bool_]:
        self._asked.add(name)
        return super().present(name)


@contextmanager
def lacking(columns: frozenset[str]) -> Iterator[set[str]]:
    asked: set[str] = set()
    real = decode.sockets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "sockets", lambda seen: _Forgetful.of(real(seen), columns, asked))
        yield asked


@cache
def whole(path: Path) -> tuple[Diagnosis, frozenset[str]]:
    """The diagnosis with everything, and the columns of attributes that it consults."""
    with lacking(frozenset()) as asked:
        diagnosis = replay(path)
    return diagnosis, frozenset(name for name in asked if SCHEMA[name].nullable)


def accused(diagnosis: Diagnosis, *levels: str) -> set[tuple[int, int]]:
    """The rows, as namespace and cookie, that primary findings call a problem or a notice."""
    s = diagnosis.view.sockets
    return {
        (int(s.netns[row]), int(s.cookie[row]))
        for f in diagnosis.findings
        if f.primary and f.severity != "healthy" and (not levels or f.confidence.level in levels)
        for row in f.rows.tolist()
    }


def assert_not_silent(path: Path, columns: frozenset[str]) -> None:
    full, _ = whole(path)
    with lacking(columns):
        less = replay(path)
    silent = accused(full) - accused(less)
    told = {gap.where for gap in set(less.gaps) - set(full.gaps)}
    untold = [row for row in silent if f"netns {row[0]}" not in told]
    assert not untold, (
        f"nothing is said of {len(untold)} rows without {sorted(columns)}: return a Gap from the rule's `unjudged` "
        "(`uncounted`, `unclocked` in finwait.diagnosis.rules), or let `match` take them with less confidence"
    )
    invented = accused(less, "certain") - accused(full)
    assert not invented, f"{len(invented)} healthy rows are accused for certain without {sorted(columns)}"


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_column_that_a_kernel_lacks_silences_nothing(path: Path) -> None:
    for name in sorted(whole(path)[1]):
        assert_not_silent(path, frozenset({name}))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_an_older_kernel_gives_findings_or_gaps(path: Path, kernel: str) -> None:
    assert_not_silent(path, KERNELS[kernel])
