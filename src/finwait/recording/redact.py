"""Redaction: stable pseudonyms for addresses, names and command lines, in the bytes themselves.

A redacted recording decodes by the same code and gives the same findings: only what identifies a machine or
a person is replaced. Pseudonyms are derived from a random key that is made for the recording and forgotten,
so they are equal where the originals are equal and cannot be turned back by guessing.

* Addresses keep their class (first octet; first 16 bits of IPv6) and which subnets they share, to the bit: each
  further octet (16-bit group) is XORed with a hash of the key and everything before it. What tells a private
  network from a public one stays (10/8, 172.16/12, 192.168/16, 100.64/10, 169.254/16, fe80::/64), and so do
  loopback and wildcard. Who knows one original address of a /24 can tell the others of the same /24.
* Ports, states, counters, times, pids, inodes, cookies, user ids and the kernel's version stay.
* Names (processes, namespaces, cgroups, host) become ``name-1a2b3c``; container and pod ids become other ids
  of the same shape; command lines and paths are dropped but for the pseudonym of the program.
* Attributes whose content is not known to be harmless are zeroed.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.errors import Gap
from finwait.table import decode
from finwait.uapi import conntrack, inet_diag, rtnetlink
from finwait.uapi import netlink as nl
from finwait.uapi.cluster import ClusterNames
from finwait.uapi.layout import Rows
from finwait.uapi.observation import Facts, Namespace, Observation, ProcessFiles, ProcessWaits

__all__ = ["Pseudonyms", "redact", "redact_look"]

_HARMLESS: Final = frozenset(
    (
        inet_diag.MEMINFO, inet_diag.INFO, inet_diag.VEGASINFO, inet_diag.CONG, inet_diag.TOS, inet_diag.TCLASS,
        inet_diag.SKMEMINFO, inet_diag.SHUTDOWN, inet_diag.DCTCPINFO, inet_diag.PROTOCOL, inet_diag.SKV6ONLY,
        inet_diag.PAD, inet_diag.MARK, inet_diag.BBRINFO, inet_diag.CLASS_ID, inet_diag.ULP_INFO,
        inet_diag.CGROUP_ID, inet_diag.SOCKOPT,
    )
)  # fmt: skip
_HARMLESS_FLOW: Final = frozenset(
    (
        conntrack.TUPLE_ORIG, conntrack.TUPLE_REPLY, conntrack.TUPLE_MASTER, conntrack.STATUS, conntrack.PROTOINFO,
        conntrack.TIMEOUT, conntrack.MARK, conntrack.COUNTERS_ORIG, conntrack.COUNTERS_REPLY, conntrack.USE,
        conntrack.ID, conntrack.ZONE, conntrack.TIMESTAMP, conntrack.SEQ_ADJ_ORIG, conntrack.SEQ_ADJ_REPLY,
        conntrack.HELP, conntrack.SYNPROXY,
    )
)  # fmt: skip
_STRUCTURE: Final = re.compile(
    r"(?:kubelet-)?kubepods(?:-besteffort|-burstable)?(?:\.slice)?|besteffort|burstable"
    r"|(?:system|user|machine|kubelet)\.slice|init\.scope|user@?|container|kubelet|payload|supervisor"
    r"|docker|containerd|cri-containerd|crio|lxc|lxc\.(?:payload|monitor)|libpod_parent"
)
_HEX: Final = re.compile(r"[0-9a-f]{12,}")
_UUID: Final = re.compile(r"[0-9a-f]{8}([-_])[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}")
_SUFFIX: Final = re.compile(r"\.(?:service|scope|slice|socket|mount|swap)$")
_PREFIX: Final = re.compile(
    r"(?:kubelet-)?kubepods(?:-besteffort|-burstable)?-pod|pod|cri-containerd-|crio-(?:conmon-)?|docker-|nerdctl-"
    r"|libpod-(?:conmon-|payload-)?|lxc\.(?:payload|monitor)\.|machine-"
)
_CLUSTER: Final = re.compile(r"(.+)-(kubepods[.-].*|kubepods)")

_LINK_LOCAL: Final = b"\xfe\x80" + bytes(6)
_SECOND_OCTET: Final = {172: 0x0F, 192: 0x00, 100: 0x3F, 169: 0x00}
"""First octet → bits of the second that may change without leaving or entering a private network."""


class Pseudonyms:
    """Names and addresses → pseudonyms, by a key that nobody keeps."""

    def __init__(self, key: bytes | None = None, keep: Iterable[str] = ()) -> None:
        self._key = key if key is not None else os.urandom(32)
        self._keep = frozenset(keep)
        self._addresses: dict[bytes, bytes] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._taken: set[str] = set()

    def _hash(self, *parts: bytes) -> bytes:
        return hmac.new(self._key, b"\0".join(parts), hashlib.sha256).digest()

    def name(self, text: str, kind: str = "name") -> str:
        """Return ``kind-1a2b3c`` for a name; kept names and empty ones stay."""
        if not text or text in self._keep:
            return text
        known = self._names.get((kind, text))
        if known is not None:
            return known
        digits = self._hash(b"name", text.encode("utf-8", "surrogatepass")).hex()
        size = 6  # longer where two names would look the same: one pseudonym never stands for two
        while (made := f"{kind}-{digits[:size]}") in self._taken:
            size += 2
        self._taken.add(made)
        self._names[kind, text] = made
        return made

    def hexadecimal(self, text: str) -> str:
        """Return other hexadecimal digits of the same number and grouping, the same whatever separates groups."""
        plain = text.replace("_", "-")
        digits = (self._hash(b"hex", plain.encode()) * (len(text) // 32 + 1)).hex()
        return "".join(c if c in "-_" else digits[k] for k, c in enumerate(text))

    def component(self, text: str) -> str:
        """Return one component of a cgroup path, its structure kept: what a runtime is told by."""
        if not text or _STRUCTURE.fullmatch(text):
            return text
        if ":" in text:  # what containerd makes of systemd's notation without systemd
            return ":".join(map(self.component, text.split(":")))
        cluster = _CLUSTER.fullmatch(text)
        if cluster and cluster[1] != "kubelet":
            return f"{self.name(cluster[1])}-{self.component(cluster[2])}"
        suffix = m[0] if (m := _SUFFIX.search(text)) else ""
        body = text.removesuffix(suffix) if suffix else text
        prefix = m[0] if (m := _PREFIX.match(body)) else ""
        body = body[len(prefix) :]
        if _UUID.fullmatch(body) or _HEX.fullmatch(body):
            return prefix + self.hexadecimal(body) + suffix
        return prefix + self.name(body) + suffix

    def path(self, text: str) -> str:
        """Return a cgroup path, each component by itself."""
        deleted = " (deleted)" if text.endswith(" (deleted)") else ""
        return "/".join(map(self.component, text.removesuffix(deleted).split("/"))) + deleted

    def address(self, raw: bytes) -> bytes:
        """Return the pseudonym of 4 or 16 bytes of address."""
        done = self._addresses.get(raw)
        if done is None:
            done = self._addresses[raw] = self._address(raw)
        return done

    def _address(self, raw: bytes) -> bytes:
        if len(raw) == 16:
            if raw[:12] == b"\0" * 10 + b"\xff\xff":
                return raw[:12] + self.address(raw[12:])
            if raw[:15] == b"\0" * 15 and raw[15] <= 1:
                return raw
            first = 8 if raw[:8] == _LINK_LOCAL else 2
            out = raw[:first]
            for at in range(first, 16, 2):
                mask = self._hash(b"v6", raw[:at])[:2]
                out += bytes(a ^ b for a, b in zip(raw[at : at + 2], mask, strict=True))
            return out
        if raw[0] in (0, 127) or raw == b"\xff" * 4:
            return raw
        out = raw[:1]
        for at in range(1, 4):
            bits = self._hash(b"v4", raw[:at])[0]
            if at == 1:
                bits &= _SECOND_OCTET.get(raw[0], 0xFF)
            out += bytes([raw[at] ^ bits])
        return out


def redact(
    looks: Sequence[Observation], *, key: bytes | None = None, keep_names: frozenset[str] = frozenset()
) -> list[Observation]:
    """Return looks in which everything that identifies is replaced; all with the same pseudonyms.

    Args:
        looks: what was read.
        key: for tests; a random one is made, and forgotten, when it is not given.
        keep_names: process names to leave as they are (of programs that everybody has).

    Raises:
        DecodeError: the datagrams cannot be decoded, so that what they hold is not known.
    """
    names = Pseudonyms(key, keep_names)
    return [redact_look(look, names) for look in looks]


def redact_look(look: Observation, names: Pseudonyms) -> Observation:
    """Return one look with everything that identifies replaced; see `redact`.

    Raises:
        DecodeError: the datagrams cannot be decoded, so that what they hold is not known.
    """
    buffer = look.buffer.copy()
    known = replace(look, buffer=buffer)
    _sockets(known, names)
    _flows(known, names)
    _local_addresses(known, names)
    _unknown(known)
    return replace(
        look,
        buffer=buffer,
        facts=_facts(look.facts, names),
        namespaces=tuple(
            replace(ns, names=tuple(_netns(n, names) for n in ns.names), files=_files(ns))
            for ns in look.namespaces
        ),
        processes={pid: _process(process_files, names) for pid, process_files in look.processes.items()},
        cgroups={number: names.path(path) for number, path in look.cgroups.items()},
        gaps=tuple(_gap(gap, names) for gap in look.gaps),
        releasing=tuple(replace(thread, name=names.name(thread.name, "comm")) for thread in look.releasing),
        waits={pid: _waits(process_waits, names) for pid, process_waits in look.waits.items()},
        names=_cluster(look.names, names),
    )


def _cluster(cluster: ClusterNames, names: Pseudonyms) -> ClusterNames:
    """Names of a cluster; which pod belongs to what, and which Service leads where, stays. Labels are dropped."""

    def path(text: str) -> str:
        namespace, slash, name = text.partition("/")
        return f"{names.name(namespace, 'namespace')}/{names.name(name, 'kube')}" if slash else text

    def called(text: str) -> str:
        return names.name(text, "kube")

    def addresses(texts: Iterable[str]) -> tuple[str, ...]:
        return tuple(_address(text, names) for text in texts)

    return ClusterNames(
        node=called(cluster.node),
        pods=tuple(
            msgspec.structs.replace(
                pod,
                uid=names.hexadecimal(pod.uid),
                owner_uid=names.hexadecimal(pod.owner_uid),
                cgroup_uid=names.hexadecimal(pod.cgroup_uid),
                namespace=names.name(pod.namespace, "namespace"),
                name=called(pod.name),
                node=called(pod.node),
                owner=called(pod.owner),
                addresses=addresses(pod.addresses),
                containers={names.hexadecimal(key): called(name) for key, name in pod.containers.items()},
                labels={},
            )
            for pod in cluster.pods
        ),
        services=tuple(
            msgspec.structs.replace(
                service,
                namespace=names.name(service.namespace, "namespace"),
                name=called(service.name),
                addresses=addresses(service.addresses),
                ports=tuple(msgspec.structs.replace(port, name=called(port.name)) for port in service.ports),
            )
            for service in cluster.services
        ),
        endpoints=tuple(
            msgspec.structs.replace(
                endpoint,
                service=path(endpoint.service),
                address=_address(endpoint.address, names),
                pod=path(endpoint.pod),
                node=called(endpoint.node),
            )
            for endpoint in cluster.endpoints
        ),
        node_addresses=addresses(cluster.node_addresses),
        as_of=cluster.as_of,
    )


def _address(text: str, names: Pseudonyms) -> str:
    """Return the pseudonym of an address in text; what is none becomes a name."""
    try:
        return str(ipaddress.ip_address(names.address(ipaddress.ip_address(text).packed)))
    except ValueError:
        return names.name(text, "address")


def _waits(process_waits: ProcessWaits, names: Pseudonyms) -> ProcessWaits:
    """Threads have names, too; what they wait for are numbers and the kernel's own words."""
    threads = tuple(replace(thread, name=names.name(thread.name, "comm")) for thread in process_waits.threads)
    return replace(process_waits, threads=threads)


