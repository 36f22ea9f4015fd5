"""A TOML file → a configuration, with the line of what is wrong in it.

tomllib gives no positions for values, so `_Lines` finds them again; where it cannot (a key inside an inline
table), the line of the table is named.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Final

from finwait import files
from finwait.errors import FileRefused
from finwait.relay.config.model import Config, ConfigError
from finwait.relay.config.parsing import parse

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load"]

_MOST_BYTES: Final = 1 << 20
"""Of a configuration; the longest that is of use has some ten thousand."""

_KEY = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_TABLE = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")


class _Lines:
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


def load(path: Path) -> Config:
    """Read a TOML file.

    Raises:
        ConfigError: it cannot be read, is no TOML, or says something that cannot be; with file and line.
    """
    try:
        text = files.read(str(path), _MOST_BYTES).decode("utf-8").replace("\r\n", "\n")
    except FileRefused as error:
        raise ConfigError(
            f"could not read `{path}`: {error.reason}", hint="`--config` names a TOML file"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"could not read `{path}`: the kernel said {error.strerror}", hint="`--config` names a TOML file"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 at byte {error.start}", hint="TOML is UTF-8") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).rpartition(" (at ")
        found = re.search(r"line (\d+)", where)
        line = int(found[1]) if found else max(1, len(text.splitlines()))
        raise ConfigError(f"{path}:{line}: {what or error}", hint="this is not TOML yet") from None
    except (ValueError, RecursionError) as error:
        # tomllib lets through what int() and the stack say about numbers of 5,000 digits and tables 1,000 deep.
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(
            f"{path}:{_longest_line(text)}: {what}", hint="no configuration needs that"
        ) from None
    return parse(data, name=str(path), line_of=_Lines(text).of)


def _longest_line(text: str) -> int:
    """Return the number of the longest line, where what is too long or too deep must be."""
    lines = text.splitlines() or [""]
    return max(range(len(lines)), key=lambda at: len(lines[at])) + 1
