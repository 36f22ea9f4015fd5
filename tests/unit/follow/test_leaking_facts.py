"""What `trace --leaks` knows of processes: their names at a moment, whose descriptors others fill, both ends."""

from __future__ import annotations

import pytest

from finwait.follow.program_names import ProgramNames
from finwait.follow.sharing import SharedTables
from finwait.uapi.perf_event import Forked


def test_a_name_holds_until_the_next_one() -> None:
    names = ProgramNames()
    names.named(7, "bash", 10)
    names.named(7, "ex1", 20)
    names.named(7, "sleep", 30)
    assert [names.of(7, at) for at in (9, 10, 19, 25, 30, 99)] == [
        "",
        "bash",
        "bash",
        "ex1",
        "sleep",
        "sleep",
    ]


def test_a_name_that_was_read_is_as_old_as_no_record_says_otherwise() -> None:
    names = ProgramNames()
    names.read(7, "ex1", 50)
    assert names.of(7, 1) == "ex1"
    names.named(7, "ex1", 40)  # it had another one before: which, nobody knows
    assert (names.of(7, 1), names.of(7, 45)) == ("", "ex1")


def test_a_new_process_is_called_as_its_parent_was_and_not_as_the_one_before_it() -> None:
    names = ProgramNames()
    names.named(7, "bash", 10)
    names.named(8, "old", 10)
    names.born(8, 7, 20)
    names.named(7, "zsh", 30)
    assert (names.of(8, 15), names.of(8, 25), names.of(8, 99)) == ("", "bash", "bash")


def test_where_records_were_lost_no_name_is_known() -> None:
    names = ProgramNames()
    names.named(7, "bash", 10)
    names.lost(20)
    assert (names.of(7, 15), names.of(7, 21)) == ("", "bash")


def test_names_are_bounded() -> None:
    names = ProgramNames(most=2)
    for pid in range(3):
        names.named(pid, "x", 10)
    assert [names.of(pid, 11) for pid in range(3)] == ["", "x", "x"]


@pytest.mark.parametrize("number", [9, 1009], ids=["initial pid namespace", "another"])
def test_a_process_that_clones_without_a_table_and_its_child_share(number: int) -> None:
    tables = SharedTables()
    tables.born(Forked(8, 7, 5, 71))
    tables.born(Forked(9, 7, 10, 70))
    tables.cloned(7, 70, number)
    assert (tables.shared(7, 99), tables.shared(9, 99), tables.shared(8, 99)) == (True, True, False)
    tables.executed(9, 50)
    assert (tables.shared(9, 49), tables.shared(9, 51), tables.shared(7, 51)) == (True, False, True)
    tables.born(Forked(7, 1, 60, 1))
    assert not tables.shared(7, 61)
