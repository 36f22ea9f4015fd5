"""Every demonstration holds on this kernel, and ledger and demonstrations name each other."""

import json
import os

import pytest

from finwait.cli import main
from finwait.lab.proofs.catalogue import proofs, prove
from finwait.lab.proofs.instruments import Measured, Proof, ProofOutcome
from finwait.lab.topology import unmet
from finwait.shipped import knowledge
from tests.kernel import needs

pytestmark = pytest.mark.kernel


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(proofs()))
def test_a_demonstration_holds_on_this_kernel(name):
    proof = proofs()[name]
    if missing := unmet(proof.needs):
        if os.environ.get("FINWAIT_KERNEL_TESTS") == "1":
            pytest.fail("; ".join(missing))
        pytest.skip("; ".join(missing))
    outcome = prove(proof)
    assert outcome.measured
    assert [one for one in outcome.measured if not one.held] == []


def test_the_ledger_and_the_demonstrations_name_each_other():
    by_claim: dict[str, list[str]] = {}
    for name, proof in proofs().items():
        for claim in proof.claims:
            by_claim.setdefault(claim, []).append(name)
    named = {c.id: c.demo for c in knowledge().claims.values() if c.demo}
    assert named.keys() == by_claim.keys()
    assert [claim for claim, demo in named.items() if demo not in by_claim[claim]] == []


def test_only_what_was_measured_is_demonstrated():
    assert all(c.evidence == "measured" for c in knowledge().claims.values() if c.demo)


def test_one_measurement_that_differs_means_that_it_did_not_hold():
    proof = Proof("x", (), 0, (), lambda _lab: iter(()))
    good, bad = Measured("a", "1", "1", True), Measured("b", "1", "2", False)
    assert ProofOutcome(proof, "k", (good,), 0).held
    assert not ProofOutcome(proof, "k", (good, bad), 0).held


def test_the_command_tells_the_claim_the_values_and_whether_it_held(capsys):
    needs.root_and()
    assert main(["lab", "prove", "s41", "fresh-namespace"]) == 0
    out = capsys.readouterr().out
    assert out.count("Demonstration fresh-namespace on Linux") == 1
    assert "S41 Sysctls set on the node" in out
    assert "measured: 60 7200 15" in out
    assert "It held" in out
    assert main(["lab", "prove", "S36", "-o", "json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["items"]
    assert told["held"]
    assert told["claims"] == ["S36"]
    assert main(["lab", "prove"]) == 0
    assert "held-and-orphan" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["X54", "Z99"])
def test_a_claim_without_a_demonstration_is_told(word, capsys):
    assert main(["lab", "prove", word]) == 2
    err = capsys.readouterr().err
    assert f"no demonstration of `{word}`" in err
    assert "hint: " in err
