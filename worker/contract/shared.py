"""Roles on one base: what they must have in common, and what the adapters that they go on from leave open."""

from worker.contract.parts import Lora
from worker.contract.ppo import PpoStage
from worker.contract.problem import Problem
from worker.contract.rewards import ModelTerm
from worker.contract.spec import JobSpec


def of_a_shared_base(stage: PpoStage, spec: JobSpec) -> list[Problem]:
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


def unfit_adapter(stage: PpoStage, path: str, called: str, lora: Lora | None) -> list[Problem]:
    """What speaks against an adapter at this path of a PPO on a shared base: it was trained with `lora`, if that is
    known, and has the engine of the actor."""
    for number, term in enumerate(stage.reward.terms):
        place = f"stage.reward.terms.{number}"
        if path == f"{place}.model" and isinstance(term, ModelTerm) and term.deepspeed is not None:
            return [Problem(f"{place}.deepspeed", "an adapter on the shared base runs as the actor does; leave it out")]
    if path != "stage.critic.model" or lora is None or (own := stage.critic.lora) is None:
        return []
    if (own.rank, own.alpha) != (lora.rank, lora.alpha):
        said = f"the adapter {called} has rank {lora.rank} and alpha {lora.alpha:g}; write these"
        return [Problem("stage.critic.lora", said)]
    # `all-linear` stands for names that only the model knows.
    named = [targets for targets in (own.targets, lora.targets) if not isinstance(targets, str)]
    if len(named) == 2 and set(named[0]) != set(named[1]):
        return [Problem("stage.critic.lora.targets", f"the adapter {called} is of {', '.join(named[1])}; write these")]
    return []
