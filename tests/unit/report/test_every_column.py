"""Every column that can be printed, with real values, in every format that has columns."""

from __future__ import annotations

import csv
import io
import json
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from finwait.diagnosis.view import View
from finwait.report import arrow, rows
from finwait.report.columns import NAMES, Cells
from finwait.table.derived import DERIVED
from finwait.table.sockets import SCHEMA, address_text
from finwait.uapi.cluster import ClusterNames, KubeService, Pod, ServicePort
from finwait.uapi.observation import LoopWatch, ProcessWaits, SocketOptions, ThreadWait
from tests.captures.make import HERE, replay

RECORDED = ("nat-entry-gone", "kube-proxy-userspace", "mptcp-half-close", "data-unanswered")
ASKED = (
    SocketOptions(True, 60, 10, 5, user_timeout_ms=2**32 - 1, linger_s=0, linger2_s=-1),
    SocketOptions(False, 60, 10, 5, user_timeout_ms=0, linger_s=-1, linger2_s=2**32 - 2),
    SocketOptions(errno=1),
)
"""The ends of what a recording may say, and what could not be asked."""
WAITS = ProcessWaits(
    (ThreadWait(7, "main", "S", "read", "read", ((3, 0),)),), (LoopWatch(5, 1, ((3, 1, -1),)),)
)


def named(view: View) -> ClusterNames:
    """Names for the pods that are in a recording, and a Service for where the first connection leads."""
    works = [work for work in view.workload_names if work.pod_uid]
    places = [
        (address_text(*view.sockets.dst[row].tolist()), int(view.sockets.dport[row]))
        for row in range(len(view))
    ]
    pods = [
        Pod(work.pod_uid, "shop", f"db-{k}", "n1", "StatefulSet", "db", containers={work.container_id: "app"})
        for k, work in enumerate(works)
    ]
    at = msgspec.structs.replace(pods[0], addresses=tuple(address for address, _ in places)) if pods else None
    return ClusterNames(
        pods=tuple(pods) if at is None else (at, *pods[1:]),
        services=tuple(
            KubeService("shop", f"db-{k}", (address,), (ServicePort(port),), 1)
            for k, (address, port) in enumerate(dict.fromkeys(places))
        ),
        as_of={"pods": 1.0, "services": 1.0, "endpointslices": 1.0},
    )


@cache
def recorded() -> list[Cells]:
    """Rows of recordings; of some sockets the options and who waits are known."""
    made = []
    for name in RECORDED:
        diagnosis = replay(HERE / f"linux-6.18/{name}.finwait")
        view = diagnosis.view
        inodes = sorted({int(inode) for inode in view.sockets.inode if inode})
        view = replace(
            view,
            names=named(view),
            socket_options={inode: ASKED[k % len(ASKED)] for k, inode in enumerate(inodes[1:])},
            waits_read={int(pid): WAITS for pid in view.holders.pid[:2]},
        )
        made.append(Cells(view, np.arange(len(view)), diagnosis.findings))
    return made


def plain(value: Any) -> Any:
    """A cell as a reader of the format gets it back."""
    return None if value is None else value.item() if isinstance(value, np.generic) else value


@pytest.mark.parametrize("name", NAMES)
def test_a_column_is_the_same_in_every_format(name: str) -> None:
    pytest.importorskip("arro3.core")
    from arro3.io import read_ipc_stream, read_parquet

    for cells in recorded():
        wanted = [plain(value) for value in cells.column(name)]
        table = arrow.table(cells.view, (name,), cells.rows, cells._findings)
        for write, read in ((arrow.stream, read_ipc_stream), (arrow.parquet, read_parquet)):
            out = io.BytesIO()
            write(table, out)
            back = read(io.BytesIO(out.getvalue())).read_all()
            assert back[name].to_pylist() == wanted
        lines = csv.reader(io.StringIO("".join(rows.csv_lines(cells, (name,))), newline=""))
        assert next(lines) == [name]
        texts = ["" if value is None else str(value) for value in wanted]
        assert [line[0].removeprefix("'") if line else "" for line in lines] == texts
        objects = [json.loads(line) for line in rows.json_lines(cells, (name,))]
        if name not in rows._SHAPED:
            assert [one[name] for one in objects] == wanted
        assert len("".join(rows.text_lines(cells, (name,))).splitlines()) == 1 + len(cells)


@pytest.mark.parametrize("name", DERIVED)
def test_what_is_derived_is_declared_once_and_made(name: str) -> None:
    assert hasattr(Cells, f"_{name}"), f"`Cells` in report/columns.py lacks `_{name}`"
    assert name not in SCHEMA
    numbers = DERIVED[name].dtype is not None
    types = {type(plain(v)) for cells in recorded() for v in cells.column(name) if v is not None}
    assert types <= ({int, float} if numbers else {str}), f"`dtype` of `{name}` in table/derived.py"
    if name != "unit":  # of the lab's programs none is in one
        assert types, "no recording here has a value of it: add one to RECORDED"
