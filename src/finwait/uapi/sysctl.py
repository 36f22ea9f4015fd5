"""The number that a write to a file of /proc/sys means.

Mirrors ``proc_get_long()`` of kernel/sysctl.c, which takes a sign and what ``strtoul_lenient()`` reads with base 0:
``0x10`` is 16 and ``010`` is 8, as measured on Linux 6.18. What it refuses (``08``, ``+5``, ``1e3``) is no number here.

The surprise: after the first number the kernel takes anything that is parted from it by a blank, and ignores it where
the sysctl is a single number.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["parse_number"]

_NUMBER: Final = re.compile(r"(-?)(?:0[xX]([0-9a-fA-F]{1,16})|0([0-7]{0,21})|([1-9][0-9]{0,18}))\Z")


def parse_number(text: str) -> int | None:
    """Return the number that the kernel reads there, or None where it takes the text for none.

    Of several numbers, which some sysctls hold, none is returned either.
    """
    match = _NUMBER.match(text)
    if match is None:
        return None
    sign, hexadecimal, octal, decimal = match.groups()
    if hexadecimal is not None:
        value = int(hexadecimal, 16)
    elif octal is not None:
        value = int(octal or "0", 8)
    else:
        value = int(decimal)
    return -value if sign else value
