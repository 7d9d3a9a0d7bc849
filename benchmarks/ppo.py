"""One PPO iteration, ours against a straight loop (`benchmarks/ppo_plain.py`), in samples a second, phase by phase.

    python -m benchmarks.ppo [--prompts 32] [--size 8] [--mean 32] [--limit 128] [--rounds 5]

SmolLM2-135M with LoRA in fp32 for actor and critic, a reward model of the same size; the same prompts, and answers
whose lengths are drawn beforehand and kept by both. First both learn from the same answers, and must have the same
losses. Then rounds alternate. Prints each phase's time, the median ratio and its spread.
"""

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from benchmarks.ppo_plain import Plain, batch_of
from benchmarks.rollout import work
from tests.engine.jobs import Plan, PlannedChannel
from tests.model.conftest import smollm2_gguf
from worker.context import Context
from worker.contract.check import parse_spec
from worker.contract.manifest import tree_hash
from worker.contract.order import Input, Order
from worker.distributed import Ranks
from worker.gguf import converted
from worker.lora import with_adapters
from worker.rl import sampled
from worker.rl.experience import Rolled
from worker.rl.hand import Hand
from worker.rl.material import prepare
from worker.rl.roles import load_roles, without_dropout
from worker.stages.ppo import Ppo

LR, COEF = 1e-4, 0.05


def reward_folder(folder: Path, model: Path) -> Path:
    """A reward model of the same size, whose head nobody has trained."""
    torch.manual_seed(3)
    made = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def ours(store: Path, model: Path, reward: Path, given: Any, size: int, rows: list[dict[str, Any]]) -> Ppo:
    """A PPO at its first iteration, on one rank."""
    stage = {
        "type": "ppo", "actor": {"model": str(model), "lora": {}}, "critic": {"model": str(model), "lora": {}},
        "reward": {"terms": [{"model": str(reward)}]}, "data": "files/prompts",
        "rollout": {"prompts": len(given.prompts), "slots": given.slots, "max_new_tokens": 1024},
        "ppo": {"minibatches": len(given.prompts) // size, "kl": {"coef": COEF}}, "micro_batch": size,
        "max_length": 2048, "steps": 10_000, "samples": {"per_step": 0},
        "optimizer": {"lr": LR, "schedule": "constant", "warmup": 0.0},
        "guards": {"length": None, "kl": None, "entropy": None, "hacking": None},
    }  # fmt: skip
    data = store / "prompts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {
        "stage.actor.model": model, "stage.critic.model": model, "stage.reward.terms.0.model": reward,
        "stage.data.prompts": data,
    }  # fmt: skip
    inputs = {
        path: Input(reference=str(at), kind="path", location=str(at), sha256=tree_hash(at))
        for path, at in paths.items()
    }
    spec = parse_spec({"stage": stage, "deepspeed": {"precision": "fp32"}})
    order = Order(
        job="job-bench", attempt=1, spec=spec, inputs=inputs,
        store=store.as_uri(), control_url_file="", token_file="", termination_file="", log_folder="",
    )  # fmt: skip
    context = Context(order, 0, 1, PlannedChannel(Plan(), 0), store)
    ranks = Ranks(0, 1)
    os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    roles = load_roles(context)
    return Ppo(context, ranks, roles, prepare(context, roles))


def plain(model: Path, reward: Path) -> Plain:
    """The straight loop, on models of its own that begin alike."""
    from worker.contract.parts import Lora
    from worker.heads import head_of

    actor = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    actor.generation_config.eos_token_id = None
    critic = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        head_of(critic).weight.zero_()
    reference = copy.deepcopy(actor).eval()
    judge = AutoModelForSequenceClassification.from_pretrained(reward, dtype=torch.float32).eval()
    for one in (actor, critic):
        without_dropout(one)
    return Plain(
        with_adapters(actor, Lora(), 17), reference, with_adapters(critic, Lora(), 17, head=True), judge,
        lr=LR, coef=COEF,
    )  # fmt: skip


