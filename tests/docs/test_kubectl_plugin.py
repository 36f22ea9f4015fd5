"""The page of ``kubectl finwait`` names every command and every option."""

from __future__ import annotations

import argparse
from pathlib import Path

from finwait.kubectl.plugin import COMMANDS, build_parser

PAGE = (Path(__file__).parents[2] / "docs/how-to/kubectl-finwait.md").read_text()


def test_every_command_and_option_is_documented() -> None:
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(commands.choices) == set(COMMANDS)
    for name, parser in commands.choices.items():
        assert name == "diagnose" or f"kubectl finwait {name}" in PAGE, name
        for action in parser._actions:
            known = [o for o in action.option_strings if o not in ("-h", "--help")]
            assert not known or any(f"{option} " in PAGE or f"{option}`" in PAGE for option in known), (
                name,
                known,
            )
