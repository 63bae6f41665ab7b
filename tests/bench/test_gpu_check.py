"""The GPU check: its bounds, its workload, its plan, and the whole command on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.bench import gpu_roofline as roofline
from agentrt.bench.gpu_check import Check, Options, source_digest
from agentrt.bench.gpu_measures import ROWS
from agentrt.bench.gpu_plan import Figure, Plan, Row, chosen, done, finish, keep, table_row
from agentrt.bench.gpu_profile import Span, idle_share, kernel_table
from agentrt.bench.gpu_shapes import CONFIGS, gpu_shape
from agentrt.bench.gpu_table import MARKS, NOTHING, markdown, plain
from agentrt.bench.gpu_workload import requests
from agentrt.errors import BackendUnavailable, ConfigError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu-check"
ASSUMED = roofline.Rates(copy=4.3e12, matrix=0.75e15)


class TestRooflines:
    """Against figures of the published rooflines for these rates."""

    @pytest.mark.parametrize(
        ("name", "weights", "kv", "one", "some", "many"),
        [("0.6B", 1.19e9, 112, 3284, 31.6e3, 35.2e3), ("8B", 15.14e9, 144, 281, 11.1e3, 20.5e3)],
    )
    def test_decoding(self, name, weights, kv, one, some, many):
        config = gpu_shape(name)
        assert roofline.weight_bytes(config) == pytest.approx(weights, rel=0.002)
        assert config.kv_bytes_per_token("bfloat16") == kv * 1024
        for batch, rate in ((1, one), (64, some), (256, many)):
            seconds = roofline.decode_seconds(config, batch, 1024, ASSUMED.copy)
            assert batch / seconds == pytest.approx(rate, rel=0.005)

    @pytest.mark.parametrize(("name", "seconds"), [("0.6B", 3.68), ("8B", 10.40)])
    def test_the_requests(self, name, seconds):
        ideal = roofline.ideal_seconds(gpu_shape(name), requests(), ASSUMED)
        assert ideal == pytest.approx(seconds, abs=0.005)

    def test_a_prompt(self):
        config = gpu_shape("8B")
        weights = config.parameters - 2 * config.vocab_size * config.hidden_size
        short = roofline.prefill_operations(config, 1)
        assert short == 2 * weights + 2 * 36 * 32 * 128
        long = roofline.prefill_operations(config, 8192)
        assert long == 2 * weights * 8192 + 2 * 36 * 32 * 128 * 8192**2

    def test_narrower_numbers_are_read_faster(self):
        config = gpu_shape("8B")
        table = config.vocab_size * config.hidden_size
        layers = config.parameters - 2 * table
        # The layers in eight bits with few scales, the head in sixteen, of the embedding some rows.
        read = roofline.step_bytes(config, 2, 10, "fp8", 5)
        assert read == pytest.approx(layers + 2 * table + 100, rel=0.001)


class TestWorkload:
    def test_it_is_the_published_one(self):
        made = requests()
        assert len(made) == 256
        assert sum(one.input for one in made) == 142_827
        assert sum(one.output for one in made) == 133_966
        assert all(100 <= one.input <= 1024 and 100 <= one.output <= 1024 for one in made)

    def test_a_small_vocabulary_changes_no_length(self):
        small = requests(vocabulary=64)
        assert [one.input for one in small] == [one.input for one in requests()]
        assert max(max(one.prompt) for one in small) < 64


SHARE = Row("a", "A", "tokens/s", "share", 0.8, seconds=10)
MOST = Row("b", "B", "ms", "most", 1.0, seconds=20)
LEAST = Row("c", "C", "times", "least", 20.0, seconds=40)
TOLD = Row("d", "D", "ms", seconds=5)


class TestPlan:
    @pytest.mark.parametrize(
        ("row", "figure", "ratio", "met"),
        [
            (SHARE, Figure(80, 100), 0.8, True),
            (SHARE, Figure(79, 100), 0.79, False),
            (SHARE, Figure(79), None, False),
            (MOST, Figure(1.0, 0.5, smaller=True), 0.5, True),
            (MOST, Figure(1.1, 0.5, smaller=True), 0.5 / 1.1, False),
            (LEAST, Figure(19.0), None, False),
            (LEAST, Figure(20.0), None, True),
            (TOLD, Figure(3.0, 1.5, smaller=True), 0.5, None),
        ],
    )
    def test_a_figure_meets_its_target_or_not(self, row, figure, ratio, met):
        entry = done(row, figure, 1.0)
        assert (entry["ratio"], entry["met"]) == (ratio, met)
        assert {"name", "value", "unit", "target", "bound", "note"} <= entry.keys()

    @given(st.lists(st.floats(0.1, 100), max_size=8), st.floats(0, 200), st.floats(0, 200))
    def test_what_fits_ends_in_time_and_in_order(self, seconds, now, until):
        rows = [Row(str(i), "", "", seconds=each) for i, each in enumerate(seconds)]
        plan = Plan(rows, {"1": {}}, until)
        fits = plan.fitting(now)
        assert now + sum(row.seconds for row in fits) <= until or not fits
        assert [row.name for row in fits] == sorted(row.name for row in fits)
        assert all(row.name != "1" for row in fits)
        shortest = min((row.seconds for row in plan.left()), default=None)
        assert bool(fits) or shortest is None or now + shortest > until

    def test_rows_of_the_same_machine_and_sources_are_kept(self):
        good, bad = done(TOLD, Figure(1.0), 2.0), finish(MOST, "it broke", failed=True)
        found = {"key": {"device": "x"}, "rows": [good, bad]}
        assert keep(found, {"device": "x"}) == [good]
        assert keep(found, {"device": "y"}) == []
        assert keep(None, {}) == []

    def test_rows_are_named_by_their_beginning(self):
        assert [row.name for row in chosen(ROWS, "decode-, kernel")] == [
            "decode-1",
            "decode-64",
            "decode-256",
            "kernel",
        ]
        assert chosen(ROWS, "") == ROWS
        with pytest.raises(ConfigError, match=r"no row 'decade'.*throughput-8B"):
            chosen(ROWS, "decode,decade")

    def test_the_rows_with_targets_take_less_than_a_run_has(self):
        assert sum(row.seconds for row in ROWS if row.target is not None) < 540 - 150
        assert len({row.name for row in ROWS}) == len(ROWS)


class TestProfiles:
    def test_idle_is_what_no_kernel_covers(self):
        spans = [Span("a", 0, 10), Span("b", 5, 12), Span("c", 6, 8), Span("a", 17, 20)]
        assert idle_share(reversed(spans)) == pytest.approx(5 / 20)
        with pytest.raises(ValueError, match="nothing ran"):
            idle_share([])

    def test_the_table_has_the_longest_first(self):
        text = kernel_table([Span("a", 0, 1000), Span("b", 0, 4000), Span("a", 0, 2000)])
        lines = text.splitlines()
        assert [line.split()[-1] for line in lines] == ["kernel", "b", "a"]
        assert lines[2].split() == ["42.9%", "3.000", "2", "a"]


def results(**changes):
    rows = [done(SHARE, Figure(90, 100, "note"), 1.0), finish(MOST, "it broke", failed=True)]
    rows.append({**done(LEAST, Figure(2.0), 1.0), "profile": "gpu.profiles/c.txt"})
    return {
        "command": "scripts/gpu-check",
        "dry": False,
        "device": "Some GPU",
        "driver": "1.2",
        "versions": {"torch": "2.11", "triton": "3.6"},
        "commit": "abc",
        "rates": {"copy": 4.3e12, "matrix": 0.75e15},
        "rows": rows,
        "left": ["d"],
        **changes,
    }


class TestTable:
    def test_the_readme_is_made_from_the_kept_results(self):
        kept = ROOT / "benchmarks" / "results" / "gpu.json"
        found = json.loads(kept.read_text()) if kept.exists() else None
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        assert MARKS.renew(text, markdown(found)) == text, "README.md is stale: run scripts/gpu-doc"

    def test_both_forms_tell_every_row_and_where_it_was_measured(self):
        for text in (plain(results()), markdown(results())):
            for part in ("Some GPU", "driver 1.2", "4.30 TB/s", "750 TFLOP/s", "abc"):
                assert part in text
            for part in ("90%", "met; note", "it broke", "missed"):
                assert part in text
        assert "left for the next run: d" in plain(results())
        assert "(benchmarks/results/gpu.profiles/c.txt)" in markdown(results())

    def test_a_dry_run_says_so_first(self):
        assert plain(results(dry=True)).startswith("DRY RUN")

    def test_without_results_the_readme_says_that_there_are_none(self):
        assert markdown(None) == markdown(results(rows=[])) == NOTHING

    @pytest.mark.parametrize(
        ("value", "unit", "cell"),
        [
            (0.031, "share", "3.1%"),
            (1.234, "ms", "1.23 ms"),
            (12345.6, "tokens/s", "12,346 tokens/s"),
        ],
    )
    def test_values_have_their_unit(self, value, unit, cell):
        assert table_row(done(replace(TOLD, unit=unit), Figure(value), 0.0))[1] == cell


BLOCKED = """\
import sys
from importlib.machinery import PathFinder
ALLOWED = {allowed}
class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        known = top in ALLOWED or top in sys.stdlib_module_names or "sysconfigdata" in top
        # What is not there at all may be looked for.
        if path is None and not known and PathFinder.find_spec(name) is not None:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Only())
