"""Models by their hub name: what is on this machine needs no network, what is not is downloaded whole, and once."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from tests.model.conftest import LLAMA, spec_of
from worker import hub
from worker.contract.order import Input
from worker.errors import BadSpec
from worker.models import Loaded, load

COMMIT = "0123456789" * 4
TINY = Input(reference="me/tiny", kind="hub", location="me/tiny", sha256=COMMIT)


@pytest.fixture
def folder(tiny: Callable[..., Loaded], tmp_path: Path) -> Path:
    """A tiny model's folder, in two files of weights."""
    loaded = tiny()
    loaded.model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    return tmp_path / "model"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the hub's cache keeps me/tiny: a folder a commit, and references to them."""
    cache = tmp_path / "home" / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    place = cache / "models--me--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    return place / "snapshots" / COMMIT


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Who was looked for on the network, which is away."""
    found: list[Any] = []

    def away(host: Any, *_: Any, **__: Any) -> Any:
        found.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", away)
    yield found


@pytest.fixture
def downloads(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A hub that has me/tiny; the names of the files that each download asked for are kept."""
    kept: list[list[str]] = []
    real = hub.snapshot_download

    def download(name: str, **how: Any) -> str:
        if how.get("local_files_only"):
            return real(name, **how)
        assert (name, how["revision"], how["token"]) == ("me/tiny", COMMIT, False)
        kept.append(how["allow_patterns"])
        for file in folder.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in how["allow_patterns"]):
                home.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, home)
        return str(home)

    monkeypatch.setattr(hub, "snapshot_download", download)
    return kept


def weights(loaded: Loaded) -> dict[str, torch.Tensor]:
    return loaded.model.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_pinned_model_that_is_on_this_machine_asks_nobody(
    tiny: Callable[..., Loaded], folder: Path, home: Path, asked: list[Any], tmp_path: Path
) -> None:
    shutil.copytree(folder, home)
    assert same(weights(load(spec_of("me/tiny"), {"stage.model": TINY}, tmp_path)), weights(tiny()))
    scratch = spec_of({"config": LLAMA, "tokenizer": "me/tiny"})
    assert len(load(scratch, {"stage.model.tokenizer": TINY}, tmp_path).tokenizer) == len(tiny().tokenizer)
    assert asked == []


def test_what_is_missing_is_downloaded_the_weights_last_and_no_other_formats(
    tiny: Callable[..., Loaded], folder: Path, home: Path, downloads: list[list[str]], tmp_path: Path
) -> None:
    for other in ("pytorch_model.bin", "consolidated.safetensors", "model.gguf", "evil.py"):
        (folder / other).write_bytes(b"large")
    # As a question for its sizes leaves the cache.
    home.mkdir(parents=True)
    shutil.copy(folder / "config.json", home)
    loaded = load(spec_of("me/tiny"), {"stage.model": TINY}, tmp_path)
    assert same(weights(loaded), weights(tiny()))
    shards = sorted(file.name for file in folder.glob("model-*.safetensors"))
    assert downloads[1:] == [shards]
    assert {file.name for file in home.iterdir() if file.suffix not in (".json", ".jinja")} == set(shards)
    load(spec_of("me/tiny"), {"stage.model": TINY}, tmp_path)
    assert len(downloads) == 2


@pytest.mark.parametrize("lost", ["config.json", "tokenizer*", "model-00001*"])
def test_a_snapshot_with_a_file_missing_is_completed(
    folder: Path, home: Path, downloads: list[list[str]], tmp_path: Path, lost: str
) -> None:
    shutil.copytree(folder, home, ignore=shutil.ignore_patterns(lost))
    load(spec_of("me/tiny"), {"stage.model": TINY}, tmp_path)
    assert len(downloads) == 2


def test_a_tokenizer_alone_is_downloaded_without_weights(
    home: Path, downloads: list[list[str]], tmp_path: Path
) -> None:
    scratch = spec_of({"config": LLAMA, "tokenizer": "me/tiny"})
    load(scratch, {"stage.model.tokenizer": TINY}, tmp_path)
    assert len(downloads) == 1
    assert not list(home.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "adapter_config.json").write_text("{}"), "me/tiny holds an adapter: give the merged model"),
        (lambda f: (f / "config.json").unlink(), "me/tiny is no model that transformers knows: it has no config.json"),
        (
            lambda f: [file.unlink() for file in f.glob("model*")],
            "me/tiny has no .safetensors; weights are never read from pickles",
        ),
    ],
)
def test_what_is_no_model_is_told_by_the_fields_name(
    folder: Path, downloads: list[list[str]], tmp_path: Path, spoil: Callable[[Path], Any], told: str
) -> None:
    spoil(folder)
    with pytest.raises(BadSpec, match=f"stage.model: {told}"):
        load(spec_of("me/tiny"), {"stage.model": TINY}, tmp_path)


def test_an_adapter_in_the_cache_beside_a_model_is_refused(folder: Path, home: Path, tmp_path: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    shutil.copytree(folder, home)
    with pytest.raises(BadSpec, match="me/tiny holds an adapter: give the merged model"):
        load(spec_of("me/tiny"), {"stage.model": TINY}, tmp_path)


def test_a_model_that_is_neither_here_nor_to_be_had_is_told(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hub.snapshot_download

    def away(name: str, **how: Any) -> str:
        if how.get("local_files_only"):
            return real(name, **how)
        raise LocalEntryNotFoundError("Name or service not known")

    monkeypatch.setattr(hub, "snapshot_download", away)
    told = "stage.model: me/tiny is not in this machine's cache, and cannot be downloaded from the hub: Name or service"
    with pytest.raises(BadSpec, match=told):
        load(spec_of("me/tiny"), {"stage.model": TINY}, tmp_path)
