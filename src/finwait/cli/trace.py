"""``finwait trace [FILTER]``: transitions as they happen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from finwait.cli import options

if TYPE_CHECKING:
    from finwait.follow import Following, Round
    from finwait.report.transitions import Names
    from finwait.table.filter import Filter

__all__ = ["add_parser"]

_DESCRIPTION = """\
Print every change of state of TCP connections: when, where, from which state to which, how long it had
been in the old one, and whose it is. Reads the kernel's own tracepoint in a private tracefs instance; without
it, finwait compares snapshots, and says so.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "trace",
        help="print connections as they change state",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
        choices=("text", "wide", "jsonl", "csv", "parquet"),
        default="text",
        help="form of the output (default: text)",
    )
    parser.add_argument(
        "--stuck",
        type=options.duration_ms,
        metavar="DURATION",
        help="print only connections that stay in a closing state longer (e.g. 30s)",
    )
    parser.add_argument(
        "--follow-connection", action="store_true", help="print both ends of a connection as one story"
    )
    parser.add_argument(
        "--summary", action="store_true", help="histograms of the time in each state, at the end"
    )
    parser.add_argument(
        "--resets", action="store_true", help="also resets sent and received, with the reason"
    )
    parser.add_argument("--retransmits", action="store_true", help="also retransmissions")
    parser.add_argument("--stack", action="store_true", help="print the kernel and user stack of each change")
    parser.add_argument(
        "--count", type=options.at_least_one, metavar="N", help="stop after N lines (or records)"
    )
    parser.add_argument(
        "--for",
        dest="duration",
        type=options.duration_ms,
        metavar="DURATION",
        help="stop after this time (e.g. 10s, 5m)",
    )
    parser.add_argument(
        "--no-lookup",
        action="store_true",
        help="do not look connections up: cheaper, but namespace, owner and minisockets are not told",
    )
    parser.add_argument("--poll", action="store_true", help="do not trace; compare looks at the sockets")
    parser.add_argument(
        "--interval",
        type=options.pause_ms,
        default=250,
        metavar="DURATION",
        help="time between looks at the sockets (default: 250ms)",
    )
    parser.add_argument(
        "--buffer-kb",
        type=options.whole(1, 1 << 21),
        metavar="KIB",
        help="ring buffer of each CPU (default: 64 MiB shared out)",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="do not print the method and its blind spots"
    )
    parser.set_defaults(run=run, wrong=parser.error)


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together; each alone does what it says."""
    import sys

    own = [
        name for name in ("stuck", "follow_connection", "summary") if getattr(args, name) not in (None, False)
    ]
    shown = [f"--{name.replace('_', '-')}" for name in own]
    if len(own) > 1:
        args.wrong(f"{shown[0]} and {shown[1]} print different things: choose one")
    forms = ("text", "wide", "jsonl") if own == ["stuck"] else ("text", "wide")
    if own and args.output not in forms:
        args.wrong(f"{shown[0]} prints {' or '.join(forms)}, not {args.output}")
    if own == ["stuck"] and args.no_lookup:
        args.wrong("--stuck looks at the sockets: it cannot go with --no-lookup")
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

    def start(self) -> None:
        from finwait.report import transitions as text

        if self._args.output == "csv":
            print(",".join(text.CSV_COLUMNS), file=self._out)
        elif (
            self._args.output in ("text", "wide")
            and not self._args.follow_connection
            and not self._args.stuck
        ):
            print(text.header(), file=self._out)

    def line(self, line: str) -> bool:
        """Print one line; return whether there is room for more."""
        if self.left == 0:
            return False
        print(line, file=self._out)
        self.left -= 1
        return self.left != 0

    def rows(self, found: Round, names: Names) -> bool:
        """Print the rows of a round; return whether there is room for more."""
        from finwait.report import transitions as text

        cpus, times, pids = (found.rows[n].tolist() for n in ("cpu", "time_ns", "pid"))
        for k, record in enumerate(text.records(found.rows, names)):
            if self.left == 0:
                return False
            stacks = found.stacks.get((cpus[k], times[k]))
            if self._args.output == "parquet":
                self._records.append(record)
            elif self._args.output == "csv":
                print(text.csv_line(record), file=self._out)
            elif self._args.output == "jsonl":
                if stacks is not None:
                    kernel, user = self._named(stacks, pids[k], interrupt=record["moved_by"] is None)
                    record = {**record, "kernel_stack": kernel, "user_stack": user}
                print(text.encode(record), file=self._out)
            else:
                print(text.line(record, names, wide=self._args.output == "wide"), file=self._out)
                if stacks is not None:
                    kernel, user = self._named(stacks, pids[k], interrupt=record["moved_by"] is None)
                    for frame in kernel:
                        print(f"             {frame}", file=self._out)
                    for frame in user:
                        print(f"           u {frame}", file=self._out)
            self.left -= 1
        self._out.flush()
        return self.left != 0

    def _named(
        self, stacks: tuple[tuple[int, ...], tuple[int, ...]], pid: int, *, interrupt: bool
    ) -> tuple[list[str], list[str]]:
        from finwait.kernel.symbols import KernelSymbols, user_frames

        if self._symbols is None:
            self._symbols = KernelSymbols()
        kernel, user = stacks
        # In an interrupt the user stack is that of a bystander.
        return self._symbols.frames(kernel), [] if interrupt else user_frames(pid, user)

    def finish(self) -> None:
        if self._args.output == "parquet":
            _parquet(self._records)
        self._out.flush()


def _parquet(records: list[dict[str, Any]]) -> None:
    import io
    import sys

    try:
        from arro3 import core
        from arro3.io import write_parquet
    except ImportError:
        from finwait.errors import FinwaitError

        error = FinwaitError("cannot write Parquet: the package `arro3-io` is not installed")
        error.hint = "pip install 'finwait[export]'"
        raise error from None
    from finwait.report.transitions import CSV_COLUMNS

    whole = {"sport", "dport", "netns", "in_old_us", "cookie", "inode", "expires_ms"}
    columns: dict[str, Any] = {}
    for name in CSV_COLUMNS:
        if name == "owner":
            cells: list[Any] = [
                " ".join(f"{o['comm']}[{o['pid']}]" for o in r["owners"] or ()) for r in records
            ]
        elif name == "moved_by":
            cells = [f"{m['comm']}[{m['pid']}]" if (m := r["moved_by"]) else None for r in records]
        else:
            cells = [r.get(name) for r in records]
        kind = core.DataType.int64() if name in whole else core.DataType.string()
        columns[name] = core.Array(cells, type=kind)
    out = io.BytesIO()
    write_parquet(core.Table.from_pydict(columns), out)
    sys.stdout.buffer.write(out.getvalue())


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status.

    Raises:
        FinwaitError: the filter is wrong, or neither tracing nor looking is possible.
    """
    import signal
    import time

    from finwait.follow import Following
    from finwait.table.filter import parse

    wanted = parse(args.filter) if args.filter else None
    limit = None if args.duration is None else args.duration / 1000
    stuck = None if args.stuck is None else args.stuck / 1000
    _check(args)
    following = Following(
        wanted,
        resets=args.resets,
        retransmits=args.retransmits,
        stacks=args.stack,
        tracing=not args.poll,
        # A histogram needs the times alone, unless the FILTER asks who and where.
        lookup=not args.no_lookup and not (args.summary and (wanted is None or _by_numbers(wanted))),
        interval=args.interval / 1000,
        buffer_kb=args.buffer_kb,
    )
    # A closed terminal or a SIGTERM must not leave the instance behind: both end the loop as Ctrl-C does.
    ending = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, signal.default_int_handler) for number in ending]
    try:
        with following:
            if not args.quiet:
                _say_how(following)
            end = None if limit is None else time.monotonic() + limit
            return _loop(following, args, end, stuck)
    finally:
        for number, handler in zip(ending, previous, strict=True):
            signal.signal(number, handler)


