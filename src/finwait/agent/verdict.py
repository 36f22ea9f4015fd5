"""What one diagnosis hands to the looker, as values and as bytes: it is made in a process of its own.

The looker keeps the answers for weeks, and the process that makes them has all of the machine in its memory for
seconds. So what crosses is what is kept: a cell for each connection in a closing state, causes, limits, gaps, and the
sentences of so many groups. The bytes are msgpack; what does not have this shape, or refers to what is not there, is a
`DecodeError`.

Pure. Who makes it is `finwait.agent.diagnoser`, who asks for it `finwait.agent.diagnosing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import numpy as np
from msgspec import Struct, field

from finwait.agent.episode_values import Cause, Diagnosed, Instant
from finwait.agent.leak import Used
from finwait.errors import DecodeError, Gap
from finwait.report.agent_page import SaidCause, SettingItem
from finwait.table.units import printable
from finwait.uapi.cluster import ClusterNames

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finwait.table.filter import Filter

__all__ = [
    "ANSWER_MOST", "Answered", "CauseKey", "DiagnosedLook", "DiagnosisRequest", "Explained", "Filters", "Way",
    "decode_answer", "decode_request", "encode_answer", "encode_failure", "encode_request",
]  # fmt: skip

Filters = Mapping[str, tuple[Sequence["Filter"], Sequence["Filter"]]]
"""Name → FILTERs that a connection must pass, and those that its other end must pass as well."""

CauseKey = tuple[str, str]
"""Rule and workload."""

Way = tuple[int, int, int]
"""Inode of a network namespace, pid, and descriptor that leads there."""

ANSWER_MOST: Final = 1 << 26
"""Bytes of an answer: about 30 for a connection, of which 200,000 are kept."""


class Explained(Struct, frozen=True):
    """What one diagnosis said."""

    causes: Mapping[CauseKey, SaidCause] = field(default_factory=dict)
    settings: Sequence[SettingItem] = ()
    settings_dropped: int = 0
    at: str = ""
    """When it was made; empty for never."""


_NOTHING_EXPLAINED: Final = Explained()


class DiagnosedLook(Struct, frozen=True):
    """What one diagnosis says."""

    said: Diagnosed
    limits: Sequence[Used]
    gaps: tuple[Gap, ...]
    at: Instant
    """When it began."""
    everything: bool
    """Whether every namespace was entered."""
    selected: Mapping[str, frozenset[tuple[int, int]]] = field(default_factory=dict)
    """Name → namespace and cookie of what the FILTERs of that name let pass."""
    held: Mapping[int, int] = field(default_factory=dict)
    """Pid → connections that it holds; of large namespaces without those in ESTABLISHED."""
    texts: Explained = _NOTHING_EXPLAINED
    """What it says to people."""
    doors: Mapping[int, str] = field(default_factory=dict)
    """Cookie of a listener → the workload of who holds it."""
    left_alone: Mapping[str, frozenset[tuple[int, int]]] = field(default_factory=dict)
    """``excluded`` and ``unnamed`` (`finwait.agent.selected.left_alone`) → namespace and cookie of what no policy may
    act on."""


class DiagnosisRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of the process that diagnoses."""

    options: dict[str, int] = {}
    """Fields of `finwait.diagnosis.view.Options` that are not as usual."""
    filters: dict[str, tuple[list[str], list[str]]] | None = None
    """As `Filters`, spelled out; None where nobody asks."""
    ways: tuple[list[Way], list[Way]] = ([], [])
    """What leads to namespaces that nothing else leads to, as of the last look (`netns.discover`)."""
    cluster: ClusterNames | None = None
    """What is known of the cluster that is followed; None where none is."""


