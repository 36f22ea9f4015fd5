"""What `finwait top` costs with 216,000 sockets: the share of one processor, all of the process included."""

from __future__ import annotations

import asyncio
import time

from bench.load import Load
from bench.measure import Line, write
from finwait.selecting import parse_filter
from finwait.tui.app import Top
from finwait.watching import Live

SECONDS = 60.0
SETTLE = 15.0


def measure(load: Load) -> None:
    """Measure the share of a processor at a refresh of 2 s, and how long a key takes, in the load's presence."""
    share, pictures, keys = asyncio.run(_watch())
    write(
        "top",
        f"`finwait top` for {SECONDS:g} s beside {2 * load.processes * load.pairs:,} sockets, without a terminal.",
        "Everything that the process does is included: counting, the diagnoses, drawing.",
        [
            Line("processor time, share of one core", 100 * share, at_most=10, unit="%"),
            Line("time between two pictures (asked for: 2 s)", pictures),
            Line("the slowest of five keys", max(keys)),
        ],
    )


async def _watch() -> tuple[float, float, list[float]]:
    with Live(None, refresh=2.0) as feed:
        app = Top(feed, parse_filter)
        async with app.run_test(size=(120, 40)) as pilot:
            await pilot.pause(SETTLE)  # the first pictures and the first diagnosis
            seen = [app.picture]  # kept, so that no other picture can have its identity
            spent, begun = time.process_time(), time.monotonic()
            while time.monotonic() - begun < SECONDS:
                await asyncio.sleep(0.5)  # pilot.pause() would be work of ours
                if app.picture is not seen[-1]:
                    seen.append(app.picture)
            share = (time.process_time() - spent) / (time.monotonic() - begun)
            keys = []
            for key in ("g", "enter", "pagedown", "end", "s"):
                begun_key = time.monotonic()
                await pilot.press(key)
                await pilot.pause()
                keys.append(time.monotonic() - begun_key)
            return share, SECONDS / max(len(seen) - 1, 1), keys
