"""Building the kernels: once, under a lock, one OpenMP runtime, and a reason where it fails."""

from __future__ import annotations

import logging
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agentrt.engine.attention.native import (
    NativePagedAttention,
    NativeUnavailable,
    build,
    library,
    load_native,
)
from agentrt.engine.attention.torch_paged import TorchPagedAttention
from agentrt.engine.kernels import (
    Kernels,
    TritonUnavailable,
    check_triton,
    choose_kernels,
    make_attention,
)
from agentrt.engine.model import ModelConfig
from agentrt.errors import ConfigError


def refuse() -> object:
    raise NativeUnavailable("No compiler.", remedy="Install one.")


class TestChoice:
    def test_auto_falls_back_and_says_why(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            kernels = choose_kernels("auto", "cpu", refuse)
        assert kernels == Kernels("torch", "No compiler. Install one.")
        assert "No compiler" in caplog.text
        assert "torch path" in caplog.text

    def test_forced_native_is_an_error_where_it_cannot_be(self) -> None:
        with pytest.raises(NativeUnavailable, match="No compiler"):
            choose_kernels("native", "cpu", refuse)
        with pytest.raises(ConfigError, match="run on the CPU"):
            choose_kernels("native", "cuda:0", refuse)

    def test_torch_and_other_devices_never_build(self) -> None:
        assert choose_kernels("torch", "cpu", refuse).library is None
        assert choose_kernels("auto", "mps", refuse).kind == "torch"
        assert choose_kernels("auto", "cuda:0", refuse, lambda device: None).kind == "triton"

    def test_cuda_without_triton_falls_back_and_says_what_to_install(self, caplog) -> None:
        def lacking(device: str) -> None:
            raise TritonUnavailable("No module named 'triton'.", remedy="Install it.")

        with caplog.at_level(logging.WARNING):
            kernels = choose_kernels("auto", "cuda", refuse, lacking)
        assert kernels == Kernels("torch", "No module named 'triton'. Install it.")
        assert "Install it" in caplog.text
        with pytest.raises(TritonUnavailable, match="No module named"):
            choose_kernels("triton", "cuda", refuse, lacking)

    def test_an_import_error_of_triton_names_the_remedy(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "agentrt.engine.triton.device", None)
        with pytest.raises(TritonUnavailable, match="pip install"):
            check_triton("cuda")

    def test_an_unknown_setting_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="auto, native, triton, torch"):
            choose_kernels("fast", "cpu", refuse)

    @pytest.mark.requires_native
    def test_attention_is_made_for_the_kernels(self, tiny_model_dir: Path) -> None:
        config = ModelConfig.from_directory(tiny_model_dir)
        for setting, kind in (("auto", NativePagedAttention), ("torch", TorchPagedAttention)):
            kernels = choose_kernels(setting, "cpu")
            assert isinstance(make_attention(kernels, config, 2, 16, torch.float32), kind)