def _by_numbers(wanted: Filter) -> bool:
    """Whether ports, addresses and states decide, which every traced event has."""
    return wanted.columns <= {"sport", "dport", "src", "dst", "state", "family"} and not wanted.needs


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


def _names(following: Following, found: Round) -> Names:
    import time

    from finwait.follow import pod_uid
    from finwait.report.transitions import Names

    rows = found.rows
    by_task = rows.pid[~rows.interrupt & (rows.pid != 0)].tolist()
    owners = following.owners(rows.inode.tolist(), by_task)
    paths = following.cgroups(rows.cgroup_id.tolist())
    return Names(
        wall_offset_ns=time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        utc_offset_s=time.localtime().tm_gmtoff,
        netns=following.netns_names(),
        owners={inode: [(o.pid, o.comm) for o in holders] for inode, holders in owners.items()},
        pods={number: uid for number, path in paths.items() if (uid := pod_uid(path))},
        tasks=following.task_names(set(by_task)),
        reasons=following.reasons(),
        looked_up=following.looks_up,
    )


def _loop(following: Following, args: argparse.Namespace, end: float | None, stuck: float | None) -> int:
    import sys
    import time

    from finwait.report import transitions as text
    from finwait.table.transitions import TransitionTable

    sink = _Sink(args)
    stories = text.Stories() if args.follow_connection else None
    kept: list[TransitionTable] = []
    lost = 0
    partial = False
    status = 0
    told: set[tuple[int, int]] = set()
    if not args.summary:
        sink.start()

    def show(found: Round) -> bool:
        nonlocal lost, partial
        lost += found.lost
        for gap in found.gaps:
            if gap.needs:  # a namespace that vanished is news of its own, in the rows
                partial = True
                print(f"gap: {gap}", file=sys.stderr)
        if found.lost:
            print(f"lost {found.lost} records: the ring buffer was full", file=sys.stderr)
        if args.summary:
            kept.append(found.rows)
        elif stuck is not None:
            return _stuck(following, sink, stuck, told)
        elif len(found.rows):
            names = _names(following, found)
            if stories is None:
                return sink.rows(found, names)
            for story in stories.add(found.rows, names):
                if not sink.line("\n".join(story)):
                    return False
        return True

    try:
        going = True
        while going and (end is None or time.monotonic() < end):
            pause = 0.5 if end is None else min(0.5, max(end - time.monotonic(), 0))
            going = show(following.step(pause))
            if going and stuck is not None:
                following.look_now()
                going = _stuck(following, sink, stuck, told)
        if going:
            show(following.finish())
            if stuck is not None:
                _stuck(following, sink, stuck, told, last=True)
    except KeyboardInterrupt:
        status = 130
    if stories is not None and not args.summary:
        for story in stories.rest():
            if not sink.line("\n".join(story)):
                break
    if args.summary:
        for line in text.summary(TransitionTable.concatenate(kept)):
            print(line)
    sink.finish()
    lost = _account(following, lost)
    return status or (3 if lost or partial else 0)


