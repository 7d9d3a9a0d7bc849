"""The losses are transformers' own, whatever the padding and however the rows are spread."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import BCEWithLogitsLoss, CrossEntropyLoss
from transformers import PreTrainedModel

from tests.classify.rows import MODELS, ROWS
from worker.classify.classes import Classes, classes_of
from worker.classify.examples import ClassBatch, Example, collating, examples, weighted
from worker.classify.model import load_classifier
from worker.classify.objective import class_logits, class_sums, weights_of
from worker.contract.check import parse_spec
from worker.contract.classify import ClassifyStage
from worker.contract.rows import parse_line
from worker.models import Loaded

TASKS = list(ROWS)


class Made:
    """A tiny classifier, and rows as its examples."""

    def __init__(self, folder: Path, task: str, config: dict[str, Any], **fields: Any):
        stage = {"type": "classify", "model": {"config": config}, "data": "files/x", "max_length": 128} | fields
        spec = parse_spec({"stage": stage | {"regression": task == "regression"}, "deepspeed": {"precision": "fp32"}})
        assert isinstance(spec.stage, ClassifyStage)
        rows = [(n, parse_line(json.dumps(row).encode(), n)[1]) for n, row in enumerate(ROWS[task](13), start=1)]
        self.stage = spec.stage
        self.loaded: Loaded
        self.classes: Classes
        self.loaded, self.classes = load_classifier(spec, {}, folder, lambda known: classes_of(rows, spec.stage, known))
        self.loaded.model.eval()
        self.items: list[Example] = examples(rows, self.classes, self.loaded.tokenizer, max_length=128, truncate=False)
        found = weights_of(self.stage, self.classes, self.items)
        self.weights = torch.from_numpy(found) if found is not None else None
        self.positive = self.weights if task == "multi_label" else None
        if self.weights is not None and task != "multi_label":
            self.items = weighted(self.items, self.weights.numpy())

    def batch(self, items: list[Example] | None = None) -> ClassBatch:
        made = collating(self.classes)([[item] for item in items or self.items], pad_id=256)
        assert isinstance(made, ClassBatch)
        return made

    def loss(self, batch: ClassBatch) -> Tensor:
        """The loss as the loop makes it of one batch: the sum over it, divided by its items' targets."""
        return class_sums(class_logits(self.loaded.model, batch), batch, self.positive)[0] / batch.trained

    def theirs(self, batch: ClassBatch) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, logits, labels) of transformers."""
        assert isinstance(self.loaded.model, PreTrainedModel)
        labels = batch.labels
        if self.classes.task == "tokens":
            labels = torch.full_like(batch.input_ids, -100)
            labels[batch.rows, batch.times] = batch.labels
        made = self.loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels)
        return made.loss, made.logits, labels


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("config", list(MODELS))
def test_the_loss_and_its_gradient_are_those_of_transformers(tmp_path: Path, task: str, config: str) -> None:
    made = Made(tmp_path, task, MODELS[config])
    batch = made.batch()
    assert not batch.attention_mask.all(), "nothing is padded: the test shows nothing"
    ours = made.loss(batch)
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in made.loaded.model.named_parameters() if p.grad is not None}
    made.loaded.model.zero_grad()
    theirs, _, _ = made.theirs(batch)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    for name, parameter in made.loaded.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", ["balanced", {"animal": 3.0, "thing": 0.25}], ids=["balanced", "given"])
@pytest.mark.parametrize("task", [task for task in TASKS if task != "regression"])
@pytest.mark.parametrize("config", ["bert", "llama"])
def test_with_class_weights_the_loss_is_that_of_torch_over_the_logits_of_transformers(
    tmp_path: Path, task: str, config: str, weights: Any
) -> None:
    made = Made(tmp_path, task, MODELS[config], class_weights=weights)
    batch = made.batch()
    _, logits, labels = made.theirs(batch)
    if task == "multi_label":
        expected = BCEWithLogitsLoss(pos_weight=made.weights)(logits, labels)
    else:
        # Any multiple of the weights has this loss.
        expected = CrossEntropyLoss(weight=7 * made.weights)(logits.flatten(0, -2), labels.flatten())
    assert made.loss(batch).item() == pytest.approx(expected.item(), abs=1e-5)
    assert made.loss(batch).item() != pytest.approx(made.theirs(batch)[0].item(), abs=1e-4), "weights change nothing"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("config", ["bert", "llama"])
def test_rows_by_themselves_have_the_loss_that_they_have_together(tmp_path: Path, task: str, config: str) -> None:
    made = Made(tmp_path, task, MODELS[config], **({} if task == "regression" else {"class_weights": "balanced"}))
    alone = [made.batch([item]) for item in made.items]
    sums = sum(class_sums(class_logits(made.loaded.model, b), b, made.positive) for b in alone)
    assert isinstance(sums, Tensor)
    together = made.batch()
    assert (sums[0] / sum(b.trained for b in alone)).item() == pytest.approx(made.loss(together).item(), rel=1e-5)
    whole = class_sums(class_logits(made.loaded.model, together), together, made.positive)
    assert whole[1:].tolist() == sums[1:].tolist()


@pytest.mark.parametrize("task", TASKS)
def test_a_micro_batch_without_rows_takes_part_and_adds_nothing(tmp_path: Path, task: str) -> None:
    made = Made(tmp_path, task, MODELS["llama"])
    batch = collating(made.classes)([], pad_id=256)
    sums = class_sums(class_logits(made.loaded.model, batch), batch)
    sums[0].backward()
    assert sums.tolist() == [0, 0, 0]
    assert batch.trained == batch.tokens == 0
    assert all(p.grad is None or not p.grad.any() for p in made.loaded.model.parameters())


def test_losses_by_hand() -> None:
    def batch(labels: Tensor, weights: list[float]) -> ClassBatch:
        none, read = torch.zeros(0, dtype=torch.int64), torch.tensor(weights)
        return ClassBatch(none, none, none, none, none, labels, read, 0, sum(weights))

    # Odds 1 : 3 and 4 : 1. -ln .75 = .287682 with weight 1, -ln .2 = 1.609438 with weight 2: 3.506558.
    logits = torch.tensor([[1.0, 3.0], [4.0, 1.0]]).log()
    found = class_sums(logits, batch(torch.tensor([1, 1]), [1.0, 2.0]))
    assert found.tolist() == pytest.approx([3.506558, 1, 2], abs=1e-6)
    # s(ln 3) = .75, s(0) = .5, s(-ln 4) = .2, s(0) = .5. Having weighs 2 of the first class, 1 of the second:
    # (2 x .287682 + .693147) / 2 and (-ln .8 + .693147) / 2: .634256 + .458145.
    logits = torch.tensor([[3.0, 1.0], [0.25, 1.0]]).log()
    found = class_sums(logits, batch(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), [1.0, 1.0]), torch.tensor([2.0, 1.0]))
    assert found.tolist() == pytest.approx([1.092401, 1, 2], abs=1e-6)
    found = class_sums(torch.tensor([[1.5], [-1.0]]), batch(torch.tensor([1.0, 2.0]), [1.0, 1.0]))
    assert found.tolist() == pytest.approx([9.25, 0, 2])
