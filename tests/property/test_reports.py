"""No name, pod, FILTER or note breaks out of a report: neither of the page nor of the Markdown."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from msgspec.structs import replace

from finwait.errors import Gap
from finwait.report.html import page
from finwait.report.markdown import markdown
from tests.unit.report.reports import FACTS, accounted, stuck

NASTY = st.text(
    alphabet=st.one_of(
        st.sampled_from("<>&\"'`|@#*_[]()!\\~:/.=-+{}$ \t\r\n\x00\x1b\x7f\u202e\u2028\ud800\U000e0041"),
        st.characters(),
    ),
    min_size=1,
    max_size=40,
)
ATTACKS = (
    "</code></p><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "-->", "]]>", "</style>", "</title>",
    "`|@everyone|`", "a`b`c", "``` ```", "| x | y |", "[x](javascript:alert(1))", "<details>", "</details>", "\n\n# x",
    "https://example.org", "www.example.org", "@octocat", "#1", "octo/cat#1", "x@example.org", "&lt;b&gt;", "\\|",
    "\\`", "&#96;", "a\\", "![x](http://x)", "- [ ] x", "$x$", "~~x~~", "<!--", "\u202e", "\ud83d",
)  # fmt: skip


class _Tags(HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[object] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "code":  # a name with two backticks may look like a command of ours
            self.tags.append((tag, [name for name, _ in attrs]))

    def handle_endtag(self, tag: str) -> None:
        if tag != "code":
            self.tags.append(tag)

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment", data))

    def handle_decl(self, decl: str) -> None:
        self.tags.append(("declaration", decl))


def _made(text: str) -> tuple[str, str]:
    """Return the page and the Markdown of a diagnosis in which everything that others choose is a text."""
    v = stuck(text, text)
    facts = replace(FACTS, hostname=text, kernel=text, boot_id=text)
    summary = accounted(v, facts=facts, gaps=(Gap(text, text, text),), source=text)
    return page(v, summary), markdown(v, summary)


_PAGE = _Tags(_made("name")[0]).tags


@settings(max_examples=60, deadline=None)
@given(NASTY)
def test_no_text_breaks_out_of_the_page(text: str) -> None:
    markup, _ = _made(text)
    assert _Tags(markup).tags == _PAGE
    markup.encode()  # no half of a character


def _blocks(text: str) -> list[tuple[str, str]]:
    """Return the blocks of a document, and in them all that is not text or code."""
    result: list[tuple[str, str]] = []
    for token in MarkdownIt("gfm-like").parse(text):
        content = token.content if token.type == "html_block" else ""
        result.append((token.type, re.sub(r">[^<]*<", "><", content)))
        result += [
            (child.type, "")
            for child in token.children or ()
            if child.type not in ("text", "code_inline", "text_special")
        ]
    return result


_BLOCKS = _blocks(_made("name")[1])


@settings(max_examples=60, deadline=None)
@given(NASTY)
def test_no_text_breaks_out_of_the_markdown(text: str) -> None:
    _, document = _made(text)
    assert _blocks(document) == _BLOCKS
    outside = re.sub(r"`[^`\n]*`", "", document)
    assert not re.search(r"@\w", outside)
    assert not re.search(r"(?<![&\w])#\d", outside)


for attack in ATTACKS:
    test_no_text_breaks_out_of_the_page = example(attack)(test_no_text_breaks_out_of_the_page)
    test_no_text_breaks_out_of_the_markdown = example(attack)(test_no_text_breaks_out_of_the_markdown)
