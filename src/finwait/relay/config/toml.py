"""A TOML file → a configuration, with the line of what is wrong in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from finwait import files
from finwait.errors import FileRefused
from finwait.relay.config.model import Config, ConfigError
from finwait.relay.config.parsing import checked, config_error
from finwait.toml.document import TomlDocument, TomlMistake

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load"]

_MOST_BYTES: Final = 1 << 20
"""Of a configuration; the longest that is of use has some ten thousand."""


def load(path: Path) -> Config:
    """Read a TOML file.

    Raises:
        ConfigError: it cannot be read, is no TOML, or says something that cannot be; with file and line.
    """
    try:
        data = files.read(str(path), _MOST_BYTES, own_way=True)
    except FileRefused as error:
        raise ConfigError(f"could not read `{path}`: {error.reason}", hint=error.hint) from None
    except OSError as error:
        raise ConfigError(
            f"could not read `{path}`: the kernel said {error.strerror}", hint="`--config` names a TOML file"
        ) from None
    try:
        document = TomlDocument(data, str(path))
    except TomlMistake as mistake:
        raise config_error(mistake) from None
    return checked(document)
