"""Tables, of a TOML file or of a command line → a declared value, or the mistake in them and what would be right.

tomllib gives no positions of values, so `finwait.toml.lines` finds them again; it is asked only after a mistake.
A path such as ``service[0].timeouts.idle`` says where a value is.

What this does not do: open a file (`finwait.files`), or check what types cannot say. Who checks that says so with
`TomlDocument.mistake`, and the mistake has its line, too.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import typing
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from finwait.toml.declared import DeclaredKey, declared_keys, header, reader_of, table_of
from finwait.toml.lines import TomlLines

__all__ = ["TomlDocument", "TomlMistake"]

_T = TypeVar("_T", bound=msgspec.Struct)

_LISTED_MOST: Final = 14
"""Keys that a hint lists."""


class TomlMistake(Exception):
    """What is wrong in a document: `str` gives ``name:line: problem (`path`)``.

    Attributes:
        name: of the document.
        line: from 1; 0 where the document has no lines.
        path: of the value; empty for the whole.
        problem: what is wrong.
        hint: what would be right; may be empty.
    """

    def __init__(self, name: str, line: int, path: str, problem: str, hint: str, shown: str) -> None:
        super().__init__(f"{name}:{line}: {problem}{shown}" if line else f"{name}: {problem}{shown}")
        self.name = name
        self.line = line
        self.path = path
        self.problem = problem
        self.hint = hint


class TomlDocument:
    """Tables with a name.

    Args:
        data: a TOML text in UTF-8.
        name: what mistakes call it.

    Raises:
        TomlMistake: it is no TOML.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self._text: str | None = None
        self._lines: TomlLines | None = None
        self._shown: Callable[[str], str] = str
        try:
            text = data.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise self._at_line(line, f"not UTF-8 at byte {error.start}", "TOML files are UTF-8") from None
        try:
            self.tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            problem, _, where = str(error).rpartition(" (at ")
            match = re.search(r"line (\d+)", where)
            line = int(match[1]) if match else max(1, len(text.splitlines()))
            raise self._at_line(line, problem or str(error), "the file is not valid TOML") from None
        except (ValueError, RecursionError) as error:
            # tomllib lets through what int() and the stack say about numbers of 5,000 digits and tables 1,000 deep.
            problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise self._at_line(_longest_line(text), problem, "no configuration needs that") from None
        self._text = text

    @classmethod
    def of_tables(cls, tables: dict[str, Any], name: str, shown: Callable[[str], str] = str) -> TomlDocument:
        """Return a document that was never a text.

        Args:
            tables: as a TOML text would give them.
            name: what mistakes call it.
            shown: how a path is written there, for example as an option of a command line.
        """
        document = cls(b"", name)
        document.tables = tables
        document._text, document._shown = None, shown
        return document

    def line_of(self, path: str) -> int:
        """Return the line of a path, or of what is nearest above it; 0 where there are no lines."""
        if self._text is None:
            return 0
        if self._lines is None:
            self._lines = TomlLines(self._text)
        return self._lines.of(path)

    def _at_line(self, line: int, problem: str, hint: str) -> TomlMistake:
        return TomlMistake(self.name, line, "", problem, hint, "")

    def mistake(self, path: str, problem: str, hint: str = "") -> TomlMistake:
        """Return the mistake in what a path says."""
        shown = f" (`{self._shown(path)}`)" if path else ""
        return TomlMistake(self.name, self.line_of(path), path, problem, hint, shown)

    def typed(self, kind: type[_T]) -> _T:
        """Return the tables as a declared value.

        Raises:
            TomlMistake: a key is unknown or missing, or a value is not what its declaration says.
        """
        try:
            return msgspec.convert(_read(self.tables, kind, ""), kind, strict=True)
        except msgspec.ValidationError as error:
            raise self.mistake(*_explained(str(error), tuple(declared_keys(kind)), self.tables)) from None
        except _Unread as error:
            raise self.mistake(error.path, str(error)) from None


def _longest_line(text: str) -> int:
    """Return the number of the longest line, where what is too long or too deep must be."""
    lines = text.splitlines() or [""]
    return max(range(len(lines)), key=lambda at: len(lines[at])) + 1


class _Unread(ValueError):
    """A value that its reader refused, and the path to it."""

    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


