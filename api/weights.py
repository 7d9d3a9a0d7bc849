"""What can be known of a model by its files, without torch: what it is, its hash, its positions."""

import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from worker.contract import adapters
from worker.contract.architectures import POSITIONS, UnknownArchitecture, architecture_of
from worker.contract.manifest import tree_hash
from worker.contract.parts import Lora


class NotAModel(ValueError):
    """A file or folder that no model can be read from, with what is missing."""


Task = Literal["write", "score", "classify", "adapt"]
"""What a model is for: it writes text, scores it, tells classes apart, or is an adapter that makes another score."""


class Config(NamedTuple):
    """What a configuration tells of its model; None: it does not say."""

    positions: int | None
    """The longest sequence it can take, in tokens."""
    task: Task | None
    base: str | None = None
    """Of an adapter: the hash of the model that it was trained on."""
    lora: Lora | None = None
    """Of an adapter that lies there: what it was trained with."""
    layers: frozenset[str] | None = None
    """The linear layers of a block, by the last parts of their names."""


class Known(NamedTuple):
    """A model's hash, and what its configuration tells."""

    sha256: str
    config: Config


class Weights:
    """Looks at models, and remembers those whose files have not changed since: a hash of gigabytes takes seconds."""

    def __init__(self, remembered: int = 256) -> None:
        self._known: OrderedDict[tuple[Any, ...], Known] = OrderedDict()
        self._remembered = remembered
        self._lock = threading.Lock()

    def look(self, path: Path, *, tokenizer_only: bool = False) -> Known:
        """Blocks for as long as hashing takes. Raises NotAModel, OSError."""
        stamp = _stamp(path)
        with self._lock:
            if (known := self._known.get(stamp)) is not None:
                self._known.move_to_end(stamp)
                return known
        config = Config(None, None) if tokenizer_only else inspect(path)
        known = Known(tree_hash(path), config)
        if not tokenizer_only:
            with self._lock:
                self._known[stamp] = known
                while len(self._known) > self._remembered:
                    self._known.popitem(last=False)
        return known


def positions_of(config: Any) -> int | None:
    """The number of positions in a transformers configuration."""
    if not isinstance(config, dict):
        return None
    for name in POSITIONS:
        if isinstance(value := config.get(name), int) and value > 0:
            return value
    # Models of more than text have their language model's configuration inside.
    return positions_of(config.get("text_config"))


def told_by(config: Any) -> Config:
    """What a transformers configuration tells."""
    named = config.get("architectures") if isinstance(config, dict) else None
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    task: Task | None = None
    if name.endswith("ForTokenClassification"):
        task = "classify"
    elif name.endswith("ForSequenceClassification"):
        labels = config.get("id2label")
        several = isinstance(labels, dict) and len(labels) > 1
        task = "classify" if several or config.get("problem_type") == "regression" else "score"
    elif name.endswith(("ForCausalLM", "LMHeadModel")):
        task = "write"
    return Config(positions_of(config), task, layers=layers_of(config))


def layers_of(config: Any) -> frozenset[str] | None:
    """The names of the linear layers in a block of a transformers configuration's model, where its family is known."""
    try:
        # None depends on the vocabulary.
        return frozenset(layer.name for layer in architecture_of(config, vocabulary=256).linears)
    except (UnknownArchitecture, AttributeError, TypeError, OverflowError):
        return None


def read_config(path: Path) -> dict[str, Any]:
    """A `config.json`. Raises NotAModel."""
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):
        raise NotAModel(f"{path.name} cannot be read as JSON") from None
    if not isinstance(config, dict):
        raise NotAModel(f"{path.name} is not a JSON object")
    return config


def inspect(path: Path) -> Config:
    """What a model's own files tell of it, without a look at its weights. Raises NotAModel, OSError."""
    if path.is_file():
        return Config(_gguf_positions(path), "write")
    if (path / "config.json").is_file():
        if (path / adapters.CONFIG).is_file():
            raise NotAModel("holds an adapter beside a model; give the merged model")
        if not any(path.glob("*.safetensors")):
            raise NotAModel("has no .safetensors file; weights are never read from pickles")
        return told_by(read_config(path / "config.json"))
    if len(files := sorted(path.glob("*.gguf"))) == 1:
        return Config(_gguf_positions(files[0]), "write")
    if (path / adapters.CONFIG).is_file():
        return _adapter(path)
    raise NotAModel("is not a model's folder: it needs config.json and .safetensors, or one .gguf file")


def _adapter(path: Path) -> Config:
    config = read_config(path / adapters.CONFIG)
    if config.get("task_type") != adapters.SCORES:
        raise NotAModel("holds an adapter; give the merged model")
    # To peft a head for classes is the same as one that scores.
    if adapters.stage_of(path) == "classify":
        raise NotAModel("holds a classifier's adapter; give the merged model")
    if not (path / adapters.WEIGHTS).is_file():
        raise NotAModel(f"has no {adapters.WEIGHTS}; weights are never read from pickles")
    try:
        lora = adapters.adapter_of(config)
    except UnknownArchitecture as error:
        raise NotAModel(f"holds an adapter that is not taken here: {error}") from None
    return Config(None, "adapt", adapters.base_of(path), lora)


def _gguf_positions(path: Path) -> int | None:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise NotAModel("is not a GGUF file; give a folder with config.json, or a .gguf file")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
        field = reader.fields.get(f"{architecture}.context_length")
        return int(field.contents()) if field is not None else None
    except (ValueError, KeyError, IndexError, AttributeError, OverflowError, TypeError) as error:
        raise NotAModel(f"is a damaged GGUF file: {error}") from None


def _stamp(path: Path) -> tuple[Any, ...]:
    """What changes when any file of the model does."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return (
        str(path),
        *((str(p), s.st_size, s.st_mtime_ns, s.st_ino, s.st_ctime_ns) for p in files for s in [p.stat()]),
    )
