"""The loss: against torch's own, against TRL's trainer, and whatever the padding."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from tests.model.conftest import GEMMA2, GPT2, LLAMA, QWEN2, all_logits
from tests.model.test_masks import STAGE, dialogue
from worker import losses
from worker.data import Sample, encode, sample
from worker.losses import token_loss_sum
from worker.models import Loaded
from worker.packing import MicroBatch, collate, updates

TALKS = [
    [("user", "hi"), ("assistant", "hello there")],
    [("system", "be short"), ("user", "and you?"), ("assistant", "fine"), ("user", "ok"), ("assistant", "bye then")],
    [("user", "a long question, is it not?"), ("assistant", "no")],
    [("user", "?"), ("assistant", "an answer that is the longest one of all of them here")],
]
# ChatML, with the assistant's turns marked as transformers' own masks need it.
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def samples(tokenizer: PreTrainedTokenizerBase) -> list[Sample]:
    return encode([(n, dialogue(*talk)) for n, talk in enumerate(TALKS, 1)], tokenizer, STAGE, 1000, False)


def unpacked(some: Sequence[Sample], pad_id: int) -> MicroBatch:
    return collate([[s] for s in some], pad_id=pad_id)


def reference(model: nn.Module, batch: MicroBatch) -> Tensor:
    """torch's cross-entropy over all logits."""
    logits = all_logits(model, batch).float()
    return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="sum")


@pytest.mark.parametrize("config", [LLAMA, GPT2, QWEN2, GEMMA2], ids=lambda c: c["model_type"])
@pytest.mark.parametrize("chunk", [losses._CHUNK, 5 * 259])
def test_loss_and_gradient_are_those_of_cross_entropy_over_all_logits(
    tiny: Callable[..., Loaded], config: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_CHUNK", chunk)
    loaded = tiny(config, max_length=128)
    batch = unpacked(samples(loaded.tokenizer), 256)
    ours = token_loss_sum(loaded.model, batch)
    (ours * 0.37).backward()
    gradients = {name: p.grad.clone() for name, p in loaded.model.named_parameters()}
    loaded.model.zero_grad()
    theirs = reference(loaded.model, batch)
    (theirs * 0.37).backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    for name, parameter in loaded.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_logits_are_made_for_labelled_positions_alone(tiny: Callable[..., Loaded]) -> None:
    loaded = tiny(max_length=128)
    batch = unpacked(samples(loaded.tokenizer), 256)
    seen: list[tuple[int, ...]] = []
    head = loaded.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    token_loss_sum(loaded.model, batch)
    assert seen == [(batch.trained, 259)]


def test_a_model_that_cannot_choose_positions_gives_the_same_loss(
    tiny: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny(max_length=128)
    batch = unpacked(samples(loaded.tokenizer), 256)
    chosen = token_loss_sum(loaded.model, batch)
    monkeypatch.setattr(losses, "_selects_positions", lambda architecture: False)
    torch.testing.assert_close(token_loss_sum(loaded.model, batch), chosen, rtol=1e-6, atol=0)


def test_a_micro_batch_without_a_label_has_a_loss_and_a_gradient_of_zero(tiny: Callable[..., Loaded]) -> None:
    loaded = tiny()
    loss = token_loss_sum(loaded.model, collate([], pad_id=256))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in loaded.model.parameters())


@pytest.mark.parametrize("pad_id", [0, 256, 258], ids=["a byte", "pad", "pad is eos"])
def test_what_pads_and_how_much_changes_no_loss(tiny: Callable[..., Loaded], pad_id: int) -> None:
    loaded = tiny(max_length=128)
    some = samples(loaded.tokenizer)
    alone = sum(float(token_loss_sum(loaded.model, unpacked([s], 256))) for s in some)
    assert float(token_loss_sum(loaded.model, unpacked(some, pad_id))) == pytest.approx(alone, rel=1e-6)


def trl_batch(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[SFTTrainer, dict[str, Tensor]]:
    """TRL's trainer and its batch of TALKS; masks come from the template's marks, not from prefixes."""
    marked = tokenizer.__class__.from_pretrained(folder / "tokenizer")
    marked.chat_template = template
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in TALKS]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=len(TALKS),
            assistant_only_loss=True,
            max_length=None,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=marked,
    )
    return trainer, next(iter(trainer.get_train_dataloader()))


def same_loss_as_trl(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    tokenizer.save_pretrained(folder / "tokenizer")
    batch = unpacked(samples(tokenizer), tokenizer.pad_token_id)
    with torch.no_grad():
        ours = token_loss_sum(model, batch) / batch.trained
    trainer, theirs = trl_batch(folder, model, tokenizer, template)
    # TRL's labels are the tokens themselves; shifted by one, they are ours.
    assert int((theirs["labels"][:, 1:] != -100).sum()) == batch.trained
    model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(model, theirs)
    assert float(ours) == pytest.approx(float(loss), abs=1e-5)


def test_the_loss_is_that_of_trl_on_the_same_batch(tiny: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = tiny(max_length=128)
    assert isinstance(loaded.model, PreTrainedModel)
    same_loss_as_trl(tmp_path, loaded.model, loaded.tokenizer, MARKED)


def test_the_real_models_loss_is_that_of_trl_on_the_same_batch(smollm2_folder: Path, tmp_path: Path) -> None:
    # Loaded anew: TRL's trainer changes the model that it is given.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    default = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named "
    default += "SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    same_loss_as_trl(tmp_path, model, tokenizer, default + MARKED)


def test_packed_and_separate_rows_have_the_same_loss(tiny: Callable[..., Loaded]) -> None:
    loaded = tiny(max_length=200, packing=True)
    some = samples(loaded.tokenizer)
    (rows,) = updates(some, seed=0, epoch=0, batch=9, pack_to=200)
    assert len(rows) < len(some)
    packed = float(token_loss_sum(loaded.model, collate(rows, pad_id=256)))
    assert packed == pytest.approx(float(token_loss_sum(loaded.model, unpacked(some, 256))), rel=1e-6)


def test_a_loss_by_hand() -> None:
    class Fixed(nn.Module):
        """Gives the logits ln 1, ln 2, ln 3, ln 4 everywhere: probabilities .1 .2 .3 .4."""

        def forward(self, **given: Any) -> Any:
            shape = (*given["input_ids"].shape, 4)
            return type("Out", (), {"logits": torch.tensor([1.0, 2, 3, 4]).log().expand(shape)})()

    batch = collate([[sample([0, 2, 3, 1], [False, True, False, True])]], pad_id=0)
    # Trained are 2 (p .3) and 1 (p .2): -ln .3 - ln .2 = 2.813411
    assert float(token_loss_sum(Fixed(), batch)) == pytest.approx(2.813411, abs=1e-6)
