"""Models by name: directories, the hub's cache, and everything that can go wrong with either."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.errors
import pytest

from agentrt.engine.model import hub
from agentrt.engine.model.hub import locate
from agentrt.engine.model.load import check_config, open_source
from agentrt.errors import ModelError
from tests.engine.test_model_weights import shard

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """Return a hub cache that holds ``acme/tiny``."""
    repo = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(tiny_model_dir, repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hub"


def snapshot(cache: Path) -> Path:
    return cache / "models--acme--tiny" / "snapshots" / COMMIT


class TestCache:
    def test_a_whole_snapshot_is_found_and_loads(self, cache: Path) -> None:
        found = locate("acme/tiny", check=check_config, cache=cache, offline=True)
        assert (found.directory, found.name) == (snapshot(cache), "acme/tiny")
        assert open_source(found.directory).load("cpu").config.arch == "qwen3"

    def test_by_its_revision(self, cache: Path) -> None:
        found = locate(f"acme/tiny@{COMMIT}", check=check_config, cache=cache, offline=True)
        assert found.directory == snapshot(cache)
        with pytest.raises(ModelError, match="acme/tiny@v2: neither a directory nor whole"):
            locate("acme/tiny@v2", check=check_config, cache=cache, offline=True)

    def test_nothing_of_it_is_there(self, cache: Path) -> None:
        with pytest.raises(ModelError, match=r"acme/other: .*switched off.*Go online once"):
            locate("acme/other", check=check_config, cache=cache, offline=True)

    def test_a_shard_is_not_there(self, cache: Path) -> None:
        gone = shard(snapshot(cache), 3)[1]
        gone.unlink()
        found = locate("acme/tiny", check=check_config, cache=cache, offline=True)
        with pytest.raises(ModelError, match=f"{gone.name} does not exist"):
            open_source(found.directory)

    def test_the_configuration_is_judged_before_weights_are_asked_for(self, cache: Path) -> None:
        (snapshot(cache) / "model.safetensors").unlink()
        config = json.loads((snapshot(cache) / "config.json").read_text())
        (snapshot(cache) / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
        with pytest.raises(ModelError, match="recurrent state"):
            locate("acme/tiny", check=check_config, cache=cache, offline=True)


class FakeHub:
    """Stands in for the hub's library: serves from a directory, or raises."""

    def __init__(self, directory: Path, error: Exception | None = None) -> None:
        self.constants = SimpleNamespace(HF_HUB_OFFLINE=False)
        self.directory, self.error = directory, error
        self.asked: list[Sequence[str]] = []

    def snapshot_download(self, repo: str, **options: object) -> str:
        self.asked.append(options["allow_patterns"])
        if self.error is not None:
            raise self.error
        return str(self.directory)


def http_error(name: str) -> Exception:
    kind = getattr(huggingface_hub.errors, name)
    error: Exception = kind.__new__(kind)
    error.args = ("404 Client Error.\nmore",)
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (http_error("RepositoryNotFoundError"), "no such directory here and no such model"),
        (http_error("GatedRepoError"), "access to this model is restricted"),
        (http_error("RevisionNotFoundError"), "no such revision"),
        (http_error("LocalEntryNotFoundError"), "the hub is out of reach"),
        (ConnectionError("refused"), "cannot be fetched: ConnectionError: refused"),
        (OSError(28, "No space left on device"), "cannot be fetched: .*No space left"),
    ],
)
def test_what_the_hub_answers_becomes_one_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, words: str
) -> None:
    monkeypatch.setattr(hub, "_import_hub", lambda: FakeHub(tmp_path, error))
    with pytest.raises(ModelError, match=words) as caught:
        locate("acme/tiny", check=check_config)
    assert caught.value.message.startswith("acme/tiny")
    assert caught.value.remedy


def test_small_files_come_first_then_just_the_shards_of_the_index(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "m")
    for sharded in (False, True):
        names = ["model.safetensors"]
        if sharded:
            names = [file.name for file in shard(tmp_path / "m", 2)]
        fake = FakeHub(tmp_path / "m")
        monkeypatch.setattr(hub, "_import_hub", lambda fake=fake: fake)
        checked: list[tuple[Path, int]] = []
        locate("acme/tiny", check=lambda path: checked.append((path, len(fake.asked))))  # noqa: B023
        assert checked == [(tmp_path / "m", 1)]
        assert [pattern for pattern in fake.asked[1] if "safetensors" in pattern] == names
        assert not any("safetensors" in pattern for pattern in fake.asked[0])


def test_an_index_without_a_map(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    monkeypatch.setattr(hub, "_import_hub", lambda: FakeHub(tmp_path))
    with pytest.raises(ModelError, match=r"index\.json has no weight_map"):
        locate("acme/tiny", check=lambda path: None)


@pytest.mark.parametrize("name", ["/nonexistent", "./acme/tiny", "a/b/c", "tiny", "~/x/y", ""])
def test_what_is_no_name_of_the_hub_is_a_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr(hub, "_import_hub", never)
    assert locate(name, check=check_config).directory == Path(name).expanduser()


def test_a_directory_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = locate("acme/tiny", check=check_config)
    assert (found.directory, found.name) == (Path("acme/tiny"), "tiny")


def test_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"pip install 'agentrt\[engine\]'"):
        locate("acme/tiny", check=check_config)
