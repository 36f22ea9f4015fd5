"""``finwait lab prove``: run the demonstration of a claim and say whether it held on this kernel."""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from finwait.lab.proofs.instruments import Proof, ProofOutcome
    from finwait.remedy.knowledge import Knowledge

__all__ = ["add_parser", "run"]

_WIDTH = 98


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command under ``lab``."""
    parser = sub.add_parser(
        "prove",
        help="demonstrate a claim of the ledger with real sockets, and say whether it held on this kernel",
        description="Run demonstrations in private network namespaces: what the ledger expects, and what was "
        "measured here. Exit status 1 if something was not as the ledger says.",
    )
    parser.add_argument(
        "claims",
        nargs="*",
        metavar="CLAIM",
        help="such as S03 or X01, the name of a demonstration, or `all`; without one, list what can be "
        "demonstrated",
    )
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="format (default text)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Carry the command out and return its exit status."""
    from finwait.lab.proofs.catalogue import proofs, prove
    from finwait.shipped import knowledge

    known = knowledge()
    if not args.claims:
        if args.output == "json":
            _list_json(proofs().values())
            return 0
        for proof in proofs().values():
            print(f"{proof.name:<28} ~{proof.seconds:>4.1f} s  {' '.join(proof.claims)}")
        return 0
    chosen = list(_chosen(args.claims, known))
    outcomes = []
    for number, proof in enumerate(chosen):
        outcome = prove(proof)
        outcomes.append(outcome)
        if args.output == "text":
            if number:
                print()
            for line in _text(outcome, known):
                print(line)
            sys.stdout.flush()
    if args.output == "json":
        _json(outcomes)
    return 0 if all(outcome.held for outcome in outcomes) else 1


def _chosen(words: list[str], known: Knowledge) -> Iterator[Proof]:
    from finwait.errors import UsageError
    from finwait.lab.proofs.catalogue import proofs

    available = proofs()
    names: dict[str, None] = {}
    for word in words:
        claim = known.claims.get(word.upper())
        if word == "all":
            names |= dict.fromkeys(available)
        elif word in available:
            names[word] = None
        elif claim is not None and claim.demo:
            names[claim.demo] = None
        else:
            message = f"there is no demonstration of `{word}`"
            if claim is not None:
                message += f" ({claim.evidence}: {claim.source})"
            raise UsageError(message, hint="`finwait lab prove` lists what can be demonstrated")
    for name in names:
        yield available[name]


def _text(outcome: ProofOutcome, known: Knowledge) -> Iterator[str]:
    for claim in known.cited(outcome.proof.claims):
        yield from textwrap.wrap(
            f"{claim.id} {claim.claim}", _WIDTH, subsequent_indent="    ", break_on_hyphens=False
        )
        also = f", {claim.also}" if claim.also else ""
        yield from textwrap.wrap(
            f"The ledger: {claim.verdict}{also}. {claim.reason}",
            _WIDTH,
            initial_indent="    ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
    yield f"Demonstration {outcome.proof.name} on Linux {outcome.kernel}, {outcome.seconds:.1f} s:"
    for measurement in outcome.measured:
        yield f"  {'ok ' if measurement.held else 'NOT'}  {measurement.what}"
        if measurement.expected == measurement.got:
            yield f"         measured: {measurement.got}"
        else:
            yield f"         expected: {measurement.expected}; measured: {measurement.got}"
    failed = sum(not measurement.held for measurement in outcome.measured)
    yield (
        "It held: all measurements are as the ledger says."
        if outcome.held
        else f"It did NOT hold: {failed} of {len(outcome.measured)} measurements differ from the ledger."
    )


def _list_json(known: Iterable[Proof]) -> None:
    from finwait.report.shape import document, encoded

    items = [{"name": proof.name, "claims": list(proof.claims), "seconds": proof.seconds} for proof in known]
    sys.stdout.write(encoded(document("ProofList", {"items": items})))


def _json(outcomes: list[ProofOutcome]) -> None:
    import msgspec

    from finwait.report.shape import document, encoded

    members = {
        "items": [
            {
                "name": o.proof.name,
                "claims": list(o.proof.claims),
                "kernel": o.kernel,
                "held": o.held,
                "seconds": round(o.seconds, 3),
                "measured": [msgspec.to_builtins(measurement) for measurement in o.measured],
            }
            for o in outcomes
        ],
    }
    sys.stdout.write(encoded(document("ProofResultList", members), indent=2))
