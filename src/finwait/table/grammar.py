"""The words of a FILTER: text to a tree of predicates, or an error that points at the mistake.

The grammar is that of ``ss`` (misc/ssfilter.y in iproute2 and its manual page), where each predicate of ours
looks like one of its own. Blanks may be left out around operators and parentheses, which ``ss`` insists on.

The surprise: ``ss`` reads ``a or b and c`` from left to right, its manual page says that ``and`` binds
tighter. Both cannot be meant, and a filter may choose what gets destroyed, so the mixture is an error here
until parentheses say which.

What this does not do: look anything up. Services come from a table, and host names are not resolved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np

from finwait.errors import FilterError
from finwait.table.predicates import (
    DURATIONS,
    ENUMERATIONS,
    EVERYTHING,
    KEYWORDS,
    NAMED_STATES,
    WORD_OPERATORS,
    Age,
    And,
    Autobound,
    Host,
    Known,
    Mark,
    Node,
    Not,
    Number,
    Or,
    Port,
    State,
    Text,
    User,
    cgroup_path,
    gather,
    state_text,
)
from finwait.table.schema import Column
from finwait.table.sockets import MAPPED, SCHEMA
from finwait.uapi import tcp
from finwait.uapi.inet_diag import AF_INET, AF_INET6

__all__ = ["PREDICATES", "SERVICES", "named_states", "read"]

PREDICATES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "state": "TCP state or group of states.",
        "exclude": "Every state but this one.",
        "src": "Local address, prefix and port.",
        "dst": "Remote address, prefix and port.",
        "sport": "Local port or service.",
        "dport": "Remote port or service.",
        "dev": "Interface that the socket is bound to, by name or number.",
        "fwmark": "SO_MARK, optionally `/MASK`.",
        "mark": "The same as `fwmark`; also compares with `<` and `>`.",
        "cgroup": "Path of the cgroup v2 that the socket was made in.",
        "autobound": "The kernel chose the local port. Refused: nothing tells it of a row; ask for a range of `sport`.",
        "held": "A struct socket exists: some descriptor refers to it (inode not 0).",
        "orphan": "No struct socket: closed by everybody, or not yet accepted (inode 0).",
        "age": "Time in the present state, as far as it is certain.",
        "rule": "The rule that names its cause: the most specific one that matched.",
        "also": "Another rule that matched, and is less specific.",
        "variant": "Variant of that rule, by its number on the rule's page; 0 for none.",
        "severity": "`problem`, `notice` or `healthy`: of the finding that names its cause.",
        "pod": "`NAMESPACE/NAME`, name or UID of the pod.",
        "container": "Container id, a beginning of it, or name.",
        "pid": "Process that holds it.",
        "comm": "Name of a process that holds it.",
        "user": "User that made it, by name or number.",
        "netns": "Network namespace, by inode or name.",
    }
)
"""Predicates → one line for the reference page. Every column of the socket table is a predicate, too."""

SERVICES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "amqp": 5672,
        "amqps": 5671,
        "bgp": 179,
        "cassandra": 9042,
        "domain": 53,
        "dns": 53,
        "domain-s": 853,
        "elasticsearch": 9200,
        "epmd": 4369,
        "etcd": 2379,
        "etcd-client": 2379,
        "etcd-server": 2380,
        "ftp": 21,
        "git": 9418,
        "http": 80,
        "http-alt": 8080,
        "https": 443,
        "imap": 143,
        "imap2": 143,
        "imaps": 993,
        "iscsi-target": 3260,
        "kafka": 9092,
        "kerberos": 88,
        "kubelet": 10250,
        "ldap": 389,
        "ldaps": 636,
        "memcached": 11211,
        "microsoft-ds": 445,
        "mongodb": 27017,
        "mqtt": 1883,
        "ms-sql-s": 1433,
        "mysql": 3306,
        "nats": 4222,
        "nfs": 2049,
        "ntp": 123,
        "pop3": 110,
        "pop3s": 995,
        "postgresql": 5432,
        "rdp": 3389,
        "redis": 6379,
        "rsync": 873,
        "rtsp": 554,
        "sip": 5060,
        "sip-tls": 5061,
        "smtp": 25,
        "smtps": 465,
        "snmp": 161,
        "ssh": 22,
        "submission": 587,
        "submissions": 465,
        "sunrpc": 111,
        "svn": 3690,
        "syslog-tls": 6514,
        "telnet": 23,
        "vnc": 5900,
        "whois": 43,
        "xmpp-client": 5222,
        "xmpp-server": 5269,
        "zookeeper": 2181,
    }
)
"""Service names that are understood without a look at /etc/services."""

# --------------------------------------------------------------------------------------------------------
# Reading the text

_TOKEN = re.compile(
    r"""(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | \\?(?P<paren>[()])
      | \\?(?P<and>&\\?&?)
      | \\?(?P<or>\|\\?\|?)
      | \\?(?P<op>!=|==|<=|>=|=|<|>)
      | \\?(?P<not>!)
      | (?P<word>(?:[^\s()&|!<>="'\\]|\\[^()&|!<>=])+)""",
    re.VERBOSE | re.DOTALL,
)
_DEPTH: Final = 100
_GROUPS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "all": tcp.ALL_STATES,
        "connected": tcp.ALL_STATES & ~(1 << tcp.CLOSE | 1 << tcp.LISTEN),
        "synchronized": tcp.ALL_STATES & ~(1 << tcp.CLOSE | 1 << tcp.LISTEN | 1 << tcp.SYN_SENT),
        "bucket": 1 << tcp.SYN_RECV | 1 << tcp.NEW_SYN_RECV | 1 << tcp.TIME_WAIT,
        "big": tcp.ALL_STATES & ~(1 << tcp.SYN_RECV | 1 << tcp.NEW_SYN_RECV | 1 << tcp.TIME_WAIT),
    }
)
_UNSET: Final = "is a variable of your script not set?"
_KNOWN: Final = frozenset(
    {"rule", "also", "variant", "severity", "pod", "container", "pid", "comm", "user", "netns", "cgroup"}
)
"""Predicates that the context answers."""
_SEVERITIES: Final = ("problem", "notice", "healthy")
_MULTIPLES: Final = {"k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    column: int
    quoted: bool = False


@dataclass(slots=True)
class _Parser:
    text: str
    services: Mapping[str, int]
    rules: Sequence[str]
    variants: Callable[[], Mapping[str, int]] | None = None
    tokens: list[_Token] = field(default_factory=list)
    at: int = 0

    def error(self, token: _Token | int, message: str, hint: str = "") -> FilterError:
        column = token if isinstance(token, int) else token.column
        return FilterError(self.text, column, message, hint=hint)

    # tokens

    def scan(self) -> None:
        place = 0
        while place < len(self.text):
            if self.text[place].isspace():
                place += 1
                continue
            found = _TOKEN.match(self.text, place)
            if found is None:
                character = self.text[place]
                if character in "\"'":
                    raise self.error(
                        place, "this quotation has no end", f"put a closing {character} behind it"
                    )
                raise self.error(place, f"nothing in a filter begins with `{character}`")
            kind = str(found.lastgroup)
            word = found[kind]
            if kind == "quoted":
                self.tokens.append(_Token("word", re.sub(r"(?s)\\(.)", r"\1", word[1:-1]), place, True))
            elif kind == "word":
                word = re.sub(r"(?s)\\(.)", r"\1", word)
                low = word.lower()
                if low in {"and", "or", "not"}:
                    self.tokens.append(_Token(low, word, place))
                elif low in WORD_OPERATORS:
                    self.tokens.append(_Token("op", WORD_OPERATORS[low], place))
                else:
                    self.tokens.append(_Token("word", word, place))
            else:
                word = word.replace("\\", "")
                kind = word if kind == "paren" else kind
                self.tokens.append(_Token(kind, "=" if word == "==" else word, place))
            place = found.end()

    def peek(self, ahead: int = 0) -> _Token:
        k = self.at + ahead
        return self.tokens[k] if k < len(self.tokens) else _Token("end", "", len(self.text))

    # expressions

    def whole(self) -> Node:
        if self.peek().kind == "end":
            return EVERYTHING
        if self.state_word() is not None:
            leading = self.state_run()
            if self.peek().kind in {"word", "not", "("}:
                # As in ss, whose states stand before the expression and apply to all of it.
                node = gather(And, [leading, self.expression(0)])
            else:
                before = self.peek()
                node = self.expression(0, leading)
                if before.kind == "and" and isinstance(node, Or):
                    raise self.error(
                        before,
                        "states, `and`, then `or` can be read in two ways: without `and` the states hold for all "
                        "that follows",
                        "use parentheses: `state S and ( a or b )`, or `( state S and a ) or b`",
                    )
        else:
            node = self.expression(0)
        token = self.peek()
        if token.kind != "end":
            raise self.error(token, "this parenthesis closes nothing", "take it out, or open one before it")
        return node

    def expression(self, depth: int, first: Node | None = None) -> Node:
        either: list[Node] = []
        every = [first if first is not None else self.clause(depth)]
        while True:
            token = self.peek()
            if token.kind in {"end", ")"}:
                break
            if token.kind == "or":
                self.at += 1
                either.append(gather(And, every))
                every = [self.clause(depth)]
                continue
            if token.kind == "op":
                raise self.error(token, f"`{token.text}` has nothing to compare", "write NAME OPERATOR VALUE")
            if either:
                said = f"`{token.text}`" if token.kind == "and" else "two predicates side by side"
                raise self.error(
                    token,
                    f"{said} after `or` can be read in two ways (ss and its manual page differ)",
                    "use parentheses: `( a or b ) and c`, or `a or ( b and c )`",
                )
            if token.kind == "and":
                self.at += 1
            every.append(self.clause(depth))
        either.append(gather(And, every))
        return gather(Or, either)

    def clause(self, depth: int) -> Node:
        token = self.peek()
        if depth > _DEPTH:
            raise self.error(token, "too deeply nested", f"at most {_DEPTH} levels of parentheses and `not`")
        if token.kind == "(":
            self.at += 1
            if self.peek().kind == ")":
                raise self.error(self.peek(), "there is nothing between the parentheses")
            node = self.expression(depth + 1)
            if self.peek().kind != ")":
                raise self.error(token, "this parenthesis is not closed", "put a `)` where it should end")
            self.at += 1
            return node
        if token.kind == "not":
            self.at += 1
            if self.state_word() is not None:
                found = Not(self.state_run(single=True))
                if self.state_word() is not None:
                    raise self.error(
                        self.peek(),
                        "two states side by side after `not` can be read in two ways",
                        "`exclude A,B` is neither of them; `not A and B` is B",
                    )
                return found
            return Not(self.clause(depth + 1))
        if token.kind != "word":
            before = self.tokens[self.at - 1].text if self.at else ""
            where = f"after `{before}`" if before else "at the start"
            what = "the filter ends" if token.kind == "end" else f"there is `{token.text}`"
            raise self.error(token, f"{what} where a predicate should follow {where}")
        if self.state_word() is not None:
            return self.state_run()
        return self.predicate()

    # states

    def state_word(self) -> int | None:
        """Return what a state clause that begins here adds: 1 for adding, 0 for excluding, None if none."""
        token = self.peek()
        if token.kind != "word" or token.quoted:
            return None
        low = token.text.lower()
        if low in {"exclude", "excl"}:
            return 0
        if low == "state" or named_states(token.text.split(",")[0]) is not None:
            return 1
        return None

    def state_run(self, *, single: bool = False) -> State:
        """Read state clauses that stand side by side: the next one adds, `exclude` takes away."""
        states: int | None = None
        while True:
            word = self.state_word()
            if word is None or (single and states is not None):
                assert states is not None, "called where a state clause begins"
                return State(states)
            token = self.peek()
            op = "="
            if token.text.lower() in {"state", "exclude", "excl"}:
                self.at += 1
                if self.peek().kind == "op" and word:
                    op = self.peek().text
                    if op not in {"=", "!="}:
                        raise self.error(self.peek(), "states compare with `=` and `!=` only")
                    self.at += 1
            found = 0
            for name in self.value(token):
                one = named_states(name.text)
                if one is None and name.text.isdecimal() and int(name.text[:3]) in tcp.STATES:
                    one = named_states(tcp.state_name(int(name.text[:3])))
                if one is None:
                    raise self.error(name, f"no state is called `{name.text}`", self.state_hint(name.text))
                found |= one
            if op == "!=" or not word:
                states = (tcp.ALL_STATES if states is None else states) & ~found
            else:
                states = (states or 0) | found

    @staticmethod
    def state_hint(word: str) -> str:
        near = _nearest(word, [*_state_spellings(), *_GROUPS])
        return f"did you mean `{near}`?" if near else "states: " + ", ".join(_state_spellings())

    # predicates

    def value(self, after: _Token) -> list[_Token]:
        """Read one value or several with commas."""
        out: list[_Token] = []
        more = True
        while more:
            token = self.peek()
            if token.kind != "word":
                what = f"`{token.text}`" if token.text else "the end"
                hint = f'quote it: "{token.text}"' if token.text.lower() in KEYWORDS else ""
                raise self.error(token, f"a value should follow `{after.text}`, not {what}", hint)
            self.at += 1
            more = False
            if not token.text.strip():
                raise self.error(token, f"the value of `{after.text}` is empty", _UNSET)
            if token.quoted:
                out.append(token)
            else:
                more = self.split_list(token, out)
            following = self.peek()
            if not more and following.kind == "word" and not following.quoted and following.text[:1] == ",":
                rest = following.text[1:]
                if rest:
                    self.tokens[self.at] = _Token("word", rest, following.column + 1)
                else:
                    self.at += 1
                more = True
        return out

    def split_list(self, token: _Token, out: list[_Token]) -> bool:
        """Add the values between the commas of a word; return whether it ends with a comma."""
        parts = token.text.split(",")
        open_end = len(parts) > 1 and not parts[-1]
        if open_end:
            parts.pop()
        column = token.column
        for part in parts:
            if not part:
                raise self.error(column, "there is nothing between the commas")
            out.append(_Token("word", part, column))
            column += len(part) + 1
        return open_end

    def predicate(self) -> Node:
        name = self.peek()
        low = name.text.lower()
        if name.quoted or (low not in PREDICATES and low not in SCHEMA):
            raise self.unknown(name)
        self.at += 1
        if low == "autobound":
            return Autobound()
        if low in {"held", "orphan"}:
            return Number("inode", "!=" if low == "held" else "=", 0)
        op = "="
        token = self.peek()
        if token.kind == "op":
            op = token.text
            self.at += 1
        elif token.kind != "word":
            raise self.error(token, f"`{name.text}` needs a value", f"for example `{_example(low)}`")
        ordered = low in {"sport", "dport", "age"} or (
            low in SCHEMA and low not in {"src", "dst", "netns"} and np.dtype(SCHEMA[low].dtype).kind != "S"
        )
        if op not in {"=", "!="} and not ordered:
            raise self.error(token, f"`{name.text}` compares with `=` and `!=` only, not with `{op}`")
        values = self.value(_Token("word", op if token.kind == "op" else name.text, token.column))
        if len(values) > 1 and op not in {"=", "!="}:
            raise self.error(values[1], f"`{op}` takes one value", "lists go with `=` and `!=`")
        nodes = [self.one(low, op, value) for value in values]
        return gather(Or if op == "=" else And, nodes)

    def one(self, name: str, op: str, value: _Token) -> Node:
        if name in {"src", "dst"}:
            return self.host(name, op, value)
        if name in {"sport", "dport"}:
            port = self.port(value)
            if port is None:
                if op not in {"=", "!="}:
                    raise self.error(value, f"`{op}` needs a port")
                return Host("src" if name == "sport" else "dst", op, 0)
            return Port(name, op, port)
        if name == "dev":
            if value.text.isdecimal() and not value.quoted:
                return Number("ifindex", op, self.number(value, SCHEMA["ifindex"]))
            return Known("dev", op, self.name_of_something("dev", value))
        if name == "fwmark" or (name == "mark" and op in {"=", "!="}):
            mark, slash, mask = value.text.partition("/")
            column = SCHEMA["mark"]
            return Mark(
                op,
                self.number(_Token("word", mark, value.column), column),
                self.number(_Token("word", mask, value.column + len(mark) + 1), column)
                if slash
                else 0xFFFFFFFF,
            )
        if name == "age":
            return Age(op, self.duration(value, default=1_000_000))
        if name in _KNOWN:
            return self.known(name, op, value)
        column = SCHEMA[name]
        if name == "uid":
            return User(op, self.number(value, column))
        if np.dtype(column.dtype).kind == "S":
            return Text(name, op, self.name_of_something(name, value))
        return Number(name, op, self.number(value, column))

    def name_of_something(self, name: str, value: _Token) -> str:
        """Return a value that is a name; `comm = $NAME held` with NAME unset has none."""
        word = value.text.lower()
        if not value.quoted and (word in PREDICATES or word in SCHEMA):
            hint = f'if that is what it is called, quote it: "{value.text}"'
            raise self.error(value, f"`{name}` has no value: `{value.text}` is a predicate", hint)
        return value.text

    def known(self, name: str, op: str, value: _Token) -> Node:
        word = self.name_of_something(name, value)
        if name == "user" and word == "root":
            return User(op, 0)
        if name == "netns":
            inode = re.fullmatch(r"(?:net:\[)?([0-9]+)\]?", word)
            if inode and not value.quoted:
                return Number(
                    "netns", op, self.number(_Token("word", inode[1], value.column), SCHEMA["netns"])
                )
        if name == "user" and word.isdecimal() and not value.quoted:
            return User(op, self.number(value, SCHEMA["uid"]))
        if name == "pid":
            if not re.fullmatch(r"[0-9]{1,10}", word):
                raise self.error(value, f"`{word}` is not a process id", "processes by name: `comm = nginx`")
            word = str(int(word))
        if name == "cgroup":
            word = cgroup_path(word)
        literal = "*" not in word and "?" not in word
        if name == "severity":
            word = word.lower()
            if literal and word not in _SEVERITIES:
                raise self.error(value, f"no severity is called `{value.text}`", "problem, notice or healthy")
        if name == "variant":
            word = self.variant(value, word)
        if name in {"rule", "also"} and literal and self.rules and word not in self.rules:
            near = _nearest(word, self.rules)
            hint = f"did you mean `{near}`?" if near else "`finwait rules` lists them"
            raise self.error(value, f"no rule is called `{word}`", hint)
        return Known(name, op, word)

    def variant(self, value: _Token, word: str) -> str:
        """Return the number of a variant as findings have it."""
        if not word.isdecimal() or not word.isascii():
            raise self.error(value, f"`{word}` is not the number of a variant", "pages of rules number them")
        there = self.variants() if self.variants is not None else None
        if there is not None and (len(word) > _DIGITS or int(word) > max(there.values(), default=0)):
            some = ", ".join(f"{rule} 1 to {n}" if n > 1 else f"{rule} 1" for rule, n in there.items() if n)
            raise self.error(value, f"no rule has a variant {word[:_SHOWN]}", f"variants: 0 (none); {some}")
        return word.lstrip("0") or "0"

    def unknown(self, token: _Token) -> FilterError:
        if token.quoted:
            return self.error(token, "a predicate is not quoted")
        word = token.text
        names = [*PREDICATES, *SCHEMA.names, *_state_spellings(), *_GROUPS]
        near = _nearest(word, names)
        if near:
            hint = f"did you mean `{near}`?"
        elif re.fullmatch(r":?[0-9]{1,5}", word):
            hint = f"a port? `sport = :{word.lstrip(':')}` or `dport = :{word.lstrip(':')}`"
        elif re.fullmatch(r"[\[\]0-9a-fA-F.:/]*[.:][\[\]0-9a-fA-F.:/]*", word):
            hint = f"an address? `src {word}` or `dst {word}`"
        else:
            hint = "predicates: " + ", ".join(PREDICATES) + "; or a column"
        return self.error(token, f"`{word}` is no predicate, column or state", hint)

    # values

    def port(self, value: _Token) -> int | None:
        """Read ``443``, ``:443``, ``https``, ``:*``; None for any port."""
        word = value.text.removeprefix("*:").removeprefix(":")
        if word == "*":
            return None
        if not word:
            raise self.error(value, f"`{value.text}` names no port", f"any port is `*`; {_UNSET}")
        if re.fullmatch(r"[0-9]{1,6}|0[xX][0-9a-fA-F]{1,5}", word):
            number = int(word, 16 if word[:2].lower() == "0x" else 10)
            if number > 0xFFFF:
                raise self.error(value, f"{number} is not a port", "ports end at 65535")
            return number
        service = self.services.get(word.lower())
        if service is not None:
            return service
        if ":" in word or "." in word:
            raise self.error(value, f"`{value.text}` is not a port", "addresses go with `src` and `dst`")
        near = _nearest(word, self.services)
        hint = f"did you mean `{near}`?" if near else "write its number"
        raise self.error(value, f"no service is called `{word}`", hint)

    def host(self, side: str, op: str, value: _Token) -> Node:
        word, column = value.text, value.column
        family = 0
        head, colon, rest = word.partition(":")
        if colon and head in {"inet", "inet6"}:
            family = AF_INET if head == "inet" else AF_INET6
            word, column = rest, column + len(head) + 1
        elif colon and head in {"unix", "link", "netlink", "vsock"}:
            raise self.error(value, f"`{head}:` sockets are not TCP connections")
        where, port_token = self.split_host(word, column)
        if port_token is not None and not port_token.text:
            raise self.error(value, f"`{value.text}` ends without a port", f"any port is `*`; {_UNSET}")
        port = self.port(port_token) if port_token and port_token.text != "*" else None
        node: Node
        if where.text not in {"", "*", "any", "all", "default"}:
            found, high, low, prefix = self.prefix(where)
            if family and found != family:
                raise self.error(where, f"`{where.text}` is not an address of `{head}`")
            node = Host(side, op, found, high, low, prefix, port)
        elif port is not None:
            node = Port("sport" if side == "src" else "dport", op, port)
        else:
            node = Host(side, op, 0)
        if family:
            limit = Number("family", op, family)
            return gather(And if op == "=" else Or, [limit, node])
        return node

    def split_host(self, word: str, column: int) -> tuple[_Token, _Token | None]:
        """Return the address with its prefix, and the port if there is one."""
        if word[:1] == "[":
            inside, close, rest = word[1:].partition("]")
            if not close:
                raise self.error(column, "this bracket is not closed", "for example `[2001:db8::1]:443`")
            if not inside:
                raise self.error(column, "there is no address in the brackets", _UNSET)
            slash, colon, port = rest.partition(":")
            if slash and slash[0] != "/":
                raise self.error(column + 2 + len(inside), f"`{slash}` cannot stand behind a bracket")
            port_token = _Token("word", port, column + len(word) - len(port)) if colon else None
            return _Token("word", inside + slash, column + (2 if slash else 1)), port_token
        end = word.find("/")
        before, colon, after = word.rpartition(":") if end < 0 else word[end:].rpartition(":")
        if end >= 0:
            before = word[: len(word) - len(colon + after)]
        elif word.count(":") > 1:
            whole, split = _is_ipv6(word), _is_ipv6(before)
            if whole and split and re.fullmatch(r"[0-9]+", after):
                raise self.error(
                    column,
                    f"`{word}` can be read with and without a port",
                    f"write `[{word}]` or `[{before}]:{after}`",
                )
            if whole or not split:
                return _Token("word", word, column), None
        if not colon:
            return _Token("word", word, column), None
        return _Token("word", before, column), _Token("word", after, column + len(before) + 1)

    def prefix(self, value: _Token) -> tuple[int, int, int, int]:
        """Read an address or prefix; return family, both words of the address, length of the prefix."""
        import ipaddress

        address, slash, length = value.text.partition("/")
        family, bits, number = AF_INET, 32, 0
        if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){0,3}", address):
            octets = [int(o) for o in address.split(".")]
            if max(octets) > 255:
                raise self.error(value, f"`{address}` is not an address", "each part is at most 255")
            if len(octets) < 4 and not slash:
                full = ".".join(map(str, octets + [0] * (4 - len(octets))))
                raise self.error(
                    value, f"`{address}` is half an address", f"write `{full}/{8 * len(octets)}` or `{full}`"
                )
            number = int.from_bytes(bytes(octets + [0] * (4 - len(octets))), "big")
        else:
            if not _is_ipv6(address):
                raise self.error(
                    value,
                    f"`{address}` is not an address",
                    "host names are not looked up; `10.0.0.0/8`, `10.1.2.3:443`, `[2001:db8::1]:443`",
                )
            number = int(ipaddress.IPv6Address(address))
            family, bits = AF_INET6, 128
        prefix = bits
        if slash:
            mask = re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", length)
            at = value.column + len(address) + 1
            if mask and family == AF_INET:
                try:
                    prefix = ipaddress.IPv4Network(f"0.0.0.0/{length}").prefixlen
                except ValueError:
                    raise self.error(at, f"`{length}` is not a mask", "`/8` or `/255.0.0.0`") from None
            elif re.fullmatch(r"[0-9]{1,3}", length) and int(length) <= bits:
                prefix = int(length)
            else:
                raise self.error(
                    at, f"`{length}` is not the length of a prefix", f"a number from 0 to {bits}"
                )
        number = number >> (bits - prefix) << (bits - prefix)
        if family == AF_INET:
            return family, 0, MAPPED | number, prefix
        return family, number >> 64, number & 0xFFFFFFFFFFFFFFFF, prefix

    def duration(self, value: _Token, default: int) -> int:
        """Read ``10m``, ``1h30m``, ``1.5s``; a number alone counts in units of ``default`` microseconds."""
        from fractions import Fraction

        word = value.text.lower().replace("μ", "µ")
        if len(word) > 40:
            raise self.error(value, "this duration has too many digits")
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", word):
            total = Fraction(word) * default
        else:
            parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([a-zµ]+)", word)
            if not parts or "".join(a + b for a, b in parts) != word:
                raise self.error(
                    value, f"`{value.text}` is not a duration", "for example `10m`, `1h30m`, `100ms`"
                )
            total = Fraction(0)
            for number, unit in parts:
                if unit not in DURATIONS:
                    raise self.error(value, f"`{unit}` is no unit of time", "us, ms, s, m, h, d or w")
                total += Fraction(number) * DURATIONS[unit]
        if total.denominator != 1:
            raise self.error(value, "durations are whole microseconds")
        return int(total)

    def number(self, value: _Token, column: Column) -> int:
        """Read a number in the unit of a column."""
        found = self.raw_number(value, column)
        limit = int(np.iinfo(column.dtype).max)
        if found > limit:
            raise self.error(value, f"{value.text} is out of range", f"`{column.name}` is at most {limit}")
        return found

    def raw_number(self, value: _Token, column: Column) -> int:
        from fractions import Fraction

        word = value.text
        named = ENUMERATIONS.get(column.name, {})
        if word.lower() in named:
            return named[word.lower()]
        if column.name == "cookie" and re.fullmatch(r"sk:[0-9a-fA-F]{1,16}", word):
            return int(word[3:], 16)  # as `ss -e` prints it
        if re.fullmatch(r"[0-9]{1,40}", word):
            return int(word)
        if re.fullmatch(r"0[xX][0-9a-fA-F]{1,32}", word):
            return int(word, 16)
        unit = {"us": 1, "ms": 1000}.get(column.name.rpartition("_")[2])
        if unit is not None:
            total = Fraction(self.duration(value, default=unit), unit)
            if total.denominator != 1:
                whole = "microseconds" if unit == 1 else "milliseconds"
                raise self.error(value, f"`{column.name}` counts whole {whole}")
            return int(total)
        scaled = re.fullmatch(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)([kmgt])(i?b?)", word.lower())
        if scaled:
            bytes_ = re.search(r"\bbytes\b", column.doc, re.IGNORECASE) is not None
            base = 1024 if bytes_ or scaled[3] else 1000
            total = Fraction(scaled[1]) * base ** _MULTIPLES[scaled[2]]
            if total.denominator != 1:
                raise self.error(value, f"`{column.name}` counts in whole numbers")
            return int(total)
        if named:
            options = ", ".join(named)
            raise self.error(value, f"`{column.name}` cannot be `{word}`", f"a number, or one of: {options}")
        if re.fullmatch(r"[0-9.]+[a-z]+", word.lower()):
            raise self.error(
                value, f"`{column.name}` is not a time, nor measured in `{word.lstrip('0123456789.')}`"
            )
        raise self.error(value, f"`{word}` is not a number", column.doc)


def named_states(word: str) -> int | None:
    """Return the states that a word stands for, bit *n* for state *n*: one state, or a group of ``ss``."""
    low = word.lower()
    if low in _GROUPS:
        return _GROUPS[low]
    number = tcp.CLOSE if low in {"unconnected", "unconn"} else tcp.parse_state(low)
    if number is None:
        return None
    return 1 << number | (1 << tcp.NEW_SYN_RECV if number == tcp.SYN_RECV else 0)


def _is_ipv6(text: str) -> bool:
    import ipaddress

    if "%" in text or not text.isascii():
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _state_spellings() -> list[str]:
    return [state_text(n) for n in sorted(NAMED_STATES)]


def _nearest(word: str, names: Iterable[str]) -> str:
    """Return the name that a misspelt word most likely means, or nothing."""
    from difflib import get_close_matches

    plain = {name.lower().replace("_", "-"): name for name in names}
    found = get_close_matches(word[:64].lower().replace("_", "-"), plain, 1, 0.7)
    return plain[found[0]] if found else ""


def _example(name: str) -> str:
    return {
        "src": "src 10.0.0.0/8",
        "dst": "dst 10.1.2.3:443",
        "sport": "sport = :443",
        "dport": "dport = :443",
        "dev": "dev eth0",
        "fwmark": "fwmark = 0x1/0xff",
        "cgroup": "cgroup = /system.slice/nginx.service",
        "age": "age > 10m",
        "rule": "rule = fin-wait2-held",
        "also": "also = fin-wait2-held",
        "variant": "variant = 1",
        "severity": "severity = problem",
        "pod": "pod = default/web-0",
        "container": "container = 3f2a9c",
        "pid": "pid = 812",
        "comm": "comm = nginx",
        "user": "user = www-data",
        "netns": "netns = 4026531840",
        "family": "family = inet6",
        "timer": "timer = keepalive",
        "cong": "cong = cubic",
        "ulp": "ulp = tls",
    }.get(name, f"{name} > {'100ms' if name.endswith(('_ms', '_us')) else '0'}")


_DIGITS: Final = 6
_SHOWN: Final = 20


def read(
    text: str,
    services: Mapping[str, int],
    rules: Sequence[str],
    variants: Callable[[], Mapping[str, int]] | None = None,
) -> Node:
    """Return the tree of a filter; see `finwait.table.filter.parse`.

    Raises:
        FilterError: it does not parse.
    """
    parser = _Parser(text, services, rules, variants)
    parser.scan()
    return parser.whole()
