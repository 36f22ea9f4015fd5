"""The terminal of the view, stopped and continued from outside.

Textual leaves its screen when Ctrl-Z asks it to, and takes it again at SIGCONT. No program can handle a SIGSTOP. The
SIGCONT after it finds a screen that was never left, and Textual would take it a second time: with a second thread that
reads keys, and with the raw terminal as the one to go back to. Here it is left first, then taken again.
"""

from __future__ import annotations

import os
from typing import Final

from textual.app import App
from textual.drivers.linux_driver import LinuxDriver

__all__ = ["TERMINALS_OWN", "TerminalView", "TopDriver"]

TERMINALS_OWN: Final = "ansi-dark"
"""The theme of the terminal's own 16 colours."""


class TopDriver(LinuxDriver):
    """Textual's driver, which takes a screen only once."""

    def _sigcont_application(self, *_: object) -> None:
        """Handle a SIGCONT, after a Ctrl-Z as after a SIGSTOP."""
        if self._key_thread is not None and self._key_thread.is_alive():
            self.suspend_application_mode()
            self._must_signal_resume = True
        if self._must_signal_resume:  # else the view is over, or has not begun
            super()._sigcont_application()


class TerminalView(App[None]):
    """What the views have in common: the terminal, and whose colours they have on it.

    Args:
        theme: the name of a theme of Textual's; None for its default.
    """

    def __init__(self, theme: str | None) -> None:
        # Textual shows shades of grey for NO_COLOR unless the colours are the terminal's own; then it shows none.
        colourless = bool(os.environ.get("NO_COLOR"))
        super().__init__(driver_class=TopDriver, ansi_color=True if colourless else None)
        if theme is not None or colourless:
            self.theme = theme or TERMINALS_OWN
        self._begun = False

    @property
    def begun(self) -> bool:
        """Whether it has been on the screen, perhaps it is over by now."""
        return self._begun
