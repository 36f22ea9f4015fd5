"""finwait: why TCP connections on this machine do not finish closing.

    >>> import finwait                              # doctest: +SKIP
    >>> diagnosis = finwait.diagnose()              # doctest: +SKIP
    >>> for finding in diagnosis.findings: ...      # doctest: +SKIP

`snapshot()` looks and returns columns; `diagnose()` looks and explains. Both only read.
Importing this package is cheap: numpy is loaded when the first of them is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finwait.version import __version__

if TYPE_CHECKING:
    from finwait.session import Diagnosis as Diagnosis
    from finwait.session import Snapshot as Snapshot
    from finwait.session import diagnose as diagnose
    from finwait.session import snapshot as snapshot

__all__ = ["Diagnosis", "Snapshot", "__version__", "diagnose", "snapshot"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name in ("Diagnosis", "Snapshot", "diagnose", "snapshot"):
        from finwait import session

        return getattr(session, name)
    raise AttributeError(f"module 'finwait' has no attribute {name!r}")
