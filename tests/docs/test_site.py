"""The documentation site: everything is in its navigation, nothing is loaded from elsewhere, no link is dead."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from docs import build_site

ROOT = Path(__file__).parents[2]


def test_every_page_of_the_documentation_is_in_the_navigation_once() -> None:
    listed = [page for _, page in build_site.flat(build_site.navigation())]
    assert sorted(listed) == sorted(set(listed))
    assert set(build_site.pages()) - set(listed) == set()
    assert [page for page in listed if not (ROOT / page).is_file()] == []


def test_a_page_that_the_index_does_not_link_to_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = build_site.pages()
    monkeypatch.setattr(build_site, "pages", lambda: [*pages, "docs/how-to/forgotten.md"])
    with pytest.raises(ValueError, match=r"docs/how-to/forgotten.md; link each from docs/index.md"):
        build_site.navigation()


def test_the_list_of_examples_has_them_all() -> None:
    text = (ROOT / "examples/README.md").read_text()
    files = {str(p.relative_to(ROOT / "examples")) for p in (ROOT / "examples").rglob("*") if p.is_file()}
    assert files - {"README.md"} == set(re.findall(r"\]\(([^)]+)\)", text))


def site(folder: Path, **pages: str) -> Path:
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(f"<!doctype html><html>{text}</html>")
    return folder


@pytest.mark.parametrize(
    "loads",
    [
        '<script src="https://unpkg.com/iframe-worker/shim"></script>',
        '<script src="//cdn.example/a.js"></script>',
        '<link rel="stylesheet" href="https://fonts.googleapis.com/css">',
        '<link rel="preconnect" href="https://fonts.gstatic.com" crossorigin>',
        '<img src="https://img.shields.io/badge.svg">',
        '<img srcset="https://a.example/b.png 2x">',
        '<div style="background: url(https://a.example/b.png)"></div>',
        "<style>@import 'https://a.example/b.css';</style>",
        '<form action="https://a.example/"></form>',
        '<iframe src="https://a.example/"></iframe>',
    ],
)
def test_what_a_browser_would_load_from_another_host_is_a_problem(tmp_path: Path, loads: str) -> None:
    (problem,) = build_site.problems(site(tmp_path, index=loads))
    assert problem.endswith("from another host")


def test_a_style_sheet_that_loads_from_another_host_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text(
        "@font-face{src:url('https://a.example/b.woff2')} b{background:url(b.png)}"
    )
    assert build_site.problems(tmp_path) == ["a.css: loads https://a.example/b.woff2 from another host"]


def test_links_that_lead_nowhere_are_problems_and_links_elsewhere_are_none(tmp_path: Path) -> None:
    links = (
        "other.html#there",
        "#here",
        "https://a.example/",
        "other.html#gone",
        "gone.html",
        "../out.html",
        "sub/",
    )
    (tmp_path / "sub").mkdir()
    text = '<p id="here">' + "".join(f'<a href="{link}">' for link in links)
    (tmp_path.parent / "out.html").write_text("")
    assert build_site.problems(site(tmp_path, index=text, other='<h1 id="there">')) == [
        "index.html: other.html#gone: no such heading",
        "index.html: gone.html: no such page",
        "index.html: ../out.html: leads out of the site",
        "index.html: sub/: no such page",
    ]


@pytest.mark.skipif(not importlib.util.find_spec("zensical"), reason="zensical is not installed: `make site`")
def test_the_site_is_whole_can_be_searched_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    built = build_site.build(tmp_path)
    assert build_site.problems(built) == []
    for page in build_site.pages():
        html = (built / page).with_suffix(".html") if not page.endswith("README.md") else built / page
        html = html.with_name("index.html") if html.name == "README.md" else html
        text = html.read_text()
        assert 'http-equiv="Content-Security-Policy"' in text, page
        assert "iframe-worker.js" in text, page
    found = json.loads((built / "search.json").read_text())["items"]
    assert any(item["location"].startswith("docs/reference/rules/fin-wait2-held.html") for item in found)
    assert (built / "search.js").is_file(), "pages that are opened as files cannot fetch search.json"
