"""How a network namespace may be named."""

from __future__ import annotations

import pytest

from finwait.uapi.nsfs import parse_netns_name


@pytest.mark.parametrize(
    ("text", "form", "number"),
    [
        ("blue", "name", 0),
        ("host", "name", 0),
        ("cni-5f2a", "name", 0),
        ("/run/netns/blue", "path", 0),
        ("/proc/812/ns/net", "path", 0),
        ("812", "pid", 812),
        ("pid:812", "pid", 812),
        ("4194304", "pid", 4194304),
        ("4194305", "inode", 4194305),
        ("4026531840", "inode", 4026531840),
        ("netns:4026531840", "inode", 4026531840),
        ("netns:1", "inode", 1),
        ("net:[4026531840]", "inode", 4026531840),
    ],
)
def test_what_names_a_namespace(text: str, form: str, number: int) -> None:
    named = parse_netns_name(text)
    assert (str(named), named.form, named.number) == (text, form, number)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "-1", "0", "pid:0", "pid:", "pid:x", "pid:4194305", "4294967296", "9" * 30, "netns:", "net:[1",
        "net:[x]", "12]", ".", "..", "a\0b", "\x1b[2J", "x" * 256, "\u0663",
    ],
)  # fmt: skip
def test_what_can_name_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no network namespace"):
        parse_netns_name(text)
