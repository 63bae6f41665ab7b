"""What is judged is the agent's tree with the repository's own tests."""

from __future__ import annotations

import io
import tarfile

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.demo.observe import clip, observation
from agentrt.demo.recording import Task
from agentrt.demo.verdict import final_tree, judge
from agentrt.sandbox.base import ExecResult, ResourceUsage, SandboxSpec
from tests.demo.fakes import LocalSandbox


def tar(files: dict[str, bytes | None]) -> bytes:
    """Pack files; None is a symbolic link to /etc."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.uid = 1234
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc"
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return made.getvalue()


def untar(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {
            member.name.removeprefix("./"): found.read()
            for member in opened
            if (found := opened.extractfile(member) if member.isfile() else None)
        }


NAMES = st.sampled_from(
    ["a.py", "src/b.py", "tests/t.py", "tests/deep/u.py", "testsuite.py", "Make"]
)


@given(
    st.dictionaries(NAMES, st.binary(max_size=20)), st.dictionaries(NAMES, st.binary(max_size=9))
)
def test_protected_files_are_the_originals_and_others_the_agents(worked, pristine):
    originals = {name: data for name, data in pristine.items() if name.startswith("tests/")}
    tree = final_tree(tar(dict(worked)), originals, ["tests"])
    own = {name: data for name, data in worked.items() if not name.startswith("tests/")}
    assert untar(tree.archive) == own | originals
    assert set(tree.changed) == {n for n, data in originals.items() if worked.get(n) != data}


def test_a_link_in_place_of_the_tests_is_not_followed():
    tree = final_tree(tar({"a.py": b"1", "tests": None}), {"tests/t.py": b"real"}, ["tests"])
    assert untar(tree.archive) == {"a.py": b"1", "tests/t.py": b"real"}
    assert tree.changed == ("tests/t.py",)


def test_a_single_file_can_be_protected():
    tree = final_tree(
        tar({"check.sh": b"exit 0", "check.sh.bak": b"x"}), {"check.sh": b"real"}, ["check.sh"]
    )
    assert untar(tree.archive) == {"check.sh": b"real", "check.sh.bak": b"x"}


def test_owners_are_dropped():
    with tarfile.open(fileobj=io.BytesIO(final_tree(tar({"a": b""}), {}, []).archive)) as opened:
        assert [(member.uid, member.gid) for member in opened] == [(0, 0)]


def test_what_is_no_archive_is_refused():
    with pytest.raises(tarfile.TarError):
        final_tree(b"nonsense" * 200, {}, [])


@pytest.fixture
def task(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "answer").write_text("41\n")
    (tmp_path / "tests" / "check.sh").write_text('[ "$(cat answer)" = 42 ]\n')
    return Task(tmp_path, "logic", "wrong answer", "sh tests/check.sh", ("tests",))


def judged(task: Task, *commands: str):
    async def run():
        async with LocalSandbox(SandboxSpec(source=task.repository)) as worked:
            for command in commands:
                await worked.exec(command)
            boxes = []

            async def fresh():
                boxes.append(LocalSandbox(SandboxSpec()))
                return boxes[-1]

            try:
                return await judge(task, worked, fresh)
            finally:
                for box in boxes:
                    await box.close()

    return anyio.run(run)


class TestJudge:
    def test_untouched(self, task):
        verdict = judged(task)
        assert (verdict.resolved, verdict.detail) == (False, "tests fail (exit code 1)")

    def test_fixed(self, task):
        verdict = judged(task, "echo 42 > answer")
        assert (verdict.resolved, verdict.detail) == (True, "tests pass")

    def test_rewritten_tests_do_not_count(self, task):
        verdict = judged(task, "echo exit 0 > tests/check.sh")
        assert not verdict.resolved
        assert "the agent had changed tests/check.sh" in verdict.detail

    def test_removed_tests_do_not_count(self, task):
        assert not judged(task, "rm -r tests").resolved

    def test_changed_tests_are_told_even_when_the_fix_is_right(self, task):
        verdict = judged(task, "echo 42 > answer; echo exit 0 > tests/check.sh")
        assert verdict.resolved
        assert "the originals were used" in verdict.detail

    def test_a_huge_tree_is_unresolved(self, task, monkeypatch):
        monkeypatch.setattr("agentrt.demo.verdict.TREE_CAP", 4096)
        verdict = judged(task, "echo 42 > answer; head -c 90000 /dev/zero > big")
        assert not verdict.resolved
        assert "larger" in verdict.detail

    def test_a_tree_that_is_gone_is_unresolved(self, task):
        assert not judged(task, "rm -r answer tests").resolved


def result(**changes) -> ExecResult:
    fields = {
        "status": "exited", "exit_code": 0, "stdout": b"", "stderr": b"",
        "stdout_truncated": False, "stderr_truncated": False, "duration": 60.0,
        "resources": ResourceUsage(),
    }  # fmt: skip
    return ExecResult(**fields | changes)


class TestObservation:
    def test_both_streams(self):
        shown = observation(result(exit_code=3, stdout=b"out\n", stderr=b"err\n"))
        assert shown == "exit code: 3\nout\nerr"

    def test_silence(self):
        assert observation(result()) == "exit code: 0"

    @pytest.mark.parametrize(
        ("status", "said"), [("timeout", "60 seconds"), ("out_of_memory", "memory")]
    )
    def test_kills_are_named(self, status, said):
        assert said in observation(result(status=status, exit_code=None))

    def test_bytes_that_are_no_text(self):
        assert observation(result(stdout=b"\xff\xfe")) == "exit code: 0\n\ufffd\ufffd"

    @given(st.text(max_size=300), st.integers(1, 200))
    def test_clip_keeps_both_ends(self, text, bound):
        shown = clip(text, bound)
        if len(text) <= bound:
            assert shown == text
        else:
            head = bound * 2 // 3
            assert shown.startswith(text[:head])
            assert shown.endswith(text[len(text) - bound + head :])
            assert f"{len(text) - bound} characters left out" in shown
            assert len(shown) < bound + 60
