"""The page in Debian's Chromium: every view, the keys, small and dark screens, hostile names, a looker that is gone.

One browser for all, a looker of values behind a real face; a page of a real agent is in tests/kernel/test_page.py.
Nothing may be asked of another host, and the page's policy must forbid nothing that the page does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.browser import Browser, chromium

ROOT = Path(__file__).parents[2]
AUDIT = (Path(__file__).parent / "audit.js").read_text()
LIVE = "document.querySelector('#live-text').innerText"
VIEWS = ("now", "history", "settings", "journal", "gaps", "about")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("page"),
    pytest.mark.skipif(chromium() is None, reason="needs Chromium (Debian's package chromium)"),
]


class Page:
    """A page server and a browser that looks at it."""

    def __init__(self, browser: Browser, token: str = "", module: str = "tests.e2e.page_server") -> None:
        self.browser = browser
        self.module = module
        self.token = token
        self.port = 0
        self.start()

    def start(self) -> None:
        words = [sys.executable, "-m", self.module, str(self.port), self.token]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.base = f"http://127.0.0.1:{self.port}"

    def tell(self, **change: Any) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(change) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def open(self, path: str = "/", rows: bool = True) -> None:
        self.browser.open("about:blank")
        self.browser.open(f"{self.base}{path}")
        if rows:
            self.browser.until("document.querySelectorAll('.row').length")

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    browser.size(1280, 800)
    browser.requests.clear()
    browser.complaints.clear()
    made = Page(browser)
    try:
        yield made
        assert {r for r in browser.requests if not r.startswith((made.base, "about:", "data:"))} == set()
        assert browser.complaints == []
    finally:
        browser.open("about:blank")
        made.stop()


def text(browser: Browser, selector: str) -> str:
    value: str = browser.js(f"document.querySelector({selector!r})?.innerText ?? ''")
    return value


def focus(browser: Browser) -> str:
    value: str = browser.js(
        "document.activeElement.id || document.activeElement.className || document.activeElement.localName"
    )
    return value


@pytest.mark.parametrize(
    ("width", "height", "dark"),
    [(1280, 800, False), (360, 740, True), (1920, 1080, True), (3840, 2160, False)],
)
def test_every_view_is_whole_on_every_screen(page: Page, width: int, height: int, dark: bool) -> None:
    browser = page.browser
    browser.size(width, height, dark=dark)
    for view in VIEWS:
        page.open("/" if view == "now" else f"/?view={view}", rows=view == "now")
        browser.until("document.querySelector('main .view h2, main .now h2, main .episodes')")
        browser.until("document.querySelector('#trend').innerText")
        assert browser.js(AUDIT) == [], view
        assert (
            browser.js("document.querySelector('[aria-current=page]').textContent").lower().startswith(view)
        )
    page.open("/?group=0000000000000000")
    browser.until("document.querySelector('.detail .pairs')")
    assert browser.js(AUDIT) == []
    assert "about 400 of the 1,000" in text(browser, ".detail")


def test_the_headline_says_what_matters_and_is_announced_only_when_it_changes(page: Page) -> None:
    browser = page.browser
    page.open()
    assert text(browser, "#headline").startswith(
        "11,934 connections do not finish closing, growing by 30 a minute"
    )
    browser.js(
        "window.told = 0; new MutationObserver(() => (window.told += 1))"
        ".observe(headline, {childList: true, characterData: true, subtree: true})"
    )
    page.tell()  # another look, and nothing new
    page.tell(page={"gaps": 3})
    browser.until("document.querySelector('#subline').innerText.includes('3 parts of the machine')")
    assert browser.js("window.told") == 0
    page.tell(groups=0, page={"gaps": 2})
    browser.until("headline.innerText.includes('No connection that anybody could see is stuck')")
    assert browser.js("window.told") == 1
    assert "could not be seen" in text(browser, ".empty")
    page.tell(page={"look_at_ns": 0})
    browser.until("headline.innerText.includes('Nothing is known yet: no look has succeeded')")


def test_the_keyboard_goes_everywhere(page: Page) -> None:
    browser = page.browser
    page.open()
    for k, view in enumerate(VIEWS, 1):
        browser.key(str(k))
        browser.until(f"document.title.toLowerCase().startsWith({view!r})")
    browser.key("1")
    browser.until("document.querySelector('.row')")
    browser.key("j")
    assert focus(browser) == "list"
    first = browser.js("document.querySelector('.row.at').id")
    browser.key("ArrowDown")
    assert browser.js("document.querySelector('.row.at').id") != first
    browser.key("Enter")
    browser.until("document.querySelector('.detail .pairs')")
    assert focus(browser) == "detail-title"
    assert "group=" in browser.js("location.search")
    browser.key("c")
    browser.until(
        "['copied', 'selected: press Ctrl+C'].includes(document.querySelector('#said').textContent)"
    )
    browser.key("Escape")
    browser.until("!document.querySelector('.detail')")
    assert focus(browser) == "list"
    browser.key("?", shift=True)
    browser.until("document.querySelector('dialog').open")
    assert "copy the command" in text(browser, "dialog")
    assert browser.js(AUDIT) == []
    browser.key("Escape")
    browser.until("!document.querySelector('dialog').open")
    browser.key("2")
    browser.until("document.querySelector('.plot')")
    browser.js("document.querySelector('.plot').focus()")
    browser.key("ArrowLeft")
    browser.until("document.querySelector('.cursor').getAttribute('visibility') === 'visible'")
    assert not text(browser, ".legend p").startswith("last")
    browser.key("[")
    browser.until("location.search.includes('since=6h')")
    browser.js("history.back()")
    browser.until("location.search.includes('since=24h') || !location.search.includes('since=6h')")


def test_a_filter_narrows_stays_in_the_address_and_says_what_is_wrong(page: Page) -> None:
    browser = page.browser
    page.open()
    browser.key("/")
    assert focus(browser) == "filter"
    browser.write("close-wait-unread")
    browser.key("Enter")
    browser.until("headline.innerText.includes('of this FILTER')")
    assert browser.js("document.querySelectorAll('.row').length") == 4
    assert browser.js("new URLSearchParams(location.search).get('filter')") == "close-wait-unread"
    browser.key("Escape")
    browser.key("2")
    browser.until("document.querySelector('.episodes')")
    assert browser.js("new URLSearchParams(location.search).get('filter')") == "close-wait-unread"
    assert any("history?since=24h&filter=close-wait-unread" in r for r in browser.requests)
    page.open("/?filter=(")
    browser.until("document.querySelector('#filter-error').innerText")
    assert "does not parse" in text(browser, "#filter-error")
    assert browser.js("document.querySelector('#filter').value") == "("


def test_time_in_which_nobody_looked_is_a_gap_and_the_curve_has_a_table(page: Page) -> None:
    browser = page.browser
    page.open("/?view=history&since=1h", rows=False)
    browser.until("document.querySelectorAll('.chart .unseen').length === 1")
    assert browser.js("document.querySelector('.spark-line').getAttribute('d').split('M').length") == 3
    browser.js("document.querySelector('details').open = true")
    rows = browser.js(
        "[...document.querySelectorAll('.counts tbody tr')].map((row) => row.cells[row.cells.length - 1].innerText)"
    )
    assert rows.count("nobody looked") == 6
    assert "0" not in rows
    assert text(browser, ".legend .total .num") == rows[0]
    assert browser.js("document.querySelectorAll('.episodes tbody tr').length") == 2


def test_names_that_attack_are_text(page: Page) -> None:
    browser = page.browser
    page.tell(hostile=True)
    page.open()
    browser.until("document.querySelector('.rows').innerText.includes('<img src=x')")
    page.open("/?group=0000000000000000")
    browser.until("document.querySelector('.detail .pairs')")
    for view in VIEWS[1:]:
        browser.key(str(VIEWS.index(view) + 1))
        browser.until(
            f"document.title.toLowerCase().startsWith({view!r}) && document.querySelector('main .view')"
        )
    assert browser.js("document.querySelectorAll('img, script:not([src])').length") == 0
    assert not any(mark in browser.js("document.body.innerText") for mark in ("\u202e", "\x1b"))


def test_a_thousand_groups_are_a_window_of_rows(page: Page) -> None:
    browser = page.browser
    page.tell(groups=1000)
    page.open()
    assert browser.js("document.querySelectorAll('.row').length") < 40
    assert browser.js("document.querySelector('.row').getAttribute('aria-setsize')") == "1000"
    browser.js("document.querySelector('.list').focus()")
    browser.key("End")
    browser.until("document.querySelector('.row.at')?.getAttribute('aria-posinset') === '1000'")
    box = browser.js(
        "(([a, b]) => a.bottom <= b.bottom + 1 && a.top >= b.top - 1)"
        "(['.row.at', '.list'].map((each) => document.querySelector(each).getBoundingClientRect()))"
    )
    assert box, "the current row is in sight"
    current = browser.js("document.querySelector('.row.at').id")
    page.tell()
    browser.until("document.querySelector('.row.at').getAttribute('aria-posinset') === '1000'")
    assert browser.js("document.querySelector('.row.at').id") == current
    assert focus(browser) == "list", "a new look takes the focus from nobody"
    browser.size(360, 740)
    browser.until("document.querySelectorAll('.row').length < 40")
    browser.js("window.scrollTo(0, 30000)")
    browser.until(
        "[...document.querySelectorAll('.row')].some((row) => Number(row.getAttribute('aria-posinset')) > 400)"
    )


def test_a_look_is_shown_at_once_and_an_agent_that_ends_and_comes_back_is_told(page: Page) -> None:
    browser = page.browser
    page.open()
    browser.until(f"{LIVE}.startsWith('look ')")
    page.tell(groups=2)
    browser.until("document.querySelectorAll('.row').length === 2")
    page.tell(gone=True)
    browser.until(f"{LIVE}.includes('the agent has ended')")
    assert "at the last look" in text(browser, "#headline")
    assert browser.js("document.querySelectorAll('.row').length") == 2, "what was seen last stays"
    page.stop()
    browser.until(f"{LIVE}.includes('connection lost')")
    page.start()
    browser.until(f"{LIVE}.startsWith('look ') && document.querySelectorAll('.row').length === 12")


def test_a_token_opens_the_page_and_stays_in_the_tab(browser: Browser) -> None:
    browser.size(1280, 800)
    browser.complaints.clear()
    made = Page(browser, "a-token-of-many-characters")
    try:
        from hashlib import sha256

        made.stop()
        made.token = sha256(b"a-token-of-many-characters").hexdigest()
        made.start()
        made.open(rows=False)
        browser.until("document.querySelector('#token')")
        assert browser.js(AUDIT) == []
        made.open("/#token=a-token-of-many-characters")
        assert browser.js("location.href") == f"{made.base}/"
        assert browser.js("document.cookie") == ""
        assert not any("many-characters" in r.partition("#")[0] for r in browser.requests)
    finally:
        browser.open("about:blank")
        made.stop()


def test_without_motion_nothing_moves(page: Page) -> None:
    browser = page.browser
    browser.size(1280, 800, motion=False)
    page.open()
    durations = browser.js(
        "[...new Set([...document.querySelectorAll('*')].map((e) => getComputedStyle(e).transitionDuration))]"
    )
    assert durations == ["0s"]
