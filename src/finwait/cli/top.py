"""``finwait top``: the live view."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TextIO

from finwait.agent.option_texts import SOCKET
from finwait.cli import options
from finwait.selecting import parse_filter

if TYPE_CHECKING:
    from finwait.errors import FinwaitError
    from finwait.remedy.guards import Limits
    from finwait.remedy.outcome import Outcome
    from finwait.remedy.plan import Plan
    from finwait.report.journal import ActLine
    from finwait.table.filter import Filter
    from finwait.tui.agent_view import AgentTop
    from finwait.tui.app import Top
    from finwait.watching import Feed

__all__ = ["Clear", "add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "top",
        help="a live picture: where connections pile up",
        description="Show how many connections are stuck and whether they become more, the TCP state diagram with "
        "the number of connections in each state and how many pass each arrow per second, the connections in "
        "groups, and the evidence of one. Number keys go to the views: 1 groups by cause, 2 connections, "
        "3 processes, 4 pods or namespaces, 5 settings, 6 the journal. `?` lists all keys. Changes nothing, "
        "unless you mark connections and agree to the plan for them.",
    )
    options.add_filter(parser)
    parser.add_argument(
        "--from",
        dest="recording",
        metavar="FILE",
        help="show the looks of a recording",
    )
    parser.add_argument(
        "--agent",
        action="store_true",
        help="show what the running agent saw last, and its history; looks at nothing itself, so it costs a busy "
        "machine nothing. Shows no rates, single connections or plans",
    )
    parser.add_argument(
        "--agent-socket",
        metavar="PATH",
        help=f"with `--agent`: ask the agent at this Unix socket (default `{SOCKET}`)",
    )
    parser.add_argument(
        "--refresh",
        type=options.pause_ms,
        default=2000,
        metavar="DURATION",
        help="time between pictures (default: 2s)",
    )
    parser.add_argument(
        "--min-age",
        type=options.duration_ms,
        metavar="DURATION",
        help="what is marked and in its state for less is left alone by a plan, as `finwait clear --min-age` does",
    )
    parser.set_defaults(run=run)


class Clear:
    """Plans for marked connections, as `finwait clear` makes them: its defaults and its guards.

    One thing acts at a time. What it did is never lost: `tell` writes it where the view ended before it was shown.

    Args:
        allowed: what may be done; as `finwait clear` without options if not given.
    """

    def __init__(self, allowed: Limits | None = None) -> None:
        from finwait import planning
        from finwait.kernel.interruption import Stop

        self._allowed = allowed or planning.limits()
        self._mark = Stop()
        self._one = threading.Lock()
        """Held by what acts."""
        self._idle = threading.Event()
        self._idle.set()
        self._untold = ""
        self._telling = threading.Lock()

    def plan(self, keys: Sequence[tuple[int, int]]) -> tuple[str, Callable[[], str] | None]:
        """Look again, twice, and plan for the marked connections that are still there.

        Returns:
            The plan as text, and what carries out exactly this plan; None where it has no steps.

        Raises:
            Refused: more than may be ended at once.
            FinwaitError: the look failed, or something acts.
        """
        from finwait import planning
        from finwait.remedy import plan as plans
        from finwait.report.plan import plan_lines
        from finwait.session import Look, live_machine
        from finwait.table.units import printable

        if not self._idle.is_set():
            raise _busy()
        spaces = sorted({netns for netns, _ in keys})
        text = " or ".join(
            f"( netns = {space} and cookie = {','.join(f'{c:#x}' for n, c in keys if n == space)} )"
            for space in spaces
        )
        planned = planning.make_plan(live_machine(), Look(), parse_filter([text]), self._allowed)
        plan = planned.plan
        plans.permit(plan)
        lines = plan_lines(plan)
        if gone := _gone(keys):
            lines.append(f"\n{gone} of the marked connections are gone by now\n")
        if planned.gaps:
            lines += ["\nNot seen:\n", *(f"  {gap}\n" for gap in planned.gaps)]
        if len(text) < 200:  # a command that is cut short would do something else
            lines.append(f"\nThe same plan: `finwait clear '{text}'`\n")
        return printable("".join(lines), lines=True), partial(self._carry_out, plan) if plan.steps else None

    def _carry_out(self, plan: Plan) -> str:
        """Carry out a plan, journaled, by cookie; return the result of each step.

        Raises:
            FinwaitError: something acts already.
        """
        if not self._one.acquire(blocking=False):
            raise _busy()
        self._idle.clear()
        try:
            return self._act(plan)
        finally:
            self._idle.set()
            self._one.release()

    def _act(self, plan: Plan) -> str:
        """Act in this thread, which no signal reaches; it stops at its next safe point once `stop` was called."""
        from finwait.acting.apply import apply
        from finwait.cli.options import left_open
        from finwait.errors import FinwaitError
        from finwait.kernel import procfs
        from finwait.kernel.interruption import stopped_by
        from finwait.kernel.journal import SqliteJournal

        outcomes: dict[int, Outcome] = {}
        detail = ""
        try:
            with SqliteJournal() as journal:
                try:
                    with stopped_by(self._mark):
                        apply(plan, journal, boot_id=procfs.facts().boot_id, into=outcomes)
                except KeyboardInterrupt:
                    done = "this was done until then:" if outcomes else "nothing was done"
                    detail = f"interrupted; {left_open(journal) or done}\n"
        except FinwaitError as error:
            detail = f"{error}\n" + (f"hint: {error.hint}\n" if error.hint else "")
        except BaseException as error:
            detail = f"failed: {error!r}; `finwait undo --incomplete` reverts what it can\n"
            raise
        finally:
            self._untold = result = _result(detail, outcomes)
        return result

    def told(self) -> None:
        """Say that the newest result is on the screen; without this it is written once the view is over."""
        if not self._mark.is_set():
            self._untold = ""

    def tell(self, seconds: float = -1) -> None:
        """Write the result of an act that no screen has shown, once.

        Args:
            seconds: at most so long; a terminal that is stopped takes nothing.
        """

        def write() -> None:
            with self._telling, suppress(OSError, ValueError):
                report, self._untold = self._untold, ""
                out = (
                    sys.__stderr__
                )  # while the view runs, `sys.stderr` is Textual's, which shows nothing of it
                if report and out is not None:
                    out.write(f"finwait: {report}")
                    out.flush()

        if seconds < 0:
            write()
            return
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(seconds)

    def stop(self) -> None:
        """Let what acts end at its next safe point, and nothing else be begun; for a signal handler."""
        self._mark.set()

    def wait(self) -> None:
        """Wait until nothing acts."""
        self._idle.wait()


def _busy() -> FinwaitError:
    from finwait.errors import FinwaitError

    error = FinwaitError("the plan before this one is still being carried out")
    error.hint = "wait for its result, then plan again"
    return error


def _result(detail: str, outcomes: dict[int, Outcome]) -> str:
    """Return the result of an act as text."""
    from finwait.report.outcome import outcome_lines
    from finwait.table.units import printable

    text = "".join(outcome_lines([outcomes[k] for k in sorted(outcomes)])).lstrip("\n") if outcomes else ""
    kept = "\n`finwait journal` lists these acts.\n" if outcomes else ""
    return printable(detail + text, lines=True) + kept


def _gone(keys: Sequence[tuple[int, int]]) -> int:
    """Return how many connections are in no dump any more."""
    from finwait.kernel.observe import LookPlan as What
    from finwait.kernel.observe import RunningMachine
    from finwait.table import decode

    look_plan = What(
        extensions=0, conntrack=False, files=False, established_limit=None,
        only=frozenset(netns for netns, _ in keys),
    )  # fmt: skip
    return len(
        {cookie for _, cookie in keys}
        - set(decode.sockets(RunningMachine().observe(look_plan)).cookie.tolist())
    )


_ACTS = 500
"""Of the journal, that are shown."""


def _acts() -> list[ActLine]:
    """Read the journal, the newest act first; empty where nothing was ever done.

    Raises:
        FinwaitError: it cannot be read.
    """
    from finwait.errors import KernelError
    from finwait.kernel.journal import SqliteJournal
    from finwait.report.journal import act_line

    try:
        opened = SqliteJournal(read_only=True)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    with opened as journal:
        cut = {entry.id for entry in journal.incomplete()}
        return [act_line(entry, cut=entry.id in cut) for entry in journal.entries(limit=_ACTS)]


def _theme(terminal: TextIO) -> str | None:
    """Return the theme for a terminal: its own 16 colours where it has no more, and nobody wants another."""
    from rich.console import Console

    from finwait.tui.app import TERMINALS_OWN

    if os.environ.get("TEXTUAL_THEME"):
        return None
    return TERMINALS_OWN if Console(file=terminal).color_system in (None, "standard") else None


def _allowed(args: argparse.Namespace) -> Limits:
    """Return what plans for marked connections may do."""
    from finwait import planning

    return planning.limits(min_age_ms=args.min_age)


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


def _leave(undo: ExitStack, number: int, clearing: Clear | None) -> None:
    """End without the view, which does not: its threads may wait for a terminal that is gone.

    What acts has been stopped; it is never cut short, or the journal would not say what was done.
    """
    if clearing is not None:
        clearing.wait()
    with suppress(Exception):
        undo.close()
    if clearing is not None:
        clearing.tell(_PATIENCE_S)
    os._exit(128 + number)


class _Signals:
    """Ends the view at a signal: a closed terminal or a SIGTERM must not leave the tracing instance behind."""

    _ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def __init__(self) -> None:
        self.told: list[int] = []
        """The signals that came."""
        self._running: tuple[Top | AgentTop, ExitStack, Clear | None] | None = None
        self._last: threading.Timer | None = None

    def __enter__(self) -> Self:
        self._previous = [signal.signal(number, self._end) for number in self._ENDING]
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            self._last.cancel()
        for number, handler in zip(self._ENDING, self._previous, strict=True):
            signal.signal(number, handler)

    def watch(self, app: Top | AgentTop, undo: ExitStack, clearing: Clear | None) -> None:
        """End this view from now on, and what acts for it."""
        self._running = app, undo, clearing

    def _end(self, number: int, frame: object) -> None:  # noqa: ARG002 - the form of a handler
        self.told.append(number)
        if self._running is not None and self._running[2] is not None:
            self._running[2].stop()
        if self._running is None or not self._running[0].begun:
            raise KeyboardInterrupt
        app, undo, clearing = self._running
        app.end()
        if app.is_running:  # else it is over, and only what acts is waited for
            app.call_later(app.exit)
        if len(self.told) == 1:
            self._last = threading.Timer(_PATIENCE_S, _leave, (undo, number, clearing))
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
    _check_agent(args)
    stderr, view = _terminal(), _view()
    row_filter = parse_filter(args.filter) if args.filter else None
    clearing = None if args.recording or args.agent else Clear(_allowed(args))
    crashed = 0
    with _Signals() as ending:
        try:
            with ExitStack() as stack:
                sys.__stderr__ = Screen(stderr)  # type: ignore[assignment, misc]  # where Textual's driver writes
                app: Top | AgentTop
                if args.agent:
                    app = _agent_view(args, _theme(stderr))
                else:
                    app = view(
                        _feed(stack, args.recording, row_filter, args.refresh / 1000),
                        parse_filter,
                        clearing=clearing,
                        acts=None if args.recording else _acts,
                        filter_words=args.filter,
                        theme=_theme(stderr),
                    )
                stack.callback(app.end)
                ending.watch(app, stack, clearing)
                app.run()
                crashed = app.return_code or 0
                if app.failed is not None:
                    raise app.failed
        except KeyboardInterrupt:
            ending.told.append(signal.SIGINT)
        finally:
            sys.__stderr__ = stderr  # type: ignore[assignment, misc]
            if clearing is not None:
                clearing.wait()
                clearing.tell()
    if crashed and not ending.told:
        options.write_error(["finwait: error: the view failed; this is a bug in finwait, please report it\n"])
    return 128 + ending.told[0] if ending.told else crashed


def _check_agent(args: argparse.Namespace) -> None:
    """Refuse options that say nothing of an agent, and an agent that is not there.

    Raises:
        UsageError: two options do not go together.
        FinwaitError: no agent answers.
    """
    from finwait.errors import UsageError

    if not args.agent:
        if args.agent_socket is not None:
            raise UsageError("`--agent-socket` says which agent `--agent` asks", hint="add `--agent`")
        return
    for option, value in (("--from", args.recording), ("--min-age", args.min_age)):
        if value is not None:
            raise UsageError(f"`--agent` and `{option}` do not go together", hint="choose one of them")
    from finwait.agent import client, protocol

    with suppress(ValueError):  # the view says what is wrong with an answer
        client.ask(protocol.AskStatus(), args.agent_socket or SOCKET)


def _agent_view(args: argparse.Namespace, theme: str | None) -> AgentTop:
    """Return the view of what an agent says."""
    from finwait.agent.watched import AgentPictures
    from finwait.tui.agent_view import AgentTop

    words = " ".join(args.filter)
    feed = AgentPictures(args.agent_socket or SOCKET, words, refresh=args.refresh / 1000)
    return AgentTop(feed, parse_filter, filter_words=args.filter, theme=theme)


def _feed(stack: ExitStack, recording: str | None, row_filter: Filter | None, refresh: float) -> Feed:
    """Return what gives pictures: of a recording, or of this machine until the stack is closed."""
    from finwait.watching import Live, RecordedPictures

    if recording:
        from finwait.pasted import opened

        return RecordedPictures(opened(recording), row_filter, refresh=refresh, path=recording)
    return stack.enter_context(Live(row_filter, refresh=refresh))
