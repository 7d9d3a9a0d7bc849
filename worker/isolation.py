"""Whether samples packed into one row are blind to each other, found out by trying."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from worker.data import sample
from worker.errors import BadSpec
from worker.packing import Row, collate

# Logits of the second sample may differ by this share of their largest: rounding, not another sample's words.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def check_isolation(model: PreTrainedModel, name: str) -> None:
    """Raises BadSpec if a sample's logits depend on what is packed before it. Three forward passes of a few tokens.

    Transformers finds the samples' borders in their position ids; architectures that attend in ways of their own, or
    carry a state along the row, need not.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    first, other, second = _tokens(vocabulary, 5), _tokens(vocabulary, 5)[::-1], _tokens(vocabulary, 7, start=11)
    was_training = model.training
    model.eval()
    try:
        alone = _logits(model, [sample(second, [True] * 7)])
        packed = _logits(model, [sample(first, [True] * 5), sample(second, [True] * 7)])[5:]
        beside = _logits(model, [sample(other, [True] * 5), sample(second, [True] * 7)])[5:]
    finally:
        model.train(was_training)
    scale = alone.abs().max() * _TOLERANCE.get(model.dtype, 2e-2)
    if (packed - alone).abs().max() > scale or (packed - beside).abs().max() > scale:
        raise BadSpec(
            f"stage.packing: samples in one row would see each other in {name} ({model.config.model_type}); "
            "this architecture cannot be packed, so leave packing out"
        )


def _tokens(vocabulary: int, count: int, start: int = 1) -> list[int]:
    return [(start + 7 * n) % vocabulary for n in range(count)]


def _logits(model: PreTrainedModel, row: Row) -> Tensor:
    """[time, vocabulary], in fp32."""
    batch = collate([row], pad_id=0)
    with torch.no_grad():
        logits: Tensor = model(
            input_ids=batch.input_ids, attention_mask=None, position_ids=batch.position_ids, use_cache=False
        ).logits
    return logits[0].float()
