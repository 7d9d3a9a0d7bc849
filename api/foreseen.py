"""What the steps of a pipeline will hand over, as far as that is known before any of them has begun."""

from collections.abc import Mapping

from api.weights import Config, Task, layers_of
from worker.contract.order import Input
from worker.contract.parts import Scratch
from worker.contract.ppo import PpoStage, RlStage
from worker.contract.scratch import positions_of
from worker.contract.spec import JobSpec
from worker.contract.stages import TrainStage
from worker.contract.steps import outputs
from worker.contract.traits import Nature

# A critic has the head of a reward model.
_TASKS: dict[Nature, Task] = {
    "writer": "write", "scorer": "score", "critic": "score", "classifier": "classify", "scoring_adapter": "adapt"
}  # fmt: skip


def foreseen(spec: JobSpec, inputs: Mapping[str, Input], configs: Mapping[str, Config]) -> dict[str, Config]:
    """What the outputs of a step will be, by their kinds.

    `inputs` and `configs` are what the step's own references lead to, by their paths in its spec.
    """
    return {kind: _config(spec, kind, nature, inputs, configs) for kind, nature in outputs(spec).items()}


def _config(
    spec: JobSpec, kind: str, nature: Nature, inputs: Mapping[str, Input], configs: Mapping[str, Config]
) -> Config:
    path = _begins_with(spec, kind)
    task = _TASKS.get(nature)
    if task == "adapt":
        return Config(None, task, base=inputs[path].sha256 if path in inputs else None)
    if isinstance(spec.stage, TrainStage) and isinstance(spec.stage.model, Scratch):
        config = spec.stage.model.config
        return Config(positions_of(config), task, layers=layers_of(config))
    # Training changes weights, and no sizes.
    before = configs.get(path, Config(None, None))
    return Config(before.positions, task, layers=before.layers)


def _begins_with(spec: JobSpec, kind: str) -> str:
    """Where the spec names the model that an output goes on from."""
    if not isinstance(spec.stage, RlStage):
        return "stage.model"
    own = kind == "critic" and isinstance(spec.stage, PpoStage) and not spec.stage.share_base
    return "stage.critic.model" if own else "stage.actor.model"
