"""sysctl: settings, as `sysctl -a`, `sysctl KEY …` and `cat /proc/sys/net/…` print them.

Understood    Lines of `KEY = VALUE` and `KEY: VALUE` of the keys that begin with `net.`; of
              `cat /proc/sys/net/FILE` the line below the command; `grep -r . /proc/sys/net`.
Told          Each setting that is there, for the namespace in which the command ran.
Not told      Any other: what a rule would say of it is then left out.
"""

from __future__ import annotations

import re
from typing import Final

from finwait.pasted.rows import TextPart

__all__ = ["NAME", "read", "starts"]

NAME: Final = "sysctl"

_LINE = re.compile(
    r"\s{0,8}(?:/proc/sys/)?(net[./][a-z0-9_./-]{1,80}) ?(?: = |[=:]) ?([-0-9A-Za-z_ \t.]{0,200})$"
)
_CAT = re.compile(r"/proc/sys/(net/[a-z0-9_/-]{1,80})")


def starts(line: str) -> bool:
    """Return whether a line is a setting."""
    return "net" in line[:20] and _LINE.match(line) is not None


def read(lines: list[str], args: str) -> TextPart:
    """Read settings, by the names of their files below /proc/sys."""
    part = TextPart(NAME)
    for line in lines:
        if match := _LINE.match(line):
            name = match[1].replace(".", "/").removeprefix("net/")
            part.files[f"sys/{name}"] = match[2].strip().encode()
    if not part.files:
        values = [line.strip() for line in lines]
        for name, value in zip(_CAT.findall(args), values, strict=False):
            part.files[f"sys/{name.removeprefix('net/')}"] = value.encode()
    return part
