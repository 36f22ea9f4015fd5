"""``finwait rules``: the causes that finwait knows."""

from __future__ import annotations

import argparse

from finwait.cli import options

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "rules",
        help="the causes that finwait knows",
        description="List the rules. `finwait explain RULE` prints the page of a rule.",
    )
    parser.add_argument(
        "-o", "--output", choices=("text", "json", "name"), default="text", help="format (default text)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from finwait.diagnosis import catalogue

    if args.output == "name":
        options.write(f"{name}\n" for name in catalogue.NAMES)
        return 0
    rules = catalogue.rules()
    if args.output == "json":
        from finwait.report.rules import rule_json
        from finwait.report.shape import document, encoded

        options.write([encoded(document("RuleList", {"items": [rule_json(r) for r in rules]}))])
        return 0
    wide = max(len(r.name) for r in rules)
    options.write(f"{r.name:<{wide}}  {r.severity:<8} {r.headline}\n" for r in rules)
    return 0
