"""The configurations of the models that a spec refers to, without a look at their weights."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from api import hub
from api.inputs import Resolver
from api.settings import Settings
from api.stores import Store
from api.weights import NotAModel, read_config
from worker.contract import adapters
from worker.contract.check import InvalidSpec
from worker.contract.manifest import Damaged
from worker.contract.order import Input
from worker.contract.problem import Problem
from worker.contract.spec import JobSpec
from worker.storage.failures import StorageFailure

# What a GGUF file's metadata call what a configuration has, behind the architecture's name.
_GGUF = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
}
_FAMILIES = {"gptneox": "gpt_neox"}


async def configurations(
    spec: JobSpec, project: str, resolver: Resolver, store: Store, settings: Settings
) -> dict[str, dict[str, Any]]:
    """Each model's `config.json` by the path of its reference in the spec. Raises InvalidSpec with all problems."""
    inputs = await resolver.resolve(spec, project, data=False)
    problems, found = [], {}
    for path, given in inputs.items():
        try:
            found[path] = await store.run(_read, given, store, settings)
        except StorageFailure:
            raise  # nobody's reference is to blame
        except (NotAModel, Damaged, hub.NotFound, OSError) as error:
            # A tokenizer needs no configuration; a model's sizes are in it.
            if not path.endswith(".tokenizer"):
                problems.append(Problem(path, str(error)))
    if problems:
        raise InvalidSpec(problems)
    return found


def _read(given: Input, store: Store, settings: Settings) -> dict[str, Any]:
    if given.kind == "hub":
        return hub.config(given.location, given.sha256, settings.hub_timeout)
    if given.kind == "model":
        with store.described(given.location) as folder:
            return _config(folder)
    return _config(Path(given.location))


def _config(path: Path) -> dict[str, Any]:
    files = [path] if path.is_file() else sorted(path.glob("*.gguf"))
    if len(files) == 1 and not (path / "config.json").is_file():
        stat = files[0].stat()
        return gguf_config(files[0], (stat.st_size, stat.st_mtime_ns))
    if not (path / "config.json").is_file() and (path / adapters.CONFIG).is_file():
        return read_config(path / adapters.CONFIG)
    return read_config(path / "config.json")


@lru_cache(maxsize=64)
def gguf_config(path: Path, stamp: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """A GGUF file's sizes, by the names that they have in a `config.json`. Raises NotAModel, OSError.

    Remembered for as long as `stamp` is the same: to read all the words of a vocabulary takes seconds.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        kind = str(reader.fields["general.architecture"].contents())
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        config: dict[str, Any] = {
            name: int(field.contents())
            for told, name in _GGUF.items()
            if (field := reader.fields.get(f"{kind}.{told}")) is not None
        }
        config["vocab_size"] = int(tensors["token_embd.weight"].shape[1])
        # Where it has no output layer of its own, that is the input embedding.
        config["tie_word_embeddings"] = "output.weight" not in tensors
    except (ValueError, KeyError, IndexError, AttributeError, OverflowError, TypeError) as error:
        raise NotAModel(f"is a damaged GGUF file: {error}") from None
    return {"model_type": _FAMILIES.get(kind, kind), **config}
