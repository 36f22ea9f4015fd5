"""The report in Debian's Chromium: from a file, light, dark, 360 px, on paper; its policy forbids nothing in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from finwait.cli import main
from tests.e2e.browser import Browser, chromium

ROOT = Path(__file__).parents[2]
CAPTURES = ROOT / "tests/captures/linux-6.18"
AUDIT = (Path(__file__).parent / "audit.js").read_text()
OF_THE_LIVE_PAGE = "more than the headline is announced as it changes"
"""What a page owes that changes while it is read; a report does not."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("page"),
    pytest.mark.skipif(chromium() is None, reason="needs Chromium (Debian's package chromium)"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Path]:
    browser.requests.clear()
    browser.complaints.clear()
    yield tmp_path / "report.html"
    assert {r for r in browser.requests if not r.startswith(("file:", "about:"))} == set()
    assert browser.complaints == []
    browser.open("about:blank")


def show(browser: Browser, path: Path, name: str) -> None:
    recording = str(CAPTURES / f"{name}.finwait")
    assert main(["report", str(path), "--from", recording, "--not-holder", "1"]) in (0, 3)
    browser.open(f"file://{path}")
    browser.until("document.readyState === 'complete' && document.querySelector('main')")


def wrong(browser: Browser) -> list[str]:
    return [fault for fault in browser.js(AUDIT) if fault != OF_THE_LIVE_PAGE]


@pytest.mark.parametrize(
    "name", ["kube-proxy-userspace", "whose-move", "hidden-leak", "time-wait", "accept-queue-full"]
)
@pytest.mark.parametrize(
    ("width", "height", "dark"), [(1280, 900, False), (1280, 900, True), (360, 740, False), (360, 740, True)]
)
def test_it_is_whole_on_every_screen(
    browser: Browser, opened: Path, name: str, width: int, height: int, dark: bool
) -> None:
    browser.size(width, height, dark=dark)
    show(browser, opened, name)
    browser.js("for (const e of document.querySelectorAll('details')) e.open = true")
    assert wrong(browser) == []


def test_on_paper_it_is_black_on_white_and_fits_a4(browser: Browser, opened: Path) -> None:
    browser.size(703, 1000, dark=True)  # the width of A4 within its margins
    show(browser, opened, "kube-proxy-userspace")
    browser.call(
        "Emulation.setEmulatedMedia",
        media="print",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    try:
        assert wrong(browser) == []
        assert browser.js("getComputedStyle(document.body).color") == "rgb(27, 31, 35)"
        assert (
            browser.js("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
        )
        folded = "document.querySelector('details table').checkVisibility({contentVisibilityAuto: true})"
        assert browser.js(f"document.querySelector('details') === null || {folded}")
        pdf = browser.call("Page.printToPDF", preferCSSPageSize=True)["data"]
        assert len(pdf) > 10_000
    finally:
        browser.call("Emulation.setEmulatedMedia", media="", features=[])


def test_who_listens_gets_the_same(browser: Browser, opened: Path) -> None:
    """The tree of accessibility has the tables, the diagram in words, and a heading for each part."""
    browser.size(360, 740)  # where rows are cards
    show(browser, opened, "kube-proxy-userspace")
    browser.call("Accessibility.enable")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    shown = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]
    roles = [role for role, _ in shown]
    assert roles.count("table") == browser.js("document.querySelectorAll('table:not(details table)').length")
    assert {"rowheader", "columnheader", "cell"} <= set(roles)
    (diagram,) = [name for role, name in shown if role in ("image", "img") and "states of TCP" in name]
    assert re.search(r"FIN_WAIT2 15 of which 7 stuck", diagram)
    assert [name for role, name in shown if role == "heading"][:3] == [
        browser.js("document.querySelector('h1').innerText").replace("✗", "").strip(), "Groups", "States",
    ]  # fmt: skip
    browser.call("Accessibility.disable")


def test_a_place_in_the_contents_leads_there(browser: Browser, opened: Path) -> None:
    browser.size(1280, 900, motion=False)
    show(browser, opened, "kube-proxy-userspace")
    browser.js("document.querySelector('a[href=\"#group-2\"]').click()")
    assert browser.js("document.querySelector('#group-2').getBoundingClientRect().top") < 900
    assert browser.js("location.hash") == "#group-2"