def _read(value: Any, hint: Any, path: str) -> Any:  # noqa: ANN401  # whatever TOML held
    """Return a value of the tables with what readers made of it; wrong shapes pass unchanged, for msgspec to refuse.

    Raises:
        _Unread: a reader refused a value.
    """
    reader = reader_of(hint)
    if reader is not None:
        try:
            return reader(value)
        except ValueError as error:
            raise _Unread(str(error), path) from None
    table = table_of(hint)
    if table is None:
        return value
    if isinstance(value, list | tuple):
        return [_read(item, table, f"{path}[{at}]") for at, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    hints = typing.get_type_hints(table, include_extras=True)
    kinds = {field.encode_name: hints[field.name] for field in msgspec.structs.fields(table)}
    return {
        key: _read(item, kinds[key], f"{path}.{key}" if path else key) if key in kinds else item
        for key, item in value.items()
    }


def _explained(message: str, keys: tuple[DeclaredKey, ...], tables: object) -> tuple[str, str, str]:
    """Return the path, the problem and a hint of an error of msgspec's."""
    problem, _, where = message.partition(" - at `$")
    path = where.rstrip("`").lstrip(".").replace("[...]", "[0]")
    plain = re.sub(r"\[\d*\]", "", path)
    unknown = re.fullmatch(r".*unknown field `(.+)`", problem, re.DOTALL)
    if unknown:
        hint = _nearest(unknown[1], plain, keys)
        return f"{path}.{unknown[1]}".lstrip("."), "this key does not exist here", hint
    lacking = re.fullmatch(r".*missing required field `(.+)`", problem, re.DOTALL)
    if lacking:
        return path, f"`{lacking[1]}` is missing", _expectation(f"{plain}.{lacking[1]}".lstrip("."), keys)
    hint = _expectation(plain, keys)
    if broken := _LIMIT.fullmatch(problem):
        unit = " s" if any(key.path == plain and key.unit == "duration" for key in keys) else ""
        return (
            path,
            f"{_shown(tables, path)} is {_BEYOND[broken[1]]} {broken[2].removesuffix('.0')}{unit}",
            hint,
        )
    if broken := _LENGTH.fullmatch(problem):
        too = _TOO[broken[1] == "str", broken[2] == "<="]
        return path, f"{too}: {'at most' if broken[2] == '<=' else 'at least'} {broken[3]}", hint
    if _FORM.match(problem):
        return path, f"{_shown(tables, path)} has characters or a length that are not allowed", hint
    return path, problem[:1].lower() + problem[1:], hint


_LIMIT: Final = re.compile(r"Expected `\w+` (>=|<=|>|<) (\S+)")
_BEYOND: Final = {">=": "less than", "<=": "more than", ">": "not more than", "<": "not less than"}
_LENGTH: Final = re.compile(r"Expected `(\w+)` of length (>=|<=) (\d+)")
_FORM: Final = re.compile("Expected `str` matching regex ")
_TOO: Final = {
    (True, True): "it is too long",
    (True, False): "it is too short",
    (False, True): "the list has too many entries",
    (False, False): "the list has too few entries",
}
"""Whether it is a text, and whether there is a most."""
_VALUE_MOST: Final = 60


def _shown(tables: object, path: str) -> str:
    """Return the value at a path, as an error shows it."""
    value = tables
    for key, at in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            value = value[int(at)] if at else value[key]  # type: ignore[index]
        except (LookupError, TypeError):
            return "this"
    text = ascii(value)[1:-1] if isinstance(value, str) else str(value)
    return f"`{text[:_VALUE_MOST]}{'…' * (len(text) > _VALUE_MOST)}`"


def _expectation(path: str, keys: tuple[DeclaredKey, ...]) -> str:
    """Return what the value of a key must be; empty for what is no key."""
    return next((key.expectation for key in keys if key.path == path), "")


def _nearest(unknown: str, table: str, keys: tuple[DeclaredKey, ...]) -> str:
    """Return where a key that does not belong here might belong, or what it might have meant."""
    tables = {key.path: key for key in keys if key.table is not None}
    homes: dict[str, list[str]] = {}
    for key in keys:
        home, _, name = key.path.rpartition(".")
        homes.setdefault(name, []).append(home)
    siblings = [name for name in homes if table in homes[name]]
    near = [unknown] if unknown in homes else difflib.get_close_matches(unknown, siblings, cutoff=0.7)
    near = near or difflib.get_close_matches(unknown, homes, cutoff=0.5)
    if not near:
        return "keys here: " + ", ".join(siblings) if 0 < len(siblings) <= _LISTED_MOST else ""
    name = near[0]
    if table in homes[name]:
        return f"did you mean `{name}`?"
    places = " or ".join(f"`{header(tables[home])}`" if home else "the top level" for home in homes[name])
    return f"`{name}` belongs to {places}"
