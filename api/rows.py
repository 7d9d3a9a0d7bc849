"""Whether rows will do for what a spec makes of them, where that takes more than their kind."""

from collections.abc import Mapping

from api.weights import Config
from worker.contract.classify import ClassifyStage
from worker.contract.evaluation import EvaluateStage
from worker.contract.mixes import unfit_answers
from worker.contract.order import Input
from worker.contract.problem import Problem
from worker.contract.rewards import ExactMatchTerm, Reward
from worker.contract.rows import RowKind
from worker.contract.spec import JobSpec
from worker.contract.stages import PretrainStage

_NEEDED: dict[RowKind, tuple[str, str]] = {
    "text": ("write", "a language model"),
    "messages": ("write", "a language model"),
    "prompt": ("write", "a language model"),
    "chosen": ("score", "a reward model (of the stage `reward`)"),
    "answers": ("score", "a reward model (of the stage `reward`)"),
}
_SAID = {"write": "a language model", "score": "a reward model"}


def unfit_rows(
    spec: JobSpec, inputs: Mapping[str, Input], rows: Mapping[str, RowKind], models: Mapping[str, Config]
) -> list[Problem]:
    """What speaks against the rows that a spec refers to; all three by their paths in it, as far as they are known."""
    return [
        *_evaluated(spec, rows.get("stage.data.test"), models.get("stage.model")),
        *_classified(spec, rows),
        *_parted(spec, inputs),
    ]


def _evaluated(spec: JobSpec, kind: RowKind | None, model: Config | None) -> list[Problem]:
    """Rows that are not what a model can be evaluated on, or that lack or leave over what is said of them."""
    stage = spec.stage
    if not isinstance(stage, EvaluateStage) or kind is None:
        return []
    found = []
    if kind == "prompt" and stage.reward is None:
        said = "is needed for rows with `prompt`: what an answer is worth, such as {terms: [{function: sentiment}]}"
        found.append(Problem("stage.reward", said))
    if kind != "prompt" and stage.against is not None:  # a comparison that would not happen, in silence
        said = f"is for rows with `prompt`, and those of stage.data.test have `{kind}`; leave it out"
        found.append(Problem("stage.against", said))
    if kind == "prompt":
        found += unfit_answers(stage.rollout, stage.max_length)
    task, called = _NEEDED.get(kind, ("", ""))
    if task and model is not None and model.task in _SAID and model.task != task:
        said = f"is {_SAID[model.task]}; the rows have `{kind}`, which are for {called}"
        found.append(Problem("stage.model", said))
    return found


def _classified(spec: JobSpec, rows: Mapping[str, RowKind]) -> list[Problem]:
    """Rows that ask for another task than the spec, or than those to evaluate on."""
    if not isinstance(spec.stage, ClassifyStage) or (kind := rows.get("stage.data.train")) is None:
        return []
    found = []
    if spec.stage.regression and kind != "label":
        found.append(
            Problem("stage.regression", f"needs rows with `label`, a number; those of stage.data.train have `{kind}`")
        )
    if (other := rows.get("evaluate.data", kind)) != kind:
        found.append(Problem("evaluate.data", f"its rows have `{other}`, and those of stage.data.train `{kind}`"))
    return found


def _parted(spec: JobSpec, inputs: Mapping[str, Input]) -> list[Problem]:
    """One row that is to be parted in two. Of a long text several are made."""
    if spec.evaluate is None or spec.evaluate.held_out is None or isinstance(spec.stage, PretrainStage):
        return []
    for path in ("stage.data.train", "stage.data.prompts"):
        if (given := inputs.get(path)) is not None and given.rows == 1:
            said = f"{path} has one row, which cannot be parted into rows to train on and rows to hold out"
            return [Problem("evaluate.held_out", said)]
    return []


def comparing(spec: JobSpec) -> str | None:
    """The reward's first term that compares with a row's `answer`, by its name."""
    reward: Reward | None = getattr(spec.stage, "reward", None)
    return next((t.title for t in reward.terms if isinstance(t, ExactMatchTerm)), None) if reward is not None else None
