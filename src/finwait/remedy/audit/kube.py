"""Reads what concerns Kubernetes and Envoy in YAML and JSON: pods, kube-proxy, relayed connections.

The tree is built from the parser's events with a limit on depth, so that neither nesting nor aliases of
hostile input cost more than the text is long. PyYAML is optional (the extra ``audit``); without it a YAML
file is a `Problem`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finwait.remedy.audit.finding import suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from finwait.remedy.audit.finding import Judge

__all__ = ["Node", "YamlUnreadableError", "duration_s", "kube_proxy_flags", "parse_yaml", "scan_tree"]

_DEEPEST = 120
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_HOUR = 3600
_KEEPALIVE_DEFAULT = 7200


class YamlUnreadableError(Exception):
    """The text is not YAML, or more than we are willing to read: at which line, and why."""

    def __init__(self, line: int, reason: str) -> None:
        self.line = line
        self.reason = reason
        super().__init__(f"line {line}: {reason}")


@dataclass(slots=True, eq=False)
class Node:
    """A node of a YAML document, with the line that it starts on (from 1)."""

    line: int
    text: str | None = None
    """The scalar; None for mappings and sequences."""
    block: bool = False
    """Whether it is a literal or folded block, whose content starts on the next line."""
    pairs: list[tuple[Node, Node]] | None = None
    items: list[Node] | None = None

    def get(self, key: str) -> Node | None:
        """Return the value of a mapping's key, or None."""
        for name, value in self.pairs or ():
            if name.text == key:
                return value
        return None

    def word(self, key: str) -> str:
        """Return the scalar under a mapping's key, or an empty string."""
        value = self.get(key)
        return value.text or "" if value is not None else ""


@dataclass(slots=True)
class _Builder:
    documents: list[Node] = field(default_factory=list)
    stack: list[tuple[Node, Node | None]] = field(default_factory=list)
    anchors: dict[str, Node] = field(default_factory=dict)

    def place(self, node: Node) -> None:
        if not self.stack:
            self.documents.append(node)
            return
        parent, key = self.stack[-1]
        if parent.items is not None:
            parent.items.append(node)
        elif key is None:
            self.stack[-1] = (parent, node)
        else:
            assert parent.pairs is not None
            parent.pairs.append((key, node))
            self.stack[-1] = (parent, None)


_OTHER_BREAKS = {ord(c): " " for c in "\r\x85\u2028\u2029"}
"""What YAML takes for the end of a line and no editor, no `grep -n` and no reader does."""


