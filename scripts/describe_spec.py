"""docs/specs.md, from the models that check a spec: `python -m scripts.describe_spec > docs/specs.md`."""

from collections.abc import Iterator

from pydantic import BaseModel

from worker.contract.describe import default, meaning, models_in, type_of
from worker.contract.metrics import FAMILIES, METRICS
from worker.contract.ppo import RlStage
from worker.contract.rewards import ExactMatchTerm, LengthTerm, ModelTerm, RegexTerm, SentimentTerm, ServiceTerm
from worker.contract.rows import RowKind
from worker.contract.spec import STAGES, JobSpec
from worker.contract.stages import TrainStage

HEAD = """# The job spec

A spec is YAML for people or JSON for `POST /v1/jobs`. `{"stage": {"type", "model", "data"}}` is a whole one: all else
has a default. Unknown fields are refused, and so is everything that cannot work; all problems are told at once, each
with the path to its field. `rlhf spec validate FILE` checks without a server.

Durations are a number and a unit (`90s`, `30m`, `24h`), memory is a Kubernetes quantity (`16Gi`). A reference is
`models/NAME[@version]` (a registered model), `files/ID` (an upload), a path that starts with `/` or `./` and lies
under a folder that the server allows, or a hub's name; in a [pipeline](pipelines.md) also `{from: STEP.OUTPUT}`.
References are resolved to a hash when the job is made, and those to steps when these have succeeded: what is trained on
cannot change underneath it.

Rows are JSON, one a line:

| stage | rows |
|---|---|
ROWS
| evaluate | those of pretrain, sft, reward and ppo |

A prompt is a text, which is a user's turn, or messages.

This page is made from the code (`python -m scripts.describe_spec`), and a test holds that it is current.
"""

_BAR = "\\|"
# How the rows of a kind are told to people.
_FORMS: dict[RowKind, str] = {
    "label": '`{"text", "label"}`',
    "labels": '`{"text", "labels": [...]}`',
    "tokens": '`{"tokens": [...], "tags": [...]}`',
    "text": '`{"text"}`',
    "messages": '`{"messages": [{"role", "content"}]}`',
    "chosen": '`{"prompt", "chosen", "rejected", "margin"?}`',
    "answers": '`{"prompt", "answers": [{"text", "score"}]}`',
    "completion": '`{"prompt", "completion", "label"}`',
    "prompt": '`{"prompt", "answer"?}`',
}
_TERMS: dict[str, type[BaseModel]] = {
    "model": ModelTerm,
    "service": ServiceTerm,
    "sentiment": SentimentTerm,
    "exact_match": ExactMatchTerm,
    "length": LengthTerm,
    "regex": RegexTerm,
}


def _sections() -> Iterator[tuple[str, type[BaseModel], type[BaseModel] | None]]:
    """Title, model, and the model whose fields are told of before."""
    yield "stage, for every kind of training", TrainStage, None
    told: set[type[BaseModel]] = set()
    for name, stage in STAGES.items():
        base: type[BaseModel] | None = next((kind for kind in (TrainStage, RlStage) if issubclass(stage, kind)), None)
        if base is RlStage and base not in told:
            told.add(base)
            yield "stage, for every kind of reinforcement learning", RlStage, None
            yield from ((f"a term of a reward: {kind}", term, None) for kind, term in _TERMS.items())
        yield f"stage: {name}", stage, base


def _rows() -> str:
    """A line of the table for each stage that states its rows."""
    traits = {name: stage.traits for name, stage in STAGES.items() if hasattr(stage, "traits")}
    return "\n".join(f"| {name} | {', or '.join(_FORMS[kind] for kind in its.rows)} |" for name, its in traits.items())


def page() -> str:
    """The whole page, as Markdown."""
    seen: set[type[BaseModel]] = set()
    parts = [HEAD.replace("ROWS", _rows()), "## The whole\n", _table(JobSpec, None)]
    for title, model, base in _sections():
        parts += [f"## {title}\n", _sentence(model), _table(model, base)]
        seen.add(model)
    queue = [m for model in (TrainStage, *STAGES.values(), JobSpec) for m in _inner(model)]
    while queue:
        model = queue.pop(0)
        if model in seen or model in STAGES.values():
            continue
        seen.add(model)
        parts += [f"## {model.__name__}\n", _sentence(model), _table(model, None)]
        queue += _inner(model)
    parts += ["## Metrics\n", "| name | what it is |\n|---|---|"]
    parts += [f"| `{name}` | {meaning} |" for name, meaning in (METRICS | FAMILIES).items()]
    return "\n".join(part for part in parts if part) + "\n"


def _sentence(model: type[BaseModel]) -> str:
    return f"{' '.join((model.__doc__ or '').split())}\n" if model.__doc__ else ""


def _table(model: type[BaseModel], base: type[BaseModel] | None) -> str:
    rows = ["| field | default | what it is |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if base is not None and name in base.model_fields and default(base.model_fields[name]) == default(field):
            continue
        rows.append(f"| `{name}` | {default(field)} | {meaning(field, _linked).replace('|', _BAR)} |")
    return "\n".join(rows) + "\n"


def _linked(model: type[BaseModel]) -> str:
    """A model's name, as a link to its part of the page."""
    if model in STAGES.values():
        return f"`{type_of(model)}`"
    return f"[{model.__name__}](#{model.__name__.lower()})"


def _inner(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [m for field in model.model_fields.values() for m in models_in(field.annotation)]


if __name__ == "__main__":
    print(page(), end="")
