"""``finwait trace [FILTER]``: transitions as they happen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from finwait.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from finwait.errors import Gap
    from finwait.follow import Following, Round, Stuck
    from finwait.report.transitions import TransitionNames

__all__ = ["add_parser"]

_PARQUET_ROWS = 1_000_000
"""A Parquet file is written at its end, from memory."""

_DESCRIPTION = """\
Print every change of state of TCP connections: when, where, the old and the new state, how long
the old one lasted, and which process holds the connection. Reads the kernel's own tracepoint in a
private tracefs instance; without it, finwait compares snapshots of the sockets, and says so.
A FILTER that cannot be applied to a change of state (a queue, a timer, a rule) is refused;
`--stuck` and `--leaks` look at sockets and accept most.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "trace",
        help="print connections as they change state",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(parser)
    _add_how(parser)
    parser.set_defaults(run=run, wrong=parser.error)


def _add_what(parser: argparse.ArgumentParser) -> None:
    """Add which changes are printed, and in which form."""
    parser.add_argument(
        "filter",
        nargs="*",
        type=str,
        action=options.Words,
        metavar="FILTER",
        help="which connections, in the grammar of ss",
    )
    parser.add_argument(
        "-o",
        "--output",
        choices=("text", "wide", "json", "jsonl", "csv", "parquet"),
        default="text",
        help="format (default text); json and jsonl are the same here, one object per line; with `--leaks` json is "
        "one document",
    )
    parser.add_argument(
        "--stuck",
        type=options.duration_ms,
        metavar="DURATION",
        help="print only connections that stay in a closing state longer than this (e.g. 30s)",
    )
    parser.add_argument(
        "--follow-connection", action="store_true", help="print both ends of a connection as one story"
    )
    parser.add_argument(
        "--summary", action="store_true", help="histograms of the time in each state, at the end"
    )
    parser.add_argument(
        "--resets", action="store_true", help="also print resets sent and received, with the reason"
    )
    parser.add_argument("--retransmits", action="store_true", help="also print retransmissions")
    parser.add_argument("--stack", action="store_true", help="print the kernel and user stack of each change")
    parser.add_argument(
        "--leaks",
        action="store_true",
        help="instead of changes: which code opened, and which half-closed, the connections that are still there "
        "at the end, grouped by stack; samples accept, connect and shutdown of every process by perf events, with "
        "the top 16 KiB of each caller's stack (text or json)",
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    """Add for how long, and how it is watched."""
    parser.add_argument(
        "--count", type=options.at_least_one, metavar="N", help="stop after N lines (or records)"
    )
    parser.add_argument(
        "--for",
        dest="duration",
        type=options.while_ms,
        metavar="DURATION",
        help="stop after this time (e.g. 10s, 5m)",
    )
    parser.add_argument(
        "--no-lookup",
        action="store_true",
        help="do not look connections up: cheaper, but without namespace, owner and minisockets",
    )
    parser.add_argument("--poll", action="store_true", help="do not trace; compare snapshots of the sockets")
    parser.add_argument(
        "--interval",
        type=options.pause_ms,
        default=250,
        metavar="DURATION",
        help="time between two snapshots of the sockets (default: 250ms)",
    )
    parser.add_argument(
        "--buffer-kb",
        type=options.whole(1, 1 << 21),
        metavar="KIB",
        help="ring buffer of each CPU (default: 64 MiB divided among the CPUs)",
    )
    parser.add_argument(
        "--not-holder",
        action="append",
        type=options.pid,
        default=[],
        metavar="PID",
        help="assume that PID, which cannot be inspected, holds none of them (repeatable)",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="do not print the method and its blind spots"
    )


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together; each alone does what it says."""
    import sys

    own = [
        name for name in ("stuck", "follow_connection", "summary") if getattr(args, name) not in (None, False)
    ]
    shown = [f"--{name.replace('_', '-')}" for name in own]
    if len(own) > 1:
        args.wrong(f"{shown[0]} and {shown[1]} print different things: choose one")
    if args.output == "json":  # a trace has no end at which a document could be closed
        args.output = "jsonl"
    forms = ("text", "wide", "jsonl") if own == ["stuck"] else ("text", "wide")
    if own and args.output not in forms:
        args.wrong(f"{shown[0]} prints {' or '.join(forms)}, not {args.output}")
    if own == ["stuck"] and args.no_lookup:
        args.wrong("--stuck looks at the sockets, so it cannot be combined with --no-lookup")
    if args.output == "parquet" and sys.stdout.isatty():
        args.wrong("Parquet is not for a terminal: redirect the output to a file")


class _Sink:
    """Where rows go in the form that was asked for; counts them."""

    def __init__(self, args: argparse.Namespace) -> None:
        import sys

        self._args = args
        self._out = sys.stdout
        self._records: list[dict[str, Any]] = []
        self._symbols: Any = None
        self.left = args.count if args.count is not None else -1
        self.wide = args.output == "wide"
        self.full = False
        """Whether a Parquet file holds as many rows as fit into memory."""
        self.unprinted = 0
        """Rows that were handed over and not printed yet."""

    def start(self) -> None:
        from finwait.report import transitions as text

        if self._args.output == "csv":
            print(",".join(text.CSV_COLUMNS), file=self._out)
        elif (
            self._args.output in ("text", "wide")
            and not self._args.follow_connection
            and self._args.stuck is None
        ):
            print(text.header(), file=self._out)
        self._out.flush()

    def line(self, line: str) -> bool:
        """Print one line; return whether there is room for more."""
        if self.left == 0:
            return False
        print(line, file=self._out, flush=True)
        self.left -= 1
        return self.left != 0

    def rows(self, batch: Round, names: TransitionNames) -> bool:
        """Print the rows of a round; return whether there is room for more."""
        from finwait.report import transitions as text

        cpus, times, tids = (batch.rows[n].tolist() for n in ("cpu", "time_ns", "pid"))
        self.unprinted = len(times)
        for k, record in enumerate(text.records(batch.rows, names)):
            if self.left == 0 or self.full:
                self.unprinted = 0
                return False
            stacks = batch.stacks.get((cpus[k], times[k]))
            if self._args.output == "parquet":
                self._records.append(record)
                self.full = len(self._records) >= _PARQUET_ROWS
            elif self._args.output == "csv":
                print(text.csv_line(record), file=self._out)
            elif self._args.output == "jsonl":
                if stacks is not None:
                    kernel, user = self._named(stacks, tids[k], interrupt=record["moved_by"] is None)
                    record = {**record, "kernel_stack": kernel, "user_stack": user}
                print(text.encode(record), file=self._out)
            else:
                print(text.line(record, names, wide=self._args.output == "wide"), file=self._out)
                if stacks is not None:
                    kernel, user = self._named(stacks, tids[k], interrupt=record["moved_by"] is None)
                    for frame in kernel:
                        print(f"             {frame}", file=self._out)
                    for frame in user:
                        print(f"           u {frame}", file=self._out)
            self.left -= 1
            self.unprinted -= 1
        self._out.flush()
        return self.left != 0 and not self.full

    def _named(
        self, stacks: tuple[tuple[int, ...], tuple[int, ...]], pid: int, *, interrupt: bool
    ) -> tuple[list[str], list[str]]:
        from finwait.kernel.symbols import KernelSymbols, user_frames

        if self._symbols is None:
            self._symbols = KernelSymbols()
        kernel, user = stacks
        # In an interrupt the user stack is that of a bystander.
        return self._symbols.frames(kernel), [] if interrupt else user_frames(pid, user)

    def drop(self) -> None:
        """Write no more: whoever reads may have stopped reading, and writing would wait for it."""
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())

    def finish(self) -> None:
        if self._args.output == "parquet":
            _parquet(self._records)
        self._out.flush()


def _parquet(records: list[dict[str, Any]]) -> None:
    from finwait.cli.printing import export_lists
    from finwait.report.transitions import CSV_COLUMNS, flat_names

    whole = {"sport", "dport", "netns", "in_old_us", "cookie", "inode", "expires_ms", "ifindex"}
    columns: dict[str, tuple[list[Any], str]] = {}
    for name in CSV_COLUMNS:
        if name in ("owner", "last_owner", "moved_by"):
            cells: list[Any] = [flat_names(r)[name] or None for r in records]
        else:
            cells = [r.get(name) for r in records]
        columns[name] = cells, "int64" if name in whole else "utf8"
    export_lists(columns)


class _Ending:
    """What ends a trace: its time, or a signal.

    The first signal ends it as its time would: what was traced is looked up and printed. A second one ends it at once.
    A closed terminal or a SIGTERM must not leave the tracing instance behind either.
    """

    def __init__(self, seconds: float | None) -> None:
        import signal
        import time

        self._seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds
        self._signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._previous = [signal.signal(number, self._take) for number in self._signals]
        self.asked = False

    def _take(self, number: int, frame: object) -> None:  # noqa: ARG002 - the form of a handler
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def begin(self) -> None:
        """Count the time from now on."""
        import time

        self._end = None if self._seconds is None else time.monotonic() + self._seconds

    @property
    def left(self) -> float:
        """Seconds to go; 0 when it is over."""
        import time

        if self.asked:
            return 0.0
        return 3600.0 if self._end is None else max(self._end - time.monotonic(), 0.0)

    def restore(self) -> None:
        """Give the signals back."""
        import signal

        for number, handler in zip(self._signals, self._previous, strict=True):
            signal.signal(number, handler)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status.

    Raises:
        FinwaitError: the filter is wrong, or neither tracing nor looking is possible.
    """
    from finwait.follow import Following
    from finwait.table.filter import parse
    from finwait.table.trace_filter import by_the_event, refusal

    if args.leaks:
        return _leaks(args)
    row_filter = parse(args.filter) if args.filter else None
    _check(args)
    if refused := refusal(row_filter, stuck=args.stuck is not None):
        raise refused
    following = Following(
        row_filter,
        resets=args.resets,
        retransmits=args.retransmits,
        stacks=args.stack,
        tracing=not args.poll,
        # A histogram needs the times alone, unless the FILTER asks who and where.
        lookup=not args.no_lookup and not (args.summary and by_the_event(row_filter)),
        interval=args.interval / 1000,
        buffer_kb=args.buffer_kb,
        left_only=args.summary,
        rows=args.stuck is None,
        not_holders=frozenset(args.not_holder),
    )
    ending = _Ending(None if args.duration is None else args.duration / 1000)
    try:
        with following:
            if not args.quiet:
                _say_how(following)
            return _Run(following, args, ending).go()
    finally:
        ending.restore()


def _leaks(args: argparse.Namespace) -> int:
    """Say which code opened the connections that are still there at the end."""
    from finwait.cli.leaks import check, run_leaks

    check(args)
    ending = _Ending(None if args.duration is None else args.duration / 1000)
    try:
        return run_leaks(args, ending.begin, lambda: ending.left, lambda: ending.asked)
    finally:
        ending.restore()


def _say_how(following: Following) -> None:
    import sys

    if following.mode == "tracing":
        print("tracing in a private tracefs instance; not seen:", file=sys.stderr)
    else:
        why = f": {following.why_polling}" if following.why_polling else ""
        print(f"polling, not tracing{why}", file=sys.stderr)
        print("not seen this way:", file=sys.stderr)
    for sentence in following.cannot_see:
        print(f"  {sentence}", file=sys.stderr)
    for note in following.notes:
        print(f"note: {note}", file=sys.stderr)


def _names(following: Following, batch: Round) -> TransitionNames:
    import time

    from finwait.follow import pod_uid
    from finwait.report.transitions import Mover, TransitionNames

    rows = batch.rows
    actors = following.who(rows)
    movers = {tid: Mover(tid, name) for tid, name in actors.threads.items()}
    movers |= {
        tid: Mover(tid, task.thread, task.pid, task.comm, task.kernel) for tid, task in actors.tasks.items()
    }
    paths = following.cgroups(rows.cgroup_id.tolist())
    return TransitionNames(
        wall_offset_ns=time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        utc_offset_s=time.localtime().tm_gmtoff,
        netns=following.netns_names(),
        owners={inode: [(o.pid, o.comm) for o in holders] for inode, holders in actors.owners.items()},
        last={life: [(o.pid, o.comm) for o in holders] for life, holders in actors.last.items()},
        pods={number: uid for number, path in paths.items() if (uid := pod_uid(path))},
        movers=movers,
        reasons=following.reasons(),
        looked_up=following.looks_up,
    )


class _Gaps:
    """What could not be seen, told once of each kind: processes come and go, and each number would be a line."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], Gap] = {}
        self._spaces: dict[tuple[str, str], dict[str, None]] = {}

    def tell(self, gaps: Iterable[Gap]) -> None:
        """Say the first of each kind; a namespace that vanished is no gap but news, which is in the rows."""
        import sys

        from finwait.table.units import printable

        for gap in gaps:
            kind = gap.doing, gap.needs
            if not gap.needs:
                continue
            if kind not in self._told:
                self._told[kind] = gap
                print(printable(f"gap: {gap}"), file=sys.stderr)
            if gap.netns and len(self._spaces.setdefault(kind, {})) < _MOST_SPACES:
                self._spaces[kind][gap.where] = None

    def rest(self, now: Iterable[Gap]) -> None:
        """Say at the end what changed since: the numbers of the last look, and the other namespaces.

        Args:
            now: what the last look could not see.
        """
        import sys

        from finwait.table.units import printable

        for gap in now:
            first = self._told.get((gap.doing, gap.needs))
            if first is not None and not gap.netns and first.where != gap.where:
                print(printable(f"gap: at the end {gap}"), file=sys.stderr)
        for (doing, needs), spaces in self._spaces.items():
            if len(spaces) > 1:
                more = " and more" if len(spaces) == _MOST_SPACES else ""
                names = ", ".join(spaces) + more
                print(printable(f"gap: {names}: could not {doing} (needs {needs})"), file=sys.stderr)

    def __bool__(self) -> bool:
        return bool(self._told)


_MOST_SPACES = 100
"""Namespaces that are named at the end."""


class _Run:
    """One trace, from its first row to what is said at its end."""

    def __init__(self, following: Following, args: argparse.Namespace, ending: _Ending) -> None:
        from finwait.report.transitions import Stories, Summary

        self._following = following
        self._args = args
        self._ending = ending
        self._sink = _Sink(args)
        self._stories = Stories() if args.follow_connection else None
        self._summary = Summary() if args.summary else None
        self._stuck_s = None if args.stuck is None else args.stuck / 1000
        self._told: set[tuple[int, int]] = set()
        self._lost = 0
        self._partial = False
        self._gaps = _Gaps()
        self._blind_told = False

    def go(self) -> int:
        """Trace until it ends; return the exit status."""
        missing = 0
        if self._summary is None:
            self._sink.start()
        try:
            going = True
            while going and (remaining := self._ending.left) > 0:
                going = self._show(self._following.step(min(0.5, remaining)))
                if going and self._stuck_s is not None:
                    self._tell_gaps(self._following.look_now())
                    going = self._tell_stuck()
            if going:
                self._show(self._following.finish())
                if self._stuck_s is not None:
                    self._tell_stuck(last=True)
        except KeyboardInterrupt:
            missing = self._sink.unprinted + self._following.waiting
            self._sink.drop()
        else:
            self._tell_rest()
        return self._account(missing)

    def _show(self, batch: Round) -> bool:
        """Show the rows of a round; return whether there is room for more."""
        import sys

        self._lost += batch.lost
        self._tell_gaps(batch.gaps)
        if batch.lost:
            print(f"lost {batch.lost} records: the ring buffer was full", file=sys.stderr)
        if self._summary is not None:
            self._summary.add(batch.rows)
            return True
        if self._stuck_s is not None:
            return self._tell_stuck()
        if not len(batch.rows):
            return True
        names = _names(self._following, batch)
        if self._stories is None:
            return self._sink.rows(batch, names)
        return all(self._sink.line("\n".join(story)) for story in self._stories.add(batch.rows, names))

    def _tell_gaps(self, gaps: tuple[Gap, ...]) -> None:
        self._gaps.tell(gaps)
        self._partial = self._partial or bool(self._gaps)

    def _tell_rest(self) -> None:
        """Tell what is told at the end."""
        if self._stories is not None:
            for story in self._stories.rest():
                if not self._sink.line("\n".join(story)):
                    break
        if self._summary is not None:
            for line in self._summary.lines():
                print(line)
        self._sink.finish()

    def _account(self, missing: int) -> int:
        """Say what is missing, and of what nobody knows; return the exit status."""
        import sys

        following = self._following
        lost = self._say_lost()
        if missing:
            print(f"interrupted: at least {missing} traced rows were not printed", file=sys.stderr)
        if unjudged := following.unjudged:
            noun = "stuck connections" if self._stuck_s is not None else "rows"
            print(
                f"left out: {unjudged} {noun} that the FILTER could not judge, because the connection was over, or its "
                "holder could not be found",
                file=sys.stderr,
            )
            self._tell_gaps(following.blind_gaps)
        self._gaps.rest((*following.gaps, *following.blind_gaps))
        bounded = list(following.bounded)
        if self._stories is not None and self._stories.cut:
            bounded.append(
                f"{self._stories.cut} stories were printed before they were over, because too many were "
                "open at once"
            )
        if self._sink.full:
            bounded.append(f"the file ends after {_PARQUET_ROWS} rows, which is what fits into memory")
        for sentence in bounded:
            print(f"bounded: {sentence}", file=sys.stderr)
        if self._ending.asked:
            return 130
        return 3 if lost or missing or unjudged or bounded or self._partial else 0

    def _say_lost(self) -> int:
        """Say what was lost in all, by the ring buffer's own account."""
        import sys

        statistics = self._following.statistics()
        if statistics is None:
            return 0
        lost = max(self._lost, statistics.lost)
        if lost:
            print(
                f"lost {lost} of {statistics.read + lost} records in all; ages across a loss are not given\n"
                "hint: a larger `--buffer-kb`, or a FILTER with ports, which the kernel applies",
                file=sys.stderr,
            )
        return lost

    def _tell_stuck(self, *, last: bool = False) -> bool:
        """Print what is newly stuck; return whether there is room for more."""
        assert self._stuck_s is not None
        following = self._following
        stuck = following.stuck(self._stuck_s, self._told, last=last)
        if not stuck:
            return True
        paths = following.cgroups(connection.cgroup_id for connection in stuck)
        names = following.netns_names()
        blind = bool(following.blind_gaps)
        for connection in stuck:
            self._told.add((connection.key, connection.state))
            record = _stuck_record(connection, names, paths, blind=blind)
            self._partial = self._partial or record["holders"] is None
            if record["holders"] is None:
                self._tell_blind()
            shown = (
                _stuck_json(record) if self._args.output == "jsonl" else _stuck_text(record, self._sink.wide)
            )
            if not self._sink.line(shown):
                return False
        return True

    def _tell_blind(self) -> None:
        """Say once why holders are not known."""
        if not self._blind_told:
            self._blind_told = True
            self._gaps.tell(self._following.blind_gaps)


def _stuck_record(
    connection: Stuck, names: Mapping[int, Sequence[str]], paths: Mapping[int, str], *, blind: bool
) -> dict[str, Any]:
    """Return a stuck connection as an object; ``holders`` is null where it is not known who holds it."""
    from finwait.follow import pod_uid
    from finwait.table.sockets import address_text
    from finwait.uapi import tcp

    holders: list[dict[str, Any]] | None = []
    if connection.held is not None:
        holders = [{"pid": owner.pid, "comm": owner.comm} for owner in connection.held.owners]
        if not holders and (blind or not connection.held.whole):
            holders = None
    return {
        "state": tcp.state_name(connection.state),
        "for_ms": connection.for_ns // 1_000_000,
        "at_least": not connection.exact,
        "netns": connection.netns,
        "netns_name": next(iter(names.get(connection.netns or 0, ())), None),
        "family": connection.family,
        "ifindex": connection.ifindex,
        "src": address_text(*connection.src),
        "sport": connection.sport,
        "dst": address_text(*connection.dst),
        "dport": connection.dport,
        "holders": holders,
        "orphan": connection.held is None and connection.state != tcp.CLOSE_WAIT,
        "not_accepted": connection.held is None and connection.state == tcp.CLOSE_WAIT,
        "pod_uid": pod_uid(paths.get(connection.cgroup_id, "")) or None,
        "cookie": connection.key,
        "inode": connection.inode or None,
    }


def _stuck_json(record: dict[str, Any]) -> str:
    from finwait.report.transitions import encode

    named = {name: value for name, value in record.items() if name != "holders"}
    return encode({"kind": "stuck", **named, "owners": record["holders"]})


def _stuck_text(record: dict[str, Any], wide: bool) -> str:
    from finwait.report.transitions import duration, endpoint

    space = record["netns_name"] or str(record["netns"])
    ends = f"{endpoint(record['src'], record['sport'])} > {endpoint(record['dst'], record['dport'])}"
    age = ("for at least " if record["at_least"] else "for ") + duration(record["for_ms"] * 1_000_000)
    if record["orphan"]:
        owner = "nobody (orphan)"
    elif record["not_accepted"]:
        owner = "not accepted yet"
    elif record["holders"] is None:
        owner = "unknown holder"
    else:
        owner = ", ".join(f"{o['comm']}[{o['pid']}]" for o in record["holders"]) or "no process (in flight?)"
    text = f"{space:8} {ends:37} {record['state']:10} {age}  {owner}"
    if uid := record["pod_uid"]:
        fits = wide or len(text) + len(uid) + 6 <= 100
        text += f"  pod {uid}" if fits else f"\n{'':8} pod {uid}"
    return text
