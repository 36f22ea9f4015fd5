"""The settings of a running agent: where they come from, and what SIGHUP changes.

A new file is taken as a whole or not at all: where it is wrong, or a file that it names cannot be used, everything
stays as it was, and status, metrics and log say so. What holds until a restart stays, and is said.

An edge: it opens the files. What they say is `finwait.agent.config_file`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from finwait import files
from finwait.agent.config_file import (
    FILE_MOST,
    AgentSettings,
    differing,
    kept,
    option_of,
    read_config,
    settings_of,
)
from finwait.agent.option_texts import CONFIG, AgentValue
from finwait.agent.protocol import ConfigStatus
from finwait.errors import FileRefused, FinwaitError
from finwait.relay.config.addresses import parse_port, split_address
from finwait.table.units import printable
from finwait.toml.document import TomlDocument

__all__ = ["NO_CONFIG", "Configured", "Secrets", "check_places", "listen_address"]

NO_CONFIG: Final = "none"
"""As ``--config``: no file, also not the usual one."""
_PEM_MOST: Final = 24 << 10
"""Of a certificate with its chain, and of a key: both must fit into a pipe at once."""
_OWN_HINT: Final = "a configuration must be a file of yours that nobody else can write"


class Secrets(Struct, frozen=True):
    """What files hold that the settings name."""

    token: str = ""
    """What who reads the page must show; empty for nothing."""
    tls: tuple[str, str] | None = None
    """Certificate and key in PEM; None for no TLS."""


def listen_address(text: str) -> str:
    """Return an address with a port, or ``unix:`` and a path, if it is one.

    Raises:
        ValueError: it is none.
    """
    if text.startswith("unix:"):
        if not text.startswith("unix:/") or text.endswith("/") or "\0" in text or len(text) > 107:
            raise ValueError("write an absolute path of at most 102 characters after unix:")
        return text
    try:
        host, port = split_address(text)
        parse_port(port)
    except ValueError as error:
        raise ValueError(printable(str(error))[:200]) from None
    if not host:
        raise ValueError("write an address before the port, as in 127.0.0.1:9944")
    return text


def _opened(path: str | None) -> TomlDocument | None:
    """Return the configuration file; None where there is none and none was named.

    Raises:
        FinwaitError: it cannot be read, is wrong, or somebody else may have written it.
    """
    if path == NO_CONFIG:
        return None
    name = path or CONFIG
    try:
        data = files.read(name, FILE_MOST, own=_OWN_HINT)
    except OSError as error:
        if path is None and isinstance(error, FileNotFoundError):
            return None
        failure = FinwaitError(f"could not read `{name}`: the kernel said {error.strerror}")
        failure.hint = f"`--config {NO_CONFIG}` reads no file"
        raise failure from None
    return read_config(data, name)


def _token(name: str) -> str:
    """Return the token that is in a file.

    Raises:
        FinwaitError: there is none, or others can read it.
    """
    hint = "`(umask 077; openssl rand -hex 32 > FILE)` makes one"
    try:
        with files.open_to_read(name, own_way=True) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(4097)
    except OSError as error:
        refused = FinwaitError(f"`{name}` cannot be read: {error.strerror}")
        refused.hint = hint
        raise refused from None
    if mode & 0o007:
        raise FileRefused(name, "everybody can read the token in it", hint=f"`chmod o= {name}`")
    token = data.strip().decode("ascii", "replace")
    if not re.fullmatch(r"[!-~]{16,4096}", token, re.ASCII):
        raise FileRefused(name, "it holds no token: one line, 16 characters or more, no spaces", hint=hint)
    return token


def _pem(name: str, noun: str, own: str = "") -> str:
    """Return a PEM file.

    Raises:
        FinwaitError: it cannot be read, or is none.
    """
    try:
        data = files.read(name, _PEM_MOST, own_way=True, own=own)
    except OSError as error:
        raise FinwaitError(f"could not read the {noun} `{name}`: the kernel said {error.strerror}") from None
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise FinwaitError(f"the {noun} `{name}` is no PEM: it has bytes that are no ASCII") from None


def _tls(settings: AgentSettings) -> tuple[str, str] | None:
    """Return certificate and key, which belong together; None where there is to be no TLS.

    Raises:
        FinwaitError: they do not, or everybody can read the key.
    """
    if not settings.tls_cert:
        return None
    import ssl

    from finwait.agent.certificates import tls_context

    certificate = _pem(settings.tls_cert, "certificate")
    key = _pem(settings.tls_key, "key", own="a key must be a file of yours that nobody else can write")
    with files.open_to_read(settings.tls_key, own_way=True) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    if mode & 0o007:
        raise FileRefused(
            settings.tls_key, "everybody can read the key", hint=f"`chmod o= {settings.tls_key}`"
        )
    try:
        tls_context(certificate.encode(), key.encode())
    except (ssl.SSLError, ValueError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) else str(error)
        failure = FinwaitError(f"`{settings.tls_cert}` and `{settings.tls_key}` cannot be used: {reason}")
        failure.hint = f"`openssl x509 -in {settings.tls_cert} -noout -text` shows the certificate"
        raise failure from None
    return certificate, key


class Configured:
    """What a command line and a file say together.

    Args:
        path: of the file; None for the usual one, which may be missing; `NO_CONFIG` for none.
        typed: what the command line says, by key.

    Attributes:
        settings: what is in force.
        secrets: what the files hold that they name.
        file: the file that was read; empty for none.

    Raises:
        FinwaitError: the file is wrong, or one that it names.
    """

    def __init__(self, path: str | None, typed: Mapping[str, AgentValue]) -> None:
        self._path = path
        self._typed = dict(typed)
        self.file = ""
        self.settings, self.secrets = self._read()
        self._said = ""
        self._restart: tuple[str, ...] = ()

    def _read(self) -> tuple[AgentSettings, Secrets]:
        document = _opened(self._path)
        if document is None and self.file:
            failure = FinwaitError(f"`{self.file}` is gone")
            failure.hint = "put it back, or start the agent anew to do without it"
            raise failure
        settings = settings_of(document, self._typed, {"listen": listen_address})
        token = _token(settings.token_file) if settings.token_file else ""
        secrets = Secrets(token=token, tls=_tls(settings))
        self.file = document.name if document is not None else ""
        return settings, secrets

    def reload(self, say: Callable[[str], None]) -> bool:
        """Read everything again; return whether it is in force. One that is wrong changes nothing, and is told."""
        try:
            settings, secrets = self._read()
        except FinwaitError as error:
            hint = f" ({error.hint})" if error.hint else ""
            self._said = f"the new configuration is not used, the old one stays: {error}{hint}".replace(
                "\n", " "
            )
            say(self._said)
            return False
        self._said = ""
        before = self._restart
        self._restart = tuple(option_of(key) for key in differing(self.settings, settings))
        if bool(secrets.tls) != bool(self.secrets.tls):  # whether there is TLS is settled at the start
            secrets = replace(secrets, tls=self.secrets.tls)
        self.settings, self.secrets = kept(self.settings, settings), secrets
        if self._restart and self._restart != before:
            say(f"the configuration was read again; what needs a restart: {', '.join(self._restart)}")
        return True

    @property
    def right(self) -> bool:
        """Whether what was read last is in force."""
        return not self._said

    @property
    def status(self) -> ConfigStatus:
        """How it is, to be told."""
        return ConfigStatus(file=self.file, said=self._said[:500], restart=list(self._restart))


def check_places(settings: AgentSettings) -> None:
    """Refuse folders in which the agent would refuse to start.

    Raises:
        FinwaitError: somebody else may write there, or what has to be there is missing.
    """
    for path, option in (
        (settings.state_dir, "--state-dir"),
        (os.path.dirname(settings.socket), "--socket"),
    ):
        while path:
            try:
                with files.folder(path) as folder:
                    reason = folder.way or ("" if option == "--socket" and folder.sticky else folder.alone)
            except FileNotFoundError:  # it is made, below what is there
                path = os.path.dirname(path)
                continue
            except OSError as error:
                raise FinwaitError(f"`{path}` cannot be used: {error.strerror}") from None
            if reason:
                raise FileRefused(path, reason, hint=f"name another `{option}`")
            break
    if settings.textfile:
        try:
            files.folder(settings.textfile).close()
        except OSError as error:
            raise FinwaitError(
                f"`{settings.textfile}` cannot be used for metrics: {error.strerror}"
            ) from None
