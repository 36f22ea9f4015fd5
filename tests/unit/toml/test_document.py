"""One way to read TOML: what is wrong is named with its line, its key, and what would be right."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from finwait.toml.declared import declared_keys, json_schema
from finwait.toml.document import TomlDocument, TomlMistake


def halves(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"`{value}` cannot be halved")  # noqa: TRY004 - as a reader does
    return value / 2


class Leaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One leaf."""

    name: Annotated[str, Meta(description="Its name.")]
    half: Annotated[float, Meta(ge=0, extra={"read": halves, "unit": "duration"})] = 0.0
    in_: Annotated[bool, Meta(description="Inside.")] = False


class Branch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"with_": "with"}):
    """A branch."""

    with_: Literal["", "bark", "moss"] = ""
    thickness: Annotated[int | None, Meta(description="In mm.")] = None


class Tree(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tree."""

    leaf: Annotated[tuple[Leaf, ...], Meta(description="Leaves.")] = ()
    branch: Branch = Branch()
    height: float = 1.0
    names: tuple[str, ...] = ()
    girth: Annotated[int, Meta(gt=0, le=5)] = 1
    kin: Annotated[
        tuple[Annotated[str, Meta(pattern="^[a-z]+$")], ...],
        Meta(min_length=1, max_length=2),
    ] = ("elm",)
    sort: Annotated[str, Meta(max_length=5)] = ""


def wrong(text: str) -> TomlMistake:
    with pytest.raises(TomlMistake) as caught:
        TomlDocument(text.encode(), "t.toml").typed(Tree)
    return caught.value


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("heigth = 2", "t.toml:1: this key does not exist here (`heigth`)", "did you mean `height`?"),
        ("\nthickness = 2", "t.toml:2: this key does not exist here", "`thickness` belongs to `[branch]`"),
        ("half = 2", "t.toml:1: this key does not exist here", "`half` belongs to `[[leaf]]`"),
        ("[branch]\nheight = 2.0", "t.toml:2: this key does not exist", "`height` belongs to the top level"),
        ("[branch]\nxyzzy = 2.0", "(`branch.xyzzy`)", "keys here: with, thickness"),
        ("height = 'x'", "t.toml:1: expected `float`, got `str` (`height`)", "it must be a number"),
        ("names = 'x'", "(`names`)", "it must be a list of text"),
        ("names = ['x', 3]", "(`names[1]`)", "it must be a list of text"),
        ("leaf = 3", "(`leaf`)", "it must be a table that begins with [[leaf]]"),
        ("branch = 3", "(`branch`)", "it must be a table that begins with [branch]"),
        ("[branch]\nwith = 'ivy'", "(`branch.with`)", 'it must be one of "", "bark", "moss"'),
        ("[[leaf]]\nhalf = 3", "t.toml:1: `name` is missing (`leaf[0]`)", "it must be text in quotes"),
        ("[[leaf]]\nname = 'a'\n[[leaf]]\nname = 'b'\nhalf = true", "t.toml:5: `True` cannot be", ""),
        (
            "[[leaf]]\nname = 'a'\nhalf = -3",
            "t.toml:3: `-3` is less than 0 s",
            "it must be a number, at least 0",
        ),
        ("girth = 9", "t.toml:1: `9` is more than 5 (`girth`)", "a whole number, more than 0 and at most 5"),
        (
            "girth = 0",
            "t.toml:1: `0` is less than 1 (`girth`)",
            "a whole number, more than 0 and at most 5",
        ),
        (
            "kin = ['Oak tree']",
            "`Oak tree` has characters or a length that are not",
            "it must be a list of text",
        ),
        ('kin = ["\\u001b[2J"]', "`\\x1b[2J` has characters", ""),
        ("kin = []", "(`kin`)", "it must be a list of text, 1 or more"),
        ("kin = []", "t.toml:1: the list has too few entries: at least 1", ""),
        ("kin = ['a', 'b', 'c']", "t.toml:1: the list has too many entries: at most 2", ""),
        ("sort = 'abcdef'", "t.toml:1: it is too long: at most 5", "it must be text in quotes"),
        ("height = \n", "t.toml:1: Invalid value", "the file is not valid TOML"),
        ("a = 1\nb = " + "[" * 5000, "t.toml:2: ", "no configuration needs that"),
        ("a = 1\nb = " + "1" * 5000, "t.toml:2: ", "no configuration needs that"),
    ],
)
def test_a_mistake_has_its_line_its_key_and_what_would_be_right(text: str, said: str, hint: str) -> None:
    mistake = wrong(text)
    assert said in str(mistake)
    assert hint in mistake.hint


def test_values_are_what_their_readers_make_of_them() -> None:
    tree = TomlDocument(b"[[leaf]]\nname = 'a'\nhalf = 3", "t").typed(Tree)
    assert tree.leaf == (Leaf("a", 1.5),)


def test_tables_that_were_no_text_have_no_line_and_paths_of_their_own() -> None:
    document = TomlDocument.of_tables({"height": "x"}, "command line", shown=lambda path: f"--{path}")
    with pytest.raises(TomlMistake) as caught:
        document.typed(Tree)
    assert str(caught.value) == "command line: expected `float`, got `str` (`--height`)"
    assert caught.value.line == 0


def test_what_types_cannot_say_is_said_with_its_line_too() -> None:
    document = TomlDocument(b"\nheight = 2.0\n", "t.toml")
    assert str(document.mistake("height", "too high")) == "t.toml:2: too high (`height`)"
    assert str(document.mistake("branch", "too thin")) == "t.toml:1: too thin (`branch`)"


def test_bytes_that_are_no_text_are_named_with_their_line() -> None:
    with pytest.raises(TomlMistake, match=r"t\.toml:3: not UTF-8 at byte 2"):
        TomlDocument(b"\n\n\xff", "t.toml")


def test_declarations_are_told_key_by_key() -> None:
    keys = {key.path: key for key in declared_keys(Tree)}
    words = {path: key.words for path, key in keys.items()}
    assert words == {
        "leaf": "tables", "leaf.name": "text", "leaf.half": "duration", "leaf.in_": "true or false",
        "branch": "table", "branch.with": "text", "branch.thickness": "whole number", "height": "number",
        "names": "list of text", "girth": "whole number", "kin": "list of text", "sort": "text",
    }  # fmt: skip
    assert keys["branch.with"].choices == ("", "bark", "moss")
    assert keys["leaf.name"].default is msgspec.NODEFAULT
    assert json_schema(Tree, "tree")["title"] == "tree"


@given(st.binary(max_size=200))
def test_any_bytes_are_tables_or_a_mistake_with_its_line(data: bytes) -> None:
    try:
        TomlDocument(data, "t").typed(Tree)
    except TomlMistake as mistake:
        assert 1 <= mistake.line <= len(data.splitlines()) + 1  # noqa: PT017 - what was raised is what is judged
