"""Connections as they change state: traced, or found by comparing looks at the sockets; joined with who holds them.

`Following` is what others use: a context manager whose `step` is one round.
"""

from finwait.follow.actors import Who
from finwait.follow.following import Following, Round
from finwait.follow.places import pod_uid
from finwait.follow.staying import Stuck
from finwait.kernel.holders import Owner

__all__ = ["Following", "Owner", "Round", "Stuck", "Who", "pod_uid"]
