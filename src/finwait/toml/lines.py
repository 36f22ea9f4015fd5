"""Where in a TOML text each value was written: tomllib gives no positions, so they are found again.

Where that cannot be told (a key inside an inline table), the line of the table is named. Pure.
"""

from __future__ import annotations

import re

__all__ = ["TomlLines"]

_KEY = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_TABLE = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")


class TomlLines:
    """Where in a TOML text a path such as ``service[0].timeouts.idle`` was written."""

    def __init__(self, text: str) -> None:
        self.lines: dict[str, int] = {}
        counts: dict[str, int] = {}
        prefix = ""
        depth, quote = 0, ""
        for number, line in enumerate(text.splitlines(), 1):
            if not depth and not quote:
                table = _TABLE.match(line)
                key = None if table else _KEY.match(line)
                if table:
                    prefix = self._enter(table[2], table[1] == "[[", counts)
                    self.lines.setdefault(prefix, number)
                elif key:
                    path = ".".join(filter(None, (prefix, re.sub(r"[\s\"']", "", key[1]))))
                    self.lines.setdefault(path, number)
            depth, quote = self._nesting(
                line, depth, quote, starts_table=depth == 0 and bool(_TABLE.match(line))
            )

    @staticmethod
    def _enter(name: str, array: bool, counts: dict[str, int]) -> str:
        """Return the path of a table header; an array of tables counts its elements."""
        path = ""
        parts = [part.strip().strip("\"'") for part in name.split(".")]
        for place, part in enumerate(parts):
            path = f"{path}.{part}" if path else part
            if array and place == len(parts) - 1:
                counts[path] = counts.get(path, -1) + 1
            if path in counts:
                path = f"{path}[{counts[path]}]"
        return path

    @staticmethod
    def _nesting(line: str, depth: int, quote: str, *, starts_table: bool) -> tuple[int, str]:
        """Follow brackets and quotes that stay open at the end of a line."""
        at = len(line) if starts_table else 0
        while at < len(line):
            if quote:
                if line.startswith(quote, at):
                    at, quote = at + len(quote), ""
                else:
                    at += 2 if line[at] == "\\" and quote[0] == '"' else 1
                continue
            if line[at] == "#":
                break
            if line.startswith(('"""', "'''"), at):
                quote, at = line[at : at + 3], at + 3
                continue
            if line[at] in "\"'":
                quote = line[at]
            depth += (line[at] in "[{") - (line[at] in "]}")
            at += 1
        return max(depth, 0), quote if len(quote) == 3 else ""

    def of(self, path: str) -> int:
        """Return the line of a path, or of what is nearest above it; 1 when nothing is."""
        while path:
            if path in self.lines:
                return self.lines[path]
            cut = max(path.rfind("."), path.rfind("["))
            path = path[:cut] if cut > 0 else ""
        return 1
