"""Models: from a configuration, a folder, a hub name or a GGUF file, in the spec's precision, with its adapters."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from worker import ahead, hub
from worker.contract.architectures import POSITIONS
from worker.contract.order import Input
from worker.contract.parts import Lora, Scratch
from worker.contract.spec import JobSpec
from worker.contract.stages import TrainStage
from worker.dialogue import check_template
from worker.errors import BadData, BadSpec
from worker.gguf import converted, gguf_in
from worker.heads import HEAD, with_scalar_head
from worker.isolation import check_isolation
from worker.lora import with_adapters
from worker.optimizers import check_pattern
from worker.paths import local_path
from worker.scratch import from_scratch
from worker.tokenizers import bytes_tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Loaded:
    """A model that is ready for an engine. `model` is wrapped by peft if the spec asks for LoRA."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    notes: list[str] = field(default_factory=list)
    """What a person should know of it, each a sentence; they become events."""


def load(spec: JobSpec, inputs: dict[str, Input], store: Path, *, waiting: Callable[[], None] = lambda: None) -> Loaded:
    """The stage's model and tokenizer, the same on every rank. Raises BadSpec with the field and what would be right.

    Weights are read from safetensors alone, never from pickles, and no code that comes with a model is run. `store` is
    the store's root, in whose `cache/models` a converted GGUF stays; `waiting` is called now and then while another
    process converts it. The model is in training mode, on the CPU.
    """
    stage = spec.stage
    if not isinstance(stage, TrainStage):
        raise BadSpec("stage.type: a rehearsal has no model")
    notes: list[str] = []
    dtype, scalar = DTYPES[spec.deepspeed.precision], stage.traits.head == "score"
    if isinstance(stage.model, Scratch):
        name = "the model from scratch"
        tokenizer = tokenizer_of(stage.model, inputs, store, waiting)
        separate_padding(tokenizer, name, notes)
        model = from_scratch(stage.model, tokenizer, seed=stage.seed, dtype=dtype, scalar=scalar)
    else:
        name, source = stage.model, inputs["stage.model"]
        if scalar:
            model, tokenizer, _ = scalar_model(source, name, store, dtype, notes, waiting=waiting)
        else:
            model, tokenizer = pretrained(source, name, store, dtype, notes, waiting=waiting)
    if "messages" in stage.traits.rows:
        check_template(tokenizer, name)
    return ready(model, tokenizer, stage, name, notes, adapted=partial(with_adapters, head=scalar))


def ready(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    stage: TrainStage,
    name: str,
    notes: list[str],
    *,
    adapted: Callable[[PreTrainedModel, Lora, int], torch.nn.Module],
) -> Loaded:
    """A model as its stage trains it; `adapted` puts LoRA's adapters on it, drawn from a seed. Raises BadSpec."""
    pads_with(model, tokenizer)
    check_sizes(model, tokenizer, stage)
    if stage.packing:
        check_isolation(model, name)
    if stage.gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise BadSpec(f"stage.gradient_checkpointing: {name} ({model.config.model_type}) does not support it")
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    _freeze(model, stage.freeze)
    trained = model if stage.lora is None else adapted(model, stage.lora, stage.seed)
    return Loaded(trained, tokenizer, notes)


def _freeze(model: PreTrainedModel, patterns: list[str]) -> None:
    """Takes weights out of training by their names. Raises BadSpec for a pattern that matches none, or all."""
    names = [name for name, _ in model.named_parameters()]
    for number, pattern in enumerate(patterns):
        check_pattern(pattern, names, f"stage.freeze.{number}")
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadSpec("stage.freeze: matches all weights, and leaves nothing to train")


