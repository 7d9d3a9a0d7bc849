"""A model from scratch: a configuration's architecture with random weights, the same on every rank."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from worker.contract.parts import Scratch
from worker.errors import BadSpec, OutOfMemory, is_out_of_memory
from worker.heads import with_scalar_head

_PATH = "stage.model.config"
KINDS: dict[Any, tuple[Mapping[str, Any], str]] = {
    AutoModelForCausalLM: (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "a causal language model"),
    AutoModelForSequenceClassification: (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "a classifier of texts"),
    AutoModelForTokenClassification: (MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, "a classifier of words"),
}
"""The architectures that transformers has with each kind of head, and what such a model is called."""


def from_scratch(
    scratch: Scratch,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    dtype: torch.dtype,
    scalar: bool = False,
    auto: Any = None,
    labelled: Callable[[PreTrainedConfig], None] = lambda _: None,
) -> PreTrainedModel:
    """A model of `dtype`, its weights drawn from `seed` alone, in fp32; with `scalar`, one with a scalar head.

    `auto` is another of transformers' `Auto` classes than a language model's; `labelled` tells its configuration more.

    Raises BadSpec for a configuration that makes no model, and OutOfMemory for one that is too large. The vocabulary
    and the special tokens are the tokenizer's; the random state outside is left as it was.
    """
    auto = auto or (AutoModelForSequenceClassification if scalar else AutoModelForCausalLM)
    config = _config(dict(scratch.config), tokenizer, auto if not scalar else AutoModelForCausalLM)
    labelled(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if scalar:
                config.num_labels = 1
            model = auto.from_config(config, dtype=torch.float32)
        except _MAKES_NONE as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            if is_out_of_memory(error):
                raise OutOfMemory(f"{_PATH}: a model of these sizes does not fit into memory: {first}") from None
            raise BadSpec(f"{_culprit(scratch.config)}: makes no model: {first}") from None
    assert isinstance(model, PreTrainedModel)
    if scalar:
        model = with_scalar_head(model, zero=True, path=_PATH, name="the model from scratch")
    # Buffers stay as they are, as when a model is loaded: a rotary embedding's frequencies need all their digits.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


_MAKES_NONE = (
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    KeyError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)


def _culprit(given: dict[str, Any]) -> str:
    """The path of the field that a model cannot be made with, as far as it can be told: the only number below 1."""
    below = [name for name, value in given.items() if type(value) is int and value < 1]
    return f"{_PATH}.{below[0]}" if len(below) == 1 else _PATH


def _check_ranges(given: dict[str, Any]) -> None:
    """What architectures take in silence, or say without the field's name. Raises BadSpec."""
    for field, value in given.items():
        if "drop" in field and type(value) in (int, float) and not 0 <= value <= 1:
            raise BadSpec(f"{_PATH}.{field}: must be a probability, from 0 to 1; got {value:g}")


def _are_tokens(value: Any, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a special token's id, or a list of them, lies in the vocabulary."""
    ids = value if isinstance(value, list) else [value]
    return all(type(id) is not int or 0 <= id < len(tokenizer) for id in ids)


def _config(given: dict[str, Any], tokenizer: PreTrainedTokenizerBase, auto: Any) -> PreTrainedConfig:
    kind = given.pop("model_type")
    known_kinds, called = KINDS[auto]
    if kind not in known_kinds:
        near = difflib.get_close_matches(kind, known_kinds, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "llama and gpt2 are"
        raise BadSpec(f"{_PATH}.model_type: {kind} is no architecture of {called}; {hint}")
    standard = AutoConfig.for_model(kind)
    # A configuration takes any field; a misspelt one would train another model than the one meant, in silence.
    known = {*standard.to_dict(), *standard.attribute_map, *PreTrainedConfig().to_dict()} - {"model_type"}
    for field in given:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(sorted(known))}"
            raise BadSpec(f"{_PATH}.{field}: {kind} has no such field; {hint}")
    _check_ranges(given)
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    # A configuration that was copied may name special tokens of a larger vocabulary, or -1 for none.
    given = {field: value for field, value in given.items() if field not in special or _are_tokens(value, tokenizer)}
    try:
        return AutoConfig.for_model(kind, vocab_size=len(tokenizer), **{**special, **given})
    except (StrictDataclassError, *_MAKES_NONE) as error:
        said = " ".join(str(error).split())
        if isinstance(error, ArithmeticError | AssertionError):
            raise BadSpec(f"{_culprit(given)}: makes no model: {said}") from None
        raise BadSpec(f"{_PATH}: {said}") from None
