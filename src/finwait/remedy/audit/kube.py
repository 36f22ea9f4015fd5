"""Reads YAML and JSON: pods, kube-proxy, the configuration of nodes and machines, relayed connections.

Settings stand there in many forms: ``name`` and ``value`` beside each other (pods, Ansible), in single-entry mappings
of a list (Salt), as key and value (compose, GKE), with the dots left out (``netIpv4TcpFinTimeout`` of AKS), as
``KEY=VALUE`` of a list (compose, kops), in commands (cloud-init) and in whole files that are a value (ConfigMaps,
``write_files``).

The tree is built from the parser's events with a limit on depth, so that neither nesting nor aliases of
hostile input cost more than the text is long. PyYAML is optional (the extra ``audit``); without it a YAML
file is a `Problem`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from finwait.remedy.audit.finding import Within, suggest
from finwait.remedy.audit.flags import (
    TIMEOUTS,
    allowed_unsafe,
    duration_s,
    kube_proxy_flags,
    kube_proxy_timeout,
)
from finwait.remedy.audit.proxies import ingress_nginx
from finwait.remedy.audit.template import UNKNOWN
from finwait.remedy.settings.catalogue import by_letters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from finwait.remedy.audit.finding import Judge

__all__ = ["Node", "YamlUnreadableError", "is_word", "parse_yaml", "scan_tree"]

_DEEPEST = 120
_HOUR = 3600


class YamlUnreadableError(Exception):
    """The text is not YAML, or more than we are willing to read: at which line, and why."""

    def __init__(self, line: int, reason: str, documents: list[Node] | None = None) -> None:
        self.line = line
        self.reason = reason
        self.documents = documents or []
        """Those that ended before the place."""
        super().__init__(f"line {line}: {reason}")


class Node(Struct, eq=False):
    """A node of a YAML document, with the line that it starts on (from 1)."""

    line: int
    text: str | None = None
    """The scalar; None for mappings and sequences."""
    block: bool = False
    """Whether it is a literal or folded block, whose content starts on the next line."""
    encoded: bool = False
    """Whether it is a file's content in base64, or packed."""
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


class _Builder(Struct):
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
            line, f"not YAML: {error.problem or error.context or 'cannot be read'}", builder.documents
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "cannot be read"
        raise YamlUnreadableError(first_line, f"not YAML: {reason}", builder.documents) from None
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


_COMMANDS = frozenset(
    ("runcmd", "bootcmd", "command", "args", "cmd", "entrypoint", "preBootstrapCommands", "postBootstrapCommands",
     "commands", "exec", "script", "before_script", "after_script", "run", "shell")
)  # fmt: skip
"""Keys whose value is a command: a list of its words, or of several commands."""
_NAMES = ("name", "key", "k", "sysctl", "parameter", "option")
_VALUES = ("value", "val", "v")
_PREFIXES = (
    "net.ipv4.",
    "net.netfilter.",
    "net.ipv6.",
    "net.core.",
    "net/ipv4/",
    "net/netfilter/",
    "net/core/",
)
_PROXY_ARGUMENTS = frozenset(
    ("kube-proxy-arg", "kube-proxy-args", "kube_proxy_args", "kube_proxy_extra_args")
)
_UNSAFE = frozenset(("allowedUnsafeSysctls", "allowed-unsafe-sysctls", "allowed_unsafe_sysctls"))
_MOST_WORDS = 60
_LONGEST_WORD = 400


def scan_tree(
    judge: Judge,
    documents: list[Node],
    nested: Callable[[Node, tuple[str, ...]], None],
    command: Callable[[list[Node]], None],
) -> None:
    """Look through YAML documents.

    Args:
        judge: takes the findings.
        documents: their roots.
        nested: is given every scalar that may hold a text of its own, with the keys above it.
        command: is given the words of every command that is written as a list.
    """
    kinds: dict[int, str] = {}
    for node, path in walk(documents):
        if node.pairs is not None:
            _mapping(judge, node, path, kinds)
        elif node.items is not None:
            words = _command_words(node, path)
            if words:
                kinds.update((id(word), "word") for word in words if is_word(word.text or ""))
                command(words)
        elif (
            node.text is not None and kinds.get(id(node)) != "word" and any(c in node.text for c in "\n =/:")
        ):
            nested(node, path)


def is_word(text: str) -> bool:
    """Whether a word of a command is short and on one line; others are texts of their own."""
    return "\n" not in text and len(text) <= _LONGEST_WORD


