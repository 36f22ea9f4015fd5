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

from textual.pilot import Pilot

from finwait.recording import open_recording
from finwait.selecting import parse_filter
from finwait.tui.app import Top
from finwait.watching import Recorded

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


SCENES = {
    "top-causes": Scene("kube-proxy-userspace"),
    "top-processes": Scene("kube-proxy-userspace", ("g",)),
    "top-connections": Scene("kube-proxy-userspace", ("enter", "m", "m")),
    "top-evidence": Scene("kube-proxy-userspace", ("enter", "enter")),
    "top-filter": Scene("kube-proxy-userspace", ("slash", *"held agee", "enter")),
    "top-small": Scene("time-wait-flood", ("g", "g", "g"), (80, 24)),
    "top-help": Scene("relay-pair", ("question_mark",)),
}


async def settle(pilot: Pilot[None], app: Top) -> None:
    """Wait until the diagnosis of the last look is on the screen."""
    for _ in range(500):
        picture = app.picture
        if picture is not None and picture.circumstances.look == 2:
            break
        await pilot.pause(0.01)
    await pilot.pause()


async def play(scene: Scene, words: Sequence[str] = ()) -> str:
    """Press the keys of a scene; return the screen as SVG."""
    wanted = parse_filter(words) if words else None
    feed = Recorded(open_recording(str(CAPTURES / f"{scene.recording}.finwait")), wanted, refresh=0.01)
    app = Top(feed, parse_filter, wanted=words)
    async with app.run_test(size=scene.size) as pilot:
        await settle(pilot, app)
        for key in scene.keys:
            await pilot.press({" ": "space"}.get(key, key))
            await pilot.pause()
        return app.export_screenshot(title="finwait top")


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


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, scene in SCENES.items():
        path = FOLDER / f"{name}.svg"
        svg = re.sub(r"terminal-\d+", "terminal", asyncio.run(play(scene)))
        if not path.exists() or text_of(path.read_text()) != text_of(svg):
            path.write_text(svg)
            print(f"{path.relative_to(ROOT)}: written")
