"""What pytest reports of kernel tests (JUnit's XML), as rows of what was measured.

One row for each module, and one for each test that did not pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from xml.etree import ElementTree as ET

__all__ = ["module_of", "told"]

FAILED = ("failure", "error")


def told(report: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield kind, name, verdict and detail of each row."""
    counts: dict[str, Counter[str]] = {}
    for case in ET.fromstring(report).iter("testcase"):
        module = case.get("classname", "").rpartition(".")[2] or case.get("name", "").rpartition(".")[2]
        found = next((one for one in case if one.tag in (*FAILED, "skipped")), None)
        outcome = "passed" if found is None else "not here" if found.tag == "skipped" else "differ"
        counts.setdefault(module, Counter())[outcome] += 1
        if found is not None:
            verdict = "not here" if outcome == "not here" else "differs"
            message = found.get("message", "").strip() or "failed"
            yield "test", f"{module}::{case.get('name')}", verdict, message.splitlines()[0][:200]
    for module, some in counts.items():
        yield "tests", module, "differs" if some["differ"] else "ok", f"{some['passed']} of {some.total()}"


def module_of(name: str) -> str:
    """Return the module of a test's name."""
    return name.partition("::")[0]
