"""JSON of `list` has what a diagnosis asks of programs, without a FILTER that names it."""

from __future__ import annotations

import json

import pytest

from finwait.cli import main

RECORDING = "tests/captures/linux-6.18/whose-move.finwait"


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_who_waits_and_the_options_are_in_the_json_of_connections_that_do_not_close(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["list", "-o", form, "--from", RECORDING])
    out = capsys.readouterr().out
    rows = json.loads(out)["items"] if form == "json" else [json.loads(line) for line in out.splitlines()]
    closing = [row for row in rows if row["state"] in ("CLOSE_WAIT", "FIN_WAIT2")]
    assert closing
    assert all(row["waited_on"] and row["options"] for row in closing)
