"""The generated pages are what their data says now, and every link in them leads somewhere."""

import re
from pathlib import Path

from finwait.diagnosis import catalogue
from finwait.lab.proofs.catalogue import proofs
from finwait.remedy.settings.catalogue import CATALOGUE
from finwait.remedy.settings.model import Scope
from finwait.report.reference_pages import ledger_page, proofs_page, settings_page
from finwait.report.tune import in_pods
from finwait.shipped import knowledge

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_each_setting_says_whether_pods_may_set_it() -> None:
    said = {setting.key: in_pods(setting, knowledge()) for setting in CATALOGUE}
    assert "since Kubernetes 1.29" in said["net.ipv4.tcp_fin_timeout"]
    assert said["net.ipv4.tcp_retries2"].startswith("unsafe")
    (shared,) = {
        text for setting, text in ((s, said[s.key]) for s in CATALOGUE) if setting.scope is not Scope.NETNS
    }
    assert shared.startswith("no:")


def test_the_page_of_settings_is_made_from_the_catalogue():
    assert (REFERENCE / "settings.md").read_text() == settings_page(CATALOGUE, knowledge())


def test_the_page_of_the_ledger_is_made_from_the_knowledge_base():
    assert (REFERENCE / "ledger.md").read_text() == ledger_page(knowledge())


def test_every_claim_that_a_setting_cites_is_on_the_ledgers_page():
    anchors = set(re.findall(r"^### (\w+)$", (REFERENCE / "ledger.md").read_text(), re.MULTILINE))
    cited = set(re.findall(r"\(ledger\.md#(\w+)\)", (REFERENCE / "settings.md").read_text()))
    assert cited
    assert cited <= {name.lower() for name in anchors}


def test_the_page_of_proofs_is_made_from_the_rules_and_names_each_of_their_statements():
    claims = {name: proof.claims for name, proof in proofs().items()}
    text = (REFERENCE / "proofs.md").read_text()
    assert text == proofs_page(catalogue.rules(), claims)
    for rule in catalogue.rules():
        for words in rule.tellings:
            said = [(one.text, one.proofs) for one in words.ends]
            said += [(one.text, one.proofs) for one in words.does_not]
            for statement, shown in said:
                assert set(shown) <= set(claims), f"{rule.name}: {statement}"
                assert statement.replace("|", "\\|").replace("<", "&lt;") in text


def test_every_popular_cure_by_a_sysctl_that_is_called_useless_for_held_sockets_is_measured():
    for name in ("fin-wait2-held", "fin-wait2-shut-both", "close-wait-eof-read", "relay-pair"):
        rule = catalogue.rule(name)
        for words in rule.tellings:
            for advice in words.does_not:
                if "tcp_fin_timeout" in advice.text or "keepalive while" in advice.text:
                    assert advice.proofs, f"{name}: {advice.text}"
