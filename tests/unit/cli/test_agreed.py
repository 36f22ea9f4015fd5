"""A question on a terminal: only what is typed once it was asked is an answer."""

from __future__ import annotations

import ast
import signal
import sys
from pathlib import Path

import pytest

import finwait.cli
from tests.kernel.terminal import Terminal

ASK = """
import signal
from finwait.cli.options import agreed

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("looking", flush=True)
signal.sigwait({signal.SIGUSR1})
print("the plan")
print("agreed" if agreed("Do this?") else "refused", flush=True)
"""


@pytest.mark.parametrize("before", ["y\n", "yes\ny\ny\n", "y"])
@pytest.mark.parametrize(("after", "answer"), [("\n", b"refused"), ("n\n", b"refused"), ("y\n", b"agreed")])
def test_what_was_typed_before_the_question_is_no_answer(before: str, after: str, answer: bytes) -> None:
    terminal = Terminal(sys.executable, "-c", ASK)
    try:
        terminal.until(b"looking")
        terminal.key(before)
        terminal.until(before.rstrip().encode()[-1:])  # its echo: it is in the terminal's queue
        terminal.process.send_signal(signal.SIGUSR1)
        terminal.until(b"Do this? [y/N] ")
        terminal.key(after)
        terminal.until(answer)
        assert terminal.ended() == 0
    finally:
        terminal.close()


def test_there_is_one_place_that_asks() -> None:
    """Every other one would have to throw away what was typed before, too."""
    asking = {
        path.name
        for path in Path(finwait.cli.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("readline", "readlines"))
        or (isinstance(node, ast.Name) and node.id == "input")
    }
    assert asking == {"options.py"}
