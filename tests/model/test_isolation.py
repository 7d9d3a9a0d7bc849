"""Samples in one row do not see each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.model.conftest import GPT2, LLAMA, QWEN2, all_logits, spec_of
from worker.data import Sample, sample
from worker.errors import BadSpec
from worker.models import Loaded, load
from worker.packing import MicroBatch, collate

MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": 4}
PACKABLE = [LLAMA, GPT2, QWEN2, MISTRAL]


def ids(*numbers: int) -> Sample:
    return sample(numbers, [True] * len(numbers))


@torch.no_grad()
def logits(model: nn.Module, batch: MicroBatch) -> Tensor:
    return all_logits(model, batch)


@pytest.mark.parametrize("config", PACKABLE, ids=lambda c: c["model_type"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_logits_are_those_of_the_samples_alone(
    tiny: Callable[..., Loaded], config: dict[str, Any], attention: str
) -> None:
    model = tiny(config, packing=True).model
    model.set_attn_implementation(attention)
    parts = [ids(*range(10, 19)), ids(7), ids(*range(40, 30, -1)), ids(3, 3, 3)]
    packed = logits(model, collate([parts, [ids(*range(50, 80))]], pad_id=0))[0]
    at = 0
    for part in parts:
        alone = logits(model, collate([[part]], pad_id=0))[0]
        torch.testing.assert_close(packed[at : at + len(part)], alone, rtol=0, atol=1e-5)
        at += len(part)


@pytest.mark.parametrize("config", PACKABLE, ids=lambda c: c["model_type"])
def test_other_words_in_a_neighbour_change_not_one_bit(tiny: Callable[..., Loaded], config: dict[str, Any]) -> None:
    model = tiny(config, packing=True).model
    first, second = ids(*range(20)), ids(*range(60, 75))
    before = logits(model, collate([[first, ids(1, 2, 3), second]], pad_id=0))[0]
    after = logits(model, collate([[first, ids(200, 100, 50), second]], pad_id=0))[0]
    assert torch.equal(before[:20], after[:20])
    assert torch.equal(before[23:], after[23:])
    assert not torch.equal(before[20:23], after[20:23])


def test_a_mask_of_ones_would_let_samples_leak(tiny: Callable[..., Loaded]) -> None:
    # What the packed batch leaves out, and why: the isolation below is no accident of these models.
    model = tiny(packing=True).model
    batch = collate([[ids(*range(20)), ids(*range(60, 75))]], pad_id=0)
    given = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    with torch.no_grad():
        leaking = model(**given, attention_mask=torch.ones_like(batch.input_ids)).logits[0]
    assert (leaking[20:] - logits(model, batch)[0, 20:]).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["mamba", "bloom", "opt"])
def test_an_architecture_that_does_not_isolate_cannot_be_packed(kind: str, tmp_path: Path) -> None:
    config = {"model_type": kind, "hidden_size": 32, "num_hidden_layers": 2}
    config |= {} if kind == "mamba" else {"num_attention_heads": 4}
    config |= {"ffn_dim": 64, "word_embed_proj_dim": 32} if kind == "opt" else {}
    load(spec_of({"config": config}), {}, tmp_path)
    with pytest.raises(BadSpec, match=r"stage.packing: samples in one row would see each other .*cannot be packed"):
        load(spec_of({"config": config}, packing=True), {}, tmp_path)


def test_the_real_models_packed_logits_are_those_of_the_samples_alone(
    smollm2: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = smollm2
    texts = ["The capital of France is Paris.", "Water boils at 100 degrees.", "Roses are red, violets are blue."]
    parts = [ids(*tokenizer(text)["input_ids"]) for text in texts]
    packed = logits(model, collate([parts], pad_id=0))[0]
    separate = torch.cat([logits(model, collate([[part]], pad_id=0))[0] for part in parts])
    assert (packed - separate).abs().max() <= 1e-3
