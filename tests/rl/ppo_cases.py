"""What runs inside the ranks of the pool, beside whole attempts of a PPO."""

from dataclasses import replace
from typing import Any

from tests.engine import jobs
from tests.engine.jobs import Ended
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
    # What is stored was said by no model here: its ratios are not 1.
    job = replace(job, spec=job.spec | {"stage": job.spec["stage"] | {"guards": {"ratio": None}}})
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
    credit = ppo.credit(hand)
    found: dict[str, list[float]] = {}

    def caught(learner: Any, hand: Any, name: str) -> float:
        engine = learner.engine
        parts = [
            p.grad if engine.zero == 0 else safe_get_full_grad(p) for p in engine.model.parameters() if p.requires_grad
        ]
        # At ZeRO-3 a weight that stays whole shows nothing.
        assert engine.zero != 3 or sum(not p.ds_persist for p in engine.model.parameters()) > 5
        found[name] = torch.cat([part.detach().float().flatten() for part in parts]).tolist()
        return 0.0

    ppo.step = caught
    ppo.update(hand, credit, range(len(hand.everyone)), 0)
    return found


def two_updates(rank: int, world: int, job: Job) -> dict[str, Any]:
    """Two updates by the stored rollout: what was `found` of it, and what numpy `expected`, by the same names."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from tests.rl import by_hand
    from worker.heads import head_of
    from worker.rl.hand import Hand

    ppo = _ppo(job, rank, world)
    hand = Hand(1)
    hand.everyone, hand.judged = _stored()
    actor = AutoModelForCausalLM.from_pretrained(job.store / "actor", dtype=torch.float32)
    critic = AutoModelForSequenceClassification.from_pretrained(job.store / "actor", num_labels=1, dtype=torch.float32)
    for head in (critic.score, head_of(ppo.roles.critic.engine.model)):
        torch.nn.init.normal_(head.weight, std=0.1, generator=torch.Generator().manual_seed(3))
    credit = ppo.credit(hand)
    ppo._learn(hand, credit)

    stage = ppo.stage
    numbers = by_hand.Numbers(
        gamma=stage.ppo.gamma, lam=stage.ppo.lam, coef=stage.ppo.kl.coef, temperature=stage.rollout.temperature,
        entropy=stage.ppo.entropy, clip=stage.ppo.clip, value_clip=stage.ppo.value_clip,
    )  # fmt: skip
    answers = [
        by_hand.Answer(
            one.prompt,
            one.answer,
            *(getattr(of, n).astype(float) for n in ("logprobs", "reference", "values")),
            of.score,
        )
        for one, of in zip(hand.everyone, hand.judged, strict=True)
    ]
    before = {name: _flat(model.parameters()) for name, model in (("actor", actor), ("critic", critic))}
    optimizers = [
        by_hand.Adam(model, role.optimizer.lr, role.optimizer.eps, role.optimizer.clip)
        for model, role in ((actor, stage.actor), (critic, stage.critic))
    ]
    updates = by_hand.updates((actor, optimizers[0]), (critic, optimizers[1]), answers, numbers, count=2)
    expected = dict(zip(("kl", "advantages", "returns"), by_hand.credit(answers, numbers), strict=True))
    moved = {
        "actor": (ppo.roles.actor.engine.model, actor),
        "critic": (ppo.roles.critic.engine.model, critic),
    }
    return {
        "credit": {n: (getattr(credit, n)[credit.mask].numpy(), np.concatenate(of)) for n, of in expected.items()},
        "updates": list(zip(hand.tally, updates, strict=True)),
        "moved": {n: [_flat(model.parameters()) - before[n] for model in pair] for n, pair in moved.items()},
    }


def _flat(parameters: Any) -> Any:
    """All of them as one array."""
    import torch

    return torch.cat([parameter.detach().flatten() for parameter in parameters]).double().numpy()


def answered(rank: int, world: int, job: Job) -> tuple[Ended, list[list[Any]]]:
    """An attempt, and the answers of each iteration, as tokens."""
    from tests.engine import jobs
    from worker.rl.sampled import Sampled

    show, seen = Sampled.show, []

    def noted(self: Any, hand: Any, *rest: Any) -> None:
        seen.append(list(hand.everyone))
        show(self, hand, *rest)

    Sampled.show = noted
    try:
        return jobs.attempt(rank, world, job, 1), seen
    finally:
        Sampled.show = show


def sharded(rank: int, world: int, job: Job) -> tuple[Ended, dict[str, Any]]:
    """An attempt, and how each model lay: its ZeRO stage, and where its optimizer's state was."""
    from tests.engine import jobs
    from worker.rl import iterations

    load, found = iterations.load_roles, {}

    def stage(model: Any) -> int:
        return 3 if any(hasattr(parameter, "ds_tensor") for parameter in model.parameters()) else 0

    def noted(context: Any) -> Any:
        roles = load(context)
        for name, engine in roles.engines.items():
            sharding = engine.deepspeed.config["zero_optimization"]
            found[name] = (
                engine.deepspeed.zero_optimization_stage(),
                sharding.get("offload_optimizer", {}).get("device"),
            )
        found["reference"] = stage(roles.reference._frozen.model)
        found["rewards"] = [stage(reward.model.model) for reward in roles.rewards.values()]
        return roles

    iterations.load_roles = noted
    try:
        return jobs.attempt(rank, world, job, 1), found
    finally:
        iterations.load_roles = load


def with_a_fault(rank: int, world: int, job: Job, fault: str, number: int = 1, plan: jobs.Plan = jobs.Plan()) -> Ended:
    """An attempt of a worker that has something wrong."""
    from worker.rl import iterations, roles
    from worker.rl.judge import Judge

    judge, actor, load = Judge._policy, roles.pretrained, iterations.load_roles

    def at_another_temperature(self: Any, model: Any, batch: Any) -> Any:
        self._temperature = 1.0
        return judge(self, model, batch)

    def with_a_weight_that_nothing_uses(*given: Any, **named: Any) -> Any:
        import torch

        model, tokenizer = actor(*given, **named)
        model.model.idle = torch.nn.Parameter(torch.ones(3))
        return model, tokenizer

    def in_little_memory(context: Any) -> Any:
        made = load(context)
        made.critic.engine.state_bytes_to_come = lambda: [(made.critic.engine.device, 2**60)]
        return made

    match fault:
        case "another temperature":
            Judge._policy = at_another_temperature
        case "an idle weight":
            roles.pretrained = with_a_weight_that_nothing_uses
        case "little memory":
            iterations.load_roles = in_little_memory
    try:
        return jobs.attempt(rank, world, job, number, plan)
    finally:
        Judge._policy, roles.pretrained, iterations.load_roles = judge, actor, load
