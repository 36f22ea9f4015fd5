"""The pages that lie over the live view: help, the evidence of a connection, the plan to end some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Static

from finwait.errors import FinwaitError
from finwait.table.units import printable

__all__ = ["Clearing", "Help", "Page", "PlanPage", "Proposal", "told"]

_PAGE_CSS = """
Page { background: $background; }
Page #title { height: 1; text-style: reverse; }
Page VerticalScroll { height: 1fr; }
Page #text { height: auto; }
Page #answer { height: 1; border: none; padding: 0; display: none; }
Page #asked { height: auto; text-style: bold; display: none; }
"""


def told(error: Exception) -> str:
    """Return an error as the command would print it."""
    hint = getattr(error, "hint", "")
    return printable(f"error: {error}" + (f"\nhint: {hint}" if hint else ""), lines=True)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan that was made and not yet applied."""

    lines: Sequence[str]
    """As `finwait clear` prints it."""
    steps: int
    command: str
    """What to type to get the same."""
    plan: Any = None
    """For `Clearing.apply`."""
    why_not: str = ""
    """Why it cannot be applied here; empty when it can."""


class Clearing(Protocol):
    """What makes and applies plans: `finwait clear`, handed in by the command."""

    def propose(self, cookies: Sequence[int]) -> Proposal:
        """Make a plan for some connections; changes nothing.

        Raises:
            FinwaitError: a guard refuses the plan as a whole, or the look failed.
        """

    def apply(self, proposal: Proposal) -> Sequence[str]:
        """Do it; return what came of each step as lines.

        Raises:
            FinwaitError: nothing was done.
        """


class Page(ModalScreen[None]):
    """A text that may be long; what it says may take time to find out.

    Args:
        title: one line.
        make: gives the text, in a thread of its own; None when it is ``text`` already.
        text: what is shown until then.
    """

    CSS = _PAGE_CSS
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "close", "back"),
        Binding("down,j", "scroll(1)", "down", show=False),
        Binding("up,k", "scroll(-1)", "up", show=False),
        Binding("pagedown,space", "page(1)", "page down"),
        Binding("pageup", "page(-1)", "page up"),
        Binding("home", "jump(0)", "top", show=False),
        Binding("end", "jump(1)", "bottom", show=False),
    ]

    def __init__(self, title: str, make: Callable[[], str] | None, text: str = "looking …") -> None:
        super().__init__()
        self._heading = title
        self._make = make
        self._begin = text

    def compose(self) -> ComposeResult:
        """Lay the page out."""
        yield Static(self._heading, id="title", markup=False)
        with VerticalScroll(can_focus=False):
            yield Static(self._begin, id="text", markup=False)
        yield Static(id="asked", markup=False)
        yield Input(id="answer", compact=True)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to find out."""
        self.set_focus(None)
        if self._make is not None:
            self.run_worker(self._find, thread=True)

    def _find(self) -> None:
        assert self._make is not None
        try:
            text = self._make()
        except FinwaitError as error:
            text = told(error)
        if self.app.is_running:
            self.app.call_from_thread(self.put, text)

    def put(self, text: str) -> None:
        """Show a text in place of what was there."""
        if self.is_attached:
            self.query_one("#text", Static).update(text)

    def action_close(self) -> None:
        """Go back."""
        self.dismiss()

    def action_scroll(self, by: int) -> None:
        """Scroll by a line."""
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)

    def action_page(self, by: int) -> None:
        """Scroll by a screenful."""
        view = self.query_one(VerticalScroll)
        view.scroll_relative(y=by * max(view.size.height - 1, 1), animate=False)

    def action_jump(self, end: int) -> None:
        """Go to the top or the bottom."""
        view = self.query_one(VerticalScroll)
        view.scroll_to(y=view.max_scroll_y if end else 0, animate=False)


class Help(Page):
    """The page of keys."""


class PlanPage(Page):
    """The plan for marked connections: shown first, applied only when `yes` is typed.

    Args:
        clearing: makes and applies plans.
        cookies: the marked connections.
        done: called after a plan was applied.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "close", "back, nothing done")]

    def __init__(self, clearing: Clearing, cookies: Sequence[int], done: Callable[[], None]) -> None:
        n = len(cookies)
        what = "the marked connection" if n == 1 else f"{n} marked connections"
        super().__init__(f"Plan for {what}: a dry run, nothing is done yet", None, "looking twice …")
        self._clearing = clearing
        self._cookies = cookies
        self._done = done
        self._proposal: Proposal | None = None
        self._applied = False

    def on_mount(self) -> None:
        """Make the plan."""
        super().on_mount()
        self.run_worker(self._plan, thread=True)

    def _plan(self) -> None:
        try:
            proposal = self._clearing.propose(self._cookies)
        except FinwaitError as error:
            self.app.call_from_thread(self.put, told(error) + "\n\nNothing was done.")
            return
        if self.app.is_running:
            self.app.call_from_thread(self._show, proposal)

    def _show(self, proposal: Proposal) -> None:
        if not self.is_attached:
            return
        self._proposal = proposal
        self.put(printable("".join(proposal.lines) + f"\nThe same: `{proposal.command}`", lines=True))
        if not proposal.steps or proposal.why_not:
            self._ask(proposal.why_not or "There is nothing to do.", answer=False)
            return
        n = "1 connection" if proposal.steps == 1 else f"{proposal.steps} connections"
        self._ask(f"To do this to {n}, type yes and press enter; escape leaves everything as it is.")

    def _ask(self, text: str, *, answer: bool = True) -> None:
        asked, line = self.query_one("#asked", Static), self.query_one("#answer", Input)
        asked.update(text)
        asked.display = True
        line.display = answer
        if answer:
            line.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Apply the plan if the answer is yes; anything else does nothing."""
        event.stop()
        line = self.query_one("#answer", Input)
        if self._applied or self._proposal is None:
            return
        if event.value.strip().lower() != "yes":
            line.value = ""
            self.query_one("#asked", Static).update(
                "Nothing was done: type yes and press enter to do it, or escape to go back."
            )
            return
        self._applied = True
        line.display = False
        self.set_focus(None)
        self.query_one("#asked", Static).update("acting …")
        self.run_worker(self._act, thread=True)

    def _act(self) -> None:
        assert self._proposal is not None, "a plan was shown before it was agreed to"
        try:
            text = "".join(self._clearing.apply(self._proposal))
        except FinwaitError as error:
            text = told(error)
        if self.app.is_running:
            self.app.call_from_thread(self._told, printable(text, lines=True))

    def _told(self, text: str) -> None:
        self._done()
        if self.is_attached:
            self.query_one("#title", Static).update("Done: what came of each")
            self.put(text)
            self._ask("escape goes back; `finwait journal` has it too.", answer=False)

    def action_close(self) -> None:
        """Go back; while it acts the page stays, so that its result is read."""
        if not self._applied or str(self.query_one("#asked", Static).render()) != "acting …":
            self.dismiss()
