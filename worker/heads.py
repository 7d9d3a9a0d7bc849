"""The scalar head: one number for every position, of a backbone's last hidden states.

It is transformers' own form, a sequence classifier with one label and no bias, so that what is saved loads there.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from worker.errors import BadSpec

HEAD = "score"
"""What transformers names it in every decoder."""


class ScalarHead(nn.Linear):
    """A linear layer without bias from hidden states to one number, which is fp32 whatever the weights are.

    In bf16 a score of 4 would be a multiple of 1/32, and answers that differ would tie.
    """

    def __init__(self, size: int, dtype: torch.dtype):
        super().__init__(size, 1, bias=False, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """[..., size] to [..., 1]."""
        return nn.functional.linear(input.float(), self.weight.float())


def with_scalar_head(model: PreTrainedModel, *, zero: bool, path: str, name: str) -> PreTrainedModel:
    """The sequence classifier with its head computed in fp32; with `zero` the head starts at zero. Raises BadSpec."""
    head = getattr(model, HEAD, None)
    if not isinstance(head, nn.Linear) or head.out_features != 1 or head.bias is not None:
        raise BadSpec(
            f"{path}: {name} ({model.config.model_type}) has no scalar head in transformers (a layer `{HEAD}` with one "
            "output and no bias); give a decoder such as llama, qwen2, mistral, gpt2 or gpt_neox"
        )
    made = ScalarHead(head.in_features, head.weight.dtype)
    with torch.no_grad():
        made.weight.zero_() if zero else made.weight.copy_(head.weight)
    model.add_module(HEAD, made)
    return model


def transformer(model: nn.Module) -> Any:
    """The transformers model inside an engine's and peft's wrapping."""
    inner = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def hidden_states(model: nn.Module, batch: Any) -> Tensor:
    """What the head reads, of every position: [rows, time, size].

    `batch` has `input_ids` and `position_ids`, [rows, time], padded on the right, where no real token looks.
    """
    inner = transformer(model)
    backbone = getattr(inner, inner.base_model_prefix)
    # By its parts, and not through `inner` itself: that one looks for the last token by the padding's id.
    found: Tensor = backbone(
        input_ids=batch.input_ids, attention_mask=None, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    return found


def head_of(model: nn.Module) -> nn.Module:
    """The scalar head of a model that has one; peft's copy of it, where peft trains it."""
    head: nn.Module = getattr(transformer(model), HEAD)
    return head
