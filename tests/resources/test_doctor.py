"""The doctor: every line useful, no line able to break the report, the same without rights."""

from __future__ import annotations

import gzip
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from agentrt.cli.main import main
from agentrt.resources.cgroup import read_layout
from agentrt.resources.doctor import Check, Probe, examine, probes
from agentrt.resources.memcg_ops import MemcgOps, detect_memcg_ops
from agentrt.resources.runc import KNOWN, flaws_of, parse_version


@pytest.fixture(scope="module")
def report() -> dict[str, Check]:
    return {check.name: check for check in examine()}


def test_every_line_says_what_it_gives_and_what_to_do(report: dict[str, Check]):
    assert len(report) == len(probes())
    for check in report.values():
        assert check.gives
        assert check.found
        assert bool(check.remedy) == (not check.ok)
        assert "could not be examined" not in check.found


def test_the_cgroup_mode_is_the_machines(report: dict[str, Check]):
    kind = read_layout().kind
    assert report["cgroup v2"].ok == (kind == "v2")
    assert kind in report["cgroup v2"].found


@pytest.mark.requires_bpf
def test_what_loads_is_seen_to_load(report: dict[str, Check]):
    for name in ("BTF", "libbpf", "BPF tracepoints", "BPF cgroup hooks", "sensors", "egress"):
        assert report[name].ok, report[name]


def test_nothing_is_left_behind(report: dict[str, Check]):
    v2 = read_layout().v2
    if v2 is not None:
        assert not list(v2.mount.glob("**/doctor-*"))


def test_a_probe_that_fails_is_a_line_not_a_crash():
    def broken() -> tuple[bool, str, str]:
        raise RuntimeError("no such luck")

    check = Probe("x", "something", broken).run()
    assert check == Check("x", False, "something", "could not be examined: no such luck")


def test_json(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as done:
        main(["doctor", "--json"])
    assert done.value.code in (0, None)
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert len(checks) == len(probes())
    assert all({"name", "ok", "gives", "remedy"} <= set(check) for check in checks)


def test_the_table_names_every_check(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["doctor"])
    said = capsys.readouterr().out
    assert f"of {len(probes())} work." in said


@pytest.mark.requires_root
def test_it_works_without_rights():
    """As nobody: a full report, in which what needs root says so."""
    nobody = pwd.getpwnam("nobody").pw_uid
    script = (
        "import os, json\n"
        "from agentrt.resources import doctor, doctor_kernel, doctor_bpf, doctor_tools\n"
        "import agentrt.sandbox.docker_api\n"
        f"os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})\n"
        "print(json.dumps({c.name: [c.ok, c.remedy] for c in doctor.examine()}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report) == len(probes())
    for name in ("sensors", "egress", "delegation"):
        ok, remedy = report[name]
        assert not ok
        assert "root" in remedy
    assert report["kernel"][0]


class TestRunc:
    @pytest.mark.parametrize(
        ("said", "version"),
        [
            ("runc version 1.1.5+ds1\nspec: 1.0", (1, 1, 5, float("inf"))),
            ("runc version 1.4.0-rc.3\n", (1, 4, 0, 3.0)),
            ("runc version 1.3.3", (1, 3, 3, float("inf"))),
            ("crun version 1.8", None),
        ],
    )
    def test_versions(self, said: str, version: tuple[int, int, int, float] | None):
        assert parse_version(said) == version

    @pytest.mark.parametrize(
        ("text", "flaws"),
        [
            ("1.1.5", 4),
            ("1.1.12", 3),
            ("1.2.7", 3),
            ("1.2.8", 0),
            ("1.3.2", 3),
            ("1.3.3", 0),
            ("1.4.0-rc.2", 3),
            ("1.4.0-rc.3", 0),
            ("1.4.0", 0),
            ("1.5.0", 0),
        ],
    )
    def test_flaws_by_version(self, text: str, flaws: int, tmp_path: Path):
        version = parse_version(f"runc version {text}")
        assert version is not None
        assert len(flaws_of(version, tmp_path / "none")) == flaws

    def test_what_the_distribution_repaired_is_not_a_flaw(self, tmp_path: Path):
        changelog = tmp_path / "changelog.gz"
        changelog.write_bytes(gzip.compress(b"  * Fix CVE-2024-21626 by closing descriptors"))
        left = flaws_of((1, 1, 5, float("inf")), changelog)
        assert [flaw.name for flaw in left] == [f.name for f in KNOWN if f.name[4:8] == "2025"]


class TestMemcgOps:
    @pytest.mark.parametrize(
        ("names", "found"),
        [
            (b"\0task_struct\0", MemcgOps(False)),
            (b"\0memcg_bpf_ops\0get_high_delay_ms\0", MemcgOps(True, "v6")),
            (b"\0memcg_charged\0memcg_bpf_ops\0", MemcgOps(True, "v7")),
            (b"\0memcg_bpf_ops\0", MemcgOps(True, "unknown")),
        ],
    )
    def test_by_the_names_in_the_btf(self, names: bytes, found: MemcgOps, tmp_path: Path):
        (tmp_path / "btf").write_bytes(names)
        assert detect_memcg_ops(tmp_path / "btf") == found

    def test_without_btf(self, tmp_path: Path):
        assert detect_memcg_ops(tmp_path / "none") == MemcgOps(False)
