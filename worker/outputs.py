"""What a job hands over: the model as others load it, the adapter alone beside it, and where both came from."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from worker import checkpoint
from worker.context import Context
from worker.contract.manifest import LINEAGE
from worker.contract.protocol import Output
from worker.dialogue import turn_end
from worker.lineage import lineage
from worker.models import Loaded


def save_outputs(
    context: Context,
    loaded: Loaded,
    state: dict[str, Tensor],
    step: int,
    *,
    kind: str | None = None,
    base: str = "stage.model",
    beside: Mapping[str, str] | None = None,
) -> list[Output]:
    """Seals `model`, and with LoRA `adapter`, in the attempt's outputs; only one rank calls it. Raises OSError.

    With `kind` there is one output, of that name. `base` is where the spec names the model that adapters were added to.
    `beside` are more files of the model's folder, by name.

    `state` is the whole model's weights by the names of `loaded.model.state_dict()`; tied weights are one tensor.

    The model gives the logits that it gave in training: weights are saved in the precision that they were trained in.
    With LoRA it is merged, in fp32 whatever the precision of training (a bf16 sum would round most of what was learnt
    away), and its logits are those of the base with its adapters to the rounding of a sum taken in another order.
    """
    outputs = []
    final = context.outputs / (kind or "model")
    folder = checkpoint.temporary_for(final)
    write_model(loaded, state, folder)
    for name, text in (beside or {}).items():
        (folder / name).write_text(text, encoding="utf-8")
    outputs.append(_sealed(context, kind or "model", folder, final, step))
    if kind is None and isinstance(loaded.model, PeftModel):
        final = context.outputs / "adapter"
        folder = checkpoint.temporary_for(final)
        _write_adapter(loaded.model, state, context.order.inputs[base].reference, folder)
        loaded.tokenizer.save_pretrained(folder)
        outputs.append(_sealed(context, "adapter", folder, final, step))
    return outputs


def _sealed(context: Context, kind: str, folder: Path, final: Path, step: int) -> Output:
    (folder / LINEAGE).write_text(json.dumps(lineage(context.order, step), indent=1, sort_keys=True) + "\n")
    manifest = checkpoint.seal(folder, final)
    return Output.model_validate(
        {"kind": kind, "path": context.relative(final), "bytes": manifest.total_bytes, "sha256": manifest.sha256}
    )


def write_model(loaded: Loaded, state: dict[str, Tensor], folder: Path) -> None:
    """A folder for transformers' `Auto` classes: weights, configurations, tokenizer, chat template.

    For `AutoModelForCausalLM`, or of a model with a scalar head for `AutoModelForSequenceClassification`.
    """
    if isinstance(loaded.model, PeftModel):
        model = _merged(loaded.model, state)
        state = model.state_dict()
    else:
        assert isinstance(loaded.model, PreTrainedModel)
        model = loaded.model
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        model.generation_config = _ends_at(generation, turn_end(loaded.tokenizer))
    try:
        # Given all names at once, it leaves out those that are tied to others.
        model.save_pretrained(folder, state_dict=dict(state))
    finally:
        model.generation_config = generation
    loaded.tokenizer.save_pretrained(folder)


def _merged(model: PeftModel, state: dict[str, Tensor]) -> PreTrainedModel:
    """The base model with the adapters added to its weights, in fp32, beside the live one, which stays as it is.

    The live model's weights may be spread over the ranks; so another is made around the gathered ones, without
    memory of its own.
    """
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    adapters = copy.copy(model.peft_config["default"])
    with torch.device("meta"):
        empty = type(base)._from_config(copy.deepcopy(base.config), dtype=torch.float32)
        wrapped = get_peft_model(empty, adapters)
    whole: dict[int, Tensor] = {}  # by its memory: a tied weight is converted once, and stays one tensor
    for name, tensor in state.items():
        # What an adapter is added to changes in place, and `state` is the caller's.
        fresh = torch.float32 if tensor.is_floating_point() else tensor.dtype
        whole.setdefault(tensor.data_ptr(), tensor.to(fresh, copy=".base_layer." in name))
    wrapped.load_state_dict({name: whole[tensor.data_ptr()] for name, tensor in state.items()}, assign=True)
    wrapped.tie_weights()
    merged = wrapped.merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    merged.generation_config = copy.deepcopy(getattr(base, "generation_config", None))
    return merged


def _write_adapter(model: PeftModel, state: dict[str, Tensor], base: str, folder: Path) -> None:
    """peft's own form, for `PeftModel.from_pretrained`."""
    weights = get_peft_model_state_dict(model, state_dict=dict(state), save_embedding_layers=False)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    config = copy.copy(model.peft_config["default"])
    config.inference_mode = True
    config.base_model_name_or_path = base
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # the same file each time
    config.save_pretrained(str(folder))


def _ends_at(generation: GenerationConfig, end: int | None) -> GenerationConfig:
    """The same settings, and an answer also ends where the chat template ends a turn."""
    known = generation.eos_token_id
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    if end is None or end in ends:
        return generation
    changed = copy.deepcopy(generation)
    changed.eos_token_id = [*ends, end]
    return changed
