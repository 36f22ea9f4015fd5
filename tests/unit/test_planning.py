"""Plans: the command and what others plan through start from the same limits."""

from __future__ import annotations

from finwait import planning
from finwait.cli import build_parser


def test_the_defaults_of_clear_are_those_of_planning() -> None:
    """The parser must not load numpy, so it says them a second time."""
    args = build_parser().parse_args(["clear"])
    assert (args.max, args.share, args.min_age) == (planning.MOST, planning.SHARE, planning.MIN_AGE_MS)
