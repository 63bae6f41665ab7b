"""Several models and adapters over HTTP: chosen by name, side by side or in place of each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from agentrt import assembly
from agentrt.engine.memory import DeviceBytes
from agentrt.engine.model.make import make_model
from agentrt.runtime import Runtime, RuntimeConfig
from agentrt.serving.settings import ServeSettings
from tests.engine.adapters import write_adapter
from tests.serving.conftest import LiveServer, running

TEXT = "Say something that takes a few tokens to read."


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RuntimeConfig:
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("a", 0), ("b", 1)):
        make_model(root / name, "qwen3", "tiny", seed, dtype="float32")
    write_adapter(root / "style", root / "a", 1)
    write_adapter(root / "tone", root / "b", 2)
    return RuntimeConfig(
        model=str(root / "a"),
        more_models=(f"second={root / 'b'}",),
        adapters=(f"style={root / 'style'}", f"second:tone={root / 'tone'}"),
        pool_tokens=1024,
        page_size=4,
        max_seqs=4,
        token_budget=64,
        sandbox=None,
        threads=1,
        measure=False,
    )


@pytest.fixture(scope="module")
def both(config: RuntimeConfig) -> Iterator[LiveServer]:
    with running(lambda: Runtime.open(config), ServeSettings(drain=0.0)) as live:
        yield live


@pytest.fixture(scope="module")
def cramped(config: RuntimeConfig) -> Iterator[LiveServer]:
    """A server on a device that holds either model, and not both."""
    found = assembly.find_models(config)
    plan = assembly.plan_pools(config, found, DeviceBytes(2**30, "free", gpu=False))
    room = DeviceBytes(plan.models[0].total + plan.models[1].total // 2, "free", gpu=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "device_bytes", lambda device, ranks=1: room)
        with running(lambda: Runtime.open(config), ServeSettings(drain=0.0)) as live:
            yield live


def ask(live: LiveServer, model: str | None, text: str = TEXT, **more: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
    named = {} if model is None else {"model": model}
    return live.http.post(f"{live.url}/chat/completions", json=body | named | more)


def said(live: LiveServer, model: str | None, text: str = TEXT, **more: Any) -> str:
    answer = ask(live, model, text, ignore_eos=True, **more).json()
    assert answer["model"] == (model or "a")
    return answer["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def wanted(config: RuntimeConfig) -> dict[str, str]:
    """What each model and adapter answers when it is served alone."""
    alone = dataclasses.replace(config, more_models=(), adapters=config.adapters[:1])
    with running(lambda: Runtime.open(alone), ServeSettings(drain=0.0)) as live:
        told = {name: said(live, name) for name in ("a", "style")}
    name, _, directory = config.adapters[1].rpartition("=")
    other = dataclasses.replace(
        config, model=config.more_models[0], more_models=(), adapters=(f"{name}={directory}",)
    )
    with running(lambda: Runtime.open(other), ServeSettings(drain=0.0)) as live:
        for name in ("second", "tone"):
            answer = ask(live, name, ignore_eos=True).json()
            told[name] = answer["choices"][0]["message"]["content"]
    assert len(set(told.values())) == 4
    return told


class TestSideBySide:
    def test_all_are_listed(self, both: LiveServer) -> None:
        listed = both.http.get(f"{both.url}/models").json()["data"]
        assert [one["id"] for one in listed] == ["a", "second", "style", "tone"]
        assert both.http.get(f"{both.url}/models/tone").json()["id"] == "tone"

    def test_each_answers_as_it_does_alone(self, both: LiveServer, wanted: dict[str, str]) -> None:
        for name in (*wanted, *wanted):
            assert said(both, name) == wanted[name]
        assert said(both, None) == wanted["a"]

    def test_at_the_same_time(self, both: LiveServer, wanted: dict[str, str]) -> None:
        names = list(wanted) * 3
        with ThreadPoolExecutor(len(names)) as pool:
            assert list(pool.map(lambda name: said(both, name), names)) == [
                wanted[name] for name in names
            ]

    def test_an_adapter_finds_only_its_own_prefix(self, both: LiveServer) -> None:
        text = "A text that is long enough to fill some pages of four tokens each, one hopes."

        def cached(name: str) -> int:
            usage = ask(both, name, text).json()["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        first = [cached(name) for name in ("a", "style", "second", "tone")]
        again = [cached(name) for name in ("a", "style", "second", "tone")]
        # The template's beginning may be cached; the text is not, for any of the others.
        assert all(less < more for less, more in zip(first, again, strict=True))

    @pytest.mark.parametrize("path", ["chat/completions", "completions"])
    def test_an_unknown_model(self, both: LiveServer, path: str) -> None:
        body = {"model": "c", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
        body.pop("prompt" if path.startswith("chat") else "messages")
        answer = both.http.post(f"{both.url}/{path}", json=body)
        assert answer.status_code == 404
        told = answer.json()["error"]["message"]
        assert "'c' is not served here. Use 'a', 'second', 'style', 'tone', or" in told

    def test_a_program_of_both_models_ends_at_both(self, both: LiveServer) -> None:
        for name in ("a", "second"):
            both.http.post(
                f"{both.url}/chat/completions",
                json={"model": name, "messages": [{"role": "user", "content": "x"}]},
                headers={"x-session-id": "both"},
            )
        assert both.http.delete(f"{both.root}/v1/programs/both").status_code == 200
        assert both.http.delete(f"{both.root}/v1/programs/both").status_code == 404

    def test_metrics_tell_models_apart(self, both: LiveServer) -> None:
        before = both.metric("agentrt_turns_finished_total", model="second")
        said(both, "second")
        assert both.metric("agentrt_turns_finished_total", model="second") == before + 1
        assert both.metric("agentrt_kv_pages_total", model="a") == 256


class TestInPlaceOfEachOther:
    def test_turns_bring_models_in_and_out(
        self, cramped: LiveServer, wanted: dict[str, str]
    ) -> None:
        first, second = cramped.runtime.models
        assert (first.statistics().state, second.statistics().state) == ("running", "unloaded")
        assert [one["id"] for one in cramped.http.get(f"{cramped.url}/models").json()["data"]] == [
            "a",
            "second",
            "style",
            "tone",
        ]
        for name in ("a", "second", "tone", "style", "second"):
            assert said(cramped, name) == wanted[name]
        assert (first.statistics().state, second.statistics().state) == ("unloaded", "running")
        assert (first.loads, second.loads) == (2, 2)
        assert cramped.http.get(f"{cramped.root}/health").status_code == 200

    def test_turns_under_way_end_before_their_model_leaves(
        self, cramped: LiveServer, wanted: dict[str, str]
    ) -> None:
        names = [name for name in wanted for _ in range(3)]
        with ThreadPoolExecutor(len(names)) as pool:
            answers = list(pool.map(lambda name: said(cramped, name), names))
        assert answers == [wanted[name] for name in names]
        loads = sum(model.loads for model in cramped.runtime.models)
        assert loads <= 2 + 2 + len(names)

    def test_a_stream_goes_on_while_another_model_waits(
        self, cramped: LiveServer, wanted: dict[str, str]
    ) -> None:
        said(cramped, "a")
        body = {
            "model": "a",
            "messages": [{"role": "user", "content": TEXT}],
            "max_tokens": 200,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        with (
            ThreadPoolExecutor(1) as pool,
            cramped.http.stream("POST", f"{cramped.url}/chat/completions", json=body) as stream,
        ):
            lines = stream.iter_lines()
            next(lines)
            other = pool.submit(said, cramped, "second")
            rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert '"finish_reason":"length"' in rest[-2]
            assert other.result() == wanted["second"]


def test_what_can_never_fit_is_refused_at_start(config: RuntimeConfig) -> None:
    small = DeviceBytes(2**20, "free on this machine", gpu=False)
    found = assembly.find_models(config)
    with pytest.raises(Exception, match="1 MiB are free on this machine") as caught:
        assembly.plan_pools(config, found, small)
    assert "the other models without it (second)" in str(caught.value)