def _files(ns: Namespace) -> dict[str, bytes]:
    """Files of a namespace: settings and counters, which identify nobody; anything else is left out."""
    return {
        name: data
        for name, data in ns.files.items()
        if name.startswith("sys/")
        or name in ("net/sockstat", "net/sockstat6", "net/netstat", "net/snmp", "net/stat/nf_conntrack")
    }


def _netns(name: str, names: Pseudonyms) -> str:
    return name if name == "host" else names.name(name, "netns")


_PLACE: Final = re.compile(r"netns \d+|pid \d+|\d+ processes|this machine")
_NAMED_PLACE: Final = re.compile(r"(netns \d+) \((.*)\)", re.DOTALL)


def _gap(gap: Gap, names: Pseudonyms) -> Gap:
    """What could not be seen, too, has a name. The other two parts of a gap are finwait's own words.

    A namespace that could not be entered is in no look, so its name is here alone.
    """
    if _PLACE.fullmatch(gap.where):
        return gap
    if named := _NAMED_PLACE.fullmatch(gap.where):
        return gap.but(where=f"{named[1]} ({_netns(named[2], names)})")
    return gap.but(where=names.name(gap.where, "place"))


def _facts(facts: Facts, names: Pseudonyms) -> Facts:
    boot = names.hexadecimal(facts.boot_id) if facts.boot_id else ""
    return replace(facts, hostname=names.name(facts.hostname, "host"), boot_id=boot)


