"""One base under several roles: each has modules, adapters and a head of its own, around the same frozen weights.

Their parameters are the same objects, not copies: what moves one model to a device, or casts it, does so for all.
"""

import copy
import json
from pathlib import Path
from typing import TypeVar

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from worker import ahead
from worker.contract.adapters import CONFIG, WEIGHTS, adapter_of, base_of
from worker.contract.architectures import UnknownArchitecture
from worker.contract.order import Input
from worker.contract.parts import Lora
from worker.errors import BadData, BadSpec
from worker.heads import head_of, with_scalar_head
from worker.lora import with_adapters
from worker.models import read_tokenizer
from worker.paths import local_path

M = TypeVar("M", bound=nn.Module)


class SharedBase:
    """The actor's model as it was before adapters were added to it."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Input):
        self._model, self.tokenizer, self._sha256 = twin(model), tokenizer, source.sha256

    def critic(self, lora: Lora, seed: int, *, path: str, name: str, source: Input | None) -> PeftModel:
        """A model for values on this base, its head zero; with a `source` its adapters go on from those.

        Raises BadSpec.
        """
        if source is None:
            return with_adapters(self._scorer(path, name), lora, seed, head=True)
        made = self._adapted(source, seed, path=path, name=name, wanted=lora)
        nn.init.zeros_(_weight(head_of(made)))
        return made

    def reward_model(self, source: Input, *, path: str, name: str) -> tuple[PeftModel, PreTrainedTokenizerBase]:
        """The reward model whose adapter `source` is, and its tokenizer. Raises BadSpec."""
        model = self._adapted(source, 0, path=path, name=name, wanted=None)
        return model, read_tokenizer(str(local_path(source.location)), name, path)

    def _scorer(self, path: str, name: str) -> PreTrainedModel:
        """A scalar head, which is zero, on this base."""
        config = copy.deepcopy(self._model.config)
        config.num_labels = 1
        with torch.device("meta"):  # its weights are those that are there
            made = AutoModelForSequenceClassification.from_config(config, dtype=self._model.dtype)
        backbone = made.base_model_prefix
        setattr(made, backbone, twin(getattr(self._model, backbone)))
        return with_scalar_head(made, zero=True, path=path, name=name)

    def _adapted(self, source: Input, seed: int, *, path: str, name: str, wanted: Lora | None) -> PeftModel:
        folder = self._folder(source, path, name)
        try:
            lora = adapter_of(json.loads((folder / CONFIG).read_bytes()))
            weights = load_file(folder / WEIGHTS)
        except (OSError, ValueError, UnknownArchitecture, SafetensorError) as error:
            raise BadSpec(f"{path}: {name} cannot be read: {error}") from None
        if wanted is not None and (wanted.rank, wanted.alpha) != (lora.rank, lora.alpha):
            said = f"{path.rpartition('.')[0]}.lora: the adapter {name} has rank {lora.rank} and alpha {lora.alpha:g}"
            raise BadSpec(f"{said}; write these")
        made = with_adapters(self._scorer(path, name), wanted or lora, seed, head=True)
        try:
            loaded = set_peft_model_state_dict(made, weights)
        except RuntimeError as error:
            raise BadSpec(
                f"{path}: {name} is no adapter of this model: {str(error).splitlines()[-1].strip()}"
            ) from None
        own = {key for key, p in made.named_parameters() if p.requires_grad}
        if left := [*loaded.unexpected_keys, *sorted(own & set(loaded.missing_keys))]:
            raise BadSpec(f"{path}: {name} is no adapter of these layers: {left[0]} is in one of them alone")
        return made

    def _folder(self, source: Input, path: str, name: str) -> Path:
        """Where an adapter lies, with the hash that it had and trained on this base. Raises BadSpec."""
        if source.kind == "hub":
            raise BadSpec(f"{path}: an adapter on a shared base is a registered one, or lies in a folder; not a hub's")
        try:
            folder = local_path(source.location)
        except BadData as error:
            raise BadSpec(f"{path}: {error.message}") from None
        if not folder.is_dir() or ahead.tree_hash(folder) != source.sha256:
            raise BadSpec(f"{path}: {name} has changed since the job was accepted; submit the job anew")
        if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
            raise BadSpec(f"{path}: {name} holds no adapter: it needs {CONFIG} and {WEIGHTS}")
        if base_of(folder) != self._sha256:
            raise BadSpec(f"{path}: {name} was trained on another model than stage.actor.model, which it is to share")
        return folder


def twin(model: M) -> M:
    """The same modules once more, around the same parameters and buffers."""
    own = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in own})


def is_adapter(source: Input) -> bool:
    """Whether a reference leads to an adapter alone."""
    if source.kind == "hub":
        return False
    try:
        folder = local_path(source.location)
    except BadData:
        return False
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def _weight(head: nn.Module) -> torch.Tensor:
    """That which is trained, of a head that peft keeps a copy of."""
    copies = getattr(head, "modules_to_save", None)
    found: torch.Tensor = (copies["default"] if copies is not None else head).weight
    return found
