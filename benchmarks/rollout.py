"""Rollouts in answers' tokens a second, ours against transformers' `generate`, on real prompts.

    python -m benchmarks.rollout [--prompts 64] [--slots 16] [--mean 32] [--limit 128] [--rounds 5]
    python -m benchmarks.rollout --zero3 [...]

SmolLM2-135M in fp32. How long each answer becomes is drawn beforehand, geometrically, and kept by both sides, so that
both make the same tokens' number; `generate` takes the prompts in batches as large as there are slots. With `--zero3`
two ranks share the model's weights, each has half of the prompts, and `generate` runs with `synced_gpus`. Rounds
alternate. Prints the median ratio and its spread.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from examples.dialogues import rows as dialogues
from tests.engine.pool import Pool
from tests.model.conftest import smollm2_gguf
from worker.contract.parts import DeepSpeed, Optimizer
from worker.contract.ppo import Rollout
from worker.gguf import converted
from worker.rl.prompts import prompt_ids
from worker.rl.rollout import sample

Turn = Callable[[], float]
"""Makes all answers; gives tokens a second."""


@dataclass(frozen=True)
class Work:
    """What is to be answered, and how long each answer becomes."""

    model: Path
    prompts: list[list[int]]
    lengths: list[int]
    slots: int

    def share(self, rank: int, world: int) -> "Work":
        """One rank's part of it."""
        return Work(self.model, self.prompts[rank::world], self.lengths[rank::world], self.slots)


def work(model: Path, count: int, slots: int, mean: float, limit: int, seed: int = 5) -> Work:
    tokenizer = AutoTokenizer.from_pretrained(model)
    rng = random.Random(seed)
    said = [row["messages"][:1] for row in dialogues()]
    prompts = [prompt_ids(tokenizer, messages) for messages in rng.sample(said, count)]
    # Geometric: after each token an answer ends with a probability of 1 / mean.
    lengths = [next(n for n in range(1, limit + 1) if n == limit or rng.random() < 1 / mean) for _ in prompts]
    return Work(model, prompts, lengths, slots)


class Lengths(StoppingCriteria):  # type: ignore[misc]
    """Ends each row of a batch at its own length."""

    def __init__(self, prompt: int, lengths: list[int]):
        self._at = torch.tensor([prompt + length for length in lengths])

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self._at


def generate(model: Any, given: Work, *, synced: bool = False) -> float:
    """All answers by `generate`, batch by batch. Gives tokens a second."""
    began = time.perf_counter()
    for first in range(0, len(given.prompts), given.slots):
        prompts, lengths = given.prompts[first : first + given.slots], given.lengths[first : first + given.slots]
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        made = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=max(lengths), eos_token_id=None, pad_token_id=0, synced_gpus=synced,
            stopping_criteria=StoppingCriteriaList([Lengths(longest, lengths)]),
        )  # fmt: skip
        assert made.shape[1] == longest + max(lengths)
    return sum(given.lengths) / (time.perf_counter() - began)


def slots(model: Any, given: Work) -> float:
    """All answers by ours. Gives tokens a second."""
    began = time.perf_counter()
    found = sample(
        model, given.prompts, seeds=list(range(len(given.prompts))), rollout=Rollout(max_new_tokens=2**20),
        slots=given.slots, ends=frozenset(), pad_id=0, device=torch.device("cpu"), limits=given.lengths,
    )  # fmt: skip
    assert [len(answer.ids) for answer in found] == given.lengths
    return sum(given.lengths) / (time.perf_counter() - began)


def _model(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # Both sides are told all there is to say.
    model.generation_config.eos_token_id = None
    return model


def compare(ours: Turn, theirs: Turn, rounds: int, *, quiet: bool = False) -> dict[str, list[float]]:
    """Tokens a second of each, round by round; who begins alternates."""
    speeds: dict[str, list[float]] = {"ours": [], "generate": []}
    turns = {"ours": ours, "generate": theirs}
    for number in range(rounds):
        for who in list(turns) if number % 2 == 0 else list(reversed(turns)):
            speeds[who].append(turns[who]())
        if not quiet:
            print(f"round {number + 1}: " + ", ".join(f"{w} {s[-1]:.1f}" for w, s in speeds.items()), flush=True)
    return speeds


def sharded(rank: int, world: int, given: Work, rounds: int) -> dict[str, list[float]]:
    """One rank of two whose engines share the weights: its part of the answers, by both ways."""
    import deepspeed

    from worker.distributed import Ranks
    from worker.engine import Engine, Setting
    from worker.losses import token_loss_sum
    from worker.rl.gathered import gathered

    logging.set_verbosity_error()
    ranks, mine = Ranks(rank, world), given.share(rank, world)
    engine = Engine(
        _model(given.model), token_loss_sum, Setting(DeepSpeed(zero=3, precision="fp32"), Optimizer(), world, 1, 1)
    )
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, "steps_per_print": 2**31}
    plain, *_ = deepspeed.initialize(model=_model(given.model), config=config, dist_init_required=False)
    plain.eval()

    def ours() -> float:
        ranks.barrier()
        began = time.perf_counter()
        with gathered(engine) as model:
            slots(model, mine)
        ranks.barrier()
        return sum(given.lengths) / (time.perf_counter() - began)

    def theirs() -> float:
        ranks.barrier()
        began = time.perf_counter()
        generate(plain.module, mine, synced=True)
        ranks.barrier()
        return sum(given.lengths) / (time.perf_counter() - began)

    return compare(ours, theirs, rounds, quiet=rank > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--slots", type=int, default=16, help="of a rank; rows of a batch of `generate`")
    parser.add_argument("--mean", type=float, default=32, help="tokens of an answer, on average")
    parser.add_argument("--limit", type=int, default=128, help="tokens of an answer, at most")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="over all ranks")
    parser.add_argument("--zero3", action="store_true", help="two ranks that share the weights")
    told = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder, _ = converted(smollm2_gguf(), Path.home() / ".cache" / "rlhf-operator" / "models")
    given = work(folder, told.prompts, told.slots, told.mean, told.limit)
    print(f"{len(given.prompts)} prompts of {statistics.mean(map(len, given.prompts)):.0f} tokens, answers of "
          f"{statistics.mean(given.lengths):.1f} (1 to {max(given.lengths)})", flush=True)  # fmt: skip
    if told.zero3:
        os.environ |= {"OMP_NUM_THREADS": str(max(1, told.threads // 2)), "GLOO_SOCKET_IFNAME": "lo"}
        with tempfile.TemporaryDirectory() as name:
            pool = Pool(2, Path(name))
            speeds = pool.run(sharded, given, told.rounds, timeout=4 * 3600)[0]
            pool.close()
    else:
        torch.set_num_threads(told.threads)
        model = _model(folder)
        speeds = compare(lambda: slots(model, given), lambda: generate(model, given), told.rounds)
    medians = ", ".join(f"{who} {statistics.median(speed):.1f}" for who, speed in speeds.items())
    print(f"\nanswers' tokens a second, median: {medians}")
    ratios = sorted(a / b for a, b in zip(*speeds.values(), strict=True))
    goal = 5 if told.zero3 else 1.5
    print(f"ours / generate: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}; aimed at {goal})")


if __name__ == "__main__":
    main()