def iterate(ppo: Ppo, lengths: list[int]) -> dict[str, float]:
    """One iteration with answers of these lengths; gives its seconds by phase."""
    unlimited = sampled.sample
    order = iter(lengths)

    def limited(model: Any, prompts: list[list[int]], **more: Any) -> Any:
        limits = [next(order) for _ in prompts]
        return unlimited(model, prompts, **{**more, "ends": frozenset(), "limits": limits})

    sampled.sample = limited
    try:
        hand = Hand(ppo.course.step + 1)
        ppo.course.hand = hand
        ppo._iterate()
    finally:
        sampled.sample = unlimited
    return hand.seconds


def check_same(ppo: Ppo, straight: Plain, given: Any) -> None:
    """Both learn three times from the same answers. Raises AssertionError unless their losses are alike each time.

    At first the KL and all values are 0. The second time they are not; the third is an update more of the second's
    advantages, whose ratios are not 1, and some are clipped.
    """
    hand = ppo.course.hand = Hand(ppo.course.step + 1)
    prompts = given.prompts[:8]
    # They end as reward models read them: on our side, whatever ended an answer is read as that.
    (end,) = {model.end for model in ppo.roles.rewards.values()}
    answers = [[*straight.generate([p], [n])[0][:-1], end] for p, n in zip(prompts, given.lengths[:8], strict=True)]
    hand.rolled = [Rolled(i, i, list(p), a, ended=True) for i, (p, a) in enumerate(zip(prompts, answers, strict=True))]
    batch = batch_of(prompts, answers)
    for number in range(3):
        if number < 2:
            ppo._judge(hand)
            credit = ppo.credit(hand)
            straight.score(batch)
            straight.credit([batch])
        policy, value = straight.update(batch)
        found = ppo.update(hand, credit, range(8), number // 2)
        pairs = {"policy": (found["policy_loss"], policy), "value": (found["value_loss"], value)}
        print("the same answers: " + ", ".join(f"{n} loss {a:.6f} ours, {b:.6f} plain" for n, (a, b) in pairs.items()))
        for name, (mine, theirs) in pairs.items():
            # Adam's first step has the size of the learning rate where a gradient is rounding, too.
            assert abs(mine - theirs) < (1e-4 if number == 0 else 1e-2) * max(0.1, abs(theirs)), name
    ppo.course.hand = None


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument(
        "--size", type=int, default=8, help="slots, rows of a minibatch, and of a batch of the plain loop"
    )
    parser.add_argument("--mean", type=float, default=32)
    parser.add_argument("--limit", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, _ = converted(smollm2_gguf(), Path.home() / ".cache" / "rlhf-operator" / "models")
    with tempfile.TemporaryDirectory() as name:
        given = work(model, asked.prompts, asked.size, asked.mean, asked.limit)
        tokenizer = AutoTokenizer.from_pretrained(model)
        reward = reward_folder(Path(name) / "reward", model)
        said = [{"prompt": f"{number}"} for number in range(asked.prompts)]
        ppo = ours(Path(name), model, reward, given, asked.size, said)
        # The same prompts on both sides, token by token.
        for row, prompt in zip(ppo.material.prompts, given.prompts, strict=True):
            object.__setattr__(row, "ids", type(row.ids)((len(prompt),), row.ids.dtype))
            row.ids[:] = prompt
        straight = plain(model, reward)
        del tokenizer
        check_same(ppo, straight, given)
        samples: dict[str, list[float]] = {"ours": [], "plain": []}
        phases: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
        for number in range(asked.rounds):
            for who in ("ours", "plain") if number % 2 == 0 else ("plain", "ours"):
                began = time.perf_counter()
                if who == "ours":
                    seconds = iterate(ppo, given.lengths)
                else:
                    straight.iterate(given.prompts, given.lengths, asked.size)
                    seconds = straight.seconds
                samples[who].append(asked.prompts / (time.perf_counter() - began))
                phases[who].append(seconds)
            print(f"round {number + 1}: " + ", ".join(f"{w} {s[-1]:.3f}" for w, s in samples.items()), flush=True)
    for who, each in phases.items():
        shown = ", ".join(f"{p} {statistics.median(s[p] for s in each):.1f} s" for p in ("generate", "score", "update"))
        print(f"{who}: {shown}")
    ratios = sorted(a / b for a, b in zip(samples["ours"], samples["plain"], strict=True))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"samples a second, ours / plain: {statistics.median(ratios):.2f} ({spread}; aimed at 1.5)")


if __name__ == "__main__":
    main()
