"""What only root can give, and giving root up."""

from __future__ import annotations

import os
import pwd
import resource
from typing import Final

from finwait.errors import KernelError
from finwait.relay.config.model import ConfigError
from finwait.relay.notice import say

__all__ = ["become", "raise_limits", "user_entry"]

_SPARE_FDS: Final = 256


def user_entry(user: str) -> pwd.struct_passwd:
    """Return what the machine knows of a user.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"there is no user `{user}`", hint="`getent passwd` lists the users") from None


def become(user: str) -> None:
    """Give up root for a user, for good.

    Raises:
        KernelError: only root can.
    """
    entry = user_entry(user)
    if os.geteuid() == entry.pw_uid:
        return
    try:
        os.initgroups(user, entry.pw_gid)
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except OSError as error:
        raise KernelError(error.errno or 0, f"become user `{user}`", hint="only root can") from None


def raise_limits(max_connections: int, workers: int) -> None:
    """Raise the descriptor limit to what is allowed, and say so when that is too little."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = 2 * -(-max_connections // workers) + _SPARE_FDS
    if needed > hard:
        say(
            f"max_connections = {max_connections} needs {needed} descriptors per worker, but the limit is "
            f"{hard}; beyond it, new connections wait\nhint: raise LimitNOFILE= or `ulimit -n`"
        )
