"""Models from scratch: what their configurations may say, and how long their sequences will be."""

from typing import Any

from worker.contract.architectures import POSITIONS, UnknownArchitecture, architecture_of
from worker.contract.parts import Scratch
from worker.contract.problem import Problem

# The vocabulary comes from the tokenizer; no other size depends on it.
_ANY_VOCABULARY = 256


def positions_of(config: dict[str, Any]) -> int | None:
    """The longest sequence of a model made from this configuration, in tokens: what it says, or its family's default.

    None: it does not say, and the family is none of those whose defaults are known.
    """
    try:
        if isinstance(config.get("model_type"), str):
            return architecture_of(config, _ANY_VOCABULARY).positions
    except (UnknownArchitecture, OverflowError):
        pass
    told = (config.get(name) for name in POSITIONS)
    return next((value for value in told if isinstance(value, int) and not isinstance(value, bool) and value > 0), None)


def mixes_of_scratch(model: Scratch, max_length: int) -> list[Problem]:
    """What is wrong with the configuration, and between it and the stage's `max_length`."""
    found = []
    config = model.config
    if not isinstance(config.get("model_type"), str):
        found.append(Problem("stage.model.config.model_type", "name the architecture, such as llama or gpt2"))
    if "vocab_size" in config:
        found.append(Problem("stage.model.config.vocab_size", "comes from the tokenizer; leave it out"))
    for field in ("auto_map", "_name_or_path", "quantization_config"):
        if field in config:
            found.append(Problem(f"stage.model.config.{field}", "is not taken here; leave it out"))
    positions = positions_of(config)
    if positions is not None and max_length > positions:
        found.append(Problem("stage.max_length", f"the model has {positions} positions; write at most {positions}"))
    return found
