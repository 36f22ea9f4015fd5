"""Which right was missing where the kernel said no.

A capability that we hold is not what was missing: it may count in our user namespace alone, or a policy (a security
module, seccomp, yama) said no. To advise "needs CAP_SYS_PTRACE" to root sends people the wrong way, so that every
`finwait.errors.Gap` of the kernel's edges takes its ``needs`` from here.

What is missing is not found out, only what is not: which policy it was, nobody tells.
"""

from __future__ import annotations

import os
from typing import Final

from finwait.errors import Gap

__all__ = ["held", "honest", "in_initial_user_namespace", "missing"]

_BITS: Final = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
}
"""As of include/uapi/linux/capability.h."""
_INITIAL_USER_NAMESPACE: Final = 0xEFFFFFFD
"""PROC_USER_INIT_INO of include/linux/proc_ns.h: the same on every machine."""


def held() -> int:
    """Return our effective capabilities, a bit each."""
    try:
        with open("/proc/thread-self/status", "rb") as file:
            return next((int(line.split()[1], 16) for line in file if line.startswith(b"CapEff:")), 0)
    except OSError:
        return 0


def in_initial_user_namespace() -> bool:
    """Return whether our capabilities count for the whole machine."""
    try:
        return os.stat("/proc/self/ns/user").st_ino == _INITIAL_USER_NAMESPACE
    except OSError:  # a kernel without user namespaces
        return True


def missing(capability: str, capabilities: int | None = None) -> str:
    """Return what would have let us do what this capability usually lets one do.

    Args:
        capability: by name, or ``root``; anything else is returned as it is.
        capabilities: what we held; None for what we hold now.
    """
    if capability == "root" and os.geteuid() == 0:
        return "a security policy that allows it; root alone is not enough"
    bit = _BITS.get(capability)
    if bit is None or not (held() if capabilities is None else capabilities) >> bit & 1:
        return capability
    if not in_initial_user_namespace():
        return f"{capability} in the initial user namespace; this process is in another one"
    return f"a security policy that allows it; {capability} alone is not enough"


def honest(gap: Gap, capabilities: int | None = None) -> Gap:
    """Return a gap that names what was really missing, see `missing`."""
    return gap.but(needs=missing(gap.needs, capabilities))
