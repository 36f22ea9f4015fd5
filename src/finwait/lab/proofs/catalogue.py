"""Demonstrations of the ledger's claims: real sockets in private namespaces, measured values, and a verdict.

A `Proof` builds a small situation, measures, and says for each measurement what the ledger expects and whether it
was so on this kernel (`Measured`). One proof can bear on several claims. Times are made short with the sysctls of the
private namespace, and what takes long by its nature ("stays for ever") is compared with something that ends: the
held socket is still there when the orphan beside it has gone.
"""

from __future__ import annotations

import platform
import time
from typing import Final

from finwait.lab.proofs.closing import CLOSING
from finwait.lab.proofs.endings import ENDINGS
from finwait.lab.proofs.instruments import Late, Measured, Proof, ProofOutcome
from finwait.lab.proofs.orphans import ORPHANS
from finwait.lab.proofs.places import PLACES
from finwait.lab.proofs.queues import QUEUES
from finwait.lab.proofs.silence import SILENCE
from finwait.lab.proofs.tracking import TRACKING
from finwait.lab.topology import Lab, LabError, unmet

__all__ = ["proofs", "prove"]

_PROOFS: Final[tuple[Proof, ...]] = (
    *ORPHANS,
    *SILENCE,
    *PLACES,
    *CLOSING,
    *QUEUES,
    *TRACKING,
    *ENDINGS,
)


def proofs() -> dict[str, Proof]:
    """Return the proofs by name."""
    return {proof.name: proof for proof in _PROOFS}


def prove(proof: Proof) -> ProofOutcome:
    """Run a demonstration in namespaces of its own, and remove everything.

    Raises:
        LabError: the machine does not have what it needs.
        PermissionNeeded: without the right to make network namespaces.
    """
    if missing := unmet(proof.needs):
        raise LabError(
            f"`{proof.name}` cannot be run here: {'; '.join(missing)}", hint="run it where they are met"
        )
    measured: list[Measured] = []
    start = time.monotonic()
    with Lab() as lab:
        try:
            measured += proof.run(lab)
        except Late as late:
            measured.append(Measured("the demonstration as a whole", "to finish", str(late), False))
    return ProofOutcome(proof, platform.release(), tuple(measured), time.monotonic() - start)
