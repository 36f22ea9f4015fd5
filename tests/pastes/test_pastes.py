"""Pasted text goes on being explained as it was, and never against what is known of the connections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pastes.make import HERE, PASTES, answer

TEXTS = sorted(path.stem for path in HERE.glob("*.txt"))
UNDECIDED = {"not-told", "open"}
LESS = {
    ("fin-wait2-shut-both", "fin-wait2-held"): "which directions are shut is not in the text",
    (None, "idle-unprobed"): "its other end, in another namespace, is not in the text",
    (None, "zero-window"): "the peer made room in between",
}
"""What is known → what a text allows to say, where that is less, and why."""


def known(name: str) -> dict[str, Any]:
    answers: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    return answers


def test_every_paste_of_the_lab_is_there() -> None:
    assert set(PASTES) <= set(TEXTS)
    assert len(TEXTS) >= 60
    assert {Path(name).stem for name in TEXTS} == {path.stem for path in HERE.glob("*.json")}


@pytest.mark.parametrize("name", TEXTS)
def test_a_paste_is_diagnosed_as_its_answer_says(name: str) -> None:
    answers = known(name)
    assert answer(name) == {key: answers[key] for key in ("says", "not_seen")}


@pytest.mark.parametrize("name", TEXTS)
def test_a_paste_is_never_diagnosed_against_what_is_known(name: str) -> None:
    answers = known(name)
    true, says = answers.get("true"), answers["says"]
    if true is None:
        return
    for connection in true.keys() | says.keys():
        pair = true.get(connection), says.get(connection)
        if pair[0] == pair[1] or pair in LESS:
            continue
        # What is not said at all, or left open, is among what could not be seen.
        assert pair[1] is None or pair[1] in UNDECIDED, (connection, pair)
        assert len(answers["not_seen"]) > 1 or name.endswith("lsof"), connection


def test_an_orphan_that_the_text_excludes_is_excluded_and_the_timer_is_keepalive() -> None:
    assert known("hand-kube-proxy")["says"] == {"10.0.0.1:80 10.0.0.2:45678 FIN_WAIT2": "fin-wait2-held"}
