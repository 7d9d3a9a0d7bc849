"""What runs inside the ranks of the pool, beside whole attempts of a PPO."""

from typing import Any

from tests.rl.ppo_jobs import Job


def _ppo(job: Job, rank: int, world: int) -> Any:
    """A PPO of this rank, at its first iteration."""
    import torch

    from tests.engine.jobs import Plan, PlannedChannel
    from worker.context import Context
    from worker.distributed import Ranks
    from worker.rl.material import prepare
    from worker.rl.roles import load_roles
    from worker.stages.ppo import Ppo

    torch.manual_seed(0)
    context = Context(job.order(1), rank, world, PlannedChannel(Plan(), rank), job.store)
    ranks = Ranks(rank, world)
    roles = load_roles(context)
    return Ppo(context, ranks, roles, prepare(context, roles))


def _stored() -> tuple[list[Any], list[Any]]:
    """A rollout that somebody else has made: answers of uneven lengths, and what was judged of them."""
    import numpy as np

    from worker.rl.experience import Judged, Rolled

    draws = np.random.default_rng(5)
    answers, judged = [], []
    for index in range(8):
        prompt = draws.integers(97, 122, int(draws.integers(3, 20))).tolist()
        answer = draws.integers(97, 122, int(draws.integers(1, 9))).tolist()
        answers.append(Rolled(index, index, prompt, answer, ended=bool(index % 2)))
        count = len(answer)
        logprobs, reference, values = (draws.normal(mean, 0.3, count).astype(np.float32) for mean in (-5.5, -5.5, 0.1))
        judged.append(Judged(logprobs, reference, values, {"length": 0.0}, reward=0.0, score=float(draws.normal())))
    return answers, judged


def gradients(rank: int, world: int, job: Job) -> dict[str, list[float]]:
    """The gradients of actor and critic in the first update of the stored rollout, before clipping, as flat lists."""
    import torch
    from deepspeed.utils import safe_get_full_grad

    from worker.rl.hand import Hand

    ppo = _ppo(job, rank, world)
    hand = Hand(1)
    hand.everyone, hand.judged = _stored()
    credit = ppo._credit(hand)
    found: dict[str, list[float]] = {}

    def caught(learner: Any, hand: Any, name: str) -> float:
        engine = learner.engine
        parts = [
            p.grad if engine.zero == 0 else safe_get_full_grad(p) for p in engine.model.parameters() if p.requires_grad
        ]
        found[name] = torch.cat([part.detach().float().flatten() for part in parts]).tolist()
        return 0.0

    ppo._step = caught
    ppo._update(hand, credit, range(len(hand.everyone)), 0)
    return found