def _account(following: Following, lost: int) -> int:
    """Say what was lost in all, by the ring buffer's own account."""
    import sys

    statistics = following.statistics()
    if statistics is None:
        return 0
    lost = max(lost, statistics.lost)
    if lost:
        print(
            f"lost {lost} of {statistics.read + lost} records in all; ages across a loss are not given\n"
            "hint: a larger `--buffer-kb`, or a FILTER with ports, which the kernel applies",
            file=sys.stderr,
        )
    return lost


def _stuck(
    following: Following, sink: _Sink, limit: float, told: set[tuple[int, int]], *, last: bool = False
) -> bool:
    """Print what is newly stuck; with ``last`` also that whose holder is still being looked for."""
    from finwait.follow import pod_uid
    from finwait.report.transitions import duration, endpoint
    from finwait.table.sockets import address_text
    from finwait.uapi import tcp

    found = [one for one in following.stuck(limit) if (one.key, one.state) not in told]
    if not found:
        return True
    owners = following.owners(one.inode for one in found)
    paths = following.cgroups(one.cgroup_id for one in found)
    names = following.netns_names()
    for one in found:
        if one.inode and one.inode not in owners and following.listing and not last:
            continue  # it stays stuck, and is told when every process has been looked into
        told.add((one.key, one.state))
        space = next(iter(names.get(one.netns or 0, ())), str(one.netns))
        ends = (
            f"{endpoint(address_text(*one.src), one.sport)} > {endpoint(address_text(*one.dst), one.dport)}"
        )
        age = ("for " if one.exact else "for at least ") + duration(one.for_ns)
        holders = owners.get(one.inode, ())
        owner = ", ".join(str(o) for o in holders) or (
            "nobody (orphan)" if not one.inode else "unknown holder"
        )
        uid = pod_uid(paths.get(one.cgroup_id, ""))
        text = f"{space:8} {ends:37} {tcp.STATES[one.state]:10} {age}  {owner}"
        if uid:
            wide = sink.wide or len(text) + len(uid) + 6 <= 100
            text += f"  pod {uid}" if wide else f"\n{'':8} pod {uid}"
        if not sink.line(text):
            return False
    return True
