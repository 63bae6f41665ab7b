"""The engine comparison: rows, turns, children, the results file and the tables made of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.bench.engine_bench import EngineBench, Store
from agentrt.bench.engine_cases import CASES, OWN, Case, Limits, Timings, chosen, make_row
from agentrt.bench.engine_children import Child
from agentrt.bench.engine_compare import run_case
from agentrt.bench.engine_parts import PARTS, fragmentation, needs
from agentrt.bench.engine_rows import shape
from agentrt.bench.engine_table import MARKS, document, markdown, plain
from agentrt.errors import BackendUnavailable, ConfigError

ROOT = Path(__file__).parents[2]
CASE = Case("decode", "m135", 2, 64, steps=4, rounds=3)
_positive = st.floats(1e-4, 1e3)


class Scripted:
    """Answers as an engine does; fails at the request whose number is ``fails``."""

    def __init__(self, name: str, heard: list[tuple[str, str]], fails: int | None = None) -> None:
        self.name, self.heard, self.fails, self.asked = name, heard, fails, 0

    def ask(self, do: str, limit: float = 0.0, **fields: Any) -> dict[str, Any]:
        self.heard.append((self.name, do))
        self.asked += 1
        if self.asked == self.fails:
            raise BackendUnavailable(f"{self.name}: broken", remedy="Mend it.")
        return {"seconds": 0.5, "tokens": [1] * fields.get("batch", 1)}


def quiet(text: str) -> None:
    """Say nothing."""


class TestCases:
    def test_long_rows_run_only_where_they_are_named(self) -> None:
        assert not any(case.long for case in chosen([]))
        assert [case.name for case in chosen(["decode-m135-32x4096"])] == ["decode-m135-32x4096"]

    def test_an_unknown_name_is_refused(self) -> None:
        with pytest.raises(ValueError, match="m999"):
            chosen(["decode-m135", "m999"])

    def test_the_rows_that_the_targets_name_are_there(self) -> None:
        wanted = {
            f"decode-{model}-{batch}x{context}"
            for model in ("m135", "m600")
            for batch in (1, 8, 32)
            for context in (512, 4096)
        }
        wanted |= {f"prefill-{model}-1x{n}" for model in ("m135", "m600") for n in (512, 2048)}
        assert {case.name for case in CASES} == wanted

    @given(own=st.lists(_positive, min_size=1), peers=st.lists(st.lists(_positive, min_size=1)))
    def test_the_ratio_is_to_the_fastest_peer(
        self, own: list[float], peers: list[list[float]]
    ) -> None:
        seconds = {OWN: own, **{str(i): each for i, each in enumerate(peers)}}
        row = make_row(CASE, Timings(seconds=seconds))
        if not peers:
            assert row["ratio_to_best_peer"] is None
            return
        assert row["peers"][row["best_peer"]] == max(row["peers"].values())
        expected = row["tokens_per_second"] / max(row["peers"].values())
        assert row["ratio_to_best_peer"] == pytest.approx(expected, abs=1e-3)

    def test_first_tokens_are_compared(self) -> None:
        first = {OWN: [1, 2], "peer": [1, 3]}
        row = make_row(CASE, Timings({OWN: [1.0], "peer": [1.0]}, first=first))
        assert row["first_tokens_agree"] == {"peer": 0.5}


class TestNeeds:
    def test_a_decoding_step_reads_weights_and_keys_and_values(self) -> None:
        config = shape("m135")
        case = Case("decode", "m135", 8, 512, steps=2)
        nbytes, flops = needs(config, case)
        weights = 134_515_008 * 2  # the embedding is the output layer, too
        kv = 2 * 30 * 3 * 64 * 2 * 8 * 512
        assert nbytes == 2 * (weights + kv)
        assert flops == 2 * (weights * 8 + 4 * 30 * 9 * 64 * 8 * 512)

    def test_a_prompt_needs_the_output_layer_once(self) -> None:
        config = shape("m135")
        short, long = (needs(config, Case("prefill", "m135", 1, n))[1] for n in (1, 2))
        assert short > 2 * 49152 * 576
        assert long - short < 2 * 134_515_008 - 2 * 49152 * 576 + 1e6

    def test_the_nearer_bound_is_named(self) -> None:
        limits = Limits(bytes_per_second=10.0, flops_per_second=100.0)
        assert limits.bound(10.0, 50.0, 2.0)["bound"] == "memory bandwidth"
        assert limits.bound(1.0, 50.0, 1.0)["of_arithmetic"] == 0.5


class TestTurns:
    def test_engines_take_turns(self) -> None:
        heard: list[tuple[str, str]] = []
        engines = {name: Scripted(name, heard) for name in (OWN, "peer")}
        timings = run_case(CASE, engines, tell=quiet)
        steps = [name for name, do in heard if do == "steps"]
        assert steps == [OWN, "peer"] * (CASE.rounds + 1)
        assert timings.seconds == {OWN: [0.5] * 3, "peer": [0.5] * 3}
        assert heard[-2:] == [(OWN, "stop"), ("peer", "stop")]

    def test_what_does_not_fit_together_runs_one_after_the_other(self) -> None:
        heard: list[tuple[str, str]] = []
        engines = {name: Scripted(name, heard) for name in (OWN, "peer")}
        timings = run_case(CASE, engines, tell=quiet, together=False)
        assert not timings.in_turns
        assert [name for name, _ in heard] == [OWN] * 6 + ["peer"] * 6

    @given(fails=st.integers(1, 6), kind=st.sampled_from(["decode", "prefill"]))
    def test_an_engine_that_fails_is_told_and_stops_nobody(self, fails: int, kind: Any) -> None:
        heard: list[tuple[str, str]] = []
        engines = {OWN: Scripted(OWN, heard), "peer": Scripted("peer", heard, fails)}
        case = Case(kind, "m135", 1, 64, steps=4, rounds=3)
        timings = run_case(case, engines, tell=quiet)
        assert timings.failed == {"peer": "peer: broken"}
        assert timings.seconds == {OWN: [0.5] * 3}
        row = make_row(case, timings)
        assert row["ratio_to_best_peer"] is None
        assert row["failed"] == {"peer": "peer: broken"}


CHILD = """
import json, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "end":
        print("last words", file=sys.stderr)
        sys.exit(3)
    if asked["do"] == "sleep":
        time.sleep(60)
    print(json.dumps({"error": "no"} if asked["do"] == "fail" else asked), flush=True)
