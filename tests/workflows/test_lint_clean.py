"""Guides without mistakes: what lint must not remark on. Ours, and those that ship."""

from pathlib import Path

import pytest

from agentrt.workflows.lint import lint, lint_path
from agentrt.workflows.parse import load_guide
from tests.workflows.test_lint_samples import GPU, PAYMENTS, Clean
from tests.workflows.test_lint_samples_more import BACKUP

SHIPPED = sorted(
    (Path(__file__).resolve().parents[2] / "workflows" / "guides").glob("*/guide.md"),
    key=lambda path: path.parent.name,
)


OWN = (PAYMENTS, GPU, BACKUP)


def all_clean() -> list[Clean]:
    shipped = [
        Clean(
            path.parent.name,
            path.read_text(encoding="utf-8"),
            (path.parent / "queries.toml").read_text(encoding="utf-8"),
            path.parent,
        )
        for path in SHIPPED
    ]
    return [*OWN, *shipped]


@pytest.mark.parametrize("clean", OWN, ids=lambda clean: clean.name)
def test_our_own_clean_guides_have_no_findings(clean, tmp_path):
    guide = load_guide(clean.write(tmp_path))
    assert lint(guide) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_guides_that_ship_have_no_findings(path):
    assert lint_path(path) == []


def test_six_guides_ship():
    assert len(SHIPPED) >= 5