def _bytes(name: str) -> bytes:
    """A name as the kernel has it: one that is kept may not be UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def _exe(path: str, names: Pseudonyms) -> bytes:
    program = path.removesuffix(" (deleted)")  # which an update leaves behind: the kernel's word, not a name
    return b"/" + _bytes(names.name(program, "exe")) + _bytes(path[len(program) :])


def _process(files: ProcessFiles, names: Pseudonyms) -> ProcessFiles:
    comm, stat = "", None
    if files.stat is not None and 0 <= files.stat.find(b"(") < files.stat.rfind(b")"):
        begin, end = files.stat.index(b"(") + 1, files.stat.rindex(b")")
        comm = files.stat[begin:end].decode("utf-8", "surrogateescape")
        # Up to the start time, field 22 of proc(5): what follows are addresses of its memory.
        fields = b" ".join(files.stat[end + 1 :].split()[:20])
        stat = files.stat[:begin] + _bytes(names.name(comm, "comm")) + b") " + fields + b"\n"
    status = files.status
    if status is not None:
        kept = (b"Tgid:", b"Pid:", b"PPid:", b"Uid:", b"NSpid:", b"Threads:", b"Kthread:")
        lines = [line for line in status.split(b"\n") if line.startswith(kept)]
        status = b"Name:\t" + _bytes(names.name(comm, "comm")) + b"\n" + b"\n".join(lines) + b"\n"
    cgroup = files.cgroup
    if cgroup is not None:
        lines = []
        for line in cgroup.decode("utf-8", "replace").split("\n"):
            number, _, rest = line.partition(":")
            controllers, colon, path = rest.partition(":")
            if controllers.startswith("name=") and controllers != "name=systemd":
                controllers = f"name={names.name(controllers[5:])}"  # somebody's own hierarchy
            lines.append(f"{number}:{controllers}:{names.path(path)}".encode() if colon else b"")
        cgroup = b"\n".join(lines)
    if files.comm is not None:
        comm = comm or files.comm.decode("utf-8", "surrogateescape")
    return replace(
        files,
        comm=None if files.comm is None else _bytes(names.name(comm, "comm")),
        stat=stat,
        status=status,
        cmdline=None if not files.cmdline else _bytes(names.name(comm, "comm")) + b"\0",
        cgroup=cgroup,
        exe=None if not files.exe else _exe(files.exe.decode("utf-8", "surrogateescape"), names),
    )


def _replace(buffer: NDArray[np.uint8], at: NDArray[np.int64], size: int, names: Pseudonyms) -> None:
    """Replace the addresses of ``size`` bytes at some offsets (−1: none), each different one once."""
    at = at[at >= 0]
    if not len(at):
        return
    cells = buffer[at[:, None] + np.arange(size)]
    values, inverse = np.unique(cells, axis=0, return_inverse=True)
    new = np.array([list(names.address(value.tobytes())) for value in values], np.uint8)
    buffer[at[:, None] + np.arange(size)] = new[inverse.reshape(-1)]


def _blank(buffer: NDArray[np.uint8], rows: Rows, harmless: frozenset[int]) -> None:
    """Zero attributes that are not known to be harmless."""
    for number, layout in enumerate(rows.layouts):
        offsets = rows.offset[rows.layout == number]
        for path, (offset, size) in layout.places.items():
            if path[0] not in harmless and len(path) == 1 and size:
                buffer[(offsets + offset)[:, None] + np.arange(size)] = 0


def _sockets(look: Observation, names: Pseudonyms) -> None:
    messages, _, _ = decode.chains(look, "tcp", "mptcp")
    socket_messages = (messages.type == inet_diag.SOCK_DIAG_BY_FAMILY) | (
        messages.type == inet_diag.TCPDIAG_GETSOCK
    )
    rows = inet_diag.find_rows(look.buffer, messages.where(socket_messages))
    body = rows.offset + nl.NLMSG_HEADER
    family = look.buffer[body] if len(rows) else np.empty(0, np.uint8)
    for offset in (8, 24):
        _replace(look.buffer, (body + offset)[family == inet_diag.AF_INET], 4, names)
        _replace(look.buffer, (body + offset)[family != inet_diag.AF_INET], 16, names)
        # The other twelve bytes of an IPv4 address are not used; a kernel that does not clear them may not tell.
        rest = (body + offset + 4)[family == inet_diag.AF_INET]
        if len(rest):
            look.buffer[rest[:, None] + np.arange(12)] = 0
    _blank(look.buffer, rows, _HARMLESS)


def _flows(look: Observation, names: Pseudonyms) -> None:
    messages, _, _ = decode.chains(look, "conntrack")
    rows = conntrack.find_rows(look.buffer, messages.where(messages.type == conntrack.CT_NEW))
    for kind in (conntrack.TUPLE_ORIG, conntrack.TUPLE_REPLY, conntrack.TUPLE_MASTER):
        for number in (conntrack.IP_V4_SRC, conntrack.IP_V4_DST):
            _replace(look.buffer, rows.place((kind, conntrack.TUPLE_IP, number), 4), 4, names)
        for number in (conntrack.IP_V6_SRC, conntrack.IP_V6_DST):
            _replace(look.buffer, rows.place((kind, conntrack.TUPLE_IP, number), 16), 16, names)
    _blank(look.buffer, rows, _HARMLESS_FLOW)


def _local_addresses(look: Observation, names: Pseudonyms) -> None:
    messages, _, _ = decode.chains(look, "addresses")
    buffer = look.buffer
    for offset, length, kind in zip(
        messages.offset.tolist(), messages.length.tolist(), messages.type.tolist(), strict=True
    ):
        if kind != rtnetlink.RTM_NEWADDR:
            continue
        data = buffer[offset : offset + length].tobytes()
        begin = nl.NLMSG_HEADER + rtnetlink.IFADDRMSG_SIZE
        for number, at, size in nl.attributes(data, min(begin, length), length, "ifaddrmsg attribute"):
            place = slice(offset + at, offset + at + size)
            if number in rtnetlink.ADDRESS_ATTRIBUTES and size in (4, 16):
                buffer[place] = np.frombuffer(names.address(data[at : at + size]), np.uint8)
            elif number not in rtnetlink.HARMLESS_ATTRIBUTES:
                buffer[place] = 0


_KNOWN: Final = {
    "tcp": (inet_diag.SOCK_DIAG_BY_FAMILY, inet_diag.TCPDIAG_GETSOCK),
    "mptcp": (inet_diag.SOCK_DIAG_BY_FAMILY, inet_diag.TCPDIAG_GETSOCK),
    "conntrack": (conntrack.CT_NEW,),
    "addresses": (rtnetlink.RTM_NEWADDR,),
}
"""Kind of dump → types of the messages in it that are redacted attribute by attribute."""


def _unknown(look: Observation) -> None:
    """Zero what nobody decodes: other messages, and what lies between and after the datagrams."""
    step = np.zeros(
        len(look.buffer) + 1, np.int8
    )  # datagrams do not overlap: 1 where one begins, −1 where it ends
    for kind, types in _KNOWN.items():
        messages, _, _ = decode.chains(look, kind)
        whole = np.isin(messages.type, types)
        step[messages.offset] += 1
        step[messages.offset + np.where(whole, messages.length, nl.NLMSG_HEADER)] -= 1
    known = np.cumsum(step[:-1], dtype=np.int8) > 0
    look.buffer[~known] = 0
