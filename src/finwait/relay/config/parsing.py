"""Tables, of a file or of a command line → a configuration, or the mistake in them and what would be right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from finwait.relay.config.check import check
from finwait.relay.config.model import Config, ConfigError
from finwait.toml.document import TomlDocument, TomlMistake

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["checked", "config_error", "parse"]

_EXPLAIN: Final = "`finwait relay run --explain` lists each option"


def parse(data: dict[str, Any], *, name: str = "configuration", shown: Callable[[str], str] = str) -> Config:
    """Return the configuration that tables describe which were never a file.

    Args:
        data: as parsed TOML.
        name: what they were read from.
        shown: how a path such as ``service[0].timeouts.idle`` is written there.

    Raises:
        ConfigError: they say something that cannot be.
    """
    return checked(TomlDocument.of_tables(data, name, shown))


def checked(document: TomlDocument) -> Config:
    """Return the configuration that a document describes.

    Raises:
        ConfigError: it says something that cannot be; with ``name:line:`` where lines are known.
    """
    try:
        config = document.typed(Config)
        wrong = next(check(config), None)
        if wrong is not None:
            raise document.mistake(*wrong)
    except TomlMistake as mistake:
        raise config_error(mistake) from None
    return config


def config_error(mistake: TomlMistake) -> ConfigError:
    """Return a mistake as an error of ours."""
    return ConfigError(str(mistake), hint=mistake.hint or _EXPLAIN)