class TestFailure:
    def test_a_missing_compiler_is_named(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
        with pytest.raises(NativeUnavailable, match="no-such-compiler") as caught:
            load_native(tmp_path / "cache")
        assert "apt-get install" in caught.value.remedy
        assert [file.name for file in (tmp_path / "cache/native").iterdir() if file.is_dir()] == []

    def test_an_error_of_the_compiler_is_shown(self, tmp_path: Path, monkeypatch) -> None:
        (tmp_path / "src").mkdir()
        (tmp_path / "src/ops.cpp").write_text("int main() { return nonsense; }\n")
        monkeypatch.setattr(build, "SOURCES", tmp_path / "src")
        with pytest.raises(NativeUnavailable, match="nonsense"):
            load_native(tmp_path / "cache")

    def test_a_cache_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(NativeUnavailable, match="file/native"):
            load_native(tmp_path / "file")

    def test_who_holds_the_lock_too_long_is_an_error(self, tmp_path: Path) -> None:
        times = iter([0.0, 1.0, build.LOCK_SECONDS + 1])
        with (
            build._locked(tmp_path / "lock"),
            pytest.raises(build.BuildError, match="lock"),
            build._locked(tmp_path / "lock", lambda: next(times), lambda seconds: None),
        ):
            pass


def build_there(cache: Path, compiled: object) -> None:
    def compile_(work: Path, name: str, flags: object) -> None:
        compiled.put(name)
        (work / "ops.o").write_text("")
        (work / f"{build.NAME}.so").write_text("library")

    build._compile = compile_
    build.build(cache, ["-O3"], "torch")


class TestCache:
    def test_processes_that_come_together_compile_once(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        compiled = context.Queue()
        workers = [context.Process(target=build_there, args=(tmp_path, compiled)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        name = compiled.get(timeout=10)
        assert compiled.empty()
        assert [file.name for file in (tmp_path / "native" / name).iterdir()] == [
            f"{build.NAME}.so"
        ]

    def test_the_key_depends_on_sources_flags_and_torch(self, tmp_path: Path, monkeypatch) -> None:
        keys = [build.key(["-O3"], "2.11"), build.key(["-O2"], "2.11"), build.key(["-O3"], "2.12")]
        (tmp_path / "ops.cpp").write_text("// other")
        monkeypatch.setattr(build, "SOURCES", tmp_path)
        keys.append(build.key(["-O3"], "2.11"))
        assert len(set(keys)) == 4


PROBE = """
import torch
from agentrt.engine.attention.native import load_native
library = load_native()
weight = library.pack(torch.ones(640, 64).bfloat16())
x = library.linear(torch.ones(64, 64).bfloat16(), weight, 640, None, True)
assert bool((x == 64).all())
maps = open("/proc/self/maps").read().split()
print("\\n".join(sorted({word for word in maps if ".so" in word})))
"""


@pytest.mark.requires_native
class TestBuilt:
    def test_one_openmp_runtime_is_loaded_and_it_is_torchs(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=100, check=True
        )
        runtimes = [
            line for line in done.stdout.split() if re.search(r"/lib(g|i)?omp[^/]*\.so", line)
        ]
        assert len(runtimes) == 1
        assert "/torch/" in runtimes[0]

    def test_the_library_asks_for_no_openmp_of_its_own(self) -> None:
        needed = subprocess.run(
            ["readelf", "-d", str(load_native().file)], capture_output=True, text=True, check=True
        ).stdout
        assert "NEEDED" in needed
        assert "omp" not in re.sub(r"libtorch\S*", "", needed)

    def test_loading_twice_gives_the_same_build(self) -> None:
        assert load_native().file == library.load_native().file


@pytest.mark.requires_native
@pytest.mark.timeout(300)
def test_the_plain_build_computes_the_same() -> None:
    """Other processors get the same source compiled for what they have."""
    narrow = load_native(flags=[flag for flag in build.FLAGS if flag != "-march=native"])
    assert narrow.instructions == "generic"
    wide = load_native()
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 192, generator=generator).bfloat16() for n in (9, 200))
    for each in (narrow, wide):
        assert torch.equal(each.rows(each.pack(weight), torch.tensor([0, 199])), weight[[0, 199]])
    plain, fast = (each.linear(x, each.pack(weight), 200, None, True) for each in (narrow, wide))
    exact = x.double() @ weight.double().T
    for result in (plain, fast):
        assert (result.double() - exact).abs().max() <= 1e-5 * exact.abs().max()
    eights = [
        each.linear8(x, *each.pack8(weight.float()), 200, None, True) for each in (narrow, wide)
    ]
    assert (eights[0] - eights[1]).abs().max() <= 1e-5 * exact.abs().max()
    _same_attention(narrow, wide)
    for name, argument in (("silu_mul", (x,)), ("add_norm", (x.clone(), x, weight[0], 1e-6))):
        one, other = (
            getattr(each, name)(
                *(a.clone() if isinstance(a, torch.Tensor) else a for a in argument)
            )
            for each in (narrow, wide)
        )
        assert (one.float() - other.float()).abs().max() <= 2**-7 * one.float().abs().max()


def _same_attention(narrow, wide) -> None:
    generator = torch.Generator().manual_seed(1)
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 2**-7)):
        kv = torch.randn(2, 20, 2, 16, 96, generator=generator).to(dtype)
        slices = torch.tensor([[250, 1, 0, 0], [0, 60, 1, 16]])
        table = torch.arange(20)
        q = torch.randn(61, 6, 96, generator=generator).to(dtype)
        outs = []
        for each in (narrow, wide):
            out = torch.empty_like(q)
            each.attend(kv, table, slices, *each.plan(slices, 2, 3, 96, 0), q, 0, out)
            outs.append(out.float())
        assert (outs[0] - outs[1]).abs().max() <= limit * outs[1].abs().max()
