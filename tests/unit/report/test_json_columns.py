"""Connections as JSON are made column by column; as values they are made one by one: both say the same."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from finwait.diagnosis import outlook
from finwait.report import json
from tests.captures.make import HERE, replay
from tests.unit.report.test_every_column import recorded

ALL = sorted(HERE.glob("linux-*/*.finwait"))


@pytest.mark.parametrize("recording", ALL[:: max(1, len(ALL) // 12)], ids=lambda path: path.stem)
def test_columns_and_values_agree(recording: Path) -> None:
    view = replay(recording).view
    rows = np.arange(len(view))
    assert json._objects(view, rows) == [
        msgspec.json.encode(item).decode()[:-1] for item in json.objects(view, rows)
    ]
    flags = {pair: True for row in rows.tolist() for pair in view.holders.of(row)[:1]}
    flagged = replace(view, close_on_exec=flags)
    assert json._objects(flagged, rows) == [
        msgspec.json.encode(item).decode()[:-1] for item in json.objects(flagged, rows)
    ]


@pytest.mark.parametrize("k", range(4))
def test_rows_that_share_an_outlook_have_the_one_that_each_has(k: int) -> None:
    view = recorded()[k].view
    rows = np.arange(len(view))
    assert outlook.of_rows(view, rows) == [outlook.of_row(view, row) for row in rows.tolist()]
    without = replace(view, socket_options={})
    assert outlook.of_rows(without, rows) == [outlook.of_row(without, row) for row in rows.tolist()]
