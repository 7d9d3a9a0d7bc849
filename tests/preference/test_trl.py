"""Losses and gradients of whole models, against TRL's trainers on the same tokens."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.model.conftest import GPT2, LLAMA
from tests.preference.rows import Made, judged, pairs
from worker.logprobs import log_probabilities

COMMON: dict[str, Any] = {
    "max_length": None, "bf16": False, "gradient_checkpointing": False, "disable_dropout": True, "report_to": "none",
    "use_cpu": True, "dataloader_pin_memory": False,
}  # fmt: skip
# What a trainer wants to see before it can be asked for a loss.
SHOWN = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
SHOWN_TO_KTO = Dataset.from_list([{"prompt": "a", "completion": "b", "label": label} for label in (True, False)])
PLAIN = [row for row in pairs(12) if "chosen" in row and "margin" not in row]


def moved(model: nn.Module) -> nn.Module:
    """The same model, elsewhere."""
    made = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made


def compare(ours: Tensor, model: nn.Module, theirs: Tensor, other: nn.Module) -> None:
    """Both losses and both gradients."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours.backward()
    theirs.backward()
    wanted = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-5)


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({}, {"loss_type": "sigmoid"}),
    "hinge": ({"loss": "hinge"}, {"loss_type": "hinge"}),
    "ipo": ({"loss": "ipo"}, {"loss_type": "ipo"}),
    "length-normalised": ({"length_normalised": True}, {"loss_type": "sigmoid_norm"}),
    # Of one pair, TRL's alignment by transport is the smoothed loss; it has none of that name.
    "smoothed": ({"label_smoothing": 0.2}, {"loss_type": "aot", "label_smoothing": 0.2}),
    "reference-free": ({"reference_free": True}, {"loss_type": "sigmoid"}),
}


# The losses are the same whatever the model; one of another family shows that its log-probabilities are.
CASES = [*((LLAMA, variant) for variant in VARIANTS), (GPT2, "sigmoid")]


@pytest.mark.parametrize(("config", "variant"), CASES, ids=[f"{c['model_type']}-{v}" for c, v in CASES])
def test_dpo_is_that_of_trl(tmp_path: Path, config: dict[str, Any], variant: str) -> None:
    fields, theirs = VARIANTS[variant]
    rows = PLAIN[:1] if variant == "smoothed" else PLAIN
    made = Made(tmp_path, "dpo", rows, model=config, beta=0.3, **fields)
    reference = moved(made.loaded.model)
    batch = made.batch()
    with torch.no_grad():
        said = log_probabilities(reference, batch).sum(dim=1)
    if "reference_free" not in fields:
        made.refer_to(said)
    other = copy.deepcopy(made.loaded.model)
    data = [
        {
            "prompt_ids": row.answers[0][: row.prompt].tolist(),
            "chosen_ids": row.answers[0][row.prompt :].tolist(),
            "rejected_ids": row.answers[1][row.prompt :].tolist(),
        }
        for row in made.dataset.train
    ]
    settings = DPOConfig(str(tmp_path / "trl"), beta=0.3, per_device_train_batch_size=len(data), **COMMON, **theirs)
    trainer = DPOTrainer(
        model=other, ref_model=reference, args=settings, train_dataset=SHOWN,
        processing_class=made.loaded.tokenizer,
    )  # fmt: skip
    inputs = trainer.data_collator(data)
    if "reference_free" in fields:
        trainer.precompute_ref_logps = True
        inputs |= {"ref_chosen_logps": torch.zeros(len(data)), "ref_rejected_logps": torch.zeros(len(data))}
    loss = trainer.compute_loss(trainer.model, inputs)
    sums = made.sums(batch=batch)
    told = made.method.metrics(sums.tolist())
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    for ours, name in (("logps/chosen", "logps/chosen"), ("logps/rejected", "logps/rejected")):
        assert told[ours] == pytest.approx(metrics[name], rel=1e-5)
    if not made.method.stage.by_token:
        for ours, name in (
            ("rewards/chosen", "rewards/chosen"),
            ("rewards/margin", "rewards/margins"),
            ("train/accuracy", "rewards/accuracies"),
        ):
            assert told[ours] == pytest.approx(metrics[name], rel=1e-5, abs=1e-5)
    compare(sums[0] / len(data), made.loaded.model, loss, trainer.model)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda c: c["model_type"])
