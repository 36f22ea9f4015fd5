"""A column that is derived for a row is no predicate, and the message says so and what asks for the same."""

from __future__ import annotations

import pytest

from finwait.errors import FilterError
from finwait.report.columns import NAMES
from finwait.table.filter import parse
from finwait.table.grammar import PRINTED
from finwait.table.sockets import SCHEMA
from finwait.table.vocabulary import PREDICATES


def test_every_column_is_a_predicate_or_is_known_to_be_none() -> None:
    assert {name for name in NAMES if name not in PREDICATES and name not in SCHEMA.names} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_what_only_is_printed_is_refused_as_that(name: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse([name, "=", "x"])
    assert caught.value.message == f"`{name}` is a derived column, not a predicate"
    assert "or a column" not in caught.value.hint
    assert PRINTED[name] in caught.value.hint
