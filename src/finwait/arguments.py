"""Types of arguments that every command reads in the same way: durations, and network namespaces.

A value of argparse's ``type=``: text in, value out, or an ``ArgumentTypeError`` whose sentence is what the person
reads. What a value means to a command, and everything that needs the machine, is decided elsewhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Generic, TypeVar

from finwait.table.units import parse_duration_ms
from finwait.uapi.nsfs import NetnsName, parse_netns_name

__all__ = ["Duration", "duration_ms", "netns_name"]

Number = TypeVar("Number", int, float)


class Duration(Generic[Number]):
    """Reads a duration: the one type of every option that takes one.

    Args:
        read: what makes a number of the text; it raises ValueError with what is wrong.
        judge: what says why this option does not take such a text and number; empty if it does.
    """

    def __init__(
        self, read: Callable[[str], Number], judge: Callable[[str, Number], str] = lambda _text, _value: ""
    ) -> None:
        self._read: Callable[[str], Number] = read
        self._judge: Callable[[str, Number], str] = judge

    def __call__(self, text: str) -> Number:
        """Return the number.

        Raises:
            ArgumentTypeError: no duration, or one that this option does not take.
        """
        try:
            value = self._read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if wrong := self._judge(text, value):
            raise argparse.ArgumentTypeError(wrong)
        return value


duration_ms = Duration(parse_duration_ms)
"""A duration in milliseconds, 0 among them."""


def netns_name(text: str) -> NetnsName:
    """Read what names a network namespace (see `finwait.uapi.nsfs`).

    Raises:
        ArgumentTypeError: it cannot name one.
    """
    try:
        return parse_netns_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