def parse_yaml(text: str, *, first_line: int = 1) -> list[Node]:
    """Read the documents of a YAML or JSON text.

    Args:
        text: the text.
        first_line: the number of its first line in the file that it is part of.

    Raises:
        YamlUnreadableError: it is not YAML, nests deeper than 120 levels, or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise YamlUnreadableError(
            first_line, "reading YAML needs PyYAML: pip install 'finwait[audit]'"
        ) from None
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    builder = _Builder()
    try:
        for event in yaml.parse(text.replace("\r\n", "\n").translate(_OTHER_BREAKS), Loader=loader):
            _feed(yaml, builder, event, first_line)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = first_line + (mark.line if mark is not None else 0)
        raise YamlUnreadableError(
            line, f"not YAML: {error.problem or error.context or 'cannot be read'}"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "cannot be read"
        raise YamlUnreadableError(first_line, f"not YAML: {reason}") from None
    return builder.documents


def _feed(yaml: Any, builder: _Builder, event: Any, first_line: int) -> None:  # noqa: ANN401 - PyYAML has no types
    line = event.start_mark.line + first_line
    if isinstance(event, yaml.ScalarEvent):
        node = Node(line, text=event.value, block=event.style in ("|", ">"))
    elif isinstance(event, yaml.MappingStartEvent):
        node = Node(line, pairs=[])
    elif isinstance(event, yaml.SequenceStartEvent):
        node = Node(line, items=[])
    elif isinstance(event, yaml.AliasEvent):
        known = builder.anchors.get(event.anchor)
        if known is None:
            raise YamlUnreadableError(line, f"not YAML: no anchor {event.anchor!r} before this alias")
        builder.place(known)
        return
    elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
        finished, _ = builder.stack.pop()
        builder.place(finished)
        return
    else:
        return
    if getattr(event, "anchor", None):
        builder.anchors[event.anchor] = node
    if node.text is not None:
        builder.place(node)
        return
    if len(builder.stack) >= _DEEPEST:
        raise YamlUnreadableError(line, f"nested deeper than {_DEEPEST} levels")
    builder.stack.append((node, None))


def walk(documents: list[Node]) -> Iterator[tuple[Node, tuple[str, ...]]]:
    """Yield every node once with the keys above it, aliases where they are first met."""
    seen: set[int] = set()
    todo: list[tuple[Node, tuple[str, ...]]] = [(node, ()) for node in reversed(documents)]
    while todo:
        node, path = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node, path
        below: list[tuple[Node, tuple[str, ...]]] = []
        for key, value in node.pairs or ():
            below.append((value, (*path, (key.text or "")[:80])))
        below.extend((item, path) for item in node.items or ())
        todo.extend(reversed(below))


def duration_s(text: str) -> float | None:
    """Return the seconds of a Go or protobuf duration (``1h0m0s``, ``30s``, ``0``), or None if it is none."""
    text = text.strip().strip("'\"")
    if text == "0":
        return 0.0
    total, end = 0.0, 0
    for match in _DURATION.finditer(text):
        if match.start() != end:
            return None
        total += float(match[1]) * _UNITS[match[2]]
        end = match.end()
    return total if end == len(text) and end else None


def kube_proxy_flags(judge: Judge, words: list[tuple[int, str]]) -> None:
    """Judge the words of a kube-proxy command line, each with its line."""
    index = 0
    while index < len(words):
        line, word = words[index]
        index += 1
        word = word.strip("'\",`")
        if not word.startswith("-") or word.strip("-") == "":
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals and index < len(words) and not words[index][1].strip("'\"").startswith("-"):
            value = words[index][1].strip("'\",`")
        _flag(judge, line, re.sub(r"[^\w.-].*", "", name), value.strip("'\""))


def _flag(judge: Judge, line: int, name: str, value: str) -> None:
    names = judge.knowledge.names
    plain = name.replace("_", "-")
    text = f"--{name}={value}" if value else f"--{name}"
    if not plain:
        return
    if plain in ("tcp-keepalive", "tcp-keepalive-interval") or plain.startswith("tcp-keepalive"):
        judge.advice(line, "kube-proxy-tcp-keepalive", text, detail=f"--{name}: ",
                     instead=judge.knowledge.claims["S35"].instead)  # fmt: skip
    elif name in names.old_flags or plain in names.old_flags:
        judge.advice(line, "kube-proxy-old-flag", text, detail=f"--{name}: ")
    elif name not in names.flags and plain not in names.flags:
        near = [f"--{n}" for n in suggest(plain, names.flags)]
        judge.advice(line, "kube-proxy-unknown-flag", text, detail=f"--{name}: ",
                     instead=f"Near it are {', '.join(near)}." if near else "")  # fmt: skip
    else:
        _known_flag(judge, line, plain, value, text)


def _known_flag(judge: Judge, line: int, name: str, value: str, text: str) -> None:
    if name == "proxy-mode" and value and value not in judge.knowledge.names.modes:
        if value == "userspace":
            judge.advice(line, "kube-proxy-userspace", text)
        return
    for flag, action in _DURATIONS.items():
        if name == flag:
            action(judge, line, value, text)


def _conntrack(key: str) -> Callable[[Judge, int, str, str], None]:
    def judge_it(judge: Judge, line: int, value: str, text: str) -> None:
        seconds = duration_s(value)
        if seconds:  # 0 leaves the sysctl as it is
            judge.sysctl(line, f"net.netfilter.nf_conntrack_tcp_timeout_{key}", str(int(seconds)), text)

    return judge_it


def _ipvs(advice: str, below: int) -> Callable[[Judge, int, str, str], None]:
    def judge_it(judge: Judge, line: int, value: str, text: str) -> None:
        seconds = duration_s(value)
        if seconds and seconds < below:
            judge.advice(line, advice, text)

    return judge_it


_DURATIONS: dict[str, Callable[[Judge, int, str, str], None]] = {
    "conntrack-tcp-timeout-close-wait": _conntrack("close_wait"),
    "conntrack-tcp-timeout-established": _conntrack("established"),
    "ipvs-tcp-timeout": _ipvs("ipvs-idle", _KEEPALIVE_DEFAULT),
    "ipvs-tcpfin-timeout": _ipvs("ipvs-fin", _HOUR),
}


def scan_tree(judge: Judge, documents: list[Node], nested: Callable[[Node], None]) -> None:
    """Look through YAML documents; ``nested`` is given every scalar that may hold a text of its own."""
    kinds: dict[int, str] = {}
    for node, path in walk(documents):
        if node.pairs is not None:
            _mapping(judge, node, path, kinds)
        elif node.text is not None and ("\n" in node.text or " " in node.text):
            nested(node)


def _mapping(judge: Judge, node: Node, path: tuple[str, ...], kinds: dict[int, str]) -> None:
    if node.word("kind") == "KubeProxyConfiguration":
        _proxy_configuration(judge, node)
    sysctls = node.get("sysctls")
    if sysctls is not None and path[-1:] == ("securityContext",):
        for item in sysctls.items or ():
            kinds[id(item)] = "pod"
            name, value = item.word("name"), item.get("value")
            if name:
                judge.sysctl(
                    item.line, name, value.text if value else None, f"{name}={item.word('value')}", pod=True
                )
    if kinds.get(id(node)) != "pod":
        name, value = node.word("name"), node.get("value")
        if name.startswith(("net.", "net/")) and value is not None and value.text is not None:
            judge.sysctl(node.line, name, value.text, f"{name}: {value.text}")
        elif name == "KUBE_PROXY_EXTRA_ARGS":
            judge.advice(node.line, "kube-proxy-env", name)
            if value is not None and value.text:
                kube_proxy_flags(judge, [(value.line, word) for word in value.text.split()])
    for key, value in node.pairs or ():
        if key.text and key.text.startswith(("net.ipv4.", "net.netfilter.", "net.ipv6.", "net.core.")):
            judge.sysctl(key.line, key.text, value.text, f"{key.text}: {value.text}")
    if _is_kube_proxy(node):
        words = [
            (item.line, item.text) for part in ("command", "args") for item in _items(node, part) if item.text
        ]
        kube_proxy_flags(judge, [(line, word) for line, text in words for word in (text.split() or [text])])
    _relay(judge, node)


def _items(node: Node, key: str) -> list[Node]:
    found = node.get(key)
    return (found.items or []) if found is not None else []


def _is_kube_proxy(node: Node) -> bool:
    if node.get("command") is None and node.get("args") is None:
        return False
    first = _items(node, "command")[:1]
    if node.word("name") == "kube-proxy" or "kube-proxy" in node.word("image"):
        return True
    return bool(first and first[0].text and first[0].text.endswith("kube-proxy"))


def _proxy_configuration(judge: Judge, node: Node) -> None:
    names = judge.knowledge.names
    _fields(judge, node, names.config_fields, "")
    mode = node.word("mode")
    if mode == "userspace":
        judge.advice(_line(node, "mode"), "kube-proxy-userspace", f"mode: {mode}")
    conntrack = node.get("conntrack")
    if conntrack is not None:
        _fields(judge, conntrack, names.conntrack_fields, "conntrack.")
        for name, flag in (
            ("tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait"),
            ("tcpEstablishedTimeout", "conntrack-tcp-timeout-established"),
        ):
            value = conntrack.word(name)
            if value:
                _DURATIONS[flag](judge, _line(conntrack, name), value, f"{name}: {value}")
    ipvs = node.get("ipvs")
    if ipvs is not None:
        _fields(judge, ipvs, names.ipvs_fields, "ipvs.")
        for name, flag in (("tcpTimeout", "ipvs-tcp-timeout"), ("tcpFinTimeout", "ipvs-tcpfin-timeout")):
            value = ipvs.word(name)
            if value:
                _DURATIONS[flag](judge, _line(ipvs, name), value, f"{name}: {value}")


def _line(node: Node, key: str) -> int:
    return next((name.line for name, _ in node.pairs or () if name.text == key), node.line)


def _fields(judge: Judge, node: Node, known: frozenset[str], prefix: str) -> None:
    for key, _ in node.pairs or ():
        if key.text and key.text not in known:
            near = ", ".join(prefix + name for name in suggest(key.text, known))
            judge.advice(
                key.line,
                "kube-proxy-unknown-field",
                key.text,
                detail=f"{prefix}{key.text[:60]}: ",
                instead=f"Near it are {near}." if near else "",
            )


_RELAYS = ("TcpProxy", "HttpConnectionManager", "HttpProtocolOptions", "TcpProtocolOptions")


def _relay(judge: Judge, node: Node) -> None:
    """Envoy's own configuration, and Istio's connectionPool, which becomes it."""
    kind = node.word("@type").rpartition(".")[2]
    for name in ("idle_timeout", "idleTimeout"):
        value = node.word(name)
        seconds = duration_s(value) if value else None
        if seconds is None or (kind and kind not in _RELAYS):
            continue
        text = f"{name}: {value}"
        if seconds == 0:
            judge.advice(_line(node, name), "envoy-idle-off", text)
        elif seconds > _HOUR:
            judge.advice(_line(node, name), "envoy-idle-long", text)
    value = node.word("delayed_close_timeout") or node.word("delayedCloseTimeout")
    if value and duration_s(value) == 0:
        key = "delayed_close_timeout" if node.word("delayed_close_timeout") else "delayedCloseTimeout"
        judge.advice(_line(node, key), "envoy-delayed-close-off", f"{key}: {value}")
