"""What older kernels leave out makes no finding silent: it is found all the same, or a gap says what was not seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finwait import session
from finwait.recording import read
from finwait.recording.replay import Replay
from finwait.session import Diagnosis
from tests.captures.make import HERE, how, replay, summary
from tests.captures.older import PROFILES, ULP_INFO, Profile, downgraded

RECORDINGS = sorted(HERE.glob("linux-6.18/*.finwait"))


def then(path: Path, profile: Profile) -> Diagnosis:
    looks = read(str(path))[1]
    walled = frozenset(looks[-1].descriptors.unreadable)
    older = Replay([downgraded(look, profile) for look in looks])
    return session.diagnose(older, how=how(path.stem, walled))


def counts(found: list[dict[str, Any]], *, window: bool) -> Counter[tuple[str, bool]]:
    """Return rule and primary → connections; without the peer's window a blocked egress looks like one that is shut."""
    result: Counter[tuple[str, bool]] = Counter()
    for one in found:
        rule = one["rule"] if window or one["rule"] != "egress-blocked" else "zero-window"
        result[rule, one["primary"]] += one["count"]
    return result


CASES = [
    pytest.param(path, profile, id=f"{profile.kernel}-{path.stem}")
    for profile in PROFILES.values()
    for path in RECORDINGS
    if not (ULP_INFO in profile.lacks and path.stem.startswith("mptcp"))  # there was no MPTCP then
]


@pytest.mark.parametrize(("path", "profile"), CASES)
def test_the_findings_are_the_same_or_a_gap_says_what_is_missing(path: Path, profile: Profile) -> None:
    now, old = replay(path), then(path, profile)
    window = profile.tcp_info >= 232
    before, after = (counts(summary(one), window=window) for one in (now, old))
    assert not after - before
    lost = before - after
    if lost:
        assert {rule for rule, _ in lost} <= {"mptcp-half-close", "mptcp-no-subflow"}
        assert set(old.gaps) > set(now.gaps)
    # What is less sure is said to be less sure, and nothing is surer for want of a column.
    sure = {"possible": 0, "likely": 1, "certain": 2}
    for name in {f.rule for f in old.findings} & {f.rule for f in now.findings}:
        best = [max(sure[f.confidence.level] for f in one.findings if f.rule == name) for one in (now, old)]
        assert best[1] <= best[0], name
    if not window:
        blind = [f for f in old.findings if f.rule == "zero-window"]
        assert all(f.confidence.level != "certain" for f in blind)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.kernel)
def test_an_older_kernel_is_one_here_too(profile: Profile) -> None:
    path = HERE / "linux-6.18" / "zero-window.finwait"
    sockets, now = then(path, profile).view.sockets, replay(path).view.sockets
    assert now.present("snd_wnd").any()
    assert now.present("cgroup_id").any()
    assert sockets.present("snd_wnd").any() == (profile.tcp_info >= 232)
    assert sockets.present("cgroup_id").any() == (profile.kernel == "5.10")
    assert sockets.state.tolist() == now.state.tolist()
