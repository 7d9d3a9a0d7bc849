"""Fields of a spec that are each right, and cannot be together: PPO, evaluation, and what all stages share."""

from worker.contract.evaluation import EvaluateStage
from worker.contract.parts import DeepSpeed, Optimizer
from worker.contract.ppo import PpoStage
from worker.contract.problem import Problem
from worker.contract.rewards import ModelTerm, Reward
from worker.contract.spec import JobSpec


def offload_without_zero(deepspeed: DeepSpeed, path: str) -> list[Problem]:
    """DeepSpeed offloads only what it shards."""
    if deepspeed.offload == "none" or deepspeed.zero > 0:
        return []
    return [Problem(f"{path}.offload", f"needs {path}.zero 1, 2 or 3; write one of them, or offload: none")]


def warmup_past_the_end(optimizer: Optimizer, steps: int | None, path: str) -> list[Problem]:
    """A warm-up that never ends, or of half a step."""
    warmup = optimizer.warmup
    if warmup < 1 or (warmup == int(warmup) and (steps is None or warmup <= steps)):
        return []
    return [Problem(f"{path}.warmup", "from 1 on it is a count of steps: a whole number, at most `steps`")]


def mixes_of_ppo(stage: PpoStage, spec: JobSpec) -> list[Problem]:
    """What is wrong between the fields of a PPO."""
    found = _rows(stage, spec) + _rewards(stage.reward)

    def wrong(path: str, message: str) -> None:
        found.append(Problem(path, message))

    for name, role in (("actor", stage.actor), ("critic", stage.critic), ("reference", stage.reference)):
        if role.deepspeed is not None:
            found += offload_without_zero(role.deepspeed, f"stage.{name}.deepspeed")
    for name, optimizer in (("actor", stage.actor.optimizer), ("critic", stage.critic.optimizer)):
        if optimizer is not None:
            found += warmup_past_the_end(optimizer, stage.steps, f"stage.{name}.optimizer")
    found += warmup_past_the_end(stage.optimizer, stage.steps, "stage.optimizer")
    if stage.rollout.max_new_tokens >= stage.max_length:
        wrong("stage.rollout.max_new_tokens", f"leaves no room for a prompt in stage.max_length, {stage.max_length}")
    if stage.rollout.min_new_tokens > stage.rollout.max_new_tokens:
        wrong("stage.rollout.min_new_tokens", "must be at most stage.rollout.max_new_tokens")
    if (stage.ppo.ptx > 0) != (stage.data.ptx is not None):
        wrong("stage.data.ptx", "give both `data.ptx` (rows of dialogues) and `ppo.ptx` (their weight), or neither")
    return found + (_of_a_shared_base(stage, spec) if stage.share_base else [])


def _of_a_shared_base(stage: PpoStage, spec: JobSpec) -> list[Problem]:
    """Roles that are to be adapters on one base, which is whole on each rank and has one precision."""
    found = []
    for name, role in (("actor", stage.actor), ("critic", stage.critic)):
        if role.lora is None:
            found.append(Problem(f"stage.{name}.lora", "is needed with share_base; write `lora: {}` or its settings"))
    settings = {"deepspeed": spec.deepspeed}
    settings |= {
        f"stage.{name}.deepspeed": role.deepspeed
        for name, role in (("actor", stage.actor), ("critic", stage.critic))
        if role.deepspeed is not None
    }
    if stage.actor.deepspeed is not None and stage.critic.deepspeed is not None:
        del settings["deepspeed"]  # nobody's
    for path, setting in settings.items():
        if setting.zero == 3:
            said = "shards the base, which share_base keeps whole on each rank; write 0, 1 or 2"
            found.append(Problem(f"{path}.zero", said))
    actors = (stage.actor.deepspeed or spec.deepspeed).precision
    if (critics := (stage.critic.deepspeed or spec.deepspeed).precision) != actors:
        said = f"with share_base the base has one precision; the actor's is {actors}, not {critics}"
        found.append(Problem("stage.critic.deepspeed.precision", said))
    return found


def _rows(stage: PpoStage, spec: JobSpec) -> list[Problem]:
    prompts, minibatches = stage.rollout.prompts, stage.ppo.minibatches
    if prompts % (minibatches * spec.ranks):
        needed = minibatches * spec.ranks
        return [
            Problem(
                "stage.rollout.prompts",
                f"{prompts} do not divide into {minibatches} minibatches on {spec.ranks} ranks; "
                f"write a multiple of {needed}",
            )
        ]
    share = prompts // minibatches // spec.ranks
    if stage.micro_batch is not None and share % stage.micro_batch:
        said = f"must divide a rank's share of a minibatch, {share} rows; got {stage.micro_batch}"
        return [Problem("stage.micro_batch", said)]
    return []


def _rewards(reward: Reward) -> list[Problem]:
    found, titles = [], set()
    for number, term in enumerate(reward.terms):
        path = f"stage.reward.terms.{number}"
        if term.title in titles:
            found.append(Problem(f"{path}.name", f"there is a term `{term.title}` before it; give each its own name"))
        titles.add(term.title)
        if isinstance(term, ModelTerm) and term.deepspeed is not None:
            found += offload_without_zero(term.deepspeed, f"{path}.deepspeed")
    return found


def mixes_of_evaluation(stage: EvaluateStage) -> list[Problem]:
    """What is wrong between the fields of an evaluation."""
    found = _rewards(stage.reward) if stage.reward is not None else []
    if stage.against is not None and stage.reward is None:
        found.append(Problem("stage.reward", "is needed to tell which of two answers wins"))
    return found