def _command_words(node: Node, path: tuple[str, ...]) -> list[Node]:
    """Return the words of a command that is written as a list, as `runcmd: [[sysctl, -w, a=1]]` is."""
    items = node.items or []
    if not (path and path[-1] in _COMMANDS and items) or len(items) > _MOST_WORDS:
        return []
    if any(item.text is None for item in items) or any(" " in (item.text or "") for item in items[:1]):
        return []  # several commands, each a text
    return items


def _mapping(judge: Judge, node: Node, path: tuple[str, ...], kinds: dict[int, str]) -> None:
    if node.word("kind") == "KubeProxyConfiguration":
        _proxy_configuration(judge, node)
    _loop(node, kinds)
    if node.word("hostNetwork").lower() in _TRUE:
        kinds.update((id(node.get(key)), "host") for key in _CONTEXTS if node.get(key) is not None)
    if path[-1:] and path[-1] in _CONTEXTS:
        _pod_sysctls(judge, node, kinds)
    _container_sysctls(judge, node, path, kinds)
    kind = kinds.get(id(node))
    if kind != "judged":
        _name_and_value(judge, node, path, looped=kind == "looped")
    _written_file(node)
    if kind != "judged":
        _keyed(judge, node, path)
    _salt(judge, node, path)
    _node_configuration(judge, node)
    if _is_kube_proxy(node):
        words = [
            (item.line, item.text) for part in ("command", "args") for item in _items(node, part) if item.text
        ]
        kube_proxy_flags(judge, [(line, word) for line, text in words for word in (text.split() or [text])])
    _relay(judge, node)
    if node.word("kind") == "ConfigMap":
        for key, value in (data.pairs or ()) if (data := node.get("data")) is not None else ():
            ingress_nginx(judge, key.line, key.text or "", value.text or "")


_CONTEXTS = ("securityContext", "podSecurityContext")
_TRUE = ("true", "yes", "on")


def _pod_sysctls(judge: Judge, node: Node, kinds: dict[int, str]) -> None:
    within = Within.HOST_POD if kinds.get(id(node)) == "host" else Within.POD
    for item in _items(node, "sysctls"):
        kinds[id(item)] = "judged"
        name, value = item.word("name"), item.get("value")
        if name:
            judge.sysctl(
                item.line, name, value.text if value else None, f"{name}={item.word('value')}", within=within
            )


_OF_A_CONTAINER = ("image", "build", "container_name", "network_mode")
_NETWORKS = ("network_mode", "network", "net")


def _container_sysctls(judge: Judge, node: Node, path: tuple[str, ...], kinds: dict[int, str]) -> None:
    """Judge the settings of a service of compose, or of a container that Ansible starts; a node's have no image."""
    sysctls = node.get("sysctls")
    if sysctls is None or not (path[:1] == ("services",) or any(node.get(key) for key in _OF_A_CONTAINER)):
        return
    host = any(node.word(key) == "host" for key in _NETWORKS)
    within = Within.HOST_CONTAINER if host else Within.CONTAINER
    pairs = [(key.line, key.text or "", value.text) for key, value in sysctls.pairs or ()]
    for item in sysctls.items or ():
        if item.text is not None:
            name, _, value = item.text.partition("=")
            pairs.append((item.line, name.strip(), value.strip()))
            kinds[id(item)] = "word"
    kinds[id(sysctls)] = "judged"
    for line, name, setting in pairs:
        if name.startswith(("net.", "net/")) or UNKNOWN in name:
            judge.sysctl(line, name, setting, f"{name}: {setting or ''}", within=within)


_LOOPS = ("loop", "with_items", "with_list", "with_dict", "with_flattened")


def _loop(node: Node, kinds: dict[int, str]) -> None:
    """Mark what a loop of Ansible goes over with literal items: those are judged, where they stand."""
    over = next((child for key in _LOOPS if (child := node.get(key)) is not None), None)
    if over is None:
        return
    whole = bool(over.items) and all(_named_setting(item) for item in over.items or ())
    if over.pairs:
        whole = all((key.text or "").startswith(_PREFIXES) and value.text for key, value in over.pairs)
    if whole:
        kinds.update((id(value), "looped") for _, value in node.pairs or ())


def _named_setting(node: Node) -> bool:
    """Whether `_name_and_value` finds a setting in a node, by its name."""
    name = next((word for key in _NAMES if (word := node.word(key))), "")
    return name.startswith(("net.", "net/", "kernel.", "vm.", "fs.")) and any(
        node.word(key) for key in _VALUES
    )


