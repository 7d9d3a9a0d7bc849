"""Evaluation of a finished model, as a job of its own."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from worker.contract.ppo import Rollout, Samples
from worker.contract.rewards import Reward
from worker.contract.values import PositiveInt, Reference, Strict


class TestData(Strict):
    """The rows to evaluate on."""

    test: Reference
    truncate: bool = Field(default=False, description="cut rows that are too long; otherwise they are refused")


def _test_from_reference(value: Any) -> Any:
    return {"test": value} if isinstance(value, str) else value


class EvaluateStage(Strict):
    """A model on a test set. What is measured follows from its rows.

    `{text}` and `{messages}`: perplexity, and how often the most probable token is the right one. `{prompt, chosen,
    rejected}` and `{prompt, answers}`: how often a reward model ranks as people did, and how well its odds are
    calibrated. `{prompt}`: the reward of sampled answers, and with `against` how often they win.
    """

    begun: ClassVar[dict[str, Any]] = {"model": "models/sft", "data": "./rows.jsonl"}
    type: Literal["evaluate"]
    model: Reference
    against: Reference | None = Field(
        default=None, description="another model, with which the answers to the same prompts are compared by `reward`"
    )
    reward: Reward | None = Field(default=None, description="needed for rows of `{prompt}`")
    data: Annotated[TestData, BeforeValidator(_test_from_reference)] = Field(
        description="a reference to the rows, or `{test, truncate}`"
    )
    rollout: Rollout = Field(default=Rollout(), description="how answers are sampled; `prompts` at a time")
    samples: Samples = Samples()
    micro_batch: PositiveInt = Field(default=8, description="rows a rank at a time")
    max_length: Annotated[int, Field(ge=2, le=2**20)] = Field(default=1024, description="tokens a row")
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 17
