"""The fuzzers themselves: each takes its own seeds, whole and cut, without an atheris in sight."""

from __future__ import annotations

import importlib

import pytest
from fuzz.__main__ import seeds_of, targets


def test_the_decoders_have_fuzzers() -> None:
    assert {"conntrack", "inet_diag", "proc"} <= set(targets())


@pytest.mark.parametrize("name", targets())
def test_a_fuzzer_takes_its_seeds_whole_and_cut(name: str) -> None:
    module = importlib.import_module(f"fuzz.{name}")
    seeds = seeds_of(module)
    assert seeds
    for seed in seeds:
        for end in {len(seed), *range(0, len(seed), max(1, len(seed) // 40))}:
            module.one_input(seed[:end])