def test_orpo_is_that_of_trl(tmp_path: Path, config: dict[str, Any]) -> None:
    # TRL learns to write prompts, too, and weighs rows by their tokens: so one row at a time.
    made = Made(tmp_path, "orpo", PLAIN[:3], model=config, beta=0.3, prompts=True)
    other = copy.deepcopy(made.loaded.model)
    settings = ORPOConfig(str(tmp_path / "trl"), beta=0.3, remove_unused_columns=False, **COMMON | {"max_length": 512})
    trainer = ORPOTrainer(model=other, args=settings, train_dataset=SHOWN, processing_class=made.loaded.tokenizer)
    theirs: Any = torch.zeros(())
    for row in made.dataset.train:
        better, worse = (torch.from_numpy(ids).long()[None] for ids in row.answers)
        inputs = {"prompt_input_ids": better[:, : row.prompt], "prompt_attention_mask": torch.ones(1, row.prompt)}
        for name, ids in (("chosen", better), ("rejected", worse)):
            labels = ids.clone()
            labels[:, : row.prompt] = -100
            inputs |= {f"{name}_input_ids": ids, f"{name}_attention_mask": torch.ones_like(ids)}
            inputs[f"{name}_labels"] = labels
        loss, metrics = trainer.get_batch_loss_metrics(trainer.model, inputs)
        theirs = theirs + loss
        told = made.method.metrics(made.sums(batch=made.batch([row])).tolist())
        assert told["orpo/log_odds"] == pytest.approx(metrics["log_odds_chosen"], rel=1e-4, abs=1e-5)
        assert told["orpo/nll"] == pytest.approx(metrics["nll_loss"], rel=1e-5)
        assert told["rewards/chosen"] == pytest.approx(metrics["rewards/chosen"], rel=1e-5)
    compare(made.sums()[0] / 3, made.loaded.model, theirs / 3, trainer.model)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda c: c["model_type"])
def test_kto_is_that_of_trl(tmp_path: Path, config: dict[str, Any]) -> None:
    weights = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    made = Made(tmp_path, "kto", judged(8), model=config, **weights)
    reference: Any = moved(made.loaded.model)
    batch = made.batch()
    with torch.no_grad():
        said, other_said = (log_probabilities(reference, part).sum(dim=1) for part in (batch.said, batch.other))
    made.refer_to(torch.stack([said, other_said], dim=1).flatten())
    data = [
        {
            "prompt_ids": row.prompt.tolist(),
            "completion_ids": row.answer.tolist(),
            "KL_completion_ids": row.other_answer.tolist(),
            "label": row.wanted,
        }
        for row in made.dataset.train
    ]
    other: Any = copy.deepcopy(made.loaded.model)
    settings = KTOConfig(str(tmp_path / "trl"), per_device_train_batch_size=len(data), **COMMON, **weights)
    trainer = KTOTrainer(
        model=other, ref_model=reference, args=settings, train_dataset=SHOWN_TO_KTO,
        processing_class=made.loaded.tokenizer,
    )  # fmt: skip
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(data))
    method: Any = made.method
    moved_by = log_probabilities(made.loaded.model, batch.other).sum(dim=1) - other_said
    method._kl = max(0.0, float(moved_by.mean().detach()))
    sums = made.sums(batch=batch)
    told = method.metrics(sums.tolist())
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    for ours, name in (("kto/kl", "kl"), ("rewards/chosen", "rewards/chosen"), ("rewards/margin", "rewards/margins")):
        assert told[ours] == pytest.approx(metrics[name], rel=1e-4, abs=1e-5)
    assert metrics["kl"] > 0, "nothing has moved: the test shows nothing"
    compare(sums[0] / len(data), made.loaded.model, loss, trainer.model)
