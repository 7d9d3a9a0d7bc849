"""The whole of RLHF on a real cluster: three steps of two pods each, real DeepSpeed, and models from scratch."""

from pathlib import Path
from typing import Any

import pytest

from client.records import Pipeline
from tests.e2e.plane import wait_until
from tests.kubernetes.namespace import REPOSITORY
from tests.kubernetes.plane import Plane

DATA = REPOSITORY / "examples/data"
TINY = {
    "config": {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
    }
}  # fmt: skip
# The two pods of an attempt are never on one node.
APART = {
    "affinity": {
        "pod_anti_affinity": {
            "required_during_scheduling_ignored_during_execution": [
                {
                    "label_selector": {"match_labels": {"app.kubernetes.io/managed-by": "rlhf-operator"}},
                    "topology_key": "kubernetes.io/hostname",
                    "match_label_keys": ["batch.kubernetes.io/job-name"],
                }
            ]
        }
    }
}
STEPS = {"base": 6, "scores": 4, "ppo": 2}


def step(type: str, **stage: Any) -> dict[str, Any]:
    """A step of two pods, each on a node of its own."""
    return {
        "stage": {"type": type, "max_length": 128, "optimizer": {"lr": 1e-2, "warmup": 0}, **stage},
        "deepspeed": {"zero": 2, "precision": "fp32"},
        "resources": {"nodes": 2, "per_node": 1, "cpu": "500m", "memory": "1500Mi", "pod": APART},
    }


def uploaded(plane: Plane, file: Path) -> str:
    return f"files/{plane.client.files.upload(file).id}"


def test_sft_reward_and_ppo_of_two_pods_each_become_models(plane: Plane) -> None:
    data = {name: uploaded(plane, DATA / f"{name}.jsonl") for name in ("tiny", "comparisons", "prompts")}
    base, scores = {"from": "base.model"}, {"from": "scores.model"}
    lora = {"rank": 4}
    steps = {
        "base": step("sft", model=TINY, data=data["tiny"], batch=8, steps=STEPS["base"]),
        "scores": step("reward", model=base, data=data["comparisons"], batch=6, steps=STEPS["scores"]),
        "ppo": step(
            "ppo",
            actor={"model": base, "lora": lora},
            critic={"model": scores, "lora": lora},
            reward={"terms": [{"model": scores}], "scale": "running"},
            data=data["prompts"],
            rollout={"prompts": 8, "slots": 4, "max_new_tokens": 8},
            ppo={"minibatches": 2},
            steps=STEPS["ppo"],
        ),
    }
    made = plane.client.pipelines.create({"name": "whole", "steps": steps})
    nodes: dict[str, set[str]] = {name: set() for name in STEPS}

    def ended() -> Pipeline | None:
        found = plane.client.pipelines.get(made.id)
        for part in found.steps:
            nodes[part.step] |= {pod["spec"].get("nodeName", "") for pod in plane.pods(part.id)} - {""}
        return found if found.final else None

    pipeline = wait_until(ended, seconds=500, what="the end of the pipeline") or pytest.fail("no answer")
    for part in pipeline.steps:
        assert (part.phase, part.attempt) == ("succeeded", 1), plane.story(part.id)
        assert len(nodes[part.step]) == 2, nodes
        # What it reported came from the pod of its first rank, over the pods' network.
        points = plane.client.jobs.metrics(part.id, name="ppo/kl" if part.step == "ppo" else "train/loss")
        assert [point.step for point in points] == list(range(1, STEPS[part.step] + 1))
        assert [line.rank for line in plane.client.jobs.logs(part.id)] == [0, 1]
    assert {f"{part.step}.{model.kind}" for part in pipeline.steps for model in part.models} == {
        "base.model", "scores.model", "ppo.model", "ppo.adapter", "ppo.critic",
    }  # fmt: skip
    lineage = plane.client.models.lineage("whole-ppo")
    assert lineage["parents"]["stage.actor.model"]["reference"] == "models/whole-base@1"
    assert lineage["parents"]["stage.critic.model"]["reference"] == "models/whole-scores@1"
    plane.is_empty()
