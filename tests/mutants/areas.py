"""Which modules are mutated, by area, and which files of tests look for the change, in this order.

Unit tests and recordings come first: they see a change at once and always. What acts do shows in real namespaces only.
Not in it: what only moves bytes between descriptors or starts processes (most of ``relay``), which real sockets test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["AREAS", "Area", "area_of", "modules"]

SOURCE = "src/finwait/"


@dataclass(frozen=True, slots=True)
class Area:
    """Some modules and their tests, as patterns of paths."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]

    def files(self, root: Path, module: str) -> list[str]:
        """Return the files of tests for a module: first those that have its name, then in the order of the area."""
        found = [str(p.relative_to(root)) for t in self.tests for p in sorted(root.glob(t))]
        found = list(dict.fromkeys(found))
        return sorted(found, key=lambda test: Path(test).stem != f"test_{Path(module).stem}")


_DIAGNOSIS = (
    "tests/unit/diagnosis/rules/test_*.py",
    "tests/unit/diagnosis/test_rules.py",
    "tests/unit/diagnosis/test_*.py",
    "tests/captures/test_captures.py",
    "tests/property/test_closing_properties.py",
)
AREAS = {
    "rules": Area(("diagnosis/rules/*.py",), _DIAGNOSIS),
    "diagnosis": Area(
        ("diagnosis/*.py",),
        (
            *_DIAGNOSIS,
            "tests/unit/test_numbering.py",
            "tests/unit/cli/test_filter_words.py",
            "tests/unit/cli/test_explain_pcap.py",
            "tests/unit/cli/test_what_check_leaves_out.py",
            "tests/property/test_hints.py",
        ),
    ),
    "attribution": Area(
        ("attribution/*.py",),
        (
            "tests/unit/attribution/test_*.py",
            "tests/unit/cli/test_user_filter.py",
            "tests/unit/diagnosis/test_moves.py",
            "tests/unit/diagnosis/test_rules.py",
            "tests/captures/test_captures.py",
        ),
    ),
    "policy": Area(
        ("agent/policy.py", "agent/policy_file.py", "agent/policy_trial.py"),
        (
            "tests/unit/agent/test_policy*.py",
            "tests/unit/agent/test_policing.py",
            "tests/property/test_policy.py",
        ),
    ),
    "plans": Area(
        ("remedy/*.py",),
        (
            "tests/unit/remedy/test_guards.py",
            "tests/unit/remedy/test_[!a]*.py",  # an audit reads configurations
            "tests/unit/acting/test_*.py",
            "tests/unit/cli/test_what_check_leaves_out.py",
            "tests/property/test_plans.py",
        ),
    ),
    "acts": Area(
        ("acting/*.py",),
        (
            "tests/unit/acting/test_*.py",
            "tests/unit/kernel/test_destroy_trial.py",
            "tests/kernel/test_tune_apply.py",
            "tests/kernel/test_one_act_at_a_time.py",
            "tests/kernel/test_options_of_sockets.py",
            "tests/kernel/test_strangers.py",
            "tests/kernel/test_acting.py",
            "tests/kernel/test_cut_short.py",
        ),
    ),
    "relay": Area(
        (
            "relay/machine.py",
            "relay/wheel.py",
            "relay/balance.py",
            "relay/acl.py",
            "relay/proxy_protocol.py",
            "relay/route.py",
            "relay/config/parsing.py",
            "relay/config/addresses.py",
            "toml/*.py",
        ),
        (
            "tests/unit/relay/test_acl.py",
            "tests/unit/relay/test_machine.py",
            "tests/unit/relay/test_wheel.py",
            "tests/unit/relay/test_config.py",
            "tests/unit/toml/test_*.py",
            "tests/unit/relay/test_balance.py",
            "tests/unit/relay/test_route.py",
            "tests/property/test_relay_machine.py",
        ),
    ),
}


def modules(root: Path) -> list[str]:
    """Return the paths of what is mutated."""
    found = {
        str(path.relative_to(root))
        for area in AREAS.values()
        for pattern in area.modules
        for path in (root / SOURCE).glob(pattern)
    }
    return sorted(found)


def area_of(path: str) -> str:
    """Return the name of the area that a module belongs to."""
    inner = Path(path).relative_to(SOURCE)
    for name, area in AREAS.items():
        if any(inner.match(p) and len(inner.parts) == len(Path(p).parts) for p in area.modules):
            return name
    raise ValueError(path)
