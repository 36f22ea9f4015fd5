"""The page of a report: the words of the text report, nothing from elsewhere, below a megabyte whatever was found."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from finwait.errors import Gap
from finwait.report.account import account
from finwait.report.html import CSS, MOST_BYTES, page
from finwait.report.html.element import el, prose, style_sheet
from finwait.report.text import shown_groups
from finwait.table.states_then import StatesThen
from finwait.uapi import tcp
from tests.captures.make import replay
from tests.unit.report.reports import FACTS, accounted, stuck

CAPTURES = sorted(Path("tests/captures/linux-6.18").glob("*.finwait"))
EMPTY = {"meta", "line", "path", "rect", "circle", "br"}


class Read(HTMLParser):
    """A page as a reader without eyes has it: text, elements, ids, links; says where elements do not nest."""

    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def of(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def plain(text: str) -> str:
    """A sentence as it reads where code is set apart."""
    return re.sub(r"\s+", " ", text.replace("`", " ")).strip()


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text).replace("`", "")


@pytest.mark.parametrize("path", CAPTURES, ids=[path.stem for path in CAPTURES])
def test_it_says_what_the_text_says_and_loads_nothing(path: Path) -> None:
    made = replay(path)
    facts = made.snapshot.observation.facts
    summary = account(made.view, made.findings, made.gaps, facts, source=path.name)
    markup = page(made.view, summary)
    read = Read(markup)
    words = squeezed(read.text())
    assert squeezed(summary.headline) in words
    for group in shown_groups(made.view, made.findings):
        sayings = [group.title, group.confidence.reason, *(e.says for e in group.evidence)]
        sayings += [remedy.text for remedy in group.ends_it] + [advice.reason for advice in group.does_not]
        for sentence in sayings:
            assert squeezed(sentence) in words or squeezed(sentence[0].upper() + sentence[1:]) in words, (
                sentence
            )
    for gap in made.gaps:
        assert squeezed(gap.doing) in words
    assert not re.search(r"(?:https?:)?//\w", markup)
    assert {tag for tag, _ in read.elements} & {
        "script",
        "img",
        "iframe",
        "link",
        "object",
        "form",
        "base",
    } == set()
    assert not [name for _, name, _ in read.attributes if name.startswith("on") or name in ("style", "src")]
    assert all(re.fullmatch(r"#[a-z0-9-]+", link) for link in read.of("href"))
    ids = read.of("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in read.of("href")} <= set(ids)
    for pointer in (*read.of("aria-labelledby"),):
        assert set(pointer.split()) <= set(ids)


def test_the_policy_allows_the_one_style_sheet_and_nothing_else() -> None:
    v = stuck()
    markup = page(v, accounted(v))
    read = Read(markup)
    (policy,) = [
        value
        for tag, name, value in read.attributes
        if tag == "meta" and name == "content" and "src" in value
    ]
    sheet = re.search(r"<style>(.*?)</style>", markup, re.DOTALL)
    assert sheet is not None
    digest = base64.b64encode(hashlib.sha256(sheet[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-{digest}'"
    assert markup.index("Content-Security-Policy") < markup.index("<style>")


def test_tables_have_captions_and_pictures_say_themselves_in_words() -> None:
    v = stuck()
    counts = [StatesThen(10**9 * k, {tcp.FIN_WAIT2: k, tcp.ESTABLISHED: 9}) for k in range(1, 6)]
    summary = account(v, (), (), FACTS, moments=counts)
    markup = page(v, summary)
    assert markup.count("<table") == markup.count("<caption>")
    assert markup.count('role="img"') == markup.count("<title id=") == markup.count("<desc id=") == 2
    assert "FIN_WAIT2 from 1 to 5" in markup


@pytest.mark.parametrize(("groups", "count"), [(1, 10_000), (2_000, 5)])
def test_it_is_below_a_megabyte_for_ten_thousand_connections(groups: int, count: int) -> None:
    v = stuck("p" * 12, "n" * 200, groups=groups, count=count)
    summary = accounted(v)
    markup = page(v, summary)
    assert len(markup.encode()) <= MOST_BYTES
    words = Read(markup).text()
    if groups == 1:
        assert "9,980 more are not in this file" in words
    else:
        assert len(summary.groups) == groups
        assert "1,500 more groups are not in this file" in words
        assert re.search(r"[\d,]+ more groups have only a line above", words)


def test_no_all_clear_where_something_was_not_seen() -> None:
    v = stuck(count=0)
    gaps = (Gap("pid 812", "list its descriptors", "CAP_SYS_PTRACE"),)
    blind, whole = accounted(v, gaps=gaps), accounted(v)
    assert (blind.sign, whole.sign) == ("unsure", "fine")
    assert "could not see" not in page(v, whole)
    read = Read(page(v, blind)).text()
    assert "not everything could be seen" in read
    assert "list its descriptors" in read
    assert "Everything that was asked for could be seen" in Read(page(v, whole)).text()


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("script", {}), ("style", {}), ("iframe", {}), ("a><b", {}), ("img", {}), ("p", {"onclick": "x"}),
        ("p", {"style": "x"}), ("a", {"href": "https://x"}), ("a", {"href": "javascript:x"}), ("p", {"a b": "x"}),
    ],
)  # fmt: skip
def test_what_runs_or_loads_cannot_be_made(name: str, attributes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"made here|in the page"):
        el(name, **attributes)


def test_text_is_escaped_and_control_characters_are_shown() -> None:
    markup = el("p", "<b>&\"'\x1b[2J\u202e", title="\"><script>'").markup
    assert markup == (
        '<p title="&quot;&gt;&lt;script&gt;&#x27;">&lt;b&gt;&amp;&quot;&#x27;\\x1b[2J\\u202e</p>'
    )
    assert el("p", prose("run `a < b`, then")).markup == "<p>run <code>a &lt; b</code>, then</p>"
    assert el("p", prose("a ` b")).markup == "<p>a ` b</p>"


@pytest.mark.parametrize("css", ["</style>", "a{b:url(x)}", "@import 'x'"])
def test_a_style_sheet_neither_ends_itself_nor_loads(css: str) -> None:
    with pytest.raises(ValueError, match="style sheet"):
        style_sheet(css)
    assert style_sheet(CSS).markup.startswith("<style>")
