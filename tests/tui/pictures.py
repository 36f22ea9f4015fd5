"""Pictures of `finwait top` on recordings, and so always the same: in the documentation, and compared by a test.

python -m tests.tui.pictures      writes them anew
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from textual.pilot import Pilot

from finwait.recording import open_recording
from finwait.selecting import parse_filter
from finwait.tui.app import Top
from finwait.uapi import tcp
from finwait.watching import Circumstances, Picture, RecordedPictures

ROOT = Path(__file__).parents[2]
CAPTURES = ROOT / "tests/captures/linux-6.18"
FOLDER = ROOT / "docs/tutorial/img"
CELL = 12.2
"""Width of a character in the pictures."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Keys that were pressed on a recording."""

    recording: str
    keys: tuple[str, ...] = ()
    size: tuple[int, int] = (100, 30)
    leak: bool = False
    """As `Leak` shows it."""
    colour: bool = True


class Leak(RecordedPictures):
    """A leak as it grows, made of one look of a recording: its stuck connections come one after the other.

    A look every five seconds for five minutes, of which one failed. The rates are those that would give these numbers.
    """

    LOOKS = 61
    EVERY_S = 5.0
    FAILED = 44

    def __init__(self, recording: str) -> None:
        super().__init__(open_recording(recording), None, refresh=0.0)
        self._stay = True
        self._turn = 2
        whole = super().next()
        assert whole is not None
        assert whole.diagnosis is not None
        self._whole, self._number = whole, 0
        view = whole.diagnosis.view
        problem = np.zeros(len(view), np.bool_)
        for finding in whole.diagnosis.problems:
            problem[finding.rows] = True
        self._healthy = whole.rows[~problem[whole.rows]]
        self._stuck = whole.rows[problem[whole.rows]]

    def next(self) -> Picture | None:
        """Return the next picture, at once; after the last one wait for the end."""
        number = self._number
        if number == self.LOOKS:
            self._wake.wait()
            return None
        self._number += 1
        assert self._whole.diagnosis is not None
        state = self._whole.diagnosis.view.sockets.state
        rows, before = (
            np.sort(np.concatenate([self._healthy, self._stuck[: len(self._stuck) * n // (self.LOOKS - 1)]]))
            for n in (number, max(number - 12, 0))
        )
        grown = np.bincount(state[rows], minlength=16) - np.bincount(state[before], minlength=16)
        waiting, closing = (float(grown[s]) / (12 * self.EVERY_S) for s in (tcp.CLOSE_WAIT, tcp.FIN_WAIT2))
        e, w1, w2, cw, la = tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK
        flows = {
            (tcp.LISTEN, tcp.SYN_RECV): 2.4 + waiting, (tcp.SYN_RECV, e): 2.4 + waiting,
            (tcp.CLOSE, tcp.SYN_SENT): 1.1 + closing, (tcp.SYN_SENT, e): 1.1 + closing,
            (e, w1): 1.1 + closing, (w1, w2): 1.1 + closing, (w2, tcp.CLOSE): 1.1,
            (e, cw): 2.4 + waiting, (cw, la): 2.4, (la, tcp.CLOSE): 2.4,
        }  # fmt: skip
        counts = {s: int(n) for s, n in enumerate(np.bincount(state[rows], minlength=16).tolist()) if n}
        seen = Circumstances(
            taken_s=1000.0 + self.EVERY_S * number,
            look=2 if self._number == self.LOOKS else 1,
            looks=2,
            unix_ns=self._whole.circumstances.unix_ns,
            failed="Connection reset by peer" if number == self.FAILED else "",
        )
        listeners = {tcp.LISTEN: int((state == tcp.LISTEN).sum())}
        return Picture({**counts, **listeners}, flows, replace(self._whole.diagnosis), rows, seen)


KUBE = "kube-proxy-userspace"
SCENES = {
    "top-causes": Scene(KUBE),
    "top-wide": Scene(KUBE, ("home",), (140, 40), leak=True),
    "top-processes": Scene(KUBE, ("3",)),
    "top-connections": Scene(KUBE, ("enter", "m", "m")),
    "top-evidence": Scene(KUBE, ("enter", "enter")),
    "top-filter": Scene(KUBE, ("slash", *"held agee", "enter")),
    "top-settings": Scene(KUBE, ("5", "down"), (140, 30)),
    "top-small": Scene("time-wait-flood", ("g", "g", "g"), (80, 24)),
    "top-tiny": Scene(KUBE, ("home",), (40, 10), leak=True),
    "top-help": Scene("relay-pair", ("question_mark",), (100, 56)),
}

SIZES = ((40, 10), (80, 24), (120, 40), (200, 60))
SNAPSHOTS = ROOT / "tests/tui/snapshots"
SHOTS = {
    **{
        f"{'colours' if colour else 'colourless'}-{width}x{height}": Scene(
            KUBE, ("home",), (width, height), True, colour
        )
        for width, height in SIZES
        for colour in (True, False)
    },
    **{
        f"{name}-{width}x{height}": Scene(KUBE, (key,), (width, height))
        for key, name in (
            ("2", "connections"),
            ("3", "processes"),
            ("4", "places"),
            ("5", "settings"),
            ("6", "journal"),
        )
        for width, height in SIZES[1:3]
    },
}
"""Screens that a test compares, as characters and in which colour each of them is."""


async def settle(pilot: Pilot[None], app: Top) -> None:
    """Wait until the diagnosis of the last look is on the screen."""
    for _ in range(500):
        picture = app.picture
        if picture is not None and picture.circumstances.look == 2:
            break
        await pilot.pause(0.01)
    await pilot.pause()


async def play(scene: Scene, words: Sequence[str] = (), until: str = "") -> str:
    """Press the keys of a scene; return the screen as SVG, as soon as it shows a text, where one is awaited."""
    wanted = parse_filter(words) if words else None
    path = str(CAPTURES / f"{scene.recording}.finwait")
    feed = Leak(path) if scene.leak else RecordedPictures(open_recording(path), wanted, refresh=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NO_COLOR", raising=False)
        if not scene.colour:
            patch.setenv("NO_COLOR", "1")
        app = Top(feed, parse_filter, filter_words=words)
    async with app.run_test(size=scene.size) as pilot:
        await settle(pilot, app)
        for key in scene.keys:
            await pilot.press({" ": "space"}.get(key, key))
            await pilot.pause()
        drawn = app.export_screenshot(title="finwait top")
        for _ in range(500 if until else 0):  # on a busy machine not all of it may be drawn yet
            if text_of(drawn) == until:
                break
            await pilot.pause(0.01)
            drawn = app.export_screenshot(title="finwait top")
        return drawn


def text_of(svg: str) -> str:
    """Return the characters of a picture, line by line."""
    lines: dict[int, list[tuple[float, str]]] = {}
    for x, line, text in re.findall(r'<text[^>]*x="([\d.]+)"[^>]*line-(\d+)\)"[^>]*>([^<]*)</text>', svg):
        lines.setdefault(int(line), []).append((float(x), html.unescape(text).replace("\xa0", " ")))
    shown = []
    for number in range(max(lines, default=-1) + 1):
        whole = ""
        for x, text in sorted(lines.get(number, [])):
            whole = whole.ljust(round(x / CELL)) + text
        shown.append(whole.rstrip())
    return "\n".join(shown)


def colours_of(svg: str) -> str:
    """Return for each character of a picture a letter for its colour, in the order in which they first appear."""
    fills = dict(re.findall(r"\.terminal-?\d*-(r\d+) \{ fill: (#[0-9a-f]+)", svg))
    letters: dict[str, str] = {}
    lines: dict[int, dict[int, str]] = {}
    text = r'<text class="terminal-?\d*-(r\d+)" x="([\d.]+)"[^>]*line-(\d+)\)"[^>]*>([^<]*)</text>'
    for kind, x, line, content in re.findall(text, svg):
        shown = html.unescape(content).replace("\xa0", " ")
        for k, character in enumerate(shown, round(float(x) / CELL)):
            if character.strip():
                letter = letters.setdefault(fills[kind], chr(ord("a") + len(letters)))
                lines.setdefault(int(line), {})[k] = letter
    rows = (lines.get(number, {}) for number in range(max(lines, default=-1) + 1))
    return "\n".join("".join(row.get(k, " ") for k in range(max(row, default=-1) + 1)) for row in rows)


def shot_of(svg: str) -> str:
    """Return a screen as its characters and their colours."""
    return f"{text_of(svg)}\n\ncolours:\n\n{colours_of(svg)}\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, scene in SCENES.items():
        path = FOLDER / f"{name}.svg"
        svg = re.sub(r"terminal-\d+", "terminal", asyncio.run(play(scene)))
        if not path.exists() or text_of(path.read_text()) != text_of(svg):
            path.write_text(svg)
            print(f"{path.relative_to(ROOT)}: written")
    SNAPSHOTS.mkdir(exist_ok=True)
    for name, scene in SHOTS.items():
        path = SNAPSHOTS / f"{name}.txt"
        shot = shot_of(asyncio.run(play(scene)))
        if not path.exists() or path.read_text() != shot:
            path.write_text(shot)
            print(f"{path.relative_to(ROOT)}: written")