def _name_and_value(judge: Judge, node: Node, path: tuple[str, ...], *, looped: bool) -> None:
    name = next((word for key in _NAMES if (word := node.word(key))), "")
    value = next((child for key in _VALUES if (child := node.get(key)) is not None), None)
    computed = not looped and UNKNOWN in name and "sysctl" in "".join(path[-1:]).lower()
    if (computed or name.startswith(("net.", "net/"))) and value is not None and value.text is not None:
        judge.sysctl(node.line, name, value.text, f"{name}: {value.text}")
    elif node.word("name") == "KUBE_PROXY_EXTRA_ARGS":
        judge.advice(node.line, "kube-proxy-env", "KUBE_PROXY_EXTRA_ARGS")
        if value is not None and value.text:
            kube_proxy_flags(judge, [(value.line, word) for word in value.text.split()])


def _keyed(judge: Judge, node: Node, path: tuple[str, ...]) -> None:
    """Judge settings that are keys, with dots or without."""
    in_settings = bool(path) and "sysctl" in path[-1].lower()
    for key, value in node.pairs or ():
        name = key.text or ""
        if value.text is None:
            continue
        if name.startswith(_PREFIXES):
            judge.sysctl(key.line, name, value.text, f"{name}: {value.text}")
        elif (in_settings and name.startswith("net")) or name.startswith(("net_ipv4_", "net_netfilter_")):
            judge.sysctl(key.line, by_letters(name) or name, value.text, f"{name}: {value.text}")
        elif (flag := _timeout_flag(name)) and path[-1:] not in (("conntrack",), ("ipvs",)):
            kube_proxy_timeout(judge, key.line, flag, value.text, f"{name}: {value.text}")


_BY_LETTERS = {name.replace("-", ""): name for name in TIMEOUTS}


def _timeout_flag(name: str) -> str | None:
    """Return the flag of kube-proxy that a key stands for: RKE's ``extra_args``, kops' camel case."""
    return _BY_LETTERS.get(name.lower().replace("-", "").replace("_", ""))


def _written_file(node: Node) -> None:
    """Mark the content of cloud-init's ``write_files`` and the like that is not plain text."""
    content = node.get("content")
    if content is not None and node.get("path") is not None:
        content.encoded = node.word("encoding").lower() not in ("", "text/plain", "plain")


def _salt(judge: Judge, node: Node, path: tuple[str, ...]) -> None:
    for key, value in node.pairs or ():
        if key.text not in ("sysctl.present", "sysctl") or value.items is None:
            continue
        entries = {k.text: v for item in value.items for k, v in item.pairs or ()}
        named, setting = entries.get("name"), entries.get("value")
        name = named.text if named is not None and named.text else path[-1] if path else ""
        if name.startswith(("net.", "net/")) and setting is not None and setting.text is not None:
            line = named.line if named is not None else key.line
            judge.sysctl(line, name, setting.text, f"{name}: {setting.text}")


def _node_configuration(judge: Judge, node: Node) -> None:
    """k3s and rke2 pass options on without their dashes; kubelets allow settings that pods then may set."""
    for key, value in node.pairs or ():
        name = key.text or ""
        texts = [value] if value.text is not None else value.items or []
        if name.lower() in _PROXY_ARGUMENTS:
            words = [(t.line, f"--{word.lstrip('-')}") for t in texts for word in (t.text or "").split()]
            kube_proxy_flags(judge, words)
        elif name == "kubelet-arg":
            for text in texts:
                option, _, allowed = (text.text or "").lstrip("-").partition("=")
                if option in _UNSAFE:
                    allowed_unsafe(judge, text.line, allowed)
        elif name in _UNSAFE:
            for text in texts:
                allowed_unsafe(judge, text.line, text.text or "")


def _items(node: Node, key: str) -> list[Node]:
    child = node.get(key)
    return (child.items or []) if child is not None else []


def _is_kube_proxy(node: Node) -> bool:
    if node.get("command") is None and node.get("args") is None:
        return False
    first = _items(node, "command")[:1]
    if node.word("name") == "kube-proxy" or "kube-proxy" in node.word("image"):
        return True
    return bool(first and first[0].text and first[0].text.endswith("kube-proxy"))


def _proxy_configuration(judge: Judge, node: Node) -> None:
    names = judge.knowledge.names
    judge.recognise(node.line, "KubeProxyConfiguration")
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
                kube_proxy_timeout(judge, _line(conntrack, name), flag, value, f"{name}: {value}")
    ipvs = node.get("ipvs")
    if ipvs is not None:
        _fields(judge, ipvs, names.ipvs_fields, "ipvs.")
        for name, flag in (("tcpTimeout", "ipvs-tcp-timeout"), ("tcpFinTimeout", "ipvs-tcpfin-timeout")):
            value = ipvs.word(name)
            if value:
                kube_proxy_timeout(judge, _line(ipvs, name), flag, value, f"{name}: {value}")


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
