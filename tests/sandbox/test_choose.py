"""Which kind is chosen, what is said about it, and that the weakest is never chosen in silence."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.errors import ConfigError, SandboxUnavailable
from agentrt.sandbox import KINDS, Probe, SandboxProvider, choose
from agentrt.sandbox.choose import decide


class FakeProvider(SandboxProvider):
    """Answers a probe as told and counts what is asked of it."""

    def __init__(self, kind, ok) -> None:
        self.kind = kind
        self.ok = ok
        self.probed = self.closed = 0

    async def probe(self) -> Probe:
        self.probed += 1
        return Probe(self.kind, self.ok, f"{self.kind} says so", f"fix {self.kind}", ("memory",))

    async def create(self, spec):
        raise NotImplementedError

    async def close(self) -> None:
        self.closed += 1


def providers(*working: str) -> dict:
    return {kind: FakeProvider(kind, kind in working) for kind in KINDS}


@pytest.mark.anyio
async def test_the_strongest_wins_and_no_other_is_tried():
    made = providers("docker", "bubblewrap", "process")
    choice = await choose("auto", providers=made)
    assert choice.kind == "docker"
    assert choice.provider is made["docker"]
    assert [made[kind].probed for kind in KINDS] == [1, 0, 0]
    assert made["docker"].closed == 0
    assert choice.why == ("sandbox: docker (the strongest that works here); enforces memory",)


@pytest.mark.anyio
async def test_what_was_passed_over_is_said_and_closed():
    made = providers("bubblewrap", "process")
    choice = await choose("auto", providers=made)
    assert choice.kind == "bubblewrap"
    assert choice.why[1] == "not docker: docker says so. fix docker"
    assert made["docker"].closed == 1


@pytest.mark.anyio
async def test_process_is_never_silent():
    made = providers("process")
    with pytest.raises(SandboxUnavailable) as failure:
        await choose("auto", providers=made)
    assert "apt-get install bubblewrap" in failure.value.remedy
    assert "process" in failure.value.remedy
    assert "not docker" in str(failure.value)
    assert made["process"].probed == 0
    choice = await choose("auto", trusted=True, providers=providers("process"))
    assert choice.kind == "process"
    assert "does not confine" in choice.why[0]
    named = await choose("process", providers=providers("process", "docker"))
    assert (named.kind, len(named.why)) == ("process", 1)
    assert "as named" in named.why[0]


@pytest.mark.anyio
async def test_a_named_kind_that_does_not_work():
    made = providers("docker", "process")
    with pytest.raises(SandboxUnavailable, match="bubblewrap says so"):
        await choose("bubblewrap", trusted=True, providers=made)
    assert made["process"].probed == made["docker"].probed == 0


@pytest.mark.anyio
async def test_no_such_kind():
    with pytest.raises(ConfigError, match="chroot"):
        await choose("chroot")


@pytest.mark.anyio
@pytest.mark.requires_bwrap
async def test_without_an_image_docker_is_passed_over_and_not_loaded():
    choice = await choose("auto")
    async with choice.provider:
        assert choice.kind == "bubblewrap"
    assert any("no image named" in line for line in choice.why)


@pytest.mark.anyio
@pytest.mark.requires_docker
async def test_with_an_image_docker_is_the_strongest(test_image):
    choice = await choose("auto", image=test_image)
    async with choice.provider:
        assert choice.kind == "docker"
        assert {"memory", "cpu", "pids", "filesystem", "network"} <= set(choice.probe.enforces)


@pytest.mark.anyio
@pytest.mark.requires_docker
async def test_an_image_that_is_not_there():
    with pytest.raises(SandboxUnavailable, match="agentrt-no-such-image"):
        await choose("docker", image="agentrt-no-such-image:0")


@pytest.mark.anyio
async def test_an_engine_that_does_not_answer(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    with pytest.raises(SandboxUnavailable, match="No Docker engine answers") as failure:
        await choose("docker", image="any:1")
    assert "named" in failure.value.remedy or "Docker" in failure.value.remedy


@pytest.mark.anyio
async def test_bubblewrap_that_is_not_installed(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        await choose("bubblewrap")


@given(
    name=st.sampled_from(["auto", *KINDS]),
    works=st.fixed_dictionaries({kind: st.booleans() for kind in KINDS}),
    trusted=st.booleans(),
)
def test_the_loop_of_decisions_ends_and_holds_its_promise(name, works, trusted):
    probes: list[Probe] = []
    for _ in range(len(KINDS) + 1):
        decision = decide(name, probes, trusted=trusted)
        if decision.probe_next is None:
            break
        probes.append(Probe(decision.probe_next, works[decision.probe_next], "said", "do this"))
    assert decision.probe_next is None
    if decision.kind == "process" and name == "auto":
        assert trusted
        assert not works["docker"]
        assert not works["bubblewrap"]
    if decision.kind is None:
        allowed = [
            k for k in KINDS if name == k or (name == "auto" and (k != "process" or trusted))
        ]
        assert not any(works[kind] for kind in allowed)
    passed = [probe for probe in probes if not probe.ok]
    assert all(any(probe.kind in line for line in decision.why) for probe in passed)


def test_choosing_loads_no_container_client():
    assert "agentrt.sandbox.choose" in sys.modules
    import subprocess

    code = "import agentrt.sandbox, sys; sys.exit('docker' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
