"""Any text is a filter or a `FilterError` that points into it; a filter prints, compiles and runs."""

from __future__ import annotations

import numpy as np

from finwait.errors import FilterError
from finwait.table.filter import CONTEXT, parse
from finwait.table.sockets import MAPPED, SocketTable

TABLE = SocketTable.from_columns(
    {
        "family": [2, 10, 10],
        "state": [1, 5, 6],
        "src": [(0, MAPPED | 0x0A000001), (0, MAPPED | 0x0A000001), (0x20010DB8 << 32, 1)],
        "dst": [(0, MAPPED | 0x7F000001), (0, MAPPED | 0x7F000001), (0, 1)],
        "sport": [80, 443, 65535],
        "dport": [0, 1, 2],
        "cong": [b"cubic", b"", b"bbr"],
    }
)
KNOWN: dict[str, list[object]] = {
    **{name: ["x", None, ("a", "b")] for name in CONTEXT},
    "age_at_least_s": [1.0, None, 3.0],
    "age_at_most_s": [2.0, None, 3.0],
    "autobound": [True, None, False],
}


def one_input(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        parsed = parse(text)
    except FilterError as error:
        if not (0 <= error.column <= len(error.text) and error.message):
            raise AssertionError(f"{text!r}: the error points nowhere") from error
        return
    assert parse(str(parsed)) == parsed, text
    mask = parsed.mask(TABLE, KNOWN)
    assert not (mask & parse(f"not ( {parsed} )").mask(TABLE, KNOWN)).any() if str(parsed) else mask.all()
    assert not np.any(mask & ((parsed.states >> TABLE.state.astype(np.int64)) & 1 == 0)), text
    code = parsed.bytecode(ifindex=lambda _: 1, cgroup_id=lambda _: 1, net_admin=True)
    assert len(code) % 4 == 0
    assert parsed.explain()