class _Look(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A `DiagnosedLook`; columns are the bytes of little-endian arrays."""

    columns: dict[str, bytes]
    causes: list[Cause]
    holders: list[str]
    translated: list[tuple[int, str, str]]
    limits: list[Used]
    gaps: list[Gap]
    at: tuple[int, int]
    everything: bool
    selected: dict[str, bytes]
    left_alone: dict[str, bytes]
    held: dict[int, int]
    doors: dict[int, str]
    explained: list[tuple[str, str, SaidCause]]
    settings: list[SettingItem]
    settings_dropped: int
    explained_at: str


class _Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    look: _Look | None = None
    error: str = ""
    """Why there is none."""
    ways: tuple[list[Way], list[Way]] = ([], [])


class Answered(Struct, frozen=True):
    """An answer: a look, or why there is none."""

    look: DiagnosedLook | None
    error: str
    ways: tuple[list[Way], list[Way]]


_COLUMNS: Final[Mapping[str, str]] = {
    "cookie": "<u8", "state": "<u1", "cause": "<i4", "other": "<u8", "other_netns": "<u4", "other_holder": "<i4",
}  # fmt: skip
_PAIR: Final = np.dtype([("netns", "<u4"), ("cookie", "<u8")])


def encode_request(request: DiagnosisRequest) -> bytes:
    """Return a question as bytes."""
    return msgspec.msgpack.encode(request)


def decode_request(data: bytes) -> DiagnosisRequest:
    """Return a question.

    Raises:
        DecodeError: it is none.
    """
    try:
        return msgspec.msgpack.decode(data, type=DiagnosisRequest)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DecodeError("question of a diagnosis", 0, data[:64], str(error)) from None


def encode_answer(look: DiagnosedLook, ways: tuple[Sequence[Way], Sequence[Way]]) -> bytes:
    """Return a look, and what leads to namespaces that nothing else leads to, as bytes."""
    statement = look.said
    made = _Look(
        columns={
            name: np.asarray(getattr(statement, name)).astype(kind).tobytes()
            for name, kind in _COLUMNS.items()
        },
        causes=list(statement.causes),
        holders=list(statement.holders),
        translated=[(cookie, near, far) for cookie, (near, far) in statement.translated.items()],
        limits=list(look.limits),
        gaps=list(look.gaps),
        at=(look.at.boot_ns, look.at.wall_ns),
        everything=look.everything,
        selected=_as_bytes(look.selected),
        left_alone=_as_bytes(look.left_alone),
        held=dict(look.held),
        doors=dict(look.doors),
        explained=[(rule, workload, cause) for (rule, workload), cause in look.texts.causes.items()],
        settings=list(look.texts.settings),
        settings_dropped=look.texts.settings_dropped,
        explained_at=look.texts.at,
    )
    return _encoded(_Answer(look=made, ways=(list(ways[0]), list(ways[1]))))


def _as_bytes(pairs: Mapping[str, frozenset[tuple[int, int]]]) -> dict[str, bytes]:
    return {name: np.array(sorted(several), _PAIR).tobytes() for name, several in pairs.items()}


def _as_pairs(columns: Mapping[str, bytes]) -> dict[str, frozenset[tuple[int, int]]]:
    return {
        name: frozenset(map(tuple, np.frombuffer(data, _PAIR).tolist())) for name, data in columns.items()
    }


def encode_failure(statement: str) -> bytes:
    """Return that there is no look, and why, as bytes."""
    return _encoded(_Answer(error=statement[:2000] or "it failed"))


def _encoded(answer: _Answer) -> bytes:
    try:
        return msgspec.msgpack.encode(answer)
    except ValueError:  # a process chose a name that is no Unicode
        return msgspec.msgpack.encode(
            _clean(msgspec.to_builtins(answer, builtin_types=(bytes,), str_keys=False))
        )


def _clean(value: Any) -> Any:  # noqa: ANN401 - as msgspec gives it
    """Return a value in which no text holds anything that cannot be printed."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    return value


def decode_answer(data: bytes) -> Answered:
    """Return what the process that diagnoses answered.

    Raises:
        DecodeError: it is not an answer.
    """
    try:
        answer = msgspec.msgpack.decode(data, type=_Answer)
        look = _look(answer.look) if answer.look is not None else None
    except (msgspec.MsgspecError, ValueError) as error:
        raise DecodeError("answer of a diagnosis", 0, data[:64], str(error)) from None
    return Answered(look, answer.error or ("" if look is not None else "it says nothing"), answer.ways)


def _look(made: _Look) -> DiagnosedLook:
    """Return a look.

    Raises:
        ValueError: parts do not belong together.
    """
    if made.columns.keys() != _COLUMNS.keys():
        raise ValueError("other columns")
    columns: dict[str, NDArray[Any]] = {
        name: np.frombuffer(made.columns[name], kind) for name, kind in _COLUMNS.items()
    }
    if len({len(column) for column in columns.values()}) != 1:
        raise ValueError("columns of different lengths")
    for name, table in (("cause", made.causes), ("other_holder", made.holders)):
        cells = columns[name]
        if len(cells) and not (cells.min() >= 0 and cells.max() < len(cast("list[object]", table))):
            raise ValueError(f"{name} refers to what is not there")
    statement = Diagnosed(
        cookie=columns["cookie"],
        state=columns["state"],
        cause=columns["cause"],
        causes=made.causes,
        other=columns["other"],
        other_netns=columns["other_netns"],
        other_holder=columns["other_holder"],
        holders=made.holders,
        translated={cookie: (near, far) for cookie, near, far in made.translated},
    )
    return DiagnosedLook(
        said=statement,
        limits=made.limits,
        gaps=tuple(made.gaps),
        at=Instant(*made.at),
        everything=made.everything,
        selected=_as_pairs(made.selected),
        left_alone=_as_pairs(made.left_alone),
        held=made.held,
        doors=made.doors,
        texts=Explained(
            {(rule, workload): cause for rule, workload, cause in made.explained},
            made.settings,
            made.settings_dropped,
            made.explained_at,
        ),
    )
