"""Costs measured on this machine: what is measured, what is made of it, what is remembered."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.bench.store import write_json
from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.measure import CostPoints, machine_key, measure, measure_decode, measured
from agentrt.engine.model.weights import load_model
from agentrt.engine.tiers.host import HostTier
from agentrt.errors import ConfigError
from agentrt.scheduling import OnlinePrefillCost, make_policy
from agentrt.scheduling.curves import PrefillCurve, ReloadCurve
from agentrt.scheduling.surroundings import Surroundings
from agentrt.simulation.fit import fit, read_points
from agentrt.tiering import measured_points

SECONDS = st.floats(1e-9, 1e-3)


@pytest.fixture(scope="module")
def model(tiny_models):
    return load_model(tiny_models("qwen3"))


def parts(model, pages=64):
    attention = TorchPagedAttention(model.config, pages, 4, model.dtype)
    return attention, HostTier(attention.page_tensors, 32)


class TestCurves:
    @settings(deadline=None)
    @given(st.floats(1e-4, 0.1), SECONDS, st.floats(1e-12, 1e-6))
    def test_a_prefill_curve_goes_through_its_points(self, step, token, pair):
        def seconds(count, cached):
            pairs = count * (2 * cached + count + 1) / 2
            return step + token * count + pair * pairs

        sizes = ((16, 0), (512, 0), (512, 2048))
        curve = PrefillCurve.of([(n, c, seconds(n, c)) for n, c in sizes], 512)
        assert curve(512) == pytest.approx(seconds(512, 0), rel=1e-6)
        assert curve(16) == pytest.approx(seconds(16, 0), rel=1e-6)
        whole = sum(seconds(512, cached) for cached in range(0, 4096, 512))
        assert curve(4096) == pytest.approx(whole, rel=0.01)

    @settings(deadline=None)
    @given(st.lists(st.floats(1e-6, 10), min_size=3, max_size=3), st.integers(1, 100_000))
    def test_noise_makes_no_curve_fall_or_go_below_zero(self, times, tokens):
        points = [(16, 0, times[0]), (512, 0, times[1]), (512, 2048, times[2])]
        curve = PrefillCurve.of(points, 512)
        assert 0 < curve(tokens) < curve(tokens + 1)

    @settings(deadline=None)
    @given(st.floats(0, 0.01), SECONDS)
    def test_a_reload_curve_is_the_line_through_its_points(self, base, token):
        curve = ReloadCurve.of([(n, base + token * n) for n in (16, 4096)])
        assert curve(1000) == pytest.approx(base + token * 1000, rel=1e-3, abs=1e-6)
        assert curve(0) == 0

    def test_too_few_points_are_refused(self):
        with pytest.raises(ConfigError, match="no prefill curve"):
            PrefillCurve.of([(16, 0, 1.0), (512, 0, 2.0)], 512)
        with pytest.raises(ConfigError, match="no reload curve"):
            ReloadCurve.of([(16, 1.0)])

    def test_steps_that_are_run_scale_the_curve(self):
        curve = PrefillCurve(0.0, 0.001, 1e-6, 512)
        cost = OnlinePrefillCost(curve=curve)
        assert cost(1000) == curve(1000)
        for _ in range(50):
            cost.observe(256, 256, 3 * curve(256))
        assert cost(1000) == pytest.approx(3 * curve(1000))

    def test_they_decide_what_is_kept_on_the_host(self):
        around = Surroundings(
            prefill_seconds=PrefillCurve(0.0, 1e-6, 1e-7, 512),
            reload_seconds=ReloadCurve(0.0, 1e-4),
        )
        tiering = make_policy("agentrt", around).tiering
        assert not tiering.reload(500)  # quicker to compute
        assert tiering.reload(5000)


class TestMeasuring:
    def test_points_of_a_real_model(self, model):
        attention, tier = parts(model)
        points = measure(model, attention, tier, chunk=64)
        assert [point[:2] for point in points.prefill] == [(16, 0), (64, 0), (64, 192)]
        assert [point[0] for point in points.reload] == [4, 128]
        assert PrefillCurve.of(points.prefill, 64)(200) > 0
        assert ReloadCurve.of(points.reload)(200) > 0
        assert not measure(model, attention, None, chunk=64).reload

    def test_decode_points(self, model):
        attention, _ = parts(model)
        assert [point[:2] for point in measure_decode(model, attention)] == [
            (1, 16),
            (1, 128),
            (8, 128),
            (8, 1024),
        ]

    @pytest.mark.parametrize("pages", [1, 2, 5])
    def test_small_pools_have_points_too(self, model, pages):
        attention, _ = parts(model, pages)
        points = measure(model, attention, None, chunk=512)
        if pages > 1:
            assert PrefillCurve.of(points.prefill, 512)(10) > 0
        assert all(count + cached <= pages * 4 for count, cached, _ in points.prefill)

    def test_the_file_can_be_fitted(self, tiny_models, tmp_path):
        file = tmp_path / "points.json"
        write_json(file, measured_points(tiny_models("qwen3"), "float32", 512))
        steps, reloads, rest = read_points(file)
        assert len(steps) == 7
        assert len(reloads) == 2
        assert fit(steps, reloads, kv_token_bytes=rest["kv_token_bytes"]).cost.step_seconds > 0

    def test_another_dtype_is_refused(self, tiny_models):
        with pytest.raises(ConfigError, match="no dtype"):
            measured_points(tiny_models("qwen3"), "int3", 512)


class TestRemembering:
    POINTS = CostPoints(((16, 0, 0.1), (64, 0, 0.2), (64, 32, 0.3)), ((4, 0.1),), "test")
    PLAIN = CostPoints(POINTS.prefill, (), "test")

    def test_it_is_measured_once(self, tmp_path):
        file = tmp_path / "deep" / "costs.json"
        assert measured(file, lambda: self.POINTS, reload=True) == self.POINTS
        assert measured(file, self.fail, reload=True) == self.POINTS
        assert [one.name for one in file.parent.iterdir()] == ["costs.json"]

    def test_and_again_when_there_is_a_host_tier_now(self, tmp_path):
        file = tmp_path / "costs.json"
        measured(file, lambda: self.PLAIN, reload=False)
        assert measured(file, lambda: self.POINTS, reload=True) == self.POINTS
        assert measured(file, self.fail, reload=False) == self.POINTS

    @pytest.mark.parametrize(
        "content", ["", "[]", "{}", json.dumps(PLAIN.to_json() | {"prefill": [[1, 0, -1]]})]
    )
    def test_a_damaged_file_is_said_and_replaced(self, tmp_path, caplog, content):
        file = tmp_path / "costs.json"
        file.write_text(content)
        assert measured(file, lambda: self.PLAIN, reload=False) == self.PLAIN
        assert "measured again" in caplog.text
        assert measured(file, self.fail, reload=False) == self.PLAIN

    def test_a_place_that_cannot_be_written_is_said(self, tmp_path, caplog):
        (tmp_path / "file").write_text("")
        assert measured(tmp_path / "file" / "costs.json", lambda: self.PLAIN, reload=False)
        assert "cannot be kept" in caplog.text

    def test_the_key_is_of_machine_model_and_settings(self, model, tiny_models):
        attention, _ = parts(model)
        key = machine_key(model, attention, attention.page_tensors, 512)
        assert key == machine_key(model, attention, attention.page_tensors, 512)
        assert key != machine_key(model, attention, attention.page_tensors, 256)
        other = load_model(tiny_models("llama"))
        assert key != machine_key(other, attention, attention.page_tensors, 512)

    @staticmethod
    def fail():
        raise AssertionError("measured again")
