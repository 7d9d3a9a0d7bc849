"""What runs inside the ranks of the pool: an engine that generates between its updates, in several ways."""

import hashlib
from typing import Any

from tests.rl.models import CONFIGS, VOCABULARY, adapted, model_of

UPDATES = 3


def _engine(rank: int, world: int, zero: int, precision: str, lora: bool, config: str) -> tuple[Any, Any]:
    import torch

    from worker.contract.parts import DeepSpeed, Optimizer
    from worker.distributed import Ranks
    from worker.engine import Engine, Setting
    from worker.losses import token_loss_sum

    ranks = Ranks(rank, world)
    model: Any = model_of(CONFIGS[config])
    if lora:
        model = adapted(model)
    if precision == "bf16":
        model = model.to(torch.bfloat16)
    # Small enough that most weights of so small a model are sharded.
    sharding = {"stage3_param_persistence_threshold": 100} if zero == 3 else {}
    deepspeed = DeepSpeed.model_validate(
        {"zero": zero, "precision": precision, "config": {"zero_optimization": sharding}}
    )
    return ranks, Engine(model, token_loss_sum, Setting(deepspeed, Optimizer(), world, 2, 1))


def _batch(rank: int, update: int) -> Any:
    import torch

    from worker.packing import MicroBatch

    ids = torch.randint(4, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(100 * update + rank))
    labels = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)
    positions = torch.arange(9).expand(2, 9)
    return MicroBatch(ids, labels, positions, torch.ones_like(ids), tokens=18, trained=16)


def _prompts(rank: int) -> list[list[int]]:
    """More of them on one rank than on the other."""
    return [[4 + (7 * n + 3 * k + rank) % 36 for k in range(1 + n % 5)] for n in range(3 + 4 * rank)]


def train(
    rank: int,
    world: int,
    how: str,
    zero: int,
    precision: str = "fp32",
    lora: bool = False,
    config: str = "llama with tied weights",
    greedy: bool = False,
) -> dict[str, Any]:
    """Updates an engine, and generates before each `how` says: gathered, sharded, not at all, or by a plain copy.

    Gives the answers of this rank, the losses and norms, the modes seen, and a hash of the weights at the end.
    """
    import torch

    from worker.contract.ppo import Rollout
    from worker.rl.gathered import gathered, sample_sharded
    from worker.rl.rollout import sample

    ranks, engine = _engine(rank, world, zero, precision, lora, config)
    settings: dict[str, Any] = {
        "seeds": [50 * rank + n for n in range(len(_prompts(rank)))],
        "rollout": Rollout(max_new_tokens=7),
        "slots": 2,
        "ends": frozenset(range(2, VOCABULARY, 6)),
        "pad_id": 0,
        "greedy": greedy,
    }
    told: dict[str, Any] = {"answers": [], "numbers": [], "modes": [], "hooks": []}
    for update in range(UPDATES):
        engine.model.train()
        if how == "gathered":
            with gathered(engine) as model:
                told["modes"].append(model.training)
                told["answers"].append(sample(model, _prompts(rank), device=engine.device, **settings))
            told["modes"].append(engine.model.training)
        elif how == "sharded":
            calls = 0

            def between() -> None:
                nonlocal calls
                calls += 1

            told["answers"].append(sample_sharded(engine, ranks, _prompts(rank), between=between, **settings))
            told["modes"].append(calls)
        elif how == "copied":
            state: Any = [engine.gather()]
            torch.distributed.broadcast_object_list(state)
            copy: Any = model_of(CONFIGS[config])
            copy = (adapted(copy) if lora else copy).to(next(iter(state[0].values())).dtype)
            copy.load_state_dict(state[0])
            told["answers"].append(sample(copy.eval(), _prompts(rank), device=engine.device, **settings))
        if zero == 3:
            offload = engine.deepspeed.optimizer.parameter_offload
            told["hooks"].append(len(offload.forward_hooks) + len(offload.backward_hooks))
        sums = engine.train_micro(_batch(rank, update), weight=1 / 16, last=True)
        told["numbers"] += [*sums.tolist(), engine.step(0.05)]
    state = engine.gather() or {}
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].float().numpy().tobytes())
    told["weights"] = digest.hexdigest()
    return told


def fits(rank: int, world: int, spare: int) -> tuple[bool, int, int]:
    """Whether the whole model fits with so much to spare, its bytes by the engine's word, and by counting."""
    from worker.rl.gathered import gathered, whole_bytes, whole_fits

    ranks, engine = _engine(rank, world, 3, "fp32", False, "llama with tied weights")
    told = whole_fits(engine, ranks, spare if rank == 1 else 0), whole_bytes(engine)
    with gathered(engine) as model:
        return *told, sum(p.numel() * p.element_size() for p in model.parameters())