"""


@pytest.fixture(name="child")
def _child(tmp_path: Path) -> Any:
    with Child("peer", [sys.executable, "-c", CHILD], tmp_path / "log") as child:
        yield child


class TestChildren:
    def test_a_child_answers(self, child: Child) -> None:
        assert child.ask("steps", count=3) == {"do": "steps", "count": 3}
        assert child.ask("stop") == {"do": "stop"}

    @pytest.mark.parametrize(
        ("do", "limit", "why"),
        [("fail", 60.0, "no"), ("end", 60.0, "code 3: last words"), ("sleep", 0.2, "no answer")],
    )
    def test_what_goes_wrong_is_told(self, child: Child, do: str, limit: float, why: str) -> None:
        child.ask("load")
        with pytest.raises(BackendUnavailable, match=why):
            child.ask(do, limit)

    def test_prompts_are_the_same_for_every_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(ROOT / "scripts" / "peers"))
        from wire import FIRST_ID, prompts  # type: ignore[import-not-found]

        made = prompts(7, 3, 40, 100)
        assert made == prompts(7, 3, 40, 100) != prompts(8, 3, 40, 100)
        assert [len(prompt) for prompt in made] == [40] * 3
        assert all(FIRST_ID <= token < 100 for prompt in made for token in prompt)


def test_an_engine_that_failed_with_one_model_takes_part_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = EngineBench(tmp_path, tmp_path, ["transformers"], 1, Store(None, SETTINGS), quiet)
    bench.prepare()
    broken = {"m135"}

    def child(self: EngineBench, stack: object, peer: Any, model: str) -> str:
        if peer.name != OWN and model in broken:
            raise BackendUnavailable("broken", remedy="Mend it.")
        return f"{peer.name} with {model}"

    monkeypatch.setattr(EngineBench, "_child", child)
    found = []
    for model in ("m135", "m600"):
        with bench.children(model) as engines:
            found.append((sorted(engines), dict(bench._missing)))
    assert found == [([OWN], {"transformers": "broken"}), ([OWN, "transformers"], {})]


SETTINGS = {"settings": {"threads": 2}, "command": "bench", "machine": {"processor": "P"}}


class TestStore:
    def test_another_run_goes_on(self, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        store = Store(path, SETTINGS)
        store.add({"name": "row"})
        store.note("host", {"value": 1.0})
        again = Store(path, SETTINGS)
        assert again.has("row")
        assert again.has("host")
        assert not again.has("other")

    @pytest.mark.parametrize(
        "change", [lambda text: text.replace("2", "1"), lambda text: text[:9], lambda text: "[]"]
    )
    def test_other_results_are_not_mixed_in(
        self, tmp_path: Path, change: Callable[[str], str]
    ) -> None:
        path = tmp_path / "results.json"
        Store(path, SETTINGS).add({"name": "row"})
        path.write_text(change(path.read_text()))
        with pytest.raises(ConfigError, match="something else"):
            Store(path, SETTINGS)


def test_few_page_slots_are_lost() -> None:
    lost = fragmentation(sequences=32)
    assert 0 < lost <= PARTS["fragmentation"].target


@pytest.fixture(name="kept")
def _kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks/results/engine-cpu.json").read_text())
    return found


class TestTables:
    def test_the_readme_is_made_from_the_kept_results(self, kept: dict[str, Any]) -> None:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        assert document(text, kept) == text, "README.md is stale: run scripts/engine-doc"

    def test_both_tables_tell_every_row_and_what_is_missing(self, kept: dict[str, Any]) -> None:
        for text in (markdown(kept), plain(kept)):
            for row in kept["rows"]:
                assert row["name"] in text
                assert all(why in text for why in row["failed"].values())
            for entry in kept["measures"].values():
                assert entry["what"] in text

    def test_a_document_with_other_marks_is_refused(self, kept: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="unpack"):
            document(f"{MARKS.begin} {MARKS.begin} {MARKS.end}", kept)
