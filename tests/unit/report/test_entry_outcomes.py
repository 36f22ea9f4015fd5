"""What came of the deletion of a tracking entry, in words and as a fact."""

from typing import get_args

from finwait.remedy.outcome import EntryOutcome, EntryResult
from finwait.report.outcome import entry_text


def test_each_result_has_its_words() -> None:
    texts = {name: entry_text(EntryOutcome(name, "the kernel said EBUSY")) for name in get_args(EntryResult)}
    assert texts == {
        "deleted": "deleted",
        "gone before": "gone before",
        "failed": "failed: the kernel said EBUSY",
        "interrupted": "interrupted before it was done",
    }


def test_an_entry_is_gone_when_it_was_deleted_or_had_left() -> None:
    assert [name for name in get_args(EntryResult) if EntryOutcome(name).gone] == ["deleted", "gone before"]
