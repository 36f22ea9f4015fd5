"""The generated pages are what their data says now, and every link in them leads somewhere."""

import re
from pathlib import Path

from finwait.remedy.settings import CATALOGUE
from finwait.report.reference_pages import ledger_page, settings_page
from finwait.shipped import knowledge

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_the_page_of_settings_is_made_from_the_catalogue():
    assert (REFERENCE / "settings.md").read_text() == settings_page(CATALOGUE)


def test_the_page_of_the_ledger_is_made_from_the_knowledge_base():
    assert (REFERENCE / "ledger.md").read_text() == ledger_page(knowledge())


def test_every_claim_that_a_setting_cites_is_on_the_ledgers_page():
    anchors = set(re.findall(r"^### (\w+)$", (REFERENCE / "ledger.md").read_text(), re.MULTILINE))
    cited = set(re.findall(r"\(ledger\.md#(\w+)\)", (REFERENCE / "settings.md").read_text()))
    assert cited
    assert cited <= {name.lower() for name in anchors}
