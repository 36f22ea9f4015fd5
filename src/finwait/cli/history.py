"""``finwait history``: connections that did not finish closing, as the agent has seen them."""

from __future__ import annotations

import argparse

from finwait.cli import options
from finwait.selecting import parse_filter

__all__ = ["add_parser", "run"]


def add_parser(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = sub.add_parser(
        "history",
        help="connections that did not close, since when, and how they ended",
        description="List what `finwait agent` has seen: connections that did not finish closing, since when, why, "
        "and how they ended. Reads the agent's history, whether it runs or not.",
    )
    options.add_filter(parser, "episodes")
    parser.add_argument(
        "--since",
        type=options.duration_ms,
        default=86_400_000,
        metavar="DURATION",
        help="what lasted at some time since then (default 24h)",
    )
    parser.add_argument("--open", action="store_true", help="only what lasts")
    parser.add_argument(
        "--story",
        action="store_true",
        help="also show how each connection got into its state and what ended it, where the agent recorded it",
    )
    parser.add_argument(
        "--limit",
        type=options.at_least_one,
        default=10_000,
        metavar="N",
        help="episodes to show (default 10000): the latest first; with `--open` the oldest first",
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        help="where the agent keeps its history (default `/var/lib/finwait` for root)",
    )
    parser.add_argument(
        "-o",
        "--output",
        choices=("text", "json", "csv", "parquet"),
        default="text",
        help="format (default text)",
    )
    parser.set_defaults(run=run, wrong=parser.error)


def run(args: argparse.Namespace) -> int:
    """List episodes."""
    import sys
    import time

    from finwait.agent import telling
    from finwait.agent.episodes import Instant
    from finwait.agent.store import Store, agent_runs, store_path
    from finwait.kernel import procfs
    from finwait.report.shape import document, encoded

    row_filter = parse_filter(args.filter)
    if args.output == "parquet" and sys.stdout.isatty():
        args.wrong("Parquet is not for a terminal: redirect the output to a file")
    since_ns = time.time_ns() - int(args.since * 1_000_000)
    boot = procfs.facts().boot_id
    path = store_path(args.state_dir)
    with Store(path, read_only=True) as store:
        last, looker = store.meta("round"), store.meta("looker")
        now = Instant(time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())
        seen = telling.seen_until(last, now, boot)
        batches = store.batches(since_ns, open_of=boot if args.open else "")
        hits, gaps = telling.picked(
            row_filter, batches, now.boot_ns, boot, seen_ns=seen, names=store.names(), most=args.limit
        )
        with_stories = args.story or args.output == "json"
        keys = ((e.boot, e.cookie, e.state, e.first.boot_ns) for e in hits)
        stories = store.stories(keys) if with_stories else None
    nobody = telling.nobody_since(last, looker, now, boot, runs=agent_runs(path.parent))
    gaps = [*([nobody] if nobody is not None else ()), *telling.looker_gaps(looker), *gaps]
    if args.output == "json":
        items = [telling.episode_json(e, now.boot_ns, boot, seen_ns=seen, stories=stories) for e in hits]
        options.write([encoded(document("EpisodeList", {"items": items}, gaps))])
        return options.status(gaps)
    if args.output == "csv":
        options.write(telling.csv_lines(hits, now.boot_ns, boot, seen_ns=seen))
    elif args.output == "parquet":
        from finwait.cli.printing import export_lists

        export_lists(telling.columns(hits, now.boot_ns, boot, seen_ns=seen))
    elif hits:
        looked_at = nobody is None
        lines = telling.text_lines(
            hits, now.boot_ns, boot, seen_ns=seen, looked_at=looked_at, stories=stories
        )
        options.write(lines)
    else:
        more = ", as far as somebody looked" if gaps else ""
        options.write([f"no such connection in the history{more}\n"])
    options.tell_gaps(gaps)
    return options.status(gaps)
