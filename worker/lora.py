"""LoRA (Hu et al., 2021): low-rank adapters beside frozen weights, by peft."""

from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from worker.contract.parts import Lora
from worker.errors import BadSpec
from worker.heads import HEAD

_PATH = "stage.lora.targets"
_HEADS = (HEAD, "classifier")  # as transformers names them, and peft knows them


def with_adapters(
    model: PreTrainedModel,
    lora: Lora,
    seed: int,
    *,
    head: bool = False,
    task: TaskType | None = None,
    whole: Sequence[str] = (),
) -> PeftModel:
    """The model with adapters on its linear layers, the same on every rank; all else is frozen. Raises BadSpec.

    With `head` the model has a head beside its backbone, which is trained in full and saved with the adapters, as are
    the modules named in `whole`; `task` is peft's word for such a head (absent: that of a text's).

    `all-linear` leaves out the output layer: it is often the input embedding too, and the adapter would change both.
    """
    targets = lora.targets
    if isinstance(targets, list):
        _check(model, targets, (*_HEADS, *whole))
    config = LoraConfig(
        # For a classifier, peft trains a layer that is named as the head is, beside the adapters.
        task_type=task or (TaskType.SEQ_CLS if head else TaskType.CAUSAL_LM),
        modules_to_save=list(whole) or None,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        # Conv1D (GPT-2) holds its weight transposed. Told here, since peft would only warn and correct it.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Adapters in the model's own precision: DeepSpeed keeps the fp32 copies that the optimizer needs.
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def _check(model: PreTrainedModel, targets: list[str], trained: Sequence[str]) -> None:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    output = model.get_output_embeddings()
    tied = (
        [n for n, m in model.named_modules() if m is output]
        if output is not None and model.config.get_text_config().tie_word_embeddings
        else []
    )
    # They are trained as they are.
    names = [name for name in names if not any(name == whole or name.startswith(f"{whole}.") for whole in trained)]
    known = sorted({name.rsplit(".", 1)[-1] for name in names if name not in tied})
    for target in targets:
        matching = [name for name in names if name == target or name.endswith(f".{target}")]
        if not matching:
            raise BadSpec(f"{_PATH}: the model has no linear layer `{target}`; it has: {', '.join(known)}")
        if set(matching) & set(tied):
            raise BadSpec(
                f"{_PATH}: `{target}` shares its weight with the input embedding; choose of: {', '.join(known)}"
            )
