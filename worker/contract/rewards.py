"""What an answer is worth: a weighted sum of terms, each reported by itself."""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from worker.contract.parts import DeepSpeed
from worker.contract.values import Duration, PositiveInt, Reference, Strict

FUNCTIONS = ("sentiment", "exact_match", "length", "regex")
TermName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$", examples=["helpful"])]


def _service_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.fragment:
        raise ValueError("write an http:// or https:// URL without a user name and a fragment")
    _ = parts.port  # raises ValueError for one that there cannot be
    return value


ServiceUrl = Annotated[str, Field(max_length=1024), AfterValidator(_service_url)]


class Term(Strict):
    """What every term has."""

    weight: Annotated[float, Field(ge=-1000, le=1000)] = 1.0
    name: TermName | None = Field(default=None, description="its curve is `reward/NAME`; absent: what kind it is")

    @property
    def title(self) -> str:
        """The name that it is reported by."""
        return self.name or self.kind

    @property
    def kind(self) -> str:
        """What kind of term this is: `model`, `service`, or the function's name."""
        raise NotImplementedError


class ModelTerm(Term):
    """A reward model's score. It reads the dialogue as the actor wrote it, up to the token that ends the answer."""

    model: Reference
    deepspeed: DeepSpeed | None = Field(default=None, description="absent: the job's; frozen, it has no optimizer")

    @property
    def kind(self) -> str:
        return "model"


class SentimentTerm(Term):
    """How friendly the answer is, -1 to 1: VADER's compound score (Hutto and Gilbert, 2014), for English."""

    function: Literal["sentiment"]

    @property
    def kind(self) -> str:
        return self.function


class ExactMatchTerm(Term):
    """1 where the answer is the row's `answer`, blanks around it and the case of letters left aside; else 0."""

    function: Literal["exact_match"]

    @property
    def kind(self) -> str:
        return self.function


class LengthTerm(Term):
    """The answer's length in tokens, as a share of `of`: with a negative weight, a penalty."""

    function: Literal["length"]
    of: PositiveInt | None = Field(default=None, description="tokens that count as 1; absent: `rollout.max_new_tokens`")

    @property
    def kind(self) -> str:
        return self.function


class RegexTerm(Term):
    """1 where a regular expression is found in the answer, else 0. Google's RE2: no look-around, never slow."""

    function: Literal["regex"]
    pattern: Annotated[str, Field(min_length=1, max_length=1000)]

    @property
    def kind(self) -> str:
        return self.function


class ServiceTerm(Term):
    """Scores from a service of your own: `{"prompts": [...], "answers": [...]}` is POSTed, `{"scores": [...]}` wanted.

    The control plane takes only services that its settings allow. A call that fails is made again for `patience`; an
    answer with too few scores, or a score that is no finite number, ends the job.
    """

    service: ServiceUrl
    timeout: Annotated[Duration, Field(le=600.0)] = Field(default=30.0, description="of one call; 10 minutes at most")
    patience: Annotated[Duration, Field(le=600.0)] = Field(
        default=300.0, description="how long calls that fail are made again; 10 minutes at most, for other ranks wait"
    )
    batch: Annotated[int, Field(ge=1, le=4096)] = Field(default=64, description="answers a call")

    @property
    def kind(self) -> str:
        return "service"


def _an_object(value: Any) -> Any:
    """Refuses what is no object with the one that may have been meant."""
    if isinstance(value, dict | Term):
        return value
    meant = "{function: length}"
    if isinstance(value, str) and value in FUNCTIONS:
        meant = f"{{function: {value}}}"
    elif isinstance(value, str) and value.startswith(("http://", "https://")):
        meant = "{service: URL}"
    elif isinstance(value, str) and value.startswith("steps/"):  # as `{from: STEP.OUTPUT}` is spelt out
        meant = f"{{model: {{from: {value.removeprefix('steps/')}}}}}"
    elif isinstance(value, str) and "/" in value:
        meant = f"{{model: {value}}}"
    raise ValueError(f"must be an object, such as `{meant[:200]}`")


def _kind_of(value: Any) -> str | None:
    fields = value if isinstance(value, dict) else vars(value)
    if isinstance(function := fields.get("function"), str):
        return function
    return next((kind for kind in ("model", "service") if kind in fields), None)


RewardTerm = Annotated[
    Annotated[ModelTerm, Tag("model")]
    | Annotated[ServiceTerm, Tag("service")]
    | Annotated[SentimentTerm, Tag("sentiment")]
    | Annotated[ExactMatchTerm, Tag("exact_match")]
    | Annotated[LengthTerm, Tag("length")]
    | Annotated[RegexTerm, Tag("regex")],
    Discriminator(
        _kind_of,
        custom_error_type="reward_term",
        custom_error_message=f"give one of `model`, `service` and `function` ({', '.join(FUNCTIONS)})",
    ),
    BeforeValidator(_an_object),
]


class Reward(Strict):
    """What an answer is worth: the weighted sum of its terms, then scaled and clipped."""

    terms: Annotated[list[RewardTerm], Field(min_length=1, max_length=16)]
    scale: Literal["none", "running"] = Field(
        default="none", description="`running`: divided by the standard deviation of all sums so far"
    )
    clip: Annotated[float, Field(gt=0)] | None = Field(default=None, description="sums are cut to -clip … clip")
    missing_eos: Annotated[float, Field(ge=-1000, le=1000)] = Field(
        default=0.0, description="added where an answer was cut off at `max_new_tokens`; negative: a penalty"
    )
