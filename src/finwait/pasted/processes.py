"""processes: who is who, as `ls -l /proc/PID/fd`, docker ps, crictl ps and kubectl get pods print it.

Understood    The links of /proc/PID/fd below a command or a title that names the pid; docker, podman,
              nerdctl and crictl ps; kubectl get pods -o wide.
Told          Which descriptor of a process is which socket, by inode; which pod has which address.
Not told      Descriptors of a listing that does not name its pid.
"""

from __future__ import annotations

import re
from typing import Final

from finwait.pasted.rows import TextPart
from finwait.uapi.cluster import NAME as CLUSTER_NAME
from finwait.uapi.cluster import Pod

__all__ = ["NAME", "read", "starts"]

NAME: Final = "processes"

_LINK = re.compile(r"l[rwx-]{9}\S?\s.{0,80}\s(\d{1,9}) -> '?(socket:\[(\d{1,10})\]|.{1,200})'?$")
_TITLE = re.compile(r"/proc/(\d{1,7})/fd/?:\s*$")
_PID = re.compile(r"/proc/(\d{1,7})/fd")
_PODS = re.compile(r"(?:NAMESPACE\s+)?NAME\s+READY\s+STATUS\s+RESTARTS\s+AGE(?:\s+IP\s+NODE.*)?")
_POD = re.compile(
    r"(?:([a-z0-9][a-z0-9.-]{0,62})\s+)?([a-z0-9][a-z0-9.-]{0,252})\s+\d{1,3}/\d{1,3}\s+\S{1,40}\s+"
    r"\d{1,6}(?: \([^)]{1,30}\))?\s+\d\S{0,12}(?:\s+([0-9a-f.:]{3,45}|<none>)\s+(\S{1,253}))?"
)
_CONTAINERS = re.compile(r"CONTAINER(?: ID)?\s+IMAGE\s+")


def starts(line: str) -> bool:
    """Return whether a line lists descriptors, containers or pods."""
    return (
        (line[:1] == "l" and _LINK.match(line) is not None)
        or _TITLE.search(line) is not None
        or (line.startswith("CONTAINER") and _CONTAINERS.match(line) is not None)
        or (line.startswith(("NAME", "NAMESPACE")) and _PODS.match(line) is not None)
        or ("/" in line and line[:1].islower() and _POD.match(line) is not None)
    )  # fmt: skip


def read(lines: list[str], args: str) -> TextPart:
    """Read descriptors and pods."""
    part = TextPart(NAME)
    named = _PID.search(args)
    pid = int(named[1]) if named else 0
    namespaced = False
    for line in lines:
        if title := _TITLE.search(line):
            pid = int(title[1])
        elif line.startswith(("NAME", "NAMESPACE")):
            namespaced = line.startswith("NAMESPACE")
        elif match := _LINK.match(line):
            if match[3] and pid:
                part.descriptors.append((pid, int(match[1]), int(match[3])))
            elif match[3]:
                part.count("tell whose descriptors these are (`ls -l /proc/PID/fd`, with the command line)")
        elif pod := _POD.match(line):
            _pod(part, pod, namespaced=namespaced)
    return part


def _pod(part: TextPart, match: re.Match[str], *, namespaced: bool) -> None:
    namespace, name, address, node = match.groups()
    if not address or address == "<none>" or CLUSTER_NAME.fullmatch(name) is None:
        return
    place = namespace if namespaced and namespace else "default"
    part.pods.append(Pod(f"{place}.{name}"[:128], place, name, node or "", addresses=(address,)))
