"""Models of a hub, each as a folder on this machine: the pinned revision's files, downloaded where they are missing."""

import json
import os
from pathlib import Path

from huggingface_hub import snapshot_download

from worker.errors import BadSpec, is_store_full

# Configurations, tokenizers of every kind, chat templates. Other formats' weights stay where they are.
_SMALL = ["*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"]
# Of a tokenizer's files these are the large ones, which a download that is cut off has not come to.
_TOKENIZERS = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")
_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def snapshot(name: str, revision: str, path: str, *, weights: bool = True) -> Path:
    """The folder of a hub's model at `revision`; without `weights`, its tokenizer will do.

    With all of it here, no network is needed. Raises BadSpec, with the reference's `path` in the spec.
    """
    if (found := _here(name, revision, weights)) is not None:
        return found
    try:
        # The job's own token, or none: not one that somebody left in the home folder. The weights come last: where they
        # are, all the rest is.
        token = os.environ.get("HF_TOKEN") or False
        folder = Path(snapshot_download(name, revision=revision, token=token, allow_patterns=_SMALL))
        if weights:
            snapshot_download(name, revision=revision, token=token, allow_patterns=_weights_of(folder))
    # What is raised when nobody answers depends on the HTTP library that this version of the client uses.
    except Exception as error:
        if is_store_full(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
        raise BadSpec(
            f"{path}: {name} is not in this machine's cache, and cannot be downloaded from the hub: {first}"
        ) from None
    if weights:
        _check(folder, name, path)
    return folder


def _here(name: str, revision: str, weights: bool) -> Path | None:
    """The folder, if all that is wanted is in it."""
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_SMALL, local_files_only=True))
        wanted = [folder / "config.json", *(folder / file for file in _weights_of(folder))] if weights else []
    except (OSError, ValueError):
        return None
    if not all(file.is_file() for file in wanted) or not any(any(folder.glob(kind)) for kind in _TOKENIZERS):
        return None
    return folder


def _weights_of(folder: Path) -> list[str]:
    """The files that hold a model's weights, as transformers reads them. Raises ValueError."""
    if not (folder / _INDEX).is_file():
        return [_ONE]
    index = json.loads((folder / _INDEX).read_bytes())
    try:
        files = sorted(set(index["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{_INDEX} names no files") from None
    if not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise ValueError(f"{_INDEX} names files outside its folder")
    return files


def _check(folder: Path, name: str, path: str) -> None:
    if (folder / "adapter_config.json").is_file():
        raise BadSpec(f"{path}: {name} holds an adapter: give the merged model")
    if not (folder / "config.json").is_file():
        raise BadSpec(f"{path}: {name} is no model that transformers knows: it has no config.json")
    if not all((folder / file).is_file() for file in _weights_of(folder)):
        raise BadSpec(f"{path}: {name} has no .safetensors; weights are never read from pickles")
