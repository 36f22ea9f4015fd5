"""Schemathesis against the API: whatever `openapi.json` allows is answered as it says, and what it forbids is refused.

A server as the agent's, over a looker of values, in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from finwait.web.openapi import openapi

schemathesis: Any = pytest.importorskip("schemathesis")
positive_data_acceptance: Any = pytest.importorskip(
    "schemathesis.specs.openapi.checks"
).positive_data_acceptance

SCHEMA = schemathesis.openapi.from_dict(openapi())
OPERATIONS = {
    f"{result.ok().method} {result.ok().path}": result.ok()
    for result in SCHEMA.get_all_operations()
    if not result.ok().path.endswith("/events")  # it has no end; tests/unit/web/test_api.py reads it
}
EXAMPLES = 30


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.page_server", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    server.communicate(timeout=30)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, id=f"{mode.value}: {name}")
        for name, operation in OPERATIONS.items()
        for mode in schemathesis.GenerationMode
        if mode.is_positive or list(operation.iter_parameters())  # nothing is wrong where nothing is taken
    ],
)
def test_the_api_answers_as_its_schema_says(address: str, name: str, mode: Any) -> None:
    operation = OPERATIONS[name]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        phases=(Phase.generate,),
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def every(case: Any) -> None:
        # A schema cannot say which text is a FILTER; what is none is refused, as it says too.
        free = bool((case.query or {}).get("filter"))
        case.call_and_validate(
            base_url=address, excluded_checks=[positive_data_acceptance] if free else [], timeout=20
        )

    every()
