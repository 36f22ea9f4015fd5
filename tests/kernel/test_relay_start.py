"""A signal to a relay that has not quite begun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, signal, sys, threading
from finwait.relay import line, supervisor
when, real = sys.argv[1], {"use": supervisor.Resolver.use, "ask": line.ControlLine.ask}
async def use(self, config):
    await real["use"](self, config)
    if when == "use":
        await signalled()
async def ask(self, order, seconds=10.0):
    answer = await real["ask"](self, order, seconds)
    if when == "ask":
        await signalled()
    return answer
async def signalled():
    import asyncio
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.2)
supervisor.Resolver.use, line.ControlLine.ask = use, ask
from finwait.cli import main
sys.exit(main(["relay", "run", "--listen", "127.0.0.1:0", "--to", "127.0.0.1:9"]))
"""


@pytest.mark.parametrize("when", ["use", "ask"])
def test_a_signal_during_start_ends_it_well(when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, when],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, "draining" in done.stderr) == (0, True), done.stderr
    assert "Bad file descriptor" not in done.stderr
