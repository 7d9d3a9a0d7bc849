"""What the specs of dpo, orpo and kto say, refuse, and are taken to need."""

from typing import Any

import pytest

from worker.contract.check import InvalidSpec, parse_spec
from worker.contract.estimate import estimate
from worker.contract.preference import DpoStage
from worker.contract.rows import BadRow, RowChecker
from worker.contract.spec import JobSpec
from worker.contract.steps import outputs

pytestmark = pytest.mark.quick
LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4}


def spec(stage: str, **fields: Any) -> JobSpec:
    return parse_spec({"stage": {"type": stage, "model": "models/talks", "data": "files/x"} | fields})


@pytest.mark.parametrize(
    ("stage", "fields", "path", "said"),
    [
        ("dpo", {"label_smoothing": 0.1, "loss": "hinge"}, "stage.label_smoothing", "no odds to smooth"),
        ("dpo", {"label_smoothing": 0.5}, "stage.label_smoothing", "less than 0.5"),
        ("dpo", {"loss": "sigmoyd"}, "stage.loss", "'sigmoid', 'ipo' or 'hinge'"),
        ("dpo", {"beta": 0.0}, "stage.beta", "greater than 0"),
        ("orpo", {"reference_free": True}, "stage.reference_free", "unknown field"),
        ("orpo", {"packing": True}, "stage.packing", "must be False"),
        ("kto", {"batch": 1}, "stage.batch", "at least 2"),
        ("kto", {"undesirable_weight": 0.0}, "stage.undesirable_weight", "greater than 0"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(stage: str, fields: dict[str, Any], path: str, said: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        spec(stage, **fields)
    (problem,) = refused.value.problems
    assert problem.path == path
    assert said in problem.message


@pytest.mark.parametrize(
    ("fields", "by_token"),
    [({}, False), ({"loss": "ipo"}, True), ({"loss": "ipo", "length_normalised": False}, False)],
)
def test_ipo_alone_counts_by_the_token_unless_told(fields: dict[str, Any], by_token: bool) -> None:
    stage = spec("dpo", **fields).stage
    assert isinstance(stage, DpoStage)
    assert stage.by_token is by_token


def test_a_step_hands_over_a_language_model_at_a_low_rate() -> None:
    for stage, lr in (("dpo", 1e-6), ("orpo", 8e-6), ("kto", 1e-6)):
        assert spec(stage).lr == lr
        assert outputs(spec(stage, lora={})) == {"model": "writer", "adapter": "adapter"}


def test_a_comparison_is_taken_to_need_the_memory_of_two_rows() -> None:
    fields = {"model": {"config": LLAMA}, "max_length": 128, "micro_batch": 4}
    one, two = (estimate(spec(stage, **fields), {}).phases[0] for stage in ("kto", "dpo"))
    assert two.activations == pytest.approx(2 * one.activations, rel=0.05)
    assert two.logits > 1.5 * one.logits


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "a", "completion": "b", "label": 1}', "`label`: Input should be a valid boolean"),
        (b'{"prompt": "a", "completion": "b"}', "`label`: Field required"),
        (b'{"prompt": " ", "completion": "b", "label": true}', "`prompt`: has nothing but blanks"),
        (b'{"prompt": "a", "completion": "", "label": true}', "`completion`"),
    ],
)
def test_a_line_that_is_no_judged_answer_is_told_of(line: bytes, said: str) -> None:
    with pytest.raises(BadRow) as refused:
        RowChecker().feed(line)
    assert said in str(refused.value)
