"""A model from scratch: a configuration's architecture with random weights, the same on every rank."""

import difflib
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from worker.contract.parts import Scratch
from worker.errors import BadSpec
from worker.heads import with_scalar_head

_PATH = "stage.model.config"


def from_scratch(
    scratch: Scratch, tokenizer: PreTrainedTokenizerBase, *, seed: int, dtype: torch.dtype, scalar: bool = False
) -> PreTrainedModel:
    """A model of `dtype`, its weights drawn from `seed` alone, in fp32; with `scalar`, one with a scalar head.

    Raises BadSpec for a configuration that makes no model. The vocabulary and the special tokens are the tokenizer's;
    the random state outside is left as it was.
    """
    config = _config(dict(scratch.config), tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if scalar:
                config.num_labels = 1
            auto: Any = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
            model = auto.from_config(config, dtype=torch.float32)
        except (ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
            raise BadSpec(f"{_PATH}: makes no model: {error}") from None
    assert isinstance(model, PreTrainedModel)
    if scalar:
        model = with_scalar_head(model, zero=True, path=_PATH, name="the model from scratch")
    # Buffers stay as they are, as when a model is loaded: a rotary embedding's frequencies need all their digits.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _config(given: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    kind = given.pop("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        near = difflib.get_close_matches(kind, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "llama and gpt2 are"
        raise BadSpec(f"{_PATH}.model_type: {kind} is no architecture of a causal language model; {hint}")
    standard = AutoConfig.for_model(kind)
    # A configuration takes any field; a misspelt one would train another model than the one meant, in silence.
    known = {*standard.to_dict(), *standard.attribute_map, *PreTrainedConfig().to_dict()} - {"model_type"}
    for field in given:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(known))}"
            raise BadSpec(f"{_PATH}.{field}: {kind} has no such field; {hint}")
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    try:
        return AutoConfig.for_model(kind, vocab_size=len(tokenizer), **{**special, **given})
    except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise BadSpec(f"{_PATH}: {' '.join(str(error).split())}") from None
