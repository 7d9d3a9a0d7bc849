"""PPO jobs small enough for a test, run inside the ranks of a pool."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.engine import jobs
from worker.contract.check import parse_spec
from worker.contract.manifest import tree_hash
from worker.contract.order import Input, Order
from worker.tokenizers import bytes_tokenizer

WORDS = ("I am happy", "what a day", "tell me more", "go on", "who is it", "it rains", "why")


def actor_folder(folder: Path, *, seed: int = 1, size: int = 32, layers: int = 2) -> Path:
    """A tiny llama with the tokenizer of bytes, saved: a model by its path."""
    if folder.exists():
        return folder
    tokenizer = bytes_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size, intermediate_size=2 * size, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reward_folder(
    folder: Path, actor: Path, *, weight: float = 0.1, positions: int = 128, template: str | None = None
) -> Path:
    """A reward model on the actor's backbone, whose head has one weight everywhere."""
    config = AutoConfig.from_pretrained(actor, num_labels=1, max_position_embeddings=positions)
    model = AutoModelForSequenceClassification.from_pretrained(actor, config=config)
    with torch.no_grad():
        model.score.weight.fill_(weight)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(actor)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def prompts(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Rows for ppo, of uneven lengths."""
    rng = random.Random(seed)
    return [{"prompt": " ".join(rng.choices(WORDS, k=rng.randint(1, 2)))} for _ in range(count)]


def spec(**changes: Any) -> dict[str, Any]:
    """A tiny PPO; keys of `changes` are dotted paths with `__` for dots, a None value removes."""
    made: dict[str, Any] = {
        "stage": {
            "type": "ppo",
            "actor": {"model": "/actor"},
            "critic": {"model": "/actor"},
            "reward": {"terms": [{"function": "regex", "pattern": "[a-m]"}, {"function": "length"}]},
            "data": "files/prompts",
            "rollout": {"prompts": 8, "slots": 4, "max_new_tokens": 8},
            "ppo": {"epochs": 2, "minibatches": 2},
            "micro_batch": 1,
            "max_length": 96,
            "steps": 2,
            "optimizer": {"lr": 3e-3, "warmup": 0.0},
        },
        "deepspeed": {"precision": "fp32"},
        "checkpoint": {"every_steps": 50},
    }
    return jobs.changed(made, changes)


def deepspeed(zero: int, **more: Any) -> dict[str, Any]:
    """At a ZeRO stage in fp32. At 3 even most weights of a tiny model lie in shards, which by default none does."""
    config = {"zero_optimization": {"stage3_param_persistence_threshold": 100}}
    return {"zero": zero, "precision": "fp32"} | ({"config": config} if zero == 3 else {}) | more


@dataclass
class Job:
    """A PPO in a store."""

    store: Path
    spec: dict[str, Any]
    rows: list[dict[str, Any]]
    held_out: list[dict[str, Any]] = field(default_factory=list)
    dialogues: list[dict[str, Any]] = field(default_factory=list)
    models: dict[str, Path] = field(default_factory=dict)
    """By their path in the spec, where it is not the actor's folder."""
    name: str = "job-ppo"

    def order(self, attempt: int) -> Order:
        """What attempt `attempt` is given."""
        inputs = {"stage.data.prompts": jobs.write_rows(self.store / "files" / "prompts.jsonl", self.rows)}
        if self.held_out:
            inputs["evaluate.data"] = jobs.write_rows(self.store / "files" / "eval.jsonl", self.held_out)
        if self.dialogues:
            inputs["stage.data.ptx"] = jobs.write_rows(self.store / "files" / "ptx.jsonl", self.dialogues)
        actor = self.store / "actor"
        critic = ["stage.critic.model"] if "critic" in self.spec["stage"] else []
        for path in ("stage.actor.model", *critic, *self.models):
            at = self.models.get(path, actor)
            inputs[path] = Input(reference=str(at), kind="path", location=str(at), sha256=tree_hash(at))
        return Order(
            job=self.name,
            attempt=attempt,
            spec=parse_spec(self.spec),
            inputs=inputs,
            store=f"file://{self.store}",
            control_url_file="",
            token_file="",
            termination_file="",
            log_folder="",
        )


def ppo(store: Path, *, rows: int = 24, **changes: Any) -> Job:
    """A PPO on a new actor in `store`."""
    actor_folder(store / "actor")
    return Job(store, spec(**changes), prompts(rows))


def group(store: Path, stage: str, *, rows: int = 24, **changes: Any) -> Job:
    """A job of `grpo` or `rloo` on a new actor in `store`; two prompts an update, with four answers each."""
    actor_folder(store / "actor")
    made = {"stage__type": stage, "stage__critic": None, "stage__ppo": None, "stage__answers": 4}
    made |= {"stage__rollout": {"prompts": 4, "slots": 4, "max_new_tokens": 8}}
    made |= {f"stage__{stage}": {"epochs": 2, "minibatches": 2}}
    return Job(store, spec(**{**made, **changes}), prompts(rows))
