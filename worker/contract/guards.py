"""Guards: what a run that goes wrong looks like, and what is done when it does."""

from typing import Annotated, Literal

from pydantic import Field

from worker.contract.values import PositiveInt, Strict

Then = Literal["warn", "pause", "stop"]


class Guard(Strict):
    """What is done when it trips: an event (`warn`), a pause (`PausedByGuard`), or the end (`Diverged`)."""

    then: Then = "warn"


class KlGuard(Guard):
    """The actor has left its reference too far."""

    max: Annotated[float, Field(gt=0)] = Field(default=50.0, description="nats an answer, mean of an iteration")


class HackingGuard(Guard):
    """The reward rises while held-out reward falls, or rises only as fast as the KL budget is spent."""

    window: PositiveInt = Field(default=10, description="iterations: the last so many are compared with those before")
    drop: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="by how much held-out reward may fall while reward rises, in standard deviations"
    )
    budget: Annotated[float, Field(gt=0)] = Field(default=30.0, description="nats an answer that a rise may cost")


class LengthGuard(Guard):
    """Answers have become as good as empty, or nearly all of them run into the limit."""

    min: Annotated[float, Field(ge=0)] = Field(default=2.0, description="tokens an answer, mean of an iteration")
    cut: Annotated[float, Field(gt=0, le=1)] = Field(default=0.98, description="share of answers that hit the limit")


class RatioGuard(Guard):
    """On the first update of an iteration nothing has changed yet: the ratio is 1, or there is a bug."""

    max: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="largest |ratio - 1|; absent: 1e-4 in fp32, 1e-2 in bf16"
    )
    then: Then = "stop"


class EntropyGuard(Guard):
    """The actor has become certain of everything: it will find nothing new."""

    min: Annotated[float, Field(ge=0)] = Field(default=0.05, description="nats a token, mean of an iteration")


class GradientGuard(Guard):
    """A parameter that is trained gets no gradient in a whole update."""

    then: Then = "stop"


class Guards(Strict):
    """What is watched. `null` switches a guard off."""

    kl: KlGuard | None = KlGuard()
    hacking: HackingGuard | None = HackingGuard()
    length: LengthGuard | None = LengthGuard()
    ratio: RatioGuard | None = RatioGuard()
    entropy: EntropyGuard | None = EntropyGuard()
    gradient: GradientGuard | None = GradientGuard()
