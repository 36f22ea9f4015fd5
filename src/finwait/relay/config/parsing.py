"""Tables, of a file or of a command line → a configuration, or the mistake in them and what would be right.

Where a value stands in a text is known to whoever read it: that is asked for the line of a path such as
``service[0].timeouts.idle``.
"""

from __future__ import annotations

import re
import typing
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from finwait.relay.config.check import check
from finwait.relay.config.model import Config, ConfigError, parse_duration
from finwait.relay.config.reference import options, tables

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["parse"]


def _with_seconds(data: Any, kind: Any, path: str) -> Any:  # noqa: ANN401  # whatever TOML held
    """Return ``data`` with each duration as seconds, led by the declared types; wrong shapes pass unchanged.

    Raises:
        _Misplaced: a duration does not parse.
    """
    if typing.get_origin(kind) is Annotated:
        kind, *notes = typing.get_args(kind)
        if any(isinstance(note, Meta) and (note.extra or {}).get("duration") for note in notes):
            try:
                return parse_duration(data)
            except ValueError as error:
                raise _Misplaced(str(error), path) from None
    if typing.get_origin(kind) is tuple and isinstance(data, (list, tuple)):
        element = typing.get_args(kind)[0]
        return [_with_seconds(item, element, f"{path}[{at}]") for at, item in enumerate(data)]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(data, dict):
        hints = typing.get_type_hints(kind, include_extras=True)
        return {
            key: _with_seconds(value, hints[key], f"{path}.{key}" if path else key) if key in hints else value
            for key, value in data.items()
        }
    return data


class _Misplaced(ValueError):  # internal: a mistake and the path to it
    def __init__(self, message: str, path: str) -> None:
        super().__init__(message)
        self.path = path


def parse(
    data: dict[str, Any],
    *,
    name: str = "configuration",
    line_of: Callable[[str], int] | None = None,
    shown: Callable[[str], str] = str,
) -> Config:
    """Return the configuration that parsed TOML (or the command line) describes.

    Args:
        data: the tables.
        name: what it was read from.
        line_of: returns the line of a path in the text.
        shown: how a path such as ``service[0].timeouts.idle`` is written there.

    Raises:
        ConfigError: with ``name:line:`` where lines are known.
    """
    try:
        config = msgspec.convert(_with_seconds(data, Config, ""), Config, strict=True)
        wrong = next(check(config), None)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        path = where.rstrip("`").lstrip(".").replace("[...]", "[0]")
        unknown = re.fullmatch(r".*unknown field `(.+)`", what, re.DOTALL)
        lacking = re.fullmatch(r".*missing required field `(.+)`", what, re.DOTALL)
        if unknown:
            table, path = path, f"{path}.{unknown[1]}".lstrip(".")
            what, hint = "there is no such key here", _elsewhere(unknown[1], _plain(table))
        elif lacking:
            what = f"`{lacking[1]}` is missing"
            hint = _wanted(f"{_plain(path)}.{lacking[1]}".lstrip("."))
        else:
            what, hint = what[0].lower() + what[1:], _wanted(_plain(path))
        raise _at(name, line_of, path, shown, what, hint) from None
    except _Misplaced as error:
        raise _at(name, line_of, error.path, shown, str(error), "") from None
    if wrong is not None:
        raise _at(name, line_of, wrong[0], shown, wrong[1], "")
    return config


def _at(
    name: str,
    line_of: Callable[[str], int] | None,
    path: str,
    shown: Callable[[str], str],
    what: str,
    hint: str,
) -> ConfigError:
    place = f"{name}:{line_of(path)}" if line_of is not None else name
    where = f" (`{shown(path)}`)" if path else ""
    return ConfigError(f"{place}: {what}{where}", hint=hint or _EXPLAIN)


_EXPLAIN: Final = "`finwait relay run --explain` lists each option"


def _plain(path: str) -> str:
    """Return a path without the numbers of its elements."""
    return re.sub(r"\[\d*\]", "", path)


def _wanted(path: str) -> str:
    """Return what the value of an option must be."""
    for known, kind, _, _ in options():
        if known != path:
            continue
        choices = getattr(kind, "__args__", None)
        if kind == "duration":
            return 'it is a duration, for example 5, "5s", "300ms" or "1h"'
        if choices:
            return "it is one of " + ", ".join(f'"{choice}"' for choice in choices)
        if kind is tuple:
            return 'it is a list of text, for example ["*:8080"]' if path.endswith("listen") else _NETWORKS
        return {
            bool: "it is true or false",
            int: "it is a whole number",
            float: "it is a number",
            str: 'it is text, in quotes: "…"',
        }[kind]
    return {
        "service": "it is a table that begins with [[service]]",
        "service.backend": 'it is a list of tables, for example backend = [{ address = "10.0.0.5:80" }]',
    }.get(path, f"it is a table that begins with [{path}]" if path in dict(tables()) else _EXPLAIN)


_NETWORKS: Final = 'it is a list of text, for example ["10.0.0.0/8"]'


def _elsewhere(unknown: str, here: str) -> str:
    """Return where a key that does not belong here might belong, or what it might have meant."""
    import difflib

    homes: dict[str, list[str]] = {}
    for path, *_ in options():
        table, _, key = path.rpartition(".")
        homes.setdefault(key, []).append(table)
    for path, _ in tables():
        table, _, key = path.rpartition(".")
        if key:
            homes.setdefault(key, []).append(table)
    same_table = difflib.get_close_matches(unknown, [key for key in homes if here in homes[key]], 1, 0.7)
    near = [unknown] if unknown in homes else same_table or difflib.get_close_matches(unknown, homes, 1, 0.5)
    if not near:
        return _EXPLAIN
    key = near[0]
    if here in homes[key]:
        return f"did you mean `{key}`?"
    told = " or ".join(f"`{_header(table)}`" if table else "the top level" for table in homes[key])
    return f"`{key}` belongs to {told}"


def _header(table: str) -> str:
    return f"[[{table}]]" if table in ("service", "service.backend") else f"[{table}]"
