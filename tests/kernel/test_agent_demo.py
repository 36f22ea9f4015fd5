"""The agent's demo shows its own connections only, with ages that they have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from examples.agent import demo

_INSIDE = """
import json, sys
from examples.agent import demo
from finwait.kernel.netns import discover
before = len(discover()[0])
demo.hide_other_namespaces()
print(json.dumps([before, len(discover()[0])]))
"""


def test_it_sees_no_network_namespace_but_its_own(tmp_path: Path) -> None:
    file = tmp_path / "a name"
    file.touch()
    kept = f'unshare --net sh -c \'mount --bind /proc/self/ns/net "{file}"\' && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--mount", "--fork", "--mount-proc"]
    done = subprocess.run(
        [*command, "sh", "-c", kept, "sh", sys.executable, "-c", _INSIDE],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    before, after = json.loads(done.stdout)
    assert after == before - 1


def test_counts_are_added_up_and_of_ages_the_largest_is_taken() -> None:
    text = """# HELP finwait_stuck_connections x
finwait_stuck_connections{rule="a"} 3.0
finwait_stuck_connections{rule="b"} 4.0
finwait_stuck_connections_oldest_seconds{rule="a"} 16.0
finwait_stuck_connections_oldest_seconds{rule="b"} 19.0
"""
    assert demo.totals(text) == {
        "finwait_stuck_connections": 7.0,
        "finwait_stuck_connections_oldest_seconds": 19.0,
    }
