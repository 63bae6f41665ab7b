"""The document of hints says what the parser reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrt.hints import FIELDS
from agentrt.hints.document import document, tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hints.md"


def test_the_tables_are_those_of_the_parser() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert document(text) == text, "docs/hints.md is stale: run scripts/hints-doc"


def test_every_field_is_in_them() -> None:
    made = tables()
    assert all(f"`{row.label.partition(':')[2]}`" in made for row in FIELDS)


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="unpack"):
        document("# Hints")
