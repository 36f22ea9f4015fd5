"""Tables of the relay's benchmark when a side serves nothing."""

from __future__ import annotations

import math

from bench import relay


def test_a_side_that_serves_nothing_has_a_row_and_no_ratio() -> None:
    rows: relay.Rows = {}
    for load, count in relay.LOADS:
        rows[f"{load} {count}", "finwait"] = [relay.row_of(["1000", "1", "2"], load, 1.0, 0.5)]
        rows[f"{load} {count}", "haproxy"] = [relay.row_of(["0", "0", "0"], load, 1.0, 0.1)]
        rows[f"{load} {count}", "nginx"] = [relay.row_of([], load, 1.0, 0.0)]
    assert "| haproxy | 0" in relay.tables(rows)
    assert len(relay.targets(rows)) > 3
    assert relay.ratios_of([1.0, 2.0], [0.0, 4.0]) == [0.5]
    assert math.isinf(relay.row_of([], "bulk", 1.0, 1.0)[3])
