"""Single values of a FILTER: ports, addresses, durations and numbers, or an error that points at the mistake.

An address or a name that could be read in two ways is an error that says how to write each of them. Nothing is looked
up: services come from a table, and host names are not resolved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import numpy as np
from msgspec import Struct

from finwait.errors import FilterError
from finwait.table.schema import Column
from finwait.table.sockets import MAPPED
from finwait.table.vocabulary import DURATIONS, ENUMERATIONS, IN_BYTES, nearest
from finwait.uapi.inet_diag import AF_INET, AF_INET6

__all__ = ["UNSET", "Token", "Values"]

UNSET: Final = "is a variable of your script not set?"
_MULTIPLES: Final = {"k": 1, "m": 2, "g": 3, "t": 4}


class Token(Struct, frozen=True):
    """A word, an operator or a parenthesis, and where it stands."""

    kind: str
    text: str
    column: int
    quoted: bool = False


class Values(Struct):
    """Reads the values of one FILTER.

    Args:
        text: the FILTER, for errors.
        services: name → port.
    """

    text: str
    services: Mapping[str, int]

    def error(self, token: Token | int, message: str, hint: str = "") -> FilterError:
        """Return an error that points at a place."""
        column = token if isinstance(token, int) else token.column
        return FilterError(self.text, column, message, hint=hint)

    def port(self, value: Token) -> int | None:
        """Read ``443``, ``:443``, ``https``, ``:*``; None for any port."""
        word = value.text.removeprefix("*:").removeprefix(":")
        if word == "*":
            return None
        if not word:
            raise self.error(value, f"`{value.text}` does not name a port", f"`*` means any port; {UNSET}")
        if re.fullmatch(r"[0-9]{1,6}|0[xX][0-9a-fA-F]{1,5}", word):
            number = int(word, 16 if word[:2].lower() == "0x" else 10)
            if number > 0xFFFF:
                raise self.error(value, f"{number} is not a port", "the highest port is 65535")
            return number
        service = self.services.get(word.lower())
        if service is not None:
            return service
        if ":" in word or "." in word:
            raise self.error(value, f"`{value.text}` is not a port", "use `src` and `dst` for addresses")
        near = nearest(word, self.services)
        hint = f"did you mean `{near}`?" if near else "write its number"
        raise self.error(value, f"no service is called `{word}`", hint)

    def split_host(self, word: str, column: int) -> tuple[Token, Token | None]:
        """Return the address with its prefix, and the port if there is one."""
        if word[:1] == "[":
            inside, close, rest = word[1:].partition("]")
            if not close:
                raise self.error(column, "this bracket is not closed", "for example `[2001:db8::1]:443`")
            if not inside:
                raise self.error(column, "there is no address in the brackets", UNSET)
            slash, colon, port = rest.partition(":")
            if slash and slash[0] != "/":
                raise self.error(column + 2 + len(inside), f"`{slash}` cannot follow a bracket")
            port_token = Token("word", port, column + len(word) - len(port)) if colon else None
            return Token("word", inside + slash, column + (2 if slash else 1)), port_token
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
                return Token("word", word, column), None
        if not colon:
            return Token("word", word, column), None
        return Token("word", before, column), Token("word", after, column + len(before) + 1)

    def prefix(self, value: Token) -> tuple[int, int, int, int]:
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
                    value,
                    f"`{address}` is not a whole address",
                    f"write `{full}/{8 * len(octets)}` or `{full}`",
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

    def duration(self, value: Token, default: int) -> int:
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
                    raise self.error(value, f"`{unit}` is not a unit of time", "us, ms, s, m, h, d or w")
                total += Fraction(number) * DURATIONS[unit]
        if total.denominator != 1:
            raise self.error(value, "durations are whole microseconds")
        return int(total)

    def number(self, value: Token, column: Column) -> int:
        """Read a number in the unit of a column."""
        number = self._raw_number(value, column)
        limit = int(np.iinfo(column.dtype).max)
        if number > limit:
            raise self.error(value, f"{value.text} is out of range", f"`{column.name}` is at most {limit}")
        return number

    def _raw_number(self, value: Token, column: Column) -> int:
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
            base = 1024 if column.name in IN_BYTES or scaled[3] else 1000
            total = Fraction(scaled[1]) * base ** _MULTIPLES[scaled[2]]
            if total.denominator != 1:
                raise self.error(value, f"`{column.name}` counts in whole numbers")
            return int(total)
        if named:
            options = ", ".join(named)
            raise self.error(value, f"`{column.name}` cannot be `{word}`", f"a number, or one of: {options}")
        if re.fullmatch(r"[0-9.]+[a-z]+", word.lower()):
            raise self.error(
                value, f"`{column.name}` is neither a time nor measured in `{word.lstrip('0123456789.')}`"
            )
        raise self.error(value, f"`{word}` is not a number", column.doc)


def _is_ipv6(text: str) -> bool:
    import ipaddress

    if "%" in text or not text.isascii():
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