def pretrained(
    source: Input,
    name: str,
    store: Path,
    dtype: torch.dtype,
    notes: list[str],
    *,
    path: str = "stage.model",
    waiting: Callable[[], None] = lambda: None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model that is there already, and its tokenizer, whose padding is not its end.

    `path` is the reference's in the spec. What a person should know is added to `notes`. Raises BadSpec.
    """
    where = located(source, store, notes, waiting, path=path)
    tokenizer = read_tokenizer(where, name, path)
    model, _ = _read_model(where, name, dtype, path)
    separate_padding(tokenizer, name, notes)
    pads_with(model, tokenizer)
    return model, tokenizer


def scalar_model(
    source: Input,
    name: str,
    store: Path,
    dtype: torch.dtype,
    notes: list[str],
    *,
    path: str = "stage.model",
    waiting: Callable[[], None] = lambda: None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, bool]:
    """A backbone with a scalar head, its tokenizer, and whether the head is one that was learnt; a new one is zero.

    The arguments are those of `pretrained`. Raises BadSpec.
    """
    where = located(source, store, notes, waiting, path=path)
    tokenizer = read_tokenizer(where, name, path)
    model, missing = _read_model(where, name, dtype, path, scalar=True)
    learnt = f"{HEAD}.weight" not in missing
    model = with_scalar_head(model, zero=not learnt, path=path, name=name)
    separate_padding(tokenizer, name, notes)
    pads_with(model, tokenizer)
    return model, tokenizer, learnt


def without_dropout(model: torch.nn.Module) -> None:
    """Switches dropout off for good: log-probabilities that are compared are then of one network, and no noise."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        # Attention takes its share as a plain number.
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def pads_with(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tells a model's configurations which token pads."""
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id


def located(
    source: Input,
    store: Path,
    notes: list[str],
    waiting: Callable[[], None] = lambda: None,
    *,
    path: str = "stage.model",
) -> str:
    """The folder with a model's files; a GGUF is converted first, a hub's model downloaded. Raises BadSpec.

    What lies on this machine must still have the hash that it had when the job was accepted.
    """
    if source.kind == "hub":
        return str(hub.snapshot(source.location, source.sha256, path))
    try:
        place = local_path(source.location)
    except BadData as error:
        raise BadSpec(f"{path}: {error.message}") from None
    if not place.exists():
        raise BadSpec(f"{path}: {source.reference} is not there any more ({place})")
    # A file is opened by its own hash, a registered model by its manifest's, any other folder by its files' names and
    # hashes: `tree_hash` is all three.
    if ahead.tree_hash(place) != source.sha256:
        raise BadSpec(f"{path}: {source.reference} has changed since the job was accepted; submit the job anew")
    if (gguf := gguf_in(place)) is not None:
        # Of a file, its hash is `tree_hash`, which has been compared above.
        known = source.sha256 if gguf == place else None
        folder, note = converted(gguf, ahead.models_cache(store), known, waiting)
        notes += [note] if note else []
        return str(folder)
    if place.is_file():
        raise BadSpec(f"{path}: {place.name} is no GGUF file; give a folder with config.json, or a .gguf file")
    if not (place / "config.json").is_file():
        adapter = (place / "adapter_config.json").is_file()
        hint = "it holds an adapter: give the merged model" if adapter else "it has no config.json and no .gguf file"
        raise BadSpec(f"{path}: {source.reference} is not a model's folder; {hint}")
    if (place / "adapter_config.json").is_file():
        raise BadSpec(f"{path}: {source.reference} holds an adapter beside a model: give the merged model")
    if not any(place.glob("*.safetensors")):
        raise BadSpec(f"{path}: {source.reference} has no .safetensors; weights are never read from pickles")
    return str(place)


def tokenizer_of(
    model: Scratch, inputs: dict[str, Input], store: Path, waiting: Callable[[], None]
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model from scratch. Raises BadSpec."""
    if model.tokenizer == "bytes":
        return bytes_tokenizer()
    source = inputs["stage.model.tokenizer"]
    if source.kind == "hub":
        folder = hub.snapshot(source.location, source.sha256, "stage.model.tokenizer", weights=False)
        return read_tokenizer(str(folder), model.tokenizer)
    path = local_path(source.location)
    if gguf_in(path) is not None:
        return read_tokenizer(located(source, store, [], waiting), model.tokenizer)
    return read_tokenizer(str(path), model.tokenizer)


def read_tokenizer(folder: str, name: str, path: str = "stage.model") -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises BadSpec."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise BadSpec(f"{path}: the tokenizer of {name} cannot be read: {_first_line(error)}") from None
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def _read_model(
    folder: str, name: str, dtype: torch.dtype, path: str, *, scalar: bool = False
) -> tuple[PreTrainedModel, set[str]]:
    """A model, and which of its weights were not there. `scalar`: with a head of one output, not the vocabulary's."""
    config = read_config(folder, name, path)
    auto: Any = AutoModelForCausalLM
    classifies = any(kind.endswith(("ForSequenceClassification", "ForTokenClassification")) for kind in named(config))
    if classifies and not scalar:
        raise BadSpec(f"{path}: {name} scores texts, and writes none; give a language model")
    if scalar:
        auto = AutoModelForSequenceClassification
        if classifies and config.num_labels != 1:
            raise BadSpec(f"{path}: {name} tells {config.num_labels} classes apart: it is no reward model")
        config.num_labels = 1
    return read_weights(auto, folder, config, name, dtype, path)


def named(config: PreTrainedConfig) -> list[str]:
    """The architectures that a configuration says its weights are of."""
    return list(config.architectures or [])


def read_config(folder: str, name: str, path: str) -> PreTrainedConfig:
    """The configuration of a whole model in a folder. Raises BadSpec."""
    try:
        # transformers would put the adapter into the model unasked, and nothing else would be trained.
        if find_adapter_config_file(folder) is not None:
            raise BadSpec(f"{path}: {name} holds an adapter: give the merged model")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except _UNREADABLE as error:
        raise BadSpec(f"{path}: {name} cannot be read: {_first_line(error)}") from None
    if getattr(config, "quantization_config", None) is not None:
        raise BadSpec(f"{path}: {name} is quantized; training needs its weights in full")
    assert isinstance(config, PreTrainedConfig)
    return config


def read_weights(
    auto: Any, folder: str, config: PreTrainedConfig, name: str, dtype: torch.dtype, path: str
) -> tuple[PreTrainedModel, set[str]]:
    """A model of one of transformers' `Auto` classes, and which of its weights were not there. Raises BadSpec."""
    try:
        model, loading = auto.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except _UNREADABLE as error:
        raise BadSpec(f"{path}: {name} cannot be read: {_first_line(error)}") from None
    assert isinstance(model, PreTrainedModel)
    return model, set(loading["missing_keys"])


_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    StrictDataclassError,
    SafetensorError,
    json.JSONDecodeError,
)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]


def separate_padding(tokenizer: PreTrainedTokenizerBase, name: str, notes: list[str]) -> None:
    """Gives padding a token of its own where it has none, or shares the one that ends a text.

    Nothing here reads masks from token ids, so sharing is harmless to us; others who use the model do, and then never
    learn where a text ends.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    taken = {tokenizer.eos_token, tokenizer.pad_token}
    special = [token for token in tokenizer.all_special_tokens if token not in taken]
    # The unknown token first: byte-level vocabularies never use it. The one that opens texts last.
    special.sort(key=lambda token: (token != tokenizer.unk_token, token == tokenizer.bos_token))
    if special:
        notes.append(
            f"The padding token of {name} was {tokenizer.pad_token or 'not set'}; it is now {special[0]}, "
            "so that it is not the token that ends a text. The saved model has it too."
        )
        tokenizer.pad_token = special[0]
    elif tokenizer.eos_token is not None:
        notes.append(f"{name} has no special token left to pad with; it pads with {tokenizer.eos_token}, harmlessly.")
        tokenizer.pad_token = tokenizer.eos_token
    else:
        raise BadSpec(f"stage.model: the tokenizer of {name} has no special tokens, not even one that ends a text")


def positions(config: PreTrainedConfig) -> int | None:
    """The longest sequence, in tokens, that a model has positions for; None: no limit is told."""
    text = config.get_text_config()
    found = [getattr(text, name, None) for name in POSITIONS]
    return min((n for n in found if isinstance(n, int) and n > 0), default=None)


def check_sizes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stage: TrainStage) -> None:
    """Raises BadSpec where sequences are longer than the model's positions, or tokens outside its vocabulary."""
    check_length(model, stage.max_length)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise BadSpec(f"stage.model: the tokenizer has {len(tokenizer)} tokens, the model only {rows}")


def check_length(model: PreTrainedModel, max_length: int) -> None:
    """Raises BadSpec where sequences of `max_length` tokens are longer than the model's positions."""
    limit = positions(model.config)
    if limit is not None and max_length > limit:
        raise BadSpec(f"stage.max_length: the model has {limit} positions; write at most {limit}")
