"""What a policy's FILTERs let pass, at one end and at both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from finwait.agent import selected
from finwait.errors import Gap


def looked(
    other: list[int], *, possible: tuple[int, ...] = (), doubt: tuple[int, ...] = (), unentered: bool = False
) -> Any:
    """Return three rows: an end, one that has the reversed tuple, and one of another connection."""
    addresses = np.array([[1, 1], [2, 2], [3, 3]], np.uint64)
    ports = np.array([10, 20, 30], np.uint16)
    sockets = SimpleNamespace(
        src=addresses, dst=addresses[[1, 0, 2]], sport=ports, dport=ports[[1, 0, 2]],
    )  # fmt: skip
    view = SimpleNamespace(
        sockets=sockets,
        other=np.array(other, np.int64),
        other_possible=np.array(possible or [-1] * 3, np.int64),
        other_ambiguous=np.isin(np.arange(3), doubt),
    )
    gaps = (Gap.of_namespace(5, "enter it", "", unentered=True),) if unentered else ()
    return SimpleNamespace(view=view, gaps=gaps)


@pytest.mark.parametrize(
    ("made", "one_end", "both"),
    [
        (looked([-1, -1, -1]), [True, True, True], [True, True, True]),
        (looked([2, -1, 0]), [True, True, False], [False, True, False]),
        (looked([-1, -1, -1], possible=(2, -1, -1)), [True, True, False], [False, True, False]),
        (looked([-1, -1, -1]), [True, False, True], [False, False, True]),
        (looked([2, -1, 0]), [True, False, True], [True, False, True]),
        (looked([-1, -1, -1], doubt=(2,)), [True, True, True], [True, True, False]),
        (looked([2, -1, 0], unentered=True), [True, True, True], [True, False, True]),
    ],
)
def test_what_may_be_the_other_end_must_pass_too(
    made: Any, one_end: list[bool], both: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selected, "passing", lambda *_: np.array(one_end))
    filters: Any = ("a FILTER",)
    assert selected.passing_both(filters, made).tolist() == both
    assert selected.passing_both((), made).tolist() == one_end, "nothing is excepted"
