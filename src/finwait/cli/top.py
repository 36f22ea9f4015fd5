"""``finwait top``: the live view."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self, TextIO

from finwait.cli import options
from finwait.selecting import parse_filter

if TYPE_CHECKING:
    from finwait.remedy.guards import Limits
    from finwait.remedy.plan import Plan
    from finwait.table.filter import Filter
    from finwait.tui.app import Top
    from finwait.watching import Feed

__all__ = ["Clear", "add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "top",
        help="a live picture: where connections pile up",
        description="Show the TCP state diagram with the number of connections in each state and how many pass "
        "each arrow per second, the connections in groups, and the evidence of one. `?` lists the "
        "keys. Changes nothing, unless you mark connections and agree to the plan for them.",
    )
    options.add_filter(parser)
    parser.add_argument(
        "--from",
        dest="recording",
        metavar="FILE",
        help="show the looks of a recording",
    )
    parser.add_argument(
        "--refresh",
        type=options.pause_ms,
        default=2000,
        metavar="TIME",
        help="time between pictures (default: 2s)",
    )
    parser.set_defaults(run=run)


class Clear:
    """Plans for marked connections, as `finwait clear` makes them: its defaults and its guards.

    Args:
        allowed: what may be done; as `finwait clear` without options if not given.
    """

    def __init__(self, allowed: Limits | None = None) -> None:
        from finwait import planning

        self._allowed = allowed or planning.limits()
        self._plan: Plan | None = None

    def plan(self, keys: Sequence[tuple[int, int]]) -> tuple[str, bool]:
        """Look again, twice, and plan for the marked connections that are still there.

        Raises:
            Refused: more than may be ended at once.
            FinwaitError: the look failed.
        """
        from finwait import planning
        from finwait.remedy import plan as plans
        from finwait.report.plan import plan_lines
        from finwait.session import Look, live_machine
        from finwait.table.units import printable

        spaces = sorted({netns for netns, _ in keys})
        text = " or ".join(
            f"( netns = {space} and cookie = {','.join(f'{c:#x}' for n, c in keys if n == space)} )"
            for space in spaces
        )
        planned = planning.make_plan(live_machine(), Look(), parse_filter([text]), self._allowed)
        self._plan = plan = planned.plan
        plans.permit(plan)
        lines = plan_lines(plan)
        if gone := _gone(keys):
            lines.append(f"\n{gone} of the marked are gone meanwhile\n")
        if planned.gaps:
            lines += ["\nNot seen:\n", *(f"  {gap}\n" for gap in planned.gaps)]
        if len(text) < 200:  # a command that is cut short would do something else
            lines.append(f"\nThe same: `finwait clear '{text}'`\n")
        return printable("".join(lines), lines=True), bool(plan.steps)

    def act(self) -> str:
        """Carry out the plan that was made last, journaled, by cookie.

        Raises:
            FinwaitError: the journal cannot be written.
        """
        from finwait.acting.apply import apply
        from finwait.kernel import procfs
        from finwait.kernel.journal import SqliteJournal
        from finwait.report.outcome import outcome_lines
        from finwait.table.units import printable

        plan, self._plan = self._plan, None
        if plan is None or not plan.steps:
            return "nothing was planned\n"
        # A thread of its own, which a closed terminal does not cut short: what was begun is finished and journaled.
        with SqliteJournal() as journal:
            outcomes = apply(plan, journal, boot_id=procfs.facts().boot_id)
        text = "".join(outcome_lines(outcomes)).lstrip("\n")
        return printable(text, lines=True) + "\n`finwait journal` has them.\n"


def _gone(keys: Sequence[tuple[int, int]]) -> int:
    """Return how many connections are in no dump any more."""
    from finwait.kernel.observe import Machine
    from finwait.kernel.observe import Plan as What
    from finwait.table import decode

    what = What(
        extensions=0, conntrack=False, files=False, established_limit=None,
        only=frozenset(netns for netns, _ in keys),
    )  # fmt: skip
    return len({cookie for _, cookie in keys} - set(decode.sockets(Machine().observe(what)).cookie.tolist()))


class Screen:
    """What is written to the terminal; once that is gone, nothing, and the view is told that it hung up.

    Textual writes in a thread, through a queue of 30 texts (``textual.drivers._writer_thread``). An OSError ends that
    thread, and whoever wants to write then waits for ever, the tracing instance still there.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._gone = False

    def write(self, text: str) -> int:
        """Write; an error means that nobody reads any more."""
        if not self._gone:
            with self._hung_up():
                return self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Write out what is buffered."""
        if not self._gone:
            with self._hung_up():
                self._file.flush()

    @contextmanager
    def _hung_up(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._gone = True
            os.kill(
                os.getpid(), signal.SIGHUP
            )  # one comes from the kernel only if the terminal was our session's

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a file has
        return getattr(self._file, name)


_PATIENCE_S = 5.0
"""Seconds that the view may take to end after a signal."""


def _leave(undo: ExitStack, number: int) -> None:
    """End without the view, which does not: its threads may wait for a terminal that is gone."""
    with suppress(Exception):
        undo.close()
    os._exit(128 + number)


class _Signals:
    """Ends the view at a signal: a closed terminal or a SIGTERM must not leave the tracing instance behind."""

    _ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def __init__(self) -> None:
        self.told: list[int] = []
        """The signals that came."""
        self._running: tuple[Top, ExitStack] | None = None
        self._last: threading.Timer | None = None

    def __enter__(self) -> Self:
        self._previous = [signal.signal(number, self._end) for number in self._ENDING]
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            self._last.cancel()
        for number, handler in zip(self._ENDING, self._previous, strict=True):
            signal.signal(number, handler)

    def watch(self, app: Top, undo: ExitStack) -> None:
        """End this view from now on."""
        self._running = app, undo

    def _end(self, number: int, frame: object) -> None:  # noqa: ARG002 - the form of a handler
        self.told.append(number)
        if self._running is None or not self._running[0].is_running:
            raise KeyboardInterrupt
        app, undo = self._running
        app.end()
        app.call_later(app.exit)
        if len(self.told) == 1:
            self._last = threading.Timer(_PATIENCE_S, _leave, (undo, number))
            self._last.daemon = True
            self._last.start()


def _terminal() -> TextIO:
    """Return where the view is drawn.

    Raises:
        FinwaitError: there is no terminal.
    """
    from finwait.errors import FinwaitError

    stderr = sys.__stderr__
    if stderr is None or not (sys.stdin.isatty() and sys.stdout.isatty() and stderr.isatty()):
        error = FinwaitError("`finwait top` needs a terminal")
        error.hint = "`finwait trace` and `finwait list` print lines"
        raise error
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)  # exported (`docker exec -e COLUMNS`) they would hide every later resize
    return stderr


def _view() -> type[Top]:
    """Return the view.

    Raises:
        FinwaitError: Textual is not installed.
    """
    from finwait.errors import FinwaitError

    try:
        from finwait.tui.app import Top
    except ImportError:
        error = FinwaitError("the package `textual` is not installed")
        error.hint = "pip install 'finwait[tui]'"
        raise error from None
    return Top


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status.

    Raises:
        FinwaitError: the filter is wrong, the sockets cannot be looked at, or Textual is not installed.
    """
    stderr, view = _terminal(), _view()
    wanted = parse_filter(args.filter) if args.filter else None
    with _Signals() as ending:
        try:
            with ExitStack() as stack:
                sys.__stderr__ = Screen(stderr)  # type: ignore[assignment, misc]  # where Textual's driver writes
                feed = _feed(stack, args.recording, wanted, args.refresh / 1000)
                clearing = None if args.recording else Clear()
                app = view(feed, parse_filter, clearing=clearing, wanted=args.filter)
                stack.callback(app.end)
                ending.watch(app, stack)
                app.run()
                if app.failed is not None:
                    raise app.failed
        except KeyboardInterrupt:
            ending.told.append(signal.SIGINT)
        finally:
            sys.__stderr__ = stderr  # type: ignore[assignment, misc]
    return 128 + ending.told[0] if ending.told else 0


def _feed(stack: ExitStack, recording: str | None, wanted: Filter | None, refresh: float) -> Feed:
    """Return what gives pictures: of a recording, or of this machine until the stack is closed."""
    from finwait.watching import Live, Recorded

    if recording:
        from finwait.recording.replay import open_recording

        return Recorded(open_recording(recording), wanted, refresh=refresh, path=recording)
    return stack.enter_context(Live(wanted, refresh=refresh))
