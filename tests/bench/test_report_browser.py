"""The page's script in a real browser: it runs without an error and shows what the data says."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from agentrt.bench.records import PinRecord, RunRecord
from agentrt.bench.report import render_page
from agentrt.bench.report_data import pack_run
from agentrt.bench.report_html import script_json
from agentrt.bench.report_page import comparison_page, run_page
from tests.bench.report_samples import NASTY, comparison_of, empty_run, sample_run, tool, turn

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")

FLAGS = shlex.split(
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --window-size=1400,1000 "
    "--virtual-time-budget=4000 --dump-dom"
)


def dump(text: str, folder: Path, view: str = "") -> str:
    """Open ``text`` in the browser and return the document as its scripts left it."""
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    command = [
        str(BROWSER),
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"{path.as_uri()}#{view}",
    ]
    done = subprocess.run(command, capture_output=True, timeout=90, check=True)
    return done.stdout.decode("utf-8", "replace")


def with_script(text: str, source: str) -> str:
    """Add a script that acts on the page as a reader would."""
    return text.replace("</body>", f"<script>{source}</script></body>")


def assert_ran(document: str) -> None:
    error = re.search(r'<html[^>]*data-error="([^"]*)"', document)
    assert error is None, error and error.group(1)
    assert re.search(r'<html[^>]*data-ready="yes"', document)


HOVER = """
const canvas = document.querySelector('[data-part=canvas]');
const box = canvas.getBoundingClientRect();
const at = (x, y) => canvas.dispatchEvent(new PointerEvent('pointermove',
  {bubbles: true, clientX: box.left + x, clientY: box.top + y}));
"""


def test_a_comparison_draws_and_answers_the_pointer(tmp_path):
    runs = [sample_run(name, programs=6, turns=8) for name in ("fcfs", "fixed-ttl=30")]
    text = render_page(comparison_page(comparison_of(runs)))
    source = HOVER + (
        "document.querySelector('[data-policy=fcfs]').click();"
        "for (const step of ['in', 'left', 'right', 'out', 'fit'])"
        "  document.querySelector(`[data-step=${step}]`).click();"
        "canvas.dispatchEvent(new WheelEvent('wheel',"
        "  {bubbles: true, cancelable: true, ctrlKey: true, deltaY: -50, clientX: 700}));"
        "for (const part of ['pool', 'load', 'axis'])"
        "  document.querySelector(`[data-part=${part}]`).dispatchEvent("
        "    new PointerEvent('pointermove', {bubbles: true, clientX: 700, clientY: 5}));"
        "at(20, 5);"
    )
    document = dump(with_script(text, source), tmp_path)
    assert_ran(document)
    assert re.search(r'data-policy="fcfs" aria-pressed="true"', document)
    assert re.search(r'class="tip-program">program-\d<', document)


def test_the_empty_and_the_nasty(tmp_path):
    run = empty_run()
    run.turns.append(turn(NASTY, text=NASTY, admitted=None, first_token=None, reason="cancelled"))
    text = render_page(run_page(run, title=NASTY, headline=NASTY))
    document = dump(with_script(text, HOVER + "at(700, 10);"), tmp_path)
    assert_ran(document)
    assert "turn 1, first of its context: queue" in document
    assert "&lt;/script&gt;&lt;img" in document
    assert "<img" not in document


def test_a_run_without_anything(tmp_path):
    assert_ran(dump(render_page(run_page(empty_run(), title="t", headline="h")), tmp_path))


def test_a_linked_view_opens_as_asked(tmp_path):
    runs = [sample_run(name, seed=seed) for name in ("a", "b") for seed in (1, 2)]
    text = render_page(comparison_page(comparison_of(runs)))
    document = dump(text, tmp_path, "theme=dark&policy=b&seed=2&from=1&to=3&rows=tall")
    assert_ran(document)
    assert re.search(r'<html[^>]*data-theme="dark"', document)
    assert re.search(r'data-policy="b" aria-pressed="true"', document)


def decoded(run: RunRecord, folder: Path) -> Any:
    """Return what decode.js makes of a packed run."""
    source = files("agentrt.bench").joinpath("assets", "decode.js").read_text(encoding="utf-8")
    page = (
        '<!doctype html><meta charset="utf-8"><pre></pre>'
        f'<script type="application/json" id="run">{script_json(pack_run(run))}</script>'
        f"<script>{source}\nconst run = decodeRun(readJson('run'));"
        "document.querySelector('pre').textContent = JSON.stringify(run);</script>"
    )
    found = re.search(r"<pre>(.*?)</pre>", dump(page, folder), re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found.group(1)))


def test_the_script_reads_what_python_wrote(tmp_path):
    run = sample_run(programs=4, turns=5)
    run.turns.append(
        turn(
            "program-0",
            9,
            context="side",
            submitted=2.0,
            finished=90.0,
            preemptions=2,
            admitted=3.0,
            first_token=5.0,
            queue_seconds=41.0,
            prefill_seconds=2.0,
            decode_seconds=45.0,
        )
    )
    run.tools.append(tool("program-2", start=1.0, end=2.0, exit_code=1, peak_memory=12_345_678))
    run.pins.append(PinRecord("program-3", "main", 1.0, 2.0, 0.5, 77, "expired"))
    read = decoded(run, tmp_path)
    names = [row["name"] for row in read["programs"]]
    by_key = {
        (names[lane["program"]], lane["context"], row["index"]): row
        for lane in read["lanes"]
        for row in lane["turns"]
    }
    assert len(by_key) == len(run.turns)
    for record in run.turns:
        row = by_key[record.program, record.context, record.index]
        assert row["start"] == pytest.approx(record.submitted, abs=0.002)
        assert row["token"] == pytest.approx(record.first_token, abs=0.002)
        assert row["end"] == pytest.approx(record.finished, abs=0.002)
        assert row["queue"] == pytest.approx(record.queue_seconds, abs=0.01)
        assert row["decode"] == pytest.approx(record.decode_seconds, abs=0.01)
        assert row["prefill"] == pytest.approx(record.prefill_seconds, abs=0.02)
        assert (row["prompt"], row["cached"]) == (record.prompt_tokens, record.cached_tokens)
        assert row["prefilled"] == record.prefilled_tokens
    assert [row["memory"] for row in read["measured"]] == [12_345_678]
    outcomes = [pin["outcome"] for lane in read["lanes"] for pin in lane["pins"]]
    assert outcomes.count("expired") == 1
    assert read["kv"]["leased"] == [row.leased for row in run.kv]
