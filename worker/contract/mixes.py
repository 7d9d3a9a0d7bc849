"""Fields of a spec that are each right, and cannot be together: PPO, evaluation, and what all stages share."""

from math import gcd

from worker.contract.evaluation import EvaluateStage
from worker.contract.parts import DeepSpeed, Optimizer
from worker.contract.ppo import PpoStage, ReferenceRole, RlStage, Role, Rollout
from worker.contract.problem import Problem
from worker.contract.rewards import ModelTerm, Reward
from worker.contract.sharding import effective_zero
from worker.contract.shared import of_a_shared_base
from worker.contract.spec import JobSpec


def offload_without_zero(deepspeed: DeepSpeed, path: str) -> list[Problem]:
    """DeepSpeed offloads only what it shards."""
    if deepspeed.offload == "none" or deepspeed.zero > 0:
        return []
    return [Problem(f"{path}.offload", f"needs {path}.zero 1, 2 or 3; write one of them, or offload: none")]


def scaled_before_it_is_scattered(deepspeed: DeepSpeed) -> list[Problem]:
    """DeepSpeed's ZeRO 1 and 2 cannot do both."""
    told = deepspeed.config
    scatters = told.zero_optimization.reduce_scatter is not False
    if not told.prescale_gradients or not scatters or effective_zero(deepspeed) not in (1, 2):
        return []
    said = "needs zero_optimization.reduce_scatter: false at ZeRO 1 and 2; leave it out, or write that"
    return [Problem("deepspeed.config.prescale_gradients", said)]


# What an optimizer has of these is read by it; what others have would be said in vain.
_UNREAD = {"adamw": (), "lion": ("eps",), "adafactor": ("beta1", "beta2", "eps")}


def in_vain(optimizer: Optimizer, steps: int | None, path: str) -> list[Problem]:
    """Settings that this optimizer does not read, and a fall that begins before the warm-up has ended."""
    found = [
        Problem(f"{path}.{name}", f"{optimizer.name} has no such setting; leave it out")
        for name in _UNREAD[optimizer.name]
        if name in optimizer.model_fields_set
    ]
    warmup = optimizer.warmup if optimizer.warmup < 1 else optimizer.warmup / steps if steps else 0.0
    if optimizer.schedule == "wsd" and warmup + optimizer.decay > 1:
        said = f"wsd warms up for {warmup:g} of the steps, so at most {1 - warmup:g} are left to fall in"
        found.append(Problem(f"{path}.decay", said))
    return found


def warmup_past_the_end(optimizer: Optimizer, steps: int | None, path: str) -> list[Problem]:
    """A warm-up that never ends, or of half a step."""
    warmup = optimizer.warmup
    if warmup < 1 or (warmup == int(warmup) and (steps is None or warmup <= steps)):
        return []
    return [Problem(f"{path}.warmup", "from 1 on it is a count of steps: a whole number, at most `steps`")]


def unfit_adafactor(optimizer: Optimizer, deepspeed: DeepSpeed, path: str) -> list[Problem]:
    """What Adafactor must be told. ZeRO makes one long row of all weights, in which its rows and columns are gone."""
    if optimizer.name != "adafactor":
        return []
    found = []
    if optimizer.lr is None:
        said = (
            "adafactor's rate is relative to the size of the weights, so no stage has a default for it; 0.01 is usual"
        )
        found.append(Problem(f"{path}.lr", said))
    if effective_zero(deepspeed) > 0:
        said = "adafactor needs whole matrices: deepspeed.zero 0 and precision fp32; write them, or another optimizer"
        found.append(Problem(f"{path}.name", said))
    return found


def mixes_of_rl(stage: RlStage, spec: JobSpec) -> list[Problem]:
    """What is wrong between the fields of a stage of reinforcement learning."""
    found = _rows(stage, spec) + _rewards(stage.reward)
    roles: dict[str, Role | ReferenceRole] = {**stage.learners, "reference": stage.reference}
    for name, role in roles.items():
        if role.deepspeed is not None:
            found += offload_without_zero(role.deepspeed, f"stage.{name}.deepspeed")
    for name, learner in stage.learners.items():
        if learner.optimizer is not None:
            found += warmup_past_the_end(learner.optimizer, stage.steps, f"stage.{name}.optimizer")
            found += in_vain(learner.optimizer, stage.steps, f"stage.{name}.optimizer")
    found += warmup_past_the_end(stage.optimizer, stage.steps, "stage.optimizer")
    found += in_vain(stage.optimizer, stage.steps, "stage.optimizer")
    for name, learner in stage.learners.items():
        path = f"stage.{name}.optimizer" if learner.optimizer is not None else "stage.optimizer"
        found += unfit_adafactor(learner.optimizer or stage.optimizer, learner.deepspeed or spec.deepspeed, path)
    found += unfit_answers(stage.rollout, stage.max_length)
    if not isinstance(stage, PpoStage):
        said = (
            f"are rows that ppo goes on learning from, beside its answers; {spec.stage.type} has none; leave them out"
        )
        return found + ([Problem("stage.data.ptx", said)] if stage.data.ptx is not None else [])
    if (stage.ppo.ptx > 0) != (stage.data.ptx is not None):
        said = "give both `data.ptx` (rows of dialogues) and `ppo.ptx` (their weight), or neither"
        found.append(Problem("stage.data.ptx", said))
    return found + (of_a_shared_base(stage, spec) if stage.share_base else [])


def _rows(stage: RlStage, spec: JobSpec) -> list[Problem]:
    rows, minibatches, answers = stage.rows, stage.passes.minibatches, stage.answers_a_prompt
    if rows % (minibatches * spec.ranks):
        needed = minibatches * spec.ranks // gcd(minibatches * spec.ranks, answers)
        each = f" with {answers} answers each" if answers > 1 else ""
        return [
            Problem(
                "stage.rollout.prompts",
                f"{stage.rollout.prompts}{each} do not divide into {minibatches} minibatches on {spec.ranks} ranks; "
                f"write a multiple of {needed}",
            )
        ]
    share = rows // minibatches // spec.ranks
    if stage.micro_batch is not None and share % stage.micro_batch:
        said = f"must divide a rank's share of a minibatch, {share} rows; got {stage.micro_batch}"
        return [Problem("stage.micro_batch", said)]
    return []


def unfit_answers(rollout: Rollout, max_length: int) -> list[Problem]:
    """Answers that fill a row, or that must be longer than they may be."""
    found = []
    if rollout.max_new_tokens >= max_length:
        said = f"leaves no room for a prompt in stage.max_length, {max_length}"
        found.append(Problem("stage.rollout.max_new_tokens", said))
    if rollout.min_new_tokens > rollout.max_new_tokens:
        found.append(Problem("stage.rollout.min_new_tokens", "must be at most stage.rollout.max_new_tokens"))
    return found


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
    found = []
    if stage.reward is not None:
        found += _rewards(stage.reward)
    if stage.against is not None and stage.reward is None:
        found.append(Problem("stage.reward", "is needed to tell which of two answers wins"))
    return found
