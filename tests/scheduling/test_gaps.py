"""Return times: distributions against brute force, back-off, bounds, and what events correct."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrt.scheduling.gap_waits import PACE, GapWatch
from agentrt.scheduling.gaps import GapConfig, GapDistribution, GapKey, GapModel, Lomax

FINE = 1e-9
TAIL = Lomax()
gaps = st.floats(0.0, 500.0).map(lambda gap: round(gap, 3))
samples = st.lists(gaps, min_size=1, max_size=25)
parts = st.lists(samples, min_size=1, max_size=3)
times = st.floats(0.0, 600.0)


def mixture(sets: list[list[float]], tail_weight: float) -> GapDistribution:
    weight = (1.0 - tail_weight) / len(sets)
    return GapDistribution([(sorted(each), weight) for each in sets], TAIL, tail_weight)


class BruteForce:
    """The same mixture, summed sample by sample."""

    def __init__(self, sets: list[list[float]], tail_weight: float) -> None:
        self.tail_weight = tail_weight
        share = (1.0 - tail_weight) / len(sets)
        self.points = [(gap, share / len(each)) for each in sets for gap in each]

    def survival(self, t: float) -> float:
        after = sum(mass for gap, mass in self.points if gap > t)
        return after + self.tail_weight * TAIL.survival(t)

    def excess(self, t: float) -> float:
        after = sum(mass * (gap - t) for gap, mass in self.points if gap > t)
        return after + self.tail_weight * TAIL.excess(t)


class TestDistribution:
    @settings(deadline=None, max_examples=100)
    @given(parts, st.floats(0.01, 1.0), times, times)
    def test_answers_equal_brute_force(
        self, sets: list[list[float]], tail_weight: float, waited: float, tau: float
    ) -> None:
        made, brute = mixture(sets, tail_weight), BruteForce(sets, tail_weight)
        left = brute.survival(waited)
        assert made.survival(waited) == pytest.approx(left)
        within = 1 - brute.survival(waited + tau) / left
        assert made.within(tau, waited) == pytest.approx(within, abs=FINE)
        assert made.remaining(waited) == pytest.approx(brute.excess(waited) / left)
        held = (brute.excess(waited) - brute.excess(waited + tau)) / left
        assert made.hold(tau, waited) == pytest.approx(held, abs=1e-6)

    @settings(deadline=None, max_examples=100)
    @given(parts, st.floats(0.01, 1.0), times, st.floats(0.0, 0.999))
    def test_a_quantile_is_the_least_time_that_is_enough(
        self, sets: list[list[float]], tail_weight: float, waited: float, p: float
    ) -> None:
        made, brute = mixture(sets, tail_weight), BruteForce(sets, tail_weight)
        at = made.quantile(p, waited)
        target = (1 - p) * brute.survival(waited)
        assert brute.survival(waited + at + 1e-6) <= target + FINE
        if at > 1e-5:
            assert brute.survival(waited + at - 1e-5) >= target - FINE

    @settings(deadline=None, max_examples=100)
    @given(parts, st.floats(0.001, 0.05), times, st.floats(0.0, 100.0))
    def test_the_best_ttl_is_best_among_the_samples(
        self, sets: list[list[float]], tail_weight: float, waited: float, benefit: float
    ) -> None:
        made = mixture(sets, tail_weight)

        def worth(tau: float) -> float:
            return made.within(tau, waited) * benefit - made.hold(tau, waited)

        best = worth(made.best_ttl(benefit, waited))
        assert best >= -1e-6
        assert all(
            worth(gap - waited) <= best + 1e-6 for each in sets for gap in each if gap > waited
        )

    def test_the_prior_alone(self) -> None:
        alone = GapDistribution([], TAIL, 1.0)
        assert alone.quantile(0.5) == pytest.approx(TAIL.scale * (2**0.5 - 1))
        assert alone.remaining(10.0) == pytest.approx(TAIL.scale + 10.0)
        assert alone.best_ttl(5.0) == pytest.approx(TAIL.pays_until(5.0))
        assert alone.best_ttl(0.5) == 0.0

    def test_two_modes_told_apart_by_waiting(self) -> None:
        made = mixture([[0.03] * 9 + [7.5]], 0.01)
        assert made.quantile(0.5) == 0.03
        assert made.quantile(0.5, waited=0.1) == pytest.approx(7.4)
        assert made.best_ttl(2.0) == 0.03
        assert made.best_ttl(2.0, waited=0.1) == 0.0


class TestModel:
    def test_nothing_is_known_at_first(self) -> None:
        assert GapModel().distribution(GapKey("bash")).quantile(0.5) == pytest.approx(
            GapConfig().prior.inverse(0.5)
        )

    def test_a_finer_level_outweighs_as_it_grows(self) -> None:
        model = GapModel()
        for _ in range(50):
            model.add(GapKey("bash", "git"), 0.1)
        unseen = model.distribution(GapKey("bash", "test"))
        assert unseen.quantile(0.5) == 0.1  # from the tool
        for _ in range(50):
            model.add(GapKey("bash", "test"), 8.0)
        assert model.distribution(GapKey("bash", "test")).quantile(0.5) == 8.0
        assert model.distribution(GapKey("bash", "git")).quantile(0.5) == 0.1

    def test_a_program_has_a_history_of_its_own_until_it_is_forgotten(self) -> None:
        model = GapModel()
        for _ in range(60):
            model.add(GapKey("bash", program="quick"), 0.1)
            model.add(GapKey("bash", program="slow"), 9.0)
        assert model.distribution(GapKey("bash", program="quick")).quantile(0.5) == 0.1
        assert model.distribution(GapKey("bash", program="slow")).quantile(0.5) == 9.0
        levels = len(model)
        model.forget("quick")
        assert len(model) == levels - 1
        within = model.distribution(GapKey("bash", program="quick")).within(0.2)
        assert 0.4 < within < 0.6

    def test_the_window_forgets_what_is_old(self) -> None:
        model = GapModel(GapConfig(window=16, total_window=16))
        for gap in [5.0] * 100 + [0.5] * 16:
            model.add(GapKey("bash"), gap)
        assert model.distribution(GapKey("bash")).within(1.0) > 0.85

    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.tuples(st.text(max_size=3), st.integers(0, 50), gaps), max_size=60))
    def test_memory_is_bounded(self, seen: list[tuple[str, int, float]]) -> None:
        model = GapModel(GapConfig(max_keys=8))
        for tool, program, gap in seen:
            key = GapKey(tool, "k", "a", str(program))
            model.add(key, gap)
            model.distribution(key)
            assert len(model) <= 8
            assert len(model._made) <= 8
            assert model._added.keys() == model._levels.keys()

    def test_keys_from_the_names_that_hints_use(self) -> None:
        assert GapKey.of("bash:test", "coder", "p") == GapKey("bash", "test", "coder", "p")
        assert GapKey.of(None) == GapKey()


def taught(tool: str, gap: float, count: int = 40) -> GapWatch:
    watch = GapWatch()
    for _ in range(count):
        watch.left("other", GapKey(tool), 0.0)
        watch.returned("other", gap)
    return watch


class TestWatch:
    def test_a_gap_is_learned_and_scored(self) -> None:
        watch = taught("bash", 4.0)
        assert watch.left("c", GapKey("bash"), 100.0).quantile(0.5) == 4.0
        assert watch.returned("c", 104.0) == 4.0
        assert watch.returned("c", 105.0) is None
        assert watch.scores.scored == 41
        assert watch.scores.coverage(0.9) > 0.9
        assert len(watch) == 0

    def test_an_exit_makes_the_return_imminent(self) -> None:
        watch = taught("bash", 30.0)
        watch.left("c", GapKey("bash"), 0.0)
        before = watch.forecast("c", 2.0)
        watch.report("c", "ended", 2.0)
        after = watch.forecast("c", 2.0)
        assert before is not None
        assert after is not None
        assert before.quantile(0.5) == pytest.approx(28.0)
        assert after.quantile(0.5) < 0.1
        assert after.within(1.0) > 0.9

    def test_another_process_after_an_exit_goes_on_as_one_gap(self) -> None:
        watch = taught("bash", 30.0)
        watch.left("c", GapKey("bash"), 0.0)
        watch.report("c", "ended", 2.0)
        watch.report("c", "started", 3.0)
        forecast = watch.forecast("c", 4.0)
        assert forecast is not None
        assert forecast.waited == pytest.approx(4.0)

    def test_what_follows_a_kill_is_learned_apart(self) -> None:
        watch = GapWatch()
        for _ in range(30):
            watch.left("c", GapKey("bash"), 0.0)
            watch.report("c", "killed", 5.0)
            watch.returned("c", 7.0)
        watch.left("c", GapKey("bash"), 0.0)
        watch.report("c", "killed", 1.0)
        killed = watch.forecast("c", 1.0)
        assert killed is not None
        assert killed.quantile(0.5) == 2.0

    @pytest.mark.parametrize("state", ["blocked", "throttled", "frozen"])
    def test_a_slower_clock_stretches_what_is_left(self, state: str) -> None:
        watch = taught("bash", 10.0)
        watch.left("c", GapKey("bash"), 0.0)
        watch.report("c", state, 4.0)  # type: ignore[arg-type]
        slow = watch.forecast("c", 6.0)
        assert slow is not None
        assert slow.waited == pytest.approx(4.0 + 2.0 * PACE[state])
        assert slow.quantile(0.5) == pytest.approx((10.0 - slow.waited) / PACE[state])
        watch.report("c", "resumed", 6.0)
        again = watch.forecast("c", 6.0)
        assert again is not None
        assert again.quantile(0.5) == pytest.approx(10.0 - slow.waited)

    def test_a_freeze_teaches_nothing_about_the_tool(self) -> None:
        watch = GapWatch()
        for _ in range(30):
            watch.left("c", GapKey("bash"), 0.0)
            watch.report("c", "frozen", 1.0)
            watch.report("c", "resumed", 101.0)
            assert watch.returned("c", 102.0) == 102.0
        assert watch.left("c", GapKey("bash"), 0.0).quantile(0.5) == pytest.approx(3.0)

    def test_what_is_unknown_is_ignored(self) -> None:
        watch = GapWatch()
        watch.report("c", "ended", 1.0)
        watch.drop("c")
        assert watch.forecast("c", 1.0) is None

    @settings(deadline=None, max_examples=50)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from([*PACE, "ended", "killed", "left", "returned", "drop"]),
                st.integers(0, 3),
                st.floats(-5.0, 50.0),
                st.none() | st.floats(allow_nan=False),
            ),
            max_size=40,
        )
    )
    def test_any_order_of_events(self, events: list[tuple[str, int, float, float | None]]) -> None:
        watch, now = GapWatch(), 0.0
        for kind, context, passed, pace in events:
            now += passed  # a clock that goes back is survived, too
            if kind == "left":
                watch.left(context, GapKey("bash"), now)
            elif kind == "returned":
                watch.returned(context, now)
            elif kind == "drop":
                watch.drop(context)
            else:
                watch.report(context, kind, now, pace)  # type: ignore[arg-type]
            forecast = watch.forecast(context, now)
            if forecast is not None:
                assert 0.0 <= forecast.within(1.0) <= 1.0
                assert 0.0 <= forecast.quantile(0.5) <= forecast.quantile(0.9) < float("inf")
                assert forecast.remaining() >= 0.0
                assert forecast.waited >= 0.0


def test_coverage_of_a_drifting_mixture_is_near_what_was_promised() -> None:
    draw = random.Random(7)
    watch = GapWatch()
    for number in range(1500):
        scale = 1.0 if number < 750 else 5.0
        tool = draw.choice(["read", "bash"])
        gap = scale * (0.02 if tool == "read" else draw.lognormvariate(0.0, 1.5))
        watch.left("c", GapKey(tool), 0.0)
        watch.returned("c", gap)
    assert watch.scores.coverage(0.9) == pytest.approx(0.9, abs=0.05)
