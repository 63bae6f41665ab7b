"""``agentrt model plan``: the plan that serving would make, from headers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentrt.cli.main import main
from agentrt.engine.model.make import make_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    make_model(directory, "qwen3", "tiny", 0)
    return directory


def plan(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    with pytest.raises(SystemExit) as ended:
        main(["model", "plan", "--json", *map(str, arguments)])
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_a_plan_adds_up(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    told = plan(capsys, f"a={tiny}", f"b={tiny}", "--device-bytes", "4g")
    taken = ("weights", "activations", "graphs", "workspace", "kv")
    total = sum(model[part] for model in told["models"] for part in taken)
    assert [model["name"] for model in told["models"]] == ["a", "b"]
    assert 0 <= 4 * 2**30 - told["reserve"] - total < 2**20
    assert all(model["resident"] and model["graphs"] for model in told["models"])


def test_fp8_takes_less(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    wide, narrow = (
        plan(capsys, tiny, "--device-bytes", "4g", *more)["models"][0]["weights"]
        for more in ((), ("--quant", "fp8"))
    )
    assert narrow < wide


def test_what_cannot_fit_ends_with_a_remedy(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["model", "plan", str(tiny), "--device-bytes", "600m", "--pool", "1000000"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "tiny: the weights take" in said
    assert "600 MiB are named by --device-bytes" in said
    assert "--kv-dtype fp8" not in said
    assert "a smaller --pool (at most" in said


def test_equal_names_are_refused(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["model", "plan", str(tiny), str(tiny)])
    assert ended.value.code == 2
    assert "Two models are named 'tiny'" in capsys.readouterr().err
