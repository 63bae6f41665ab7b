"""Recall and precision of lint on mistakes that are put into clean guides, one at a time."""

import shutil
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentrt.workflows.lint import apply_fixes, lint_path
from agentrt.workflows.parse import load_guide
from tests.workflows import test_lint_seed_data, test_lint_seed_flow, test_lint_seed_words
from tests.workflows.test_lint_samples import Clean
from tests.workflows.test_lint_seed_base import OPERATORS, Seed, seeds

# Importing the operators registers them.
MODULES = (test_lint_seed_words, test_lint_seed_flow, test_lint_seed_data)


@dataclass
class Score:
    seeds: int = 0
    told: int = 0
    wrong: int = 0
    right: int = 0

    @property
    def recall(self) -> float:
        return self.told / self.seeds

    @property
    def precision(self) -> float:
        return self.right / (self.right + self.wrong) if self.right + self.wrong else 1.0


def measure(found: list[Seed], folder: Path) -> tuple[dict[str, Score], list[str]]:
    scores: dict[str, Score] = defaultdict(Score)
    notes = []
    for at, seed in enumerate(found):
        path = placed(seed, folder / str(at))
        findings = lint_path(path)
        told = [f for f in findings if is_told(f, seed)]
        wrong = [f for f in findings if f not in told and f.rule not in seed.also]
        for score in (scores[seed.category], scores["all"]):
            score.seeds += 1
            score.told += bool(told)
            score.right += len(findings) - len(wrong)
            score.wrong += len(wrong)
        notes += [] if told else [f"missed {seed.operator} line {seed.line} {seed.file}"]
        notes += [f"wrong {seed.operator}: {f.rule} {f.path}:{f.line} {f.message}" for f in wrong]
    return scores, notes


def is_told(finding, seed: Seed) -> bool:
    same_place = finding.line == seed.line and finding.path == seed.file
    return same_place and finding.category == seed.category


def placed(seed: Seed, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path in seed.folder.glob("*.md") if seed.folder else ():
        shutil.copy(path, folder / path.name)
    return Clean("seeded", seed.guide, seed.queries).write(folder)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return measure(seeds(), tmp_path_factory.mktemp("seeds"))


def test_at_least_a_hundred_mistakes_of_every_class():
    made = seeds()
    counted = Counter(seed.category for seed in made)
    assert counted.total() >= 100
    assert all(counted[category] >= 20 for category in ("CP", "CF", "DF", "DI", "PS"))
    assert {seed.operator for seed in made} == set(OPERATORS)


def test_recall_and_precision_are_at_least_nine_in_ten(measured, capsys):
    scores, notes = measured
    table = ["class  seeds  recall  precision"]
    for name in ("CP", "CF", "DF", "DI", "PS", "all"):
        score = scores[name]
        table.append(f"{name:5}  {score.seeds:5}  {score.recall:6.3f}  {score.precision:9.3f}")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join([*table, *notes]) + "\n")
    for score in scores.values():
        assert score.recall >= 0.9
        assert score.precision >= 0.9


def test_fixes_leave_fewer_findings_and_a_guide_that_parses(tmp_path):
    fixed = 0
    for at, seed in enumerate(seeds()):
        path = placed(seed, tmp_path / str(at))
        findings = lint_path(path)
        if not any(finding.fix for finding in findings):
            continue
        text = apply_fixes(seed.guide, findings)
        assert apply_fixes(text, findings) == text
        path.write_text(text, encoding="utf-8")
        after = lint_path(path)
        assert len(after) < len(findings), seed.operator
        again = apply_fixes(text, after)
        if not after:
            load_guide(path)
            assert again == text
            fixed += 1
    assert fixed >= 50
