"""What runs inside the ranks of the pool: reward models."""

from typing import Any

from tests.engine import jobs
from tests.engine.jobs import Ended, Job, Plan


def gradient(rank: int, world: int, job: Job) -> list[float]:
    """The gradient of the first update, before clipping, as one flat list."""
    import torch
    from deepspeed.utils import safe_get_full_grad

    from worker.contract.stages import RewardStage
    from worker.distributed import Ranks
    from worker.engine import Engine, Setting
    from worker.feed import Feed
    from worker.models import load
    from worker.stages.reward import Ranking
    from worker.state import Position
    from worker.training import dataset_of

    order = job.order(1)
    stage = order.spec.stage
    assert isinstance(stage, RewardStage)
    loaded = load(order.spec, order.inputs, job.store)
    method = Ranking(stage)
    dataset = dataset_of(order, method, loaded.tokenizer)
    pad_id = loaded.tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    update = Feed(dataset, order.spec, rank=rank, world=world, pad_id=pad_id).at(Position())
    Ranks(rank, world)
    engine = Engine(loaded.model, method.objective, Setting.of(order.spec))
    for number, batch in enumerate(update.micro_batches, start=1):
        engine.train_micro(batch, weight=world / update.trained, last=number == len(update.micro_batches))
    trained = [p for p in engine.model.parameters() if p.requires_grad]
    assert engine.zero != 3 or sum(not p.ds_persist for p in trained) > 5  # one that stays whole shows nothing
    gradients = [p.grad if engine.zero == 0 else safe_get_full_grad(p) for p in trained]
    return torch.cat([g.detach().flatten() for g in gradients]).tolist()


def attempt_with_nan(rank: int, world: int, job: Job, at: int) -> Ended:
    """An attempt whose loss is NaN on the last rank, at its training micro-batch `at` (the preflight's is the 0th)."""
    from worker.stages import reward

    ranking, seen = reward.ranking, 0

    def sometimes_nan(center: float) -> Any:
        sums = ranking(center)

        def compute(model: Any, batch: Any) -> Any:
            nonlocal seen
            seen += 1
            return sums(model, batch) * (float("nan") if rank == world - 1 and seen == at + 1 else 1.0)

        return compute

    reward.ranking = sometimes_nan
    try:
        return jobs.attempt(rank, world, job, 1)
    finally:
        reward.ranking = ranking


def told(rank: int, world: int, job: Job, number: int, plan: Plan = Plan()) -> Ended:
    """One attempt."""
    return jobs.attempt(rank, world, job, number, plan)


def held_out(rank: int, world: int, job: Job) -> dict[str, Any]:
    """The held-out answers of a job as texts and ids, which are the best of their rows, and the pairs."""
    import numpy as np

    from worker.contract.stages import RewardStage
    from worker.models import load
    from worker.pairs import collate_pairs
    from worker.stages.reward import Ranking
    from worker.training import dataset_of

    order = job.order(1)
    stage = order.spec.stage
    assert isinstance(stage, RewardStage)
    tokenizer = load(order.spec, order.inputs, job.store).tokenizer
    rows: Any = dataset_of(order, Ranking(stage), tokenizer).held_out
    batch = collate_pairs([[row] for row in rows], pad_id=0)
    ids = [np.asarray(answer).tolist() for row in rows for answer in row.answers]
    return {
        "ids": ids,
        "texts": [tokenizer.decode(answer) for answer in ids],
        "best": batch.best.tolist(),
        "better": batch.better.tolist(),
        "worse": batch.worse.tolist(),
    }


def scores_of(rank: int, world: int, folder: str, ids: list[list[int]]) -> list[float]:
    """The worker's own scores of rows of ids."""
    from pathlib import Path

    import torch

    from tests.model.conftest import input_at
    from worker.scores import reward_model, scores, token_rows

    model, tokenizer = reward_model(input_at(Path(folder)), "it", Path(folder), torch.float32, [])
    with torch.no_grad():
        return scores(model, token_rows(ids, pad_id=int(tokenizer.pad_token_id))).tolist()


def rewards_of(rank: int, world: int, folder: str, said: list[list[str]]) -> list[float]:
    """The worker's own scores of (prompt, answer) in words."""
    from pathlib import Path

    import torch

    from tests.model.conftest import input_at
    from worker.dialogue import answer_end
    from worker.pairs import answer_ids
    from worker.scores import reward_model, scores, token_rows

    model, tokenizer = reward_model(input_at(Path(folder)), "it", Path(folder), torch.float32, [])
    end = answer_end(tokenizer, "it")
    rows = [answer_ids(tokenizer, [{"role": "user", "content": prompt}], answer, end) for prompt, answer in said]
    with torch.no_grad():
        return scores(model, token_rows(rows, pad_id=int(tokenizer.pad_token_id))).tolist()
