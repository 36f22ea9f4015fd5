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
        import msgspec

        items = [
            {
                "name": r.name,
                "title": r.title,
                "severity": r.severity,
                "claims": r.claims,
                "page": catalogue.page(r.name),
            }
            for r in rules
        ]
        out = {"apiVersion": "finwait/v1", "kind": "RuleList", "items": items}
        options.write([msgspec.json.encode(out).decode() + "\n"])
        return 0
    wide = max(len(r.name) for r in rules)
    options.write(f"{r.name:<{wide}}  {r.severity:<8} {r.title}\n" for r in rules)
    return 0
