"""Build the documentation site into build/site: `make site`.

The site has the layout of the repository: a link between two files is the same link between two pages, so no page
is written for the site alone. It holds the pages of docs/, those at the root of the repository, and every file that
one of them links to. Its navigation is docs/index.md: a page that is not linked from there is in none, which is an
error.

It opens from the file system, and asks no other host for anything: `problems` reads the HTML that was made. What it
does not do: publish.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["build", "navigation", "pages", "problems"]

ROOT = Path(__file__).resolve().parent.parent
HOME = "README.md"
INDEX = "docs/index.md"
PROJECT = (
    "CHANGELOG.md",
    "KNOWN_ISSUES.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    "bench/RESULTS.md",
)
"""Pages outside docs/, in the order of the navigation."""
ASSETS = ("docs/site/iframe-worker.js", "docs/site/overrides/main.html")

Nav = list[dict[str, "str | Nav"]]

# ── sources ──────────────────────────────────────────────────────────────────────────────────────────────


def _prose(text: str) -> str:
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)


def links(page: str, text: str | None = None) -> list[str]:
    """Return the other files, as paths from the root, that a page (or this part of its text) links to, in its order."""
    text = _prose((ROOT / page).read_text() if text is None else text)
    found: list[str] = []
    for target in re.findall(r"\]\(<?([^)\s#>]+)", text):
        file = ((ROOT / page).parent / unquote(target)).resolve()
        if not re.match(r"[a-z]+:", target) and file.is_relative_to(ROOT):
            found.append(str(file.relative_to(ROOT)))
    return list(dict.fromkeys(found))


def pages() -> list[str]:
    """Return the pages of docs/."""
    return sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))


def sources() -> list[str]:
    """Return what the site is made of: all pages, and every file that one of them links to."""
    found: set[str] = set()
    todo = [HOME, *PROJECT, *pages()]
    while todo:
        page = todo.pop()
        if page in found or not (ROOT / page).is_file():
            continue
        found.add(page)
        if page.endswith(".md"):
            todo += links(page)
    return sorted(found)


def title(page: str) -> str:
    """Return the heading of a page, as short as a navigation wants it."""
    head = re.search(r"^# +(.+?) *$", _prose((ROOT / page).read_text()), re.MULTILINE)
    text = re.sub(r"[`*]|^Case study: ", "", head[1]) if head else Path(page).stem
    return re.sub(r"^How to (.)", lambda m: m[1].upper(), text)


# ── navigation ───────────────────────────────────────────────────────────────────────────────────────────


def navigation() -> Nav:
    """Return the navigation that docs/index.md describes: its headings, and the pages that each links to.

    Raises:
        ValueError: a page of docs/ is in none of it.
    """
    nav: Nav = [{"Home": HOME}, {"Documentation": INDEX}]
    first, *rest = re.split(r"^## +", (ROOT / INDEX).read_text(), flags=re.MULTILINE)
    listed = set(links(INDEX))
    for part in ["Tutorial\n" + first, *rest]:
        heading, _, body = part.partition("\n")
        below = [page for page in links(INDEX, body) if page.startswith("docs/") and page.endswith(".md")]
        nav.append({heading.strip(): [_entry(page, listed) for page in below]})
    nav.append({"Project": [{title(page): page} for page in PROJECT]})
    left = set(pages()) - {page for _, page in flat(nav)}
    if left:
        raise ValueError(f"in no navigation: {', '.join(sorted(left))}; link each from {INDEX}")
    return nav


def _entry(page: str, listed: set[str]) -> dict[str, str | Nav]:
    """Return the entry of a page: itself, or a section where a folder of its own holds the pages that it lists."""
    path = Path(page)
    folder = path.parent if path.name == "README.md" else path.with_suffix("")
    below = [p for p in links(page) if Path(p).parent == folder and p.endswith(".md") and p not in listed]
    entries: Nav = [{title(p): p} for p in below if p != page]
    return {title(page): [{"Overview": page}, *entries]} if entries else {title(page): page}


def flat(nav: Nav) -> Iterator[tuple[str, str]]:
    """Yield the title and page of each entry of a navigation, without its sections."""
    for entry in nav:
        for name, value in entry.items():
            if isinstance(value, str):
                yield name, value
            else:
                yield from flat(value)


# ── building ─────────────────────────────────────────────────────────────────────────────────────────────


def configuration(nav: Nav) -> dict[str, object]:
    """Return the configuration of zensical."""
    return {
        "site_name": "finwait",
        "site_description": "Find, explain and clear TCP connections that do not finish closing on Linux.",
        "docs_dir": "pages",
        "site_dir": "out",
        "use_directory_urls": False,  # it opens from the file system
        "nav": nav,
        "theme": {
            "custom_dir": "overrides",
            "font": False,  # those of the reader's machine
            "features": [
                "navigation.tabs",
                "navigation.indexes",
                "navigation.top",
                "search.highlight",
                "content.code.copy",
            ],
        },
        "plugins": {"search": {}, "offline": {}},
        "extra": {"polyfills": [{"path": "docs/site/iframe-worker.js", "async": False, "defer": False}]},
        "markdown_extensions": {
            "tables": {},
            "attr_list": {},
            "toc": {
                "permalink": True,
                "slugify": {"object": "pymdownx.slugs.slugify", "kwds": {"case": "lower"}},
            },
            "pymdownx": {"superfences": {}, "highlight": {"use_pygments": True}},
        },
    }


def toml(value: object) -> str:
    """Return a value as TOML, all in one line: JSON but for its signs of equality and its booleans."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def build(into: Path) -> Path:
    """Build the site in a folder; return where its pages are.

    Raises:
        subprocess.CalledProcessError: zensical found something wrong, and said it.
        ValueError: a page is in no navigation.
    """
    nav = navigation()
    source = into / "site-source"
    shutil.rmtree(source, ignore_errors=True)
    for file in [*sources(), ASSETS[0]]:
        there = source / "pages" / file
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, there)
    shutil.copytree((ROOT / ASSETS[1]).parent, source / "overrides")
    lines = (f"{json.dumps(key)} = {toml(value)}\n" for key, value in configuration(nav).items())
    (source / "zensical.toml").write_text("[project]\n" + "".join(lines))
    command = [
        sys.executable,
        "-m",
        "zensical",
        "build",
        "--strict",
        "--clean",
        "-f",
        str(source / "zensical.toml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()
    site = into / "site"
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(source / "out", site)
    return site


# ── what was built ───────────────────────────────────────────────────────────────────────────────────────

_LOADS = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"),
    "video": ("src", "poster"), "audio": ("src",), "embed": ("src",), "object": ("data",), "track": ("src",),
    "input": ("src",), "form": ("action",), "image": ("href", "xlink:href"), "use": ("href", "xlink:href"),
}  # fmt: skip
"""Attributes whose address a browser asks for by itself, or sends to. Of `link` it depends on `rel`."""
_LINKS_ONLY = {"canonical", "next", "prev", "alternate", "license", "author"}


class _Page(HTMLParser):
    """What a page loads, where it links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self._styled = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses of a tag."""
        has = {name: value or "" for name, value in attrs}
        self._styled = tag == "style"
        self.anchors |= {has[name] for name in ("id", "name") if name in has}
        self.loads += [has[name].split()[0] for name in _LOADS.get(tag, ()) if has.get(name, "").strip()]
        self.loads += _addresses(has.get("style", ""))
        if tag == "link" and not _LINKS_ONLY & set(has.get("rel", "").lower().split()):
            self.loads.append(has.get("href", ""))
        elif tag in ("a", "area", "link") and has.get("href"):
            self.links.append(has["href"])

    def handle_data(self, data: str) -> None:
        """Note the addresses in a style."""
        if self._styled:
            self.loads += _addresses(data)


def _addresses(css: str) -> list[str]:
    found = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", css)
    return [address for pair in found for address in pair if address]


def _elsewhere(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data", "blob")


def problems(site: Path) -> list[str]:
    """Return what is wrong with a site: what it would load from another host, and its links that lead nowhere."""
    found: list[str] = []
    read = {path: _Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    for path, page in read.items():
        name = str(path.relative_to(site))
        found += [f"{name}: loads {one} from another host" for one in page.loads if _elsewhere(one)]
        for address in [*page.loads, *page.links]:
            if not _elsewhere(address) and not address.startswith("data:") and path.name != "404.html":
                found += [f"{name}: {address}: {why}" for why in _wrong(site, path, address, read)]
    for path in sorted(site.rglob("*.css")):
        name = str(path.relative_to(site))
        for address in _addresses(path.read_text()):
            if _elsewhere(address):
                found.append(f"{name}: loads {address} from another host")
    return list(dict.fromkeys(found))


def _wrong(site: Path, path: Path, address: str, read: dict[Path, _Page]) -> Iterator[str]:
    """Yield what is wrong with an address within the site."""
    parts = urlsplit(address)
    file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not file.is_relative_to(site.resolve()):
        yield "leads out of the site"
    elif not file.is_file():
        yield "no such page"
    elif parts.fragment and file in read and unquote(parts.fragment) not in read[file].anchors | {"__top"}:
        yield "no such heading"


def main(argv: list[str] | None = None) -> int:
    """Build it, and say what is wrong; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--into", type=Path, default=ROOT / "build", metavar="FOLDER", help="(default build)")
    into = parser.parse_args(argv).into.resolve()
    into.mkdir(parents=True, exist_ok=True)
    try:
        site = build(into)
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"site: {error}", file=sys.stderr)
        return 1
    for problem in (wrong := problems(site)):
        print(problem, file=sys.stderr)
    if not wrong:
        print(f"open {site / 'index.html'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
