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
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from msgspec import field

from finwait.errors import FilterError
from finwait.table.derived import DERIVED
from finwait.table.patterns import cgroup_path
from finwait.table.predicates import (
    EVERYTHING,
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
    States,
    Text,
    User,
    gather,
)
from finwait.table.sockets import SCHEMA
from finwait.table.values import UNSET, Token, Values
from finwait.table.vocabulary import (
    ENDS,
    KEYWORDS,
    OF_CONTEXT,
    PREDICATES,
    SEVERITIES,
    STATE_GROUPS,
    WAITED,
    WORD_OPERATORS,
    example,
    is_predicate,
    named_states,
    nearest,
    state_spellings,
)
from finwait.uapi import tcp
from finwait.uapi.inet_diag import AF_INET, AF_INET6

__all__ = ["read"]

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
_DIGITS: Final = 6
_SHOWN: Final = 20

PRINTED: Final = {name: column.predicate for name, column in DERIVED.items() if column.predicate is not None}
"""Columns that are derived for a row that is printed, and no predicates → what asks for the same; empty for nothing."""


class _Grammar(Values):
    rules: Sequence[str]
    variants: Callable[[], Mapping[str, int]] | None = None
    tokens: list[Token] = field(default_factory=list)
    at: int = 0

    # tokens

    def scan(self) -> None:
        place = 0
        while place < len(self.text):
            if self.text[place].isspace():
                place += 1
                continue
            match = _TOKEN.match(self.text, place)
            if match is None:
                character = self.text[place]
                if character in "\"'":
                    raise self.error(place, "this quotation is not closed", f"add a closing {character}")
                raise self.error(place, f"nothing in a filter begins with `{character}`")
            kind = str(match.lastgroup)
            word = match[kind]
            if kind == "quoted":
                self.tokens.append(Token("word", re.sub(r"(?s)\\(.)", r"\1", word[1:-1]), place, True))
            elif kind == "word":
                word = re.sub(r"(?s)\\(.)", r"\1", word)
                low = word.lower()
                if low in {"and", "or", "not"}:
                    self.tokens.append(Token(low, word, place))
                elif low in WORD_OPERATORS:
                    self.tokens.append(Token("op", WORD_OPERATORS[low], place))
                else:
                    self.tokens.append(Token("word", word, place))
            else:
                word = word.replace("\\", "")
                kind = word if kind == "paren" else kind
                self.tokens.append(Token(kind, "=" if word == "==" else word, place))
            place = match.end()

    def peek(self, ahead: int = 0) -> Token:
        k = self.at + ahead
        return self.tokens[k] if k < len(self.tokens) else Token("end", "", len(self.text))

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
                        "states, `and`, then `or` can be read in two ways: without `and`, the states apply "
                        "to everything that follows",
                        "use parentheses: `state S and ( a or b )`, or `( state S and a ) or b`",
                    )
        else:
            node = self.expression(0)
        token = self.peek()
        if token.kind != "end":
            raise self.error(token, "this parenthesis closes nothing", "remove it, or open one before it")
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
                operator = f"`{token.text}`" if token.kind == "and" else "two predicates side by side"
                raise self.error(
                    token,
                    f"{operator} after `or` can be read in two ways (ss and its manual page differ)",
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
                negation = Not(self.state_run(single=True))
                if self.state_word() is not None:
                    raise self.error(
                        self.peek(),
                        "two states side by side after `not` can be read in two ways",
                        "`exclude A,B` selects neither of them; `not A and B` selects B",
                    )
                return negation
            return Not(self.clause(depth + 1))
        if token.kind != "word":
            before = self.tokens[self.at - 1].text if self.at else ""
            where = f"after `{before}`" if before else "at the start"
            situation = "the filter ends" if token.kind == "end" else f"there is `{token.text}`"
            raise self.error(token, f"{situation} where a predicate should follow {where}")
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

    def state_run(self, *, single: bool = False) -> States:
        """Read state clauses that stand side by side: the next one adds, `exclude` takes away."""
        states: int | None = None
        while True:
            word = self.state_word()
            if word is None or (single and states is not None):
                assert states is not None, "called where a state clause begins"
                return States(states)
            token = self.peek()
            op = "="
            if token.text.lower() in {"state", "exclude", "excl"}:
                self.at += 1
                if self.peek().kind == "op" and word:
                    op = self.peek().text
                    if op not in {"=", "!="}:
                        raise self.error(self.peek(), "states compare with `=` and `!=` only")
                    self.at += 1
            union = 0
            for name in self.value(token):
                bits = named_states(name.text)
                if bits is None and name.text.isdecimal() and int(name.text[:3]) in tcp.STATES:
                    bits = named_states(tcp.state_name(int(name.text[:3])))
                if bits is None:
                    raise self.error(name, f"no state is called `{name.text}`", self.state_hint(name.text))
                union |= bits
            if op == "!=" or not word:
                states = (tcp.ALL_STATES if states is None else states) & ~union
            else:
                states = (states or 0) | union

    @staticmethod
    def state_hint(word: str) -> str:
        near = nearest(word, [*state_spellings(), *STATE_GROUPS])
        return f"did you mean `{near}`?" if near else "states: " + ", ".join(state_spellings())

    # predicates

    def value(self, after: Token) -> list[Token]:
        """Read one value or several with commas."""
        out: list[Token] = []
        more = True
        while more:
            token = self.peek()
            if token.kind != "word":
                actual = f"`{token.text}`" if token.text else "the end"
                hint = f'quote it: "{token.text}"' if token.text.lower() in KEYWORDS else ""
                raise self.error(token, f"a value should follow `{after.text}`, not {actual}", hint)
            self.at += 1
            more = False
            if not token.text.strip():
                raise self.error(token, f"the value of `{after.text}` is empty", UNSET)
            if token.quoted:
                out.append(token)
            else:
                more = self.split_list(token, out)
            following = self.peek()
            if not more and following.kind == "word" and not following.quoted and following.text[:1] == ",":
                rest = following.text[1:]
                if rest:
                    self.tokens[self.at] = Token("word", rest, following.column + 1)
                else:
                    self.at += 1
                more = True
        return out

    def split_list(self, token: Token, out: list[Token]) -> bool:
        """Add the values between the commas of a word; return whether it ends with a comma."""
        parts = token.text.split(",")
        open_end = len(parts) > 1 and not parts[-1]
        if open_end:
            parts.pop()
        column = token.column
        for part in parts:
            if not part:
                raise self.error(column, "there is nothing between the commas")
            out.append(Token("word", part, column))
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
            raise self.error(token, f"`{name.text}` needs a value", f"for example `{example(low)}`")
        ordered = low in {"sport", "dport", "age"} or (
            low in SCHEMA and low not in {"src", "dst", "netns"} and np.dtype(SCHEMA[low].dtype).kind != "S"
        )
        if op not in {"=", "!="} and not ordered:
            raise self.error(token, f"`{name.text}` compares with `=` and `!=` only, not with `{op}`")
        if low == "label":
            self.join_label()
        values = self.value(Token("word", op if token.kind == "op" else name.text, token.column))
        if len(values) > 1 and op not in {"=", "!="}:
            raise self.error(values[1], f"`{op}` takes one value", "use lists with `=` and `!=` only")
        nodes = [self.one(low, op, value) for value in values]
        return gather(Or if op == "=" else And, nodes)

    def join_label(self) -> None:
        """Make one word of ``KEY=VALUE``, as people write labels; with spaces around it the sign is an operator."""
        while True:
            key, sign, word = (self.peek(ahead) for ahead in range(3))
            end = key.column + len(key.text)
            if (key.kind, sign.kind, word.kind) != ("word", "op", "word") or key.quoted or sign.text != "=":
                return
            if (sign.column, word.column) != (end, end + 1):
                return
            whole = Token("word", f"{key.text}={word.text}", key.column, word.quoted)
            self.tokens[self.at : self.at + 3] = [whole]

    def one(self, name: str, op: str, value: Token) -> Node:
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
                self.number(Token("word", mark, value.column), column),
                self.number(Token("word", mask, value.column + len(mark) + 1), column)
                if slash
                else 0xFFFFFFFF,
            )
        if name == "age":
            return Age(op, self.duration(value, default=1_000_000))
        if name in OF_CONTEXT:
            return self.known(name, op, value)
        column = SCHEMA[name]
        if name == "uid":
            return User(op, self.number(value, column))
        if np.dtype(column.dtype).kind == "S":
            return Text(name, op, self.name_of_something(name, value))
        return Number(name, op, self.number(value, column))

    def name_of_something(self, name: str, value: Token) -> str:
        """Return a value that is a name; `comm = $NAME held` with NAME unset has none."""
        if not value.quoted and is_predicate(value.text, name):
            hint = f'if it is really called that, quote it: "{value.text}"'
            raise self.error(value, f"`{name}` has no value; `{value.text}` is a predicate", hint)
        return value.text

    def known(self, name: str, op: str, value: Token) -> Node:
        word = self.name_of_something(name, value)
        if name == "user" and word == "root":
            return User(op, 0)
        if name == "netns":
            inode = re.fullmatch(r"(?:net:\[)?([0-9]+)\]?", word)
            if inode and not value.quoted:
                return Number(
                    "netns", op, self.number(Token("word", inode[1], value.column), SCHEMA["netns"])
                )
        if name == "user" and word.isdecimal() and not value.quoted:
            return User(op, self.number(value, SCHEMA["uid"]))
        if name == "pid":
            if not re.fullmatch(r"[0-9]{1,10}", word):
                raise self.error(
                    value, f"`{word}` is not a process id", ("to select processes by name: `comm = nginx`")
                )
            word = str(int(word))
        if name == "cgroup":
            word = cgroup_path(word)
        literal = "*" not in word and "?" not in word
        if name == "severity":
            word = word.lower()
            if literal and word not in SEVERITIES:
                raise self.error(value, f"no severity is called `{value.text}`", "problem, notice or healthy")
        if name == "waited":
            word = word.lower()
            if literal and word not in WAITED:
                raise self.error(value, f"`{value.text}` is nobody who waits", f"one of {', '.join(WAITED)}")
        if name == "ends":
            word = word.lower()
            if literal and word not in ENDS:
                raise self.error(value, f"nothing ends by `{value.text}`", f"one of {', '.join(ENDS)}")
        if name == "variant":
            word = self.variant(value, word)
        if name in {"rule", "also"} and literal and self.rules and word not in self.rules:
            near = nearest(word, self.rules)
            hint = f"did you mean `{near}`?" if near else "`finwait rules` lists them"
            raise self.error(value, f"no rule is called `{word}`", hint)
        return Known(name, op, word)

    def variant(self, value: Token, word: str) -> str:
        """Return the number of a variant as findings have it."""
        if not word.isdecimal() or not word.isascii():
            raise self.error(
                value, f"`{word}` is not the number of a variant", ("`finwait explain RULE` numbers them")
            )
        counts = self.variants() if self.variants is not None else None
        if counts is not None and (len(word) > _DIGITS or int(word) > max(counts.values(), default=0)):
            ranges = ", ".join(
                f"{rule} 1 to {n}" if n > 1 else f"{rule} 1" for rule, n in counts.items() if n
            )
            raise self.error(value, f"no rule has variant {word[:_SHOWN]}", f"variants: 0 (none); {ranges}")
        return word.lstrip("0") or "0"

    def unknown(self, token: Token) -> FilterError:
        if token.quoted:
            return self.error(token, "a predicate cannot be quoted")
        word = token.text
        names = [*PREDICATES, *SCHEMA.names, *state_spellings(), *STATE_GROUPS]
        near = nearest(word, names)
        if word in PRINTED:
            equivalent = PRINTED[word]
            hint = (
                f"`finwait list` prints it; a FILTER has {equivalent}"
                if equivalent
                else "`finwait list` prints it"
            )
            return self.error(token, f"`{word}` is a derived column, not a predicate", hint)
        if near:
            hint = f"did you mean `{near}`?"
        elif re.fullmatch(r":?[0-9]{1,5}", word):
            hint = f"a port? `sport = :{word.lstrip(':')}` or `dport = :{word.lstrip(':')}`"
        elif re.fullmatch(r"[\[\]0-9a-fA-F.:/]*[.:][\[\]0-9a-fA-F.:/]*", word):
            hint = f"an address? `src {word}` or `dst {word}`"
        else:
            hint = (
                "predicates: "
                + ", ".join(PREDICATES)
                + ", or a column of a socket (`finwait list --columns help`)"
            )
        return self.error(token, f"`{word}` is not a predicate, a column or a state", hint)

    def host(self, side: str, op: str, value: Token) -> Node:
        word, column = value.text, value.column
        family = 0
        head, colon, rest = word.partition(":")
        if colon and head in {"inet", "inet6"}:
            family = AF_INET if head == "inet" else AF_INET6
            word, column = rest, column + len(head) + 1
            if not word:
                raise self.error(value, f"`{value.text}` ends without an address", f"`*` means any; {UNSET}")
        elif colon and head in {"unix", "link", "netlink", "vsock"}:
            raise self.error(value, f"`{head}:` sockets are not TCP connections")
        where, port_token = self.split_host(word, column)
        if port_token is not None and not port_token.text:
            raise self.error(value, f"`{value.text}` ends without a port", f"`*` means any port; {UNSET}")
        port = self.port(port_token) if port_token and port_token.text != "*" else None
        node: Node
        if where.text not in {"", "*", "any", "all", "default"}:
            address_family, high, low, prefix = self.prefix(where)
            if family and address_family != family:
                raise self.error(where, f"`{where.text}` is not an address of `{head}`")
            node = Host(side, op, address_family, high, low, prefix, port)
        elif port is not None:
            node = Port("sport" if side == "src" else "dport", op, port)
        else:
            node = Host(side, op, 0)
        if family:
            limit = Number("family", op, family)
            return gather(And if op == "=" else Or, [limit, node])
        return node


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
    parser = _Grammar(text, services, rules, variants)
    parser.scan()
    return parser.whole()
