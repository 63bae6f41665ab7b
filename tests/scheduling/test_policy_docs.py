"""docs/policies.md: every policy has its section, the example works, the table is not stale."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from pathlib import Path

from agentrt.bench.policies import expand_policies
from agentrt.bench.policy_document import document
from agentrt.scheduling import SchedulerConfig, policy_names, registry
from agentrt.scheduling.registry import BUILTIN
from tests.scheduling.driver import Driver, ProgramScript, TurnScript

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "policies.md"
KEPT = ROOT / "benchmarks" / "results" / "policies-published.json"


def example() -> str:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


def test_every_policy_has_a_section():
    sections = re.findall(r"^### `([^`=]+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(BUILTIN) - set(sections) == set()


def test_the_example_is_a_policy_like_any_other(monkeypatch, tmp_path):
    assert len(example().splitlines()) <= 40
    (tmp_path / "patient.py").write_text(example(), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("patient", "patient:patient", "agentrt.policies")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert "patient" in policy_names()
    assert "patient" in expand_policies("all")
    turns = [TurnScript(new=9, output=3, gap=0.4, tool="bash") for _ in range(3)]
    programs = [ProgramScript(arrival=0.1 * at, turns=turns) for at in range(4)]
    config = SchedulerConfig(token_budget=16, max_seqs=4, max_wait=1e6, pin_share=1.0)
    log = Driver("patient=2", programs, pool=24, config=config).run()
    assert len(log.stats) == 12
    assert {pin.ttl for pin in log.pins} >= {4.0}


def test_the_table_is_made_of_the_kept_results():
    text = PAGE.read_text(encoding="utf-8")
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    assert document(text, kept) == text, "docs/policies.md is stale: run scripts/policies-doc"