"""
GIVEN = """
torch triton transformers tokenizers safetensors jinja2 anyio psutil numpy prometheus_client httpx
pytest hypothesis agentrt tests
"""
OWN_NEEDS = """
typing_extensions torchgen functorch sympy mpmath networkx filelock fsspec markupsafe idna sniffio
_pytest pluggy iniconfig packaging pygments tqdm yaml sortedcontainers attr attrs py exceptiongroup
_distutils_hack setuptools scipy ml_dtypes optree opt_einsum _hypothesis_globals
_hypothesis_pytestplugin _hypothesis_ftz_detector
"""
"""What torch, triton, numpy, anyio, jinja2, pytest and hypothesis import themselves."""


def run(*arguments, timeout=110, **environment):
    command = [sys.executable, str(SCRIPT), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=env, check=False
    )


class TestCommand:
    def test_a_dry_run_walks_every_row_with_no_other_package(self, tmp_path):
        blocks = tmp_path / "blocks"
        blocks.mkdir()
        allowed = {*GIVEN.split(), *OWN_NEEDS.split()}
        (blocks / "sitecustomize.py").write_text(BLOCKED.format(allowed=allowed))
        out = tmp_path / "gpu.json"
        # Installed plugins of pytest and hypothesis are other packages, too.
        only = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HYPOTHESIS_NO_PLUGINS": "1"}
        only["PYTHONPATH"] = str(blocks)
        done = run("--dry-run", "--out", str(out), **only)
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(out.read_text())
        assert [row["name"] for row in found["rows"]] == [row.name for row in ROWS]
        assert all(row["value"] > 0 for row in found["rows"])
        assert found["left"] == []
        assert found["tests"]["failed"] == 0
        assert {"commit", "machine", "versions", "driver", "rates"} <= found.keys()
        missed = [row for row in found["rows"] if row["met"] is False]
        assert missed
        for row in missed:
            if "profile" in row:
                assert (tmp_path / row["profile"]).read_text().count("\n") > 1
        assert done.stdout.startswith("DRY RUN")
        # Nothing is measured twice on the same machine and sources.
        again = run("--dry-run", "--out", str(out), "--json")
        assert again.returncode == 0
        assert "tests have passed already" in again.stderr
        assert f"{len(ROWS)} rows are there already" in again.stderr
        assert json.loads(again.stdout)["rows"] == found["rows"]

    def test_ctrl_c_keeps_what_there_is(self, tmp_path):
        out = tmp_path / "gpu.json"
        command = [sys.executable, str(SCRIPT), "--dry-run", "--no-tests", "--out", str(out)]
        process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A suite that was started in the background ignores it, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        first = ROWS[0].name
        for line in process.stderr:
            if line.startswith(f"{first}: ") and "…" not in line:
                break
        process.send_signal(signal.SIGINT)
        text, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "the same command goes on" in said
        found = json.loads(out.read_text())
        assert [row["name"] for row in found["rows"]][:1] == [first]
        assert ROWS[0].title in text

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--rows", "nothing"], "There is no row 'nothing'"),
            (["--budget", "3"], "3 s are too few"),
            (["--dry-run"], "Name a file for them with --out"),
            (["--what"], "unrecognized arguments: --what"),
        ],
    )
    def test_wrong_flags_are_refused(self, arguments, said):
        done = run(*arguments)
        assert done.returncode != 0
        assert said in done.stderr
        assert "Traceback" not in done.stderr

    def test_the_rows_are_listed(self):
        done = run("--list")
        assert done.returncode == 0
        assert [line.split()[0] for line in done.stdout.splitlines()] == [row.name for row in ROWS]


class TestCheck:
    def test_a_worker_that_cannot_start_is_an_error_with_a_remedy(self, tmp_path, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        options = Options(ROOT, tmp_path / "gpu.json", ROWS[:1], 100.0, tests=False)
        said: list[str] = []
        with pytest.raises(BackendUnavailable, match=r"did not say hello.*--dry-run"):
            Check(options, said.append).run()

    def test_the_budget_is_kept(self, tmp_path):
        clock = iter(range(0, 10_000, 50))
        options = Options(ROOT, tmp_path / "gpu.json", ROWS, 40.0, dry=True, tests=False)
        check = Check(options, lambda text: None, clock=lambda: float(next(clock)))
        assert check._next() is None
        assert [row.name for row in check._plan.left()] == [row.name for row in ROWS]

    def test_the_digest_tells_sources_apart(self, tmp_path):
        (tmp_path / "engine").mkdir()
        (tmp_path / "agentrt").mkdir()
        file = tmp_path / "engine" / "x.py"
        file.write_text("1")
        first = source_digest(tmp_path)
        assert source_digest(tmp_path) == first
        file.write_text("2")
        assert source_digest(tmp_path) != first


def test_the_true_shapes_have_their_published_sizes():
    assert gpu_shape("8B").parameters == pytest.approx(8.19e9, rel=0.002)
    assert gpu_shape("0.6B").parameters == pytest.approx(0.596e9, rel=0.002)
    assert set(CONFIGS) == {"8B", "0.6B", "tiny-untied", "tiny-tied"}
